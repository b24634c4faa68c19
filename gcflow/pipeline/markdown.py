"""Text and tables as Markdown shows them, whatever characters are in them."""

import re
from collections.abc import Sequence

# What begins a tag; with a space after it, as in `GC < IC`, it is a plain character.
TAG = re.compile(r"<(?=[A-Za-z/!?])")


def escaped(text: str) -> str:
    """Text in which nothing is taken for a tag."""
    return TAG.sub(r"\\<", text)


def table(rows: Sequence[Sequence[str]]) -> str:
    """A table, its heads first; no line break after it."""
    cells = [[escaped(cell).replace("|", "\\|") for cell in row] for row in rows]
    lines = [cells[0], ["---"] * len(cells[0]), *cells[1:]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
