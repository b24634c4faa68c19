"""A page for each run: its curves, numbers, samples, configuration, and what made it."""

import json
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from gcflow.pipeline.drawing.inputs import expected
from gcflow.pipeline.folders import run_folder
from gcflow.pipeline.params import Params, Run
from gcflow.pipeline.report.charts import Chart, Series, chart
from gcflow.pipeline.report.images import Picture, png_picture
from gcflow.pipeline.report.jobs import Job, read_jobs, training_seconds
from gcflow.pipeline.report.records import Output, Records
from gcflow.pipeline.report.tables import Cell, Column, SortableTable
from gcflow.pipeline.report.words import number
from gcflow.pipeline.stages import Stages
from gcflow.pipeline.table import metric_label

# Of the pictures of a run's steps, in characters of the page.
STEPS_BUDGET = 60_000
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
# What a line of metrics.jsonl is about, not what it measures.
PLACES = ("step", "time")
# Which measurement a record of metrics.json is of; the rest of it is the protocol.
MEASURED = ("metric", "value", "run", "step", "weights", "sampler", "network_evaluations", "generation_seed")


class StepPicture(NamedTuple):
    """Samples at a step of training."""

    step: int
    picture: Picture


class Protocol(NamedTuple):
    """How numbers were made, as their records have it."""

    name: str
    record: dict[str, Any]


class RunPage(NamedTuple):
    """Everything about a run. What is None or empty is not recorded yet.

    constants: what was the same at every logged step. headline: of the run's first metric, for lists of runs.
    """

    run: Run
    label: str
    state: str
    config: dict[str, Any] | None
    facts: list[tuple[str, str]]
    config_text: str
    inputs: dict[str, str]
    config_hash: str
    jobs: list[Job]
    seconds: float | None
    ended: float | None
    training_charts: list[Chart]
    constants: list[tuple[str, str]]
    metric_charts: list[Chart]
    final: SortableTable | None
    snapshots: SortableTable | None
    protocols: list[Protocol]
    metrics: list[str]
    headline: tuple[str, float] | None
    samples: Picture | None
    steps: list[StepPicture]
    known_steps: int
    outputs: list[Output]
    commands: list[tuple[str, str]]

    @property
    def id(self) -> str:
        """Its place on the page."""
        return f"/run/{self.run.name}"


def run_page(params: Params, stages: Stages, records: Records, run: Run) -> RunPage:
    """The page of a run, from its files."""
    folder, made = run_folder(Path(), run), [stages.train(run), stages.evaluate(run)]
    if run in stages.denoisers(run.dataset):
        made.append(stages.discrepancy(run))
    document = records.json(folder / "config.json") or {}
    lines = records.lines(folder / "metrics.jsonl")
    jobs = records.json(folder / "jobs.json")
    measured = records.json(folder / "evaluation" / "metrics.json") or []
    samples = records.path(folder / "evaluation" / "samples.png")
    steps, known = _steps(records, folder)
    config = document.get("config")
    with expected(records.root / folder / "config.json"):
        batch = None if config is None else config["training"]["batch"]
        facts = [] if config is None else _facts(config)
    with expected(records.root / folder / "metrics.jsonl"):
        seconds = training_seconds(lines, batch)
        charts, constants = _training(lines)
    with expected(records.root / folder / "jobs.json"):
        done = read_jobs(jobs, lines, batch)
    with expected(records.root / folder / "evaluation" / "metrics.json"):
        rows = _final(measured)
        headline = _headline(measured)
        curves, table = _metric_curves(measured)
        protocols = _protocols(measured)
    return RunPage(
        run=run,
        label=params.dataset(run.dataset).runs[run.method].label,
        state="not trained" if config is None else "evaluated" if measured else "trained, not evaluated",
        config=config,
        facts=facts,
        config_text=json.dumps(config, indent=2, ensure_ascii=False),
        inputs=document.get("inputs", {}),
        config_hash=document.get("config_hash", ""),
        jobs=done,
        seconds=seconds,
        ended=lines[-1].get("time") if lines else None,
        training_charts=charts,
        constants=constants,
        metric_charts=curves,
        final=rows,
        snapshots=table,
        protocols=protocols,
        metrics=list(dict.fromkeys(record["metric"] for record in measured)),
        headline=headline,
        samples=None if samples is None else png_picture(samples),
        steps=steps,
        known_steps=known,
        outputs=[output for stage in made for output in records.outputs(stage)],
        commands=_commands(run, [stage.name for stage in made], [stage.command for stage in made]),
    )


def _facts(config: dict[str, Any]) -> list[tuple[str, str]]:
    """The configuration in a few words."""
    method, training, network = config["method"], config["training"], config["network"]
    coupling = method["coupling"]
    # Those of extensions have options of their own.
    sizes = [f"{network['channels']} channels"] if "channels" in network else []
    sizes += [f"dropout {number(network['dropout'])}"] if "dropout" in network else []
    return [
        ("Objective", method["objective"]),
        ("Coupling", coupling if isinstance(coupling, str) else coupling["kind"]),
        ("Steps × batch", f"{number(training['steps'], 9)} × {training['batch']}"),
        ("Optimizer", f"{training['optimizer']}, learning rate {number(training['learning_rate'])}"),
        ("Network", ", ".join([network["architecture"], *sizes])),
    ]


def _commands(run: Run, names: list[str], commands: list[str]) -> list[tuple[str, str]]:
    return [
        *(("Make it", command) for command in commands),
        ("Make it with all that it needs", f"dvc repro {names[1]}"),
        ("Fetch the recorded files", f"dvc pull {' '.join(names)}"),
        ("Follow it", f"gcflow status {run.name}"),
    ]


