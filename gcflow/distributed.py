"""The processes of one run: who has which grains of the batch, and how all end with the same sums.

Sums are over a binary tree of grains that halves a range of them at each node. A process has all grains below a node,
so that whoever adds what, the same numbers are added in the same order.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor
from torch.distributed import P2POp, batch_isend_irecv, irecv, isend

from gcflow.config import process_counts
from gcflow.errors import GcflowError, Transient

PATIENCE = timedelta(minutes=15)
SECONDS_TO_LET_GO = 0.1


@dataclass(frozen=True)
class World:
    """This process among those of its run. rank: from 0. size: their number."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """True for the process that writes."""
        return self.rank == 0

    def share(self, grains: int) -> range:
        """The grains that this process has.

        Raises:
            GcflowError: so many processes cannot share them.
        """
        allowed = process_counts(grains)
        if self.size not in allowed:
            numbers = ", ".join(map(str, allowed))
            raise GcflowError(
                f"{self.size} processes cannot share a batch of {grains} grains (training.batch / training.grain); "
                f"possible here: {numbers}"
            )
        own, below = range(grains), self.size
        while below > 1:
            below //= 2
            first, second = halves(own)
            own = second if self.rank & below else first
        return own

    def any(self, flag: bool) -> bool:
        """True if the flag is set in any process. Every process must call it; it costs no wait for the GPU."""
        if self.size == 1:
            return flag
        shared = torch.tensor(int(flag))
        torch.distributed.all_reduce(shared, torch.distributed.ReduceOp.MAX)
        return bool(shared)

    def complete_(self, values: Tensor, own: range) -> None:
        """Fills in what the other processes have of `values` [grains], of which `own` are this one's."""
        if self.size > 1:
            values[: own.start] = 0
            values[own.stop :] = 0
            torch.distributed.all_reduce(values)

    def add_up_(self, buffer: Tensor) -> None:
        """Replaces `buffer` [n] by the sum of all processes', each element along the tree of their ranks.

        Neighbours add halves of what they have in common, then quarters, and hand the sums back: 2 (size - 1) / size
        of the buffer is sent.
        """
        low, high, spans = 0, len(buffer), []
        for distance in (1 << level for level in range(self.size.bit_length() - 1)):
            middle = (low + high) // 2
            spans.append((distance, low, middle, high))
            keep, give = (slice(low, middle), slice(middle, high))[:: -1 if self.rank & distance else 1]
            theirs = torch.empty_like(buffer[keep])
            self._exchange(buffer[give], theirs, distance)
            buffer[keep] += theirs
            low, high = keep.start, keep.stop
        for distance, low, middle, high in reversed(spans):
            keep, give = (slice(low, middle), slice(middle, high))[:: -1 if self.rank & distance else 1]
            self._exchange(buffer[keep], buffer[give], distance)

    def _exchange(self, ours: Tensor, theirs: Tensor, distance: int) -> None:
        other = self.rank ^ distance
        for work in batch_isend_irecv([P2POp(isend, ours, other), P2POp(irecv, theirs, other)]):
            work.wait()

    def from_first(self, value: Any) -> Any:
        """The first process's value, in every process."""
        if self.size == 1:
            return value
        box = [value]
        torch.distributed.broadcast_object_list(box, src=0)
        return box[0]


def halves(grains: range) -> tuple[range, range]:
    """The two branches below a node of the tree, for at least two grains."""
    middle = (grains.start + grains.stop) // 2
    return range(grains.start, middle), range(middle, grains.stop)


def _told(name: str, default: int) -> int:
    """What a launcher says in the environment; empty is unset."""
    text = os.environ.get(name) or str(default)
    if not text.isdecimal():
        raise GcflowError(f"{name} is {text!r} in the environment, expected a number; unset it")
    return int(text)


def launched() -> bool:
    """True if a launcher such as torchrun started this process as one of several."""
    return _told("WORLD_SIZE", 1) > 1


def is_first() -> bool:
    """True for a process that is alone, or the first of those that a launcher started."""
    return not launched() or _told("RANK", 0) == 0


@contextmanager
def joined(device: str) -> Iterator[tuple[World, str]]:
    """This process's place among those that a launcher started, and its device (`cuda` becomes `cuda:LOCAL_RANK`).

    Without a launcher the world is this process alone, and the device is as given.

    Raises:
        GcflowError: the processes do not find each other, or there are more of them than GPUs.
    """
    if not launched():
        yield World(), device
        return
    if device.startswith("cuda"):
        local, count = _told("LOCAL_RANK", 0), torch.cuda.device_count()
        wanted = _told("LOCAL_WORLD_SIZE", 1)
        if wanted > count:
            raise GcflowError(f"{wanted} processes on this machine, which has {count} GPUs; start one per GPU")
        device = f"cuda:{local}"
        torch.cuda.set_device(local)
    # gloo beside nccl, so that small decisions need no GPU.
    backend = "cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo"
    try:
        torch.distributed.init_process_group(backend, timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise Transient(f"the processes of this run do not find each other: {str(error).splitlines()[0]}") from None
    try:
        yield World(torch.distributed.get_rank(), torch.distributed.get_world_size()), device
    except GcflowError as error:
        error.heard = is_first()
        raise
    finally:
        # gloo's threads need the GIL to let go of the last tensors, and their end is waited for with the GIL held:
        # without this pause a process that leaves right after its last exchange may wait for ever.
        time.sleep(SECONDS_TO_LET_GO)
        torch.distributed.destroy_process_group()
