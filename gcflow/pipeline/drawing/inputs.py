"""What figures read, and the units that it is in."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from gcflow.errors import GcflowError
from gcflow.pipeline.params import Params


@contextmanager
def expected(path: Path) -> Iterator[None]:
    """Turns what a file of another form leads to into an error that names it."""
    try:
        yield
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, EOFError) as error:
        problem = f"{type(error).__name__}: {error}".replace("\n", " ")
        raise GcflowError(f"{path}: not what its stage writes ({problem}); delete it to make it again") from None


class Units(NamedTuple):
    """Of noise levels, which is that of data: on an axis, and in the head of a CSV column."""

    axis: str
    column: str


def noise_units(params: Params, dataset: str) -> Units:
    """Images have the values of their pixels scaled to [-1, 1], points those that they have."""
    images = len(params.dataset(dataset).data.shape) == 3
    return Units("data in [−1, 1]", "data in -1..1") if images else Units("data units", "data units")
