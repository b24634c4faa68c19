"""The claims' effects with their intervals, a row each: a forest plot."""

import math
from itertools import accumulate, groupby
from textwrap import wrap
from typing import TYPE_CHECKING

from gcflow.pipeline.drawing.canvas import PAGE_WIDTH, new_figure
from gcflow.pipeline.drawing.looks import BLUE, GREEN, GREY, PURPLE, VERMILLION, Look
from gcflow.pipeline.ledger.evidence import Evidence
from gcflow.pipeline.ledger.findings import MEANINGS, Decision, Finding

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOOKS = {
    "supported": Look(GREEN, "o"),
    "contradicted": Look(VERMILLION, "v"),
    "no difference": Look(PURPLE, "D"),
    "undecided": Look(BLUE, "s"),
}
# Ratios at the ends of the axis.
LIMITS = (0.2, 5.0)
TICKS = {0.25: "×¼", 0.5: "×½", 1.0: "×1", 2.0: "×2", 4.0: "×4"}
ROW_HEIGHT = 0.185
# Characters of a row's label.
LABEL_WIDTH = 56


def forest_plot(findings: list[Finding], confidence: float) -> "Figure":
    """One row per statistical test, grouped by data set: the ratio of the two sides on a logarithmic axis.

    Differences of slopes stand below, on an axis of their own. What lies beyond an axis is an arrow at its end. A
    single seed is a hollow mark; what was measured here is a stroke, where docs/evidence decides. confidence: of the
    intervals of a data set together.
    """
    tested = [found for found in findings if found.evidence]
    ratios = [found for found in tested if found.evidence and found.evidence.scale != "slopes"]
    slopes = [found for found in tested if found.evidence and found.evidence.scale == "slopes"]
    parts = [(_rows(part), part is slopes) for part in (ratios, slopes) if part] or [([], False)]
    lines = [max(2, sum(len(label) for label, _ in rows)) for rows, _ in parts]
    figure = new_figure(PAGE_WIDTH, 1.0 + ROW_HEIGHT * sum(lines) + 0.6 * len(parts))
    panels = figure.subplots(len(parts), squeeze=False, height_ratios=lines).ravel()
    for axes, (rows, of_slopes) in zip(panels, parts, strict=True):
        _draw_part(axes, rows, of_slopes)
    for verdict, look in LOOKS.items():
        panels[0].plot([], [], color=look.colour, marker=look.marker, label=verdict)
    if any(found.here for found in tested):
        panels[0].plot([], [], color=GREY, marker="|", linestyle="", label="measured here")
    bars = f"bars: intervals that hold together with {100 * confidence:g} %; hollow: a single seed"
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), title=bars)
    return figure


Rows = list[tuple[list[str], Finding | None]]


def _rows(part: list[Finding]) -> Rows:
    """The wrapped labels of each data set, with no finding, and of its findings."""
    rows: Rows = []
    for dataset, members in groupby(part, lambda found: found.plan.dataset):
        rows.append(([dataset], None))
        for found in members:
            assert found.evidence is not None
            label = f"{MEANINGS[found.evidence.statistic][1]}: {found.evidence.contrast}"
            rows.append((wrap(label, LABEL_WIDTH, break_on_hyphens=False), found))
    return rows


def _draw_part(axes: "Axes", rows: Rows, of_slopes: bool) -> None:
    tops = [0, *accumulate(len(label) for label, _ in rows)]
    places = [top + (len(label) - 1) / 2 for top, (label, _) in zip(tops, rows, strict=False)]
    if of_slopes:
        found = [found.evidence.comparison.effect for _, found in rows if found and found.evidence]
        reach = 1.5 * max(map(abs, found), default=1.0) or 1.0
        limits, neutral, name = (-reach, reach), 0.0, "claimed to be lower − other (difference of slopes)\nbelow 0"
    else:
        limits, neutral, name = LIMITS, 1.0, "claimed to be lower / other (ratio)\nbelow ×1"
    for place, (_, finding) in zip(places, rows, strict=True):
        if finding is not None and finding.evidence and finding.decision:
            _draw(axes, finding, finding.evidence, finding.decision, place, limits)
    axes.axvline(neutral, color="#555555", linewidth=0.8)
    axes.set(xscale="linear" if of_slopes else "log", xlim=limits, ylim=(max(tops[-1], 2) - 0.4, -0.6))
    if not of_slopes:
        axes.set_xticks([*TICKS], TICKS.values(), fontsize=8)
        axes.set_xticks([], minor=True)
    axes.set_yticks(places, ["\n".join(label) for label, _ in rows])
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    for text, (_, finding) in zip(axes.get_yticklabels(), rows, strict=True):
        text.set(fontweight="bold" if finding is None else "normal", parse_math=False)
    axes.set_xlabel(f"{name} speaks for the claim")


def fill(look: Look, seeds: int | None) -> str:
    """Of a marker: single seeds are hollow."""
    return "white" if seeds == 1 else look.colour


def _draw(
    axes: "Axes", finding: Finding, evidence: Evidence, decision: Decision, line: float, limits: tuple[float, float]
) -> None:
    found, look, (low, high) = evidence.comparison, LOOKS[finding.verdict], limits

    def place(effect: float, marker: str) -> tuple[float, str]:
        """The place and the marker of an effect."""
        ratio = evidence.ratio(effect)
        place = effect if ratio is None else ratio
        return (low, "<") if place < low else (high, ">") if place > high else (place, marker)

    centre, marker = place(found.effect, look.marker)
    for end in decision.interval:
        if math.isfinite(end):
            shown, arrow = place(end, "")
            axes.plot([centre, shown], [line, line], color=look.colour)
            if arrow:
                axes.plot(shown, line, color=look.colour, marker=arrow, clip_on=False)
    if finding.here and finding.here.evidence:
        shown, here = place(finding.here.evidence.comparison.effect, "|")
        axes.plot(shown, line, color=GREY, marker=here, markersize=9, linestyle="", clip_on=False)
    axes.plot(centre, line, color=look.colour, marker=marker, markerfacecolor=fill(look, found.count), clip_on=False)
    beside = axes.get_yaxis_transform()
    axes.text(1.03, line, finding.shown, transform=beside, va="center", fontsize=8, color="#333333")
