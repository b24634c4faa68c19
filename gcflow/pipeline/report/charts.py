"""Small curves as SVG inside the page, in its colours by day and by night."""

import math
from typing import NamedTuple

from markupsafe import Markup, escape

from gcflow.readable import number

WIDTH, HEIGHT = 360, 200
LEFT, RIGHT, TOP, BOTTOM = 56, 10, 10, 38
GRID_LINES = 4
MOST_POINTS = 240
# Beyond this many points a mark for each is a smear.
MOST_MARKS = 40
# A range of values that linear axes would squeeze to the floor.
LOGARITHMIC_FROM = 20.0

# (x, y), in the order of x.
Points = list[tuple[float, float]]


class Chart(NamedTuple):
    """A drawn chart. names: of its curves. note: what a reader must know of how it was drawn; empty for nothing."""

    title: str
    svg: Markup
    names: list[str]
    note: str


def chart(title: str, curves: dict[str, Points], may_be_logarithmic: bool) -> Chart | None:
    """Curves over training, by their names, of at most about MOST_POINTS points; None without two of them."""
    finite = {name: [point for point in points if all(map(math.isfinite, point))] for name, points in curves.items()}
    every = max(1, *(-(-len(points) // MOST_POINTS) for points in finite.values()))
    drawn = {name: [*points[:-1:every], points[-1]] for name, points in finite.items() if points}
    steps, values = ([point[side] for points in drawn.values() for point in points] for side in (0, 1))
    if len(set(steps)) < 2:
        return None
    first, last, low, high = min(steps), max(steps), min(values), max(values)
    logarithmic = may_be_logarithmic and low > 0 and high > LOGARITHMIC_FROM * low
    if low == high:
        # A constant lies in the middle.
        low, high = low - max(abs(low), 1.0) / 2, high + max(abs(high), 1.0) / 2

    def place(step: float, value: float) -> tuple[float, float]:
        across = (step - first) / (last - first)
        up = math.log(value / low) / math.log(high / low) if logarithmic else (value - low) / (high - low)
        left, top = LEFT + across * (WIDTH - RIGHT - LEFT), HEIGHT - BOTTOM - up * (HEIGHT - BOTTOM - TOP)
        return round(left, 1), round(top, 1)

    parts = []
    for share in (index / (GRID_LINES - 1) for index in range(GRID_LINES)):
        value = low * (high / low) ** share if logarithmic else low + share * (high - low)
        _, top = place(first, value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{top:g}" y2="{top:g}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 6}" y="{top + 3.5:g}" text-anchor="end">{number(value, 3)}</text>')
    for step, left, anchor in ((first, LEFT, "start"), (last, WIDTH - RIGHT, "end")):
        text = f"step {number(step, 9)}"
        parts.append(f'<text class="tick" x="{left}" y="{HEIGHT - 18}" text-anchor="{anchor}">{text}</text>')
    for index, (name, points) in enumerate(drawn.items()):
        places = [place(*point) for point in points]
        line = " ".join(f"{left:g},{top:g}" for left, top in places)
        parts.append(f'<polyline class="line s{index}" points="{line}"/>')
        if len(points) <= MOST_MARKS:
            parts += [
                f'<circle class="mark s{index}" cx="{left:g}" cy="{top:g}" r="2.6">'
                f"<title>{escape(name)}, step {number(step, 9)}: {number(value, 6)}</title></circle>"
                for (left, top), (step, value) in zip(places, points, strict=True)
            ]
    ends = "; ".join(f"{name} from {number(ps[0][1])} to {number(ps[-1][1])}" for name, ps in drawn.items())
    label = escape(f"{title} over training: {ends}")
    svg = f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg>'
    notes = ["logarithmic"] if logarithmic else []
    notes += [f"one of {every} logged points"] if every > 1 else []
    return Chart(title, Markup(svg), [*drawn], ", ".join(notes))
