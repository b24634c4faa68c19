"""`gcflow verify --replay`: what was computed is computed again, and must have the same bits.

Steps of a run between a state that it has kept and its next checkpoint, whose hash stands in its log; and evaluations,
tables and figures in a folder that has nothing but what they read.
"""

import json
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch

from gcflow.config import to_dict
from gcflow.errors import GcflowError, Preempted
from gcflow.files import expected_form, read_json
from gcflow.pipeline.folders import run_folder
from gcflow.pipeline.params import CLAIMS, PAPER, Params, Run
from gcflow.pipeline.progress import Progress
from gcflow.pipeline.run_state import RunState
from gcflow.pipeline.stages import Stage
from gcflow.pipeline.train import begin, find_inputs
from gcflow.training import Observer, train
from gcflow.weights import load_tensors

REMADE = ("evaluate", "discrepancy", "table", "figure")


class Interval(NamedTuple):
    """Steps of a run. start: the file of the state before them; None is its beginning. sha256: of the state after."""

    run: Run
    start: Path | None
    first: int
    last: int
    sha256: str


@dataclass(frozen=True)
class Replayed:
    """What came out again.

    intervals: of training, to whether they ended with the same bits. kept: how many there are to draw from. share: of
    all steps of the runs that was trained again. stages: the outputs of each that came out with other bytes, by its
    name.
    """

    intervals: dict[Interval, bool]
    kept: int
    share: float
    stages: dict[str, list[str]]

    @property
    def same(self) -> bool:
        """True if nothing differs."""
        return all(self.intervals.values()) and not any(self.stages.values())

    def __str__(self) -> str:
        verdicts = {True: "the same bits", False: "other bits"}
        steps = (
            f"{it.run.name}, steps {it.first} to {it.last}: {verdicts[it_is]}" for it, it_is in self.intervals.items()
        )
        stages = (f"{name}: {', '.join(differing) or 'no output'} differs" for name, differing in self.stages.items())
        chance = len(self.intervals) / self.kept
        found = (
            f"trained again: {self.share:.1%} of all steps. One altered interval of the {self.kept} of which the state "
            f"before is kept is found with a chance of {chance:.0%}."
        )
        return "\n".join([*steps, *stages, found])


class _For(Observer):
    def __init__(self, steps: int) -> None:
        self.asked, self.steps = 0, steps

    def stop_requested(self) -> str | None:
        self.asked += 1
        return "replayed" if self.asked > self.steps else None


def replay(params: Params, stages: Sequence[Stage], share: float, device: str = "cpu") -> Replayed:
    """Computes a part of what stages made again; what is drawn at random.

    Args:
        params: the grid.
        stages: runs that were not trained as they stand in params.yaml are left out, and other kinds than `REMADE`.
        share: in (0, 1], of all steps of the runs, and of the other stages.
        device: of the kind that all was computed on.

    Raises:
        GcflowError: nothing was kept of any run, or an input is missing or damaged.
    """
    runs = [stage.run for stage in stages if stage.kind == "train" and stage.run]
    kept = [interval for run in runs for interval in _intervals(params, run)]
    if not kept:
        raise GcflowError("no run of these was trained as it stands in params.yaml; train one")
    total = sum(params.run_config(name).training.steps for name in {interval.run.name for interval in kept})
    # Nobody may know beforehand which.
    draw = random.SystemRandom()
    chosen, drawn = [], 0
    for interval in draw.sample(kept, len(kept)):
        if drawn < share * total:
            chosen.append(interval)
            drawn += interval.last - interval.first
    others = [s for s in stages if s.kind in REMADE and all((params.root / out).exists() for out in s.outs)]
    others = draw.sample(others, round(share * len(others)))
    at_once = len(os.sched_getaffinity(0)) if device == "cpu" else 1
    pool = ProcessPoolExecutor(at_once, get_context("spawn"))
    try:
        trained = {it: pool.submit(_ends_the_same, params.path, it, device) for it in chosen}
        remade = {stage.name: pool.submit(_differing, params.path, stage, device) for stage in others}
        made: list[Future[Any]] = [*trained.values(), *remade.values()]
        with Progress("computed again", len(made), unit="part") as progress:
            for done, future in enumerate(as_completed(made), start=1):
                future.result()
                progress.update(done)
        same = {interval: future.result() for interval, future in trained.items()}
        return Replayed(same, len(kept), drawn / total, {name: future.result() for name, future in remade.items()})
    finally:
        pool.shutdown(cancel_futures=True)


def _intervals(params: Params, run: Run) -> list[Interval]:
    """Those of a run that can be trained again: after its beginning, and after each state that it has kept."""
    folder = run_folder(params.root, run)
    published = read_json(folder / "config.json") if (folder / "config.json").exists() else {}
    if published.get("config") != to_dict(params.run_config(run.name)):
        return []
    with expected_form(folder / "metrics.jsonl"):
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]
        saved = [line["checkpoint"] for line in (*lines, published) if "checkpoint" in line]
        hashes = {checkpoint["step"]: checkpoint["sha256"] for checkpoint in saved}
    state = RunState(folder / "state" / published["config_hash"][:16], published)
    starts = {0: None} | {_step(path): path for path in state.kept_states()}
    ends = {first: min((step for step in hashes if step > first), default=0) for first in starts}
    return [
        Interval(run, path, first, ends[first], hashes[ends[first]]) for first, path in starts.items() if ends[first]
    ]


def _step(kept: Path) -> int:
    return int(kept.stem.removeprefix("kept-"))


def _ends_the_same(path: Path, interval: Interval, device: str) -> bool:
    params, run = Params(path), interval.run
    config, entry = params.run_config(run.name), params.dataset(run.dataset)
    torch.set_num_threads(config.training.cpu_threads)
    state, data, helpers = begin(params, run, find_inputs(params, run), device)
    if interval.start:
        state.restore(load_tensors(interval.start)[0], interval.first, interval.start)
    with suppress(Preempted):
        train(config, data, state, _For(interval.last - interval.first), entry.cadence, helpers)
    return state.sha256() == interval.sha256


def _differing(path: Path, stage: Stage, device: str) -> list[str]:
    """The outputs of a stage that its command makes otherwise, where nothing else is than what the stage reads."""
    params = Params(path)
    with TemporaryDirectory(prefix="gcflow-") as folder:
        extensions = params.document.get("extensions") or ()
        for name in {params.path.name, CLAIMS, PAPER, *extensions, *stage.deps}:
            if (params.root / name).exists():
                (Path(folder) / name).parent.mkdir(parents=True, exist_ok=True)
                (Path(folder) / name).symlink_to((params.root / name).resolve())
        command = [sys.executable, "-m", "gcflow", "--params", params.path.name, *stage.command.split()[1:]]
        environment = os.environ | {"GCFLOW_DEVICE": device}
        made = subprocess.run(command, check=False, cwd=folder, env=environment, capture_output=True, text=True)
        if made.returncode:
            raise GcflowError(f"{stage.name} fails when it is made again: {made.stderr.strip().splitlines()[-1]}")
        return [out for out in stage.outs if _bytes(Path(folder) / out) != _bytes(params.root / out)]


def _bytes(path: Path) -> dict[str, bytes]:
    """The content of a file, or of all files of a folder."""
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    return {str(file.relative_to(path)): file.read_bytes() for file in files if not file.name.startswith(".")}
