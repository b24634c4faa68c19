"""What a job of training ran on, with which code: kept beside its run, for the report and for MLflow's tags."""

import os
import platform
import resource
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

# `gcflow record` rewrites it: it says nothing of the code that ran.
NOT_CODE = ":(exclude)dvc.lock"


def _git(root: Path, *arguments: str) -> str | None:
    """What git says, without its locks; None where there is no git or no repository."""
    command = ["git", "--no-optional-locks", "-C", str(root), *arguments]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() if result.returncode == 0 else None


def device_name(device: str) -> str:
    """The model of the GPU or CPU that a torch device stands for, e.g. `NVIDIA H200`."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.processor() or platform.machine())


def memory_gib(device: str) -> float:
    """The largest amount of memory in use so far, in GiB: of a GPU, what torch allocated; else of this process."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def this_job(root: Path, device: str, processes: int, step: int) -> dict[str, Any]:
    """This process's job.

    Args:
        root: the project's folder.
        device: torch device of its first process.
        processes: how many share the run.
        step: the first one it trains.

    Returns:
        begun (UTC, ISO 8601), step, host, device (its model), processes, torch and gcflow (versions), commit and dirty
        of the project's git repository (None without one), slurm_job (None outside Slurm).
    """
    import torch

    commit = _git(root, "rev-parse", "HEAD")
    changes = _git(root, "status", "--porcelain", "--untracked-files=no", "--", ".", NOT_CODE)
    return {
        "begun": datetime.now(UTC).isoformat(timespec="seconds"),
        "step": step,
        "host": platform.node(),
        "device": device_name(device),
        "processes": processes,
        "torch": torch.__version__,
        "gcflow": version("gcflow"),
        "commit": commit,
        "dirty": None if commit is None or changes is None else bool(changes),
        "slurm_job": os.environ.get("SLURM_JOB_ID"),
    }
