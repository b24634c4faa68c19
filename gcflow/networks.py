"""The networks inside the preconditioning: EDM's U-Nets (`gcflow.songunet`), a residual MLP (`gcflow.mlp`)."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from gcflow import register
from gcflow.options import Count, Options, require

if TYPE_CHECKING:
    from torch import nn

Rate = Annotated[float, Field(ge=0, lt=1)]


@register.network.contract
class Network(Options):
    """The network inside the preconditioning. Its name is its field `architecture`.

    A field `dropout` may differ between a run and the run that it starts from.
    """

    if TYPE_CHECKING:

        @property
        def architecture(self) -> str:
            """Its name."""

    def check(self, shape: tuple[int, ...]) -> None:
        """Checks that it fits samples of `shape`, before anything is made.

        Raises:
            ValueError: it does not.
        """

    def build(self, shape: tuple[int, ...]) -> nn.Module:
        """The untrained network for samples of `shape`, a function of torch's global generator alone.

        It maps (x [B, ...], c_noise [B], dropout keys int32 [B] or None) to the shape of x. Dropout is a function of
        the keys (`gcflow.dropout`); a network without it ignores them.

        Raises:
            ValueError: it does not fit samples of this shape.
        """
        raise NotImplementedError


@register.network
class NetworkConfig(Network):
    """gcflow's own networks (`gcflow.networks`): two U-Nets of EDM, for images, and an MLP on the flat sample."""

    architecture: Literal["ddpm++", "ncsn++", "mlp"] = Field(
        description="`ddpm++`, `ncsn++`: EDM's U-Nets, for images; `mlp`: residual MLP, for any sample"
    )
    channels: int = Field(
        ge=1, le=10**6, description="width: of the finest level of a U-Net (a multiple of 4), of an MLP's layers"
    )
    blocks: Count | tuple[Count, ...] = Field(
        description="residual blocks: one number, or one per level of a U-Net, from the finest"
    )
    multipliers: tuple[Count, ...] = Field(
        default=(1,), min_length=1, description="of `channels`, one per level of a U-Net, from the finest"
    )
    attention: tuple[Count, ...] = Field(
        default=(), description="sides (pixels) of the levels whose blocks attend, besides the bottleneck of a U-Net"
    )
    dropout: Rate | tuple[Rate, ...] = Field(
        default=0.0, description="dropout rate: one number, or one per level of a U-Net, from the finest"
    )
    label_dim: int = Field(default=0, ge=0, le=10**6, description="size of EDM's class embedding; 0 leaves it out")
    augment_dim: int = Field(
        default=0, ge=0, le=10**6, description="size of EDM's augmentation embedding; 0 leaves it out"
    )

    def __post_init__(self) -> None:
        levels = len(self.multipliers)
        for name in ("blocks", "dropout"):
            value = getattr(self, name)
            if isinstance(value, tuple):
                require(self.architecture != "mlp", name, list(value), "one value for an mlp, which has no levels")
                require(len(value) == levels, name, list(value), f"one value, or one per level ({levels} multipliers)")
        if self.architecture != "mlp":
            require(self.channels % 4 == 0, "channels", self.channels, "a multiple of 4 for a U-Net")
            return
        unused: dict[str, Any] = {"attention": (), "multipliers": (1,), "label_dim": 0, "augment_dim": 0}
        for name, default in unused.items():
            value = getattr(self, name)
            require(value == default, name, list(value) if isinstance(value, tuple) else value, "no value for an mlp")

    @property
    def blocks_per_level(self) -> tuple[int, ...]:
        """Residual blocks of each level."""
        return self.blocks if isinstance(self.blocks, tuple) else (self.blocks,) * len(self.multipliers)

    @property
    def dropout_per_level(self) -> tuple[float, ...]:
        """Dropout rate of each level."""
        return self.dropout if isinstance(self.dropout, tuple) else (self.dropout,) * len(self.multipliers)

    def check(self, shape: tuple[int, ...]) -> None:
        """A U-Net is for square images whose side its levels can halve; it attends at these sides.

        Raises:
            ValidationError: it does not fit.
        """
        if self.architecture == "mlp":
            return
        halvings = 2 ** (len(self.multipliers) - 1)
        square = len(shape) == 3 and shape[1] == shape[2]
        expected = f"mlp, or square images instead of {list(shape)}"
        require(square, "architecture", self.architecture, expected)
        expected = f"so few that the side {shape[1]} of the images can be divided by {halvings}"
        require(shape[1] % halvings == 0, "multipliers", list(self.multipliers), expected)
        sides = [shape[1] >> level for level in range(len(self.multipliers))]
        require({*self.attention} <= {*sides}, "attention", list(self.attention), f"sides of the levels: {sides}")

    def build(self, shape: tuple[int, ...]) -> nn.Module:
        """The network for images [C, H, W] or points [d].

        Raises:
            ValidationError: see `check`.
        """
        self.check(shape)
        if self.architecture == "mlp":
            from gcflow.mlp import ResidualMLP

            (blocks,), (rate,) = self.blocks_per_level, self.dropout_per_level
            return ResidualMLP(shape, self.channels, blocks, rate)
        from gcflow.songunet import VARIANTS, SongUNet

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
    without: Any = {"dropout": 0.0} if "dropout" in type(network).__pydantic_fields__ else {}
    return dataclasses.replace(network, **without)
