"""The Slurm job that a training runs in: how long it may last, and its way back into the queue."""

import os
import re
import subprocess

from gcflow.pipeline.progress import say

MINUTES_TO_SAVE = 2.0


def _slurm(*command: str) -> str:
    """What a command of Slurm answers, nothing if it fails; its errors are shown."""
    try:
        return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, timeout=60).stdout.strip()
    except (OSError, subprocess.TimeoutExpired) as error:
        say(f"gcflow: warning: {error}")
        return ""


def minutes_left() -> float | None:
    """Minutes until a training has to begin to save; None outside Slurm, or if its job has no time limit."""
    job = os.environ.get("SLURM_JOB_ID")
    left = _slurm("squeue", "--noheader", f"--jobs={job}", "--format=%L") if job else ""
    parts = re.fullmatch(r"(?:(?:(\d+)-)?(\d+):)?(\d+):(\d+)", left)
    if not parts:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in parts.groups())
    return 1440 * days + 60 * hours + minutes + seconds / 60 - MINUTES_TO_SAVE


def put_back_into_queue() -> None:
    """Has Slurm end this process's job, and start it again under its number."""
    if job := os.environ.get("SLURM_JOB_ID"):
        _slurm("scontrol", "requeue", job)
