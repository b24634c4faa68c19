"""A connection to MLflow: what it has of our runs, tables and figures, and how it gets what it lacks, once."""

import hashlib
import json
import logging
import math
import os
import re
import sqlite3
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from gcflow.files import atomic_path, naming, sha256_of
from gcflow.pipeline.folders import run_folder, snapshot
from gcflow.pipeline.params import Params, Run
from gcflow.tools.track.runs import CLOCKS, Point, RunFiles, parameters_of, source_of, tags_of

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel
    from mlflow.entities import Run as MlflowRun

T = TypeVar("T")

# Seconds for a request, not MLflow's minutes of silent retries, nor the hours that a server may ask for: what cannot be
# sent now is sent by the next call. And nothing goes to anybody but the server.
SETTINGS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "0",
    "MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER": "false",
    "PGCONNECT_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # With the password in it.
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
# MLflow shows pages of training, not those of language models.
KIND = {"mlflow.experimentKind": "custom_model_development"}
# Tags under MLflow's own prefix, which keeps them off its pages: a hash of everything that was sent, so that nothing of
# it is compared again; and whose a study is, as hashes of the origins of its project's runs.
SENT, ORIGINS = "mlflow.gcflow.sent", "mlflow.gcflow.origins"
# And what we call an experiment, whatever a person has renamed it to.
NAME = "mlflow.gcflow.name"
# As MLflow's own Share button writes it, for a list of runs whose address ends with `viewStateShareKey=gcflow`.
VIEW = "mlflow.sharedViewState.gcflow"
# MLflow's own limits for one request: of points, and of parameters or tags.
POINTS_AT_ONCE, WORDS_AT_ONCE = 900, 100
# Largest width and height, in pixels, of the images among MLflow's charts.
PREVIEW = (256, 256)
# Seconds that a writer to SQLite waits for the others.
SQLITE_PATIENCE = 60


def _given() -> str:
    """MLFLOW_TRACKING_URI; empty if there is none."""
    return os.environ.get("MLFLOW_TRACKING_URI", "").strip()


def database(params: Params) -> Path | None:
    """The file of SQLite that MLFLOW_TRACKING_URI names, by default mlflow.db in the project folder; None: a server."""
    uri = _given()
    if not uri:
        return params.root.resolve() / "mlflow.db"
    return Path(uri.removeprefix("sqlite:///")).absolute() if uri.startswith("sqlite:///") and "?" not in uri else None


def shown_address(params: Params) -> str:
    """Where the mirror is."""
    return without_password(_given() or str(database(params)))


def without_password(text: str) -> str:
    """An address, or a sentence with addresses in it, as it may be shown: passwords stand before `@` or after `?`.

    urllib3 tells of an address without its host: `url: /?token=…`.
    """
    return re.sub(r"((?:://|\burl: /)[^\s?]*)\?\S*", r"\1", re.sub(r"://\S*@", "://", text))


def one_line(error: BaseException) -> str:
    """An error's words, as much of them as a line holds, without passwords."""
    return without_password(" ".join(str(error).split()))[:300] or type(error).__name__


class Study(NamedTuple):
    """A table, a figure, or the report, which are a run each in MLflow. note: its description there."""

    name: str
    note: str
    files: list[Path]


class Grid(NamedTuple):
    """Samples at a step. digest: of their file, in the form of a UUID, as it stands in MLflow's name for them."""

    step: int
    digest: str


