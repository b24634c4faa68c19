"""`gcflow figure`: a picture from the runs' own files as PNG and SVG, and the numbers that it shows as CSV."""

from gcflow.files import write_csv
from gcflow.pipeline.drawing.canvas import Drawing, save_figure
from gcflow.pipeline.figures import figure_kind
from gcflow.pipeline.folders import FIGURE_FORMATS, figure_path
from gcflow.pipeline.params import Params


def draw_figure(params: Params, dataset: str, name: str) -> Drawing:
    """A figure with the numbers that it shows.

    Raises:
        GcflowError: no such figure, or a file that it shows is missing or of another form.
    """
    figure = params.named(f"datasets.{dataset}.figures", name, params.dataset(dataset).figures)
    return figure_kind(figure.kind).draw(params, dataset, figure)


def write_figure(params: Params, dataset: str, name: str) -> None:
    """Writes results/<dataset>/figures/<name>.{png,svg,csv}.

    Raises:
        GcflowError: no such figure, or a file that it shows is missing or of another form.
    """
    drawing = draw_figure(params, dataset, name)
    for suffix in FIGURE_FORMATS:
        path = figure_path(params.root, dataset, name, suffix)
        if suffix == "csv":
            write_csv(path, drawing.rows)
        else:
            save_figure(drawing.canvas, path)
