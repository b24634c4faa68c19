"""`gcflow train`: one run, resumable after anything, published whole or not at all."""

import os
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gcflow.batches import resident
from gcflow.config import check_start, digest, to_dict
from gcflow.data import Dataset, load_dataset
from gcflow.distributed import World, is_first, joined, launched
from gcflow.errors import GcflowError, OutOfMemory, Preempted, Transient
from gcflow.extensions import origins
from gcflow.files import refuse_times_ahead, sha256_of
from gcflow.model import PreconditionedNetwork
from gcflow.pipeline.folders import DATA_FILES, data_folder, run_folder, snapshot
from gcflow.pipeline.job import machine_load, memory_gib, tells_its_end, this_job
from gcflow.pipeline.lock import RunLock
from gcflow.pipeline.params import Params, Run
from gcflow.pipeline.progress import Progress, say
from gcflow.pipeline.run_state import RunState
from gcflow.pipeline.slurm import minutes_left, put_back_into_queue
from gcflow.precision import tune
from gcflow.scratch import load_near
from gcflow.training import Helpers, Observer, TrainingState, initial_state, train
from gcflow.weights import is_denoiser, load_model, load_run_model, load_tensors, weights_metadata

# What the first process of a run tells the others until it has the lock.
WAITING, STOPPED, ACQUIRED = "waiting", "stopped", "acquired"


# A scheduler, Ctrl-C, and a terminal that is closed.
STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Deadline(Observer):
    """The reasons to stop that each process of a run has for itself: a signal of `STOPPING`, and the time budget.

    minutes: from now on; None means no budget.
    """

    def __init__(self, minutes: float | None) -> None:
        self.minutes = minutes
        self.end = time.monotonic() + 60 * minutes if minutes is not None else None
        self.signal = ""
        # Whether a further job like this one would help: a step was trained, or another process trains the run.
        self.advanced = False
        for number in STOPPING:
            # Under nohup a closed terminal is ignored; a shell that ignores SIGTERM leaves it to this process.
            if number == signal.SIGTERM or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._stop)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.signal = signal.Signals(number).name

    @property
    def spent(self) -> bool:
        """Whether the budget is the reason to stop."""
        return not self.signal and self.end is not None and time.monotonic() > self.end

    def stop_requested(self) -> str | None:
        """A signal, or the end of the budget."""
        if self.signal:
            return f"stopped by {self.signal}"
        if self.spent:
            return f"time budget of {self.minutes:g} minutes spent"
        return None

    def check(self, message: str) -> None:
        """Ends a job that has saved nothing. message: with a place for the reason.

        Raises:
            Preempted: there is a reason to stop.
        """
        reason = self.stop_requested()
        if reason is not None:
            raise Preempted(message.format(reason))


class _Watcher(Observer):
    """Saves what the loop offers, shows progress, and turns a signal or the time budget into an orderly stop."""

    def __init__(self, state: RunState, device: str, lock: RunLock, progress: Progress, deadline: Deadline) -> None:
        self.state = state
        self.device = device
        self.lock = lock
        self.progress = progress
        self.deadline = deadline

    def logged(self, record: dict[str, Any]) -> None:
        self.lock.require()
        machine = {"memory_gib": round(memory_gib(self.device), 3), **machine_load(self.device)}
        self.state.append({**record, **machine, "time": round(time.time(), 3)})
        detail = f"loss {record['loss']:.4g}  {record['images_per_second']:.0f} images/s"
        self.progress.update(record["step"], detail)

    def checkpoint(self, state: TrainingState) -> None:
        self.lock.require()
        self.state.save(state)
        self.deadline.advanced |= state.step > self.progress.start

    def snapshot(self, state: TrainingState) -> None:
        self.lock.require()
        self.state.save_snapshot(state)

    def stop_requested(self) -> str | None:
        return self.deadline.stop_requested()


class Inputs(NamedTuple):
    """What a run reads. weights: the file of each role. hashes: sha256 of data, weights and files of extensions."""

    dataset: Dataset
    weights: dict[str, Path]
    hashes: dict[str, str]


