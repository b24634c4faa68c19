"""What the files of a run say of each other, and of the files that the run was made from."""

import json
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from gcflow.config import RunConfig, digest, to_dict
from gcflow.errors import GcflowError
from gcflow.files import read_json
from gcflow.pipeline.folders import (
    data_folder,
    discrepancy_path,
    extractor_path,
    reference_path,
    run_folder,
    snapshot,
)
from gcflow.pipeline.graph import Job
from gcflow.pipeline.params import Params, Run
from gcflow.pipeline.verify.reading import Reading, older
from gcflow.pipeline.verify.statements import Remark, Statement, Voucher

HERE = Path()
WEIGHTS = re.compile(r"(checkpoint-)?\d+$")


class RunProvenance:
    """Collects what is said by configurations, headers of weights, and protocol records."""

    def __init__(self, params: Params, reading: Reading) -> None:
        self.params, self.reading = params, reading
        self._configs: dict[tuple[str, str], tuple[RunConfig, dict[str, Any]]] = {}

    def training(self, job: Job) -> Iterator[Statement]:
        """Of config.json, weights, snapshots, metrics.jsonl, and the resumable checkpoints."""
        assert job.run
        run, folder = job.run, run_folder(HERE, job.run)
        record, metrics = str(folder / "config.json"), str(folder / "metrics.jsonl")
        config, now = self._config(run)
        yield from self.reading.guarded(record, partial(self._configuration, run, record, now))
        recorded = self._recorded(record)
        steps = config.training.snapshot_steps if recorded.get("config") == now else []
        for step in steps:
            if not (self.params.root / snapshot(folder, step)).exists():
                yield Remark(str(snapshot(folder, step)), "missing", f"{record} asks for it", record)
        final = str(folder / "weights.safetensors")
        yield from self.reading.tensors(final, partial(_published, final, record, recorded, steps[-1:]))
        for found in self._weights(folder / "snapshots"):
            path = str(folder / "snapshots" / found.name)
            yield from self.reading.tensors(path, partial(_published, path, record, recorded, [_step(found)]))
        yield from self.reading.guarded(metrics, partial(self._lines, metrics))
        for file in self.params.needed_files(run).values():
            yield from self.reading.tensors(file)
        yield from self._state(folder / "state")

    def evaluation(self, job: Job) -> Iterator[Statement]:
        """Of a run's metrics, each with its protocol record."""
        assert job.run
        run, entry = job.run, self.params.dataset(job.run.dataset)
        path = str(run_folder(HERE, run) / "evaluation" / "metrics.json")
        extractor = str(extractor_path(HERE, run.dataset, entry.features.kind))
        asked: dict[str, set[Any]] = {
            "generated": {entry.evaluation.samples},
            "weights": set(entry.evaluation.weights),
            "protocol": set(entry.features.protocols),
            "step": set(self._config(run)[0].training.snapshot_steps),
        }

        def read() -> Iterator[Statement]:
            records = self.reading.json(path)
            for name in sorted({record["run"] for record in records} - {run.name}):
                yield Remark(path, "damaged", f"holds measurements of the run {name}", path)
            for key, known in asked.items():
                for value in sorted({record[key] for record in records} - known, key=str):
                    yield Remark(path, "older", f"{key} is {value}, which params.yaml asks for no more", path)
            for sha256 in {record["extractor_sha256"] for record in records} - {None}:
                yield Voucher(extractor, "sha256", sha256, path, path)
            for protocol, count in sorted({(record["protocol"], record["reference"]) for record in records}):
                reference = str(reference_path(HERE, run.dataset, protocol))
                header = self.reading.headers.get(reference)
                if header and count != header.said["count"]:
                    text = f"compares with {count} real samples, {reference} is of {header.said['count']}"
                    yield Remark(path, "older", text, reference)

        return self.reading.guarded(path, read)

    def discrepancy(self, job: Job) -> Iterator[Statement]:
        """Of the velocity discrepancy of a denoiser's coupling."""
        assert job.run
        run, path = job.run, str(discrepancy_path(HERE, job.run))

        def read() -> Iterator[Statement]:
            document = self.reading.json(path)
            if document["run"] != run.name:
                yield Remark(path, "damaged", f"is of the run {document['run']}", path)
            for key, file in self._inputs(run).items():
                if key in document["inputs"]:
                    yield Voucher(file, "sha256", document["inputs"][key], path, path)

        return self.reading.guarded(path, read)

    def _config(self, run: Run) -> tuple[RunConfig, dict[str, Any]]:
        """A run as params.yaml has it now, also as JSON values. Runs of a method share the work of reading it."""
        key = run.dataset, run.method
        if key not in self._configs:
            config = self.params.run_config(run.name)
            self._configs[key] = config, to_dict(config)
        config, document = self._configs[key]
        return config, document | {"seed": run.seed}

    def _inputs(self, run: Run) -> dict[str, str]:
        """What a run is made from: the key of a hash in its records to the file."""
        files = {role: Path(file) for role, file in self.params.needed_files(run).items()}
        for role, (needed, step) in self.params.needed_runs(run).items():
            files[role] = snapshot(run_folder(HERE, needed), step)
        files["data"] = data_folder(HERE, run.dataset) / "samples.npy"
        return {f"{role}_sha256": str(path) for role, path in files.items()}

    def _recorded(self, path: str) -> dict[str, Any]:
        try:
            document = read_json(self.params.root / path)
        except (GcflowError, OSError):
            return {}
        return document if isinstance(document, dict) else {}

    def _configuration(self, run: Run, path: str, now: dict[str, Any]) -> Iterator[Statement]:
        document = self.reading.json(path)
        config, inputs = document["config"], document["inputs"]
        if digest({"config": config, "inputs": inputs}) != document["config_hash"]:
            yield Remark(path, "damaged", "config_hash is not that of its config and inputs", path)
        if (name := _name(config)) != run.name:
            yield Remark(path, "damaged", f"is of the run {name}", path)
        yield from older(path, "configuration", config, now)
        for key, file in self._inputs(run).items():
            # What plays another role's part now is not what an older configuration was made from.
            if config == now or key == "data_sha256":
                yield Voucher(file, "sha256", inputs[key], path, path)

    def _lines(self, path: str) -> Iterator[Statement]:
        before = -1
        for number, line in enumerate((self.params.root / path).read_text().splitlines(), start=1):
            step = json.loads(line)["step"]
            if step <= before:
                yield Remark(path, "damaged", f"line {number} is of step {step}, the one before of {before}", path)
                return
            before = step

    def _state(self, folder: Path) -> Iterator[Statement]:
        for kept in sorted((self.params.root / folder).glob("*/")):
            for found in (*self._weights(folder / kept.name), *self._weights(folder / kept.name / "snapshots")):
                path = str(folder / found.relative_to(self.params.root / folder))
                yield from self.reading.tensors(path, partial(_unpublished, path, kept.name, _step(found)))

    def _weights(self, folder: Path) -> list[Path]:
        """The snapshots or checkpoints in a folder, without what was left half-written."""
        return [path for path in sorted((self.params.root / folder).glob("*.safetensors")) if WEIGHTS.match(path.stem)]


