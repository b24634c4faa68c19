"""Distances between sets of features, scores of class probabilities, and transport cost.

None of these is FID by itself: FID is `frechet_distance` in Inception's features, under a stated protocol.
"""

from __future__ import annotations

from functools import cached_property
from itertools import combinations, pairwise, product
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

from pydantic import Field

from gcflow import register
from gcflow.lazy_torch import torch
from gcflow.options import Options
from gcflow.randomness import generator

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

KERNEL_ROWS, DISTANCE_ROWS = 512, 1000


@register.metric.contract
class Metric(Options):
    """A comparison of generated samples with real ones, in features of their data set. Its name is its field `kind`.

    columns: each number's name (a-z, 0-9, -) to its heading in tables, with the direction of better.
    """

    columns: ClassVar[dict[str, str]]

    if TYPE_CHECKING:

        @property
        def kind(self) -> str:
            """Its name."""

    def compare(self, generated: Tensor, real: Tensor) -> dict[str, float]:
        """A number for each of `columns`.

        Args:
            generated: features [n, F].
            real: features [m, F], of the same type and device. Of Inception's or DINOv2's, at most 50,000 of each.
        """
        raise NotImplementedError


@register.metric
class PrecisionRecall(Metric):
    """Precision and recall (Kynkäänniemi et al. 2019, equations 1 and 2), in [0, 1].

    A set is what the balls around its samples cover, each as far as to its k-th nearest neighbour in the set.
    """

    neighbours: int = Field(default=3, ge=1, le=100, description="k, of nearest neighbours; the paper's is 3")
    kind: Literal["precision-recall"] = "precision-recall"
    columns: ClassVar[dict[str, str]] = {"precision": "precision ↑", "recall": "recall ↑"}

    def covered(self, points: Tensor, others: Tensor) -> float:
        """Share of points [n, F] in the ball of at least one of the others [m, F], m > k."""

        def distances(to: Tensor) -> Iterator[Tensor]:
            exact = "donot_use_mm_for_euclid_dist"
            return (torch.cdist(part, others, compute_mode=exact) for part in to.split(DISTANCE_ROWS))

        _require_rows(others, self.neighbours + 1, "samples that balls are drawn around")
        # The nearest of its own set is each sample itself.
        radii = torch.cat([part.kthvalue(self.neighbours + 1).values for part in distances(others)])
        return torch.cat([(part <= radii).any(1) for part in distances(points)]).double().mean().item()

    def compare(self, generated: Tensor, real: Tensor) -> dict[str, float]:
        """Precision: of the generated that are like real ones. Recall: of the real that are like generated ones."""
        return {"precision": self.covered(generated, real), "recall": self.covered(real, generated)}


class Moments(Protocol):
    """Mean [F] and unbiased covariance [F, F] of features, in float64, and the symmetric root of that covariance."""

    @property
    def mean(self) -> Tensor:
        """[F]."""

    @property
    def covariance(self) -> Tensor:
        """[F, F]."""

    @property
    def covariance_root(self) -> Tensor:
        """[F, F]."""


