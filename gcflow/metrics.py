"""Distances between sets of features, and transport cost.

None of these is FID by itself: FID is `frechet_distance` in Inception's features, under a stated protocol.
"""

from functools import cached_property
from itertools import combinations, product

import torch
from torch import Tensor

KERNEL_ROWS = 512


class FeatureSet:
    """Features [n, F], n >= 2, in float64, and what comparisons need of them alone, computed once.

    A set that many others are compared with, such as that of the real samples, is best kept as one of these.
    """

    def __init__(self, features: Tensor) -> None:
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
    def mean_kernel(self) -> Tensor:
        """Mean of KID's kernel over all pairs of different rows."""
        tiles = torch.split(self.values, KERNEL_ROWS)
        # The kernel is symmetric: each pair is taken once.
        within = [_kernel(tile, tile).triu(1).sum() for tile in tiles]
        between = [_kernel(first, second).sum() for first, second in combinations(tiles, 2)]
        return torch.stack(within + between).sum() / (len(self.values) * (len(self.values) - 1) / 2)


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    """(x.y / F + 1)^3, the kernel of KID, for each row of [n, F] with each of [m, F]: [n, m]."""
    return (x / x.shape[1] @ y.T).add_(1).pow_(3)


def _feature_set(features: Tensor | FeatureSet) -> FeatureSet:
    return features if isinstance(features, FeatureSet) else FeatureSet(features)


def frechet_distance(a: Tensor | FeatureSet, b: Tensor | FeatureSet) -> float:
    """||m_a - m_b||^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)) for feature sets [n, F] and [m, F], n, m >= 2, in float64."""
    a, b = _feature_set(a), _feature_set(b)
    mean_gap = a.mean - b.mean
    values, vectors = torch.linalg.eigh(a.covariance)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    # tr (C_a C_b)^(1/2) through the symmetric matrix with the same eigenvalues: stable without a general square root.
    cross = torch.linalg.eigvalsh(root @ b.covariance @ root).clamp(min=0).sqrt().sum()
    return float(mean_gap @ mean_gap + a.covariance.trace() + b.covariance.trace() - 2 * cross)


def kernel_distance(a: Tensor | FeatureSet, b: Tensor | FeatureSet) -> float:
    """Unbiased squared MMD with the kernel (x.y / F + 1)^3 of KID, over all pairs of [n, F] and [m, F], in float64.

    Memory grows with n + m, not with n m.
    """
    a, b = _feature_set(a), _feature_set(b)
    tiles = product(torch.split(a.values, KERNEL_ROWS), torch.split(b.values, KERNEL_ROWS))
    across = torch.stack([_kernel(first, second).sum() for first, second in tiles]).sum()
    return float(a.mean_kernel + b.mean_kernel - 2 * across / (len(a.values) * len(b.values)))


def class_score(probabilities: Tensor) -> float:
    """exp(E KL(p(y|x) || p(y))) for class probabilities [n, K]: the formula of the inception score, in [1, K]."""
    p = probabilities.double()
    marginal = p.mean(0, keepdim=True)
    divergence = torch.special.xlogy(p, p) - torch.special.xlogy(p, marginal)
    return float(divergence.sum(1).mean().exp())


def transport_cost(x: Tensor, z: Tensor) -> Tensor:
    """||x - z||^2 per pair: [B, ...] and [B, ...] to [B]."""
    return (x - z).flatten(1).square().sum(1)


def mean_and_error(values: Tensor) -> tuple[float, float]:
    """Mean of independent values [n], n >= 2, and its standard error."""
    return values.mean().item(), (values.std() / len(values) ** 0.5).item()