def find_inputs(params: Params, run: Run, load: Callable[[Path], Dataset] = load_dataset) -> Inputs:
    """The data and weights of a run. load: reads and verifies a folder of prepared data.

    Raises:
        GcflowError: one is missing or damaged.
    """
    dataset = load(data_folder(params.root, run.dataset))
    weights = {role: params.root / file for role, file in params.needed_files(run).items()}
    for role, (needed, step) in params.needed_runs(run).items():
        weights[role] = snapshot(run_folder(params.root, needed), step)
        if not weights[role].exists():
            raise GcflowError(f"{weights[role]}: {run.name} needs it; run gcflow train {needed.name} first")
    for role, path in weights.items():
        if not path.exists():
            key = f"datasets.{run.dataset}.methods.{run.method}.{role}.file"
            raise GcflowError(f"{path}: no such file, but {params.path} names it in {key}; see gcflow import-edm")
    hashes = {f"{role}_sha256": sha256_of(path) for role, path in weights.items()}
    config = params.run_config(run.name)
    code = origins(*config.parts)
    return Inputs(dataset, weights, {"data_sha256": dataset.sha256} | hashes | code)


def load_frozen(params: Params, run: Run, inputs: Inputs, device: str) -> dict[str, PreconditionedNetwork]:
    """The EMA weights of each role, tuned as the run is.

    Raises:
        GcflowError: weights are of another configuration than params.yaml has, or do not fit their role.
    """
    config, models = params.run_config(run.name), {}
    needed = params.needed_runs(run)
    for role, path in inputs.weights.items():
        if role in needed:
            models[role] = load_run_model(path, params.run_config(needed[role][0].name), device=device)
            continue
        models[role], spec, metadata = load_model(path, device=device)
        try:
            if spec.shape != inputs.dataset.shape:
                raise ValueError(f"which was made for samples of shape {list(spec.shape)}")
            if role == "init":
                check_start(spec.network, spec.preconditioning, spec.process, config)
            elif is_denoiser(metadata) != (role == "teacher"):
                raise ValueError(f"which is {'a denoiser' if role == 'predictor' else 'a consistency model'}")
            if spec.process.data_mean != config.process.data_mean:
                ours = config.process.data_mean
                raise ValueError(f"which was made for process.data_mean = {spec.process.data_mean:g}, not {ours:g}")
        except ValueError as error:
            key = f"datasets.{run.dataset}.methods.{run.method}.{role}.file"
            raise GcflowError(f"{params.path}: {key} is {path}, {error}") from None
    return {role: tune(model, config.training) for role, model in models.items()}


def begin(
    params: Params, run: Run, inputs: Inputs, device: str, data_share: float = 0.5
) -> tuple[TrainingState, Tensor, Helpers]:
    """The state of a run before its first step, its data, and the models that it needs.

    Raises:
        GcflowError: weights or data do not fit.
    """
    config, frozen = params.run_config(run.name), load_frozen(params, run, inputs, device)
    try:
        state = initial_state(config, inputs.dataset.shape, device, frozen.pop("init", None))
    except ValueError as error:
        raise GcflowError(f"{params.path}: datasets.{run.dataset}: {error}") from None
    data = resident(inputs.dataset.samples, device, data_share)
    exact = None
    if config.method.teacher == "exact":
        exact = params.dataset(run.dataset).data.exact_mixture(data.to(device), config.process).denoise
    return state, data, Helpers(frozen.get("predictor"), frozen.get("teacher"), exact)


