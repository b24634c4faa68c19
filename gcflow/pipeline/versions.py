"""What DVC thinks of each stage: what dvc.lock says of it, and where that differs from what lies there."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from dvc.config import Config

from gcflow.errors import GcflowError
from gcflow.pipeline.params import Params
from gcflow.pipeline.stages import Stage
from gcflow.readable import one_line

LOCK = "dvc.lock"


def run_dvc(params: Params, *arguments: str) -> str:
    """What a DVC command prints.

    Raises:
        GcflowError: it fails (its message is shown).
    """
    command = [sys.executable, "-m", "dvc", *arguments]
    result = subprocess.run(command, cwd=params.root, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        said = one_line(result.stderr) or one_line(result.stdout) or f"exit code {result.returncode}, without a word"
        raise GcflowError(f"dvc {arguments[0]} failed: {said}")
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


def cache_folder(root: Path) -> Path:
    """Where the project's DVC keeps its objects: of md5 `abcd...` it is `ab/cd...`, of a folder its listing."""
    return Path(Config(str(root / ".dvc"))["cache"].get("dir") or root / ".dvc" / "cache", "files", "md5")


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
