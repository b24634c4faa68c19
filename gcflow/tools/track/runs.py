"""What a run has on disk that MLflow shows: points of metrics, grids of samples, tags and a description."""

import contextlib
import getpass
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from gcflow.files import expected_form, read_json, tensors_header
from gcflow.pipeline.folders import DISCREPANCY, run_folder
from gcflow.pipeline.lock import newest_lease
from gcflow.pipeline.params import Params, Run

# Metrics of the machine and not of the run: they may differ when steps are trained again.
CLOCKS = ("images_per_second", "memory_gib", "system/")


class Point(NamedTuple):
    """A value of a metric. milliseconds: since the epoch."""

    name: str
    value: float
    milliseconds: int
    step: int


def source_of(name: str) -> str:
    """The kind of file that a metric of this name is from."""
    return "discrepancy" if name.startswith("discrepancy/") else "evaluation" if name.endswith("-evals") else "training"


@dataclass(frozen=True)
class RunFiles:
    """A run under one configuration.

    place: where its metrics.jsonl and jobs.json lie. header: its configuration, the hashes of its inputs, and the hash
    of both. jobs: those that trained it (`gcflow.pipeline.job`). step: up to which its history is final, as a
    checkpoint covers it. published: whether the results in the run's folder are its own. running: whether it is
    trained now.
    """

    run: Run
    folder: Path
    place: Path
    header: dict[str, Any]
    jobs: list[dict[str, Any]]
    step: int
    published: bool
    running: bool

    @property
    def status(self) -> str:
        """In MLflow's words; a run that was trained to its end is finished, whatever took its place since."""
        if self.published or self.step >= int(self.header["config"]["training"]["steps"]):
            return "FINISHED"
        return "RUNNING" if self.running else "KILLED"

    @property
    def origin(self) -> str:
        """Where and when its training began, which tells it from that of another person on the same server."""
        return f"{self.jobs[0]['host']} {self.jobs[0]['begun']}" if self.jobs else ""

    @property
    def identity(self) -> dict[str, str]:
        """Tags that tell every run of every project on a server apart."""
        return {"run": self.run.name, "config_hash": self.header["config_hash"], "origin": self.origin or "unknown"}

    def points(self) -> list[Point]:
        """Everything that there is to plot, in an order in which it can be sent."""
        points = []
        with expected_form(self.place / "metrics.jsonl"):
            for record in _lines(self.place / "metrics.jsonl"):
                step, milliseconds = record.pop("step"), int(1000 * record.pop("time", 0))
                record.pop("checkpoint", None)
                if step <= self.step:
                    points += [Point(name, float(value), milliseconds, step) for name, value in record.items()]
        if self.published:
            ended = max((point.milliseconds for point in points), default=0)
            for name, read in (("evaluation/metrics.json", _evaluation), (DISCREPANCY, _discrepancy)):
                with expected_form(self.folder / name):
                    points += read(self.folder / name, ended)
        return points

    def grids(self) -> dict[int, Path]:
        """Sample grids from the same noises, by the step of their weights."""
        found = sorted((self.folder / "evaluation" / "grids").glob("*.png")) if self.published else []
        return {int(path.stem): path for path in found if path.stem.isdecimal()}

    def uploads(self) -> list[Path]:
        """Files that MLflow gets as they are."""
        samples = self.folder / "evaluation" / "samples.png"
        return [samples] if self.published and samples.exists() else []

    def weights_md5(self) -> str:
        """The hash under which DVC keeps the final weights."""
        with (self.folder / "weights.safetensors").open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """The whole records of a file to which lines are added."""
    with contextlib.suppress(FileNotFoundError):
        for line in path.read_text("utf-8").splitlines():
            with contextlib.suppress(ValueError):
                yield json.loads(line)


def _evaluation(path: Path, milliseconds: int) -> list[Point]:
    """One point per protocol, metric, weights, sampler and step: the mean over generation seeds."""
    if not path.exists():
        return []
    frame = pd.DataFrame(read_json(path))
    if frame["protocol"].nunique() > 1:
        frame["metric"] = frame["metric"] + "/" + frame["protocol"]
    frame["name"] = frame["metric"] + "/" + frame["weights"] + "-" + frame["network_evaluations"].astype(str) + "-evals"
    means = frame.groupby(["name", "step"], sort=False)["value"].mean().reset_index()
    rows = zip(means["name"], means["value"], means["step"], strict=True)
    return [Point(name, float(value), milliseconds, int(step)) for name, value, step in rows]


def _discrepancy(path: Path, milliseconds: int) -> list[Point]:
    if not path.exists():
        return []
    document = read_json(path)
    named = ((f"discrepancy/{r['estimate']}/sigma-{r['sigma']:g}", r["value"]) for r in document["records"])
    return [Point(name, float(value), milliseconds, document["step"]) for name, value in named]


