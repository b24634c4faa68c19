"""Figures of curves over seeds, against training steps or noise levels; each drawn from the table that goes with it."""

from typing import TYPE_CHECKING

import pandas as pd

from gcflow.errors import GcflowError
from gcflow.files import read_json
from gcflow.pipeline.drawing.canvas import Drawing, draw_curve, legend_below, one_panel, plain_ticks
from gcflow.pipeline.drawing.inputs import expected, noise_units
from gcflow.pipeline.drawing.looks import DASHED, DOTTED, Line, looks
from gcflow.pipeline.folders import discrepancy_path, run_folder
from gcflow.pipeline.params import Params, Run
from gcflow.pipeline.schema import Figure
from gcflow.pipeline.table import metric_label, run_metrics

if TYPE_CHECKING:
    from pathlib import Path

OVER_SEEDS = "mean over seeds, bands: ± one standard deviation over seeds"
FEATURE_UNITS = "squared feature distance"
# The noise has variance 1 in each dimension.
NOISE_UNITS = "squared noise units"
ESTIMATES: dict[str, tuple[Line, str]] = {
    "denoiser": ("-", ""),
    "exact": (DOTTED, ", exact"),
    "upper-bound": (DASHED, ", bound by the predictor"),
}


def _over_seeds(curves: dict["Path", "pd.Series[float]"]) -> pd.DataFrame:
    """Mean and standard deviation of curves, by the files they are from; the latter is nan where there is but one."""
    first, *others = curves
    for path in others:
        if not curves[path].index.equals(curves[first].index):
            raise GcflowError(f"{path}: its curve is at other points than {first}; run both stages again")
    together = pd.concat(curves, axis=1)
    summary = pd.DataFrame({"mean": together.mean(axis=1), "std": together.std(axis=1, ddof=1), "seeds": len(curves)})
    return summary.reset_index(names="x")


def _label(rows: pd.DataFrame) -> str:
    count = rows["seeds"].iloc[0]
    return f"{rows['label'].iloc[0]} ({count} seed{'s' if count > 1 else ''})"


def convergence(params: Params, dataset: str, figure: Figure) -> Drawing:
    """Frechet distance of EMA samples of the cheapest sampler during training: mean over seeds, and their deviation."""
    replicates, metric, parts = params.dataset(dataset).runs, "", []
    for method in figure.methods:
        curves, evaluations = {}, 0
        for run in (Run(dataset, method, seed) for seed in replicates[method].seeds):
            path = run_folder(params.root, run) / "evaluation" / "metrics.json"
            with expected(path):
                records = run_metrics(params, run)
                metric, evaluations = str(records["metric"].iloc[0]), int(records["network_evaluations"].min())
                chosen = records[
                    (records["metric"] == metric)
                    & (records["weights"] == "ema")
                    & (records["network_evaluations"] == evaluations)
                ]
                curves[path] = chosen.groupby("step")["value"].mean()
        label = replicates[method].label
        parts.append(_over_seeds(curves).assign(method=method, label=label, evaluations=evaluations))
    data = pd.concat(parts)

    canvas, axes = one_panel(figure.title)
    for method, look in looks(figure.methods).items():
        rows = data[data["method"] == method]
        draw_curve(axes, look, rows["x"], rows["mean"], _label(rows), rows["std"])
    counts = " or ".join(str(count) for count in sorted(set(data["evaluations"])))
    axes.set_yscale("log")
    plain_ticks(axes, "y")
    axes.set_xlabel("training step (optimizer updates)")
    axes.set_ylabel(f"{metric_label(metric)[0]}\n({FEATURE_UNITS})")
    legend_below(canvas, axes, f"samples of {counts} function evaluation{'s' * (counts != '1')}; {OVER_SEEDS}")
    columns = {
        "method": "method",
        "label": "label",
        "seeds": "seeds",
        "evaluations": "function evaluations",
        "x": "training step [optimizer updates]",
        "mean": f"{metric} mean [{FEATURE_UNITS}]",
        "std": f"{metric} std over seeds [{FEATURE_UNITS}]",
    }
    return Drawing(canvas, data[[*columns]].rename(columns=columns))


def discrepancy(params: Params, dataset: str, figure: Figure) -> Drawing:
    """Velocity discrepancy of each coupling against the noise level: mean over seeds, their deviation, exact values."""
    replicates, units, parts = params.dataset(dataset).runs, noise_units(params, dataset), []
    for method in figure.methods:
        paths = [discrepancy_path(params.root, Run(dataset, method, seed)) for seed in replicates[method].seeds]
        documents = {path: read_json(path) for path in paths}
        for estimate in ESTIMATES:
            curves = {}
            for path, document in documents.items():
                with expected(path):
                    records = [record for record in document["records"] if record["estimate"] == estimate]
                    curves[path] = pd.Series({r["sigma"]: r["value"] for r in records}, dtype=float)
            label = f"{replicates[method].label}{ESTIMATES[estimate][1]}"
            parts.append(_over_seeds(curves).assign(method=method, label=label, estimate=estimate))
    data = pd.concat(part for part in parts if len(part))

    canvas, axes = one_panel(figure.title)
    for method, look in looks(figure.methods).items():
        for estimate, (line, _) in ESTIMATES.items():
            rows = data[(data["method"] == method) & (data["estimate"] == estimate)]
            if len(rows):
                label = rows["label"].iloc[0] if estimate == "exact" else _label(rows)
                draw_curve(axes, look, rows["x"], rows["mean"], label, rows["std"], line, estimate == "denoiser")
    axes.set(xscale="log", yscale="log")
    # Below some noise the exact velocity knows each sample: its fall to 0 is not worth most of the axis.
    axes.set_ylim(bottom=data.loc[data["estimate"] != "exact", "mean"].min() / 3)
    plain_ticks(axes, "x")
    axes.set_xlabel(f"noise level σ ({units.axis})")
    axes.set_ylabel(f"velocity discrepancy E‖z − v(x)‖²\n({NOISE_UNITS})")
    legend_below(canvas, axes, OVER_SEEDS)
    columns = {
        "method": "method",
        "label": "label",
        "estimate": "estimate",
        "seeds": "seeds",
        "x": f"sigma [{units.column}]",
        "mean": f"discrepancy mean [{NOISE_UNITS}]",
        "std": f"discrepancy std over seeds [{NOISE_UNITS}]",
    }
    return Drawing(canvas, data[[*columns]].rename(columns=columns))
