"""`gcflow status`: how far every run is, from the files that it leaves: no scheduler is asked, and no log is read."""

import json
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from gcflow.config import digest, to_dict
from gcflow.files import tensors_header
from gcflow.pipeline.folders import data_folder, end_path, run_folder
from gcflow.pipeline.graph import Graph
from gcflow.pipeline.ledger.summaries import present_evidence
from gcflow.pipeline.lock import Lease, newest_lease
from gcflow.pipeline.measurements import metrics_path
from gcflow.pipeline.params import Params, Run
from gcflow.readable import clock, one_line

# The most urgent first: where there is not room for all runs, these are shown.
COLOURS = {
    "failed": "red",
    "running": "cyan",
    "interrupted": "yellow",
    "waiting": "bright_black",
    "done": "green",
    "evaluated": "green",
}
HEADER = ("run", "state", "step", "images/s", "left", "")
LEFT = {0, 1, 5}
SECONDS_BETWEEN_DRAWINGS = 5.0
# On a network file system a run's few files wait for the server one after the other.
READERS = 16
METRICS_BYTES = 4096
# A line of metrics that is late by so much is worth a look at the process.
LATE_FACTOR, LATE_SECONDS = 5.0, 120.0


@dataclass(frozen=True)
class Standing:
    """How far a run is.

    state: `evaluated`: its metrics are of the weights that it ended with. `done`: it is trained as params.yaml has it
    now. `running`: a process holds its lock. `interrupted`: its last job was stopped on request, or ended without a
    word. `failed`: its last job said why. `waiting`: it is to be begun.
    finished: whether the target wants nothing more of it. step: the last one known, of `steps`. attempt: how often its
    training was begun. host, pid, slurm_job: of the process that trains it, or ended without a word.
    """

    run: str
    state: str
    step: int
    steps: int
    attempt: int = 0
    finished: bool = False
    images_per_second: float | None = None
    seconds_left: float | None = None
    host: str | None = None
    pid: int | None = None
    slurm_job: str | None = None
    detail: str = ""


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
        # A configuration takes longer to read than all files of a run, and differs between seeds in the seed alone.
        firsts = {(run.dataset, run.method): run for run in self.runs}
        self.configs = {key: params.run_config(run.name) for key, run in firsts.items()}

    def standings(self) -> list[Standing]:
        """Every run, as it is now."""
        datasets = dict.fromkeys(run.dataset for run in self.runs)
        data = {name: _json(data_folder(self.params.root, name) / "manifest.json") for name in datasets}
        hashes = {name: manifest.get("sha256", {}).get("samples.npy") for name, manifest in data.items()}
        with ThreadPoolExecutor(READERS) as pool:
            found = list(pool.map(lambda run: self._standing(run, hashes[run.dataset]), self.runs))
        ready = {standing.run for standing in found if standing.state in ("done", "evaluated")}
        return [
            replace(standing, detail=self._awaited(run, standing.detail, ready, hashes))
            if standing.state == "waiting"
            else standing
            for run, standing in zip(self.runs, found, strict=True)
        ]

    def _standing(self, run: Run, data: str | None) -> Standing:
        config = replace(self.configs[run.dataset, run.method], seed=run.seed)
        folder, document = run_folder(self.params.root, run), to_dict(config)
        lease = newest_lease(folder / "state")
        standing = Standing(run.name, "waiting", 0, config.training.steps, lease.attempt if lease else 0)
        if lease and lease.held:
            return self._running(run, _with_process(standing, lease), folder / "state", lease)
        end = _json(end_path(self.params.root, run))
        if end.get("config") != digest(document):
            end = {}
        error, published = str(end.get("error", "")).removeprefix(f"{run.name}: "), folder / "config.json"
        if _fits(_json(published), document, data) and (folder / "weights.safetensors").exists():
            standing = replace(standing, state="done", finished=run not in self.measured, step=standing.steps)
            if _changed(folder / "evaluation" / "metrics.json") >= _changed(published):
                standing = replace(standing, state="evaluated", finished=True)
            elif not standing.finished and (end.get("job"), end.get("state")) == ("evaluate", "failed"):
                standing = replace(standing, state="failed", detail=f"evaluation: {error}")
            return standing
        newest = {path.parent: path for path in sorted((folder / "state").glob("*/checkpoint-*.safetensors"))}
        headers = [header for header in map(tensors_header, newest.values()) if _fits(header, document, data)]
        standing = replace(standing, step=max((int(header["step"]) for header in headers), default=0))
        if end.get("state") in ("failed", "interrupted"):
            standing = replace(standing, state=end["state"], detail=error)
        elif lease and not lease.released:
            silent = f"ended without a word, last heard of {clock(lease.silence)} ago"
            standing = replace(_with_process(standing, lease), state="interrupted", detail=silent)
        elif standing.step:
            standing = replace(standing, state="interrupted")
        elif published.exists():
            standing = replace(standing, detail="trained with other parameters or data")
        return standing

    def _running(self, run: Run, standing: Standing, state: Path, lease: Lease) -> Standing:
        # Of another configuration there may be older ones.
        newest = max(state.glob("*/jobs.json"), key=_changed, default=state / "none").with_name("metrics.jsonl")
        record, now = _last_record(newest), time.time()
        begun = datetime.fromisoformat(lease.holder.since).timestamp() if lease.holder.since else 0.0
        standing = replace(standing, step=int(record.get("step", 0)))
        if not record or record["time"] < begun:
            return replace(standing, detail=f"begun {clock(now - begun)} ago, no step logged yet" if begun else "")
        batch, speed = self.configs[run.dataset, run.method].training.batch, float(record["images_per_second"])
        left = (standing.steps - standing.step) * batch / speed
        standing = replace(standing, images_per_second=speed, seconds_left=left)
        silent, usual = now - record["time"], self.params.dataset(run.dataset).cadence.log_every * batch / speed
        if silent > max(LATE_SECONDS, LATE_FACTOR * usual):
            return replace(standing, detail=f"no step logged for {clock(silent)}, usually every {clock(usual)}")
        return standing

    def _awaited(self, run: Run, detail: str, ready: set[str], data: dict[str, Any]) -> str:
        runs = {needed.name for needed, _ in self.params.needed_runs(run).values()} - ready
        files = {file for file in self.params.needed_files(run).values() if not (self.params.root / file).exists()}
        missing = ([] if data[run.dataset] else [f"the data of {run.dataset}"]) + sorted(runs | files)
        return "; ".join(filter(None, (detail, f"waits for {', '.join(missing)}" if missing else "")))