class Mirror:
    """MLflow, and what it is known to have. Whatever goes wrong with it is raised as it comes.

    Of the processes of a project only one may use one at a time, or a run would be made twice.
    """

    def __init__(self, params: Params) -> None:
        for name, value in SETTINGS.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient, entities

        # It tells of each table that it makes in a new database.
        logging.getLogger("mlflow").setLevel(logging.ERROR)
        self.params, self.entities = params, entities
        self.database = database(params)
        if self.database:
            _make_database(self.database)
        self.client = MlflowClient(_address(self.database) if self.database else _given())
        self._experiments: dict[str, str] = {}
        # Of the runs that are trained now: their histories grow, and are not asked for at every pass.
        self._runs: dict[tuple[str, ...], MlflowRun] = {}
        self._histories: dict[str, dict[str, dict[int, float]]] = {}

    def send_run(self, files: RunFiles) -> str:
        """Completes a run as far as its files go, and returns its MLflow run id."""
        points, grids, uploads, known = files.points(), _grids(files), files.uploads(), self._known(files)
        # Before anything is changed: they may be missing.
        md5 = (known and known.data.tags.get("weights_md5")) or files.weights_md5() if files.published else None
        tags = tags_of(self.params, files, md5)
        everything = _digest([tags, files.status, files.header["inputs"], points, sorted(grids), _hashes(uploads)])
        if known is not None and known.data.tags.get(SENT) == everything:
            return str(known.info.run_id)
        there = self._grids_of(known) if known is not None and grids else set()
        redrawn = {grid.step for grid in there - grids.keys()} & {grid.step for grid in grids}
        if known is not None and (redrawn or self._contradicts(known, points, files.published)):
            # MLflow forgets no point and no image.
            self._delete(known)
            known, there = None, set()
        begun, ended = _span(points)
        if known is None:
            experiment = self._experiment(files.run.dataset)
            known = self.client.create_run(experiment, start_time=begun, tags=tags, run_name=files.run.name)
        run_id = str(known.info.run_id)
        self._send_parameters(known, parameters_of({**files.header["config"], **files.header["inputs"]}))
        self._send_data(known, files)
        self._send_points(known, points, self._make_models(known, files, points))
        self._upload(run_id, uploads)
        for grid in sorted(grids.keys() - there):
            self._send_grid(run_id, grid, grids[grid], ended)
        self._share_view(files.run, points)
        self._send_tags(known, tags)
        if files.status == "RUNNING":
            self.client.update_run(run_id, status=files.status)
            self._runs[tuple(files.identity.values())] = known
        else:
            self.client.set_terminated(run_id, files.status, end_time=ended)
            self._runs.pop(tuple(files.identity.values()), None)
            self._histories.pop(run_id, None)
        self._send_tags(known, {SENT: everything})
        return run_id

    def _share_view(self, run: Run, points: Sequence[Point]) -> None:
        """Lets a data set's list of runs show what its first method is evaluated by, the best run first."""
        names = [point.name for point in points if source_of(point.name) == "evaluation" and "/ema-" in point.name]
        if not names or run.method != next(iter(self.params.dataset(run.dataset).runs)):
            return
        fewest = min((name.rpartition("/")[2] for name in names), key=lambda setting: int(setting.split("-")[1]))
        metrics = [f"metrics.`{name}`" for name in dict.fromkeys(names) if name.endswith(f"/{fewest}")]
        view = {"selectedColumns": ["tags.`label`", *metrics], "orderByKey": metrics[0], "orderByAsc": True}
        self.client.set_experiment_tag(self._experiment(run.dataset), VIEW, json.dumps(view))

    def send_study(self, study: Study, numbers: dict[str, float], origins: set[str]) -> None:
        """Makes a table, a figure or the report in MLflow what it is now, in the experiment of the whole project.

        numbers: its metrics there. origins: hashes of the runs' origins. Of projects that share the experiment, the
        study is of those that have one of the runs that it is tagged with; without any, of the first that sends it.
        """
        tags = {"study": study.name, "mlflow.note.content": study.note, ORIGINS: " ".join(sorted(origins))}
        everything, known = _digest([tags, numbers, _hashes(study.files)]), self._known_study(study, origins)
        if known is None:
            source = {"mlflow.source.name": f"gcflow, {study.name}", "mlflow.source.type": "LOCAL"}
            known = self.client.create_run(self._experiment(None), tags=tags | source, run_name=study.name)
            self.client.set_terminated(known.info.run_id, "FINISHED", end_time=known.info.start_time)
        if known.data.tags.get(SENT) == everything:
            return
        self._upload(known.info.run_id, study.files)
        # What was counted and no longer is, is 0 from now on.
        zeros = dict.fromkeys(known.data.metrics, 0.0) if numbers else {}
        for name, value in (zeros | numbers).items():
            if known.data.metrics.get(name) != value:
                # Not with the time of the files, which may be older ones again: MLflow shows the latest.
                self.client.log_metric(known.info.run_id, name, value, int(1000 * time.time()))
        self._send_tags(known, tags)
        self._send_tags(known, {SENT: everything})

    def _experiment(self, dataset: str | None) -> str:
        """The id of a data set's experiment, made if it is missing; None means that of the whole project."""
        top = self.params.tracking.experiment
        name = f"{top}/{dataset}" if dataset else top
        if name not in self._experiments:
            # Beside our own database, wherever the command was called; a server knows its own place.
            ours = not _given()
            place = (self.params.root / "mlruns" / name).resolve().as_uri() if ours else None
            tagged, everyone = f'tags.`{NAME}` = "{name}"', self.entities.ViewType.ALL
            known = self.client.search_experiments(everyone, max_results=1, filter_string=tagged)
            if found := next(iter(known), None) or self.client.get_experiment_by_name(name):
                self._experiments[name] = str(found.experiment_id)
                if found.lifecycle_stage == "deleted":
                    self._restore(self._experiments[name])
                if not known:
                    self.client.set_experiment_tag(found.experiment_id, NAME, name)
                if place and found.artifact_location != place:
                    self._move(self._experiments[name], place)
            else:
                self._experiments[name] = self.client.create_experiment(name, place, KIND | {NAME: name})
        return self._experiments[name]

    def _move(self, experiment: str, place: str) -> None:
        """Lets our own database have the artifacts of an experiment where the project, renamed or copied, has them."""
        assert self.database
        with closing(sqlite3.connect(self.database, SQLITE_PATIENCE)) as connection, connection:
            connection.execute(
                "UPDATE experiments SET artifact_location = ? WHERE experiment_id = ?", (place, experiment)
            )
            connection.execute(
                "UPDATE runs SET artifact_uri = ? || '/' || run_uuid || '/artifacts' WHERE experiment_id = ?",
                (place, experiment),
            )

    def _restore(self, experiment: str) -> None:
        """Makes a deleted experiment, which keeps its name, an empty one: what was deleted in it stays deleted."""
        kind = self.entities.ViewType.DELETED_ONLY
        deleted = self.client.search_runs([experiment], run_view_type=kind, max_results=50_000)
        self.client.restore_experiment(experiment)
        for run in deleted:
            self.client.delete_run(run.info.run_id)

    def _find(self, dataset: str | None, tags: dict[str, str]) -> "list[MlflowRun]":
        """The runs of an experiment that have these tags, newest first."""
        wanted = " and ".join(f"tags.{key} = '{value}'" for key, value in tags.items())
        newest_first = ["attributes.start_time DESC"]
        return list(self.client.search_runs([self._experiment(dataset)], wanted, order_by=newest_first))

    def _known(self, files: RunFiles) -> "MlflowRun | None":
        if known := self._runs.get(tuple(files.identity.values())):
            return known
        found = self._find(files.run.dataset, files.identity)
        # The request to make it was not answered, and made again.
        for double in found[1:]:
            self._delete(double)
        return next(iter(found), None)

    def _delete(self, known: "MlflowRun") -> None:
        """With its models, which MLflow would go on ranking."""
        for model in self._models_of(known):
            self.client.delete_logged_model(model.model_id)
        self.client.delete_run(known.info.run_id)

    def _known_study(self, study: Study, origins: set[str]) -> "MlflowRun | None":
        found = [(set(run.data.tags.get(ORIGINS, "").split()), run) for run in self._find(None, {"study": study.name})]
        ours = [run for theirs, run in found if theirs & origins]
        # Sent before any run began.
        ours += [run for theirs, run in found if not theirs]
        return ours[0] if ours else None

    def _history(self, known: "MlflowRun") -> dict[str, dict[int, float]]:
        """Steps and values that MLflow has of each metric of a run."""
        run_id = known.info.run_id
        if run_id not in self._histories:
            self._histories[run_id] = {
                name: {point.step: point.value for point in self.client.get_metric_history(run_id, name)}
                for name in known.data.metrics
            }
        return self._histories[run_id]

    def _contradicts(self, known: "MlflowRun", points: list[Point], whole: bool) -> bool:
        """Whether MLflow has another value than the files or, if those are whole, one that they no longer have.

        A kind of file that is not here, in a clone say, takes nothing away.
        """
        ours = {(point.name, point.step): point.value for point in points}
        sources = {source_of(point.name) for point in points} if whole else set()
        for name, history in self._history(known).items():
            for step, value in history.items() if not name.startswith(CLOCKS) else ():
                if (name, step) not in ours:
                    if source_of(name) in sources:
                        return True
                # MLflow keeps what is not finite as another number.
                elif ours[name, step] != value and math.isfinite(ours[name, step]):
                    return True
        return False

    def _models_of(self, known: "MlflowRun") -> "list[LoggedModel]":
        """Those of a run that MLflow has, the oldest first."""
        experiments, ours = [known.info.experiment_id], f"source_run_id = '{known.info.run_id}'"
        page = self.client.search_logged_models(experiments, ours)
        found = list(page)
        while page.token:
            page = self.client.search_logged_models(experiments, ours, page_token=page.token)
            found += page
        return sorted(found, key=lambda model: model.creation_timestamp)

    def _make_models(self, known: "MlflowRun", files: RunFiles, points: list[Point]) -> "dict[int, LoggedModel]":
        """A model of MLflow per snapshot that was measured, by its step: what it ranks. They hold no weights."""
        steps = sorted({point.step for point in points if source_of(point.name) == "evaluation"})
        if not steps:
            return {}
        run, run_id = files.run, known.info.run_id
        models: dict[int, LoggedModel] = {}
        for model in self._models_of(known):
            if models.setdefault(int(model.tags["step"]), model) is not model:
                # The request to make it was not answered, and made again.
                self.client.delete_logged_model(model.model_id)
        kind = self.params.dataset(run.dataset).methods[run.method].objective.kind
        for step in steps:
            if step not in models:
                tags = {"run": run.name, "step": str(step), "weights": str(snapshot(run_folder(Path(), run), step))}
                name = f"{run.dataset}-{run.method}-seed{run.seed}-step{step}"
                models[step] = self.client.create_logged_model(known.info.experiment_id, name, run_id, tags, None, kind)
            if models[step].status != "READY":
                self.client.finalize_logged_model(models[step].model_id, "READY")
        linked = {output.model_id for output in known.outputs.model_outputs} if known.outputs else set()
        new = [self.entities.LoggedModelOutput(models[step].model_id, step) for step in steps]
        if new := [output for output in new if output.model_id not in linked]:
            self.client.log_outputs(run_id, new)
        return models

    def _send_data(self, known: "MlflowRun", files: RunFiles) -> None:
        """What it is trained on, by the hash of the prepared samples."""
        digest = files.header["inputs"].get("data_sha256")
        if digest and not (known.inputs and known.inputs.dataset_inputs):
            name, source = files.run.dataset, json.dumps({"path": f"data/{files.run.dataset}", "sha256": digest})
            data = self.entities.Dataset(name, digest[:8], "gcflow prepare", source)
            role = self.entities.InputTag("mlflow.data.context", "training")
            self.client.log_inputs(known.info.run_id, [self.entities.DatasetInput(data, [role])])

    def _send_points(self, known: "MlflowRun", points: list[Point], models: "dict[int, LoggedModel]") -> None:
        history = self._history(known)
        ranked = {(metric.key, step) for step, model in models.items() for metric in model.metrics or ()}

        def model_of(point: Point) -> str | None:
            return models[point.step].model_id if source_of(point.name) == "evaluation" else None

        missing = [
            point
            for point in points
            if point.step not in history.get(point.name, ())
            or (model_of(point) and (point.name, point.step) not in ranked)
        ]
        for part in _parts(missing, POINTS_AT_ONCE):
            metrics = [self.entities.Metric(*point, model_of(point)) for point in part]
            self.client.log_batch(known.info.run_id, metrics=metrics)
            for point in part:
                history.setdefault(point.name, {})[point.step] = point.value

    def _send_parameters(self, known: "MlflowRun", parameters: dict[str, str]) -> None:
        missing = [pair for pair in parameters.items() if pair[0] not in known.data.params]
        for part in _parts(missing, WORDS_AT_ONCE):
            self.client.log_batch(known.info.run_id, params=[self.entities.Param(*pair) for pair in part])
            known.data.params.update(part)

    def _send_tags(self, known: "MlflowRun", tags: dict[str, str]) -> None:
        changed = [pair for pair in tags.items() if known.data.tags.get(pair[0]) != pair[1]]
        for part in _parts(changed, WORDS_AT_ONCE):
            self.client.log_batch(known.info.run_id, tags=[self.entities.RunTag(*pair) for pair in part])
            known.data.tags.update(part)

    def _upload(self, run_id: str, files: list[Path]) -> None:
        for path in files:
            self.client.log_artifact(run_id, str(path))

    def _grids_of(self, known: "MlflowRun") -> set[Grid]:
        """Those that are there whole, in both sizes."""
        names = {Path(entry.path).name for entry in self.client.list_artifacts(known.info.run_id, "images")}
        stems = {name.removesuffix(".png") for name in names if name.endswith(".png")}
        whole = [stem.split("+") for stem in stems if f"{stem}+compressed.webp" in names]
        return {Grid(int(parts[2]), parts[5]) for parts in whole}

    def _send_grid(self, run_id: str, grid: Grid, path: Path, milliseconds: int | None) -> None:
        """Uploads samples under the names that `MlflowClient.log_image` gives.

        That would take a new name each time, so that one sent again would be there twice.
        """
        from PIL import Image

        name = f"samples+step+{grid.step}+timestamp+{milliseconds or 0}+{grid.digest}"
        with TemporaryDirectory() as folder:
            with naming(path), Image.open(path) as image:
                image.save(Path(folder) / f"{name}.png")
                preview = image.convert("RGB")
                preview.thumbnail(PREVIEW)
                preview.save(Path(folder) / f"{name}+compressed.webp", lossless=True)
            self.client.log_artifacts(run_id, folder, "images")


