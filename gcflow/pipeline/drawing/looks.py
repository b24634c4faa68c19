"""The look of each method in every figure: its colour, marker and line."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

# Okabe and Ito's palette, readable with any colour vision; markers and lines tell the same in grey.
BLUE, ORANGE, GREEN, VERMILLION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY, BLACK, GREY = "#CC79A7", "#56B4E9", "#000000", "#777777"
Line = str | tuple[float, tuple[float, ...]]
DASHED: Line = (0, (4, 1.5))
DOTTED: Line = (0, (1, 1.5))
DASH_DOTTED: Line = (0, (5, 1.5, 1, 1.5))


@dataclass(frozen=True)
class Look:
    """The look of a curve. filled: the markers."""

    colour: str
    marker: str
    line: Line = "-"
    filled: bool = True


IC, OT, GC = Look(BLUE, "o"), Look(ORANGE, "s"), Look(VERMILLION, "^")
KNOWN = {
    "ic": IC,
    "ot": OT,
    "gc": GC,
    "gc-mu03": Look(PURPLE, "v", DASHED),
    "gc-mu07": Look(GREEN, "D", DASH_DOTTED),
    "gc-mu1": Look(BLACK, "X", DOTTED),
    "gc-mu-up": Look(GREEN, "P", DASHED),
    "gc-mu-down": Look(BLACK, "v", DOTTED),
    "gc-mu-switch": Look(PURPLE, "D", DASH_DOTTED),
    "gc-frozen-full": Look(GREEN, "D", DASHED),
    "gc-frozen-weak": Look(BLACK, "v", DOTTED),
    "gc-online": Look(GREEN, "D"),
    "ect": Look(SKY, "P"),
    "ect-gc": Look(PURPLE, "v"),
    "ect-long": Look(SKY, "P", DASHED, filled=False),
    "ect-long-gc": Look(PURPLE, "v", DASHED, filled=False),
    "cd": Look(BLACK, "D"),
    "cd-exact": Look(GREEN, "X", DASHED),
}
DROPOUT = re.compile("-(no-)?dropout$")
COLOURS = (GREEN, PURPLE, SKY, BLACK, BLUE, ORANGE, VERMILLION)
MARKERS = ("D", "v", "P", "X", "o", "s", "^")


def other_looks() -> Iterator[Look]:
    """Looks of what is no known method, as different as can be one after the other: 147 of them."""
    turned = ((line, turn) for turn, line in product(range(len(MARKERS)), ("-", DASHED, DOTTED)))
    for line, turn in turned:
        for place, colour in enumerate(COLOURS):
            yield Look(colour, MARKERS[(place + turn) % len(MARKERS)], line)


def _known(method: str) -> Look | None:
    name = method.removeprefix("denoiser-")
    base = KNOWN.get(DROPOUT.sub("", name))
    if base is not None and DROPOUT.search(name):
        return replace(base, line=DASHED, filled=False)
    return base


def looks(methods: Sequence[str]) -> dict[str, Look]:
    """A look for each method of a figure, all different.

    The methods of the paper look the same in all figures, and so does a denoiser and the coupling that it learns;
    others take what is free.
    """
    chosen = {method: look for method in methods if (look := _known(method)) is not None}
    free = (look for look in other_looks() if look not in chosen.values())
    return {method: chosen[method] if method in chosen else next(free) for method in methods}