def _with_process(standing: Standing, lease: Lease) -> Standing:
    holder = lease.holder
    return replace(standing, state="running", host=holder.host or None, pid=holder.pid or None, slurm_job=holder.job)


def _json(path: Path) -> dict[str, Any]:
    """A JSON object; empty if there is none, or it is damaged."""
    with suppress(OSError, ValueError):
        document = json.loads(path.read_bytes())
        return document if isinstance(document, dict) else {}
    return {}


def _last_record(path: Path) -> dict[str, Any]:
    """The last whole line of a metrics.jsonl; empty if it has none."""
    with suppress(OSError), path.open("rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - METRICS_BYTES))
        for line in reversed(file.read().splitlines()):
            with suppress(ValueError):
                record = json.loads(line)
                if isinstance(record, dict) and {"step", "images_per_second", "time"} <= record.keys():
                    return record
    return {}


def _fits(record: dict[str, Any], config: dict[str, Any], data: str | None) -> bool:
    """Whether what a run recorded of itself is what it would be trained with now."""
    return record.get("config") == config and data in (None, record.get("inputs", {}).get("data_sha256"))


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _cells(standing: Standing) -> tuple[str, ...]:
    speed, left, notes = standing.images_per_second, standing.seconds_left, [standing.detail]
    if standing.attempt > 1 and standing.step < standing.steps:
        notes.insert(0, f"attempt {standing.attempt}")
    if standing.host:
        job = f"Slurm job {standing.slurm_job}, " if standing.slurm_job else ""
        notes.insert(0, f"{standing.host}, {job}process {standing.pid}")
    return (
        standing.run,
        standing.state,
        f"{standing.step}/{standing.steps}",
        f"{speed:.4g}" if speed is not None else "",
        clock(left) if left is not None else "",
        # A line of text on a terminal, whatever an error has in it.
        one_line("; ".join(filter(None, notes))),
    )


def _round(params: Params) -> Iterator[str]:
    """How far the workflow is that adds seeds until claims are decided."""
    if params.added:
        own = set(params.runs())
        added = [run for run in params.runs(added=True) if run not in own]
        known = {run for dataset in {run.dataset for run in added} for _, run in present_evidence(params, dataset).runs}
        measured = sum(run in known or metrics_path(params.root, run).exists() for run in added)
        yield f"round {params.added.round} of added seeds with {measured} of {len(added)} runs measured"


def table(survey: Survey, standings: list[Standing], columns: int | None = None, lines: int | None = None) -> str:
    """The standings with colours, in the columns and lines that there are (None: any number)."""
    counts = Counter(standing.state for standing in standings)
    what = "everything" if survey.target == "all" else survey.target
    summary = ", ".join(
        [
            f"{what} at scale {survey.scale}: {len(standings)} run{'s' if len(standings) != 1 else ''}",
            *(f"{counts[state]} {state}" for state in COLOURS if counts[state]),
            *_round(survey.params),
        ]
    )
    urgent = sorted(range(len(standings)), key=lambda place: list(COLOURS).index(standings[place].state))
    shown = [standings[place] for place in sorted(urgent if lines is None else urgent[: max(1, lines - 5)])]
    rows = [HEADER, *map(_cells, shown)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    drawn = [summary[:columns], ""]
    for row, standing in zip(rows, [None, *shown], strict=True):
        cells = [
            cell.ljust(width) if n in LEFT else cell.rjust(width)
            for n, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        line = "  ".join(cells).rstrip()[:columns]
        if standing:
            # Behind the name, which has no spaces.
            line = line.replace(
                f"  {standing.state}", "  " + click.style(standing.state, fg=COLOURS[standing.state]), 1
            )
        drawn.append(line)
    if len(shown) < len(standings):
        drawn.append(f"and {len(standings) - len(shown)} more"[:columns])
    return "\n".join([click.style(drawn[0], bold=True), *drawn[1:]])


def show(survey: Survey, watch: bool = False, as_json: bool = False) -> None:
    """Writes the standings; with `watch` again every few seconds, until the target wants nothing more or Ctrl-C.

    A terminal is drawn anew; elsewhere what changed is written below what was there.
    """
    before, encoding = "", sys.stdout.encoding or "utf-8"
    try:
        while True:
            standings = survey.standings()
            columns, lines = shutil.get_terminal_size() if sys.stdout.isatty() else (None, None)
            text = table(survey, standings, columns, lines if watch else None)
            if as_json:
                runs = [asdict(standing) for standing in standings]
                text = json.dumps({"target": survey.target, "scale": survey.scale, "runs": runs}, indent=2)
            if watch and lines:
                click.clear()
            if lines or text != before:
                # An error may have a character that the terminal does not have.
                click.echo(text.encode(encoding, "replace").decode(encoding))
            before = text
            if not watch or all(standing.finished for standing in standings):
                return
            time.sleep(SECONDS_BETWEEN_DRAWINGS)
    except KeyboardInterrupt:
        click.echo()
