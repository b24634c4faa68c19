"""Samples compared with the real data in a network's features, under the protocols of a data set."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from gcflow.config import kind_of, to_dict
from gcflow.errors import GcflowError
from gcflow.extensions import origins
from gcflow.inception import PIXELS, Inception
from gcflow.metrics import (
    FeatureSet,
    FeatureStatistics,
    InceptionScore,
    Metric,
    frechet_distance,
    kernel_inception_distance,
)
from gcflow.pipeline.extractors import SmallExtractor, load_network
from gcflow.pipeline.folders import reference_path
from gcflow.pipeline.params import Params
from gcflow.pipeline.schema import Protocol as InceptionProtocol
from gcflow.pipeline.schema import metric_names
from gcflow.weights import load_tensors

# Images of a set whose features are kept for KID, which compares subsets of them.
KID_POOL = 50_000


class Comparison(Protocol):
    """Samples as they are generated, compared with a reference when all have come."""

    def update(self, output: Tensor) -> None:
        """Takes images [n, C, H, W] as a model gives them, around [-1, 1] and not clipped, or points [n, d]."""

    def values(self) -> dict[str, float]:
        """Metric to value."""


def measured(metrics: tuple[Metric, ...], generated: Tensor, real: Tensor) -> dict[str, float]:
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


class SmallComparison:
    """Keeps every sample, and compares them in a small network's features."""

    def __init__(
        self, extractor: SmallExtractor, reference: FeatureSet, images: bool, metrics: tuple[Metric, ...] = ()
    ) -> None:
        self.extractor, self.reference, self.images, self.metrics = extractor, reference, images, metrics
        self.parts: list[Tensor] = []

    def update(self, output: Tensor) -> None:
        """Takes samples."""
        self.parts.append(PIXELS["clip"](output) if self.images else output)

    def values(self) -> dict[str, float]:
        """Distances, the score where there are classes, and further metrics."""
        features, probabilities = self.extractor(torch.cat(self.parts))
        values = self.extractor.compare(features, probabilities, self.reference)
        return values | measured(self.metrics, features.double(), self.reference.values)


class InceptionComparison:
    """Streams images through Inception once, and keeps statistics, and features for KID.

    batch: images that are scaled together where the protocol's pixels depend on that; the last ones may be fewer.
    """

    def __init__(
        self,
        network: Inception,
        protocol: InceptionProtocol,
        names: tuple[str, str, str],
        reference: FeatureStatistics,
        pool: Tensor,
        total: int,
        batch: int,
        metrics: tuple[Metric, ...] = (),
    ) -> None:
        self.metrics, self.batch = metrics, batch
        self.network, self.protocol, self.names = network, protocol, names
        self.reference, self.pool = reference, pool
        self.statistics = FeatureStatistics()
        self.score = InceptionScore(total, protocol.score_splits)
        self.features: list[Tensor] = []
        self.waiting: list[Tensor] = []

    def update(self, output: Tensor) -> None:
        """Takes images."""
        if self.protocol.pixels != "batch-min-max":
            self._take(output)
            return
        parts = torch.split(torch.cat([*self.waiting, output]), self.batch)
        self.waiting = [part for part in parts if len(part) < self.batch]
        for part in parts[: len(parts) - len(self.waiting)]:
            self._take(part)

    def _take(self, output: Tensor) -> None:
        features, probabilities = self.network(PIXELS[self.protocol.pixels](output), self.protocol.resize)
        self.statistics.update(features)
        self.score.update(probabilities)
        self.features.append(features.cpu())

    def values(self) -> dict[str, float]:
        """FID, KID and IS, and further metrics."""
        protocol = self.protocol
        if self.waiting:
            self._take(self.waiting.pop())
        generated = torch.cat(self.features)[:KID_POOL].to(self.pool.device)
        kid, _ = kernel_inception_distance(
            generated, self.pool, protocol.kid_subsets, protocol.kid_subset_size, protocol.kid_seed
        )
        values = (frechet_distance(self.statistics, self.reference), kid, self.score.value[0])
        return dict(zip(self.names, values, strict=True)) | measured(self.metrics, generated, self.pool)


@dataclass(frozen=True)
class Reference:
    """What generated samples are compared with under one protocol.

    protocol: its name. compare: begins a comparison of so many samples. description: the protocol record.
    """

    protocol: str
    compare: Callable[[int], Comparison]
    description: dict[str, Any]


def load_references(params: Params, dataset: str, images: bool, batch: int, device: str) -> list[Reference]:
    """The references of every protocol of a data set, for samples of a run with this training batch.

    Raises:
        GcflowError: one is missing, damaged, or was made by another network or for another protocol.
    """
    settings, network = params.dataset(dataset).features, load_network(params, dataset, device)
    metrics = params.dataset(dataset).evaluation.metrics
    found = []
    for name, protocol in settings.protocols.items():
        path = reference_path(params.root, dataset, name)
        tensors, record = load_tensors(path)
        again = f"gcflow reference {dataset} {name}"
        if record["extractor_sha256"] != network.sha256:
            raise GcflowError(f"{path}: made with another {settings.kind}; run {again}")
        description = {
            "protocol": name,
            "extractor_sha256": network.sha256,
            "reference": record["count"],
            "reference_split": record["split"],
        }
        if isinstance(network, SmallExtractor):
            compare = _small_comparison(network, FeatureSet(tensors["features"]), images, metrics)
            description |= _small_space(images)
        else:
            assert protocol is not None
            protocol.check_reference(path, record["protocol"], again)
            names = metric_names(settings.kind)
            compare = _inception_comparison(network, protocol, names, tensors, batch, device, metrics)
            description |= {"reference_choice": record["choice"], **_inception_space(protocol, batch)}
        if metrics:
            description["metrics"] = [{**to_dict(metric), **origins(metric)} for metric in metrics]
        found.append(Reference(name, compare, description))
    return found


def _small_comparison(
    network: SmallExtractor, real: FeatureSet, images: bool, metrics: tuple[Metric, ...]
) -> Callable[[int], Comparison]:
    def compare(_: int) -> Comparison:
        return SmallComparison(network, real, images, metrics)

    return compare


def _inception_comparison(
    network: Inception,
    protocol: InceptionProtocol,
    names: tuple[str, str, str],
    tensors: dict[str, Tensor],
    batch: int,
    device: str,
    metrics: tuple[Metric, ...],
) -> Callable[[int], Comparison]:
    pool = tensors.pop("kid_pool").to(device)
    statistics = FeatureStatistics.of(tensors, device)

    def compare(total: int) -> Comparison:
        return InceptionComparison(network, protocol, names, statistics, pool, total, batch, metrics)

    return compare


def _small_space(images: bool) -> dict[str, Any]:
    if images:
        return {"clipping": "[-1, 1]", "quantisation": "uint8, rounded", "resize": "none"}
    return {"clipping": "none", "quantisation": "none", "resize": "none"}


def _inception_space(protocol: InceptionProtocol, batch: int) -> dict[str, Any]:
    scaled = f"none; each batch of {batch} scaled by its own minimum and maximum"
    real = {"stored": "as stored", "round-trip": "float32 in [-1, 1] and back, truncated"}
    return {
        "clipping": scaled if protocol.pixels == "batch-min-max" else "[-1, 1]",
        "quantisation": "uint8, rounded" if protocol.pixels == "clip" else "uint8, truncated",
        "reference_pixels": real[protocol.real_pixels],
        "resize": protocol.resize,
        "kid": f"{protocol.kid_subsets} subsets of {protocol.kid_subset_size}, seed {protocol.kid_seed}",
        "score_splits": protocol.score_splits,
    }
