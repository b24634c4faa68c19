"""What DVC thinks of each stage: what dvc.lock says of it, and where that differs from what lies there."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from gcflow.errors import GcflowError
from gcflow.pipeline.params import Params
from gcflow.pipeline.stages import Stage

LOCK = "dvc.lock"
HASH = re.compile(rb"\bmd5: *['\"]?([0-9a-f]{32}(?:\.dir)?)")
LOCK_FILES = ("--", ":(glob)**/dvc.lock", "*.dvc")


def run_dvc(params: Params, *arguments: str) -> str:
    """What a DVC command prints.

    Raises:
        GcflowError: it fails (its message is shown).
    """
    command = [sys.executable, "-m", "dvc", *arguments]
    result = subprocess.run(command, cwd=params.root, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise GcflowError(f"dvc {arguments[0]} failed: {' '.join(result.stderr.split()) or 'no message'}")
    return result.stdout


def locked_stages(root: Path) -> dict[str, Any]:
    """The stages that dvc.lock has, by name; none if there is no such file.

    Raises:
        GcflowError: it is not what DVC writes, such as with the marks of a conflict.
    """
    path = root / LOCK
    if not path.exists():
        return {}
    try:
        document = yaml.load(path.read_bytes(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        stages: dict[str, Any] = dict(document["stages"])
        files = [file for entry in stages.values() for part in ("deps", "outs") for file in entry.get(part, [])]
        if not all(isinstance(file["path"], str) for file in files):
            raise ValueError
    except (yaml.YAMLError, ValueError, KeyError, TypeError, AttributeError):
        cure = f"take it from git: git checkout HEAD {LOCK}, then gcflow record"
        raise GcflowError(f"{path}: not what DVC writes; {cure}") from None
    return stages


class Versions:
    """dvc.lock against what lies in the project now.

    changed: the stages that differ, with DVC's account of it; all, if there is no dvc.lock.
    """

    def __init__(self, params: Params, stages: list[Stage]) -> None:
        self.root = params.root
        self.locked = locked_stages(params.root)
        status: dict[str, Any] = json.loads(run_dvc(params, "status", "--json")) if self.locked else {}
        self.changed = {s.name: status.get(s.name, []) for s in stages if s.name in status or s.name not in self.locked}
        self._outs = {out["path"]: out.get("md5") for entry in self.locked.values() for out in entry.get("outs", [])}

    def whole(self, stage: Stage) -> bool:
        """Whether every output is the one of dvc.lock."""
        entries = self.changed.get(stage.name, [])
        return stage.name in self.locked and not any("changed outs" in entry for entry in entries)

    def contradicted(self, stage: Stage) -> bool:
        """Whether anything that lies there, params.yaml, or dvc.lock itself contradicts what dvc.lock says of a stage.

        A file that is not there contradicts nothing as long as dvc.lock knows one version of it only.
        """
        if stage.name not in self.locked:
            return True
        for entry in self.changed.get(stage.name, []):
            if not isinstance(entry, dict):
                return True
            for files in entry.values():
                if any(how not in ("deleted", "not in cache") or self._there(path) for path, how in files.items()):
                    return True
        deps = self.locked[stage.name].get("deps", [])
        return any(self._outs.get(dep["path"], dep.get("md5")) != dep.get("md5") for dep in deps)

    def _there(self, path: str) -> bool:
        return (self.root / path).exists()


@contextmanager
def cache_of(params: Params) -> Iterator[Path | None]:
    """The objects of the project's own DVC cache, which no DVC process changes meanwhile; None if it has none.

    A cache that lies elsewhere, be it by a symbolic link, or is of a larger DVC repository has objects of others.

    Raises:
        GcflowError: another DVC process is at work, or this is no git repository.
    """
    from dvc.exceptions import NotDvcRepoError
    from dvc.lock import LockError
    from dvc.repo import Repo
    from dvc.scm import SCMError

    try:
        repo = Repo(str(params.root))
    except NotDvcRepoError:
        yield None
        return
    except SCMError:
        why = "whose commits tell which objects of DVC's cache are needed"
        raise GcflowError(f"{params.root}: no git repository, {why}; run this in a clone of the project") from None
    folder, own = Path(repo.cache.local.path).resolve(), params.root.resolve()
    if Path(repo.root_dir).resolve() != own or not folder.is_relative_to(own):
        yield None
        return
    try:
        repo.lock.lock()
    except LockError:
        raise GcflowError("DVC is at work in this folder: wait for its end, then again") from None
    try:
        yield folder
    finally:
        repo.lock.unlock()


def unneeded_objects(root: Path, cache: Path) -> list[Path]:
    """The objects of a cache that no dvc.lock or .dvc file names: in the project, in git's index, or in any commit.

    Any commit that git can still find: of branches, tags, stashes, other clones, and of the reflog. `dvc gc` knows
    less: nothing of stashes and the reflog, and of a dvc.lock only the stages that dvc.yaml has in the same commit.

    Raises:
        GcflowError: this is no git repository.
    """
    blobs = {line.split()[1] for line in _git(root, "ls-files", "--stage", *LOCK_FILES).splitlines()}
    history = ("rev-list", "--objects", "--full-history", "--all", "--reflog", *LOCK_FILES)
    blobs |= {line.split()[0] for line in _git(root, *history).splitlines() if line.endswith((b"dvc.lock", b".dvc"))}
    texts = [_git(root, "cat-file", "--batch", given=b"\n".join(blobs))] if blobs else []
    here = _git(root, "ls-files", "--cached", "--others", "--exclude-standard", "-z", *LOCK_FILES).decode().split("\0")
    texts += [(root / name).read_bytes() for name in here if name and (root / name).is_file()]
    needed = {name.decode() for text in texts for name in HASH.findall(text)}
    for name in [name for name in needed if name.endswith(".dir")]:
        listing = cache / name[:2] / name[2:]
        # Without its listing nothing can be checked out of a directory: to pull it is to pull its files, too.
        if listing.exists():
            needed |= {entry["md5"] for entry in json.loads(listing.read_bytes())}
    objects = (path for path in cache.glob("[0-9a-f][0-9a-f]/*") if path.is_file())
    return sorted(path for path in objects if path.parent.name + path.name not in needed)


def _git(root: Path, *arguments: str, given: bytes | None = None) -> bytes:
    result = subprocess.run(["git", "-C", str(root), *arguments], input=given, capture_output=True, check=False)
    if result.returncode != 0:
        raise GcflowError(f"git {arguments[0]} failed: {' '.join(result.stderr.decode().split()) or 'no message'}")
    return result.stdout
