"""Folders that stages write to, and the space that they need."""

import math
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from gcflow.pipeline.doctor.check import Check, Target, size

if TYPE_CHECKING:
    from gcflow.config import NetworkConfig
    from gcflow.pipeline.params import Params
    from gcflow.pipeline.stages import Stage


def present(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    return next(path for path in (folder, *folder.resolve().parents) if path.is_dir())


def check_folders(root: Path) -> Iterator[Check]:
    """That files can be written where stages write, and linked among results."""
    for name in ("data", "results", "checkpoints"):
        folder = present(root / name)
        try:
            with tempfile.TemporaryFile(dir=folder) as file:
                file.write(b"1")
        except OSError as error:
            found = f"{folder} cannot be written ({error.strerror})"
            yield Check("folders", "broken", found, f"give yourself the right to write to {folder}, or free its disk")
            return
    yield Check("folders", "OK", "data, results and checkpoints can be written")
    with tempfile.TemporaryDirectory(prefix=".links.", dir=present(root / "results")) as scratch:
        file_there = Path(scratch) / "file"
        file_there.touch()
        try:
            os.link(file_there, file_there.with_name("link"))
        except OSError as error:
            mend = "none is needed: DVC copies instead, which takes the space twice"
            yield Check("hard links", "warning", f"not in results ({error.strerror})", mend, needed=False)
        else:
            yield Check("hard links", "OK", "results can be linked, so recording them copies nothing")


@lru_cache
def _parameter_bytes(network: "NetworkConfig", shape: tuple[int, ...]) -> int:
    import torch

    from gcflow.networks import build_network

    with torch.device("meta"):
        return sum(4 * parameter.numel() for parameter in build_network(network, shape).parameters())


def needed_bytes(params: "Params", stages: "Iterable[Stage]") -> int:
    """An estimate of what stages that are not complete will write: arrays of data, and snapshots of runs."""
    from gcflow.pipeline.stages import Stages

    every, total = Stages(params, "all"), 0
    todo = {stage for stage in stages if not all((params.root / out).exists() for out in stage.outs)}
    for name, entry in params.datasets.items():
        if every.prepare(name) in todo:
            # Images are bytes, points are float32.
            total += (entry.data.count or 0) * math.prod(entry.data.shape) * (1 if len(entry.data.shape) == 3 else 4)
    for run in params.runs():
        if every.train(run) in todo:
            config = params.run_config(run.name)
            weights = _parameter_bytes(config.network, params.dataset(run.dataset).data.shape)
            total += 2 * weights * len(config.training.snapshot_steps)
    return total


def check_disk(target: Target) -> Iterator[Check]:
    """Free space against what is still to be written."""
    wanted, free = needed_bytes(target.params, target.needed), shutil.disk_usage(target.params.root.resolve()).free
    found = f"{size(free)} free, about {size(wanted)} to be written"
    if wanted < free:
        yield Check("disk", "OK", found)
    else:
        mend = "free some space, or link data, results and checkpoints to a larger disk"
        yield Check("disk", "broken", found, mend)
