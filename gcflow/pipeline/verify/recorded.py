"""What dvc.lock and DVC's cache say of files."""

import configparser
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from gcflow.pipeline.graph import Job
from gcflow.pipeline.params import Params
from gcflow.pipeline.verify.statements import Remark, Statement, Voucher
from gcflow.pipeline.versions import LOCK, locked_stages

DIRECTORY = ".dir"


def listing_md5(files: Mapping[str, str]) -> str:
    """DVC's hash of a directory. files: relative path to md5."""
    listed = [{"md5": md5, "relpath": path} for path, md5 in sorted(files.items())]
    return hashlib.md5(json.dumps(listed).encode(), usedforsecurity=False).hexdigest() + DIRECTORY


class Recorded:
    """The versions in a project's dvc.lock; none if there is no such file.

    Raises:
        GcflowError: dvc.lock is damaged.
    """

    def __init__(self, params: Params) -> None:
        self.params, self.root = params, params.root
        path = self.root / LOCK
        self.stages = locked_stages(self.root)
        self.written = path.stat().st_mtime if path.exists() else 0.0
        self.ignored = _lines(self.root / ".dvcignore")
        settings = configparser.ConfigParser(interpolation=None, strict=False)
        with suppress(configparser.Error, UnicodeDecodeError):
            settings.read([self.root / ".dvc" / "config", self.root / ".dvc" / "config.local"])
        self.has_remote = any(section.strip("'").startswith("remote ") for section in settings.sections())
        self.cache = Path(".dvc", settings.get("cache", "dir", fallback="cache"), "files", "md5")

    def outs(self, stage: str) -> dict[str, str]:
        """Path to md5 of what a stage had made; empty if it was not recorded."""
        return self._files(stage, "outs")

    def deps(self, stage: str) -> dict[str, str]:
        """Path to md5 of what a stage had read."""
        return self._files(stage, "deps")

    def _files(self, stage: str, part: str) -> dict[str, str]:
        entries = self.stages.get(stage, {}).get(part, [])
        return {entry["path"]: str(entry["md5"]) for entry in entries if "md5" in entry}

    def other_parameters(self, job: Job) -> bool:
        """Whether params.yaml gives a stage other values than when it was recorded."""
        recorded = self.stages[job.name].get("params", {}).get(self.params.path.name, {})
        return _plain(recorded) != _plain(job.stage.slice(self.params))

    def cached(self, md5: str) -> str:
        """Where DVC keeps a version."""
        return str(self.cache / md5[:2] / md5[2:])

    def members(self, directory: str) -> dict[str, str]:
        """The files of a directory that DVC looks at, by their path in it to their path."""
        folder = self.root / directory
        found = (path for path in sorted(folder.rglob("*")) if path.is_file())
        kept = (path for path in found if not any(fnmatch(path.name, pattern) for pattern in self.ignored))
        return {path.relative_to(folder).as_posix(): f"{directory}/{path.relative_to(folder)}" for path in kept}

    def said(self, job: Job) -> Iterator[Statement]:
        """What is recorded of the files that a stage has made, read, and of their copies in the cache."""
        for path, md5 in self.outs(job.name).items():
            yield from self._version(path, md5)
        first = job.stage.outs[0]
        for path, md5 in self.deps(job.name).items():
            yield Voucher(path, "md5", md5, LOCK, first)

    def _version(self, path: str, md5: str) -> Iterator[Statement]:
        yield Voucher(path, "md5", md5, LOCK)
        kept = self.cached(md5)
        if not (self.root / kept).exists():
            return
        yield Voucher(kept, "md5", md5.removesuffix(DIRECTORY), kept)
        if not md5.endswith(DIRECTORY):
            return
        try:
            content = (self.root / kept).read_bytes()
            listed = {entry["relpath"]: entry["md5"] for entry in json.loads(content)}
        except (OSError, ValueError, KeyError, TypeError):
            return
        # A damaged listing says nothing of the files.
        if listing_md5(listed) != md5 or not (self.root / path).is_dir():
            return
        present = self.members(path)
        for name, member_md5 in listed.items():
            yield from self._version(f"{path}/{name}", member_md5)
            if name not in present:
                yield Remark(f"{path}/{name}", "missing", f"{LOCK} lists it", LOCK)
        for name in sorted(present.keys() - listed.keys()):
            yield Remark(f"{path}/{name}", "stray", f"{LOCK} does not list it", LOCK)


def _lines(path: Path) -> list[str]:
    text = path.read_text() if path.exists() else ""
    return [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]


def _plain(value: Any) -> Any:
    """Values as DVC's YAML 1.2 and ours read them alike: 1e-05 is a number there and a text here."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, str):
        with suppress(ValueError):
            return float(value)
    return value
