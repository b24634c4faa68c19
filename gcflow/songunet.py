"""The U-Nets of EDM: DDPM++ and NCSN++ (Song et al. 2021, in the form of Karras et al. 2022, appendix F).

Names and shapes of parameters and buffers are those of EDM's `SongUNet`, so that state dicts of public models fit.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from gcflow.dropout import Dropout, number_layers

SKIP_SCALE = math.sqrt(0.5)
EMBEDDING_MULTIPLIER = 4
LARGEST_PERIOD = 10_000.0
FOURIER_SCALE = 16.0


class Variant(NamedTuple):
    """The differences between DDPM++ and NCSN++."""

    fourier_embedding: bool
    embedding_multiplier: int
    resample_filter: tuple[int, ...]
    residual_encoder: bool


VARIANTS = {
    "ddpm++": Variant(False, 1, (1, 1), False),
    "ncsn++": Variant(True, 2, (1, 3, 3, 1), True),
}


def xavier_uniform(weight: Tensor, gain: float) -> None:
    """Uniform with variance gain^2 2 / (fan in + fan out), as EDM counts fans."""
    receptive = math.prod(weight.shape[2:])
    bound = math.sqrt(6 / ((weight.shape[0] + weight.shape[1]) * receptive))
    nn.init.uniform_(weight, -bound * gain, bound * gain)


def linear(inputs: int, outputs: int, bias: bool = True) -> nn.Linear:
    """A linear layer in EDM's initialisation: Xavier weights, zero bias."""
    layer = nn.Linear(inputs, outputs, bias=bias)
    xavier_uniform(layer.weight.data, 1.0)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


