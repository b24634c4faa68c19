"""`gcflow verify --replay`: steps between checkpoints that a run has kept are trained again, to the same bits."""

import random
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from gcflow.config import to_dict
from gcflow.errors import GcflowError, Preempted
from gcflow.files import read_json
from gcflow.pipeline.folders import run_folder
from gcflow.pipeline.params import Params, Run
from gcflow.pipeline.progress import Progress
from gcflow.pipeline.run_state import RunState
from gcflow.pipeline.train import begin, find_inputs
from gcflow.training import Observer, train
from gcflow.weights import load_tensors


class Interval(NamedTuple):
    """Steps of a run between two of its checkpoints."""

    run: Run
    first: Path
    second: Path
    steps: int


@dataclass(frozen=True)
class Replayed:
    """What training again gave. differing: to each interval the tensors that have other bits. kept: all intervals.

    share: of all steps of the runs that was trained again.
    """

    differing: dict[Interval, list[str]]
    kept: int
    share: float

    @property
    def same(self) -> bool:
        """True if every interval ended with the same bits."""
        return not any(self.differing.values())

    def __str__(self) -> str:
        lines = []
        for interval, names in self.differing.items():
            steps = f"{interval.run.name}: steps {_step(interval.first)} to {_step(interval.second)}"
            more = f" and {len(names) - 1} more tensors" if len(names) > 1 else ""
            lines.append(f"{steps}: " + (f"other bits in {names[0]}{more}" if names else "the same bits"))
        chance = len(self.differing) / self.kept
        lines.append(
            f"trained again: {self.share:.1%} of all steps. One altered interval of the {self.kept} that are kept is "
            f"found with a chance of {chance:.0%}."
        )
        return "\n".join(lines)


class _For(Observer):
    def __init__(self, steps: int, progress: Progress) -> None:
        self.asked, self.steps, self.progress = 0, steps, progress

    def stop_requested(self) -> str | None:
        self.asked += 1
        self.progress.update(self.asked - 1)
        return "replayed" if self.asked > self.steps else None


def replay(params: Params, runs: Sequence[Run], share: float, device: str = "cpu") -> Replayed:
    """Trains intervals that are drawn at random again, until their steps are `share` of all steps of the runs.

    Args:
        params: the grid.
        runs: those that were not trained as they stand in params.yaml are left out.
        share: in (0, 1].
        device: of the kind that the runs were trained on.

    Raises:
        GcflowError: no run has two checkpoints, or an input is missing or damaged.
    """
    kept = [found for run in runs if (found := _interval(params, run))]
    if not kept:
        raise GcflowError("no run of these has kept two checkpoints; train one")
    total = sum(params.run_config(interval.run.name).training.steps for interval in kept)
    chosen, drawn = [], 0
    # Nobody may know beforehand which.
    for interval in random.SystemRandom().sample(kept, len(kept)):
        if drawn < share * total:
            chosen.append(interval)
            drawn += interval.steps
    differing = {interval: _differing(params, interval, device) for interval in chosen}
    return Replayed(differing, len(kept), drawn / total)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.stem.removeprefix("checkpoint-"))


def _interval(params: Params, run: Run) -> Interval | None:
    folder = run_folder(params.root, run)
    published = read_json(folder / "config.json") if (folder / "config.json").exists() else {}
    if published.get("config") != to_dict(params.run_config(run.name)):
        return None
    found = RunState(folder / "state" / published["config_hash"][:16], published).checkpoints()
    if len(found) < 2:
        return None
    return Interval(run, found[1], found[0], _step(found[0]) - _step(found[1]))


def _differing(params: Params, interval: Interval, device: str) -> list[str]:
    run = interval.run
    config, entry = params.run_config(run.name), params.dataset(run.dataset)
    torch.set_num_threads(config.training.cpu_threads)
    state, data, helpers = begin(params, run, find_inputs(params, run), device)
    state.restore(load_tensors(interval.first)[0], _step(interval.first), interval.first)
    with Progress(f"{run.name} again", interval.steps) as progress, suppress(Preempted):
        train(config, data, state, _For(interval.steps, progress), entry.cadence, helpers)
    expected, _ = load_tensors(interval.second)
    # How often a run speaks decides its window of losses.
    found = {name: tensor.cpu() for name, tensor in state.tensors().items() if not name.startswith("window.")}
    return [name for name, tensor in found.items() if name not in expected or not torch.equal(tensor, expected[name])]
