"""`gcflow train`: one run, resumable after anything, published whole or not at all.

While it runs everything lies in `state/<config hash>/` beside the outputs, because Snakemake and DVC delete the
declared outputs of a job that fails. At the end the snapshots, weights and metrics are linked to their places.
"""

import fcntl
import json
import os
import shutil
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from gcflow.config import RunConfig, digest, to_dict
from gcflow.data import Dataset, load_dataset
from gcflow.errors import GcflowError
from gcflow.files import atomic_path, sha256_of, write_json, write_text
from gcflow.pipeline.folders import data_folder, run_folder, snapshot
from gcflow.pipeline.params import Params, Run
from gcflow.pipeline.progress import Progress, say
from gcflow.training import (
    Observer,
    TrainingState,
    initial_state,
    load_model,
    load_tensors,
    save_tensors,
    train,
    weights_metadata,
)

KEPT_CHECKPOINTS = 2


@contextmanager
def locked(folder: Path, name: str) -> Iterator[None]:
    """Keeps a second process out of a run.

    Raises:
        GcflowError: another process trains this run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            raise GcflowError(
                f"{name}: already being trained by {file.read().strip()}; wait for it or stop it"
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


class RunState:
    """The undeclared folder of a run in progress: checkpoints, snapshots and metrics so far.

    Args:
        folder: `<run folder>/state/<config hash>`.
        header: what every weights file of this run carries (`weights_metadata`).
    """

    def __init__(self, folder: Path, header: dict[str, Any]) -> None:
        self.folder = folder
        self.header = header
        self.metrics = folder / "metrics.jsonl"

    def checkpoints(self) -> list[Path]:
        """Newest first."""
        return sorted(self.folder.glob("checkpoint-*.safetensors"), reverse=True)

    def save(self, state: TrainingState) -> None:
        """Writes a checkpoint atomically and keeps the last two."""
        path = self.folder / f"checkpoint-{state.step:08d}.safetensors"
        save_tensors(path, state.tensors(), self.header | {"step": state.step})
        for old in self.checkpoints()[KEPT_CHECKPOINTS:]:
            old.unlink()

    def save_snapshot(self, state: TrainingState) -> None:
        """Writes the weights of a snapshot step."""
        save_tensors(snapshot(self.folder, state.step), state.weights(), self.header | {"step": state.step})

    def restore(self, state: TrainingState) -> None:
        """Puts the newest checkpoint that loads into `state`; leaves it untouched if there is none.

        Raises:
            GcflowError: a checkpoint belongs to another configuration.
        """
        for path in self.checkpoints():
            try:
                tensors, metadata = load_tensors(path)
            except GcflowError as error:
                say(f"{error}; trying the checkpoint before it")
                # Out of the way of `save`, which would keep it as one of the newest two.
                path.rename(path.with_name(f"damaged-{path.name}"))
                continue
            if metadata.get("config_hash") != self.header["config_hash"]:
                keys = ", ".join(differing_keys(metadata, self.header)) or "the header"
                raise GcflowError(f"{path}: checkpoint of another configuration ({keys} differ); move it away")
            state.restore(tensors, metadata["step"])
            return

    def append(self, record: dict[str, Any]) -> None:
        """Adds a line to metrics.jsonl."""
        try:
            with self.metrics.open("a") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise GcflowError(f"{self.metrics}: cannot be written ({error.strerror}); free space, then again") from None

    def cut_metrics(self, step: int) -> None:
        """Drops the lines after `step`, which the resumed run will write again, and a half-written last one."""
        if not self.metrics.exists():
            return
        kept = [line for line in self.metrics.read_text().splitlines() if _step_of(line) <= step]
        write_text(self.metrics, "".join(f"{line}\n" for line in kept))

    def publish(self, folder: Path, steps: list[int]) -> None:
        """Links snapshots, final weights and metrics to their declared places; config.json comes last."""
        published = [snapshot(folder, step) for step in steps]
        for step, target in zip(steps, published, strict=True):
            link(snapshot(self.folder, step), target)
        for stale in set((folder / "snapshots").glob("*.safetensors")) - set(published):
            stale.unlink()
        link(snapshot(self.folder, steps[-1]), folder / "weights.safetensors")
        link(self.metrics, folder / "metrics.jsonl")
        write_json(folder / "config.json", {key: self.header[key] for key in ("config", "inputs", "config_hash")})


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")


def link(source: Path, target: Path) -> None:
    """Makes `target` another name of `source`'s bytes, or a copy where the file system cannot, atomically."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(target) as temporary:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)


