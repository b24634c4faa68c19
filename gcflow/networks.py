"""Small networks: a U-Net of residual blocks for small images, a residual MLP for flat data.

Each maps (x, c_noise [B], dropout generator or None) to the shape of x. Dropout masks come from that generator alone.
"""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from gcflow.config import NetworkConfig

EMBEDDING = 64


def dropout(x: Tensor, rate: float, generator: torch.Generator | None) -> Tensor:
    """Inverted dropout with a mask drawn from `generator`; the identity without one."""
    if generator is None or rate == 0:
        return x
    keep = torch.rand(x.shape, generator=generator, device=x.device, dtype=x.dtype) >= rate
    return x * keep / (1 - rate)


def zero_initialised(layer: nn.Linear | nn.Conv2d) -> nn.Linear | nn.Conv2d:
    """The layer with weights and bias set to zero, so that a residual branch starts as the identity."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def group_norm(channels: int) -> nn.GroupNorm:
    """Group normalisation in at most 8 groups of equal size."""
    return nn.GroupNorm(math.gcd(8, channels), channels)


class NoiseEmbedding(nn.Module):
    """Sinusoids of the noise condition, then two linear layers: [B] to [B, width]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.frequencies: Tensor
        self.register_buffer("frequencies", torch.logspace(-1, 0.5, EMBEDDING // 2), persistent=False)
        self.layers = nn.Sequential(nn.Linear(EMBEDDING, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())

    def forward(self, condition: Tensor) -> Tensor:
        """Embeds c_noise."""
        angles = condition[:, None] * self.frequencies
        return self.layers(torch.cat([angles.cos(), angles.sin()], dim=1))


class ResidualBlock(nn.Module):
    """norm - SiLU - conv - (scale, shift by the noise) - norm - SiLU - dropout - conv, added to the input."""

    def __init__(self, channels_in: int, channels_out: int, embedding: int, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.norm0 = group_norm(channels_in)
        self.conv0 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.affine = nn.Linear(embedding, 2 * channels_out)
        self.norm1 = group_norm(channels_out)
        self.conv1 = zero_initialised(nn.Conv2d(channels_out, channels_out, 3, padding=1))
        self.skip = nn.Conv2d(channels_in, channels_out, 1) if channels_in != channels_out else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor, generator: torch.Generator | None) -> Tensor:
        """X [B, C, H, W], embedding [B, E] to [B, C', H, W]."""
        h = self.conv0(functional.silu(self.norm0(x)))
        scale, shift = self.affine(embedding)[:, :, None, None].chunk(2, dim=1)
        h = functional.silu(torch.addcmul(shift, self.norm1(h), scale + 1))
        return self.skip(x) + self.conv1(dropout(h, self.rate, generator))


class Blocks(nn.ModuleList):
    """Residual blocks applied one after the other."""

    def forward(self, x: Tensor, embedding: Tensor, generator: torch.Generator | None) -> Tensor:
        """Maps x [B, C, H, W] and embedding [B, E] to [B, C', H, W]."""
        for block in self:
            x = block(x, embedding, generator)
        return x


class UNet(nn.Module):
    """A compact U-Net: `blocks` residual blocks per level on the way down, as many on the way up, one skip per level.

    With a single multiplier it is a plain residual network at full resolution.
    """

    def __init__(self, config: NetworkConfig, image_channels: int) -> None:
        super().__init__()
        widths = [config.channels * m for m in config.multipliers]
        embedding = 4 * config.channels
        self.embedding = NoiseEmbedding(embedding)
        self.input = nn.Conv2d(image_channels, widths[0], 3, padding=1)

        def stack(first: int, width: int) -> Blocks:
            sizes = [first, *[width] * config.blocks]
            return Blocks(ResidualBlock(a, b, embedding, config.dropout) for a, b in pairwise(sizes))

        self.down = nn.ModuleList(stack(a, b) for a, b in pairwise([widths[0], *widths]))
        self.up = nn.ModuleList(stack(deep + wide, wide) for wide, deep in pairwise(widths))
        self.output_norm = group_norm(widths[0])
        self.output = zero_initialised(nn.Conv2d(widths[0], image_channels, 3, padding=1))

    def forward(self, x: Tensor, condition: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """X [B, C, H, W] with H and W divisible by 2^(levels - 1), and condition [B] to the shape of x."""
        embedding = self.embedding(condition)
        h = self.input(x.contiguous(memory_format=torch.channels_last))
        skips = []
        for level, blocks in enumerate(self.down):
            if level > 0:
                skips.append(h)
                h = functional.avg_pool2d(h, 2)
            h = blocks(h, embedding, generator)
        for blocks in reversed(self.up):
            h = torch.cat([functional.interpolate(h, scale_factor=2.0), skips.pop()], dim=1)
            h = blocks(h, embedding, generator)
        return self.output(functional.silu(self.output_norm(h)))


class ResidualMLPBlock(nn.Module):
    """norm - linear - (scale, shift by the noise) - SiLU - dropout - linear, added to the input."""

    def __init__(self, width: int, embedding: int, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.norm = nn.LayerNorm(width)
        self.linear0 = nn.Linear(width, width)
        self.affine = nn.Linear(embedding, 2 * width)
        self.linear1 = zero_initialised(nn.Linear(width, width))

    def forward(self, x: Tensor, embedding: Tensor, generator: torch.Generator | None) -> Tensor:
        """X [B, W], embedding [B, E] to [B, W]."""
        scale, shift = self.affine(embedding).chunk(2, dim=1)
        h = functional.silu(torch.addcmul(shift, self.linear0(self.norm(x)), scale + 1))
        return x + self.linear1(dropout(h, self.rate, generator))


class ResidualMLP(nn.Module):
    """`blocks` residual blocks of width `channels` on the flattened sample."""

    def __init__(self, config: NetworkConfig, shape: tuple[int, ...]) -> None:
        super().__init__()
        dimension, width = math.prod(shape), config.channels
        self.embedding = NoiseEmbedding(width)
        self.input = nn.Linear(dimension, width)
        self.blocks = nn.ModuleList(ResidualMLPBlock(width, width, config.dropout) for _ in range(config.blocks))
        self.output_norm = nn.LayerNorm(width)
        self.output = zero_initialised(nn.Linear(width, dimension))

    def forward(self, x: Tensor, condition: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """X [B, ...], condition [B]."""
        embedding = self.embedding(condition)
        h = self.input(x.flatten(1))
        for block in self.blocks:
            h = block(h, embedding, generator)
        return self.output(functional.silu(self.output_norm(h))).reshape(x.shape)


def build_network(config: NetworkConfig, shape: tuple[int, ...]) -> nn.Module:
    """The network of `config` for samples of `shape` ([C, H, W] for images, [d] for points).

    Raises:
        ValueError: a U-Net for data that are not images, or whose size its levels cannot halve.
    """
    if config.architecture == "mlp":
        return ResidualMLP(config, shape)
    halvings = 2 ** (len(config.multipliers) - 1)
    if len(shape) != 3 or shape[1] % halvings or shape[2] % halvings:
        raise ValueError(f"network.architecture unet needs images with sides divisible by {halvings}, not {shape}")
    network = UNet(config, shape[0])
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network