def _grids(files: RunFiles) -> dict[Grid, Path]:
    return {Grid(step, str(uuid.UUID(sha256_of(path)[:32]))): path for step, path in files.grids().items()}


def _address(path: Path) -> str:
    """Of a file of SQLite, whatever characters its path has."""
    # With the driver's name: without it MLflow makes folders of what follows.
    return f"sqlite+pysqlite:///{path.as_uri()}?uri=true&timeout={SQLITE_PATIENCE}"


def _make_database(path: Path) -> None:
    """Whole or not at all: one whose making was interrupted, by a full disk say, can never be used again."""
    if path.exists():
        # MLflow itself tries for minutes to open what is none.
        with closing(sqlite3.connect(path, SQLITE_PATIENCE)) as connection:
            connection.execute("PRAGMA schema_version")
        return
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    with atomic_path(path) as temporary:
        SqlAlchemyStore(_address(temporary), (path.parent / "mlruns").as_uri()).engine.dispose()


def _span(points: list[Point]) -> tuple[int | None, int | None]:
    """When training began and ended, in milliseconds."""
    times = [point.milliseconds for point in points]
    return min(times, default=None), max(times, default=None)


def _parts(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _digest(document: Any) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()[:16]


def _hashes(files: list[Path]) -> dict[str, str]:
    return {path.name: sha256_of(path) for path in files}
