"""`gcflow track sync`: completes MLflow from the files, however much of it is missing there."""

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from gcflow.errors import GcflowError
from gcflow.files import read_json, write_json
from gcflow.pipeline.folders import (
    CLAIMS_FORMATS,
    claims_path,
    results_folder,
    run_folder,
    theory_path,
    tracking_folder,
)
from gcflow.pipeline.lock import RunLock, newest_lease
from gcflow.pipeline.params import Params, Run
from gcflow.pipeline.progress import Progress, say
from gcflow.pipeline.stages import Stage, Stages
from gcflow.pipeline.tracking.files import RunFiles, files_of
from gcflow.pipeline.tracking.mirror import Mirror
from gcflow.pipeline.tracking.server import ORIGINS, one_line, tracking_uri, without_password
from gcflow.pipeline.tracking.words import study_note

REPORT = "report"
# In a tag of MLflow are 8000 characters.
ORIGINS_AT_MOST = 600


class Study(NamedTuple):
    """A table, a figure, or the report, as a run in MLflow. artifacts: names there to files; metrics: its numbers."""

    name: str
    note: str
    artifacts: dict[str, Path]
    metrics: dict[str, float]


def studies(params: Params, scale: str) -> Iterator[Study]:
    """Everything that is made from many runs."""
    stages = Stages(params, scale)
    for dataset in stages.datasets:
        entry = params.dataset(dataset)
        for name, table in entry.tables.items():
            yield _study(params, dataset, name, study_note(table.title, table.methods), stages.table(dataset, name))
        for name, figure in entry.figures.items():
            yield _study(params, dataset, name, study_note(figure.title, figure.methods), stages.figure(dataset, name))
    claims = [claims_path(params.root, suffix) for suffix in CLAIMS_FORMATS]
    pages = {path.name: path for path in (*claims, params.root / "results" / "report.html")}
    yield Study(REPORT, "The claims of the paper with their verdicts, and the report.", pages, _verdicts(params))


def _study(params: Params, dataset: str, name: str, text: str, stage: Stage) -> Study:
    # What the stage writes, and what it reads of the data set as a whole: transport costs, theory checks.
    whole = results_folder(Path(), dataset)
    files = (*stage.outs, *(dep for dep in stage.deps if Path(dep).parent == whole))
    theory = theory_path(params.root, dataset)
    metrics: dict[str, float] = {}
    if str(theory_path(Path(), dataset)) in files and theory.exists():
        checks = read_json(theory)["checks"]
        metrics = {"checks": len(checks), "checks that hold": sum(bool(check["holds"]) for check in checks)}
    return Study(f"{dataset}/{name}", text, {Path(file).name: params.root / file for file in files}, metrics)


def _verdicts(params: Params) -> dict[str, float]:
    path = claims_path(params.root, "json")
    if not path.exists():
        return {}
    counts: dict[str, float] = {}
    for record in read_json(path)["records"]:
        name = f"{record['dataset']}/{record['verdict']}"
        counts[name] = counts.get(name, 0.0) + 1.0
    return counts


def send_run(params: Params, mirror: Mirror, run: Run, wanted: list[RunFiles]) -> str | None:
    """Sends a run, and returns its MLflow run id; None if another process is sending it.

    Raises:
        Exception: of many kinds; the server did not take it.
    """
    folder = tracking_folder(params.root, run)
    with ExitStack() as stack:
        try:
            stack.enter_context(RunLock(folder, run.name))
        except GcflowError:
            lease = newest_lease(folder)
            if lease is not None and lease.held:
                return None
            raise
        return [mirror.send(files) for files in wanted][-1]


def _missing_file(params: Params, run: Run, error: FileNotFoundError) -> Path | None:
    """The file of a run that an error is about; None if it is something of the server's."""
    path = Path(error.filename or "")
    return path if path.is_relative_to(run_folder(params.root, run)) else None


def sync(params: Params, scale: str) -> None:
    """Sends every run of a scale as far as it is, tables, figures and the report.

    Writes results/tracking.json, which says what was sent and what is still missing. A server that cannot be reached is
    reported and is no error: the next call sends what is missing. Neither is a run that lacks a file: the others go on.
    """
    uri = tracking_uri(params)
    datasets, project = params.at_scale(scale), {run: files_of(params.root, run) for run in params.runs()}
    known = {run: files for run, files in project.items() if files and run.dataset in datasets}
    sent: dict[str, str] = {}
    busy, problem = 0, None
    try:
        mirror = Mirror(params)
        with Progress("MLflow", len(known), unit="run") as progress:
            for done, (run, files) in enumerate(known.items(), start=1):
                try:
                    run_id = send_run(params, mirror, run, files)
                    if run_id is not None:
                        sent[run.name] = run_id
                    busy += run_id is None
                except FileNotFoundError as error:
                    if (path := _missing_file(params, run, error)) is None:
                        raise
                    say(f"gcflow: warning: {run.name}: {path} is missing; not sent")
                progress.update(done, run.name)
        origins = _origins(project.values())
        for study in studies(params, scale):
            _send_study(mirror, study, origins)
    except GcflowError:
        raise
    except Exception as error:
        problem = one_line(error)
    pending = [run.name for run in known if run.name not in sent]
    shown = without_password(uri)
    write_json(params.root / "results" / "tracking.json", {"uri": shown, "sent": sent, "pending": pending})
    if problem is not None:
        what = f"{len(pending)} runs" if pending else "tables and figures"
        say(f"gcflow: warning: {shown} did not take {what} ({problem}); later: gcflow track sync")
    elif busy:
        say(f"gcflow: {busy} runs are being sent by another process; later: gcflow track sync")


def _origins(project: Iterable[list[RunFiles]]) -> set[str]:
    """Hashes of where and when the runs of a project began, at every scale, as many as a tag of MLflow holds."""
    known = {files.origin for listed in project for files in listed if files.origin}
    return set(sorted(hashlib.sha256(origin.encode()).hexdigest()[:12] for origin in known)[:ORIGINS_AT_MOST])


def _send_study(mirror: Mirror, study: Study, origins: set[str]) -> None:
    there = {name: path for name, path in study.artifacts.items() if path.exists()}
    if not there:
        return
    known = mirror.server.study(study.name, origins)
    mirror.upload(known, there)
    tags = {"mlflow.note.content": study.note, ORIGINS: " ".join(sorted(origins))}
    mirror.describe(known, tags, study.metrics)
