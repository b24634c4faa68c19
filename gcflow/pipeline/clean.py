"""`gcflow clean`: removes what a finished project no longer needs, and tells first what that would be.

Checkpoints of published runs, the state of their older configurations that were finished, and objects of DVC's cache
that git knows no version of. Never a result, and never a file of which another name would keep the bytes on disk.
"""

import json
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

from gcflow.config import to_dict
from gcflow.errors import GcflowError
from gcflow.files import opened_tensors, read_json, tensors_metadata
from gcflow.pipeline.folders import run_folder, snapshot
from gcflow.pipeline.lock import RunLock, newest_lease
from gcflow.pipeline.params import Params, Run
from gcflow.pipeline.progress import say
from gcflow.pipeline.versions import cache_of, unneeded_objects

CHECKPOINTS, OLDER, OBJECTS = (
    "checkpoints of published runs",
    "state of older configurations",
    "objects of DVC's cache that no dvc.lock in git names",
)
UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def clean(params: Params, act: bool) -> None:
    """Says what can be removed and how many bytes that frees; with `act` removes it.

    Raises:
        GcflowError: DVC is at work, or this is no git repository.
    """
    with cache_of(params) as cache:
        if cache is None:
            say("DVC's cache: left alone, since it is not this project's own (dvc gc --help: --projects)")
        waste = dict.fromkeys(unneeded_objects(params.root, cache) if cache else [], OBJECTS)
        runs: dict[Run, set[Path]] = {}
        for run in params.runs():
            lease = newest_lease(run_folder(params.root, run) / "state")
            if lease is not None and lease.held:
                say(f"{run.name}: left alone, since {lease.holder} trains it")
                continue
            found = _state(params, run)
            runs[run] = set(found)
            waste |= found
        freed = _freed(waste)
        for kind in (CHECKPOINTS, OLDER, OBJECTS):
            files = [file for file in freed if waste[file] == kind]
            say(f"{kind}: {len(files)} files, {_bytes(sum(freed[file] for file in files))}")
        if not act:
            say(f"nothing was removed; gcflow clean --yes frees {_bytes(sum(freed.values()))}")
            return
        removed = 0
        for run, held in runs.items():
            removed += _remove_state(params, run, held & freed.keys(), freed)
        for unneeded in [file for file in freed if waste[file] == OBJECTS]:
            unneeded.unlink()
            removed += freed[unneeded]
        say(f"freed {_bytes(removed)}")


def _state(params: Params, run: Run) -> dict[Path, str]:
    """What a published run's state folder holds besides what a further training of this configuration would need."""
    folder = run_folder(params.root, run)
    if not (folder / "config.json").exists() or not (folder / "weights.safetensors").exists():
        return {}
    try:
        published = read_json(folder / "config.json")["config_hash"][:16]
    except (KeyError, TypeError):
        say(f"{run.name}: left alone, since its config.json is damaged; gcflow verify {run.name}")
        return {}
    present = json.loads(json.dumps(to_dict(params.run_config(run.name))))
    found: dict[Path, str] = {}
    for state in sorted(path for path in (folder / "state").glob("*") if path.is_dir()):
        if state.name == published:
            found |= dict.fromkeys(state.glob("*checkpoint-*.safetensors"), CHECKPOINTS)
        # The same configuration with other inputs may be a training that was interrupted.
        elif (config := _config(state)) is not None and config != present and _finished(state, config):
            found |= dict.fromkeys((path for path in state.rglob("*") if path.is_file()), OLDER)
    return found


def _config(state: Path) -> Any:
    """The configuration that a state folder belongs to; None if nothing in it tells."""
    for path in sorted(state.rglob("*.safetensors"), reverse=True):
        with suppress(GcflowError), opened_tensors(path, "np") as file:
            return tensors_metadata(file).get("config")
    return None


def _finished(state: Path, config: dict[str, Any]) -> bool:
    """Whether a configuration was trained to its end; what an unfinished one has trained is nowhere else."""
    return snapshot(state, config["training"]["steps"]).exists()


def _freed(files: dict[Path, str]) -> dict[Path, int]:
    """Those files whose bytes have no name besides them, and what each frees: of several names the first."""
    found = {file: file.stat() for file in files}
    names = Counter((stat.st_dev, stat.st_ino) for stat in found.values())
    freed: dict[Path, int] = {}
    counted = set()
    for file, stat in found.items():
        inode = (stat.st_dev, stat.st_ino)
        if names[inode] == stat.st_nlink:
            freed[file] = 0 if inode in counted else 512 * stat.st_blocks
            counted.add(inode)
    return freed


def _remove_state(params: Params, run: Run, files: set[Path], freed: dict[Path, int]) -> int:
    """Removes files of a run's state unless a process has taken the run since; returns the bytes that were freed."""
    if not files:
        return 0
    folder = run_folder(params.root, run) / "state"
    try:
        with RunLock(folder, run.name):
            still = sorted(files & _state(params, run).keys())
            for file in still:
                file.unlink()
            emptied = {place for file in still for place in (file.parent, file.parent.parent)}
            for place in sorted(emptied, reverse=True):
                if place != folder and place.is_relative_to(folder):
                    with suppress(OSError):
                        place.rmdir()
    except GcflowError as error:
        say(f"left alone: {error}")
        return 0
    return sum(freed[file] for file in still)


def _bytes(count: float) -> str:
    for unit in UNITS:
        if count < 1024 or unit == UNITS[-1]:
            break
        count /= 1024
    return f"{count:.0f} {unit}" if unit == UNITS[0] else f"{count:.1f} {unit}"
