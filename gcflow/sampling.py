"""Samplers: one and few steps of a consistency model, and the PF-ODE of a denoiser."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from gcflow.config import NoiseProcess
from gcflow.schedules import noise_levels

Model = Callable[[Tensor, Tensor], Tensor]


def _full(x: Tensor, sigma: float) -> Tensor:
    return torch.full((len(x),), sigma, device=x.device, dtype=x.dtype)


@torch.no_grad()
def consistency_sample(
    model: Model,
    noise: Tensor,
    process: NoiseProcess,
    intermediate_sigmas: Sequence[float] = (),
    generator: torch.Generator | None = None,
) -> Tensor:
    """f(sigma_max z, sigma_max), then for each lower sigma: re-noise the prediction to it and predict again.

    Args:
        model: consistency model, (x [B, ...], sigma [B]) to [B, ...].
        noise: z [B, ...], standard normal.
        process: gives sigma_max and sigma_min.
        intermediate_sigmas: descending, each in (sigma_min, sigma_max); their number plus one is the number of steps.
        generator: source of the fresh noise; needed with intermediate sigmas.
    """
    x = model(process.sigma_max * noise, _full(noise, process.sigma_max))
    for sigma in intermediate_sigmas:
        fresh = torch.randn(noise.shape, generator=generator, device=noise.device, dtype=noise.dtype)
        # What is added to a sample already at sigma_min (Song et al. 2023, Algorithm 1).
        x = model(x + (sigma**2 - process.sigma_min**2) ** 0.5 * fresh, _full(noise, sigma))
    return x


@torch.no_grad()
def heun_sample(denoiser: Model, noise: Tensor, process: NoiseProcess, steps: int) -> Tensor:
    """EDM's deterministic sampler (Karras et al. 2022, Algorithm 1): 2 steps - 1 evaluations of the denoiser."""
    levels = [*noise_levels(steps - 1, process).flip(0).tolist(), 0.0]
    x = process.sigma_max * noise
    for high, low in pairwise(levels):
        slope = (x - denoiser(x, _full(x, high))) / high
        euler = x + (low - high) * slope
        if low > 0:
            slope = (slope + (euler - denoiser(euler, _full(x, low))) / low) / 2
            euler = x + (low - high) * slope
        x = euler
    return x
