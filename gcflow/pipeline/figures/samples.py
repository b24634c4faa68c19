"""EMA samples of each method's first seed from the same noises, next to real data."""

import hashlib
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

from gcflow.errors import MissingFile
from gcflow.files import expected_form
from gcflow.pipeline.drawing.canvas import PAGE_WIDTH, PLANE, POINT, Drawing, Row, new_figure
from gcflow.pipeline.drawing.looks import GREY, looks
from gcflow.pipeline.figures import Caption, FigureKind, Inputs
from gcflow.pipeline.folders import DATA_FILES, data_folder, run_folder
from gcflow.pipeline.params import Params, Run
from gcflow.pipeline.schema import Figure

if TYPE_CHECKING:
    import numpy as np

LARGEST_PANEL = 1.8
MOST_COLUMNS = 4
TITLE_LINE = 0.16
REAL = "real data"


def _grid_path(root: Path, params: Params, dataset: str, method: str) -> Path:
    first = Run(dataset, method, params.dataset(dataset).runs[method].seeds[0])
    return run_folder(root, first) / "evaluation" / "samples.npy"


def inputs(params: Params, dataset: str, figure: Figure) -> Inputs:
    real = [data_folder(Path(), dataset) / name for name in DATA_FILES]
    return Inputs(real + [_grid_path(Path(), params, dataset, method) for method in figure.methods])


def _grid(path: Path, shape: tuple[int, ...], count: int) -> "np.ndarray":
    import numpy as np

    if not path.exists():
        raise MissingFile(path)
    with expected_form(path):
        values: np.ndarray = np.load(path)
        if values.shape[1:] != shape or len(values) > count:
            raise ValueError(f"{list(values.shape)}, not up to {[count, *shape]}")
    return values


def _sample_rows(panel: str, file: Path, indices: "np.ndarray", values: "np.ndarray", side: int) -> list[Row]:
    """The origin of each sample: images by their hash, points by their coordinates."""
    rows: list[Row] = []
    for place, (index, value) in enumerate(zip(indices, values, strict=False)):
        where = {"panel": panel, "file": file.as_posix(), "index in file": index}
        if values.ndim == 2:
            rows.append(where | dict(zip(POINT, value.tolist(), strict=True)))
        else:
            pixels = hashlib.sha256(value.tobytes()).hexdigest()
            rows.append(where | {"row": place // side, "column": place % side, "sha256 of pixels": pixels})
    return rows


def draw(params: Params, dataset: str, figure: Figure) -> Drawing:
    import numpy as np

    from gcflow.data import load_dataset
    from gcflow.pipeline.drawing.image_files import tile

    entry, folder = params.dataset(dataset), data_folder(params.root, dataset)
    real, side = load_dataset(folder).samples, entry.evaluation.grid
    spread = np.linspace(0, len(real) - 1, side**2).round().astype(int)
    panels = {REAL: (folder / "samples.npy", spread, real[spread].numpy())}
    for method in figure.methods:
        path = _grid_path(params.root, params, dataset, method)
        panels[method] = (path, np.arange(side**2), _grid(path, real.shape[1:], side**2))
    labels = {REAL: REAL} | {method: entry.runs[method].label for method in figure.methods}
    reach = 1.2 * float(np.abs(panels[REAL][2]).max())

    rows = -(-len(panels) // MOST_COLUMNS)
    columns = -(-len(panels) // rows)
    width = min(PAGE_WIDTH / columns, LARGEST_PANEL)
    titles = {panel: textwrap.fill(label, int(13 * width)) for panel, label in labels.items()}
    points = real.ndim == 2
    lines = 1 + max(title.count("\n") for title in titles.values())
    canvas = new_figure(columns * width, rows * (width + lines * TITLE_LINE) + 2 * TITLE_LINE)
    colours = {REAL: GREY} | {method: look.colour for method, look in looks(figure.methods).items()}
    grid = canvas.subplots(rows, columns, sharex=points, sharey=points, squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    for axes, (panel, (_, _, values)) in zip(grid.flat, panels.items(), strict=False):
        axes.set_title(titles[panel], fontsize=8, loc="center")
        if points:
            axes.scatter(values[:, 0], values[:, 1], s=4, color=colours[panel])
            axes.set(aspect="equal", xlim=(-reach, reach), ylim=(-reach, reach))
            axes.set(**PLANE)
            axes.label_outer()
        else:
            axes.imshow(tile(values, side), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            axes.set_axis_off()
    canvas.suptitle("\n".join(textwrap.wrap(figure.title, int(14 * columns * width))))
    table: list[Row] = []
    for panel, (path, indices, values) in panels.items():
        table += _sample_rows(labels[panel], path.relative_to(params.root), indices, values, side)
    return Drawing(canvas, table)


KIND = FigureKind(
    inputs,
    draw,
    Caption(
        "What each method draws, beside real data. Images at equal places of two methods' grids come from the same "
        "noise, so what differs is due to the methods, or to the chance in their training, and not to the noise.",
        "EMA weights of each method's first seed at the last step, with the fewest network evaluations; the first "
        "noises of the first generation seed, unselected. Real data are picked at equal steps through the data set. "
        "Points beyond the axes are not seen.",
    ),
    of_methods=True,
)
