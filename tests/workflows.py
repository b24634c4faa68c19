"""Clones of the repository with a tiny grid, and Snakemake, DVC and git as real processes in them."""

import fcntl
import subprocess
import sys
import sysconfig
from pathlib import Path
from shutil import copy
from typing import Any

from projects import ROOT, environment, gcflow, tiny_params, write_project

SCRIPTS = sysconfig.get_path("scripts")


def run(folder: Path, *command: str | Path, check: bool = True, env: dict[str, str] | None = None) -> str:
    """What a command says; with `check` a failure is raised and shows it."""
    extra = {"PATH": f"{SCRIPTS}:{environment()['PATH']}"} | (env or {})
    result = subprocess.run(command, cwd=folder, env=environment(extra), capture_output=True, text=True, check=False)
    if check and result.returncode != 0:
        words = " ".join(map(str, command))
        raise AssertionError(f"{words} exited with {result.returncode}:\n{result.stdout}{result.stderr}")
    return result.stdout + result.stderr


def as_a_plan(folder: Path) -> Path:
    """A folder for PATH whose `snakemake` only plans, and says in a line per rule what."""
    program = folder / "snakemake"
    program.write_text(f'#!/bin/sh\nexec {SCRIPTS}/snakemake "$@" --dry-run --quiet rules\n')
    program.chmod(0o755)
    return folder


def snakemake(folder: Path, *arguments: str, check: bool = True, env: dict[str, str] | None = None) -> str:
    return run(folder, "snakemake", "--profile", "local", *arguments, check=check, env=env)


def dvc(folder: Path, *arguments: str, check: bool = True, env: dict[str, str] | None = None) -> str:
    return run(folder, sys.executable, "-m", "dvc", *arguments, check=check, env=env)


def dvc_stages(folder: Path) -> dict[str, tuple[str, set[str], set[str], set[str]]]:
    """The stages that DVC itself makes of dvc.yaml: name to command, dependencies, keys of params.yaml, outputs."""
    from dvc.dependency import ParamsDependency
    from dvc.repo import Repo

    stages = {}
    with Repo(str(folder)) as repo:
        for stage in repo.index.stages:
            params = [dep for dep in stage.deps if isinstance(dep, ParamsDependency)]
            deps = {dep.def_path for dep in stage.deps if dep not in params}
            keys = {key for dep in params for key in dep.params}
            stages[stage.name] = (stage.cmd, deps, keys, {out.def_path for out in stage.outs})
    return stages


def commit(folder: Path, message: str) -> None:
    """Commits everything that git does not ignore."""
    run(folder, "git", "add", "--all")
    name = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    run(folder, "git", *name, "commit", "--quiet", "--message", message)


def clone(folder: Path, params: dict[str, Any]) -> Path:
    """The repository as it is now, with another params.yaml, as a git repository of one commit."""
    folder.mkdir()
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in listed.stdout.splitlines():
        source, target = ROOT / name, folder / name
        # What was measured of the repository's own grid says nothing of this one.
        if source.exists() and not name.startswith(("seeds.yaml", "dvc.lock", "docs/evidence/")):
            target.parent.mkdir(parents=True, exist_ok=True)
            copy(source, target, follow_symlinks=False)
    write_project(folder, params)
    gcflow(folder, "stages")
    run(folder, "git", "init", "--quiet", "--initial-branch", "main")
    commit(folder, "tiny")
    return folder


def rules_for(folder: Path, params: dict[str, Any]) -> Path:
    """A project whose rules are the repository's own, without git and DVC."""
    write_project(folder, params)
    for name in ("Snakefile", "workflow", "local", "slurm"):
        (folder / name).symlink_to(ROOT / name)
    return folder


def duplicate(project: Path, folder: Path) -> Path:
    """A copy that can be changed; times and the links between files stay."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    run(project, "cp", "--archive", str(project), str(folder))
    return folder


def finished_project(shared: Path) -> Path:
    """A clone on which `all`, the report and `gcflow record` have run, and dvc.lock is committed.

    Made once for all the processes of a test session, which must not change it. shared: their common folder.
    """
    folder = shared / "finished"
    with (shared / "finished.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (shared / "finished.done").exists():
            clone(folder, tiny_params())
            snakemake(folder, "--report-after-run", "--report", "results/workflow-report.html", "all")
            gcflow(folder, "record")
            commit(folder, "recorded")
            (shared / "finished.done").touch()
    return folder
