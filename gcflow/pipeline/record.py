"""`gcflow record`: writes what Snakemake made to dvc.lock: `dvc status` is clean, `dvc repro` does nothing."""

import os
from pathlib import Path

from gcflow.errors import GcflowError
from gcflow.pipeline.dvc_stages import versioned, write_dvc_yaml
from gcflow.pipeline.params import Params
from gcflow.pipeline.progress import say
from gcflow.pipeline.scheduler import opened
from gcflow.pipeline.stages import Stage
from gcflow.pipeline.versions import Versions, check_repository, commit, merge_sides, own_reason


def record(params: Params, scale: str) -> None:
    """Commits every stage of a scale that Snakemake vouches for to dvc.lock and DVC's cache; the rest is left, named.

    That files exist is no proof: they may be of an older params.yaml, or of a job that is still writing them. Nor is
    their time: a file that is not what was recorded of the same job, or not what its own hash says, is damaged.

    Raises:
        GcflowError: nothing is complete, DVC has no repository here, or Snakemake or DVC fails (its message is shown).
    """
    check_repository(params.root)
    write_dvc_yaml(params, scale)
    merge_sides(params.root)
    stages = versioned(params, scale)
    versions = Versions(params, stages)
    with opened(params, scale, stages) as scheduler:
        jobs = {s.name: scheduler.begun(s) for s in stages if scheduler.vouches(s)}
    new: list[Stage] = []
    damaged: list[Stage] = []
    for stage in (s for s in stages if s.name in versions.changed and s.name in jobs):
        of_damaged = any(set(stage.deps).intersection(other.outs) for other in damaged)
        own = versions.damaged(stage, jobs[stage.name]) or any(map(own_reason, _files(params.root, [stage])))
        (damaged if of_damaged or own else new).append(stage)
    if damaged:
        say(f"left, since files are damaged or made of such (gcflow verify): {', '.join(s.name for s in damaged)}")
    complete = len(new) + sum(s.name not in versions.changed for s in stages)
    if not complete:
        raise GcflowError("nothing to record: no stage is complete; run `snakemake --profile local all` first")
    if new:
        times = _times(params.root, new)
        known = _times(params.root, [s for s in stages if s.name not in versions.changed])
        try:
            commit(params, new)
        finally:
            _restore(times, known)
    whole = [s.name for s in stages if s.name in jobs and (s in new or s.name not in versions.changed)]
    versions.note({name: jobs[name] for name in whole})
    say(f"dvc.lock: {len(new)} stages recorded, {complete} of {len(stages)} complete")
    left = [s for s in stages if s.name in versions.changed and s not in (*new, *damaged)]
    if old := [s.name for s in left if all((params.root / out).exists() for out in s.outs)]:
        say(f"  left, since Snakemake did not make it of the present params.yaml and inputs: {', '.join(old)}")


def _files(root: Path, stages: list[Stage]) -> list[Path]:
    outs = [root / out for stage in stages for out in stage.outs]
    return [file for out in outs for file in ([out] if out.is_file() else sorted(out.rglob("*"))) if file.is_file()]


def _times(root: Path, stages: list[Stage]) -> dict[Path, int]:
    """When each file that the stages wrote, or a link in its place, was last changed, in nanoseconds."""
    return {file: file.lstat().st_mtime_ns for file in _files(root, stages)}


def _restore(times: dict[Path, int], known: dict[Path, int]) -> None:
    """Gives files that DVC replaced by a link to the same bytes in its cache their time back, of several the oldest.

    Of a symbolic link it is that of the link and of its target: Snakemake looks at both.

    Older than what was made of them, or Snakemake would make that again. Among the several are files that were recorded
    before; known: their times.
    """
    oldest: dict[tuple[int, int], int] = {}
    # DVC may have failed between removing a file and linking it.
    times = {file: time for file, time in times.items() if file.exists()}
    for file, time in (*known.items(), *times.items()):
        for inode in {(s.st_dev, s.st_ino) for s in (file.stat(), file.lstat())}:
            oldest[inode] = min(time, oldest.get(inode, time))
    for file in times:
        for follows in (True, False):
            found = file.stat(follow_symlinks=follows)
            time = oldest[found.st_dev, found.st_ino]
            if found.st_mtime_ns != time:
                os.utime(file, ns=(found.st_atime_ns, time), follow_symlinks=follows)
