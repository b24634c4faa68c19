"""What a job of a run leaves beside it of itself: on what and with which code it ran, and how it ended."""

import os
import platform
import resource
import subprocess
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec

import psutil

from gcflow import __version__
from gcflow.config import digest, to_dict
from gcflow.errors import GcflowError, Preempted
from gcflow.files import write_json
from gcflow.pipeline.folders import end_path
from gcflow.pipeline.lock import newest_lease
from gcflow.pipeline.params import Params, Run
from gcflow.readable import one_line

P = ParamSpec("P")
Job = Callable[Concatenate[Params, str, P], None]

# What commands rewrite says nothing of the code that ran.
NOT_CODE = tuple(f":(exclude){name}" for name in ("dvc.lock", "workflow/runs.yaml", "seeds.yaml", "docs/evidence"))


def _git(root: Path, *arguments: str) -> str | None:
    """What git says, without its locks; None where there is no git or no repository."""
    command = ["git", "--no-optional-locks", "-C", str(root), *arguments]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() if result.returncode == 0 else None


def code_of(root: Path) -> dict[str, Any]:
    """`commit`, and `dirty` if code was changed since, of the project's git repository; None without one."""
    commit = _git(root, "rev-parse", "HEAD")
    changes = _git(root, "status", "--porcelain", "--untracked-files=no", "--", ".", *NOT_CODE)
    return {"commit": commit, "dirty": None if commit is None or changes is None else bool(changes)}


def commit_words(commit: str | None, dirty: bool | None) -> str:
    """What `code_of` found, to be read."""
    words = commit[:12] if commit else "unknown"
    return f"{words} with uncommitted changes" if dirty else words


def device_name(device: str) -> str:
    """The model of the GPU or CPU that a torch device stands for, e.g. `NVIDIA H200`."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
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


def machine_load(device: str) -> dict[str, float]:
    """How busy the machine is, in percent, under MLflow's names for it; of processors, since the last call.

    A GPU's is there where NVIDIA's library is (`pip install nvidia-ml-py`).
    """
    load = {
        "system/cpu_utilization_percentage": psutil.cpu_percent(),
        "system/system_memory_usage_percentage": psutil.virtual_memory().percent,
    }
    if device.startswith("cuda"):
        import torch

        # Of many kinds: no library, no driver, no permission. Training goes on without the number.
        with suppress(Exception):
            load["system/gpu_utilization_percentage"] = float(torch.cuda.utilization(device))
    return load


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

    return {
        "begun": datetime.now(UTC).isoformat(timespec="seconds"),
        "step": step,
        "host": platform.node(),
        "device": device_name(device),
        "processes": processes,
        "torch": torch.__version__,
        "gcflow": __version__,
        **code_of(root),
        "slurm_job": os.environ.get("SLURM_JOB_ID"),
    }


def tells_its_end(verb: str) -> Callable[[Job[P]], Job[P]]:
    """Makes a job of a run write to `end_path` how it ended: nobody has to read its log.

    The file has: job (the verb), state (`done`, `interrupted`: stopped on request, `failed`), exit_code, error (the
    line that tells why, or empty), time (UTC, ISO 8601), config (hash of the configuration that it ran with). There is
    none while a job runs, nor after one that was killed.
    """

    def decorate(job: Job[P]) -> Job[P]:
        @wraps(job)
        def told(params: Params, name: str, /, *args: P.args, **kwargs: P.kwargs) -> None:
            from gcflow.distributed import is_first

            run, ended = params.parse_run(name), None
            tells = is_first()
            if tells:
                with suppress(OSError):
                    end_path(params.root, run).unlink(missing_ok=True)
            try:
                job(params, name, *args, **kwargs)
            except BaseException as error:
                ended = error
                raise
            finally:
                if tells:
                    _tell_end(params, run, verb, ended)

        return told

    return decorate


def _tell_end(params: Params, run: Run, verb: str, error: BaseException | None) -> None:
    path = end_path(params.root, run)
    lease = newest_lease(path.parent)
    # Whoever has the run now tells how it ends.
    if lease and lease.held:
        return
    interrupted = isinstance(error, Preempted | KeyboardInterrupt)
    kind = "" if error is None or isinstance(error, GcflowError) else f"{type(error).__name__}: "
    end = {
        "job": verb,
        "state": "done" if error is None else "interrupted" if interrupted else "failed",
        "exit_code": 0 if error is None else getattr(error, "exit_code", 2 if isinstance(error, OSError) else 1),
        "error": one_line(f"{kind}{error or ''}"),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "config": digest(to_dict(params.run_config(run.name))),
    }
    # A full disk has ended the job, or does not keep it from having ended well.
    with suppress(OSError):
        write_json(path, end)