class GroupNorm(nn.GroupNorm):
    """Group normalisation in min(32, C / 4) groups, with what stands before and after it.

    Attributes:
        fused: whether `gcflow.kernels` computes it, in one kernel; on the CPU they cannot.

    Raises:
        ValueError: the groups do not divide the channels.
    """

    def __init__(self, channels: int) -> None:
        groups = max(1, min(32, channels // 4))
        if channels % groups:
            raise ValueError(
                f"network.channels: {channels} in one layer do not split into {groups} groups; try a multiple of 32"
            )
        super().__init__(groups, channels, eps=1e-6)
        self.fused = False

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        residual: Tensor | None = None,
        embedding: Tensor | None = None,
        silu: bool = True,
        dropout: Dropout | None = None,
        keys: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The sum v = summed(x, residual), and dropout(SiLU(norm(v + embedding))), [B, C, H, W] each.

        Args:
            x: [B, C, H, W].
            residual: like x; not with `embedding`.
            embedding: [B, C].
            silu: whether SiLU follows.
            dropout: what follows then.
            keys: for it.
        """
        if self.fused:
            from gcflow.kernels import summed_norm

            return summed_norm(self, x, residual, embedding, SKIP_SCALE, silu, dropout, keys)
        x = summed(x, residual)
        h = super().forward(x if embedding is None else x + embedding[:, :, None, None])
        h = functional.silu(h) if silu else h
        return x, h if dropout is None else dropout(h, keys)


def summed(x: Tensor, residual: Tensor | None) -> Tensor:
    """(x + residual) sqrt(1/2); x without residual."""
    return x if residual is None else (x + residual) * SKIP_SCALE


class Convolution(nn.Module):
    """A convolution that may resample by two: before it, or after it where both are one linear map (`fused`).

    Args:
        inputs: channels in.
        outputs: channels out.
        kernel: its side, odd.
        resample: `up`, `down` or None.
        taps: the resampling filter along one axis.
        fused: pad once for filter and kernel, and filter after the convolution (NCSN++'s residual encoder).
        gain: of the initial weights.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        resample: str | None = None,
        taps: tuple[int, ...] = (1, 1),
        fused: bool = False,
        gain: float = 1.0,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(outputs))
        xavier_uniform(self.weight.data, gain)
        self.resample, self.fused, self.box = resample, fused, taps == (1, 1)
        self.padding = kernel // 2
        self.filter_padding = (len(taps) - 1) // 2
        self.resample_filter: Tensor | None
        outer = torch.tensor(taps, dtype=torch.float32)
        outer = outer[:, None] * outer / outer.sum() ** 2
        self.register_buffer("resample_filter", outer[None, None] if resample else None)

    def _filter(self, channels: int, dtype: torch.dtype) -> Tensor:
        assert self.resample_filter is not None
        return self.resample_filter.to(dtype).expand(channels, 1, -1, -1)

    def _down(self, x: Tensor, padding: int) -> Tensor:
        if self.box and padding == 0:
            return functional.avg_pool2d(x, 2)
        return functional.conv2d(x, self._filter(x.shape[1], x.dtype), groups=x.shape[1], stride=2, padding=padding)

    def _up(self, x: Tensor) -> Tensor:
        if self.box:
            return functional.interpolate(x, scale_factor=2.0, mode="nearest")
        kernel = 4 * self._filter(x.shape[1], x.dtype)
        return functional.conv_transpose2d(x, kernel, groups=x.shape[1], stride=2, padding=self.filter_padding)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, C, H, W] to [B, C', H', W'], H' = H, 2 H or H / 2."""
        if self.fused and self.resample == "down":
            x = functional.conv2d(x, self.weight, padding=self.padding + self.filter_padding)
            return self._down(x, 0) + self.bias[:, None, None]
        if self.resample == "down":
            x = self._down(x, self.filter_padding)
        elif self.resample == "up":
            x = self._up(x)
        return functional.conv2d(x, self.weight, self.bias, padding=self.padding)


class SongBlock(nn.Module):
    """norm - SiLU - conv - (+ noise) - norm - SiLU - dropout - conv, plus the skip, times sqrt(1/2); then attention.

    Args:
        inputs: channels in.
        outputs: channels out.
        embedding: width of the noise embedding.
        rate: dropout rate.
        attention: whether self-attention with one head follows.
        resample: `up`, `down` or None, in the first convolution and the skip.
        taps: the resampling filter along one axis.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        embedding: int,
        rate: float,
        attention: bool = False,
        resample: str | None = None,
        taps: tuple[int, ...] = (1, 1),
    ) -> None:
        super().__init__()
        self.norm0 = GroupNorm(inputs)
        self.conv0 = Convolution(inputs, outputs, 3, resample, taps)
        self.affine = linear(embedding, outputs)
        self.norm1 = GroupNorm(outputs)
        self.dropout = Dropout(rate)
        self.conv1 = Convolution(outputs, outputs, 3, gain=1e-5)
        changes = inputs != outputs or resample is not None
        self.skip = Convolution(inputs, outputs, 1, resample, taps) if changes else None
        self.attends = attention
        if attention:
            self.norm2 = GroupNorm(outputs)
            self.qkv = Convolution(outputs, 3 * outputs, 1, gain=math.sqrt(0.2))
            self.proj = Convolution(outputs, outputs, 1, gain=1e-5)

    def forward(
        self, x: Tensor, residual: Tensor | None, embedding: Tensor, keys: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Takes a sum that is not made yet, `summed(x, residual)` [B, C, H, W], and embedding [B, E].

        Returns:
            That sum, and the two terms of the block's own, [B, C', H', W'] each.
        """
        x, h = self.norm0(x, residual)
        _, h = self.norm1(self.conv0(h), embedding=self.affine(embedding), dropout=self.dropout, keys=keys)
        h = self.conv1(h)
        skipped = self.skip(x) if self.skip is not None else x
        if not self.attends:
            return x, h, skipped
        h, normed = self.norm2(h, skipped, silu=False)
        return x, h, self._attention(normed)

    def _attention(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        # Channel c of query, key and value are neighbours in EDM's weights.
        q, k, v = self.qkv(x).reshape(batch, channels, 3, height * width).unbind(2)
        with torch.autocast(x.device.type, enabled=False):
            weights = (q.float().transpose(1, 2) @ (k.float() / math.sqrt(channels))).softmax(2)
        mixed = v @ weights.to(v.dtype).transpose(1, 2)
        return self.proj(mixed.reshape(batch, channels, height, width))


class PositionalEmbedding(nn.Module):
    """Sines, then cosines, of the noise condition at geometric frequencies from 1 to 1/10000: [B] to [B, channels]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        exponents = torch.arange(half, dtype=torch.float32) / max(1, half - 1)
        self.frequencies: Tensor
        self.register_buffer("frequencies", (1 / LARGEST_PERIOD) ** exponents, persistent=False)

    def forward(self, condition: Tensor) -> Tensor:
        """Embeds c_noise."""
        angles = condition[:, None] * self.frequencies
        return torch.cat([angles.sin(), angles.cos()], dim=1)


class FourierEmbedding(nn.Module):
    """Sines, then cosines, of the noise condition at random fixed frequencies, N(0, 16^2): [B] to [B, channels]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.freqs: Tensor
        self.register_buffer("freqs", torch.randn(channels // 2) * FOURIER_SCALE)

    def forward(self, condition: Tensor) -> Tensor:
        """Embeds c_noise."""
        angles = condition[:, None] * (2 * math.pi * self.freqs)
        return torch.cat([angles.sin(), angles.cos()], dim=1)


class SongUNet(nn.Module):
    """DDPM++ or NCSN++.

    Args:
        shape: [C, H, W] of one image, H = W divisible by 2^(levels - 1).
        variant: which of the two.
        channels: that `multipliers` refer to.
        multipliers: one per resolution level, from the finest.
        blocks: residual blocks of each level.
        dropout: rate of each level.
        attention: sides (in pixels) of the levels whose blocks attend, besides the bottleneck.
        label_dim: size of the class embedding; 0 leaves it out.
        augment_dim: size of the augmentation embedding; 0 leaves it out.

    Raises:
        ValueError: sides or channels that the levels or the norms cannot split.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        variant: Variant,
        channels: int,
        multipliers: tuple[int, ...],
        blocks: tuple[int, ...],
        dropout: tuple[float, ...],
        attention: tuple[int, ...] = (),
        label_dim: int = 0,
        augment_dim: int = 0,
    ) -> None:
        super().__init__()
        image_channels, finest = shape[0], shape[1]
        taps = variant.resample_filter
        embedding = EMBEDDING_MULTIPLIER * channels
        noise = variant.embedding_multiplier * channels

        self.map_noise = FourierEmbedding(noise) if variant.fourier_embedding else PositionalEmbedding(noise)
        self.map_label = linear(label_dim, noise) if label_dim else None
        self.map_augment = linear(augment_dim, noise, bias=False) if augment_dim else None
        self.map_layer0 = linear(noise, embedding)
        self.map_layer1 = linear(embedding, embedding)
        self.enc = nn.ModuleDict()
        self.dec = nn.ModuleDict()
        # The decoder's blocks to whose input the encoder's last output not yet used is joined.
        self.joined: set[str] = set()

        def block(inputs: int, outputs: int, rate: float, attends: bool = False, to: str | None = None) -> SongBlock:
            return SongBlock(inputs, outputs, embedding, rate, attends, to, taps)

        def add(level: int, width: int, auxiliary: int) -> int:
            """Adds a level's encoder, all coarser levels, and its decoder, to which every output of the encoder goes.

            width, auxiliary: channels of what comes from the finer level. Returns those of what goes back to it.
            """
            side, outputs, rate = finest >> level, channels * multipliers[level], dropout[level]
            name, attends = f"{side}x{side}", side in attention
            if level == 0:
                self.enc[f"{name}_conv"] = Convolution(image_channels, width, 3)
            else:
                self.enc[f"{name}_down"] = block(width, width, rate, to="down")
                if variant.residual_encoder:
                    residual = Convolution(auxiliary, width, 3, "down", taps, fused=True)
                    self.enc[f"{name}_aux_residual"], auxiliary = residual, width
            encoded = [width]
            for index in range(blocks[level]):
                self.enc[f"{name}_block{index}"] = block(encoded[-1], outputs, rate, attends)
                encoded.append(outputs)

            if level + 1 < len(multipliers):
                width = add(level + 1, encoded[-1], auxiliary)
                self.dec[f"{name}_up"] = block(width, width, rate, to="up")
            else:
                width = encoded[-1]
                self.dec[f"{name}_in0"] = block(width, width, rate, attends=True)
                self.dec[f"{name}_in1"] = block(width, width, rate)
            for index, skipped in enumerate(encoded[::-1]):
                last = index == blocks[level]
                self.dec[f"{name}_block{index}"] = block(width + skipped, outputs, rate, last and attends)
                self.joined.add(f"{name}_block{index}")
                width = outputs
            return width

        width = add(0, channels, image_channels)
        self.dec[f"{finest}x{finest}_aux_norm"] = GroupNorm(width)
        self.dec[f"{finest}x{finest}_aux_conv"] = Convolution(width, image_channels, 3, gain=1e-5)
        number_layers(self)

    def _embedding(self, condition: Tensor, class_labels: Tensor | None, augment_labels: Tensor | None) -> Tensor:
        embedding = self.map_noise(condition)
        if self.map_label is not None:
            size = self.map_label.in_features
            labels = class_labels if class_labels is not None else condition.new_zeros(1, size)
            embedding = embedding + self.map_label(labels * math.sqrt(size))
        if self.map_augment is not None:
            size = self.map_augment.in_features
            labels = augment_labels if augment_labels is not None else condition.new_zeros(1, size)
            embedding = embedding + self.map_augment(labels)
        return functional.silu(self.map_layer1(functional.silu(self.map_layer0(embedding))))

    def forward(
        self,
        x: Tensor,
        condition: Tensor,
        dropout: Tensor | None = None,
        class_labels: Tensor | None = None,
        augment_labels: Tensor | None = None,
    ) -> Tensor:
        """The network's output, shape of x.

        Args:
            x: images [B, C, H, W].
            condition: c_noise [B].
            dropout: keys of the samples, int32 [B]; None leaves dropout out.
            class_labels: one-hot [B, label_dim], for a network with class embedding; None means all zero, no class.
            augment_labels: [B, augment_dim], for a network with augmentation embedding; None means all
                zero, no augmentation.
        """
        embedding = self._embedding(condition, class_labels, augment_labels)
        skips: list[Tensor] = []
        auxiliary, residual = x, None
        for name, module in self.enc.items():
            if isinstance(module, SongBlock):
                before, x, residual = module(x, residual, embedding, dropout)
                skips.append(before)
            elif name.endswith("aux_residual"):
                x = auxiliary = (summed(x, residual) + module(auxiliary)) * SKIP_SCALE
                residual = None
            else:
                x = module(x)
        x, residual = summed(x, residual), None
        skips.append(x)
        for name, module in self.dec.items():
            if name in self.joined:
                x, residual = torch.cat([summed(x, residual), skips.pop()], dim=1), None
            if isinstance(module, SongBlock):
                _, x, residual = module(x, residual, embedding, dropout)
            elif isinstance(module, GroupNorm):
                _, x = module(x, residual)
            else:
                x = module(x)
        return x
