"""A page for each run: its curves, numbers, samples, configuration, and what made it."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from gcflow.files import expected_form
from gcflow.pipeline.folders import run_folder
from gcflow.pipeline.params import Params, Run
from gcflow.pipeline.report.charts import Chart, Series, chart
from gcflow.pipeline.report.images import Picture, png_picture
from gcflow.pipeline.report.jobs import Job, read_jobs, training_seconds
from gcflow.pipeline.report.records import Output, Records
from gcflow.pipeline.report.run_metrics import Protocol, final_table, headline_of, metric_curves, protocols_of
from gcflow.pipeline.report.tables import SortableTable
from gcflow.pipeline.stages import Stages
from gcflow.readable import number

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
# What a line of metrics.jsonl is about, not what it measures; and how the machine was, which MLflow draws.
PLACES, MACHINE = ("step", "time"), "system/"


class StepPicture(NamedTuple):
    """Samples at a step of training."""

    step: int
    picture: Picture


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
    with expected_form(records.root / folder / "config.json"):
        batch = None if config is None else config["training"]["batch"]
        facts = [] if config is None else _facts(config)
    with expected_form(records.root / folder / "metrics.jsonl"):
        seconds = training_seconds(lines, batch)
        charts, constants = _training(lines)
    with expected_form(records.root / folder / "jobs.json"):
        done = read_jobs(jobs, lines, batch)
    with expected_form(records.root / folder / "evaluation" / "metrics.json"):
        rows = final_table(measured)
        headline = headline_of(measured)
        curves, table = metric_curves(measured)
        protocols = protocols_of(measured)
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
    coupling, objective = method["coupling"], method["objective"]
    # Those of extensions have options of their own.
    sizes = [f"{network['channels']} channels"] if "channels" in network else []
    sizes += [f"dropout {number(network['dropout'])}"] if "dropout" in network else []
    return [
        ("Objective", objective if isinstance(objective, str) else objective["kind"]),
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
    measured = (key for line in lines for key in line if key not in PLACES and not key.startswith(MACHINE))
    for key in dict.fromkeys(measured):
        points = [(float(line["step"]), float(line[key])) for line in lines if line.get(key) is not None]
        title = TRAINING_TITLES.get(key, key.replace("_", " "))
        if len({value for _, value in points}) == 1:
            constants.append((title, number(points[0][1])))
            continue
        drawn = chart(title, [Series(title, points)], key in LOGARITHMIC)
        charts += [drawn] if drawn else []
    return charts, constants
