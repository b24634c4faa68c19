"""How far every run is, from the files that it leaves itself: no scheduler is asked, and nothing is written."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

from gcflow.config import RunConfig, to_dict
from gcflow.pipeline.folders import data_folder, log_path, run_folder
from gcflow.pipeline.graph import Graph
from gcflow.pipeline.lock import Lease, newest_lease
from gcflow.pipeline.params import Params, Run
from gcflow.pipeline.status.ends import checkpoint_header, last_record, last_words

State = Literal["evaluated", "done", "running", "interrupted", "failed", "waiting"]

# On a network file system a run's few files wait for the server one after the other.
READERS = 16
# A line of metrics that is late by so much is worth a look at the process.
LATE_FACTOR, LATE_SECONDS = 5.0, 120.0
# What else lies beside the folders of a run's configurations.
NOT_TRAINING = ("evaluation", "tracking")
# File systems date files no finer than this.
TICK_SECONDS = 1.0


@dataclass(frozen=True)
class Standing:
    """How far a run is.

    state: `evaluated`: its metrics are of the weights that it ended with. `done`: it is trained as params.yaml has it
    now. `running`: a process holds its lock. `interrupted`: none does, but one saved a checkpoint or ended without a
    word. `failed`: its last job said why. `waiting`: it is to be begun.
    trained: whether its weights are final. finished: whether the target wants nothing more of it.
    step: the last one known, of `steps`. host, pid, slurm_job, since: of the process that trains it or ended without a
    word. seconds_silent: since the sign of life of that process. attempt: how often its training was begun.
    """

    run: str
    state: State
    step: int
    steps: int
    trained: bool = False
    finished: bool = False
    images_per_second: float | None = None
    seconds_left: float | None = None
    host: str | None = None
    pid: int | None = None
    slurm_job: str | None = None
    since: str | None = None
    seconds_silent: float | None = None
    attempt: int = 0
    detail: str = ""


class Method(NamedTuple):
    """What the runs of a method have in common but for the seed. document: the configuration as JSON values."""

    config: RunConfig
    document: dict[str, Any]


def clock(seconds: float) -> str:
    """A duration as h:mm:ss."""
    whole = round(max(0.0, seconds))
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"


class Survey:
    """The runs of a target and of what it depends on, in an order in which they could be trained.

    Args:
        params: the grid.
        target: a view of the paper, a data set, a run, a stage, or `all` of the scale.
        scale: whose data sets `all` and the views mean.

    Raises:
        GcflowError: there is no such target.
    """

    def __init__(self, params: Params, target: str, scale: str) -> None:
        self.params, self.target, self.scale = params, target, scale
        graph = Graph(params, scale)
        jobs = [graph.jobs[name] for name in graph.target(target)]
        self.runs = [job.run for job in jobs if job.kind == "train" and job.run]
        self.measured = {job.run for job in jobs if job.kind == "evaluate"}
        # A configuration takes longer to read than all files of a run.
        firsts = {(run.dataset, run.method): run for run in reversed(self.runs)}
        configs = {key: params.run_config(run.name) for key, run in firsts.items()}
        self.methods = {key: Method(config, to_dict(config)) for key, config in configs.items()}

    def standings(self) -> list[Standing]:
        """Every run, as it is now."""
        data = {name: self._data_sha256(name) for name in {run.dataset for run in self.runs}}
        with ThreadPoolExecutor(READERS) as pool:
            found = list(pool.map(lambda run: self._standing(run, data[run.dataset]), self.runs))
        trained = {standing.run for standing in found if standing.trained}
        return [self._awaiting(standing, trained, data) for standing in found]

    def _data_sha256(self, dataset: str) -> str | None:
        with suppress(OSError, ValueError, KeyError, TypeError):
            manifest = json.loads((data_folder(self.params.root, dataset) / "manifest.json").read_bytes())
            return str(manifest["sha256"]["samples.npy"])
        return None

    def _standing(self, run: Run, data: str | None) -> Standing:
        root, method = self.params.root, self.methods[run.dataset, run.method]
        folder, steps = run_folder(root, run), method.config.training.steps
        lease = newest_lease(folder / "state")
        standing = Standing(run.name, "waiting", 0, steps, attempt=lease.attempt if lease else 0)
        if lease and lease.held:
            return self._running(run, _with(standing, lease), method.config.training.batch)
        published = folder / "config.json"
        config = method.document | {"seed": run.seed}
        if _is_published(published, config, data):
            standing = replace(standing, state="done", trained=True, finished=run not in self.measured, step=steps)
            return self._measured(run, standing, published)
        words, failed = "", False
        log = log_path(root, run, "train")
        if _changed(log) + TICK_SECONDS >= (lease.changed if lease else 0.0):
            words, failed = last_words(log, run.name)
        standing = replace(standing, step=_step_reached(folder / "state", config, data), detail=words)
        if lease and not lease.released:
            return replace(_with(standing, lease), state="interrupted", detail="")
        if failed:
            return replace(standing, state="failed")
        if standing.step:
            return replace(standing, state="interrupted")
        return replace(standing, detail="trained with other parameters or data") if published.exists() else standing

    def _running(self, run: Run, standing: Standing, batch: int) -> Standing:
        state = run_folder(self.params.root, run) / "state"
        folders = [path for path in state.iterdir() if path.is_dir() and path.name not in NOT_TRAINING]
        # Of another configuration there may be older ones.
        newest = max(folders, key=lambda path: max(_changed(path), _changed(path / "metrics.jsonl")), default=state)
        record = last_record(newest / "metrics.jsonl")
        standing = replace(standing, step=int(record.get("step", 0)))
        now, begun = time.time(), _seconds(standing.since)
        if not record or record["time"] < begun:
            ago = f"begun {clock(now - begun)} ago, " if begun else ""
            return replace(standing, detail=f"{ago}no step logged yet")
        speed = float(record["images_per_second"])
        left = (standing.steps - standing.step) * batch / speed
        standing = replace(standing, images_per_second=speed, seconds_left=left)
        silent, usual = now - record["time"], self.params.dataset(run.dataset).cadence.log_every * batch / speed
        if silent > max(LATE_SECONDS, LATE_FACTOR * usual):
            return replace(standing, detail=f"no step logged for {clock(silent)}, usually every {clock(usual)}")
        return standing

    def _measured(self, run: Run, standing: Standing, published: Path) -> Standing:
        metrics = published.parent / "evaluation" / "metrics.json"
        if _changed(metrics) >= _changed(published):
            return replace(standing, state="evaluated", finished=True)
        log = log_path(self.params.root, run, "evaluate")
        if not standing.finished and _changed(log) >= _changed(published):
            words, failed = last_words(log, run.name)
            return replace(standing, state="failed", detail=f"evaluation: {words}") if failed else standing
        return standing

    def _awaiting(self, standing: Standing, trained: set[str], data: dict[str, str | None]) -> Standing:
        if standing.state != "waiting":
            return standing
        run = self.params.parse_run(standing.run)
        needed = {needed.name for needed, _ in self.params.needed_runs(run).values()} - trained
        files = {file for file in self.params.needed_files(run).values() if not (self.params.root / file).exists()}
        missing = ([] if data[run.dataset] else [f"the data of {run.dataset}"]) + sorted(needed | files)
        waits = f"waits for {', '.join(missing)}" if missing else ""
        return replace(standing, detail="; ".join(text for text in (standing.detail, waits) if text))


def _with(standing: Standing, lease: Lease) -> Standing:
    holder = lease.holder
    return replace(
        standing,
        state="running",
        host=holder.host or None,
        pid=holder.pid or None,
        slurm_job=holder.job,
        since=holder.since or None,
        seconds_silent=round(lease.silence, 1),
    )


def _fits(record: Any, config: dict[str, Any], data: str | None) -> bool:
    """Whether what a run recorded of itself is what it would be trained with now."""
    try:
        return bool(record["config"] == config and data in (None, record["inputs"]["data_sha256"]))
    except (KeyError, TypeError):
        return False


def _step_reached(state: Path, config: dict[str, Any], data: str | None) -> int:
    """The step from which a run would go on."""
    newest = {path.parent: path for path in sorted(state.glob("*/checkpoint-*.safetensors"))}
    headers = [checkpoint_header(path) for path in newest.values()]
    return max((int(header["step"]) for header in headers if _fits(header, config, data)), default=0)


def _is_published(record: Path, config: dict[str, Any], data: str | None) -> bool:
    try:
        document = json.loads(record.read_bytes())
    except (OSError, ValueError):
        return False
    return _fits(document, config, data) and (record.parent / "weights.safetensors").exists()


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _seconds(moment: str | None) -> float:
    return datetime.fromisoformat(moment).timestamp() if moment else 0.0
