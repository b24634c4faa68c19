"""A residual MLP on the flattened sample, with the noise level as a condition."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from gcflow.dropout import Dropout, number_layers

EMBEDDING = 64


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
