"""The graph of rules as a picture, for Snakemake's report: what comes after what, and how many jobs each has."""

from collections import Counter
from collections.abc import Iterable

from gcflow.pipeline.stages import Stage

COLUMN, ROW, WIDTH, HEIGHT = 160, 60, 116, 40


def kinds_before(stages: Iterable[Stage]) -> dict[str, set[str]]:
    """Of each kind of stage those whose files it reads, without those that others among them come after."""
    stages = list(stages)
    maker = {out: stage.kind for stage in stages for out in stage.outs}
    reads: dict[str, set[str]] = {stage.kind: set() for stage in stages}
    for stage in stages:
        reads[stage.kind] |= {maker[dep] for dep in stage.deps if dep in maker} - {stage.kind}

    def behind(kind: str) -> set[str]:
        return reads[kind].union(*map(behind, reads[kind]))

    return {kind: found.difference(*map(behind, found)) for kind, found in reads.items()}


def rule_graph(stages: Iterable[Stage]) -> str:
    """An SVG in one line: of each kind of stage, left of it what comes before; what others imply has no line."""
    stages = list(stages)
    jobs, before = Counter(stage.kind for stage in stages), kinds_before(stages)
    columns = _columns(before)
    tallest = max(map(len, columns))
    places = [
        {kind: (COLUMN * n, ROW * (2 * row + tallest - len(column)) // 2) for row, kind in enumerate(column)}
        for n, column in enumerate(columns)
    ]
    lines, boxes, drawn = [], [], set[str]()
    for number, column in enumerate(places):
        for kind, (x, y) in column.items():
            middle = y + HEIGHT // 2
            for parent in [kind] if kind in drawn else before[kind]:
                left, top = places[number - 1][parent]
                start, at, bend = left + WIDTH, top + HEIGHT // 2, (left + WIDTH + x) // 2
                lines.append(f"M{start} {at}C{bend} {at} {bend} {middle} {x} {middle}")
            if kind in drawn:
                lines.append(f"h{WIDTH}")
                continue
            drawn.add(kind)
            words = f"{jobs[kind]} job{'s' if jobs[kind] > 1 else ''}"
            boxes.append(
                f'<rect x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="6" fill="#fff" stroke="#0a5a9c"/>'
                f'<text x="{x + WIDTH // 2}" y="{y + 17}" text-anchor="middle">{kind}</text>'
                f'<text x="{x + WIDTH // 2}" y="{y + 33}" text-anchor="middle" fill="#666">{words}</text>'
            )
    width, height = COLUMN * len(columns) - COLUMN + WIDTH, ROW * tallest
    size = f'viewBox="-2 -2 {width + 4} {height + 4}" width="{width}" style="max-width: 100%" font-size="13"'
    path = f'<path d="{"".join(lines)}" fill="none" stroke="#888"/>'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{path}{"".join(boxes)}</svg>'


def _columns(before: dict[str, set[str]]) -> list[list[str]]:
    """From left to right, from top to bottom. A kind is again in each column that a line of it passes."""
    columns: list[list[str]] = []
    placed: set[str] = set()
    while new := [kind for kind in before if kind not in placed and before[kind] <= placed]:
        last = columns[-1] if columns else []
        later = before.keys() - placed - {*new}
        rows = {kind: [last.index(kind)] for kind in last if any(kind in before[other] for other in later)}
        rows |= {kind: [last.index(parent) for parent in before[kind]] for kind in new}
        columns.append(sorted(rows, key=lambda kind: min(rows[kind], default=0)))
        placed.update(new)
    return columns
