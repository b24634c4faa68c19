"""The processes of one run: who has which share of the batch, and what they must agree on."""

import inspect
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, nn

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

    def share(self, batch: int) -> slice:
        """The part of the global batch that this process has.

        Raises:
            GcflowError: the processes cannot share the batch equally.
        """
        if batch % self.size:
            raise GcflowError(
                f"training.batch is {batch}, which {self.size} processes cannot share equally; use a multiple"
            )
        part = batch // self.size
        return slice(self.rank * part, (self.rank + 1) * part)

    def any(self, flag: bool) -> bool:
        """True if the flag is set in any process. Every process must call it; it costs no wait for the GPU."""
        if self.size == 1:
            return flag
        shared = torch.tensor(int(flag))
        torch.distributed.all_reduce(shared, torch.distributed.ReduceOp.MAX)
        return bool(shared)

    def average_(self, tensor: Tensor) -> None:
        """Replaces a tensor by its mean over the processes."""
        if self.size > 1:
            torch.distributed.all_reduce(tensor)
            tensor /= self.size

    def from_first(self, value: Any) -> Any:
        """The first process's value, in every process."""
        if self.size == 1:
            return value
        box = [value]
        torch.distributed.broadcast_object_list(box, src=0)
        return box[0]

    def parallel(self, model: nn.Module) -> nn.Module:
        """The model with gradients averaged over the processes while the backward pass runs; itself if alone."""
        if self.size == 1:
            return model
        parallel = nn.parallel.DistributedDataParallel
        # Buffers here are constants; torch 2.13 has another name for the same switch.
        names = inspect.signature(parallel.__init__).parameters
        switch = "forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers"
        options: dict[str, Any] = {"gradient_as_bucket_view": True, switch: False}
        return parallel(model, **options)


def launched() -> bool:
    """True if a launcher such as torchrun started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


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
        local, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        wanted = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
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
    finally:
        # gloo's threads need the GIL to let go of the last tensors, and their end is waited for with the GIL held:
        # without this pause a process that leaves right after its last exchange may wait for ever.
        time.sleep(SECONDS_TO_LET_GO)
        torch.distributed.destroy_process_group()
