"""The noise process; preconditioning: f(x, sigma) = c_skip(sigma) x + c_out(sigma) F(c_in(sigma) x, c_noise(sigma))."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, NamedTuple

from pydantic import Field

from gcflow.lazy_torch import torch
from gcflow.options import Level, Options, Real, require

if TYPE_CHECKING:
    from torch import Tensor

Preconditioning = Literal["consistency", "edm", "vp", "ve"]
SMALLEST_SIGMA = 1e-8
VP_BETA_D, VP_BETA_MIN, VP_LEVELS = 19.9, 0.1, 1000


class NoiseProcess(Options):
    """The EDM process x_t = x* + sigma_t z, sigma_t = t, and the scale of the data it noises."""

    sigma_min: Level = Field(default=0.002, description="sigma_0 of the paper: the least noise level")
    sigma_max: Level = Field(default=80.0, description="sigma_T of the paper: the largest; above sigma_min")
    rho: float = Field(default=7.0, ge=1, le=1000, description="curvature of the noise levels between them")
    sigma_data: Level = Field(default=0.5, description="standard deviation of the (centred) data in [-1, 1]")
    data_mean: Real = Field(
        default=0.0,
        description="subtracted from data in [-1, 1] before noising, added back to samples; 0 in the paper",
    )

    def __post_init__(self) -> None:
        require(self.sigma_max > self.sigma_min, "sigma_max", self.sigma_max, "a number > sigma_min")


class Coefficients(NamedTuple):
    """c_skip, c_out, c_in, c_noise, each of the shape of sigma."""

    skip: Tensor
    out: Tensor
    input: Tensor
    noise: Tensor


def edm_coefficients(sigma: Tensor, process: NoiseProcess, boundary: float = 0.0) -> Coefficients:
    """EDM preconditioning (Karras et al. 2022, table 1); c_skip = 1 and c_out = 0 exactly at `boundary`."""
    data, above = process.sigma_data, sigma - boundary
    return Coefficients(
        skip=1 / (1 + (above / data) ** 2),
        out=data * above / (data**2 + sigma**2).sqrt(),
        input=1 / (data**2 + sigma**2).sqrt(),
        # sigma = 0 may be the boundary, where the network's output does not count but must be finite.
        noise=sigma.clamp_min(SMALLEST_SIGMA).log() / 4,
    )


def consistency_coefficients(sigma: Tensor, process: NoiseProcess) -> Coefficients:
    """Consistency preconditioning (Song et al. 2023, appendix C): that of EDM with its boundary at sigma_min."""
    return edm_coefficients(sigma, process, process.sigma_min)


def vp_coefficients(sigma: Tensor, process: NoiseProcess) -> Coefficients:
    """VP preconditioning (Karras et al. 2022, table 1): beta_d = 19.9, beta_min = 0.1, M = 1000."""
    time = ((VP_BETA_MIN**2 + 2 * VP_BETA_D * (1 + sigma**2).log()).sqrt() - VP_BETA_MIN) / VP_BETA_D
    return Coefficients(
        skip=torch.ones_like(sigma),
        out=-sigma,
        input=1 / (1 + sigma**2).sqrt(),
        noise=(VP_LEVELS - 1) * time,
    )


def ve_coefficients(sigma: Tensor, process: NoiseProcess) -> Coefficients:
    """VE preconditioning (Karras et al. 2022, table 1)."""
    return Coefficients(
        skip=torch.ones_like(sigma),
        out=sigma,
        input=torch.ones_like(sigma),
        noise=(0.5 * sigma.clamp_min(SMALLEST_SIGMA)).log(),
    )


COEFFICIENTS: dict[Preconditioning, Callable[[Tensor, NoiseProcess], Coefficients]] = {
    "consistency": consistency_coefficients,
    "edm": edm_coefficients,
    "vp": vp_coefficients,
    "ve": ve_coefficients,
}


def boundary(preconditioning: Preconditioning, process: NoiseProcess) -> float:
    """The noise level at which a model of this preconditioning is the identity."""
    return process.sigma_min if preconditioning == "consistency" else 0.0


def to_model_space(data: Tensor, process: NoiseProcess) -> Tensor:
    """Stored data (uint8 in 0..255, or float) to the centred float32 values that models see."""
    scaled = data.float() / 127.5 - 1 if data.dtype == torch.uint8 else data
    return scaled - process.data_mean


def clip_pixels(x: Tensor) -> Tensor:
    """Float [n, C, H, W] to uint8: clipped to [-1, 1], which is mapped to 0 .. 255, and rounded."""
    return ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def from_model_space(x: Tensor, process: NoiseProcess, dtype: torch.dtype) -> Tensor:
    """Model output to stored form: clipped to [-1, 1] and rounded for uint8, as it is for float."""
    shifted = x + process.data_mean
    if dtype != torch.uint8:
        return shifted
    return clip_pixels(shifted)


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """Values of shape [B] reshaped to [B, 1, ...] so that they broadcast against `like` of shape [B, ...]."""
    return values.reshape(-1, *[1] * (like.ndim - 1))
