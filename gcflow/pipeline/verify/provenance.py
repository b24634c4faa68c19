"""What the files of a project say of each other: manifests, and headers of features, references and public models."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from gcflow.config import to_dict
from gcflow.pipeline.folders import data_folder, extractor_path, pretrained_path, reference_path
from gcflow.pipeline.graph import Job
from gcflow.pipeline.params import Params
from gcflow.pipeline.schema import Classifier, InceptionNetwork
from gcflow.pipeline.verify.reading import Reading, older
from gcflow.pipeline.verify.runs import RunProvenance
from gcflow.pipeline.verify.statements import Statement, Voucher

HERE = Path()


class Provenance:
    """Collects what the files of stages say. Only headers and small documents are read.

    archives: folder of published files, relative to the project's root.
    """

    def __init__(self, params: Params, archives: Path) -> None:
        self.params, self.archives = params, archives
        self.reading = Reading(params.root)
        runs = RunProvenance(params, self.reading)
        self._kinds: dict[str, Callable[[Job], Iterator[Statement]]] = {
            "prepare": self._data,
            "pretrained": self._pretrained,
            "features": self._features,
            "reference": self._reference,
            "train": runs.training,
            "evaluate": runs.evaluation,
            "discrepancy": runs.discrepancy,
        }

    def said(self, job: Job) -> Iterator[Statement]:
        """What is said about the files of a stage by themselves, and by them of the files that they were made from."""
        for out in job.stage.outs:
            if out.endswith(".json"):
                yield from self.reading.guarded(out, partial(self._parsed, out))
        if job.kind in self._kinds:
            yield from self._kinds[job.kind](job)

    def _parsed(self, path: str) -> tuple[()]:
        self.reading.json(path)
        return ()

    def _data(self, job: Job) -> Iterator[Statement]:
        assert job.dataset
        source, folder = self.params.dataset(job.dataset).data, data_folder(HERE, job.dataset)
        manifest = str(folder / "manifest.json")

        def read() -> Iterator[Statement]:
            document = self.reading.json(manifest)
            for name, sha256 in document["sha256"].items():
                yield Voucher(str(folder / name), "sha256", sha256, manifest)
            yield from older(manifest, "data", document["options"], to_dict(source))

        return self.reading.guarded(manifest, read)

    def _pinned(self, path: str, sha256: str | None) -> Iterator[Statement]:
        if sha256 is not None and (self.params.root / path).exists():
            yield Voucher(path, "sha256", sha256, self.params.path.name)

    def _pretrained(self, job: Job) -> Iterator[Statement]:
        entry, path = self.params.pretrained[job.item], str(pretrained_path(HERE, job.item))
        yield from self._pinned(str(self.archives / entry.pickle), entry.sha256)

        def check(said: dict[str, Any]) -> Iterator[Statement]:
            if entry.sha256 is not None:
                yield from older(path, "sha256 of the pickle", said["source"]["sha256"], entry.sha256)

        yield from self.reading.tensors(path, check)

    def _features(self, job: Job) -> Iterator[Statement]:
        assert job.dataset
        settings = self.params.dataset(job.dataset).features
        path, data = str(extractor_path(HERE, job.dataset, settings.kind)), self._samples(job.dataset)
        if isinstance(settings, InceptionNetwork):
            yield from self._pinned(path, settings.sha256)
            yield from self._pinned(str(self.archives / settings.weights), settings.sha256)

        def check(said: dict[str, Any]) -> Iterator[Statement]:
            yield Voucher(data, "sha256", said["data_sha256"], path, path)
            yield from older(path, "features", said["settings"], to_dict(settings))

        if isinstance(settings, Classifier):
            yield from self.reading.tensors(path, check)

    def _reference(self, job: Job) -> Iterator[Statement]:
        assert job.dataset
        features, data = self.params.dataset(job.dataset).features, self._samples(job.dataset)
        path, protocol = str(reference_path(HERE, job.dataset, job.item)), features.protocols[job.item]
        extractor = str(extractor_path(HERE, job.dataset, features.kind))

        def check(said: dict[str, Any]) -> Iterator[Statement]:
            yield Voucher(data, "sha256", said["data_sha256"], path, path)
            if said["extractor_sha256"] is not None:
                yield Voucher(extractor, "sha256", said["extractor_sha256"], path, path)
            for key, value in (protocol.reference_settings if protocol else {}).items():
                yield from older(path, f"{key} of the protocol", said["protocol"].get(key), value)

        return self.reading.tensors(path, check)

    def _samples(self, dataset: str) -> str:
        return str(data_folder(HERE, dataset) / "samples.npy")
