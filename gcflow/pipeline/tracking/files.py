"""What a run has on disk that MLflow shows, as points and as facts about the run."""

import contextlib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from gcflow.files import read_json, tensors_header
from gcflow.pipeline.folders import DISCREPANCY, run_folder
from gcflow.pipeline.params import Run

# Of the machine, not of the run: they may differ when steps are trained again.
SYSTEM = "system/"
CLOCKS = ("images_per_second", "memory_gib", SYSTEM)
# Where the metrics of a published run come from, and how the names of two of the three begin or end.
TRAINING, EVALUATION = "metrics.jsonl", "evaluation/metrics.json"
DISCREPANCY_PREFIX, EVALUATION_SUFFIX = "discrepancy/", "-evals"


class Point(NamedTuple):
    """A value of a metric. milliseconds: since the epoch."""

    name: str
    value: float
    milliseconds: int
    step: int


@dataclass(frozen=True)
class RunFiles:
    """A run under one configuration.

    place: where its metrics.jsonl and jobs.json lie. header: its configuration, the hashes of its inputs, and the hash
    of both. step: up to which its history is final, as a checkpoint covers it. published: whether the results in the
    run's folder are its own.
    """

    run: Run
    folder: Path
    place: Path
    header: dict[str, Any]
    step: int
    published: bool

    @property
    def complete(self) -> bool:
        """Whether it was trained to its end, whatever took its place since."""
        return self.published or self.step >= int(self.header["config"]["training"]["steps"])

    @property
    def config_hash(self) -> str:
        """What tells runs of one name and several configurations apart."""
        return str(self.header["config_hash"])

    def jobs(self) -> list[dict[str, Any]]:
        """The jobs that trained it (`gcflow.pipeline.job`)."""
        path = self.place / "jobs.json"
        return list(read_json(path)) if path.exists() else []

    @property
    def origin(self) -> str:
        """Where and when its training began, which tells it from that of another person on the same server."""
        jobs = self.jobs()
        return f"{jobs[0]['host']} {jobs[0]['begun']}" if jobs else ""

    def points(self) -> list[Point]:
        """Everything that there is to plot, in an order in which it can be sent."""
        points = list(self._training())
        ended = max((point.milliseconds for point in points), default=0)
        if self.published:
            points += _evaluation(self.folder / EVALUATION, ended)
            points += _discrepancy(self.folder / DISCREPANCY, ended)
        return points + list(_system(self.folder / "state" / self.config_hash[:16] / "system.jsonl"))

    def has_all_of(self, name: str) -> bool:
        """Whether every point of a metric is here: not if the file that it comes from still grows, or is elsewhere."""
        source = EVALUATION if name.endswith(EVALUATION_SUFFIX) else TRAINING
        if name.startswith(DISCREPANCY_PREFIX):
            source = DISCREPANCY
        return self.published and not name.startswith(CLOCKS) and (self.folder / source).exists()

    def _training(self) -> Iterator[Point]:
        for record in _lines(self.place / TRAINING):
            step, milliseconds = record.pop("step"), int(1000 * record.pop("time", 0))
            if step <= self.step:
                yield from (Point(name, float(value), milliseconds, step) for name, value in record.items())

    def grids(self) -> dict[int, Path]:
        """Sample grids from the same noises, by the step of their weights."""
        found = sorted((self.folder / "evaluation" / "grids").glob("*.png")) if self.published else []
        return {int(path.stem): path for path in found}

    def weights_md5(self) -> str:
        """The hash under which DVC keeps the final weights."""
        with (self.folder / "weights.safetensors").open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """The whole records of a file to which lines are added."""
    with contextlib.suppress(FileNotFoundError):
        for line in path.read_text().splitlines():
            with contextlib.suppress(ValueError):
                yield json.loads(line)


def _system(path: Path) -> Iterator[Point]:
    for count, record in enumerate(_lines(path)):
        milliseconds = int(1000 * record.pop("time"))
        yield from (Point(name, float(value), milliseconds, count) for name, value in record.items())


def _evaluation(path: Path, milliseconds: int) -> list[Point]:
    """One point per protocol, metric, weights, sampler and step: the mean over generation seeds."""
    if not path.exists():
        return []
    frame = pd.DataFrame.from_records(read_json(path))
    if frame["protocol"].nunique() > 1:
        frame["metric"] = frame["metric"] + "/" + frame["protocol"]
    frame["name"] = frame["metric"] + "/" + frame["weights"] + "-" + frame["network_evaluations"].astype(str)
    frame["name"] += EVALUATION_SUFFIX
    means = frame.groupby(["name", "step"], sort=False)["value"].mean().reset_index()
    rows = zip(means["name"], means["value"], means["step"], strict=True)
    return [Point(name, float(value), milliseconds, int(step)) for name, value, step in rows]


def _discrepancy(path: Path, milliseconds: int) -> list[Point]:
    if not path.exists():
        return []
    document = read_json(path)
    named = ((f"{DISCREPANCY_PREFIX}{r['estimate']}/sigma-{r['sigma']:g}", r["value"]) for r in document["records"])
    return [Point(name, float(value), milliseconds, document["step"]) for name, value in named]


def newest_state(folder: Path) -> Path | None:
    """The state folder of a run's newest job.

    A job that begins writes jobs.json, and one that goes on cuts metrics.jsonl, before it trains.
    """
    written: dict[int, Path] = {}
    for path in (*(folder / "state").glob("*/jobs.json"), *(folder / "state").glob(f"*/{TRAINING}")):
        # Begun anew since the listing.
        with contextlib.suppress(FileNotFoundError):
            written[path.stat().st_mtime_ns] = path.parent
    return written[max(written)] if written else None


def files_of(root: Path, run: Run) -> list[RunFiles]:
    """What there is of a run, last as it is now: as it was published, or else as far as the newest job has come.

    Before it, every other configuration as far as its newest checkpoint.
    """
    folder, found = run_folder(root, run), []
    published = read_json(folder / "config.json") if (folder / "config.json").exists() else None
    newest = {path.parent: path for path in sorted((folder / "state").glob("*/checkpoint-*.safetensors"))}
    present = newest_state(folder)
    for place in sorted(newest, key=lambda place: place == present):
        header = tensors_header(newest[place])
        known = published is not None and header.get("config_hash") == published["config_hash"]
        if header and not known and (place / TRAINING).exists():
            found.append(RunFiles(run, folder, place, header, int(header["step"]), published=False))
    if published is not None:
        steps = int(published["config"]["training"]["steps"])
        found.append(RunFiles(run, folder, folder, published, steps, published=True))
    return found
