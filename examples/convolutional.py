"""A small network of convolutions, each shifted and scaled by the noise level."""

from typing import Literal

from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import silu

from gcflow import register
from gcflow.mlp import NoiseEmbedding
from gcflow.networks import Network


class Layers(nn.Module):
    """Maps images [B, colours, H, W] and the noise condition [B] to the shape of the images."""

    def __init__(self, colours: int, channels: int, layers: int) -> None:
        super().__init__()
        self.embedding = NoiseEmbedding(channels)
        self.first = nn.Conv2d(colours, channels, 3, padding=1)
        self.inner = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(layers))
        self.affine = nn.ModuleList(nn.Linear(channels, 2 * channels) for _ in range(layers))
        self.last = nn.Conv2d(channels, colours, 3, padding=1)

    def forward(self, x: Tensor, condition: Tensor, keys: Tensor | None = None) -> Tensor:
        """The network's output; there is no dropout, whose keys are ignored."""
        embedding, h = self.embedding(condition), self.first(x)
        for layer, affine in zip(self.inner, self.affine, strict=True):
            scale, shift = affine(embedding)[:, :, None, None].chunk(2, dim=1)
            h = h + layer(silu(h * (1 + scale) + shift))
        return self.last(silu(h))


@register.network
class Convolutional(Network):
    """Layers of 3x3 convolutions."""

    channels: int = Field(ge=1, description="of every layer")
    layers: int = Field(default=2, ge=1, description="besides the first and the last")
    architecture: Literal["convolutional"] = "convolutional"

    def build(self, shape: tuple[int, ...]) -> nn.Module:
        """The network for images of any size."""
        return Layers(shape[0], self.channels, self.layers)
