"""Sends what files say to MLflow, once each."""

import hashlib
import json
import math
import time
import uuid
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from gcflow.files import sha256_of
from gcflow.pipeline.lock import newest_lease
from gcflow.pipeline.params import Params
from gcflow.pipeline.tracking.files import CLOCKS, SYSTEM, Point, RunFiles, newest_state
from gcflow.pipeline.tracking.server import Server
from gcflow.pipeline.tracking.words import flat_parameters, note, tags_of, weights_of

if TYPE_CHECKING:
    from mlflow.entities import Run as MlflowRun

# MLflow's own limits for one request.
POINTS_AT_ONCE, PARAMETERS_AT_ONCE = 900, 100
# Largest width and height, in pixels, of the images among MLflow's charts.
PREVIEW = (256, 256)
# Tags that say what was sent: of all of it, and (a tag each) of files. MLflow's own prefix keeps them off its pages.
SENT, UPLOADED = "mlflow.gcflow.sent", "mlflow.gcflow.uploaded"


class Mirror:
    """What was sent to a server, and is remembered here between passes; only one process at a time sends a run."""

    def __init__(self, params: Params) -> None:
        self.params = params
        self.server = Server(params)
        self.client = self.server.client
        self._runs: dict[tuple[str, ...], MlflowRun] = {}
        self._histories: dict[str, dict[str, dict[int, float]]] = {}

    def send(self, files: RunFiles) -> str:
        """Completes a run in MLflow as far as its files go, and returns its MLflow run id."""
        points, grids = files.points(), {step: sha256_of(path)[:32] for step, path in files.grids().items()}
        tags, state = tags_of(self.params, files), self._state(files)
        proof = _digest([tags, state, files.published, points, grids])
        known = self._known(files)
        if known is not None and known.data.tags.get(SENT) == proof:
            return str(known.info.run_id)
        stale = known is not None and (self._contradicts(known, files, points) or _redrawn(known, grids))
        # Before anything is changed: they may be missing.
        weights = self._weights(files, None if stale else known) if files.published else None
        if known is not None and stale:
            self.client.delete_run(known.info.run_id)
            known = None
        if known is None:
            known = self._create(files, points, tags)
        self._send_parameters(known, files)
        self._send_points(known, points)
        tags |= {"mlflow.note.content": note(weights, files)}
        if weights is not None:
            tags |= self._publish(known, files, weights)
            _, ended = _span(points)
            for step, path in files.grids().items():
                self._send_grid(known, step, path, grids[step], ended)
        self._send_tags(known, tags)
        self._finish(known.info.run_id, state, points)
        self._send_tags(known, {SENT: proof})
        return str(known.info.run_id)

    def _known(self, files: RunFiles) -> "MlflowRun | None":
        """The run in MLflow, looked for until it is there: another process may have made it meanwhile."""
        identity = {"run": files.run.name, "config_hash": files.config_hash}
        key = (*identity.values(), files.origin)
        if key not in self._runs:
            for found in self.server.find(self.server.experiment(files.run.dataset), identity):
                if found.data.tags.get("origin", "") == files.origin:
                    self._runs[key] = found
                    break
        return self._runs.get(key)

    def _create(self, files: RunFiles, points: list[Point], tags: dict[str, str]) -> "MlflowRun":
        experiment = self.server.experiment(files.run.dataset)
        begun, _ = _span(points)
        made = self.client.create_run(experiment, start_time=begun or None, tags=tags, run_name=files.run.name)
        self._runs[files.run.name, files.config_hash, files.origin] = made
        return made

    def _state(self, files: RunFiles) -> str:
        if files.complete:
            return "FINISHED"
        lease = newest_lease(files.folder / "state")
        return "RUNNING" if lease and lease.held and files.place == newest_state(files.folder) else "KILLED"

    def _finish(self, run_id: str, state: str, points: list[Point]) -> None:
        if state == "RUNNING":
            self.client.update_run(run_id, status=state)
        else:
            self.client.set_terminated(run_id, state, end_time=_span(points)[1] or None)

    def _history(self, run_id: str, names: Iterable[str]) -> dict[str, dict[int, float]]:
        """Steps and values that MLflow has of some metrics."""
        histories = self._histories.setdefault(run_id, {})
        for name in names:
            if name not in histories:
                histories[name] = {m.step: m.value for m in self.client.get_metric_history(run_id, name)}
        return histories

    def _contradicts(self, known: "MlflowRun", files: RunFiles, points: list[Point]) -> bool:
        """Whether MLflow has another value than the files, or one more: it forgets none, so the run is made anew."""
        histories = self._history(known.info.run_id, known.data.metrics)
        ours = {(point.name, point.step) for point in points}
        theirs = {(name, step) for name, history in histories.items() if files.has_all_of(name) for step in history}
        return bool(theirs - ours) or any(
            math.isfinite(point.value) and histories.get(point.name, {}).get(point.step, point.value) != point.value
            for point in points
            if not point.name.startswith(CLOCKS)
        )

    def _send_parameters(self, known: "MlflowRun", files: RunFiles) -> None:
        from mlflow.entities import Param

        described = flat_parameters({**files.header["config"], **files.header["inputs"]})
        missing = [Param(key, value) for key, value in described.items() if key not in known.data.params]
        for start in range(0, len(missing), PARAMETERS_AT_ONCE):
            self.client.log_batch(known.info.run_id, params=missing[start : start + PARAMETERS_AT_ONCE])
        known.data.params.update(described)

    def _send_points(self, known: "MlflowRun", points: list[Point]) -> None:
        from mlflow.entities import Metric

        run_id = known.info.run_id
        histories = self._history(run_id, known.data.metrics)
        missing = [point for point in points if point.step not in histories.get(point.name, ())]
        for start in range(0, len(missing), POINTS_AT_ONCE):
            part = missing[start : start + POINTS_AT_ONCE]
            self.client.log_batch(run_id, metrics=[Metric(*point) for point in part])
            for point in part:
                histories.setdefault(point.name, {})[point.step] = point.value

    def _send_tags(self, known: "MlflowRun", tags: dict[str, str]) -> None:
        from mlflow.entities import RunTag

        changed = {key: value for key, value in tags.items() if known.data.tags.get(key) != value}
        if changed:
            self.client.log_batch(known.info.run_id, tags=[RunTag(key, value) for key, value in changed.items()])
            known.data.tags.update(changed)

    def _weights(self, files: RunFiles, known: "MlflowRun | None") -> dict[str, str]:
        md5 = known.data.tags.get("weights_md5") if known is not None else None
        return weights_of(self.params, files, md5 or files.weights_md5())

    def _publish(self, known: "MlflowRun", files: RunFiles, weights: dict[str, str]) -> dict[str, str]:
        """What a finished run has besides: where its weights are, and the data that it was trained on; as tags."""
        if "weights_md5" not in known.data.tags:
            self.client.log_dict(known.info.run_id, weights, "weights.json")
            self._send_data(known.info.run_id, files)
        self.upload(known, {"samples.png": files.folder / "evaluation" / "samples.png"})
        return {"weights": weights["path"], "weights_md5": weights["md5"]}

    def _send_data(self, run_id: str, files: RunFiles) -> None:
        from mlflow.entities import Dataset, DatasetInput

        sha256 = files.header["inputs"]["data_sha256"]
        source = json.dumps({"uri": f"data/{files.run.dataset}"})
        data = Dataset(files.run.dataset, sha256[:8], "local", source, json.dumps({"sha256": sha256}))
        self.client.log_inputs(run_id, datasets=[DatasetInput(data, [])])

    def _send_grid(self, known: "MlflowRun", step: int, path: Path, digest: str, milliseconds: int) -> None:
        """An image of a step, under the names that `MlflowClient.log_image` gives.

        That would take a new name each time, so that one sent again would be there twice.
        """
        from PIL import Image

        if _sent(known).get(_grid(step)) == digest:
            return
        name = f"samples+step+{step}+timestamp+{milliseconds}+{uuid.UUID(digest)}"
        with TemporaryDirectory() as folder, Image.open(path) as image:
            image.save(Path(folder) / f"{name}.png")
            preview = image.convert("RGB")
            preview.thumbnail(PREVIEW)
            preview.save(Path(folder) / f"{name}+compressed.webp", lossless=True)
            self.client.log_artifacts(known.info.run_id, folder, "images")
        self._send_tags(known, {"mlflow.loggedImages": "True", f"{UPLOADED}.{_grid(step)}": digest})

    def upload(self, known: "MlflowRun", artifacts: dict[str, Path]) -> None:
        """Uploads files that are there and are not what was uploaded last under their names."""
        sent = _sent(known)
        now = {name: sha256_of(path)[:16] for name, path in artifacts.items() if path.exists()}
        new = {name: sha for name, sha in now.items() if sent.get(name) != sha}
        for name, sha in new.items():
            folder = str(Path(name).parent)
            self.client.log_artifact(known.info.run_id, str(artifacts[name]), None if folder == "." else folder)
            self._send_tags(known, {f"{UPLOADED}.{name}": sha})

    def describe(self, known: "MlflowRun", tags: dict[str, str], counts: dict[str, float]) -> None:
        """Tags and numbers of a study as they are now. counts: what was counted and no longer is, is 0 from now on."""
        self._send_tags(known, tags)
        zeros = dict.fromkeys(known.data.metrics, 0.0) if counts else {}
        for name, value in {**zeros, **counts}.items():
            if known.data.metrics.get(name) != value:
                # Not with the time of the files, which may be older ones again: MLflow shows the latest.
                self.client.log_metric(known.info.run_id, name, value, int(1000 * time.time()))


def _span(points: list[Point]) -> tuple[int, int]:
    """When training began and ended, in milliseconds; the machine was also watched later, during evaluation."""
    times = [point.milliseconds for point in points if not point.name.startswith(SYSTEM)] or [0]
    return min(times), max(times)


def _digest(document: Any) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()[:16]


def _sent(known: "MlflowRun") -> dict[str, str]:
    """Hashes of the files that were uploaded, by their names."""
    tags = known.data.tags
    # All in one, as it was written before, until there were too many for a tag.
    before = dict(json.loads(tags.get(UPLOADED, "{}")))
    return before | {key.removeprefix(f"{UPLOADED}."): tags[key] for key in tags if key.startswith(f"{UPLOADED}.")}


def _grid(step: int) -> str:
    return f"grid of step {step}"


def _redrawn(known: "MlflowRun", grids: dict[int, str]) -> bool:
    """Whether MLflow has another image of a step: it would keep both."""
    sent = _sent(known)
    return any(sent.get(_grid(step), digest) != digest for step, digest in grids.items())