def _symmetric_root(covariance: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(covariance)
    return vectors * values.clamp(min=0).sqrt() @ vectors.T


def _require_rows(rows: Tensor, least: int, name: str) -> None:
    if rows.ndim != 2 or len(rows) < least:
        raise ValueError(f"{name} are {list(rows.shape)}, expected [n, columns] with n >= {least}")
    if not rows.isfinite().all():
        raise ValueError(f"{name} hold NaN or infinity")


def _require_equal_width(first: Tensor, second: Tensor) -> None:
    if first.shape[-1] != second.shape[-1]:
        raise ValueError(f"features of {first.shape[-1]} and of {second.shape[-1]} values cannot be compared")


class FeatureSet:
    """Features [n, F], n >= 2, in float64, and what comparisons need of them alone, computed once.

    A set that many others are compared with, such as that of the real samples, is best kept as one of these.

    Raises:
        ValueError: the features are of another shape, or not all finite.
    """

    def __init__(self, features: Tensor) -> None:
        _require_rows(features, 2, "features")
        self.values = features.double()

    @cached_property
    def mean(self) -> Tensor:
        """Mean [F]."""
        return self.values.mean(0)

    @cached_property
    def covariance(self) -> Tensor:
        """Unbiased covariance [F, F]."""
        return torch.atleast_2d(torch.cov(self.values.T))

    @cached_property
    def covariance_root(self) -> Tensor:
        """Symmetric root [F, F] of the covariance."""
        return _symmetric_root(self.covariance)

    @cached_property
    def mean_kernel(self) -> Tensor:
        """Mean of KID's kernel over all pairs of different rows."""
        tiles = torch.split(self.values, KERNEL_ROWS)
        # The kernel is symmetric: each pair is taken once.
        within = [_kernel(tile, tile).triu(1).sum() for tile in tiles]
        between = [_kernel(first, second).sum() for first, second in combinations(tiles, 2)]
        return torch.stack(within + between).sum() / (len(self.values) * (len(self.values) - 1) / 2)


class FeatureStatistics:
    """Count, mean and covariance of features that come in batches, in float64, on the features' device.

    Batches and parts are combined as Chan, Golub and LeVeque (1979) do: their order and sizes matter only in rounding.

    Attributes:
        count: n, the number of features so far; mean needs n >= 1, covariance n >= 2.
        mean: [F].
        scatter: sum of the outer products of deviations from the mean, [F, F].
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = torch.empty(0)
        self.scatter = torch.empty(0)

    @classmethod
    def of(cls, tensors: dict[str, Tensor], device: torch.device | str = "cpu") -> FeatureStatistics:
        """The inverse of `tensors`, on `device`."""
        statistics = cls()
        statistics.count = int(tensors["count"])
        statistics.mean = tensors["mean"].to(device)
        statistics.scatter = tensors["scatter"].to(device, copy=True)
        return statistics

    def tensors(self) -> dict[str, Tensor]:
        """Count (int64), mean [F] and scatter [F, F], to be saved; they do not change when more features come."""
        return {"count": torch.tensor(self.count), "mean": self.mean, "scatter": self.scatter.clone()}

    def update(self, features: Tensor) -> None:
        """Takes features [n, F], n >= 0, of any floating type.

        Raises:
            ValueError: they are of another shape, or not all finite; nothing was taken.
        """
        _require_rows(features, 0, "features")
        if not len(features):
            return
        values = features.double()
        mean = values.mean(0)
        deviations = values - mean
        self._begin(mean)
        self.scatter.addmm_(deviations.T, deviations)
        self._move(len(values), mean)

    def merge(self, other: FeatureStatistics) -> None:
        """Takes the features that another one has taken; they must be on one device."""
        if not other.count:
            return
        self._begin(other.mean)
        self.scatter += other.scatter
        self._move(other.count, other.mean)

    def _begin(self, mean: Tensor) -> None:
        if not self.count:
            self.mean = torch.zeros_like(mean)
            self.scatter = mean.new_zeros(len(mean), len(mean))

    def _move(self, count: int, mean: Tensor) -> None:
        gap, total = mean - self.mean, self.count + count
        self.scatter.addr_(gap, gap, alpha=self.count * count / total)
        self.mean = self.mean + gap * (count / total)
        self.count = total
        self.__dict__.pop("covariance_root", None)

    @property
    def covariance(self) -> Tensor:
        """Unbiased covariance [F, F].

        Raises:
            ValueError: fewer than two features have come.
        """
        if self.count < 2:
            raise ValueError(f"the covariance of {self.count} features is not defined, at least 2 are needed")
        return self.scatter / (self.count - 1)

    @cached_property
    def covariance_root(self) -> Tensor:
        """Symmetric root [F, F] of the covariance; computed once until more features come."""
        return _symmetric_root(self.covariance)


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    """(x.y / F + 1)^3, the kernel of KID, for each row of [n, F] with each of [m, F]: [n, m]."""
    return (x / x.shape[1] @ y.T).add_(1).pow_(3)


def _feature_set(features: Tensor | FeatureSet) -> FeatureSet:
    return features if isinstance(features, FeatureSet) else FeatureSet(features)


def frechet_distance(a: Tensor | Moments, b: Tensor | Moments) -> float:
    """||m_a - m_b||^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)) of two sets of features, in float64, on one device.

    Args:
        a: features [n, F], n >= 2, or their moments; n < F is fine.
        b: the same of the other set; many distances to one `b` cost one root of its covariance if it is no tensor.

    Raises:
        ValueError: features are fewer than two, not all finite, or of different sizes.
    """
    first = FeatureSet(a) if isinstance(a, torch.Tensor) else a
    second = FeatureSet(b) if isinstance(b, torch.Tensor) else b
    covariance = first.covariance
    _require_equal_width(covariance, second.covariance)
    for moment in (first.mean, covariance, second.mean, second.covariance):
        if not moment.isfinite().all():
            raise ValueError("moments hold NaN or infinity")
    mean_gap, root = first.mean - second.mean, second.covariance_root
    # tr (C_a C_b)^(1/2) through the symmetric matrix with the same eigenvalues: stable without a general square root.
    cross = torch.linalg.eigvalsh(root @ covariance @ root).clamp(min=0).sqrt().sum()
    distance = float(mean_gap @ mean_gap + covariance.trace() + second.covariance.trace() - 2 * cross)
    # A covariance's null directions add the roots of their rounding errors, some 1e-8 each, to the cross term.
    return max(distance, 0.0)


def kernel_distance(a: Tensor | FeatureSet, b: Tensor | FeatureSet) -> float:
    """Unbiased squared MMD with the kernel (x.y / F + 1)^3 of KID, over all pairs of [n, F] and [m, F], in float64.

    Memory grows with n + m, not with n m. Being unbiased, it may be negative.

    Raises:
        ValueError: features are fewer than two, not all finite, or of different sizes.
    """
    a, b = _feature_set(a), _feature_set(b)
    _require_equal_width(a.values, b.values)
    tiles = product(torch.split(a.values, KERNEL_ROWS), torch.split(b.values, KERNEL_ROWS))
    across = torch.stack([_kernel(first, second).sum() for first, second in tiles]).sum()
    return float(a.mean_kernel + b.mean_kernel - 2 * across / (len(a.values) * len(b.values)))


def kernel_inception_distance(
    generated: Tensor, reference: Tensor, subsets: int, subset_size: int, seed: int
) -> tuple[float, float]:
    """KID as clean-fid computes it: the unbiased squared MMD of random subsets, in float64.

    Binkowski et al. (2018). In each subset m features of either set are compared, drawn without replacement.

    Args:
        generated: features [n, F], n >= 2.
        reference: features [k, F], k >= 2, on the same device.
        subsets: their number; clean-fid takes 100.
        subset_size: m; at most the smaller set's size is taken. clean-fid takes 1000.
        seed: of the subsets; the same for every device.

    Returns:
        Mean and standard deviation over the subsets (that of the population, as numpy's).

    Raises:
        ValueError: features are fewer than two, not all finite, or of different sizes.
    """
    for features in (generated, reference):
        _require_rows(features, 2, "features")
    _require_equal_width(generated, reference)
    size = min(len(generated), len(reference), subset_size)
    distances = []
    for index in range(subsets):
        draw = generator(seed, index, "kid-subset")
        x, y = (
            features[torch.randperm(len(features), generator=draw)[:size].to(features.device)].double()
            for features in (generated, reference)
        )
        within, across = _kernel(x, x).add_(_kernel(y, y)), _kernel(x, y)
        distances.append((within.sum() - within.trace()) / (size * (size - 1)) - 2 * across.mean())
    values = torch.stack(distances)
    return values.mean().item(), values.std(correction=0).item()


def class_score(probabilities: Tensor) -> float:
    """exp(E KL(p(y|x) || p(y))) for class probabilities [n, K]: the formula of the inception score, in [1, K].

    Raises:
        ValueError: there are none, or not all are finite.
    """
    _require_rows(probabilities, 1, "probabilities")
    p = probabilities.double()
    marginal = p.mean(0, keepdim=True)
    divergence = torch.special.xlogy(p, p) - torch.special.xlogy(p, marginal)
    return float(divergence.sum(1).mean().exp())


class InceptionScore:
    """`class_score` of contiguous splits of probabilities that come in batches, in float64; memory O(K).

    Salimans et al. (2016), whose splits are 10. Split i holds images i total // splits .. (i + 1) total // splits, as
    torch-fidelity has it.

    Args:
        total: number of images to come.
        splits: number of splits, 1 .. total.

    Raises:
        ValueError: there are more splits than images, or none.
    """

    def __init__(self, total: int, splits: int) -> None:
        if not 1 <= splits <= total:
            raise ValueError(f"{total} images cannot be scored in {splits} splits")
        ends = [index * total // splits for index in range(splits + 1)]
        self.sizes = [end - begin for begin, end in pairwise(ends)]
        self.scores: list[Tensor] = []
        self._filled = 0
        self._sum = self._negative_entropy = torch.zeros(())

    def update(self, probabilities: Tensor) -> None:
        """Takes class probabilities [n, K] of the next n images.

        Raises:
            ValueError: more come than were announced, or not all are finite.
        """
        _require_rows(probabilities, 0, "probabilities")
        remaining = probabilities
        while len(remaining):
            if len(self.scores) == len(self.sizes):
                raise ValueError(f"{len(remaining)} images more than the {sum(self.sizes)} announced")
            size = self.sizes[len(self.scores)]
            part, remaining = remaining[: size - self._filled].double(), remaining[size - self._filled :]
            if not self._filled:
                self._sum = self._negative_entropy = part.new_zeros(())
            self._filled += len(part)
            self._sum = self._sum + part.sum(0)
            self._negative_entropy = self._negative_entropy + torch.special.xlogy(part, part).sum()
            if self._filled == size:
                marginal = self._sum / size
                divergence = self._negative_entropy / size - torch.special.xlogy(marginal, marginal).sum()
                self.scores.append(divergence.exp())
                self._filled = 0

    @property
    def value(self) -> tuple[float, float]:
        """Mean and standard deviation over the splits (that of the population, as is customary).

        Raises:
            ValueError: some images have not come yet.
        """
        if len(self.scores) < len(self.sizes):
            raise ValueError(f"{len(self.scores)} of {len(self.sizes)} splits are complete")
        scores = torch.stack(self.scores)
        return scores.mean().item(), scores.std(correction=0).item()


def transport_cost(x: Tensor, z: Tensor) -> Tensor:
    """||x - z||^2 per pair: [B, ...] and [B, ...] to [B]."""
    return (x - z).flatten(1).square().sum(1)


def mean_and_error(values: Tensor) -> tuple[float, float]:
    """Mean of independent values [n], n >= 2, and its standard error.

    Raises:
        ValueError: there are fewer than two.
    """
    if len(values) < 2:
        raise ValueError(f"the standard error of {len(values)} values is not defined, at least 2 are needed")
    return values.mean().item(), (values.std() / len(values) ** 0.5).item()
