"""`gcflow track sync`: completes MLflow from the files, however much it lacks; with `--watch`, again and again.

A server that cannot be reached is reported and is no error: the next pass sends what is missing. Neither is a run with
a file that is missing or damaged. What a server did not take is tried again after the others, as long as it takes any.
"""

import hashlib
import os
import select
import signal
import stat
import sys
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from gcflow.errors import GcflowError
from gcflow.files import expected_form, read_json, write_json
from gcflow.pipeline.folders import CLAIMS_FORMATS, claims_path, report_path, results_folder, tracking_lock
from gcflow.pipeline.lock import RunLock
from gcflow.pipeline.params import Params, Run
from gcflow.pipeline.progress import Progress, say
from gcflow.pipeline.schema import Figure, Table
from gcflow.pipeline.stages import Stage, Stages
from gcflow.tools.track.mirror import Mirror, Study, one_line, shown_address
from gcflow.tools.track.runs import RunFiles, files_of, stamp_of

# In a tag of MLflow are 8000 characters.
ORIGINS_AT_MOST = 600
# A pass ends after so many failures one after the other, or seconds of them. A run has so many seconds in an attempt:
# the next one goes on with what it lacks.
ATTEMPTS, PATIENCE = 3, 300.0


class Outcome(NamedTuple):
    """What a pass came to. sent: runs' ids in MLflow; pending: runs that it lacks; problems: a sentence per subject."""

    sent: dict[str, str]
    pending: list[str]
    problems: dict[str, str]


class Tracker:
    """Sends a scale to MLflow, and passes over what has not changed since it was sent."""

    def __init__(self, params: Params, scale: str) -> None:
        self.params = params
        self.datasets, self.studies = params.at_scale(scale), list(studies(params, scale))
        self._mirror: Mirror | None = None
        # With what told, when they were read or sent, whether they have changed since.
        self._files: dict[Run, tuple[Any, list[RunFiles]]] = {}
        self._sent: dict[str, tuple[Any, str]] = {}

    def send(self, aloud: bool = False) -> Outcome:
        """Makes a pass, after that of another process if there is one. aloud: show progress."""
        problems: dict[str, str] = {}
        project = {run: files for run in self.params.runs(added=True) if (files := self._read(run, problems))}
        mine = [run for run in self.params.runs(added=True) if run.dataset in self.datasets]
        runs = [run for run in mine if run in project]
        try:
            self._send(runs, _origins(project.values()), problems, aloud)
            sent = self._sent
        except Exception as error:
            # Whatever it has, or lost meanwhile, is asked anew.
            sent, self._mirror, self._sent = self._sent, None, {}
            problems["MLflow"] = one_line(error)
        pending = [run.name for run in mine if run.name in problems or (run.name not in sent and run in project)]
        if "MLflow" in problems:
            what = f"{len(pending)} runs" if pending else "tables and figures"
            address = shown_address(self.params)
            problems["MLflow"] = f"{address} did not take {what} ({problems['MLflow']}); later: gcflow track sync"
        return Outcome({run.name: sent[run.name][1] for run in runs if run.name in sent}, pending, problems)

    def _read(self, run: Run, problems: dict[str, str]) -> list[RunFiles]:
        stamp = stamp_of(self.params.root, run)
        if run not in self._files or self._files[run][0] != stamp:
            self._files.pop(run, None)
            try:
                self._files[run] = stamp, files_of(self.params.root, run)
            except (GcflowError, OSError) as error:
                problems[run.name] = f"{run.name}: {error}; not sent"
                return []
        return self._files[run][1]

    def _send(self, runs: list[Run], origins: set[str], problems: dict[str, str], aloud: bool) -> None:
        shown = [study._replace(files=[path for path in study.files if path.exists()]) for study in self.studies]
        known: list[tuple[Run | Study, Any]] = [(run, self._files[run][0]) for run in runs]
        known += [(s, (origins, [path.stat().st_mtime_ns for path in s.files])) for s in shown if s.files]
        changed = deque((s, stamp) for s, stamp in known if self._sent.get(s.name, (None,))[0] != stamp)
        if not changed:
            return
        with ExitStack() as stack:
            lock = stack.enter_context(RunLock(tracking_lock(self.params.root), "MLflow", wait=True))
            progress = stack.enter_context(Progress("MLflow", len(changed), unit="subject")) if aloud else None
            failures, progressed = 0, time.monotonic()
            while changed:
                subject, stamp = changed.popleft()
                lock.require()
                try:
                    with limited(PATIENCE):
                        self._sent[subject.name] = stamp, self._send_one(subject, origins)
                    failures, progressed = 0, time.monotonic()
                except Exception as error:
                    if isinstance(error, GcflowError) or self._is_about_results(error):
                        problems[subject.name] = f"{subject.name}: {error}; not sent"
                    else:
                        failures, self._mirror = failures + 1, None
                        if failures == ATTEMPTS or time.monotonic() - progressed > PATIENCE:
                            raise
                        changed.append((subject, stamp))
                if progress is not None:
                    progress.update(progress.total - len(changed), subject.name)

    def _send_one(self, subject: Run | Study, origins: set[str]) -> str:
        """Sends a run under every configuration, or a study; a run's id in MLflow."""
        mirror = self._mirror = self._mirror or Mirror(self.params)
        if isinstance(subject, Run):
            return [mirror.send_run(files) for files in self._files[subject][1]][-1]
        mirror.send_study(subject, _numbers(subject.files), origins)
        return ""

    def _is_about_results(self, error: Exception) -> bool:
        """Whether a file of ours is missing or cannot be read; what else goes wrong is the server's."""
        name = getattr(error, "filename", None)
        return bool(name) and Path(str(name)).is_relative_to(self.params.root / "results")


