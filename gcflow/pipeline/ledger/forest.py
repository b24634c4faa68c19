"""The claims' effects with their intervals, a row each: a forest plot."""

from itertools import accumulate, groupby
from textwrap import wrap
from typing import TYPE_CHECKING

import numpy as np

from gcflow.pipeline.drawing.canvas import PAGE_WIDTH, new_figure
from gcflow.pipeline.drawing.looks import BLUE, GREEN, VERMILLION, Look
from gcflow.pipeline.ledger.evidence import Evidence
from gcflow.pipeline.ledger.findings import MEANINGS, Finding

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOOKS = {
    "supported": Look(GREEN, "o"),
    "contradicted": Look(VERMILLION, "v"),
    "undecided": Look(BLUE, "s", filled=False),
}
# Ratios at the ends of the axis.
LIMITS = (0.2, 5.0)
TICKS = (0.25, 0.5, 1.0, 2.0, 4.0)
ROW_HEIGHT = 0.185
# Characters of a row's label.
LABEL_WIDTH = 56


def forest_plot(findings: list[Finding], confidence: float) -> "Figure":
    """One row per statistical test, grouped by data set: the ratio of the two sides on a logarithmic axis.

    What lies beyond the axis is an arrow at its end. Slopes are drawn as the ratio that they make per e-fold of the
    noise. confidence: of the intervals.
    """
    rows: list[tuple[str, Finding | None]] = []
    for dataset, members in groupby(findings, lambda found: found.plan.dataset):
        tested = [(found, found.evidence) for found in members if found.evidence]
        rows += [(dataset, None)] if tested else []
        rows += [(f"{MEANINGS[evidence.statistic][1]}: {evidence.contrast}", found) for found, evidence in tested]
    labels = [wrap(label, LABEL_WIDTH, break_on_hyphens=False) for label, _ in rows]
    lines = sum(map(len, labels))
    tops = [0, *accumulate(map(len, labels))]
    places = [top + (len(label) - 1) / 2 for top, label in zip(tops, labels, strict=False)]
    figure = new_figure(PAGE_WIDTH, 1.0 + ROW_HEIGHT * max(lines, 2))
    axes = figure.add_subplot()
    for place, (_, found) in zip(places, rows, strict=True):
        if found is not None and found.evidence:
            _draw(axes, found, found.evidence, place)
    axes.axvline(1, color="#555555", linewidth=0.8)
    axes.set(xscale="log", xlim=LIMITS, ylim=(lines - 0.4, -0.6))
    axes.set_xticks(TICKS, [f"×{tick:g}" for tick in TICKS])
    axes.set_xticks([], minor=True)
    axes.set_yticks(places, ["\n".join(label) for label in labels])
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    for text, (_, found) in zip(axes.get_yticklabels(), rows, strict=True):
        text.set(fontweight="bold" if found is None else "normal", parse_math=False)
    axes.set_xlabel("claimed to be lower / other (ratio)\nbelow ×1 speaks for the claim")
    for verdict, look in LOOKS.items():
        axes.plot([], [], color=look.colour, marker=look.marker, markerfacecolor=_fill(look), label=verdict)
    bars = f"bars: {100 * confidence:g} % interval of each comparison alone"
    figure.legend(loc="outside upper center", ncols=3, title=bars)
    return figure


def _fill(look: Look) -> str:
    return look.colour if look.filled else "white"


def _draw(axes: "Axes", finding: Finding, evidence: Evidence, line: float) -> None:
    found, look = evidence.comparison, LOOKS[finding.verdict]

    def place(effect: float) -> tuple[float, str]:
        """The place and the marker of an effect."""
        ratio = evidence.ratio(effect)
        ratio = float(np.exp(effect)) if ratio is None else ratio
        low, high = LIMITS
        return (low, "<") if ratio < low else (high, ">") if ratio > high else (ratio, look.marker)

    centre, marker = place(found.effect)
    for end in (found.low, found.high):
        if end is not None:
            shown, arrow = place(end)
            axes.plot([centre, shown], [line, line], color=look.colour)
            if arrow != look.marker:
                axes.plot(shown, line, color=look.colour, marker=arrow, clip_on=False)
    axes.plot(centre, line, color=look.colour, marker=marker, markerfacecolor=_fill(look), clip_on=False)
    beside = axes.get_yaxis_transform()
    axes.text(1.03, line, finding.shown, transform=beside, va="center", fontsize=8, color="#333333")
