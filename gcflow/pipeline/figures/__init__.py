"""The kinds of figures: each is one file of this folder, named as the kind, with inputs, drawing and caption.

A kind is known by being here. Whoever reads params.yaml looks at them, so they import neither torch nor matplotlib at
the top.
"""

import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

KINDS = tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


class Caption(NamedTuple):
    """The text below a figure. see: what to look for. made: from what, and how."""

    see: str
    made: str


class Inputs(NamedTuple):
    """The inputs of a figure.

    files: that it reads, relative to the project's root. labels: methods whose labels it shows besides its own.
    """

    files: list[Path]
    labels: tuple[str, ...] = ()


def _none(_entry: Any, _name: str) -> Iterator[tuple[str, str]]:
    return iter(())


@dataclass(frozen=True)
class FigureKind:
    """A kind of figure; the `KIND` of its file.

    inputs: of (Params, data set, Figure), before anything is made.
    draw: of the same, a `Drawing` (`gcflow.pipeline.drawing.canvas`) from these files;
        raises GcflowError if one is missing or of another form.
    caption: of every figure of the kind.
    of_methods: whether the figure names methods whose runs it shows.
    block: of the data set in params.yaml, which it needs; empty for none.
    mistakes: of (DatasetEntry, figure's name), (key below the data set, problem) for what else they lack.
    """

    inputs: Callable[..., Inputs]
    draw: Callable[..., Any]
    caption: Caption
    of_methods: bool = False
    block: str = ""
    mistakes: Callable[..., Iterator[tuple[str, str]]] = _none


def figure_kind(name: str) -> FigureKind:
    """The kind of a name, one of KINDS."""
    kind = import_module(f"{__name__}.{name}").KIND
    assert isinstance(kind, FigureKind)
    return kind


def figure_mistakes(entry: Any, name: str) -> Iterator[tuple[str, str]]:
    """(key below the data set, problem) for what keeps a figure of a data set from being drawn."""
    figure = entry.figures[name]
    kind = figure_kind(figure.kind)
    if kind.of_methods != bool(figure.methods):
        expected = f"expected {'some' if kind.of_methods else 'none'} for {figure.kind}"
        yield f"figures.{name}.methods", f"is {list(figure.methods)}, {expected}"
    if kind.block and getattr(entry, kind.block) is None:
        yield kind.block, f"is missing, but a figure of kind {figure.kind} needs it"
    else:
        yield from kind.mistakes(entry, name)
