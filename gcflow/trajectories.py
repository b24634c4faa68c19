"""Trajectories on a Gaussian mixture: of the PF-ODE, and of the generator-augmented coupling's own flow."""

import math
from itertools import pairwise

import torch
from torch import Tensor

from gcflow.oracles import GaussianMixture, solve_ode, velocity

FLOW_STEPS = 24


def ideal_endpoint(mixture: GaussianMixture, x: Tensor, sigma: float, sigma_min: float) -> Tensor:
    """The ideal consistency function f(x, sigma): the PF-ODE from sigma down to sigma_min. x [B, d] to [B, d]."""

    def field(y: Tensor, level: Tensor) -> Tensor:
        return velocity(mixture.denoise, y, level)

    return solve_ode(field, x, sigma, sigma_min, FLOW_STEPS)[-1]


class GeneratorAugmentedFlow:
    """The velocity E[z | x~_t = x] of x~_t = f(x_t, t) + t z, x_t = x* + t z, with the ideal f, on a 2-D mixture.

    With y = x_t, the pair (y, x~) determines x* = f(y) + y - x~ and z = (x~ - f(y)) / t, hence
    E[f | x~ = x] is the mean of f(y) under p*(f(y) + y - x) phi((x - f(y)) / t), taken by quadrature over a grid of y.

    Args:
        mixture: two-dimensional, float64.
        sigma_min: where f ends.
        nodes: grid points per axis; their distance must stay below sigma, so small noise levels need many.
    """

    def __init__(self, mixture: GaussianMixture, sigma_min: float, nodes: int) -> None:
        self.mixture = mixture
        self.sigma_min = sigma_min
        self.nodes = nodes
        self._grids: dict[float, tuple[Tensor, Tensor]] = {}

    def _grid(self, sigma: float) -> tuple[Tensor, Tensor]:
        if sigma not in self._grids:
            reach = float(self.mixture.means.abs().max()) + 4 * math.hypot(self.mixture.std, sigma)
            axis = torch.linspace(-reach, reach, self.nodes, dtype=torch.float64)
            y = torch.cartesian_prod(axis, axis)
            self._grids[sigma] = (y, ideal_endpoint(self.mixture, y, sigma, self.sigma_min))
        return self._grids[sigma]

    def endpoint(self, x: Tensor, sigma: float) -> Tensor:
        """E[f(x_t, t) | x~_t = x] for x [B, 2] at t = sigma."""
        y, f = self._grid(sigma)
        data = f + y - x[:, None]
        to_means = (data[:, :, None] - self.mixture.means).square().sum(-1)
        log_data = torch.logsumexp(self.mixture.weights.log() - to_means / (2 * self.mixture.std**2), dim=-1)
        log_noise = -(x[:, None] - f).square().sum(-1) / (2 * sigma**2)
        return torch.softmax(log_data + log_noise, dim=1) @ f

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        """The velocity (x - E[f | x]) / sigma, [B, 2]."""
        return (x - self.endpoint(x, sigma)) / sigma

    def trajectories(self, x: Tensor, sigmas: list[float]) -> Tensor:
        """Heun's method along descending noise levels from x [B, 2]: states [levels, B, 2]."""
        states = [x]
        for high, low in pairwise(sigmas):
            slope = self(states[-1], high)
            guess = states[-1] + (low - high) * slope
            states.append(states[-1] + (low - high) * (slope + self(guess, low)) / 2)
        return torch.stack(states)


def straightness(states: Tensor) -> float:
    """Mean of chord over arc length of trajectories [levels, B, d]: 1 for straight lines."""
    arc = states.diff(dim=0).norm(dim=-1).sum(0)
    return float(((states[-1] - states[0]).norm(dim=-1) / arc).mean())


def crossings(states: Tensor) -> int:
    """Number of pairs among B plane trajectories [levels, B, 2] whose drawn paths intersect."""

    def side(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        return (b[..., 0] - a[..., 0]) * (c[..., 1] - a[..., 1]) - (b[..., 1] - a[..., 1]) * (c[..., 0] - a[..., 0])

    start, end = states[:-1].transpose(0, 1), states[1:].transpose(0, 1)
    count = 0
    for first in range(start.shape[0]):
        for second in range(first + 1, start.shape[0]):
            a, b = start[first][:, None], end[first][:, None]
            c, d = start[second][None], end[second][None]
            meets = (side(a, b, c) * side(a, b, d) < 0) & (side(c, d, a) * side(c, d, b) < 0)
            count += bool(meets.any())
    return count
