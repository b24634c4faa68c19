"""Exact denoisers, velocities and flows: of a Gaussian mixture, and of the empirical distribution of a data set.

Noised by the EDM process both stay Gaussian mixtures, so the optimal denoiser E[x* | x_t] is a softmax average, the
velocity is (x - D(x, t)) / t, and the ideal consistency function is that velocity's flow from t down to sigma_min.

With q = 1 / sqrt(s^2 + t^2), y = q x and component means m_k, the velocity's ODE reads dy/dq = sum_k r_k m_k, r the
posterior of the component. So y is linear in q wherever one component explains x; t = infinity is q = 0, and t = 0 is
q = 1 / s: `flow` is accurate with few steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from gcflow.lazy_torch import torch

if TYPE_CHECKING:
    from torch import Tensor

# Values of a data set; its exact denoiser looks at each of them for every sample.
LARGEST_EXACT_DATA = 10_000_000

# Samples that pass through a network at once, where many are predicted.
PREDICTED = 1024

Denoiser = Callable[["Tensor", "Tensor"], "Tensor"]


def in_parts(model: Denoiser, device: str) -> Denoiser:
    """The same function of (x [B, ...], sigma [B]), evaluated on `device` in parts; its result is where x is."""

    def predict(x: Tensor, sigma: Tensor) -> Tensor:
        parts = zip(x.split(PREDICTED), sigma.split(PREDICTED), strict=True)
        return torch.cat([model(part.to(device), levels.to(device)).to(x.device) for part, levels in parts])

    return predict


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

    def component_posterior(self, x: Tensor, total: Tensor | float) -> Tensor:
        """Probability of each component given a point: [B, K] for x [B, d] of variance std^2 + sigma^2 = total, [B]."""
        # ||x||^2 is common to all components. The softmax over rows is ten times as fast as one over few columns.
        scores = self.means @ x.T - self.means.square().sum(1)[:, None] / 2
        return torch.softmax(self.weights.log()[:, None] + scores / total, dim=0).T

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        """E[x* | x* + sigma z = x], shape of x, for x [B, ...] and sigma [B]."""
        flat = x.flatten(1)
        total = self.std**2 + sigma**2
        kept = self.std**2 / total[:, None]
        return ((1 - kept) * (self.component_posterior(flat, total) @ self.means) + kept * flat).reshape(x.shape)

    def log_density(self, x: Tensor) -> Tensor:
        """Ln p*(x): [..., d] to [...]; std > 0."""
        variance, flat = self.std**2, x.flatten(0, -2)
        # In rows per component, as in `component_posterior`.
        exponents = self.means @ flat.T - self.means.square().sum(1)[:, None] / 2
        mixed = torch.logsumexp(self.weights.log()[:, None] + exponents / variance, dim=0)
        normaliser = x.shape[-1] / 2 * math.log(2 * math.pi * variance)
        return (mixed - flat.square().sum(1) / (2 * variance) - normaliser).reshape(x.shape[:-1])

    def noise_moments(self, x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        """E[z | x* + sigma z = x], which is the PF-ODE's velocity, [B, d], and the covariance of z, [B, d, d].

        Exact down to sigma = 0 where std > 0.
        """
        total = self.std**2 + sigma**2
        centre, between = self._centre(self.component_posterior(x, total))
        identity = torch.eye(x.shape[1], dtype=x.dtype)
        return sigma / total * (x - centre), self.std**2 / total * identity + (sigma / total) ** 2 * between

    def _centre(self, responsibility: Tensor) -> tuple[Tensor, Tensor]:
        """Mean [B, d] and covariance [B, d, d] of the components' means under [B, K]."""
        centre = responsibility @ self.means
        scatter = torch.einsum("bk,ki,kj->bij", responsibility, self.means, self.means)
        return centre, scatter - centre[:, :, None] * centre[:, None]

    def flow(self, x: Tensor, start: float, end: float, largest_step: float) -> Tensor:
        """The point to which the PF-ODE takes x [B, ...] from noise level `start` to `end`, either way: shape of x.

        Fourth-order Runge-Kutta for q x in q, q = 1 / sqrt(std^2 + sigma^2). The steps are equal in ln(1 + r q), r the
        data's root mean square norm, and at most `largest_step`. A noise level may be 0 if std > 0. Exact for a single
        component.
        """
        return self._integrate(x.flatten(1), start, end, largest_step).reshape(x.shape)

    def flow_with_jacobian(self, x: Tensor, start: float, end: float, largest_step: float) -> tuple[Tensor, Tensor]:
        """`flow` of x [B, d], and its derivative by x, [B, d, d]."""
        size = x.shape[1]
        identity = torch.eye(size, dtype=x.dtype).flatten().expand(len(x), -1)
        state = self._integrate(torch.cat([x, identity], dim=1), start, end, largest_step)
        return state[:, :size], state[:, size:].unflatten(1, (size, size))

    def _integrate(self, state: Tensor, start: float, end: float, largest_step: float) -> Tensor:
        """`flow` of points [B, d], or of points with their flattened Jacobian behind them, [B, d + d^2]."""
        size = self.means.shape[1]

        def rate(scaled: Tensor, q: float) -> Tensor:
            posterior = self.component_posterior(scaled[:, :size] / q, 1 / q**2)
            if scaled.shape[1] == size:
                return posterior @ self.means
            centre, between = self._centre(posterior)
            jacobian = scaled[:, size:].unflatten(1, (size, size))
            return torch.cat([centre, (q * between @ jacobian).flatten(1)], dim=1)

        norm = math.sqrt(float(self.weights @ self.means.square().sum(1)) + size * self.std**2)
        first, last = (1 / math.sqrt(self.std**2 + sigma**2) for sigma in (start, end))
        path = [math.log1p(norm * q) for q in (first, last)]
        steps = max(1, math.ceil(abs(path[1] - path[0]) / largest_step))
        nodes = [math.expm1(path[0] + (path[1] - path[0]) * k / steps) / norm for k in range(1, steps)]
        state = state * first
        for q, following in pairwise([first, *nodes, last]):
            h = following - q
            k1 = rate(state, q)
            k2 = rate(state + h / 2 * k1, q + h / 2)
            k3 = rate(state + h / 2 * k2, q + h / 2)
            k4 = rate(state + h * k3, following)
            state = state + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        return state / last


def empirical(data: Tensor) -> GaussianMixture:
    """The empirical distribution of data [n, ...] as a mixture of n points; cost O(n d) per denoised sample."""
    flat = data.flatten(1)
    return GaussianMixture(flat, torch.full((len(flat),), 1 / len(flat), dtype=flat.dtype, device=flat.device), 0.0)


def velocity(denoise: Denoiser, x: Tensor, sigma: Tensor) -> Tensor:
    """PF-ODE velocity (x - D(x, sigma)) / sigma, shape of x, for x [B, ...] and sigma [B]."""
    return (x - denoise(x, sigma)) / sigma.reshape(-1, *[1] * (x.ndim - 1))
