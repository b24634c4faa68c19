"""`gcflow track follow`: sends what the files of a run say to MLflow while it is trained."""

import json
import os
import select
import time
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

from gcflow.pipeline.folders import run_folder
from gcflow.pipeline.params import Params, Run
from gcflow.pipeline.tracking.files import files_of
from gcflow.pipeline.tracking.mirror import Mirror
from gcflow.pipeline.tracking.sync import one_line, send_run

SECONDS_BETWEEN_PASSES = 10.0


def _monitors() -> list[Any]:
    """MLflow's own readers of the machine's load: processor and memory, and GPUs where their library is there."""
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor

    monitors = []
    for kind in (CPUMonitor, GPUMonitor):
        try:
            monitors.append(kind())
        except Exception as error:
            # Without NVIDIA's library, or without a GPU.
            print(f"no {kind.__name__}: {one_line(error)}", flush=True)  # noqa: T201
    return monitors


def _observe(monitors: Iterable[Any], path: Path) -> None:
    values: dict[str, float] = {}
    for monitor in monitors:
        monitor.collect_metrics()
        values |= {f"system/{name}": float(value) for name, value in monitor.aggregate_metrics().items()}
        monitor.clear_metrics()
    with path.open("a") as file:
        file.write(json.dumps({"time": round(time.time(), 3), **values}) + "\n")


def _state_in_use(folder: Path) -> Path | None:
    """The state folder that the job is writing to: the one whose metrics changed last."""
    metrics = sorted((folder / "state").glob("*/metrics.jsonl"), key=lambda path: path.stat().st_mtime)
    return metrics[-1].parent if metrics else None


def follow(params: Params, run: Run, until: IO[Any], interval: float = SECONDS_BETWEEN_PASSES) -> None:
    """Mirrors a run until `until` ends, and once more after that. until: a pipe to which nobody writes."""
    # A core that the training does not use is enough.
    os.nice(19)
    mirror: Mirror | None = None
    monitors = _monitors()
    ended = False
    while True:
        try:
            place = _state_in_use(run_folder(params.root, run))
            if place is not None and not ended:
                _observe(monitors, place / "system.jsonl")
            mirror = mirror or Mirror(params)
            if wanted := files_of(params.root, run):
                send_run(params, mirror, run, wanted)
        except Exception as error:
            # The run's own files hold everything: the next pass, or `gcflow track sync`, sends it.
            mirror = None
            print(f"{time.strftime('%F %T')} not sent: {one_line(error)}", flush=True)  # noqa: T201
        if ended:
            return
        ended = bool(select.select([until], [], [], interval)[0])
