"""The effect of each claim about runs against the number of seeds, with its confidence sequence and what decides."""

from textwrap import wrap
from typing import TYPE_CHECKING

import numpy as np

from gcflow.pipeline.drawing.canvas import PAGE_WIDTH, new_figure
from gcflow.pipeline.ledger.findings import MEANINGS, Decision, Finding
from gcflow.pipeline.ledger.forest import LOOKS, fill
from gcflow.significance import Paired

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = 4
PANEL_HEIGHT = 1.45
# Characters of a panel's title, a line.
TITLE_WIDTH = 30


def course_plot(findings: list[Finding]) -> "Figure":
    """A panel per claim about runs: the mean over the first seeds, and the interval then.

    A claim is decided where the interval leaves the line at 0, or lies between the dotted lines of its margin.
    Intervals are at the level of the verdict as it is now; with few seeds there is none.
    """
    shown = [(found, e.comparison) for found in findings if (e := found.evidence) and isinstance(e.comparison, Paired)]
    rows = max(1, -(-len(shown) // COLUMNS))
    figure = new_figure(PAGE_WIDTH, 0.6 + PANEL_HEIGHT * rows)
    panels = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
    for axes, (found, comparison) in zip(panels, shown, strict=False):
        assert found.evidence is not None
        assert found.decision is not None
        _draw(axes, found, comparison, found.decision)
        title = f"{found.plan.dataset}, {MEANINGS[found.evidence.statistic][1]}: {found.evidence.contrast}"
        axes.set_title("\n".join(wrap(title, TITLE_WIDTH, break_on_hyphens=False)), fontsize=5.5, parse_math=False)
        axes.set_ylabel("slope" if found.evidence.scale == "slopes" else "ln ratio", fontsize=6)
    for axes in panels[len(shown) :]:
        axes.set_visible(False)
    for verdict, look in LOOKS.items():
        figure.axes[0].plot([], [], color=look.colour, marker=look.marker, markersize=3, label=verdict)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4, title="below 0 speaks for the claim")
    figure.supxlabel("seeds of both methods", fontsize=8)
    return figure


def _draw(axes: "Axes", found: Finding, comparison: Paired, decision: Decision) -> None:
    from matplotlib.ticker import MaxNLocator

    look, counts = LOOKS[found.verdict], np.arange(1, comparison.count + 1)
    course = comparison.course(decision.level)
    ends = np.where(np.isfinite(course), course, np.nan)
    axes.axhline(0, color="#555555", linewidth=0.8)
    for side in (-1, 1):
        axes.axhline(side * decision.margin, color="#555555", linewidth=0.6, linestyle=":")
    axes.fill_between(counts, *ends.T, color=look.colour, alpha=0.18, linewidth=0)
    axes.plot(counts, comparison.means, color=look.colour, linewidth=0.9)
    for count in sorted({1, comparison.count}):
        mean, face = comparison.means[count - 1], fill(look, count)
        axes.plot(count, mean, color=look.colour, marker=look.marker, markersize=3, markerfacecolor=face)
    decided = (course[:, 0] > 0) | (course[:, 1] < 0) | (np.abs(course).max(axis=1) < decision.margin)
    if decided.any():
        axes.axvline(counts[decided.argmax()], color=look.colour, linewidth=0.8, linestyle="--")
    # Early means and intervals are wild: what is drawn is what decides.
    reach = max(2 * decision.margin, 1.5 * abs(comparison.effect), *np.abs(ends[-1][np.isfinite(ends[-1])]))
    axes.set(xlim=(0.5, max(comparison.count, 8) + 0.5), ylim=(-1.2 * reach, 1.2 * reach))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.tick_params(labelsize=6)
