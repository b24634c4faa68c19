"""What `dvc metrics` and `dvc plots` show of the runs: small files of each, and the definitions of the plots."""

import csv
import io
import json
from pathlib import Path
from statistics import fmean
from typing import Any

from gcflow.errors import GcflowError, MissingFile
from gcflow.files import write_json, write_text
from gcflow.pipeline.features import KINDS
from gcflow.pipeline.folders import curve_path, run_folder, summary_path
from gcflow.pipeline.measurements import Record, means, measured
from gcflow.pipeline.params import Params, Run

# DVC puts every point into its page, for every run and revision that it compares.
MOST_POINTS = 200
TEMPLATE = "curves"

Row = dict[str, float]


def loss_curve(path: Path) -> list[Row]:
    """Step and loss of a metrics.jsonl; of a long one the mean over stretches of lines, at most MOST_POINTS of them.

    Raises:
        GcflowError: it is missing, empty or damaged.
    """
    try:
        lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        logged = [(int(line["step"]), float(line["loss"])) for line in lines]
    except FileNotFoundError:
        raise MissingFile(path) from None
    except (ValueError, KeyError, TypeError):
        logged = []
    if not logged:
        raise GcflowError(f"{path}: not the losses of a finished run; delete it and train the run again")
    length = -(-len(logged) // MOST_POINTS)
    stretches = [logged[start : start + length] for start in range(0, len(logged), length)]
    return [{"step": stretch[-1][0], "loss": fmean(loss for _, loss in stretch)} for stretch in stretches]


def metric_curves(records: list[Record]) -> dict[str, list[Row]]:
    """Protocol to a row per step: the metrics of EMA weights by the cheapest sampler, means over generation seeds.

    Args:
        records: of metrics.json.
    """
    found: dict[str, list[Row]] = {}
    for protocol, curves in measured(records).curves.items():
        of_metrics = {metric: means(curve) for metric, curve in curves.items()}
        steps = next(iter(of_metrics.values()))
        found[protocol] = [
            {"step": step} | {metric: curve[step] for metric, curve in of_metrics.items()} for step in steps
        ]
    return found


def write_views(root: Path, run: Run, loss: list[Row], curves: dict[str, list[Row]]) -> None:
    """Writes the summary and the curves of a run.

    Args:
        root: of the project.
        run: whose they are.
        loss: of `loss_curve`.
        curves: of `metric_curves`. The summary has their last rows, by protocol where there are several; the curve is
            that of the first protocol.
    """
    folder = run_folder(root, run)
    final = {protocol: {k: v for k, v in rows[-1].items() if k != "step"} for protocol, rows in curves.items()}
    first = next(iter(curves))
    write_json(summary_path(folder), final if len(final) > 1 else final[first])
    _write_curve(curve_path(folder, "loss"), run, loss)
    _write_curve(curve_path(folder, "metrics"), run, curves[first])


def _write_curve(path: Path, run: Run, rows: list[Row]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, ("method", "seed", *rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({"method": run.method, "seed": run.seed, **row} for row in rows)
    write_text(path, text.getvalue())


def plot_definitions(params: Params, datasets: list[str]) -> list[dict[str, Any]]:
    """The `plots` of dvc.yaml for some data sets: per data set its losses, by objective, and its distance."""
    root = Path()
    plots: list[dict[str, Any]] = []

    def plot(name: str, title: str, y_label: str, files: dict[str, str]) -> None:
        labels = {"title": title, "x_label": "training step", "y_label": y_label}
        plots.append({name: {**labels, "template": TEMPLATE, "x": "step", "y": files}})

    for dataset in datasets:
        entry, runs = params.dataset(dataset), list(params.runs(dataset))
        by_objective: dict[str, list[Run]] = {}
        for run in runs:
            by_objective.setdefault(entry.methods[run.method].objective.kind, []).append(run)
        for objective, chosen in by_objective.items():
            losses = {str(curve_path(run_folder(root, run), "loss")): "loss" for run in chosen}
            plot(f"{dataset}-loss-{objective}", f"{dataset}: loss ({objective})", "loss, log scale", losses)
        metric = KINDS[entry.features.kind].distance.name
        distances = {str(curve_path(run_folder(root, run), "metrics")): metric for run in runs}
        plot(f"{dataset}-{metric}", f"{dataset}: {metric}", f"{metric}, log scale", distances)
    return plots
