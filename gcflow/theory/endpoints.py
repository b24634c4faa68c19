"""Quadrature over the clean endpoint: expectations over x_t as sums over a grid of y = f(x_t, t).

The PF-ODE carries p* to p_t, so E[g(x_t)] = int p*(y) g(x_t(y)) dy with x_t(y) the flow of y from 0 to t. In y the
integrands are smooth even where f jumps from mode to mode, which a grid of x_t resolves badly.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from gcflow.oracles import GaussianMixture


class Level(NamedTuple):
    """A grid of endpoints at one noise level.

    sigma: the level. endpoint: y [B, d]. mass: p*(y) dy, [B], sums to 1. point: x_t(y), [B, d]. jacobian: df/dx at
    x_t(y), [B, d, d].
    """

    sigma: float
    endpoint: Tensor
    mass: Tensor
    point: Tensor
    jacobian: Tensor


def endpoint_grid(mixture: GaussianMixture, nodes: int, reach: float, least: float) -> tuple[Tensor, Tensor]:
    """Midpoints y [B, 2] of a square grid over the data, and their mass p*(y) dy, [B], normalised to 1.

    Args:
        mixture: two-dimensional.
        nodes: per axis.
        reach: how many standard deviations the grid goes beyond the outermost means.
        least: points whose mass is below this share of the largest are left out.
    """
    low = mixture.means.min(0).values - reach * mixture.std
    high = mixture.means.max(0).values + reach * mixture.std
    steps = (torch.arange(nodes, dtype=low.dtype) + 0.5) / nodes
    grid = torch.cartesian_prod(*(low[axis] + (high - low)[axis] * steps for axis in range(2)))
    mass = mixture.log_density(grid).exp()
    kept = mass > least * mass.max()
    return grid[kept], mass[kept] / mass[kept].sum()


def sweep(
    mixture: GaussianMixture, endpoint: Tensor, mass: Tensor, sigmas: list[float], largest_step: float
) -> Iterator[Level]:
    """The grid carried by the flow through ascending noise levels."""
    point, forward, last = endpoint, torch.eye(2, dtype=endpoint.dtype).expand(len(endpoint), 2, 2), 0.0
    for sigma in sigmas:
        point, step = mixture.flow_with_jacobian(point, last, sigma, largest_step)
        forward, last = step @ forward, sigma
        yield Level(sigma, endpoint, mass, point, torch.linalg.inv(forward))


def standard_deviation(mixture: GaussianMixture) -> float | None:
    """S where the mixture is the Gaussian N(m, s^2 I), whose oracles are closed forms; else None."""
    return mixture.std if len(mixture.means) == 1 else None
