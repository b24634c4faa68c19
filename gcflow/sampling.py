"""Samplers: one and few steps of a consistency model, and the PF-ODE of a denoiser.

Noise is drawn per image: image n of a seed is the same whatever the batch size, the method and the device.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from gcflow.batches import Prefetcher
from gcflow.model import PreconditionedNetwork
from gcflow.options import Count, Level, Options, require
from gcflow.preconditioning import NoiseProcess, from_model_space
from gcflow.randomness import derived_seed
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
    renoise: Callable[[int], Tensor] | None = None,
    boundary: float | None = None,
) -> Tensor:
    """f(sigma_max z, sigma_max), then for each lower sigma: re-noise the prediction to it and predict again.

    Args:
        model: consistency model, (x [B, ...], sigma [B]) to [B, ...].
        noise: z [B, ...], standard normal.
        process: gives sigma_max and sigma_min.
        intermediate_sigmas: descending, each in (sigma_min, sigma_max); their number plus one is the number of steps.
        renoise: fresh standard normal noise [B, ...] for the step of that number, from 1; needed for few steps.
        boundary: noise level of the model's predictions; sigma_min by default.
    """
    lowest = process.sigma_min if boundary is None else boundary
    x = model(process.sigma_max * noise, _full(noise, process.sigma_max))
    for step, sigma in enumerate(intermediate_sigmas, start=1):
        assert renoise is not None
        # What is added to a sample already at the boundary (Song et al. 2023, Algorithm 1).
        x = model(x + (sigma**2 - lowest**2) ** 0.5 * renoise(step), _full(noise, sigma))
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


class Sampler(Options):
    """A way to draw samples.

    Where `boundary` is moved, noise is added as to samples at the boundary of training, as ECT's code does.
    """

    name: Literal["consistency", "heun"] = Field(
        description="a consistency model's, in len(sigmas) + 1 steps, or a denoiser's, in 2 heun_steps - 1"
    )
    sigmas: tuple[Level, ...] = Field(default=(), description="noise levels between steps, descending")
    heun_steps: Count = Field(default=18, description="levels of noise of `heun`")
    boundary: float | None = Field(
        default=None,
        ge=0,
        le=10**6,
        description="where a consistency model of EDM preconditioning is taken to be the identity; null: where it was "
        "trained to be. ECT's code moves it to 0.003",
    )

    def __post_init__(self) -> None:
        levels = list(self.sigmas)
        require(levels == sorted(levels, reverse=True), "sigmas", levels, "descending noise levels")

    @property
    def evaluations(self) -> int:
        """Passes of the network per sample."""
        return 2 * self.heun_steps - 1 if self.name == "heun" else len(self.sigmas) + 1

    def boundary_of(self, model: PreconditionedNetwork) -> float:
        """The noise level at which a model is taken to be the identity."""
        return model.boundary if self.boundary is None else self.boundary

    def draw(self, model: PreconditionedNetwork, noise: Tensor, renoise: Callable[[int], Tensor]) -> Tensor:
        """Samples in model space from noise [B, ...]."""
        if self.name == "heun":
            return heun_sample(model, noise, model.process, self.heun_steps)
        moved = partial(model, boundary=self.boundary)
        return consistency_sample(moved, noise, model.process, self.sigmas, renoise, model.boundary)


def image_noise(seed: int, images: range, shape: Sequence[int], step: int = 0) -> Tensor:
    """Standard normal noise [len(images), *shape] on the CPU: a function of seed, image number and step alone."""
    noise, source = torch.empty(len(images), *shape), torch.Generator()
    for image, n in zip(noise, images, strict=True):
        image.normal_(generator=source.manual_seed(derived_seed(seed, "image", n, step)))
    return noise


def generate(
    model: PreconditionedNetwork,
    sampler: Sampler,
    shape: Sequence[int],
    images: range,
    seed: int,
    batch: int = 500,
    dtype: torch.dtype = torch.uint8,
) -> Iterator[Tensor]:
    """Samples in stored form on the model's device, batch by batch: uint8 [B, C, H, W], or float32 for points.

    Their noise is drawn on the CPU, while the device is at work on the batch before.
    """
    device = next(model.parameters()).device
    parts = [range(start, min(start + batch, images.stop)) for start in range(images.start, images.stop, batch)]

    def draw(part: int) -> list[Tensor]:
        noises = [image_noise(seed, parts[part], shape, step) for step in range(1 + len(sampler.sigmas))]
        return [noise.pin_memory() for noise in noises] if device.type == "cuda" else noises

    ahead = Prefetcher(draw, len(parts))
    try:
        for part in range(len(parts)):
            noises = [noise.to(device, non_blocking=True) for noise in ahead[part]]
            yield from_model_space(sampler.draw(model, noises[0], noises.__getitem__), model.process, dtype)
    finally:
        ahead.close()
