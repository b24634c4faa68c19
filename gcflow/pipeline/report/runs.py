"""A page for each run: its curves, numbers, samples, configuration, and what made it."""

import json
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from gcflow.errors import GcflowError
from gcflow.pipeline.features import metric_name
from gcflow.pipeline.folders import run_folder
from gcflow.pipeline.job import commit_words
from gcflow.pipeline.measurements import Record, means, measured
from gcflow.pipeline.params import Params, Run
from gcflow.pipeline.report.charts import Chart, chart
from gcflow.pipeline.report.recorded import picture, recorded
from gcflow.pipeline.stages import Stage, Stages
from gcflow.readable import moment, number

# Of the pictures of a run's steps, in characters of the page.
STEPS_BUDGET = 80_000
TRAINING_TITLES = {
    "loss": "Loss",
    "learning_rate": "Learning rate",
    "intervals": "Discretization intervals N",
    "mu": "Share μ of generator-augmented pairs",
    "gradient_norm": "Gradient norm, before clipping",
    "images_per_second": "Images per second",
    "memory_gib": "Memory, GiB",
}
# The others fall to zero or do not span much.
LOGARITHMIC = ("loss", "gradient_norm")
# What a line of metrics.jsonl is about, not what it measures; and how the machine was, which MLflow draws.
PLACES, MACHINE = ("step", "time", "checkpoint"), "system/"
# Which measurement a record of metrics.json is of; the rest of it is the protocol.
MEASURED = ("metric", "value", "run", "step", "weights", "sampler", "network_evaluations", "generation_seed")


class Environment(NamedTuple):
    """The machine and the code of a job."""

    host: str
    device: str
    processes: int
    torch: str
    gcflow: str
    code: str


class Job(NamedTuple):
    """A job of a run. begun: UTC. step: where it began. slurm: its number there."""

    begun: str
    step: int
    environment: Environment
    slurm: str


class RunPage(NamedTuple):
    """Everything about a run. What is None or empty is not recorded yet.

    document: config.json. seconds: in training steps. constants: what was the same at every logged step. final: rows of
    metrics at the last step. headline: the first of them, for the list of runs. steps: samples during training, some of
    `known_steps`.
    """

    run: Run
    label: str
    made: list[Stage]
    document: dict[str, Any] | None
    facts: dict[str, str]
    jobs: list[Job]
    seconds: float | None
    ended: float | None
    training_charts: list[Chart]
    constants: dict[str, str]
    metric_charts: list[Chart]
    final: list[list[str]]
    headline: str
    protocols: dict[str, dict[str, Any]]
    samples: str | None
    steps: list[tuple[int, str]]
    known_steps: int
    damaged: bool = False

    @property
    def id(self) -> str:
        """Its place on the page."""
        return f"/run/{self.run.name}"

    @property
    def config_text(self) -> str:
        """The configuration as JSON."""
        return json.dumps((self.document or {}).get("config"), indent=2, ensure_ascii=False)

    @property
    def state(self) -> str:
        """In words."""
        if self.damaged:
            return "damaged"
        return "not trained" if self.document is None else "evaluated" if self.final else "trained, not evaluated"


def run_page(params: Params, stages: Stages, run: Run, damaged: list[str]) -> RunPage:
    """The page of a run, from its files; if one is damaged, which is noted, it has nothing of them."""
    folder = run_folder(params.root, run)
    try:
        return _run_page(params, stages, run, folder)
    except GcflowError as error:
        damaged.append(str(error))
        return _run_page(params, stages, run, folder / "nothing")._replace(damaged=True)


def _run_page(params: Params, stages: Stages, run: Run, folder: Path) -> RunPage:
    made = [stages.train(run), stages.evaluate(run)]
    made += [stages.discrepancy(run)] if run in stages.denoisers(run.dataset) else []
    with recorded(folder / "config.json") as document:
        facts = settings(document["config"]) if document else {}
        batch = document["config"]["training"]["batch"] if document else 0
    with recorded(folder / "metrics.jsonl") as lines:
        charts, constants = _training(lines or [])
        seconds, ended = _seconds(lines, batch) if lines else None, lines[-1].get("time") if lines else None
    with recorded(folder / "jobs.json") as entries:
        jobs = [_job(entry) for entry in entries or ()]
    with recorded(folder / "evaluation" / "metrics.json") as found:
        records: list[Record] = found or []
        final, curves, protocols = _final(records), _metric_charts(records), _protocols(records)
        headline = _headline(records)
    steps, known_steps = _steps(folder / "evaluation" / "grids")
    return RunPage(
        run=run,
        label=params.dataset(run.dataset).runs[run.method].label,
        made=made,
        document=document,
        facts=facts,
        jobs=jobs,
        seconds=seconds,
        ended=ended,
        training_charts=charts,
        constants=constants,
        metric_charts=curves,
        final=final,
        headline=headline,
        protocols=protocols,
        samples=picture(folder / "evaluation" / "samples.png"),
        steps=steps,
        known_steps=known_steps,
    )


