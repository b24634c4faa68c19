"""Figure 1: trajectories on a Gaussian mixture, of the PF-ODE and of the generator-augmented coupling's own flow."""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from gcflow.oracles import GaussianMixture
from gcflow.randomness import generator
from gcflow.theory.check import Check

STATEMENT = "Figure 1"
LEVELS = 31
LARGEST_FLOW_STEP = 0.05

# Of the quadrature. SPACING: of its nodes, in units of s t / sqrt(s^2 + t^2), which is about the least width of what is
# integrated. REACH, NOISE_REACH: how far they go, in s and in t. LARGEST_ENDPOINT_STEP: of the flow to their endpoints.
SPACING, REACH, NOISE_REACH, LARGEST_ENDPOINT_STEP = 0.4, 5.0, 8.0, 0.2


def pf_ode_trajectories(mixture: GaussianMixture, x: Tensor, sigmas: list[float]) -> Tensor:
    """The PF-ODE through descending noise levels from x [B, d]: states [levels, B, d]."""
    states = [x]
    for high, low in pairwise(sigmas):
        states.append(mixture.flow(states[-1], high, low, LARGEST_FLOW_STEP))
    return torch.stack(states)


class GeneratorAugmentedFlow:
    """The velocity E[z | x~_t = x] of x~_t = f(x_t, t) + t z, x_t = x* + t z, with the ideal f, on a 2-D mixture.

    With y = x_t, the pair (y, x~) determines x* = f(y) + y - x~ and z = (x~ - f(y)) / t, hence
    E[f | x~ = x] is the mean of f(y) under p*(f(y) + y - x) phi((x - f(y)) / t), taken by quadrature over y. There
    y - x = x* - f(y) is the difference of two points of the data, so that the nodes lie about the differences of the
    means, moved to each x: however narrow the modes are against the noise, few nodes resolve them.

    Args:
        mixture: two-dimensional, float64, std > 0.
        sigma_min: where f ends.
    """

    def __init__(self, mixture: GaussianMixture, sigma_min: float) -> None:
        self.mixture = mixture
        self.sigma_min = sigma_min

    def _offsets(self, sigma: float) -> Tensor:
        """The nodes' y - x, [N, 2]."""
        std = self.mixture.std
        differences = (self.mixture.means[:, None] - self.mixture.means).flatten(0, 1)
        spacing = SPACING * std * sigma / math.hypot(std, sigma)
        farthest = (differences.abs().max(0).values + REACH * std).clamp(max=NOISE_REACH * sigma) / spacing
        axes = (spacing * torch.arange(-n, n + 1, dtype=torch.float64) for n in farthest.ceil().int().tolist())
        grid = torch.cartesian_prod(*axes)
        near = torch.cdist(grid, differences).min(1).values <= REACH * std
        return grid[near & (grid.norm(dim=1) <= NOISE_REACH * sigma)]

    def endpoint(self, x: Tensor, sigma: float) -> Tensor:
        """E[f(x_t, t) | x~_t = x] for x [B, 2] at t = sigma."""
        offsets = self._offsets(sigma)
        y = x[:, None] + offsets
        f = self.mixture.flow(y.flatten(0, 1), sigma, self.sigma_min, LARGEST_ENDPOINT_STEP).reshape(y.shape)
        log_noise = -(x[:, None] - f).square().sum(-1) / (2 * sigma**2)
        weights = torch.softmax(self.mixture.log_density(f + offsets) + log_noise, dim=1)
        return torch.einsum("bn,bnd->bd", weights, f)

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        """The velocity (x - E[f | x]) / sigma, [B, 2]."""
        return (x - self.endpoint(x, sigma)) / sigma

    def trajectories(self, x: Tensor, sigmas: list[float]) -> Tensor:
        """Along descending noise levels from x [B, 2]: states [levels, B, 2].

        Heun's method, with the slope at each level taken where it was guessed to be: half the cost, still second order.
        """
        states, slope = [x], self(x, sigmas[0])
        for high, low in pairwise(sigmas):
            following = self(states[-1] + (low - high) * slope, low)
            states.append(states[-1] + (low - high) * (slope + following) / 2)
            slope = following
        return torch.stack(states)


