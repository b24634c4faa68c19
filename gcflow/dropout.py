"""Dropout whose mask is a function of a key per sample, of the layer and of the position, on every device.

Student and teacher see the same mask when they are given the same keys; a sample sees the same mask whichever process
or micro-batch it is in, with and without torch.compile. The mask is a counter-based hash (xor, multiply, shift), in
place of a generator's state.
"""

import torch
from torch import Tensor, nn

from gcflow.randomness import generator


def _signed(constant: int) -> int:
    return constant - (1 << 32) if constant >= 1 << 31 else constant


# Constants of MurmurHash3's finaliser, and the golden ratio; as int32, whose products wrap around.
MULTIPLIERS = (_signed(0x85EBCA6B), _signed(0xC2B2AE35))
GOLDEN = _signed(0x9E3779B1)


def _mixed(h: Tensor) -> Tensor:
    for multiplier, shift in zip(MULTIPLIERS, (13, 16), strict=True):
        h = h * multiplier
        h = h ^ ((h >> shift) & ((1 << (32 - shift)) - 1))
    return h


def dropout_keys(seed: int, step: int, batch: int) -> Tensor:
    """One key per sample of the global batch: int32 [batch], on the CPU."""
    source = generator(seed, step, "dropout")
    return torch.randint(-(1 << 31), 1 << 31, (batch,), generator=source, dtype=torch.int64).int()


def keep_mask(keys: Tensor, layer: int, size: int, rate: float) -> Tensor:
    """Which of the `size` values of each sample are kept: bool [B, size], each True with probability 1 - rate.

    Args:
        keys: int32 [B].
        layer: number of the dropout layer in its network.
        size: values per sample.
        rate: in [0, 1); rounded to a multiple of 2^-16.
    """
    # Two 16-bit numbers per hash: half the work.
    position = torch.arange((size + 1) // 2, dtype=torch.int32, device=keys.device)
    position = _mixed((position + (layer + 1) * 0x10001) * GOLDEN)
    halves = _mixed(position ^ keys[:, None]).view(torch.int16)
    return halves[:, :size] >= round(rate * (1 << 16)) - (1 << 15)


class Dropout(nn.Module):
    """Inverted dropout on [B, features] or [B, C, H, W]; the identity without keys.

    `layer` is set by `number_layers`, which every network calls at the end of its construction.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.layer = 0

    def forward(self, x: Tensor, keys: Tensor | None) -> Tensor:
        """Zeroes a share `rate` of x and scales the rest by 1 / (1 - rate)."""
        if keys is None or self.rate == 0:
            return x
        keep = keep_mask(keys, self.layer, x[0].numel(), self.rate).to(x.dtype) / (1 - self.rate)
        if x.ndim == 4:
            # Counted with the channel innermost, the order of channels_last memory.
            batch, channels, height, width = x.shape
            return x * keep.reshape(batch, height, width, channels).permute(0, 3, 1, 2)
        return x * keep.reshape(x.shape)


def number_layers(network: nn.Module) -> None:
    """Gives every dropout layer of a network its own number, and so its own masks."""
    for number, layer in enumerate(module for module in network.modules() if isinstance(module, Dropout)):
        layer.layer = number
