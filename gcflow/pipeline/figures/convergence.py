"""Frechet distance of EMA samples of the cheapest sampler during training: mean over seeds, and their deviation."""

from pathlib import Path

from gcflow.files import read_header
from gcflow.pipeline.drawing.canvas import Drawing, Row, name_ends, one_panel, plain_ticks
from gcflow.pipeline.drawing.curves import counted, draw_rows, over_seeds, renamed, seeds_in_words
from gcflow.pipeline.drawing.looks import DOTTED, GREY, looks
from gcflow.pipeline.features import metric_name
from gcflow.pipeline.figures import Caption, FigureKind, Inputs
from gcflow.pipeline.folders import reference_path
from gcflow.pipeline.measurements import means, metrics_path, read_measured
from gcflow.pipeline.params import Params, Run
from gcflow.pipeline.schema import Figure

UNITS = "squared feature distance"
FLOOR = "real data, half against half"


def _runs(params: Params, dataset: str, method: str) -> list[Run]:
    return [Run(dataset, method, seed) for seed in params.dataset(dataset).runs[method].seeds]


def inputs(params: Params, dataset: str, figure: Figure) -> Inputs:
    runs = (run for method in figure.methods for run in _runs(params, dataset, method))
    protocol = next(iter(params.dataset(dataset).features.protocols))
    return Inputs([reference_path(Path(), dataset, protocol), *(metrics_path(Path(), run) for run in runs)])


def draw(params: Params, dataset: str, figure: Figure) -> Drawing:
    rows: list[Row] = []
    for method in figure.methods:
        label, metric, evaluations, curves = params.dataset(dataset).runs[method].label, "", 0, {}
        for run in _runs(params, dataset, method):
            evaluations, of_metrics = read_measured(params, run)
            metric = next(iter(of_metrics))
            curve = means(of_metrics[metric])
            curves[metrics_path(params.root, run)] = {float(step): mean for step, mean in curve.items()}
        rows += over_seeds(curves, method=method, label=label, evaluations=evaluations)

    reference = inputs(params, dataset, figure).files[0]
    floor = float(read_header(params.root / reference)["real_half_against_half"][metric])
    canvas, axes = one_panel(figure.title)
    axes.axhline(floor, color=GREY, linestyle=DOTTED, label=FLOOR)
    ends = [(FLOOR, GREY, max(row["x"] for row in rows), floor)]
    for method, look in looks(figure.methods).items():
        own = [row for row in rows if row["method"] == method]
        label = counted(own, rows)
        draw_rows(axes, look, own, label)
        ends.append((label, look.colour, own[-1]["x"], own[-1]["mean"]))
    counts = " or ".join(str(count) for count in sorted({row["evaluations"] for row in rows}))
    axes.set_yscale("log")
    plain_ticks(axes, "y")
    axes.set_xlabel("training step (optimizer updates)")
    axes.set_ylabel(f"{metric_name(metric).heading}\n({UNITS})")
    name_ends(axes, ends)
    evaluated = f"samples of {counts} function evaluation{'s' * (counts != '1')}"
    canvas.supxlabel(f"{evaluated}; {seeds_in_words(rows)}", fontsize=8)
    columns = {
        "method": "method",
        "label": "label",
        "seeds": "seeds",
        "evaluations": "function evaluations",
        "x": "training step [optimizer updates]",
        "mean": f"{metric} mean [{UNITS}]",
        "std": f"{metric} std over seeds [{UNITS}]",
    }
    return Drawing(canvas, renamed(rows, columns))


KIND = FigureKind(
    inputs,
    draw,
    Caption(
        "How far samples are from the data during training: lower is better, and earlier is faster. Bands are the "
        "scatter of single seeds, and a curve of one seed has none; which of the claimed differences are more than "
        "chance is in the ledger of claims. Dotted is how far one random half of the real data is from the other.",
        "Fréchet distance, by the data set's first protocol, of samples from EMA weights with the fewest network "
        "evaluations: at snapshots from the first generation seed, at the last step the mean over all of them. Curves "
        "are means over training seeds. The axis is logarithmic.",
    ),
    of_methods=True,
)
