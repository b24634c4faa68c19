"""`gcflow prepare`: the arrays of a data set, with a bar for each phase of the work."""

import time
from contextlib import ExitStack
from pathlib import Path

from gcflow.archives.formats import PHASES
from gcflow.pipeline.folders import data_folder
from gcflow.pipeline.params import Params
from gcflow.pipeline.progress import Progress, say
from gcflow.preparation import prepare

MEGABYTE = 10**6


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
        GcflowError: an archive is missing or not what it should be.
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