def settings(config: dict[str, Any]) -> dict[str, str]:
    """The configuration in a few words."""
    method, training, network = config["method"], config["training"], config["network"]
    kinds = {
        key: part if isinstance(part, str) else part["kind"]
        for key, part in method.items()
        if key in ("objective", "coupling")
    }
    # Networks of extensions have options of their own.
    sizes = [f"{key} {number(network[key])}" for key in ("channels", "dropout") if key in network]
    return {
        "Objective": kinds["objective"],
        "Coupling": kinds["coupling"],
        "Steps × batch": f"{number(training['steps'], 9)} × {training['batch']}",
        "Optimizer": f"{training['optimizer']}, learning rate {number(training['learning_rate'])}",
        "Network": ", ".join([network["architecture"], *sizes]),
    }


def _seconds(lines: list[dict[str, Any]], batch: int) -> float:
    """Time that the training steps took, by the speed of each logged line."""
    steps = pairwise([0, *(line["step"] for line in lines)])
    return sum(
        (step - before) * batch / line["images_per_second"] for (before, step), line in zip(steps, lines, strict=True)
    )


def _job(entry: dict[str, Any]) -> Job:
    code = commit_words(entry["commit"], entry["dirty"])
    begun = datetime.fromisoformat(entry["begun"]).timestamp()
    environment = Environment(**{key: entry[key] for key in Environment._fields if key != "code"}, code=code)
    return Job(moment(begun), entry["step"], environment, entry["slurm_job"] or "–")


def _training(lines: list[dict[str, Any]]) -> tuple[list[Chart], dict[str, str]]:
    charts, constants = [], {}
    logged = (key for line in lines for key in line if key not in PLACES and not key.startswith(MACHINE))
    for key in dict.fromkeys(logged):
        points = [(float(line["step"]), float(line[key])) for line in lines if line.get(key) is not None]
        title = TRAINING_TITLES.get(key, key.replace("_", " "))
        if len({value for _, value in points}) == 1:
            constants[title] = number(points[0][1])
        elif drawn := chart(title, {title: points}, key in LOGARITHMIC):
            charts.append(drawn)
    return charts, constants


def _headline(records: list[Record]) -> str:
    """The first metric under the first protocol at the last step, of EMA weights; mean over generation seeds."""
    metrics = next(iter(measured(records).curves.values()), None)
    if metrics is None:
        return "–"
    name, curve = next(iter(metrics.items()))
    metric = metric_name(name)
    return f"{metric.heading} {number(metric.factor * means(curve)[max(curve)], zeros=True)}"


def _final(records: list[Record]) -> list[list[str]]:
    """Every metric at the last step, by each sampler and of both weights; mean over generation seeds."""
    last = max((record["step"] for record in records), default=0)
    groups: dict[tuple[Any, ...], dict[int, float]] = {}
    for record in records:
        if record["step"] == last:
            group = (record[key] for key in ("metric", "weights", "sampler", "network_evaluations", "protocol"))
            value = record["value"] * metric_name(record["metric"]).factor
            groups.setdefault(tuple(group), {})[record["generation_seed"]] = value
    return [
        [
            metric_name(metric).heading,
            number(fmean(values.values())),
            weights,
            sampler,
            str(evaluations),
            ", ".join(f"{seed}: {number(value)}" for seed, value in values.items()),
            protocol,
        ]
        for (metric, weights, sampler, evaluations, protocol), values in groups.items()
    ]


def _metric_charts(records: list[Record]) -> list[Chart]:
    """Every metric at every snapshot, of the cheapest sampler and the first generation seed."""
    weights = dict.fromkeys(record["weights"] for record in records)
    of_weights = {f"{name} weights": measured(records, name).curves for name in weights}
    protocols = next(iter(of_weights.values()), {})
    charts = []
    for protocol, metrics in protocols.items():
        for metric in metrics:
            _, heading, factor = metric_name(metric)
            # The last step alone has several generation seeds, the first of which is that of the others.
            curves = {
                name: [(float(s), factor * next(iter(v.values()))) for s, v in found[protocol][metric].items()]
                for name, found in of_weights.items()
            }
            title = f"{protocol}: {heading}" if len(protocols) > 1 else heading
            charts.append(chart(title, curves, heading.endswith("↓")))
    return [drawn for drawn in charts if drawn]


def _protocols(records: list[Record]) -> dict[str, dict[str, Any]]:
    """The making of numbers under each protocol, as their first record has it."""
    firsts = {record["protocol"]: record for record in reversed(records)}
    return {name: {key: value for key, value in firsts[name].items() if key not in MEASURED} for name in sorted(firsts)}


def _steps(folder: Path) -> tuple[list[tuple[int, str]], int]:
    """Samples at steps of training, evenly thinned to the budget, and how many steps there are."""
    found = sorted(folder.glob("*.png"))
    if len(found) < 2:
        return [], len(found)
    count = max(2, min(len(found), STEPS_BUDGET * 3 // 4 // found[-1].stat().st_size))
    chosen = sorted({round(index * (len(found) - 1) / (count - 1)) for index in range(count)})
    return [(int(found[index].stem), picture(found[index]) or "") for index in chosen], len(found)
