"""Slurm, MLflow and DVC: what runs use where it is there."""

import os
import shutil
import sqlite3
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from gcflow.errors import GcflowError
from gcflow.pipeline.doctor.asking import PATIENCE_SECONDS, http_problem, output, started
from gcflow.pipeline.doctor.check import Check, one_line
from gcflow.pipeline.doctor.disk import present

if TYPE_CHECKING:
    from gcflow.pipeline.params import Params

# Asked in a process of its own, which can be given up: is this remote there?
ASK_REMOTE = """
import sys
from dvc.repo import Repo
remote = Repo(".").cloud.get_remote(sys.argv[1])
remote.fs.exists(remote.path)
"""


def check_slurm() -> Iterator[Check]:
    """Whether jobs can be submitted here, to which GPUs, and whether the past ones are known."""
    absent = [name for name in ("sbatch", "squeue", "sinfo") if shutil.which(name) is None]
    if len(absent) == 3:
        yield Check("Slurm", "skipped", "no Slurm here: jobs run on this machine", needed=False)
        return
    if absent:
        mend = "load the module or install the package that has Slurm's commands"
        yield Check("Slurm", "broken", f"{', '.join(absent)} not in PATH", mend, needed=False)
        return
    try:
        rows = [line.split("|") for line in output("sinfo", "--noheader", "--format=%P|%G").splitlines()]
    except GcflowError as error:
        yield Check("Slurm", "broken", f"sinfo: {one_line(error)}", "ask who runs the cluster", needed=False)
        return
    gpus = sorted({f"{row[0].strip()} ({row[1].strip()})" for row in rows if len(row) == 2 and "gpu" in row[1]})
    if not gpus:
        mend = "ask who runs the cluster for a partition whose nodes have gres gpu"
        yield Check("Slurm", "warning", f"{len(rows)} partitions, none with GPUs", mend, needed=False)
        return
    found = f"GPUs in {', '.join(gpus)}"
    try:
        output("sacct", "--noheader", "--format=JobID")
    except (GcflowError, FileNotFoundError):
        mend = "let the profile say slurm-status-command: squeue"
        yield Check("Slurm", "warning", f"{found}; no accounting", mend, needed=False)
    else:
        yield Check("Slurm", "OK", f"{found}; accounting", needed=False)


def check_tracking(params: "Params") -> Iterator[Check]:
    """Whether runs can be mirrored to MLflow now; they never wait for it."""
    from gcflow.pipeline.tracking.server import tracking_uri

    uri = tracking_uri(params)
    scheme, _, place = uri.partition("://")
    # An address may carry a password.
    shown = f"{scheme}://{place.rpartition('@')[2]}" if place else uri
    if scheme in ("http", "https"):
        problem = http_problem(f"{uri.rstrip('/')}/health")
    elif scheme == "sqlite":
        problem = _sqlite_problem(Path(place.removeprefix("/")))
    elif scheme == "file" or not (place or uri.startswith("databricks")):
        folder = present(Path(place or uri))
        problem = None if os.access(folder, os.W_OK) else f"{folder} cannot be written"
    else:
        yield Check(
            "MLflow", "skipped", f"{shown}: not asked", "gcflow track sync shows whether it answers", needed=False
        )
        return
    if problem is None:
        yield Check("MLflow", "OK", shown, needed=False)
    else:
        later = "no run needs it; gcflow track sync sends later what is missing"
        yield Check("MLflow", "warning", f"{shown}: {problem}", later, needed=False)


def _sqlite_problem(path: Path) -> str | None:
    if not path.exists():
        return None if os.access(present(path.parent), os.W_OK) else f"{path.parent} cannot be written"
    try:
        database = sqlite3.connect(f"{path.resolve().as_uri()}?mode=rw", uri=True, timeout=1)
        try:
            database.execute("begin immediate")
            database.rollback()
        finally:
            database.close()
    except sqlite3.Error as error:
        return one_line(error)
    return None


def check_dvc(root: Path) -> Iterator[Check]:
    """Whether results can be recorded, and the remotes reached. No stage needs it."""
    if not any((folder / ".dvc").is_dir() for folder in (root.resolve(), *root.resolve().parents)):
        yield Check("DVC", "missing", "no DVC repository", "dvc init (without Git: dvc init --no-scm)", needed=False)
        return
    try:
        listed = output(sys.executable, "-m", "dvc", "remote", "list", seconds=PATIENCE_SECONDS / 2, folder=root)
    except GcflowError as error:
        yield Check("DVC", "broken", one_line(error), "mend .dvc/config", needed=False)
        return
    yield Check("DVC", "OK", "repository is initialised", needed=False)
    lines = (line.strip().removesuffix("(default)").split(maxsplit=1) for line in listed.splitlines())
    remotes = [(line[0], line[1].strip()) for line in lines if len(line) == 2]
    if not remotes:
        mend = "to share results: dvc remote add --default storage PATH-OR-URL"
        yield Check("DVC remote", "skipped", "none is configured", mend, needed=False)
    # Beside each other: each may take its time.
    asked = [started(partial(_remote_problem, root, name, url)) for name, url in remotes]
    for (name, url), problem in zip(remotes, asked, strict=True):
        found, subject = problem.result(), f"DVC remote {name}"
        if found is None:
            yield Check(subject, "OK", url, needed=False)
        else:
            mend = "mend the remote (dvc remote modify), or work without dvc push and pull"
            yield Check(subject, "warning", f"{url}: {found}", mend, needed=False)


def _remote_problem(root: Path, name: str, url: str) -> str | None:
    if "://" not in url:
        folder = present(Path(url))
        if folder != Path(url):
            return "no such folder"
        return None if os.access(folder, os.W_OK) else "cannot be written"
    if url.startswith(("http://", "https://")):
        # DVC itself takes a server that is down for one that lacks the file. Only DVC knows the password.
        return http_problem(url, refuses=False)
    try:
        output(sys.executable, "-c", ASK_REMOTE, name, seconds=PATIENCE_SECONDS / 2, folder=root)
    except GcflowError as error:
        return one_line(error)
    return None
