"""A connection to MLflow: its address, what it may take, and how our runs are found there."""

import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from gcflow.files import atomic_path
from gcflow.pipeline.folders import tracking_lock
from gcflow.pipeline.lock import RunLock
from gcflow.pipeline.params import Params

if TYPE_CHECKING:
    from mlflow.entities import Run as MlflowRun

# Seconds for a request, not MLflow's minutes of silent retries: what cannot be sent now is sent by the next call.
# And nothing goes to anybody but the server.
SETTINGS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "PGCONNECT_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # With the password in it.
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
# MLflow shows pages of training, not those of language models.
KIND = {"mlflow.experimentKind": "custom_model_development"}
# Whose a study is: hashes of the origins of its project's runs. MLflow's own prefix keeps it off its pages.
ORIGINS = "mlflow.gcflow.origins"
# Seconds that a writer to SQLite waits for the others.
SQLITE_PATIENCE = 60


def tracking_uri(params: Params) -> str:
    """MLFLOW_TRACKING_URI, or SQLite in the project folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(params.root / 'mlflow.db').resolve()}"


def without_password(text: str) -> str:
    """An address, or a sentence with addresses in it, as it may be shown."""
    return re.sub(r"://[^/\s]*@", "://", text)


def one_line(error: BaseException) -> str:
    """An error's words, as much of them as a line holds, without passwords."""
    return without_password(" ".join(str(error).split()))[:300] or type(error).__name__


class Server:
    """MLflow, and the runs of ours that it has. Whatever goes wrong with it is raised as it comes."""

    def __init__(self, params: Params) -> None:
        for name, value in SETTINGS.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient

        # It tells of each table that it makes in a new database.
        logging.getLogger("mlflow").setLevel(logging.ERROR)
        self.params = params
        uri = tracking_uri(params)
        if uri.startswith("sqlite:///") and "?" not in uri:
            self._make_database(Path(uri.removeprefix("sqlite:///")))
            uri += f"?timeout={SQLITE_PATIENCE}"
        self.client = MlflowClient(tracking_uri=uri)
        self._experiments: dict[str, str] = {}

    def _make_database(self, path: Path) -> None:
        """Whole or not at all: one whose making was interrupted, by a full disk say, can never be used again."""
        if path.exists():
            return
        with self._alone():
            if not path.exists():
                from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

                with atomic_path(path) as temporary:
                    SqlAlchemyStore(f"sqlite:///{temporary}", str(path.parent / "mlruns")).engine.dispose()

    def _alone(self) -> RunLock:
        return RunLock(tracking_lock(self.params.root), "MLflow", wait=True)

    def experiment(self, dataset: str | None) -> str:
        """The id of a data set's experiment, made if it is missing; None means that of the whole project."""
        from mlflow.exceptions import MlflowException

        top = self.params.tracking.experiment
        name = f"{top}/{dataset}" if dataset else top
        if name not in self._experiments:
            found = self.client.get_experiment_by_name(name)
            if found is None:
                try:
                    self._experiments[name] = self.client.create_experiment(name, self._artifacts(name), KIND)
                    return self._experiments[name]
                except MlflowException as error:
                    # Another process was quicker.
                    if error.error_code != "RESOURCE_ALREADY_EXISTS":
                        raise
                    found = self.client.get_experiment_by_name(name)
            if found.lifecycle_stage == "deleted":
                self._restore(found.experiment_id)
            self._experiments[name] = found.experiment_id
        return self._experiments[name]

    def _restore(self, experiment: str) -> None:
        """Makes a deleted experiment, which keeps its name, an empty one: what was deleted in it stays deleted."""
        from mlflow.entities import ViewType

        with self._alone():
            if self.client.get_experiment(experiment).lifecycle_stage != "deleted":
                return
            deleted = self.client.search_runs([experiment], run_view_type=ViewType.DELETED_ONLY, max_results=50_000)
            self.client.restore_experiment(experiment)
            for run in deleted:
                self.client.delete_run(run.info.run_id)

    def _artifacts(self, experiment: str) -> str | None:
        """Beside our own database, wherever the command was called; a server knows its own place."""
        if os.environ.get("MLFLOW_TRACKING_URI"):
            return None
        return (self.params.root / "mlruns" / experiment).resolve().as_uri()

    def find(self, experiment: str, tags: Mapping[str, str]) -> "list[MlflowRun]":
        """The runs of an experiment that have these tags, newest first."""
        wanted = " and ".join(f"tags.{key} = '{value}'" for key, value in tags.items())
        return list(self.client.search_runs([experiment], wanted, order_by=["attributes.start_time DESC"]))

    def study(self, name: str, origins: set[str]) -> "MlflowRun":
        """The MLflow run of a table, a figure or the report, in the experiment of the whole project.

        origins: hashes of the runs' origins. Of projects that share the experiment, the study is of those that have
        one of the runs that it is tagged with.
        """
        experiment = self.experiment(None)
        if (found := self._study(experiment, name, origins)) is None:
            with self._alone():
                found = self._study(experiment, name, origins) or self._make_study(experiment, name, origins)
        return found

    def _study(self, experiment: str, name: str, origins: set[str]) -> "MlflowRun | None":
        for found in sorted(self.find(experiment, {"study": name}), key=lambda run: ORIGINS not in run.data.tags):
            theirs = set(found.data.tags.get(ORIGINS, "").split())
            # One without the tag was made before there was one, and becomes that of the first who comes.
            if theirs & origins or not theirs | origins or ORIGINS not in found.data.tags:
                return found
        return None

    def _make_study(self, experiment: str, name: str, origins: set[str]) -> "MlflowRun":
        source = {"mlflow.source.name": f"gcflow, {name}", "mlflow.source.type": "LOCAL"}
        tags = {"study": name, ORIGINS: " ".join(sorted(origins)), **source}
        made = self.client.create_run(experiment, tags=tags, run_name=name)
        self.client.set_terminated(made.info.run_id, "FINISHED", end_time=made.info.start_time)
        return made