def differing_keys(found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """Dotted keys of config and inputs whose values differ between two headers."""

    def flat(document: Any, prefix: str) -> dict[str, Any]:
        if not isinstance(document, dict):
            return {prefix: document}
        return {k: v for key, value in document.items() for k, v in flat(value, f"{prefix}.{key}").items()}

    a, b = ({**flat(h.get("config"), "config"), **flat(h.get("inputs"), "inputs")} for h in (found, expected))
    return sorted(key for key in a.keys() | b.keys() if a.get(key) != b.get(key))


class _Watcher(Observer):
    """Saves what the loop offers, shows progress, and turns SIGTERM or the time limit into an orderly stop."""

    def __init__(self, state: RunState, progress: Progress, minutes: float | None) -> None:
        self.state = state
        self.progress = progress
        self.deadline = time.monotonic() + 60 * minutes if minutes is not None else None
        self.minutes = minutes
        self.terminated = False
        signal.signal(signal.SIGTERM, self._terminate)

    def _terminate(self, number: int, frame: FrameType | None) -> None:
        self.terminated = True

    def logged(self, record: dict[str, Any]) -> None:
        self.state.append({**record, "time": round(time.time(), 3)})
        detail = f"loss {record['loss']:.4g}  {record['images_per_second']:.0f} images/s"
        self.progress.update(record["step"], detail)

    def checkpoint(self, state: TrainingState) -> None:
        self.state.save(state)

    def snapshot(self, state: TrainingState) -> None:
        self.state.save_snapshot(state)

    def stop_requested(self) -> str | None:
        if self.terminated:
            return "stopped by SIGTERM"
        if self.deadline is not None and time.monotonic() > self.deadline:
            return f"time limit of {self.minutes:g} minutes reached"
        return None


def _identity(config: RunConfig, inputs: dict[str, str], shape: tuple[int, ...]) -> dict[str, Any]:
    document = {"config": to_dict(config), "inputs": inputs}
    return {**weights_metadata(config, 0, shape), **document, "config_hash": digest(document)}


def _prepare_inputs(params: Params, run: Run) -> tuple[Dataset, Path | None, dict[str, str]]:
    dataset = load_dataset(data_folder(params.root, run.dataset))
    inputs = {"data_sha256": dataset.sha256}
    reference = params.reference(run)
    if reference is None:
        return dataset, None, inputs
    needed, step = reference
    path = snapshot(run_folder(params.root, needed), step)
    if not path.exists():
        raise GcflowError(f"{path}: {run.name} needs it; run gcflow train {needed.name} first")
    if load_model(path)[1] != params.run_config(needed.name):
        raise GcflowError(f"{path}: weights of another configuration; run gcflow train {needed.name} first")
    return dataset, path, inputs | {"reference_sha256": sha256_of(path)}


def train_run(
    params: Params,
    name: str,
    device: str = "cpu",
    minutes: float | None = None,
    restart: bool = False,
) -> None:
    """Trains a run to its end, from its newest checkpoint if it has one, and publishes its outputs.

    Args:
        params: the grid.
        name: `data set/method/seed`.
        device: torch device.
        minutes: save and stop after so long (exit code 75).
        restart: forget the run's state first.

    Raises:
        GcflowError: bad input, a run that is locked, a checkpoint of another configuration.
        NonFiniteLoss: the loss is not finite.
        Preempted: SIGTERM or the time limit; the state was saved.
    """
    run = params.parse_run(name)
    config = params.run_config(name)
    torch.set_num_threads(config.training.cpu_threads)
    dataset, reference, inputs = _prepare_inputs(params, run)
    folder = run_folder(params.root, run)
    header = _identity(config, inputs, dataset.shape)

    with locked(folder / "state", name):
        run_state = RunState(folder / "state" / header["config_hash"][:16], header)
        if restart:
            shutil.rmtree(run_state.folder, ignore_errors=True)
        run_state.folder.mkdir(parents=True, exist_ok=True)
        try:
            state = initial_state(config, dataset.shape, device)
        except ValueError as error:
            raise GcflowError(f"{params.path}: datasets.{run.dataset}: {error}") from None
        run_state.restore(state)
        run_state.cut_metrics(state.step)
        if state.step:
            say(f"  {name:<30} resumes at step {state.step}")
        frozen = load_model(reference, "ema", device)[0] if reference else None
        data = dataset.samples.to(device)
        exact = None
        if config.method.teacher == "exact":
            exact = params.dataset(run.dataset).data.exact_mixture(data, config.process).denoise
        with Progress(name, config.training.steps, state.step) as progress:
            watcher = _Watcher(run_state, progress, minutes)
            train(config, data, state, watcher, params.dataset(run.dataset).cadence, frozen, exact)
        run_state.publish(folder, config.training.snapshot_steps)