def straightness(states: Tensor) -> Tensor:
    """Chord over arc length of each of B trajectories [levels, B, d]: [B], 1 for straight lines."""
    arc = states.diff(dim=0).norm(dim=-1).sum(0)
    return (states[-1] - states[0]).norm(dim=-1) / arc


def crossings(states: Tensor) -> Tensor:
    """The number of other drawn paths that each of B plane trajectories [levels, B, 2] intersects: int64 [B]."""

    def side(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        return (b[..., 0] - a[..., 0]) * (c[..., 1] - a[..., 1]) - (b[..., 1] - a[..., 1]) * (c[..., 0] - a[..., 0])

    start, end = states[:-1].transpose(0, 1), states[1:].transpose(0, 1)
    counts = torch.zeros(states.shape[1], dtype=torch.int64)
    for path in range(states.shape[1]):
        a, b, c, d = start[path, :, None], end[path, :, None], start[:, None], end[:, None]
        meets = (side(a, b, c) * side(a, b, d) < 0) & (side(c, d, a) * side(c, d, b) < 0)
        met = meets.flatten(1).any(1)
        met[path] = False  # a path may cross itself
        counts[path] = met.sum()
    return counts


def figure_1(
    mixture: GaussianMixture,
    sigma_min: float,
    levels: tuple[float, float],
    paths: int,
    seed: int,
    predict: Callable[[Tensor, float], Tensor] | None = None,
) -> tuple[list[Check], dict[str, Any]]:
    """Checks that the generator-augmented flow is straighter than the PF-ODE and crosses less, and both flows' paths.

    Args:
        mixture: see `GeneratorAugmentedFlow`.
        sigma_min: where the flows' endpoints are.
        levels: (start, end). Independent pairs, PF-ODE and generator-augmented flow go from the same x* + start z to
            the noise level `end`.
        paths: how many.
        seed: of data and noise.
        predict: a trained predictor's endpoints, [B, 2], of x [B, 2] at a noise level. With it there are the pairs that
            it makes of the same data and noise at `start` too.
    """
    source = generator(seed, "trajectories")
    data, _ = mixture.sample(paths, source)
    noise = torch.randn(paths, 2, generator=source, dtype=torch.float64)
    first, last = levels
    start = data + first * noise
    sigmas = torch.logspace(math.log10(first), math.log10(last), LEVELS, dtype=torch.float64).tolist()

    def pairs(endpoint: Tensor) -> Tensor:
        return torch.stack([endpoint + sigma * noise for sigma in sigmas])

    states = {"independent pairs": pairs(data)}
    if predict is not None:
        states["trained GC pairs"] = pairs(predict(start, first))
    states["PF-ODE"] = pf_ode_trajectories(mixture, start, sigmas)
    states["GC flow"] = GeneratorAugmentedFlow(mixture, sigma_min).trajectories(start, sigmas)
    curves = {
        name: {
            "straightness": float(straightness(paths_of).mean()),
            "crossing_pairs": int(crossings(paths_of).sum()) // 2,
            "states": paths_of.tolist(),
        }
        for name, paths_of in states.items()
    }
    straighter = straightness(states["GC flow"]) - straightness(states["PF-ODE"])
    fewer = (crossings(states["GC flow"]) - crossings(states["PF-ODE"])).double()
    error = f"3 standard errors over {paths} paths"
    checks = [
        Check(
            STATEMENT,
            "straightness (chord / arc) of the GC flow minus the PF-ODE's",
            float(straighter.mean()),
            0.0,
            3 * float(straighter.std()) / paths**0.5,
            error,
            ">",
        ),
        Check(
            STATEMENT,
            "paths that a path crosses, GC flow minus PF-ODE",
            float(fewer.mean()),
            0.0,
            # Each crossing counts for both of its paths.
            3 * 2**0.5 * float(fewer.std()) / paths**0.5,
            error + ", times √2 because each crossing counts twice",
            "<",
        ),
    ]
    return checks, {"sigmas": sigmas, "paths": curves}
