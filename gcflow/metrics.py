"""Distances between sets of features, and transport cost.

None of these is FID by itself: FID is `frechet_distance` in Inception's features, under a stated protocol.
"""

import torch
from torch import Tensor

KERNEL_ROWS = 1024


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """||m_a - m_b||^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)) for feature sets [n, F] and [m, F], n, m >= 2, in float64."""
    a, b = a.double(), b.double()
    mean_gap = a.mean(0) - b.mean(0)
    cov_a, cov_b = (torch.atleast_2d(torch.cov(x.T)) for x in (a, b))
    values, vectors = torch.linalg.eigh(cov_a)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    # tr (C_a C_b)^(1/2) through the symmetric matrix with the same eigenvalues: stable without a general square root.
    cross = torch.linalg.eigvalsh(root @ cov_b @ root).clamp(min=0).sqrt().sum()
    return float(mean_gap @ mean_gap + cov_a.trace() + cov_b.trace() - 2 * cross)


def kernel_distance(a: Tensor, b: Tensor) -> float:
    """Unbiased squared MMD with the kernel (x.y / F + 1)^3 of KID, over all pairs of [n, F] and [m, F], in float64.

    Memory grows with n + m, not with n m.
    """
    a, b = a.double(), b.double()

    def kernel_sum(x: Tensor, y: Tensor) -> Tensor:
        return torch.stack([(rows @ y.T / x.shape[1] + 1).pow(3).sum() for rows in torch.split(x, KERNEL_ROWS)]).sum()

    def mean_of_different(x: Tensor) -> Tensor:
        diagonal = (x.square().sum(1) / x.shape[1] + 1).pow(3).sum()
        return (kernel_sum(x, x) - diagonal) / (len(x) * (len(x) - 1))

    return float(mean_of_different(a) + mean_of_different(b) - 2 * kernel_sum(a, b) / (len(a) * len(b)))


def class_score(probabilities: Tensor) -> float:
    """exp(E KL(p(y|x) || p(y))) for class probabilities [n, K]: the formula of the inception score, in [1, K]."""
    p = probabilities.double()
    marginal = p.mean(0, keepdim=True)
    divergence = torch.special.xlogy(p, p) - torch.special.xlogy(p, marginal)
    return float(divergence.sum(1).mean().exp())


def transport_cost(x: Tensor, z: Tensor) -> Tensor:
    """||x - z||^2 per pair: [B, ...] and [B, ...] to [B]."""
    return (x - z).flatten(1).square().sum(1)
