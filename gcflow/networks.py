"""The networks inside the preconditioning: EDM's U-Nets (`gcflow.songunet`) for images, a residual MLP for any data."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from gcflow import register
from gcflow.dropout import Dropout, number_layers
from gcflow.options import Strict, require
from gcflow.songunet import VARIANTS, SongUNet

EMBEDDING = 64


@register.network.contract
class Network(Strict):
    """The network inside the preconditioning. Its name is its field `architecture`.

    A field `dropout` may differ between a run and the run that it starts from.
    """

    architecture: str

    def build(self, shape: tuple[int, ...]) -> nn.Module:
        """The untrained network for samples of `shape`, a function of torch's global generator alone.

        It maps (x [B, ...], c_noise [B], dropout keys int32 [B] or None) to the shape of x. Dropout is a function of
        the keys (`gcflow.dropout`); a network without it ignores them.

        Raises:
            ValueError: it does not fit samples of this shape.
        """
        raise NotImplementedError


def zero_initialised(layer: nn.Linear) -> nn.Linear:
    """The layer with weights and bias set to zero, so that a residual branch starts as the identity."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


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


class ResidualMLPBlock(nn.Module):
    """norm - linear - (scale, shift by the noise) - SiLU - dropout - linear, added to the input."""

    def __init__(self, width: int, embedding: int, rate: float) -> None:
        super().__init__()
        self.dropout = Dropout(rate)
        self.norm = nn.LayerNorm(width)
        self.linear0 = nn.Linear(width, width)
        self.affine = nn.Linear(embedding, 2 * width)
        self.linear1 = zero_initialised(nn.Linear(width, width))

    def forward(self, x: Tensor, embedding: Tensor, keys: Tensor | None) -> Tensor:
        """X [B, W], embedding [B, E] to [B, W]."""
        scale, shift = self.affine(embedding).chunk(2, dim=1)
        h = functional.silu(torch.addcmul(shift, self.linear0(self.norm(x)), scale + 1))
        return x + self.linear1(self.dropout(h, keys))


class ResidualMLP(nn.Module):
    """`blocks` residual blocks on the flattened sample, each with dropout of this rate."""

    def __init__(self, shape: tuple[int, ...], width: int, blocks: int, rate: float) -> None:
        super().__init__()
        dimension = math.prod(shape)
        self.embedding = NoiseEmbedding(width)
        self.input = nn.Linear(dimension, width)
        self.blocks = nn.ModuleList(ResidualMLPBlock(width, width, rate) for _ in range(blocks))
        self.output_norm = nn.LayerNorm(width)
        self.output = zero_initialised(nn.Linear(width, dimension))
        number_layers(self)

    def forward(self, x: Tensor, condition: Tensor, keys: Tensor | None = None) -> Tensor:
        """X [B, ...], condition [B], dropout keys [B] or None."""
        embedding = self.embedding(condition)
        h = self.input(x.flatten(1))
        for block in self.blocks:
            h = block(h, embedding, keys)
        return self.output(functional.silu(self.output_norm(h))).reshape(x.shape)


@register.network
@dataclass(frozen=True)
class NetworkConfig(Network):
    """gcflow's own networks (`gcflow.networks`).

    `ddpm++`, `ncsn++`: the two U-Nets of EDM (`gcflow.songunet`), for images. `mlp`: residual MLP on the flat sample.
    blocks, dropout: one value, or one per resolution level (U-Nets only), from the finest.
    multipliers: of `channels`, one per level. attention: sides (in pixels) of the levels whose blocks attend, besides
    the bottleneck. label_dim, augment_dim: sizes of EDM's class and augmentation embeddings; 0 leaves them out.
    """

    architecture: Literal["ddpm++", "ncsn++", "mlp"]
    channels: int
    blocks: int | tuple[int, ...]
    multipliers: tuple[int, ...] = (1,)
    attention: tuple[int, ...] = ()
    dropout: float | tuple[float, ...] = 0.0
    label_dim: int = 0
    augment_dim: int = 0

    def __post_init__(self) -> None:
        require(self.channels >= 1, "channels", self.channels, "an integer >= 1")
        require(
            len(self.multipliers) >= 1 and min(self.multipliers) >= 1,
            "multipliers",
            list(self.multipliers),
            "at least one integer, each >= 1",
        )
        for name in ("blocks", "dropout"):
            value = getattr(self, name)
            if isinstance(value, tuple):
                levels = len(self.multipliers)
                require(self.architecture != "mlp", name, list(value), "one value for an mlp, which has no levels")
                require(len(value) == levels, name, list(value), f"one value, or one per level ({levels} multipliers)")
        require(min(self.blocks_per_level) >= 1, "blocks", self.blocks, "integers >= 1")
        require(all(0 <= rate < 1 for rate in self.dropout_per_level), "dropout", self.dropout, "numbers in [0, 1)")
        require(self.label_dim >= 0, "label_dim", self.label_dim, "an integer >= 0")
        require(self.augment_dim >= 0, "augment_dim", self.augment_dim, "an integer >= 0")
        if self.architecture != "mlp":
            require(self.channels % 4 == 0, "channels", self.channels, "a multiple of 4 for a U-Net")
        else:
            require(not self.attention, "attention", list(self.attention), "no value for an mlp")
            require(self.multipliers == (1,), "multipliers", list(self.multipliers), "no value for an mlp")
            require(self.label_dim == 0, "label_dim", self.label_dim, "0 for an mlp")
            require(self.augment_dim == 0, "augment_dim", self.augment_dim, "0 for an mlp")

    @property
    def blocks_per_level(self) -> tuple[int, ...]:
        """Residual blocks of each level."""
        return self.blocks if isinstance(self.blocks, tuple) else (self.blocks,) * len(self.multipliers)

    @property
    def dropout_per_level(self) -> tuple[float, ...]:
        """Dropout rate of each level."""
        return self.dropout if isinstance(self.dropout, tuple) else (self.dropout,) * len(self.multipliers)

    def build(self, shape: tuple[int, ...]) -> nn.Module:
        """The network for images [C, H, W] or points [d].

        Raises:
            ValueError: a U-Net for data that are not images, or whose size its levels cannot halve.
        """
        if self.architecture == "mlp":
            (blocks,), (rate,) = self.blocks_per_level, self.dropout_per_level
            return ResidualMLP(shape, self.channels, blocks, rate)
        halvings = 2 ** (len(self.multipliers) - 1)
        if len(shape) != 3 or shape[1] != shape[2] or shape[1] % halvings:
            raise ValueError(
                f"network.architecture {self.architecture} needs square images with sides divisible by {halvings}, "
                f"not {list(shape)}"
            )
        sides = [shape[1] >> level for level in range(len(self.multipliers))]
        for side in self.attention:
            if side not in sides:
                raise ValueError(f"network.attention has {side}, expected sides of the levels: {sides}")
        return SongUNet(
            shape,
            VARIANTS[self.architecture],
            self.channels,
            self.multipliers,
            self.blocks_per_level,
            self.dropout_per_level,
            self.attention,
            self.label_dim,
            self.augment_dim,
        )


def without_dropout(network: Network) -> Network:
    """The same network as far as its speed and its weights go."""
    if any(option.name == "dropout" for option in dataclasses.fields(network)):  # type: ignore[arg-type]
        return dataclasses.replace(network, dropout=0.0)  # type: ignore[type-var]
    return network
