"""What DVC thinks of each stage: what dvc.lock says of it, and where that differs from what lies there."""

import json
import logging
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from dvc.config import Config

from gcflow.config import digest
from gcflow.errors import GcflowError
from gcflow.files import read_json, write_json, write_text
from gcflow.pipeline.params import Params
from gcflow.pipeline.stages import Stage
from gcflow.readable import one_line
from gcflow.weights import load_tensors

LOCK = "dvc.lock"
# Beside Snakemake's own records, whose fate it shares.
RECORDED = Path(".snakemake", "gcflow-recorded.json")


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


def commit(params: Params, stages: list[Stage]) -> None:
    """`dvc commit --force` of some stages; DVC's own command writes dvc.lock once for each.

    Raises:
        GcflowError: it fails (its message is shown).
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo, lock_repo

    names = {stage.name for stage in stages}
    # It says which file it writes, and how git would track that.
    logging.getLogger("dvc").setLevel(logging.WARNING)
    try:
        with Repo(str(params.root)) as repo, lock_repo(repo):
            chosen = [stage for stage in repo.index.stages if getattr(stage, "name", None) in names]
            for stage in chosen:
                stage.save()
                stage.commit()
            chosen[0].dvcfile.dump_stages(chosen, update_pipeline=False)
    except (DvcException, OSError) as error:
        raise GcflowError(f"dvc commit failed: {one_line(str(error))}") from None


def check_repository(root: Path) -> None:
    """Raises GcflowError if DVC records nothing here: without git, as in a downloaded archive."""
    from dvc.exceptions import NotDvcRepoError
    from dvc.repo import Repo
    from dvc.scm import SCMError

    try:
        Repo(str(root)).close()
    except (NotDvcRepoError, SCMError):
        remedy = "git init, or without git: dvc config core.no_scm true"
        raise GcflowError(f"{root.resolve()}: DVC records nothing without a repository of git's; {remedy}") from None


def merge_sides(root: Path) -> None:
    """Ends a conflict of git's in dvc.lock: the stages of both sides, and of one that both have ours."""
    path = root / LOCK
    if path.exists() and re.search(rb"^<<<<<<< ", path.read_bytes(), re.MULTILINE):
        stages: dict[str, Any] = {}
        for side in (3, 2):
            shown = subprocess.run(["git", "show", f":{side}:./{LOCK}"], cwd=root, capture_output=True, check=False)
            stages |= _stages(path, shown.stdout)
        write_text(path, yaml.safe_dump({"schema": "2.0", "stages": stages}, sort_keys=False))


def locked_stages(root: Path) -> dict[str, Any]:
    """The stages that dvc.lock has, by name; none if there is no such file.

    Raises:
        GcflowError: it is not what DVC writes, such as with the marks of a conflict.
    """
    path = root / LOCK
    return _stages(path, path.read_bytes()) if path.exists() else {}


def _stages(path: Path, content: bytes) -> dict[str, Any]:
    try:
        document = yaml.load(content, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        stages: dict[str, Any] = dict(document["stages"])
        files = [file for entry in stages.values() for part in ("deps", "outs") for file in entry.get(part, [])]
        if not all(isinstance(file["path"], str) for file in files):
            raise ValueError
    except (yaml.YAMLError, ValueError, KeyError, TypeError, AttributeError):
        cure = f"in a merge gcflow record keeps both sides; else take it from git: git checkout HEAD {LOCK}"
        raise GcflowError(f"{path}: not what DVC writes; {cure}") from None
    return stages


def cache_folder(root: Path) -> Path:
    """Where the project's DVC keeps its objects: of md5 `abcd...` it is `ab/cd...`, of a folder its listing."""
    return Path(Config(str(root / ".dvc"))["cache"].get("dir") or root / ".dvc" / "cache", "files", "md5")


def own_reason(path: Path) -> str | None:
    """What a file of a form that carries its own hash, or of JSON, says against itself."""
    try:
        if path.suffix == ".safetensors" and not load_tensors(path)[1]:
            return "it has no header"
        document: Any = read_json(path) if path.suffix == ".json" else None
        if path.name == "manifest.json":
            dict(document["sha256"])
        if path.name == "config.json":
            described = {key: document[key] for key in ("config", "inputs")}
            return None if digest(described) == document["config_hash"] else "its config_hash is of something else"
    except GcflowError as error:
        return str(error).removeprefix(f"{path}: ").partition("; ")[0]
    except (KeyError, TypeError, ValueError) as error:
        return f"it is not of the form that is written there ({error!r})"
    return None


class Versions:
    """dvc.lock against what lies in the project now.

    changed: the stages that differ, with DVC's account of it; all, if there is no dvc.lock. recorded: of each stage,
    when the job of Snakemake's began whose outputs were recorded here.
    """

    def __init__(self, params: Params, stages: list[Stage]) -> None:
        self.root = params.root
        self.locked = locked_stages(params.root)
        status: dict[str, Any] = json.loads(run_dvc(params, "status", "--json")) if self.locked else {}
        self.changed = {s.name: status.get(s.name, []) for s in stages if s.name in status or s.name not in self.locked}
        path = self.root / RECORDED
        self.recorded: dict[str, float] = dict(read_json(path)) if path.exists() else {}
        self._outs = {out["path"]: out.get("md5") for entry in self.locked.values() for out in entry.get("outs", [])}

    def whole(self, stage: Stage) -> bool:
        """Whether every output is the one of dvc.lock."""
        entries = self.changed.get(stage.name, [])
        return stage.name in self.locked and not any("changed outs" in entry for entry in entries)

    def damaged(self, stage: Stage, job: float) -> bool:
        """Whether files are not the recorded ones, although the same job made them, with these inputs.

        job: when it began.
        """
        changes = self.changed.get(stage.name, [])
        outs = changes[0].get("changed outs", {}) if len(changes) == 1 and isinstance(changes[0], dict) else {}
        return self.recorded.get(stage.name) == job and "modified" in outs.values()

    def note(self, jobs: dict[str, float]) -> None:
        """Remembers which jobs' outputs are those of dvc.lock."""
        write_json(self.root / RECORDED, self.recorded | jobs)

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
