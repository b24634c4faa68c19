"""Preconditioning: f(x, sigma) = c_skip(sigma) x + c_out(sigma) F(c_in(sigma) x, c_noise(sigma))."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from gcflow.config import NoiseProcess


class Coefficients(NamedTuple):
    """c_skip, c_out, c_in, c_noise, each of the shape of sigma."""

    skip: Tensor
    out: Tensor
    input: Tensor
    noise: Tensor


def consistency_coefficients(sigma: Tensor, process: NoiseProcess) -> Coefficients:
    """Consistency preconditioning (paper, section 2); c_skip = 1 and c_out = 0 exactly at sigma_min."""
    data, above = process.sigma_data, sigma - process.sigma_min
    return Coefficients(
        skip=1 / (1 + (above / data) ** 2),
        out=data * above / (data**2 + sigma**2).sqrt(),
        input=1 / (data**2 + sigma**2).sqrt(),
        noise=sigma.log() / 4,
    )


def denoising_coefficients(sigma: Tensor, process: NoiseProcess) -> Coefficients:
    """EDM preconditioning of a denoiser (Karras et al. 2022, table 1)."""
    data = process.sigma_data
    return Coefficients(
        skip=data**2 / (data**2 + sigma**2),
        out=sigma * data / (data**2 + sigma**2).sqrt(),
        input=1 / (data**2 + sigma**2).sqrt(),
        noise=sigma.log() / 4,
    )


COEFFICIENTS = {"consistency": consistency_coefficients, "denoising": denoising_coefficients}


def to_model_space(data: Tensor, process: NoiseProcess) -> Tensor:
    """Stored data (uint8 in 0..255, or float) to the centred float32 values that models see."""
    scaled = data.float() / 127.5 - 1 if data.dtype == torch.uint8 else data
    return scaled - process.data_mean


def from_model_space(x: Tensor, process: NoiseProcess, dtype: torch.dtype) -> Tensor:
    """Model output to stored form: clipped to [-1, 1] and rounded for uint8, as it is for float."""
    shifted = x + process.data_mean
    if dtype != torch.uint8:
        return shifted
    return ((shifted.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """Values of shape [B] reshaped to [B, 1, ...] so that they broadcast against `like` of shape [B, ...]."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


class PreconditionedNetwork(nn.Module):
    """A network with its preconditioning: a consistency model f_theta or a denoiser D_phi.

    Args:
        network: maps (x [B, ...], c_noise [B], dropout generator or None) to the shape of x.
        kind: which preconditioning.
        process: the noise process that the network was made for.
    """

    def __init__(self, network: nn.Module, kind: Literal["consistency", "denoising"], process: NoiseProcess) -> None:
        super().__init__()
        self.network = network
        self.kind = kind
        self.process = process

    def forward(self, x: Tensor, sigma: Tensor, dropout: torch.Generator | None = None) -> Tensor:
        """Predicts the clean endpoint, shape of x, from x [B, ...] at noise levels sigma [B].

        Dropout is applied only when its generator is given, so that equal generators give equal masks on any device.
        """
        c = COEFFICIENTS[self.kind](sigma, self.process)
        inner = self.network(per_sample(c.input, x) * x, c.noise, dropout)
        return per_sample(c.skip, x) * x + per_sample(c.out, x) * inner
