"""Sheets to draw on in the one style, curves with their errors, and files that are the same for the same picture."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from gcflow.files import atomic_path
from gcflow.pipeline.drawing.looks import Line, Look
from gcflow.readable import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STYLE = Path(__file__).with_name("print.mplstyle")
# Inches.
PAGE_WIDTH = 6.8
PANEL_HEIGHT = 2.9
LEGEND_LINE = 0.18
# Of the names at the ends of curves, as a share of a panel's height.
NAME_HEIGHT = 0.075
# Of points: the labels of their axes, and the heads of their CSV columns.
PLANE = {"xlabel": "x₁ (data units)", "ylabel": "x₂ (data units)"}
POINT = ("x1 [data units]", "x2 [data units]")
# matplotlib writes the time into these formats unless told not to.
UNDATED = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}


Row = dict[str, Any]


class Drawing(NamedTuple):
    """A figure and the numbers that it shows, a row for each point; all have the columns of the first."""

    canvas: "Figure"
    rows: list[Row]


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure, size in inches, that needs no display; in our style whatever the user's own settings are."""
    from matplotlib import style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    style.use(["default", STYLE])
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure


def one_panel(title: str) -> "tuple[Figure, Axes]":
    """A figure with a single pair of axes, as wide as a page."""
    figure = new_figure(PAGE_WIDTH, PANEL_HEIGHT)
    axes = figure.add_subplot()
    axes.set_title(title)
    return figure, axes


def save_figure(figure: "Figure", path: Path) -> None:
    """Writes a figure in the format of the path's ending; the same bytes for the same picture."""
    suffix = path.suffix.removeprefix(".")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format=suffix, metadata=UNDATED.get(suffix))


def draw_curve(
    axes: "Axes",
    look: Look,
    x: Any,
    y: Any,
    label: str | None = None,
    error: Any = None,
    line: Line | None = None,
    marker: bool = True,
) -> None:
    """A curve and a band of `error` to both sides of it, which ends where there is none (nan).

    line: instead of the look's own. marker: whether each point is marked.
    """
    import numpy as np

    axes.plot(
        x,
        y,
        color=look.colour,
        linestyle=look.line if line is None else line,
        marker=look.marker if marker else "",
        markerfacecolor=look.colour if look.filled else "white",
        label=label,
    )
    if error is not None and np.isfinite(error).any():
        low, high = np.subtract(y, error), np.add(y, error)
        axes.fill_between(x, low, high, color=look.colour, alpha=0.18, linewidth=0)


def plain_ticks(axes: "Axes", *names: str) -> None:
    """Writes ticks of logarithmic axes (`x`, `y`) as plain numbers, also between powers of ten on a short axis."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    def plain(value: float, _position: int) -> str:
        return number(value, 1).removeprefix("1·") if f"{value:e}"[0] in "1235" else ""

    for name in names:
        axis = {"x": axes.xaxis, "y": axes.yaxis}[name]
        low, high = axis.get_view_interval()
        axis.set_major_formatter(FuncFormatter(plain))
        axis.set_minor_formatter(FuncFormatter(plain) if high < 100 * low else NullFormatter())


def legend_below(figure: "Figure", axes: "Axes", title: str | None = None, columns: int = 2) -> None:
    """Puts the legend of some axes under the figure, which grows by its height. title: what the bands are."""
    handles, labels = axes.get_legend_handles_labels()
    lines = -(-len(labels) // columns) + (title.count("\n") + 1 if title else 0)
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, height + lines * LEGEND_LINE)
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, title=title)


def name_ends(axes: "Axes", ends: "list[tuple[str, str, float, float]]") -> None:
    """Writes (name, colour, x, y) of curves beside their ends, from the top down, on axes that have their limits."""
    place = axes.transAxes.inverted()
    heights = [place.transform(axes.transData.transform((x, y)))[1] for _, _, x, y in ends]
    order = sorted(range(len(ends)), key=lambda n: -heights[n])
    free = max(1.0, NAME_HEIGHT * (len(ends) - 0.5))
    for left, n in zip(reversed(range(len(ends))), order, strict=True):
        name, colour, x, y = ends[n]
        free = max(min(free, heights[n]), NAME_HEIGHT * left)
        axes.annotate(
            name,
            (x, y),
            xytext=(1.02, free),
            textcoords="axes fraction",
            va="center",
            color=colour,
            fontsize=8,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.6, "relpos": (0, 0.5), "shrinkB": 3},
        )
        free -= NAME_HEIGHT
