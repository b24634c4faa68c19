"""Figure 1: trajectories on a Gaussian mixture, of the PF-ODE and of the generator-augmented coupling's own flow."""

import math
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from gcflow.oracles import GaussianMixture
from gcflow.randomness import generator
from gcflow.theory.check import Check

STATEMENT = "Figure 1"
START, END, LEVELS = 3.0, 0.05, 31
NODES = 150

LARGEST_FLOW_STEP = 0.05


def pf_ode_trajectories(mixture: GaussianMixture, x: Tensor, sigmas: list[float]) -> Tensor:
    """The PF-ODE through descending noise levels from x [B, d]: states [levels, B, d]."""
    states = [x]
    for high, low in pairwise(sigmas):
        states.append(mixture.flow(states[-1], high, low, LARGEST_FLOW_STEP))
    return torch.stack(states)


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
            self._grids[sigma] = (y, self.mixture.flow(y, sigma, self.sigma_min, LARGEST_FLOW_STEP))
        return self._grids[sigma]

    def endpoint(self, x: Tensor, sigma: float) -> Tensor:
        """E[f(x_t, t) | x~_t = x] for x [B, 2] at t = sigma."""
        y, f = self._grid(sigma)
        data = f + y - x[:, None]
        log_noise = -(x[:, None] - f).square().sum(-1) / (2 * sigma**2)
        return torch.softmax(self.mixture.log_density(data) + log_noise, dim=1) @ f

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


def straightness(states: Tensor) -> Tensor:
    """Chord over arc length of each of B trajectories [levels, B, d]: [B], 1 for straight lines."""
    arc = states.diff(dim=0).norm(dim=-1).sum(0)
    return (states[-1] - states[0]).norm(dim=-1) / arc


def crossings(states: Tensor) -> Tensor:
    """How many of the other drawn paths each of B plane trajectories [levels, B, 2] intersects: int64 [B]."""

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


def figure_1(mixture: GaussianMixture, sigma_min: float, paths: int, seed: int) -> tuple[list[Check], dict[str, Any]]:
    """Checks that the generator-augmented flow is straighter than the PF-ODE and crosses less, and both flows' paths.

    Independent pairs, PF-ODE and generator-augmented flow from the same starts x* + 3 z, down to sigma = 0.05.
    """
    source = generator(seed, "trajectories")
    data, _ = mixture.sample(paths, source)
    noise = torch.randn(paths, 2, generator=source, dtype=torch.float64)
    start = data + START * noise
    sigmas = torch.logspace(math.log10(START), math.log10(END), LEVELS, dtype=torch.float64).tolist()
    states = {
        "independent pairs": torch.stack([data + sigma * noise for sigma in sigmas]),
        "PF-ODE": pf_ode_trajectories(mixture, start, sigmas),
        "GC flow": GeneratorAugmentedFlow(mixture, sigma_min, NODES).trajectories(start, sigmas),
    }
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
