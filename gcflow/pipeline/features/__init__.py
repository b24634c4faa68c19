"""The kinds of features: how their metrics are called and shown, what their network is stored as, and what it is.

Only Inception's Fréchet distance is an FID. What computes them is in the files of this folder, which need torch.
"""

import math
from typing import TYPE_CHECKING, NamedTuple

from gcflow.errors import GcflowError

if TYPE_CHECKING:
    from torch import Tensor

    from gcflow.metrics import Metric


class MetricName(NamedTuple):
    """A metric. name: in metrics.json. heading: in tables, with the direction of better. factor: of values there."""

    name: str
    heading: str
    factor: float = 1.0

    @property
    def label(self) -> str:
        """The heading without the direction, as published tables have it."""
        return self.heading.removesuffix("↓").removesuffix("↑").rstrip()


class FeatureKind(NamedTuple):
    """A kind of features.

    distance, kernel, score: the metrics; None for the score of what has no classes. network: ending of the file with
    the network that takes them, empty where there is none. words: of them, as notes say it. published: whether there
    are published numbers of these metrics.
    """

    distance: MetricName
    kernel: MetricName
    score: MetricName | None
    network: str
    words: str
    published: bool = False

    @property
    def metrics(self) -> tuple[MetricName, ...]:
        """All of them, the main one first."""
        return tuple(metric for metric in (self.distance, self.kernel, self.score) if metric)


def _named(prefix: str, scored: bool, network: str, words: str) -> FeatureKind:
    return FeatureKind(
        MetricName(f"{prefix}-fd", f"{prefix} FD ↓"),
        MetricName(f"{prefix}-kd", f"{prefix} KD×10² ↓", 100.0),
        MetricName(f"{prefix}-score", f"{prefix} score ↑") if scored else None,
        network,
        words,
    )


KINDS = {
    "classifier": _named("classifier", True, "safetensors", "classifier features"),
    "dinov2": FeatureKind(
        MetricName("fd-dinov2", "FD-DINOv2 ↓"),
        MetricName("kd-dinov2", "KD-DINOv2×10² ↓", 100.0),
        None,
        "pth",
        "features of DINOv2, not FID",
    ),
    "identity": _named("coordinate", False, "", "identity features"),
    "inception": FeatureKind(
        MetricName("fid", "FID ↓"),
        MetricName("kid", "KID×10² ↓", 100.0),
        MetricName("is", "IS ↑"),
        "pt",
        "features of clean-fid's Inception",
        published=True,
    ),
    "surrogate": _named("surrogate", True, "pt", "features of a random network, not FID"),
}


def metric_name(name: str) -> MetricName:
    """A metric by its name; one of an extension, whose heading stands with its data set, is shown as it is."""
    known = (metric for kind in KINDS.values() for metric in kind.metrics)
    return next((metric for metric in known if metric.name == name), MetricName(name, name))


def main_metric(names: list[str]) -> str | None:
    """The Fréchet distance among metrics; None if it is not among them."""
    distances = [kind.distance.name for kind in KINDS.values()]
    return next((name for name in names if name in distances), None)


def further_values(metrics: tuple["Metric", ...], generated: "Tensor", real: "Tensor") -> dict[str, float]:
    """The numbers of further metrics on features [n, F] and [m, F].

    Raises:
        GcflowError: a metric refuses the features, gives other numbers than it has columns, or one that is not finite.
    """
    values: dict[str, float] = {}
    for metric in metrics:
        try:
            found = metric.compare(generated, real)
        except ValueError as error:
            raise GcflowError(f"metric {metric.kind}: {error}") from None
        if found.keys() != metric.columns.keys():
            got, expected = ", ".join(found) or "nothing", ", ".join(metric.columns)
            raise GcflowError(f"metric {metric.kind} gives {got}, but its columns are {expected}")
        values |= {name: float(found[name]) for name in metric.columns}
        for name in metric.columns:
            if not math.isfinite(values[name]):
                raise GcflowError(f"metric {metric.kind} gives {values[name]} for {name}, not a number")
    return values
