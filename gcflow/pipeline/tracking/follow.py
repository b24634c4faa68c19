"""`gcflow track follow`: sends what the files of a run say to MLflow while it is trained."""

import json
import select
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

from gcflow.pipeline.folders import run_folder
from gcflow.pipeline.params import Params, Run
from gcflow.pipeline.tracking.files import SYSTEM, files_of, newest_state
from gcflow.pipeline.tracking.mirror import Mirror
from gcflow.pipeline.tracking.server import one_line
from gcflow.pipeline.tracking.sync import send_run


class _Log:
    """What goes wrong, with its time, once and not at every pass."""

    def __init__(self) -> None:
        self.last = ""

    def __call__(self, text: str) -> None:
        if text != self.last:
            sys.stderr.write(f"{time.strftime('%F %T')} {text}\n")
            sys.stderr.flush()
        self.last = text


def _monitors(log: _Log) -> list[Any]:
    """MLflow's own readers of the machine's load: processor and memory, and GPUs where their library is there."""
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor

    monitors = []
    for kind in (CPUMonitor, GPUMonitor):
        try:
            monitors.append(kind())
        except Exception as error:
            # Without NVIDIA's library, or without a GPU.
            log(f"no {kind.__name__}: {one_line(error)}")
    return monitors


def _observe(monitors: Iterable[Any], path: Path) -> None:
    values: dict[str, float] = {}
    for monitor in monitors:
        monitor.collect_metrics()
        values |= {f"{SYSTEM}{name}": float(value) for name, value in monitor.aggregate_metrics().items()}
        monitor.clear_metrics()
    with path.open("a") as file:
        file.write(json.dumps({"time": round(time.time(), 3), **values}) + "\n")


def follow(params: Params, run: Run, until: IO[Any]) -> None:
    """Mirrors a run until `until` ends, and once more after that. until: a pipe to which nobody writes."""
    log, mirror, ended = _Log(), None, False
    monitors = _monitors(log)
    while True:
        try:
            place = newest_state(run_folder(params.root, run))
            if place is not None and not ended:
                _observe(monitors, place / "system.jsonl")
            mirror = mirror or Mirror(params)
            if wanted := files_of(params.root, run):
                send_run(params, mirror, run, wanted)
        except Exception as error:
            # The run's own files hold everything: the next pass, or `gcflow track sync`, sends it.
            mirror = None
            log(f"not sent: {one_line(error)}")
        if ended:
            return
        ended = bool(select.select([until], [], [], params.tracking.follow_every)[0])
