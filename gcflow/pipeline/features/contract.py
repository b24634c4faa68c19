"""What every kind of features does: a reference of real data, and comparisons of generated samples with it."""

import math
from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor

from gcflow.config import kind_of
from gcflow.data import Dataset
from gcflow.errors import GcflowError
from gcflow.pipeline.schema import Protocol as InceptionProtocol
from gcflow.register import Metric

Tensors = dict[str, Tensor]


class Comparison(Protocol):
    """Samples as they are generated, compared with a reference when all have come."""

    def update(self, output: Tensor) -> None:
        """Takes images [n, C, H, W] as a model gives them, around [-1, 1] and not clipped, or points [n, d]."""

    def values(self) -> dict[str, float]:
        """Metric to value."""


class Features(Protocol):
    """Where samples are compared. rules: of a protocol; None for kinds that compare in one way only."""

    @property
    def sha256(self) -> str | None:
        """Of the network's weights; None without a network."""

    def __call__(self, samples: Tensor, rules: InceptionProtocol | None = None) -> tuple[Tensor, Tensor | None]:
        """Features [n, F] and class probabilities [n, K], or None, of stored samples: uint8 images, or points."""

    def reference(self, data: Dataset, rules: InceptionProtocol | None, name: str) -> tuple[Tensors, dict[str, Any]]:
        """What is stored of the real data, and its record: count, split, one half against the other.

        Args:
            data: prepared.
            rules: which of them, and how.
            name: of the data, for messages.

        Raises:
            GcflowError: there are fewer images than it takes.
        """

    def comparisons(
        self, reference: Tensors, rules: InceptionProtocol | None, batch: int, metrics: tuple[Metric, ...]
    ) -> Callable[[int], Comparison]:
        """Begins a comparison of so many samples of a run with this training batch with a stored reference."""

    def space(self, rules: InceptionProtocol | None, batch: int) -> dict[str, Any]:
        """The part of the protocol record that says how samples become features."""


def further_values(metrics: tuple[Metric, ...], generated: Tensor, real: Tensor) -> dict[str, float]:
    """The numbers of further metrics on features [n, F] and [m, F].

    Raises:
        GcflowError: a metric gives other numbers than it has columns, or one that is not finite.
    """
    values: dict[str, float] = {}
    for metric in metrics:
        found = metric.compare(generated, real)
        if found.keys() != metric.columns.keys():
            got, expected = ", ".join(found) or "nothing", ", ".join(metric.columns)
            raise GcflowError(f"metric {kind_of(metric)} gives {got}, but its columns are {expected}")
        values |= {name: float(found[name]) for name in metric.columns}
        for name in metric.columns:
            if not math.isfinite(values[name]):
                raise GcflowError(f"metric {kind_of(metric)} gives {values[name]} for {name}, not a number")
    return values
