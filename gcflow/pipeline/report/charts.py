"""Small curves as SVG inside the page, in its colours by day and by night."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from markupsafe import Markup, escape

from gcflow.readable import number

WIDTH, HEIGHT = 360, 200
LEFT, RIGHT, TOP, BOTTOM = 52, 10, 10, 38
MOST_POINTS = 240
# Beyond this many points a mark for each is a smear.
MOST_MARKS = 40
# A range of values that linear axes would squeeze to the floor.
LOGARITHMIC_FROM = 20.0
TICKS = 4


class Series(NamedTuple):
    """A curve: its name and points (x, y), in the order of x."""

    name: str
    points: list[tuple[float, float]]


class Chart(NamedTuple):
    """A drawn chart. note: what a reader must know of how it was drawn; empty for nothing."""

    title: str
    svg: Markup
    names: list[str]
    note: str


class _Axis:
    """Values to places along one side, logarithmically where they span much."""

    def __init__(self, values: Sequence[float], low: float, high: float, logarithmic: bool) -> None:
        least, largest = min(values), max(values)
        self.logarithmic = logarithmic and least > 0
        start, end = self._of(least), self._of(largest)
        # A constant lies in the middle.
        pad = 0.0 if end > start else max(abs(start), 1.0) / 2
        self.start, self.end, self.low, self.high = start - pad, end + pad, low, high

    def _of(self, value: float) -> float:
        return math.log10(value) if self.logarithmic else value

    def place(self, value: float) -> float:
        share = (self._of(value) - self.start) / (self.end - self.start)
        return round(self.low + share * (self.high - self.low), 1)

    def ticks(self) -> list[float]:
        """Round values within the range."""
        span = self.end - self.start
        if self.logarithmic and span > 1.0:
            every = math.ceil(span / TICKS)
            powers = range(math.floor(self.start), math.floor(self.end) + 1, every)
            values = [factor * 10.0**power for power in powers for factor in ((1, 3) if span < TICKS - 1 else (1,))]
            return [value for value in values if self.start <= math.log10(value) <= self.end]
        low, high = (10**self.start, 10**self.end) if self.logarithmic else (self.start, self.end)
        rough = (high - low) / TICKS
        unit = 10 ** math.floor(math.log10(rough))
        steps = [unit * factor for factor in (0.5, 1, 2, 5, 10)]
        fitting = next(index for index, step in enumerate(steps) if index and step >= rough * 0.999)
        # With one tick nothing tells the scale; the next finer step has at least three.
        return next(
            ticks for step in (steps[fitting], steps[fitting - 1]) if len(ticks := _multiples(step, low, high)) > 1
        )


def _multiples(step: float, low: float, high: float) -> list[float]:
    return [index * step for index in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def thinned(points: list[tuple[float, float]]) -> tuple[list[tuple[float, float]], int]:
    """At most about MOST_POINTS of the points, evenly, the last included; and one of how many is kept."""
    every = -(-len(points) // MOST_POINTS)
    kept = points[:: every or 1]
    return (kept if not points or kept[-1] == points[-1] else [*kept, points[-1]]), every


def chart(title: str, series: Sequence[Series], may_be_logarithmic: bool) -> Chart | None:
    """Curves over training; None without two points."""
    drawn = [(one.name, *thinned([p for p in one.points if all(map(math.isfinite, p))])) for one in series]
    drawn = [one for one in drawn if one[1]]
    values = [y for _, points, _ in drawn for _, y in points]
    steps = [x for _, points, _ in drawn for x, _ in points]
    if len(set(steps)) < 2:
        return None
    logarithmic = may_be_logarithmic and min(values) > 0 and max(values) > LOGARITHMIC_FROM * min(values)
    x = _Axis(steps, LEFT, WIDTH - RIGHT, logarithmic=False)
    y = _Axis(values, HEIGHT - BOTTOM, TOP, logarithmic)
    parts = [_grid(x, y)]
    for index, (name, points, _) in enumerate(drawn):
        places = [(x.place(step), y.place(value)) for step, value in points]
        line = " ".join(f"{left:g},{top:g}" for left, top in places)
        parts.append(f'<polyline class="line s{index}" points="{line}"/>')
        if len(points) <= MOST_MARKS:
            parts += [
                f'<circle class="mark s{index}" cx="{left:g}" cy="{top:g}" r="2.6">'
                f"<title>{escape(name)}, step {number(step, 9)}: {number(value, 6)}</title></circle>"
                for (left, top), (step, value) in zip(places, points, strict=True)
            ]
    ends = "; ".join(f"{name} from {number(points[0][1])} to {number(points[-1][1])}" for name, points, _ in drawn)
    label = escape(f"{title} over training: {ends}")
    svg = f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg>'
    every = max(kept_every for *_, kept_every in drawn)
    notes = ["logarithmic"] if logarithmic else []
    notes += [f"one of {every} logged points"] if every > 1 else []
    return Chart(title, Markup(svg), [name for name, *_ in drawn], ", ".join(notes))


def _digits(ticks: list[float]) -> int:
    """Significant digits that tell neighbouring ticks apart."""
    gaps = [abs(after - before) for before, after in pairwise(ticks)]
    return max(2, math.floor(math.log10(max(map(abs, ticks)) / min(gaps))) + 2) if gaps else 3


def _grid(x: _Axis, y: _Axis) -> str:
    parts = []
    digits = _digits(y.ticks())
    for value in y.ticks():
        top = y.place(value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{top:g}" y2="{top:g}"/>')
        parts.append(
            f'<text class="tick" x="{LEFT - 6}" y="{top + 3.5:g}" text-anchor="end">{number(value, digits)}</text>'
        )
    for value in x.ticks():
        left, bottom = x.place(value), HEIGHT - BOTTOM
        anchor = "end" if left > WIDTH - RIGHT - 16 else "middle"
        parts.append(
            f'<text class="tick" x="{left:g}" y="{bottom + 15}" text-anchor="{anchor}">{number(value, 9)}</text>'
        )
    bottom = HEIGHT - BOTTOM
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{bottom}" y2="{bottom}"/>')
    parts.append(f'<text class="tick" x="{LEFT}" y="{HEIGHT - 5}">training step</text>')
    return "".join(parts)
