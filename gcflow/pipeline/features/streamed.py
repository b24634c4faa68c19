"""Features of a published network, or of one that stands for it in a rehearsal: streamed, for statistics and a pool."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gcflow.data import Dataset
from gcflow.errors import GcflowError
from gcflow.extractors import Extractor
from gcflow.inception import PIXELS, REAL_PIXELS
from gcflow.metrics import FeatureStatistics, InceptionScore, Metric, frechet_distance, kernel_inception_distance
from gcflow.pipeline.features import KINDS, further_values
from gcflow.pipeline.progress import Progress
from gcflow.pipeline.schema import InceptionProtocol, Protocol
from gcflow.randomness import generator

# Images of a set whose features are kept for KID and KD, which compare subsets of them.
KID_POOL = 50_000
# Even, so that images of the two halves alternate throughout.
REFERENCE_BATCH = 500


@dataclass(frozen=True)
class StreamedFeatures:
    """Statistics of features, and a pool of them for KID. kind: of KINDS. device: of `network`."""

    kind: str
    network: Extractor
    device: str

    @property
    def sha256(self) -> str:
        """sha256 of the network's file."""
        return self.network.sha256

    def __call__(self, samples: Tensor, rules: Protocol | None = None) -> tuple[Tensor, Tensor | None]:
        """Features [n, F] of uint8 images, and class probabilities [n, K] where the network has classes."""
        assert rules is not None
        return self.network(samples, rules.resize)

    def values(
        self,
        rules: Protocol,
        moments: tuple[FeatureStatistics, FeatureStatistics],
        pools: tuple[Tensor, Tensor],
        score: InceptionScore | None,
    ) -> dict[str, float]:
        """The numbers of two sets of images, of which `score` is one's, by the names of this kind."""
        kernel, _ = kernel_inception_distance(*pools, rules.kid_subsets, rules.kid_subset_size, rules.kid_seed)
        found = (frechet_distance(*moments), kernel, *([score.value[0]] if score else []))
        return {metric.name: value for metric, value in zip(KINDS[self.kind].metrics, found, strict=True)}

    def reference(self, data: Dataset, rules: Protocol | None, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Mean, covariance and pool of the real images that rules choose, to be stored, and their record.

        Raises:
            GcflowError: there are too few; `name` is of the data.
        """
        assert rules is not None
        images, chosen = _chosen_images(data, rules, name)
        total, pixels = len(chosen), REAL_PIXELS[rules.real_pixels]
        first, second, score = FeatureStatistics(), FeatureStatistics(), _score(rules, total)
        parts = []
        with Progress(f"{name} reference", total, unit="image") as progress:
            for start in range(0, total, REFERENCE_BATCH):
                numbers = chosen[start : start + REFERENCE_BATCH]
                features, probabilities = self(pixels(images[numbers]), rules)
                # The order is random, so every second image is a random half.
                first.update(features[0::2])
                second.update(features[1::2])
                if score and probabilities is not None:
                    score.update(probabilities)
                parts.append(features[: max(0, KID_POOL - start)].cpu())
                progress.update(start + len(numbers))
        pool = torch.cat(parts)
        halves = (pool[0::2].to(self.device), pool[1::2].to(self.device))
        against = self.values(rules, (first, second), halves, score)
        first.merge(second)
        record = {
            "count": total,
            "split": rules.split,
            "choice": "all" if total == len(images) else f"random of {len(images)}, seed {rules.reference_seed}",
            "protocol": rules.reference_settings,
            "real_half_against_half": against,
            **self.network.description,
        }
        return {**first.tensors(), "kid_pool": pool}, record

    def comparisons(
        self, reference: dict[str, Tensor], rules: Protocol | None, batch: int, metrics: tuple[Metric, ...]
    ) -> Callable[[int], "StreamedComparison"]:
        """Begins a comparison of so many samples, of a run with this training batch, with a stored reference."""
        assert rules is not None
        tensors = dict(reference)
        pool = tensors.pop("kid_pool").to(self.device)
        statistics, protocol = FeatureStatistics.of(tensors, self.device), rules
        return lambda total: StreamedComparison(self, protocol, statistics, pool, total, batch, metrics)

    def space(self, rules: Protocol | None, batch: int) -> dict[str, Any]:
        """The part of the protocol record that says how samples become features."""
        assert rules is not None
        scaled = f"none; each batch of {batch} scaled by its own minimum and maximum"
        real = {"stored": "as stored", "round-trip": "float32 in [-1, 1] and back, truncated"}
        return {
            "clipping": scaled if rules.pixels == "batch-min-max" else "[-1, 1]",
            "quantisation": "uint8, rounded" if rules.pixels == "clip" else "uint8, truncated",
            "reference_pixels": real[rules.real_pixels],
            "resize": rules.resize,
            rules.kernel.lower(): f"{rules.kid_subsets} subsets of {rules.kid_subset_size}, seed {rules.kid_seed}",
            **({"score_splits": rules.score_splits} if isinstance(rules, InceptionProtocol) else {}),
            **self.network.description,
        }


def _score(rules: Protocol, total: int) -> InceptionScore | None:
    return InceptionScore(total, rules.score_splits) if isinstance(rules, InceptionProtocol) else None


def _chosen_images(data: Dataset, rules: Protocol, name: str) -> tuple[Tensor, Tensor]:
    """The images of the split, and the numbers of those that are taken, in the order in which they are.

    That order is random: prepared data may be sorted by class, and the score is of contiguous splits.
    """
    images = data.samples if rules.split == "train" else data.held_out
    wanted = rules.reference_images
    if len(images) < (least := rules.fewest_images):
        raise GcflowError(
            f"{name}: the {rules.split} split has {len(images)} images, the protocol asks "
            f"for {'' if wanted else 'at least '}{least}; change features.protocols or prepare more"
        )
    order = torch.randperm(len(images), generator=generator(rules.reference_seed, "reference"))
    return images, order[:wanted]


class StreamedComparison:
    """Streams images through the network once, and keeps statistics, and features for KID.

    batch: images that are scaled together where the protocol's pixels depend on that; the last ones may be fewer.
    """

    def __init__(
        self,
        features: StreamedFeatures,
        protocol: Protocol,
        reference: FeatureStatistics,
        pool: Tensor,
        total: int,
        batch: int,
        metrics: tuple[Metric, ...] = (),
    ) -> None:
        self.metrics, self.batch = metrics, batch
        self.of, self.protocol = features, protocol
        self.reference, self.pool = reference, pool
        self.statistics = FeatureStatistics()
        self.score = _score(protocol, total)
        self.features: list[Tensor] = []
        self.waiting: list[Tensor] = []

    def update(self, output: Tensor) -> None:
        """Takes images [n, C, H, W] as a model gives them, around [-1, 1] and not clipped."""
        if self.protocol.pixels != "batch-min-max":
            self._take(output)
            return
        parts = torch.split(torch.cat([*self.waiting, output]), self.batch)
        self.waiting = [part for part in parts if len(part) < self.batch]
        for part in parts[: len(parts) - len(self.waiting)]:
            self._take(part)

    def _take(self, output: Tensor) -> None:
        features, probabilities = self.of(PIXELS[self.protocol.pixels](output), self.protocol)
        self.statistics.update(features)
        if self.score and probabilities is not None:
            self.score.update(probabilities)
        self.features.append(features)

    def values(self) -> dict[str, float]:
        """The metrics of the kind, and further ones."""
        if self.waiting:
            self._take(self.waiting.pop())
        generated = torch.cat(self.features)[:KID_POOL].to(self.pool.device)
        moments = self.statistics, self.reference
        values = self.of.values(self.protocol, moments, (generated, self.pool), self.score)
        return values | further_values(self.metrics, generated, self.pool)
