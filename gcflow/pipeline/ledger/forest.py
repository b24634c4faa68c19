"""The claims' effects with their intervals, a row each: a forest plot."""

from typing import TYPE_CHECKING

import numpy as np

from gcflow.pipeline.drawing import COLOURS, MARKERS, new_figure
from gcflow.pipeline.ledger.verdicts import Finding
from gcflow.pipeline.ledger.wording import effect_words

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STYLES = {
    "supported": (COLOURS[2], MARKERS[0]),
    "contradicted": (COLOURS[3], MARKERS[4]),
    "undecided": (COLOURS[0], MARKERS[1]),
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
TICKS = (0.25, 0.5, 0.8, 1.0, 1.25, 2.0, 4.0)
LIMITS = (0.2, 5.0)


def forest_plot(findings: list[Finding]) -> "Figure":
    """One row per statistical test, grouped by data set: the ratio of the two sides on a logarithmic axis.

    What lies beyond the axis ends in an arrow. Slopes are drawn as the ratio that they make per e-fold of the noise.
    """
    groups: dict[str, list[Finding]] = {}
    for finding in findings:
        groups.setdefault(finding.plan.dataset, []).append(finding)
    lines = len(findings) + len(groups)
    figure = new_figure(9.5, 0.9 + 0.21 * max(lines, 2))
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
    axes.set_yticks(range(lines), labels, fontsize=7.5)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    for text in axes.get_yticklabels():
        text.set_fontweight("bold" if text.get_text() in groups else "normal")
    axes.set_xlabel("← supports the claim        ratio of the side that is claimed to be lower to the other")
    for verdict, (colour, marker) in STYLES.items():
        axes.plot([], [], color=colour, marker=marker, markersize=5, linewidth=1.3, label=verdict)
    figure.legend(fontsize=8, loc="outside upper right", ncols=3)
    return figure


def _draw(axes: "Axes", finding: Finding, line: int) -> None:
    evidence, found = finding.evidence, finding.evidence.comparison
    colour, marker = STYLES[finding.verdict]

    def place(effect: float) -> float:
        ratio = evidence.ratio(effect)
        return float(np.exp(effect)) if ratio is None else ratio

    for end, bound, arrow in ((found.low, LIMITS[0], "<"), (found.high, LIMITS[1], ">")):
        if end is None:
            continue
        shown = float(np.clip(place(end), *LIMITS))
        axes.plot([np.clip(place(found.effect), *LIMITS), shown], [line, line], color=colour, linewidth=1.3)
        if shown == bound:
            axes.plot(shown, line, color=colour, marker=arrow, markersize=4, clip_on=False)
    axes.plot(np.clip(place(found.effect), *LIMITS), line, color=colour, marker=marker, markersize=5, clip_on=False)
    axes.text(
        1.02,
        line,
        effect_words(evidence),
        transform=axes.get_yaxis_transform(),
        va="center",
        fontsize=7.5,
        color="#333333",
    )
