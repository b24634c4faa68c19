"""The curves behind the checks of the theory: Theorem 1 per horizon, Theorem 2, Lemma 1."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gcflow.files import json_document
from gcflow.pipeline.drawing.canvas import PAGE_WIDTH, Drawing, Row, draw_curve, legend_below, new_figure, plain_ticks
from gcflow.pipeline.drawing.looks import BLACK, DOTTED, GC, IC, Look, other_looks
from gcflow.pipeline.figures import Caption, FigureKind, Inputs
from gcflow.pipeline.folders import theory_path
from gcflow.pipeline.params import Params
from gcflow.pipeline.schema import DatasetEntry, Figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROW_HEIGHT = 2.1
ERRORS = 2
BARS = f"Theorem 1, by distance; bars, upwards only: {ERRORS} standard errors"
INTERVALS, LEVEL = "intervals N (count)", "noise level t (data units)"


@dataclass(frozen=True)
class Panel:
    """Curves that share their axes: each with its look, and nan for the errors of those that have none."""

    title: str
    x: str
    y: str
    curves: "dict[str, tuple[Look, Any, Any, Any]]"

    def rows(self) -> list[Row]:
        """A row per point."""
        heads = ("panel", "series", "x is", "x", "y is", "y", "y standard error")
        label = self.y.replace("\n", " ")
        return [
            dict(zip(heads, (self.title, series, self.x, x, label, y, error), strict=True))
            for series, (_, *curve) in self.curves.items()
            for x, y, error in zip(*curve, strict=True)
        ]

    def draw(self, axes: "Axes") -> None:
        """Draws them on logarithmic axes."""
        import numpy as np

        for series, (look, x, y, error) in self.curves.items():
            draw_curve(axes, look, x, y, series)
            if np.isfinite(error).any():
                # Downwards most would have no end on a logarithmic axis: distances that are nothing but error.
                bars = (np.zeros(len(x)), ERRORS * np.array(error))
                axes.errorbar(x, y, bars, fmt="none", ecolor=look.colour, elinewidth=1.0)
        axes.set(xscale="log", yscale="log", xlabel=self.x, ylabel=self.y)
        axes.set_title(self.title, fontsize=8)
        plain_ticks(axes, "x", "y")


def _without_error(look: Look, x: Any, y: Any) -> tuple[Look, Any, Any, Any]:
    return look, x, y, [float("nan")] * len(x)


def _theorem_1(curves: dict[str, Any]) -> list[Panel]:
    """Distance of the scaled gap from its limit, and of the two gradients from each other, against N."""
    x, horizon = curves["intervals"], f"T = {curves['horizon']:g}"
    distances = {name: curve for name, curve in curves.items() if isinstance(curve, dict)}
    styled = list(zip(islice(other_looks(), len(distances)), distances.items(), strict=True))
    gaps = {
        name: (look, x, [abs(ratio - 1) for ratio in curve["ratio"]], curve["standard_error"])
        for look, (name, curve) in styled
    }
    gradients = {name: _without_error(look, x, curve["gradient_difference"]) for look, (name, curve) in styled}
    return [
        Panel(f"Theorem 1, losses, {horizon}", INTERVALS, "|gap / limit − 1|\n(ratio)", gaps),
        Panel(f"Theorem 1, gradients, {horizon}", INTERVALS, "|∇CT − ∇CD| / |∇CD|\n(ratio)", gradients),
    ]


def _theorem_2(curves: dict[str, Any]) -> Panel:
    """Both discrepancies against t, with closed forms where there are any."""
    x = curves["sigmas"]
    drawn = {
        "IC": _without_error(IC, x, curves["independent"]),
        "GC": (GC, x, curves["generator_augmented"], curves["standard_error"]),
    }
    for name, values in curves.get("closed_form", {}).items():
        drawn[f"{name}, closed form"] = _without_error(Look(BLACK, "", DOTTED), x, values)
    dotted = ", dotted: closed form" if "closed_form" in curves else ""
    return Panel(f"Theorem 2{dotted}", LEVEL, "R̃(t) = E‖z − v(x)‖²\n(squared noise units)", drawn)


def _lemma_1(curves: dict[str, Any]) -> Panel:
    """The derivative of the cost by differences, and the right side."""
    x = curves["sigmas"]
    drawn = {
        "right side": _without_error(Look(GC.colour, ""), x, [-slope for slope in curves["right_side"]]),
        "differences": _without_error(Look(BLACK, "o", ""), x, [-slope for slope in curves["derivative"]]),
    }
    return Panel("Lemma 1: differences, right side (line)", LEVEL, "−c′(t) (data units)", drawn)


def mistakes(entry: DatasetEntry, _name: str) -> Iterator[tuple[str, str]]:
    for key in ("horizons", "sigmas"):
        if not getattr(entry.theory, key):
            yield f"theory.{key}", "is [], but a figure of kind theory shows what they give"


def inputs(_params: Params, dataset: str, _figure: Figure) -> Inputs:
    return Inputs([theory_path(Path(), dataset)])


def draw(params: Params, dataset: str, figure: Figure) -> Drawing:
    with json_document(theory_path(params.root, dataset)) as document:
        curves = document["curves"]
        gaps = [_theorem_1(curve) for name, curve in curves.items() if name.startswith("Theorem 1")]
        panels = [*gaps, [_theorem_2(curves["Theorem 2"]), _lemma_1(curves["Lemma 1"])]]
        rows = [point for row in panels for panel in row for point in panel.rows()]
        held = sum(check["holds"] for check in document["checks"])
        count = len(document["checks"])
    canvas = new_figure(PAGE_WIDTH, ROW_HEIGHT * len(panels) + 0.3)
    grid = canvas.subplots(len(panels), 2)
    for panel, axes in zip((panel for row in panels for panel in row), grid.flat, strict=True):
        panel.draw(axes)
    _name_ends(grid[-1][0], panels[-1][0])
    canvas.suptitle(f"{figure.title}: {held} of {count} checks hold")
    legend_below(canvas, grid[0][0], BARS)
    return Drawing(canvas, rows)


def _name_ends(axes: "Axes", panel: Panel) -> None:
    """Writes the couplings' names at the ends of their curves, whose panel is not in the legend."""
    for name in ("IC", "GC"):
        look, x, y, _ = panel.curves[name]
        axes.annotate(
            name,
            (x[-1], y[-1]),
            xytext=(-9, -1),
            textcoords="offset points",
            ha="right",
            va="center",
            color=look.colour,
            fontsize=8,
        )


KIND = FigureKind(
    inputs,
    draw,
    Caption(
        "Theorem 1: with more intervals the gap between the losses comes to the theorem's limit (left, its distance "
        "from that), and their gradients come to agree for α = 2 alone (right; where they do, what is "
        "left is sampling error, large for large T). Theorem 2: the discrepancy of generator-augmented pairs falls "
        "faster than that of independent ones. Lemma 1: the slope of the transport cost (points) lies on the lemma's "
        "right side (line).",
        "Quasi-Monte-Carlo for Theorem 1, quadrature for the others, in float64 on a distribution whose velocity and "
        "flow are known; each check that the title counts is in the section on theory, with its tolerance.",
    ),
    block="theory",
    mistakes=mistakes,
)
