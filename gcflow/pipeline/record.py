"""`gcflow record`: writes what Snakemake made to dvc.lock: `dvc status` is clean, `dvc repro` does nothing."""

import os
from pathlib import Path

from gcflow.errors import GcflowError
from gcflow.pipeline.dvc_stages import write_dvc_yaml
from gcflow.pipeline.params import Params
from gcflow.pipeline.progress import say
from gcflow.pipeline.scheduler import opened
from gcflow.pipeline.stages import Stage, Stages
from gcflow.pipeline.versions import Versions, run_dvc


def record(params: Params, scale: str) -> None:
    """Commits every stage of a scale that Snakemake vouches for to dvc.lock and DVC's cache; the rest is left, named.

    That files exist is no proof: they may be of an older params.yaml, or of a job that is still writing them.

    Raises:
        GcflowError: nothing is complete, or Snakemake or DVC fails (its message is shown).
    """
    write_dvc_yaml(params, scale)
    stages = list(Stages(params, scale))
    versions = Versions(params, stages)
    with opened(params, scale, stages) as scheduler:
        new = [s for s in stages if s.name in versions.changed and scheduler.vouches(s)]
    complete = len(new) + sum(s.name not in versions.changed for s in stages)
    if not complete:
        raise GcflowError("nothing to record: no stage is complete; run `snakemake --profile local all` first")
    if new:
        times = _times(params.root, new)
        known = _times(params.root, [s for s in stages if s.name not in versions.changed])
        # Without names DVC writes dvc.lock once for all stages, with names once for each.
        names = [] if len(new) == len(stages) else [stage.name for stage in new]
        try:
            run_dvc(params, "commit", "--force", *names)
        finally:
            _restore(times, known)
    say(f"dvc.lock: {len(new)} stages recorded, {complete} of {len(stages)} complete")
    left = [s for s in stages if s.name in versions.changed and s not in new]
    if old := [s.name for s in left if all((params.root / out).exists() for out in s.outs)]:
        say(f"  left, since Snakemake did not make it of the present params.yaml and inputs: {', '.join(old)}")


def _times(root: Path, stages: list[Stage]) -> dict[Path, int]:
    """When each file that the stages wrote was last changed, in nanoseconds."""
    outs = [root / out for stage in stages for out in stage.outs]
    files = [file for out in outs for file in ([out] if out.is_file() else sorted(out.rglob("*"))) if file.is_file()]
    return {file: file.stat().st_mtime_ns for file in files}


def _restore(times: dict[Path, int], known: dict[Path, int]) -> None:
    """Gives files that DVC replaced by a link to the same bytes in its cache their time back, of several the oldest.

    Older than what was made of them, or Snakemake would make that again. Among the several are files that were recorded
    before; known: their times.
    """
    oldest: dict[int, int] = {}
    # DVC may have failed between removing a file and linking it.
    times = {file: time for file, time in times.items() if file.exists()}
    for file, time in (*known.items(), *times.items()):
        inode = file.stat().st_ino
        oldest[inode] = min(time, oldest.get(inode, time))
    for file in times:
        found = file.stat()
        if found.st_mtime_ns != oldest[found.st_ino]:
            os.utime(file, ns=(found.st_atime_ns, oldest[found.st_ino]))
