"""`gcflow prepare`: the arrays of a data set, with a bar for each phase of the work."""

import math
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from statistics import fmean

import numpy as np

from gcflow.archives.formats import PHASES
from gcflow.dinov2 import PUBLISHED
from gcflow.errors import GcflowError
from gcflow.files import read_json
from gcflow.pipeline.folders import data_folder
from gcflow.pipeline.params import Params
from gcflow.pipeline.progress import Progress, say
from gcflow.pipeline.schema import DatasetEntry, Dinov2Network
from gcflow.preparation import prepare

MEGABYTE = 10**6
# Between the data's scale and the sigma_data that networks are told.
LARGEST_FACTOR = 1.2


def dimension(entry: DatasetEntry) -> int:
    """How many features a sample has; those of the identity are its own values."""
    if isinstance(entry.features, Dinov2Network):
        return PUBLISHED[entry.features.size].width
    fixed = {"classifier": 64, "inception": 2048, "surrogate": 2048}
    return fixed.get(entry.features.kind, math.prod(entry.data.shape))


def check_classes(params: Params, dataset: str) -> None:
    """Raises GcflowError if features are to be a classifier's, and prepared data have fewer than two classes."""
    labels = np.load(data_folder(params.root, dataset) / "labels.npy")
    if params.dataset(dataset).features.kind == "classifier" and len(np.unique(labels)) < 2:
        raise GcflowError(
            f"{params.path}: datasets.{dataset}.features.kind is classifier, but the data have one class; sort the "
            "images into a folder per class, or take kind: inception (or surrogate, which needs no download)"
        )


def doubts(params: Params, dataset: str) -> Iterator[str]:
    """What of params.yaml does not suit prepared data, before anything is trained on them."""
    entry, key = params.dataset(dataset), f"datasets.{dataset}"
    manifest = read_json(data_folder(params.root, dataset) / "manifest.json")
    kind, process = entry.features.kind, entry.process
    width, count = dimension(entry), manifest["count"]
    if count <= width:
        few = f"{key}: {count} samples have no covariance of full rank in {width} {kind} features"
        yield f"{few}: Fréchet distances to them mean little; take more than {width}, or fewer features"
    mean = fmean(manifest["channel_mean"])
    scale = math.hypot(manifest["std"], mean - process.data_mean)
    if len(manifest["shape"]) == 3 and not 1 / LARGEST_FACTOR < scale / process.sigma_data < LARGEST_FACTOR:
        told = f"{key}.process has sigma_data: {process.sigma_data:g}, data_mean: {process.data_mean:g}"
        yield f"{told}; of these data they are {manifest['std']:.2g} and {mean:.2g}"


class Phases:
    """A progress bar at a time: that of the phase last heard of. It closes with `stack`."""

    def __init__(self, subject: str) -> None:
        self.subject, self.phase = subject, ""
        self.stack = ExitStack()
        self.bar: Progress | None = None
        self.begun, self.first = 0.0, 0

    def __call__(self, done: int, total: int, phase: str) -> None:
        """Reports what of a phase is done."""
        if PHASES[phase] == "bytes":
            done, total, unit = done // MEGABYTE, -(-total // MEGABYTE), "megabyte"
        else:
            unit = "image"
        if self.bar is None or phase != self.phase:
            self.stack.close()
            self.phase, self.begun, self.first = phase, time.monotonic(), done
            self.bar = self.stack.enter_context(Progress(f"{self.subject}: {phase}", total, done, unit))
            return
        rate = (done - self.first) / max(time.monotonic() - self.begun, 1e-9)
        self.bar.update(done, f"{rate:.0f} {unit}s/s")


def prepare_dataset(
    params: Params, dataset: str, archives: Path, workers: int | None, skip_broken: bool, download: bool
) -> None:
    """Writes the arrays of a data set and their manifest. archives: relative to the project's root.

    Raises:
        GcflowError: an archive is missing or not what it should be, or its classes do not suit the features.
    """
    source = params.dataset(dataset).data
    phases = Phases(dataset)
    with phases.stack:
        manifest = prepare(
            source, data_folder(params.root, dataset), params.root / archives, workers, skip_broken, download, phases
        )
    say(f"  {dataset}: {manifest['count']} samples of shape {manifest['shape']}, std {manifest['std']}")
    skipped = manifest.get("skipped", [])
    if skipped:
        say(f"  {dataset}: {len(skipped)} images do not decode and were left out; manifest.json lists them")
    check_classes(params, dataset)
    for doubt in doubts(params, dataset):
        say(f"gcflow: warning: {doubt}")
