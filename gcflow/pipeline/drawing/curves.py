"""Common parts of figures of curves: means over seeds, labels, and the units of noise."""

from collections.abc import Iterable
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any, NamedTuple

from gcflow.errors import GcflowError
from gcflow.pipeline.drawing.canvas import Row, draw_curve
from gcflow.pipeline.drawing.looks import Line, Look
from gcflow.pipeline.params import Params
from gcflow.readable import plural

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def seeds_in_words(rows: list[Row]) -> str:
    """What curves of `over_seeds` are, and their bands where there are some."""
    numbers = {row["seeds"] for row in rows}
    if numbers == {1}:
        return "one seed each"
    of = f"{numbers.pop()} seeds each" if len(numbers) == 1 else "seeds"
    return f"mean over {of}, bands: ± one standard deviation over seeds"


def over_seeds(curves: dict[Path, dict[float, float]], **described: Any) -> list[Row]:
    """A row per point: x, mean and std (nan of a single one) over seeds, seeds. curves: by their files.

    Raises:
        GcflowError: they are at different points.
    """
    first, *others = curves
    for path in others:
        if curves[path].keys() != curves[first].keys():
            raise GcflowError(f"{path}: its curve is at other points than {first}; run both stages again")
    rows = []
    for x in curves[first]:
        values = [curve[x] for curve in curves.values()]
        spread = stdev(values) if len(values) > 1 else float("nan")
        rows.append({**described, "x": x, "mean": fmean(values), "std": spread, "seeds": len(values)})
    return rows


def counted(curve: list[Row], rows: list[Row]) -> str:
    """A curve's label, with its number of seeds where a curve of the figure has another."""
    label, seeds = str(curve[0]["label"]), curve[0]["seeds"]
    return label if all(row["seeds"] == seeds for row in rows) else f"{label} ({plural(seeds, 'seed')})"


def draw_rows(
    axes: "Axes", look: Look, rows: list[Row], label: str, line: Line | None = None, marker: bool = True
) -> None:
    """Draws rows of `over_seeds`, with a band of one standard deviation."""
    x, mean, std = ([row[key] for row in rows] for key in ("x", "mean", "std"))
    draw_curve(axes, look, x, mean, label, std, line, marker)


def renamed(rows: Iterable[Row], columns: dict[str, str]) -> list[Row]:
    """The same rows with these columns alone, in this order, under their new names; empty where a row has none."""
    return [{name: row.get(key) for key, name in columns.items()} for row in rows]


class Units(NamedTuple):
    """The unit of noise levels, which is that of data: on an axis, and in the head of a CSV column."""

    axis: str
    column: str


def noise_units(params: Params, dataset: str) -> Units:
    """Images have the values of their pixels scaled to [-1, 1], points those that they have."""
    images = len(params.dataset(dataset).data.shape) == 3
    return Units("data in [−1, 1]", "data in -1..1") if images else Units("data units", "data units")
