"""`gcflow track`: mirrors the runs' own files to MLflow, once each, however often it is called.

The files are the truth. One MLflow run per run of ours and configuration, found again by its tags; a point is sent only
if MLflow's history lacks its step. So an interrupted or repeated call, or a server that was down, costs nothing.
"""

import contextlib
import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import pandas as pd

from gcflow.errors import GcflowError
from gcflow.files import read_json, write_json
from gcflow.pipeline.folders import run_folder
from gcflow.pipeline.params import Params, Run
from gcflow.pipeline.progress import Progress, say

BATCH = 500
Point = tuple[str, float, int, int]


def tracking_uri(params: Params) -> str:
    """MLFLOW_TRACKING_URI, or SQLite in the project folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(params.root / 'mlflow.db').resolve()}"


def training_points(path: Path) -> list[Point]:
    """(metric, value, milliseconds, step) of every whole line of a metrics.jsonl."""
    points: list[Point] = []
    for line in path.read_text().splitlines():
        with contextlib.suppress(ValueError):
            record = json.loads(line)
            step, milliseconds = record.pop("step"), int(1000 * record.pop("time", 0))
            points += [(name, float(value), milliseconds, step) for name, value in record.items()]
    return points


def evaluation_points(path: Path, milliseconds: int) -> list[Point]:
    """One point per protocol, metric, weights, sampler and step: the mean over generation seeds."""
    frame = pd.DataFrame.from_records(read_json(path))
    if frame["protocol"].nunique() > 1:
        frame["metric"] = frame["metric"] + "/" + frame["protocol"]
    frame["name"] = frame["metric"] + "/" + frame["weights"] + "/" + frame["network_evaluations"].astype(str) + "-evals"
    means = frame.groupby(["name", "step"], sort=False)["value"].mean().reset_index()
    rows = zip(means["name"], means["value"], means["step"], strict=True)
    return [(name, float(value), milliseconds, int(step)) for name, value, step in rows]


def flat_parameters(config: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Dotted keys and values as text, for MLflow's parameters."""
    flat: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat |= flat_parameters(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = str(value)
    return flat


def _commit(root: Path) -> str:
    command = ["git", "-C", str(root), "rev-parse", "HEAD"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.stdout.strip() or "unknown"


class Mirror:
    """Sends runs to one MLflow experiment."""

    def __init__(self, params: Params) -> None:
        # Seconds, not MLflow's minutes of silent retries: what cannot be sent now is sent by the next call.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        from mlflow import MlflowClient

        self.params = params
        self.client = MlflowClient(tracking_uri=tracking_uri(params))
        name = params.tracking.experiment
        found = self.client.get_experiment_by_name(name)
        self.experiment = found.experiment_id if found else self.client.create_experiment(name)
        self.commit = _commit(params.root)

    def _run_id(self, run: Run, config_hash: str, begun: int) -> str:
        match = f"tags.`gcflow.run` = '{run.name}' and tags.`gcflow.config_hash` = '{config_hash}'"
        found = self.client.search_runs([self.experiment], match, max_results=1)
        if found:
            return str(found[0].info.run_id)
        tags = {
            "gcflow.run": run.name,
            "gcflow.config_hash": config_hash,
            "gcflow.dataset": run.dataset,
            "gcflow.method": run.method,
            "gcflow.seed": str(run.seed),
            "gcflow.git_commit": self.commit,
            "gcflow.host": platform.node(),
        }
        return str(self.client.create_run(self.experiment, start_time=begun, tags=tags, run_name=run.name).info.run_id)

    def send(self, run: Run) -> str:
        """Completes a finished run in MLflow and returns its MLflow run id."""
        from mlflow.entities import Metric, Param

        folder = run_folder(self.params.root, run)
        header = read_json(folder / "config.json")
        points = training_points(folder / "metrics.jsonl")
        begun, ended = min(p[2] for p in points), max(p[2] for p in points)
        if (folder / "evaluation" / "metrics.json").exists():
            points += evaluation_points(folder / "evaluation" / "metrics.json", ended)
        run_id = self._run_id(run, header["config_hash"], begun)
        known = self.client.get_run(run_id).data
        if not known.params:
            described = header["config"] | header["inputs"] | {"processes": header["processes"]}
            values = [Param(k, v) for k, v in flat_parameters(described).items()]
            self.client.log_batch(run_id, params=values)
        sent = {
            name: {m.step for m in self.client.get_metric_history(run_id, name)}
            for name in {p[0] for p in points} & set(known.metrics)
        }
        missing = [Metric(name, v, t, step) for name, v, t, step in points if step not in sent.get(name, ())]
        for start in range(0, len(missing), BATCH):
            self.client.log_batch(run_id, metrics=missing[start : start + BATCH])
        grid = folder / "evaluation" / "samples.png"
        if grid.exists() and not any(a.path == grid.name for a in self.client.list_artifacts(run_id)):
            self.client.log_artifact(run_id, str(grid))
        if self.client.get_run(run_id).info.status != "FINISHED":
            self.client.set_terminated(run_id, "FINISHED", end_time=ended)
        return run_id


def track(params: Params) -> None:
    """Mirrors every finished run; writes results/tracking.json, which says what was sent and what is still missing.

    A tracking server that cannot be reached is reported and is no error: the next call sends what is missing.
    """
    uri = tracking_uri(params)
    runs = [run for run in params.runs() if (run_folder(params.root, run) / "config.json").exists()]
    sent: dict[str, str] = {}
    problem = None
    try:
        mirror = Mirror(params)
        with Progress("MLflow", len(runs), unit="run") as progress:
            for done, run in enumerate(runs, start=1):
                sent[run.name] = mirror.send(run)
                progress.update(done, run.name)
    except GcflowError:
        raise
    except Exception as error:
        problem = " ".join(str(error).split())[:300]
    pending = [run.name for run in runs if run.name not in sent]
    write_json(params.root / "results" / "tracking.json", {"uri": uri, "sent": sent, "pending": pending})
    if problem is not None:
        say(f"gcflow: warning: {uri} did not take {len(pending)} runs ({problem}); run `gcflow track` again later")
