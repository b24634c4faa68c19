"""Dropout whose mask is a function of a key per sample, of the layer and of the position, on every device.

Student and teacher see the same mask when they are given the same keys; a sample sees the same mask whichever process
or grain it is in, with and without torch.compile. The mask is a counter-based hash (xor, multiply, shift), in
place of a generator's state.
"""

import torch
from torch import Tensor, nn

from gcflow.randomness import generator

WORD = (1 << 32) - 1
# Below 2^31, so that a product with a 32-bit word fits into 64 bits with sign.
MULTIPLIERS = (0x7FEB352D, 0x68BC21EB)
GOLDEN, POSITION = 0x1E3779B9, 0x5BD1E995
SIGNS = 0x00008000


def _mixed(h: Tensor) -> Tensor:
    """A permutation of 32-bit words in which every input bit changes every output bit about half of the time.

    In int32 products wrap around, which generated C++ leaves undefined; in int64 the upper half is cut off.
    """
    wide = h.dtype == torch.int64
    h = h ^ ((h >> 16) & 0xFFFF)
    for multiplier, shift in zip(MULTIPLIERS, (15, 16), strict=True):
        h = h * multiplier
        if wide:
            h = h & WORD
        h = h ^ ((h >> shift) & (WORD >> shift))
    return h


def dropout_keys(seed: int, step: int, batch: int, purpose: str = "dropout") -> Tensor:
    """One key per sample of the global batch, another for each purpose: int32 [batch], on the CPU."""
    source = generator(seed, step, purpose)
    return torch.randint(-(1 << 31), 1 << 31, (batch,), generator=source, dtype=torch.int64).int()


def threshold(rate: float) -> int:
    """The 16-bit numbers below it drop a value; never all of them."""
    return min(round(rate * (1 << 16)), (1 << 16) - 1)


def layer_word(layer: int) -> int:
    """What tells a layer's masks from another's: 31 bits."""
    return (layer + 1) * GOLDEN & (WORD >> 1)


def keep_mask(keys: Tensor, layer: int, size: int, rate: float) -> Tensor:
    """The mask of the `size` values of each sample that are kept: bool [B, size], each True with probability 1 - rate.

    Args:
        keys: int32 [B].
        layer: number of the dropout layer in its network.
        size: values per sample.
        rate: in [0, 1); rounded to a multiple of 2^-16, at most 1 - 2^-16.
    """
    # The same words either way: compiled code fuses it all and has to be defined, plain code has to be fast.
    compiled = torch.compiler.is_compiling()
    word = torch.int64 if compiled else torch.int32
    keys = keys.to(word) & WORD if compiled else keys
    keys = _mixed(_mixed(keys) ^ layer_word(layer))
    position = torch.arange((size + 1) // 2, dtype=word, device=keys.device)
    h = _mixed(_mixed(position ^ POSITION) ^ keys[:, None])
    # Two 16-bit numbers per word, compared with their sign bits flipped: half the work.
    least = threshold(rate)
    if compiled:
        halves = torch.stack([(h & 0xFFFF) ^ SIGNS, (h >> 16) ^ SIGNS], dim=2).flatten(1)
        return halves[:, :size] >= least
    return h.view(torch.int16)[:, :size] >= least - (1 << 15)


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