def _steps(records: Records, folder: Path) -> tuple[list[StepPicture], int]:
    """Samples at steps of training, evenly thinned to the budget, and how many steps there are."""
    place = records.path(folder / "evaluation" / "grids")
    found = sorted(place.glob("*.png")) if place else []
    if not found:
        return [], 0
    last = png_picture(found[-1])
    count = max(1, min(len(found), STEPS_BUDGET // len(last.uri)))
    chosen = {round(index * (len(found) - 1) / max(1, count - 1)) for index in range(count)} | {len(found) - 1}
    pictures = [StepPicture(int(found[index].stem), png_picture(found[index])) for index in sorted(chosen)]
    return (pictures if len(pictures) > 1 else []), len(found)


def _training(lines: list[dict[str, Any]]) -> tuple[list[Chart], list[tuple[str, str]]]:
    charts, constants = [], []
    for key in dict.fromkeys(key for line in lines for key in line if key not in PLACES):
        points = [(float(line["step"]), float(line[key])) for line in lines if line.get(key) is not None]
        title = TRAINING_TITLES.get(key, key.replace("_", " "))
        if len({value for _, value in points}) == 1:
            constants.append((title, number(points[0][1])))
            continue
        drawn = chart(title, [Series(title, points)], key in LOGARITHMIC)
        charts += [drawn] if drawn else []
    return charts, constants


def _of_ema(records: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The records of EMA weights and the fewest network evaluations."""
    chosen = [record for record in records if record["weights"] == "ema"]
    least = min((record["network_evaluations"] for record in chosen), default=0)
    return [record for record in chosen if record["network_evaluations"] == least]


def _headline(measured: list[dict[str, Any]]) -> tuple[str, float] | None:
    """The first metric under the first protocol at the last step, of EMA weights; mean over generation seeds."""
    chosen = _of_ema(measured)
    if not chosen:
        return None
    first, last = chosen[0], max(record["step"] for record in chosen)
    same = ("metric", "protocol")
    values = [r["value"] for r in chosen if r["step"] == last and all(r[key] == first[key] for key in same)]
    return first["metric"], sum(values) / len(values)


def _final(measured: list[dict[str, Any]]) -> SortableTable | None:
    if not measured:
        return None
    last = max(record["step"] for record in measured)
    keys = ("protocol", "metric", "weights", "sampler", "network_evaluations")
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for record in measured:
        if record["step"] == last:
            groups.setdefault(tuple(record[key] for key in keys), []).append(record)
    rows = []
    for (protocol, metric, weights, sampler, evaluations), found in groups.items():
        label, factor = metric_label(metric)
        values = [record["value"] * factor for record in found]
        mean = sum(values) / len(values)
        of_seeds = ", ".join(
            f"{record['generation_seed']}: {number(value)}" for record, value in zip(found, values, strict=True)
        )
        rows.append(
            [
                Cell(label, metric),
                Cell(number(mean), mean),
                Cell(weights, weights),
                Cell(sampler, sampler),
                Cell(str(evaluations), evaluations),
                Cell(of_seeds),
                Cell(protocol, protocol),
            ]
        )
    columns = [
        Column("metric", numeric=False),
        Column("mean"),
        Column("weights", numeric=False),
        Column("sampler", numeric=False),
        Column("evaluations", hint="network evaluations per sample"),
        Column("each generation seed", numeric=False, prose=True),
        Column("protocol", numeric=False),
    ]
    return SortableTable(f"At the last step, {number(last, 9)}", columns, rows)


def _metric_curves(measured: list[dict[str, Any]]) -> tuple[list[Chart], SortableTable | None]:
    """Every metric at every snapshot, of the cheapest sampler and the first generation seed; also as a table."""
    if not measured:
        return [], None
    seed, least = measured[0]["generation_seed"], min(record["network_evaluations"] for record in measured)
    chosen = [r for r in measured if r["generation_seed"] == seed and r["network_evaluations"] == least]
    curves: dict[tuple[str, str], dict[str, dict[int, float]]] = {}
    for record in chosen:
        factor = metric_label(record["metric"])[1]
        place = curves.setdefault((record["protocol"], record["metric"]), {}).setdefault(record["weights"], {})
        place[record["step"]] = record["value"] * factor
    several = len({protocol for protocol, _ in curves}) > 1
    charts, heads, columns = [], [Column("step")], []
    for (protocol, metric), of_weights in curves.items():
        title = (f"{protocol}: " if several else "") + metric_label(metric)[0]
        series = [
            Series(f"{name} weights", sorted((float(s), v) for s, v in found.items()))
            for name, found in of_weights.items()
        ]
        drawn = chart(title, series, title.endswith("↓"))
        charts += [drawn] if drawn else []
        heads += [Column(f"{title} ({name})") for name in of_weights]
        columns += list(of_weights.values())
    steps = sorted({step for column in columns for step in column})
    rows = [
        [Cell(number(step, 9), step), *(Cell(number(column.get(step)), column.get(step)) for column in columns)]
        for step in steps
    ]
    return charts, SortableTable("At every snapshot", heads, rows) if len(steps) > 1 else None


def _protocols(measured: list[dict[str, Any]]) -> list[Protocol]:
    found = []
    ordered = sorted(measured, key=lambda record: str(record["protocol"]))
    for name, members in groupby(ordered, key=lambda record: record["protocol"]):
        record = next(members)
        found.append(Protocol(name, {key: value for key, value in record.items() if key not in MEASURED}))
    return found
