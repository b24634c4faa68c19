"""The claims' effects with their intervals, a row each: a forest plot."""

from typing import TYPE_CHECKING

import numpy as np

from gcflow.pipeline.drawing.canvas import PAGE_WIDTH, new_figure
from gcflow.pipeline.drawing.looks import BLUE, GREEN, VERMILLION, Look
from gcflow.pipeline.ledger.verdicts import Finding
from gcflow.pipeline.ledger.wording import effect_words

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOOKS = {
    "supported": Look(GREEN, "o"),
    "contradicted": Look(VERMILLION, "v"),
    "undecided": Look(BLUE, "s", filled=False),
}
SHORT = {
    "final": "end",
    "start": "first snapshot",
    "area": "mean of training",
    "rise": "rise at the end",
    "discrepancy": "discrepancy",
    "discrepancy-slope": "slope of discrepancy",
    "falls-at-small-noise": "cost",
    "falls-at-large-noise": "cost",
    "below-ot": "cost",
}
TICKS = (0.25, 0.5, 1.0, 2.0, 4.0)
LIMITS = (0.2, 5.0)
ROW_HEIGHT = 0.185


def forest_plot(findings: list[Finding], confidence: float) -> "Figure":
    """One row per statistical test, grouped by data set: the ratio of the two sides on a logarithmic axis.

    What lies beyond the axis ends in an arrow. Slopes are drawn as the ratio that they make per e-fold of the noise.
    confidence: of the intervals.
    """
    groups: dict[str, list[Finding]] = {}
    for finding in findings:
        groups.setdefault(finding.plan.dataset, []).append(finding)
    lines = len(findings) + len(groups)
    figure = new_figure(PAGE_WIDTH, 1.0 + ROW_HEIGHT * max(lines, 2))
    axes = figure.add_subplot()
    labels: list[str] = []
    for dataset, members in groups.items():
        labels.append(dataset)
        for finding in members:
            _draw(axes, finding, len(labels))
            labels.append(f"{SHORT[finding.evidence.statistic]}: {finding.evidence.contrast}")
    axes.axvline(1, color="#555555", linewidth=0.8)
    axes.set(xscale="log", xlim=LIMITS, ylim=(lines - 0.4, -0.6))
    axes.set_xticks(TICKS, [f"×{tick:g}" for tick in TICKS])
    axes.set_xticks([], minor=True)
    axes.set_yticks(range(lines), labels)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    for text in axes.get_yticklabels():
        text.set_fontweight("bold" if text.get_text() in groups else "normal")
    axes.set_xlabel("claimed to be lower / other (ratio)\nbelow ×1 supports the claim")
    for verdict, look in LOOKS.items():
        axes.plot([], [], color=look.colour, marker=look.marker, markerfacecolor=_fill(look), label=verdict)
    bars = f"bars: {100 * confidence:g} % interval of each comparison alone"
    figure.legend(loc="outside upper center", ncols=3, title=bars)
    return figure


def _fill(look: Look) -> str:
    return look.colour if look.filled else "white"


def _draw(axes: "Axes", finding: Finding, line: int) -> None:
    evidence, found = finding.evidence, finding.evidence.comparison
    look = LOOKS[finding.verdict]

    def place(effect: float) -> float:
        ratio = evidence.ratio(effect)
        return float(np.exp(effect)) if ratio is None else ratio

    for end, bound, arrow in ((found.low, LIMITS[0], "<"), (found.high, LIMITS[1], ">")):
        if end is None:
            continue
        shown = float(np.clip(place(end), *LIMITS))
        axes.plot([np.clip(place(found.effect), *LIMITS), shown], [line, line], color=look.colour)
        if shown == bound:
            axes.plot(shown, line, color=look.colour, marker=arrow, clip_on=False)
    centre = np.clip(place(found.effect), *LIMITS)
    axes.plot(centre, line, color=look.colour, marker=look.marker, markerfacecolor=_fill(look), clip_on=False)
    words, beside = effect_words(evidence), axes.get_yaxis_transform()
    axes.text(1.03, line, words, transform=beside, va="center", fontsize=8, color="#333333")
