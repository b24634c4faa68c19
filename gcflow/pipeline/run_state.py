"""The folder in which a run is made: checkpoints, snapshots and metrics, until they are published.

While a run is trained everything lies in `state/<config hash>/` beside its outputs, because Snakemake and DVC delete
the declared outputs of a job that fails. At the end snapshots, weights and metrics are linked to their places.
"""

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gcflow.config import differing_keys
from gcflow.errors import GcflowError
from gcflow.files import atomic_path, expected_form, read_json, remove_temporaries, write_json
from gcflow.pipeline.folders import snapshot
from gcflow.pipeline.progress import say
from gcflow.training import TrainingState
from gcflow.weights import load_tensors, save_tensors

KEPT_CHECKPOINTS = 2
# The tensor of a checkpoint with the bytes of metrics.jsonl.
LOG = "log"


class RunState:
    """The undeclared folder of a run in progress: checkpoints, snapshots and metrics so far.

    A checkpoint holds the log up to its step: whatever a crash made of metrics.jsonl, it is written anew. The next
    line of the log has the hash of the checkpoint's state, and config.json that of the end.

    Args:
        folder: `<run folder>/state/<config hash>`.
        header: what every weights file of this run carries (`weights_metadata`).
        keep: steps whose checkpoints stay.
    """

    def __init__(self, folder: Path, header: dict[str, Any], keep: Sequence[int] = ()) -> None:
        self.folder = folder
        self.header = header
        self.metrics = folder / "metrics.jsonl"
        self.log = bytearray()
        self.keep = keep
        # The checkpoint that the next line of the log vouches for.
        self.saved: dict[str, Any] | None = None
        self.jobs = folder / "jobs.json"

    def open(self, published: Path, restart: bool) -> None:
        """Makes the folder, and removes what killed processes left half-written, here and in the run's own folder.

        restart: forget everything in it first.
        """
        if restart:
            shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        for place in (self.folder, published):
            remove_temporaries(place)
            remove_temporaries(place / "snapshots")

    def checkpoints(self) -> list[Path]:
        """Newest first."""
        return sorted(self.folder.glob("checkpoint-*.safetensors"), reverse=True)

    def kept_states(self) -> list[Path]:
        """Checkpoints that stay, in order."""
        return sorted(self.folder.glob("kept-*.safetensors"))

    def save(self, state: TrainingState) -> None:
        """Writes a checkpoint atomically, and removes all but the last two and those to keep."""
        path = self.folder / f"checkpoint-{state.step:08d}.safetensors"
        log = torch.from_numpy(np.array(self.log, np.uint8))
        save_tensors(path, state.tensors() | {LOG: log}, self.header | {"step": state.step})
        self._saved(path, state)
        for old in self.checkpoints()[KEPT_CHECKPOINTS:]:
            old.unlink()

    def _saved(self, path: Path, state: TrainingState) -> None:
        self.saved = {"step": state.step, "sha256": state.sha256()}
        if state.step in self.keep:
            link(path, path.with_name(path.name.replace("checkpoint", "kept")))

    def save_snapshot(self, state: TrainingState) -> None:
        """Writes the weights of a snapshot step."""
        save_tensors(snapshot(self.folder, state.step), state.weights(), self.header | {"step": state.step})

    def restore(self, state: TrainingState) -> Path | None:
        """Puts the newest checkpoint that loads, or a kept one, into `state` and metrics.jsonl; its path, or None.

        Raises:
            GcflowError: a checkpoint belongs to another configuration, or to an older version of gcflow.
        """
        for path in (*self.checkpoints(), *reversed(self.kept_states())):
            try:
                tensors, metadata = load_tensors(path)
                if not metadata:
                    raise GcflowError(f"{path}: damaged (it has no header)")
            except GcflowError as error:
                say(f"{error}; trying the checkpoint before it")
                # Out of the way of `save`, which would keep it as one of the newest two.
                path.rename(path.with_name(f"damaged-{path.name}"))
                continue
            if metadata.get("config_hash") != self.header["config_hash"]:
                compared = [{key: h.get(key) for key in ("config", "inputs")} for h in (metadata, self.header)]
                keys = ", ".join(differing_keys(*compared)) or "the header"
                raise GcflowError(f"{path}: checkpoint of another configuration ({keys} differ); move it away")
            if LOG not in tensors:
                raise GcflowError(f"{path}: checkpoint of an older version of gcflow, without its log; move it away")
            state.restore(tensors, metadata["step"], path)
            self.log = bytearray(tensors[LOG].numpy())
            self._write_log()
            self._saved(path, state)
            return path
        self.metrics.unlink(missing_ok=True)
        return None

    def begin_job(self, job: dict[str, Any]) -> None:
        """Adds a job (`this_job`) to those that trained the run."""
        known = self.known_jobs()
        for key in ("device", "torch") if known else ():
            if known[-1][key] != job[key]:
                say(f"  {key} was {known[-1][key]} and is {job[key]}: bits may differ from step {job['step']} on")
        # Written anew: the file may be a hard link to a recorded version.
        write_json(self.jobs, [*known, job])

    def known_jobs(self) -> list[dict[str, Any]]:
        """The jobs that trained the run so far."""
        with expected_form(self.jobs):
            return [dict(job) for job in read_json(self.jobs)] if self.jobs.exists() else []

    def append(self, record: dict[str, Any]) -> None:
        """Adds a line to metrics.jsonl."""
        saved = {"checkpoint": self.saved} if self.saved else {}
        line = json.dumps(record | saved).encode() + b"\n"
        self.saved = None
        self.log += line
        try:
            with self.metrics.open("ab") as file:
                file.write(line)
        except OSError as error:
            raise GcflowError(f"{self.metrics}: cannot be written ({error.strerror}); free space, then again") from None

    def _write_log(self) -> None:
        # As a new file, which may take the place of a link to a recorded version.
        with atomic_path(self.metrics) as temporary:
            temporary.write_bytes(self.log)

    def publish(self, folder: Path, steps: list[int]) -> None:
        """Links snapshots, final weights and metrics to their declared places; config.json comes last."""
        self._write_log()
        published = [snapshot(folder, step) for step in steps]
        for step, target in zip(steps, published, strict=True):
            link(snapshot(self.folder, step), target)
        # Two, should one be damaged, are of no use after the end.
        for old in self.checkpoints()[1:]:
            old.unlink()
        for stale in set((folder / "snapshots").glob("*.safetensors")) - set(published):
            stale.unlink()
        link(snapshot(self.folder, steps[-1]), folder / "weights.safetensors")
        link(self.metrics, folder / "metrics.jsonl")
        write_json(folder / "jobs.json", self.known_jobs())
        known = {key: self.header[key] for key in ("config", "inputs", "config_hash")}
        write_json(folder / "config.json", known | {"checkpoint": self.saved})


def link(source: Path, target: Path) -> None:
    """Makes `target` another name of `source`'s bytes, or a copy where the file system cannot, atomically."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(target) as temporary:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)