@tells_its_end("train")
def train_run(
    params: Params,
    name: str,
    device: str = "cpu",
    minutes: float | None = None,
    restart: bool = False,
    wait: bool = False,
    data_share: float = 0.5,
    scratch: Path | None = None,
    requeue: bool = False,
) -> None:
    """Trains a run to its end, from its newest checkpoint if it has one, and publishes its outputs.

    Started by a launcher (`gcflow.pipeline.launch`, torchrun) as several processes, they share the batches.

    Args:
        params: the grid.
        name: `data set/method/seed`.
        device: torch device.
        minutes: save and stop after so long (exit code 75).
        restart: forget the run's state first.
        wait: wait for another process that trains this run, instead of refusing.
        data_share: share of the device's memory that the data may take; larger data are streamed.
        scratch: folder on the node's own disk, to which the data are copied and from which they are read.
        requeue: save before the time limit of the Slurm job, and put it back into the queue.

    Raises:
        GcflowError: bad input, a run that is locked, a checkpoint of another configuration, a device out of memory, a
            time limit in which not one step was trained.
        NonFiniteLoss: the loss is not finite.
        Preempted: a signal of `STOPPING` or the time budget; the state was saved.
    """
    run = params.parse_run(name)
    training = params.run_config(name).training
    # Of several processes the first speaks to Slurm; the others stop with it.
    requeue = requeue and is_first()
    if requeue and (left := minutes_left()) is not None:
        minutes = left if minutes is None else min(minutes, left)
    # From the start of the job, which waits, reads and compiles before its first step.
    deadline = Deadline(minutes)
    torch.set_num_threads(training.cpu_threads)
    # Beside the project, where the next job finds what this one compiled.
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str((params.root / ".cache" / "inductor").resolve()))
    try:
        with joined(device) as (world, own_device):
            _train_shared(params, run, own_device, deadline, world, restart, wait, data_share, scratch)
    except Preempted as error:
        if requeue and deadline.spent:
            if not deadline.advanced:
                raise GcflowError(f"{error}: not one step; the job needs a longer time limit") from None
            put_back_into_queue()
        raise
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            size = training.grain or training.batch
            raise OutOfMemory(
                f"{name}: {device} is out of memory ({str(error).splitlines()[0]}); lower training.grain "
                f"({size} samples pass at once now) or set training.precision to bfloat16"
            ) from None
        if launched() and any(word in str(error) for word in ("gloo", "NCCL", "Connection", "peer")):
            lost = Transient(f"{name}: another process of this run ended before this one")
            lost.heard = is_first()
            raise lost from None
        raise


def _train_shared(
    params: Params,
    run: Run,
    device: str,
    deadline: Deadline,
    world: World,
    restart: bool,
    wait: bool,
    data_share: float,
    scratch: Path | None,
) -> None:
    config, folder = params.run_config(run.name), run_folder(params.root, run)
    tell = say if world.first else lambda text: None
    meanwhile_copying = partial(deadline.check, f"{run.name}: {{}} while its data were copied; nothing was begun")
    inputs = find_inputs(params, run, partial(load_near, scratch=scratch, say=tell, meanwhile=meanwhile_copying))
    shape = inputs.dataset.shape
    world.share(config.training.grains)
    document = {"config": to_dict(config), "inputs": inputs.hashes}
    header = weights_metadata(config, 0, shape) | document | {"config_hash": digest(document)}
    state, data, helpers = begin(params, run, inputs, device, data_share)
    cadence = params.dataset(run.dataset).cadence
    kept = cadence.kept_steps(config.seed, config.training.steps)
    run_state = RunState(folder / "state" / header["config_hash"][:16], header, kept)

    if not world.first:
        while (news := world.from_first(None)) == WAITING:
            pass
        if news == STOPPED:
            raise Preempted(f"{run.name}: stopped while it waited")
        path = world.from_first(None)
        if path is not None:
            tensors, metadata = load_tensors(path)
            state.restore(tensors, metadata["step"], path)
        train(config, data, state, deadline, cadence, helpers, world)
        return

    def meanwhile() -> None:
        deadline.advanced = True
        reason = deadline.stop_requested()
        world.from_first(WAITING if reason is None else STOPPED)
        if reason is not None:
            raise Preempted(f"{run.name}: {reason} while it waited; nothing was begun")

    with RunLock(folder / "state", run.name, wait, meanwhile) as lock:
        world.from_first(ACQUIRED)
        data_files = (data_folder(params.root, run.dataset) / name for name in DATA_FILES)
        refuse_times_ahead([*data_files, *inputs.weights.values()], folder)
        run_state.open(folder, restart)
        world.from_first(run_state.restore(state))
        if state.step:
            say(f"  {run.name:<30} resumes at step {state.step}")
        if state.step < config.training.steps:
            run_state.begin_job(this_job(params.root, device, world.size, state.step))
        with Progress(run.name, config.training.steps, state.step) as progress:
            watcher = _Watcher(run_state, device, lock, progress, deadline)
            train(config, data, state, watcher, cadence, helpers, world)
        lock.require()
        run_state.publish(folder, config.training.snapshot_steps)