def _step(path: Path) -> int:
    return int(path.stem.removeprefix("checkpoint-"))


def _name(config: dict[str, Any]) -> str:
    return f"{config['dataset']}/{config['method_name']}/{config['seed']}"


def _published(
    path: str, record: str, recorded: dict[str, Any], steps: list[int], said: dict[str, Any]
) -> Iterator[Statement]:
    """Whether weights are of the configuration that config.json records, and of the step of their name."""
    if recorded and any(said[key] != recorded.get(key) for key in ("config", "inputs", "config_hash")):
        text = f"its header is of another configuration ({_name(said['config'])}, {said['config_hash'][:8]}) than"
        yield Remark(path, "damaged", f"{text} {record}", record)
    yield from _of_step(path, steps, said)


def _unpublished(path: str, folder: str, step: int, said: dict[str, Any]) -> Iterator[Statement]:
    """Whether a checkpoint is of the configuration that its folder is named after."""
    if not said["config_hash"].startswith(folder):
        yield Remark(path, "damaged", f"its header is of another configuration ({said['config_hash'][:8]})", path)
    yield from _of_step(path, [step], said)


def _of_step(path: str, steps: list[int], said: dict[str, Any]) -> Iterator[Statement]:
    if steps and said["step"] not in steps:
        yield Remark(path, "damaged", f"its header says step {said['step']}, it should be {steps[0]}", path)
