"""Exact denoisers, velocities and flows: of a Gaussian mixture, and of the empirical distribution of a data set.

Noised by the EDM process both stay Gaussian mixtures, so the optimal denoiser E[x* | x_t] is a softmax average, the
velocity is (x - D(x, t)) / t, and the ideal consistency function is that velocity's flow from t down to sigma_min.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Denoiser = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class GaussianMixture:
    """A mixture of isotropic Gaussians of one standard deviation.

    means: [K, d]. weights: [K], sums to 1. std: > 0; 0 gives the empirical distribution of the means.
    """

    means: Tensor
    weights: Tensor
    std: float

    def sample(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draws points [count, d] and their components [count]."""
        component = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        noise = torch.randn(count, self.means.shape[1], generator=generator, dtype=self.means.dtype)
        return self.means[component] + self.std * noise, component

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        """E[x* | x* + sigma z = x], shape of x, for x [B, ...] and sigma [B]."""
        flat, column = x.flatten(1), sigma[:, None]
        total = self.std**2 + column**2
        squares = flat.square().sum(1, keepdim=True) - 2 * flat @ self.means.T + self.means.square().sum(1)
        responsibility = torch.softmax(self.weights.log() - squares / (2 * total), dim=1)
        kept = self.std**2 / total
        return ((1 - kept) * (responsibility @ self.means) + kept * flat).reshape(x.shape)


def empirical(data: Tensor) -> GaussianMixture:
    """The empirical distribution of data [n, ...] as a mixture of n points; cost O(n d) per denoised sample."""
    flat = data.flatten(1)
    return GaussianMixture(flat, torch.full((len(flat),), 1 / len(flat), dtype=flat.dtype, device=flat.device), 0.0)


def velocity(denoise: Denoiser, x: Tensor, sigma: Tensor) -> Tensor:
    """PF-ODE velocity (x - D(x, sigma)) / sigma, shape of x, for x [B, ...] and sigma [B]."""
    return (x - denoise(x, sigma)) / sigma.reshape(-1, *[1] * (x.ndim - 1))


def solve_ode(field: Callable[[Tensor, Tensor], Tensor], x: Tensor, start: float, end: float, steps: int) -> Tensor:
    """The solution of dx/dsigma = field(x, sigma) from `start` to `end`: states [steps + 1, B, ...], first x.

    Fourth-order Runge-Kutta, equal steps in ln sigma; field takes x [B, ...] and sigma [B]. start, end > 0.
    """

    def rate(y: Tensor, u: float) -> Tensor:
        sigma = torch.full((len(y),), math.exp(u), dtype=y.dtype, device=y.device)
        return math.exp(u) * field(y, sigma)

    u, h = math.log(start), (math.log(end) - math.log(start)) / steps
    states = [x]
    for _ in range(steps):
        y = states[-1]
        k1 = rate(y, u)
        k2 = rate(y + h / 2 * k1, u + h / 2)
        k3 = rate(y + h / 2 * k2, u + h / 2)
        k4 = rate(y + h * k3, u + h)
        states.append(y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4))
        u += h
    return torch.stack(states)
