"""GPUs of a machine, each lent to one job at a time, among the jobs of a user that ask for it."""

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from gcflow.distributed import launched
from gcflow.errors import GcflowError
from gcflow.pipeline.progress import say


def visible() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is not None:
        return [name for name in listed.replace(" ", "").split(",") if name not in ("", "-1")]
    return [str(number) for number in range(torch.cuda.device_count())]


@contextmanager
def leased(count: int) -> Iterator[None]:
    """Shows CUDA `count` GPUs that nobody else leases, as soon as there are so many; on a machine without, none.

    They are given back at the end of the block or of the process, however it ends: the system drops its locks.

    Raises:
        GcflowError: there are some, yet fewer than `count`.
    """
    gpus, job, told = visible(), os.environ.get("SLURM_JOB_ID", ""), False
    if gpus and count > len(gpus):
        raise GcflowError(f"{count} GPUs are asked for, of which there are {len(gpus)}: {', '.join(gpus)}")
    # Of several processes of a run the one that starts them leases for all; a Slurm job may have just what it needs.
    if not gpus or launched() or (job and count == len(gpus)):
        yield
        return
    # Each Slurm job of a machine may see a GPU 0 of its own.
    folder = Path(tempfile.gettempdir(), f"gcflow-gpus-{os.getuid()}-{job}")
    folder.mkdir(mode=0o700, exist_ok=True)
    while True:
        with ExitStack() as locks:
            mine: list[str] = []
            for gpu in gpus:
                with suppress(Timeout):
                    if len(mine) < count:
                        locks.enter_context(FileLock(folder / gpu.replace("/", "-"), timeout=0))
                        mine.append(gpu)
            if len(mine) == count:
                os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(mine)
                yield
                return
        if not told:
            say(f"  waits for {count} of the GPUs {', '.join(gpus)}")
        told = True
        # Jitter not from `random`, whose state may be seeded and is the run's.
        time.sleep(0.5 + os.urandom(1)[0] / 256)
