"""Every random draw of training is a function of (seed, step, purpose, global sample index).

A generator is made anew for each (seed, step, purpose) and draws for the whole global batch, in sample order. So a
resumed run replays exactly, and a process that holds only a part of the batch draws the whole and keeps its part.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from gcflow.lazy_torch import torch

if TYPE_CHECKING:
    from torch import Tensor


def derived_seed(seed: int, *purpose: object) -> int:
    """A 63-bit seed that depends on `seed` and on every element of `purpose`."""
    text = "/".join(str(part) for part in (seed, *purpose))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(seed: int, *purpose: object, device: torch.device | str = "cpu") -> torch.Generator:
    """A fresh generator on `device` for one purpose, e.g. `generator(seed, step, "noise")`."""
    return torch.Generator(device=device).manual_seed(derived_seed(seed, *purpose))


@lru_cache(maxsize=2)
def _epoch_order(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.random.Generator(np.random.PCG64(derived_seed(seed, "epoch", epoch))).permutation(count)


def coupling_uniforms(seed: int, step: int, batch: int) -> Tensor:
    """The randomness of a coupling at `step`: one number in [0, 1) per sample of the batch, float64 [batch]."""
    return torch.rand(batch, generator=generator(seed, step, "coupling"), dtype=torch.float64)


def batch_indices(seed: int, step: int, batch: int, count: int) -> Tensor:
    """Indices (int64, shape [batch]) of the samples seen at `step` (from 0): one shuffled epoch after the other.

    Each of the `count` samples is seen once per epoch; a batch may cross epochs.
    """
    start = step * batch
    parts, position = [], start
    while position < start + batch:
        epoch, offset = divmod(position, count)
        taken = min(count - offset, start + batch - position)
        parts.append(_epoch_order(seed, epoch, count)[offset : offset + taken])
        position += taken
    return torch.from_numpy(np.concatenate(parts))