def files_of(root: Path, run: Run) -> list[RunFiles]:
    """What there is of a run under each configuration, last as it is now.

    That is as it was published, or else as far as the newest job has come.

    Raises:
        GcflowError, OSError: a file is damaged, or was removed meanwhile.
    """
    folder, found = run_folder(root, run), []
    published, steps = None, 0
    if (folder / "config.json").exists():
        with expected_form(folder / "config.json"):
            published = dict(read_json(folder / "config.json"))
            steps = int(published["config"]["training"]["steps"])
            parameters_of({**published["config"], **published["inputs"], "config_hash": published["config_hash"]})
    # Every job that begins or goes on writes it before it trains.
    jobs = sorted((folder / "state").glob("*/jobs.json"), key=lambda path: path.stat().st_mtime_ns)
    for path in jobs:
        place, running = path.parent, path == jobs[-1] and _held(folder)
        newest = max(place.glob("checkpoint-*.safetensors"), default=None)
        header = tensors_header(newest) if newest is not None else {}
        if header and (published is None or header["config_hash"] != published["config_hash"]):
            known = _jobs(path)
            found.append(RunFiles(run, folder, place, header, known, header["step"], published=False, running=running))
    if published is not None:
        known = _jobs(folder / "jobs.json") if (folder / "jobs.json").exists() else []
        found.append(RunFiles(run, folder, folder, published, known, steps, published=True, running=False))
    return found


def _jobs(path: Path) -> list[dict[str, Any]]:
    with expected_form(path):
        return [{**job, "host": job["host"], "begun": job["begun"]} for job in read_json(path)]


def _held(folder: Path) -> bool:
    lease = newest_lease(folder / "state")
    return lease is not None and lease.held


def stamp_of(root: Path, run: Run) -> tuple[Any, ...]:
    """Changes whenever what MLflow shows of a run does, and costs a look at its folders alone.

    Files are put there by renaming, which changes their folder's time; lines are added to metrics.jsonl in place, and
    count when a checkpoint is put beside it.
    """
    folder, times = run_folder(root, run), []
    for place in (folder, folder / "evaluation", folder / "evaluation/grids", *sorted((folder / "state").glob("*/"))):
        with contextlib.suppress(FileNotFoundError):
            times.append((place.name, place.stat().st_mtime_ns))
    return (*times, _held(folder))


def parameters_of(document: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Dotted keys and values as text, for MLflow's parameters."""
    flat: dict[str, str] = {}
    for key, value in document.items():
        if isinstance(value, dict):
            flat |= parameters_of(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = str(value)
    return flat


def tags_of(params: Params, files: RunFiles, md5: str | None) -> dict[str, str]:
    """Tags of a run; those of the job are of the last one that trained it. md5: of its final weights, if published."""
    run, entry, job = files.run, params.dataset(files.run.dataset), files.jobs[-1] if files.jobs else {}
    studies = [name for name, table in entry.tables.items() if run.method in table.methods]
    studies += [name for name, figure in entry.figures.items() if run.method in figure.methods]
    tags = {
        # MLflow keeps their order: first what a person looks for.
        "label": entry.runs[run.method].label,
        "dataset": run.dataset,
        "method": run.method,
        "seed": run.seed,
        # To group by: MLflow hides runs that are nested under another one, and draws no charts of them.
        "study": studies[0] if studies else None,
        "studies": ", ".join(studies) or None,
        **{key: job.get(key) for key in ("host", "device", "processes", "torch", "slurm_job")},
        "resumed": len(files.jobs) - 1 if files.jobs else None,
        **files.identity,
        "git_commit": job.get("commit"),
        "git_dirty": job.get("dirty"),
        "weights_md5": md5,
        # What the columns and the pages of MLflow show.
        "mlflow.source.name": "gcflow train",
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": job.get("commit"),
        "mlflow.note.content": _description(params, files, md5),
        "mlflow.loggedImages": True if files.grids() else None,
    }
    with contextlib.suppress(OSError, KeyError):
        tags["mlflow.user"] = getpass.getuser()
    return {key: str(value) for key, value in tags.items() if value is not None}


def _description(params: Params, files: RunFiles, md5: str | None) -> str:
    """The text on a run's page, in Markdown, which leads back to the files: no weights are uploaded."""
    run, weights = files.run, files.folder.relative_to(params.root) / "weights.safetensors"
    lines = [f"`gcflow train {run.name}`" + ("" if files.status == "FINISHED" else ": not finished yet")]
    if md5 is not None:
        pull = f"dvc pull train@{run.dataset}-{run.method}-{run.seed}"
        lines += ["", f"Weights: `{weights}`, md5 (DVC) `{md5}`"]
        lines += ["", f"Elsewhere: `{pull}`, then `gcflow sample {weights}`"]
    return "\n".join(lines)
