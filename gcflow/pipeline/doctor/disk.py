"""Folders that stages write to, and the space that they need."""

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from gcflow.pipeline.doctor.check import Check, Target, size

if TYPE_CHECKING:
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


def needed_bytes(params: "Params", stages: "Iterable[Stage]") -> int:
    """What stages that are not complete will write, checkpoints included, as `gcflow plan` counts it."""
    from gcflow.pipeline.graph import Graph
    from gcflow.tools.plan import Counts

    graph = Graph(params, "all")
    wanted = {stage.name for stage in stages} & set(graph.jobs)
    todo = wanted - graph.done(graph.closure(sorted(wanted)))
    counts = Counts(params)
    return sum(counts.disk(graph.jobs[name]) for name in todo)


def check_disk(target: Target) -> Iterator[Check]:
    """Free space against what is still to be written."""
    wanted, free = needed_bytes(target.params, target.needed), shutil.disk_usage(target.params.root.resolve()).free
    found = f"{size(free)} free, about {size(wanted)} to be written"
    if wanted < free:
        yield Check("disk", "OK", found)
    else:
        mend = "free some space, or link data, results and checkpoints to a larger disk"
        yield Check("disk", "broken", found, mend)