class _Late(BaseException):
    """Passes by those who catch any Exception and try again."""


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Ends the block with a TimeoutError after so long: a server may answer byte by byte. For the main thread."""

    def end(number: int, frame: FrameType | None) -> None:
        raise _Late

    def lost(found: "sys.UnraisableHookArgs") -> None:
        if found.exc_type is not _Late:
            unraisable(found)

    before, unraisable = signal.signal(signal.SIGALRM, end), sys.unraisablehook
    # From then on every second: what is raised while an object is collected ends nothing.
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
    sys.unraisablehook = lost
    try:
        yield
    except _Late:
        raise TimeoutError(f"no end after {seconds:g} s") from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        sys.unraisablehook = unraisable


def studies(params: Params, scale: str) -> Iterator[Study]:
    """Everything that is made from many runs, whether it is there or not."""
    stages = Stages(params, scale)
    for dataset in stages.datasets:
        entry = params.dataset(dataset)
        for name, table in entry.tables.items():
            yield _study(params, dataset, name, table, stages.table(dataset, name))
        for name, figure in entry.figures.items():
            yield _study(params, dataset, name, figure, stages.figure(dataset, name))
    claims = [claims_path(params.root, suffix) for suffix in CLAIMS_FORMATS]
    note = "The claims of the paper with their verdicts, and the report."
    yield Study("report", note, [*claims, report_path(params.root)])


def _study(params: Params, dataset: str, name: str, view: Table | Figure, stage: Stage) -> Study:
    # What the stage writes, and what it reads of the data set as a whole: transport costs, theory checks.
    whole = results_folder(Path(), dataset)
    files = (*stage.outs, *(dep for dep in stage.deps if Path(dep).parent == whole))
    note = view.title + (f"\n\nMethods: {', '.join(view.methods)}" if view.methods else "")
    return Study(f"{dataset}/{name}", note, [params.root / file for file in files])


def _numbers(files: Iterable[Path]) -> dict[str, float]:
    """What MLflow plots of a study: how many checks of the theory hold, or the claims by verdict."""
    counts: Counter[str] = Counter()
    for path in files:
        with expected_form(path):
            if path.name == "theory.json":
                checks = read_json(path)["checks"]
                counts |= {"checks": len(checks), "checks that hold": sum(bool(check["holds"]) for check in checks)}
            if path.name == "claims.json":
                counts.update(f"{record['dataset']}/{record['verdict']}" for record in read_json(path)["records"])
    return {name: float(count) for name, count in counts.items()}


def _origins(project: Iterable[list[RunFiles]]) -> set[str]:
    """Hashes of where and when the runs of a project began, at every scale, as many as a tag of MLflow holds."""
    known = {files.origin for listed in project for files in listed if files.origin}
    return set(sorted(hashlib.sha256(origin.encode()).hexdigest()[:12] for origin in known)[:ORIGINS_AT_MOST])


def sync(params: Params, scale: str) -> None:
    """Sends every run of a scale as far as it is, tables, figures and the report.

    Writes results/tracking.json, which says what was sent and what is still missing.
    """
    outcome = Tracker(params, scale).send(aloud=True)
    receipt = {"uri": shown_address(params), "sent": outcome.sent, "pending": outcome.pending}
    write_json(params.root / "results" / "tracking.json", receipt)
    for problem in outcome.problems.values():
        say(f"gcflow: warning: {problem}")


def watch(params: Params, scale: str) -> None:
    """Sends every `tracking.watch_every` seconds what is new, until it is told to end, and once more then.

    It is told by SIGTERM or SIGINT, and by the end of its standard input if that is a pipe: so it ends with whoever
    started it. A second signal ends it at once. What goes wrong is said when it begins to.

    Raises:
        GcflowError: `tracking.watch_every` is null.
    """
    every = params.tracking.watch_every
    if every is None:
        raise GcflowError(f"{params.path}: tracking.watch_every is null; give the seconds between two passes")
    tracker, ends, ended = Tracker(params, scale), _ends(), False
    known: set[str] = set()
    while True:
        problems = tracker.send().problems
        for subject in problems.keys() - known:
            say(f"{time.strftime('%F %T')} {problems[subject]}")
        known = set(problems)
        if ended:
            return
        ended = bool(select.select(ends, [], [], every)[0])


def _ends() -> list[int]:
    """File descriptors, one of which can be read when a watch is to end."""
    end, signalled = os.pipe()

    def note(number: int, frame: FrameType | None) -> None:
        os.write(signalled, b".")
        signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, note)
    return [end, 0] if stat.S_ISFIFO(os.fstat(0).st_mode) else [end]
