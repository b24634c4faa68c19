"""Everything that a target has on disk, looked at: the findings, what depends on them, and what was not looked at."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from gcflow.pipeline.folders import run_folder
from gcflow.pipeline.graph import Graph, Job
from gcflow.pipeline.lock import newest_lease
from gcflow.pipeline.params import Params
from gcflow.pipeline.verify.cures import Cures, Names
from gcflow.pipeline.verify.findings import Comparison, Finding, Judge
from gcflow.pipeline.verify.hashing import Hashes, inode
from gcflow.pipeline.verify.provenance import Provenance
from gcflow.pipeline.verify.recorded import Recorded
from gcflow.pipeline.verify.statements import Algorithm, Kind, Remark, Statement, Voucher
from gcflow.pipeline.versions import LOCK

HERE = Path()
KINDS: tuple[Kind, ...] = ("damaged", "stray", "missing", "older")


class Advice(NamedTuple):
    """A finding, what to run about it, and the stages that were made from the file, closest first."""

    finding: Finding
    cure: str
    dependents: tuple[str, ...]


@dataclass(frozen=True)
class Report:
    """What was found.

    files, bytes, seconds: what was read, and for how long. busy: runs that are being trained, with who does. unknown:
    files for which nobody vouches. renewed: stages that were made again since they were recorded. absent: stages that
    are recorded and not here. open: stages that are not computed yet.
    """

    advice: list[Advice]
    files: int
    bytes: int
    seconds: float
    busy: dict[str, str]
    unknown: list[str]
    renewed: list[str]
    absent: list[str]
    open: list[str]

    @property
    def whole(self) -> bool:
        """Whether every file is what was written there; it may be older than params.yaml."""
        return all(advice.finding.kind == "older" for advice in self.advice)


class Inspection:
    """Looks at the files of targets and of all that they need.

    Args:
        params: the grid.
        targets: views of the paper, data sets, runs, stages, or `all` of the scale.
        scale: whose data sets `all` and the views mean.
        archives: folder of published files, relative to the project's root.

    Raises:
        GcflowError: there is no such target, or dvc.lock is damaged.
    """

    def __init__(self, params: Params, targets: Iterable[str], scale: str, archives: Path) -> None:
        self.params, self.root, self.graph = params, params.root, Graph(params, scale)
        wanted = {name for target in targets for name in self.graph.target(target)}
        self.jobs = [job for name, job in self.graph.jobs.items() if name in wanted]
        self.recorded, self.provenance = Recorded(params), Provenance(params, archives)
        self.absent: list[str] = []
        self.open: list[str] = []
        self.owners: dict[str, Job] = {}

    def report(self) -> Report:
        """Reads everything."""
        begun, busy = time.monotonic(), self._busy()
        hidden = self._hidden(busy)
        said = {job.name: [each for each in self._said(job, busy) if _open(each, hidden)] for job in self.jobs}
        paths = {each.path for statements in said.values() for each in statements}
        members = {path: self.recorded.members(path) for path in paths if (self.root / path).is_dir()}
        wanted: dict[str, set[Algorithm]] = {}
        for voucher in _vouchers(said):
            for path in members.get(voucher.path, {"": voucher.path}).values():
                if (self.root / path).exists():
                    wanted.setdefault(path, set()).add(voucher.algorithm)
        hashes = Hashes(self.root, wanted, self.provenance.reading.headers)
        comparison = Comparison(hashes.found, members)
        renewed = self._forget_renewed(said, comparison)
        # A run that was begun meanwhile may have replaced what was just read.
        busy |= self._busy()
        hidden = self._hidden(busy)
        statements = [each for part in said.values() for each in part]
        findings = Judge(self.root, statements, comparison, hashes.unreadable).findings()
        own = [voucher for voucher in _vouchers(said) if not voucher.reader]
        known = {voucher.path for voucher in own}
        return Report(
            self._advice(
                [finding for finding in findings if not _below(finding.path, hidden)],
                {voucher.path: voucher.expected for voucher in own if voucher.by == LOCK},
            ),
            len(wanted),
            hashes.bytes,
            time.monotonic() - begun,
            busy,
            [
                path
                for path in self._files()
                if path not in known and not _below(path, [*hidden, *members.keys() & known])
            ],
            renewed,
            self.absent,
            self.open,
        )

    def _busy(self) -> dict[str, str]:
        """Runs whose lock is held, by whom."""
        found = {}
        for job in self.jobs:
            if job.kind == "train" and job.run:
                lease = newest_lease(self.root / run_folder(HERE, job.run) / "state")
                if lease and lease.held:
                    found[job.run.name] = str(lease.holder)
        return found

    def _hidden(self, busy: Iterable[str]) -> list[str]:
        """What is written while runs are trained."""
        jobs = [job for job in self.jobs if job.kind == "train" and job.run and job.run.name in busy]
        states = [str(run_folder(HERE, job.run) / "state") for job in jobs if job.run]
        return [*(out for job in jobs for out in job.stage.outs), *states]

    def _said(self, job: Job, busy: dict[str, str]) -> Iterator[Statement]:
        """What is said of a stage's files. It also notes which stage they are of, and whether all are there."""
        being_written = job.kind == "train" and job.run is not None and job.run.name in busy
        statements = [] if being_written else list(self.provenance.said(job))
        recorded = self.recorded.outs(job.name)
        outs = list(recorded or job.stage.outs)
        missing = [path for path in outs if not (self.root / path).exists()]
        if len(missing) == len(outs):
            (self.absent if recorded else self.open).append(job.name)
        elif not being_written:
            statements += [
                Remark(path, "missing", f"the other files of {job.name} are there", LOCK) for path in missing
            ]
            statements += self.recorded.said(job) if recorded else []
        for said in statements:
            if isinstance(said, Remark) or not said.reader:
                self.owners.setdefault(said.path, job)
        yield from statements

    def _forget_renewed(self, said: dict[str, list[Statement]], comparison: Comparison) -> list[str]:
        """Takes out what is recorded of stages that were made again since, with other settings or from other files."""
        renewed: list[str] = []
        for job in self.jobs:
            files = [self.root / out for out in self.recorded.outs(job.name)]
            newer = any(path.exists() and path.stat().st_mtime > self.recorded.written for path in files)
            if not newer or (set(renewed).isdisjoint(job.needs) and not self.recorded.other_parameters(job)):
                continue
            recorded = [each for each in said[job.name] if each.by == LOCK]
            if any(isinstance(each, Voucher) and not each.reader and comparison.differs(each) for each in recorded):
                renewed.append(job.name)
                said[job.name] = [each for each in said[job.name] if each.by != LOCK]
        return renewed

    def _files(self) -> Iterator[str]:
        """Every file of the stages that is there."""
        for job in self.jobs:
            for out in job.stage.outs:
                if (self.root / out).is_dir():
                    yield from self.recorded.members(out).values()
                elif (self.root / out).exists():
                    yield out

    def _advice(self, findings: list[Finding], versions: dict[str, str]) -> list[Advice]:
        bad = {path for finding in findings if finding.kind == "damaged" for path in (finding.path, *finding.also)}
        cures, found = Cures(self.recorded, versions, self._makers.keys(), bad), []
        places = {name: place for place, name in enumerate(self.graph.jobs)}
        for finding in findings:
            job = self.owners.get(finding.path) or self._maker(finding.path)
            assert job
            names = self._names(finding, job)
            path, *also = (*names.outs, *names.state, *names.cache) or (finding.path, *finding.also)
            named = finding._replace(path=path, also=tuple(also))
            place = KINDS.index(finding.kind), places[job.name]
            cure = cures.cure(named, job, names, self._scale(job))
            found.append((place, Advice(named, cure, self._dependents(names, job))))
        return [advice for _, advice in sorted(found, key=lambda pair: pair[0])]

    def _scale(self, job: Job) -> str:
        """The scale asked for, or a stage's own if it is none of that."""
        if job.dataset is None or job.name in self.graph.whole:
            return self.graph.scale
        return self.params.dataset(job.dataset).scale

    def _names(self, finding: Finding, job: Job) -> Names:
        """A finding's names by kind, with those in the run's state for which nobody vouches."""
        names = {finding.path: None, **dict.fromkeys(finding.also)}
        if finding.kind == "damaged" and job.run and (self.root / finding.path).is_file():
            state = run_folder(self.root, job.run) / "state"
            here = inode(self.root / finding.path)
            files = (path for path in sorted(state.rglob("*")) if path.is_file() and inode(path) == here)
            names |= dict.fromkeys(str(path.relative_to(self.root)) for path in files)
        cache = tuple(path for path in names if path.startswith(str(self.recorded.cache)))
        state_files = tuple(path for path in names if "/state/" in path and path not in cache)
        outs = tuple(path for path in names if path not in {*cache, *state_files} and self._maker(path))
        return Names(outs, state_files, cache)

    @cached_property
    def _makers(self) -> dict[str, Job]:
        return {
            out: job for job in self.graph.jobs.values() for out in (*job.stage.outs, *self.recorded.outs(job.name))
        }

    def _maker(self, path: str) -> Job | None:
        """The stage that makes a file, or the directory that it is in."""
        return self._makers.get(path) or self._makers.get(str(Path(path).parent))

    def _dependents(self, names: Names, job: Job) -> tuple[str, ...]:
        """The stages that read these files, then those that read what they make, and so on; each once."""
        paths = {*names.outs, *(str(Path(path).parent) for path in names.outs)}
        level = [each.name for each in self.graph.jobs.values() if paths.intersection(each.stage.deps)]
        if names.state and job.name in self.open:
            level = [job.name]
        found: dict[str, None] = {}
        while level:
            found |= dict.fromkeys(level)
            made = set(level)
            level = [each.name for each in self.graph.jobs.values() if made.intersection(each.needs)]
            level = [name for name in level if name not in found]
        return tuple(found)


def _vouchers(said: dict[str, list[Statement]]) -> list[Voucher]:
    return [each for statements in said.values() for each in statements if isinstance(each, Voucher)]


def _open(said: Statement, hidden: list[str]) -> bool:
    return not _below(said.path, hidden) and not _below(said.by, hidden)


def _below(path: str, places: Iterable[str]) -> bool:
    return any(path == place or path.startswith(f"{place}/") for place in places)
