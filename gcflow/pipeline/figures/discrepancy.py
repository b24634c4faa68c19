"""Velocity discrepancy of each coupling against the noise level: mean over seeds, their deviation, exact values."""

from collections.abc import Iterator
from pathlib import Path

from gcflow.files import json_document
from gcflow.pipeline.drawing.canvas import Drawing, Row, legend_below, one_panel, plain_ticks
from gcflow.pipeline.drawing.curves import counted, draw_rows, noise_units, over_seeds, renamed, seeds_in_words
from gcflow.pipeline.drawing.looks import DASHED, DOTTED, Line, looks
from gcflow.pipeline.figures import Caption, FigureKind, Inputs
from gcflow.pipeline.folders import discrepancy_path
from gcflow.pipeline.params import Params, Run
from gcflow.pipeline.schema import DatasetEntry, Figure

# The noise has variance 1 in each dimension.
UNITS = "squared noise units"
BOUNDED = "\nwhat a solid curve has above its dashed one is the error of the denoiser, not the coupling's discrepancy"
ESTIMATES: dict[str, tuple[Line, str]] = {
    "denoiser": ("-", ""),
    "exact": (DOTTED, ", exact"),
    "upper-bound": (DASHED, ", bound by the predictor"),
}


def mistakes(entry: DatasetEntry, name: str) -> Iterator[tuple[str, str]]:
    for method in entry.figures[name].methods:
        objective = entry.methods[method].objective
        if not objective.denoises:
            problem = f"names {method!r}, whose objective is {objective.kind}, not denoising"
            yield f"figures.{name}.methods", problem


def inputs(params: Params, dataset: str, figure: Figure) -> Inputs:
    shown = (run for run in params.runs(dataset) if run.method in figure.methods)
    return Inputs([discrepancy_path(Path(), run) for run in shown])


def draw(params: Params, dataset: str, figure: Figure) -> Drawing:
    replicates, units = params.dataset(dataset).runs, noise_units(params, dataset)
    rows: list[Row] = []
    for method in figure.methods:
        curves: dict[str, dict[Path, dict[float, float]]] = {estimate: {} for estimate in ESTIMATES}
        for path in (discrepancy_path(params.root, Run(dataset, method, seed)) for seed in replicates[method].seeds):
            with json_document(path) as document:
                for estimate, of_files in curves.items():
                    records = [record for record in document["records"] if record["estimate"] == estimate]
                    of_files[path] = {float(r["sigma"]): float(r["value"]) for r in records}
        for estimate, of_files in curves.items():
            label = f"{replicates[method].label}{ESTIMATES[estimate][1]}"
            rows += over_seeds(of_files, method=method, label=label, estimate=estimate)

    canvas, axes = one_panel(figure.title)
    for method, look in looks(figure.methods).items():
        for estimate, (line, _) in ESTIMATES.items():
            own = [row for row in rows if (row["method"], row["estimate"]) == (method, estimate)]
            if own:
                label = own[0]["label"] if estimate == "exact" else counted(own, rows)
                draw_rows(axes, look, own, label, line, estimate == "denoiser")
    axes.set(xscale="log", yscale="log")
    # Below some noise the exact velocity knows each sample: its fall to 0 is not worth most of the axis.
    axes.set_ylim(bottom=min(row["mean"] for row in rows if row["estimate"] != "exact") / 3)
    plain_ticks(axes, "x", "y")
    axes.set_xlabel(f"noise level σ ({units.axis})")
    axes.set_ylabel(f"velocity discrepancy E‖z − v(x)‖²\n({UNITS})")
    bounded = any(row["estimate"] == "upper-bound" for row in rows)
    legend_below(canvas, axes, seeds_in_words(rows) + BOUNDED * bounded)
    columns = {
        "method": "method",
        "label": "label",
        "estimate": "estimate",
        "seeds": "seeds",
        "x": f"sigma [{units.column}]",
        "mean": f"discrepancy mean [{UNITS}]",
        "std": f"discrepancy std over seeds [{UNITS}]",
    }
    return Drawing(canvas, renamed(rows, columns))


KIND = FigureKind(
    inputs,
    draw,
    Caption(
        "How far the velocity of a pair is from the mean velocity at its point: 0 would make consistency training the "
        "same as distillation. Lower curves are better, and what matters is how they fall as the noise grows.",
        "A denoiser trained on each coupling's pairs stands for the mean velocity, and any other velocity than that "
        "lies farther from the pairs': estimates are upper bounds but for sampling error. So is the dashed one, where "
        "the endpoint predictor takes the denoiser's place: the truth is below both. At large noise, of which training "
        "draws little, a solid curve shows the denoiser's own error over σ², far above its bound. Means over the "
        "denoisers' training seeds, on the same data and noises. The exact denoiser of independent pairs, dotted, is "
        "known where the data are few; the axis leaves out most of its fall at small noise, where it knows each sample "
        "by heart.",
    ),
    of_methods=True,
    block="discrepancy",
    mistakes=mistakes,
)
