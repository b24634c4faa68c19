"""`gcflow verify`: whether every file still has the bytes that were written there.

Whoever knows a hash is asked: dvc.lock, the manifests of prepared data, and files of weights, features and
configurations themselves. Whether results are of the present params.yaml is another question, which `snakemake -n` and
`dvc status` answer; neither reads a file again whose time has not changed.
"""

import hashlib
import json
import re
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from gcflow.files import read_json
from gcflow.pipeline.folders import run_folder
from gcflow.pipeline.graph import Graph
from gcflow.pipeline.lock import newest_lease
from gcflow.pipeline.params import Params
from gcflow.pipeline.progress import Progress
from gcflow.pipeline.stages import Stage
from gcflow.pipeline.versions import LOCK, cache_folder, locked_stages, own_reason
from gcflow.readable import duration, plural, size

MEGABYTE = 10**6
DIGITS = 8
SHOWN = 5
# Of a run's state the folder of a configuration; locks and the evaluation's folder lie beside it.
CONFIGURATION = "[0-9a-f]" * 16
HASH_OF_ITS_OWN = re.compile(r"\.safetensors$|/config\.json$|/state/")
CURE = f"""\
Made again on purpose since {LOCK} was written: gcflow record, then verify again. Otherwise remove what is named, under
all its names, and the state/ folder of a run whose published files are among them. Then, if DVC keeps another copy: dvc
checkout or dvc pull, and gcflow adopt. If not, make it again: snakemake --profile local all, and gcflow record."""


class Claim(NamedTuple):
    """Somebody knows a hash of a file. algorithm: `md5` or `sha256`. by: who."""

    algorithm: str
    expected: str
    by: str


class Finding(NamedTuple):
    """A file that is not what was written there.

    kind: `damaged`, `missing` (while other files of its stage are there) or `stray` (in a recorded folder that had no
    such file). names: all names of the same bytes. stages: those to run again. readers: those that depend on them.
    """

    kind: str
    names: list[str]
    reasons: list[str]
    stages: list[str]
    readers: list[str]


@dataclass(frozen=True)
class Report:
    """What was found; as text, what a person reads.

    target: what was looked at. files, bytes, seconds: how much there is, and how long reading took. busy: who trains
    runs, which were left alone. unknown: files of which nobody knows a hash. absent: stages that have no file here.
    stages: those that were looked at.
    """

    target: str
    findings: list[Finding]
    files: int
    bytes: int
    seconds: float
    busy: list[str]
    unknown: list[str]
    absent: list[str]
    stages: list[Stage]

    def __str__(self) -> str:
        lines = []
        for stages, group in groupby(self.findings, lambda finding: finding.stages):
            found = list(group)
            readers = list(dict.fromkeys(reader for finding in found for reader in finding.readers))
            lines.append(f"{', '.join(stages) or 'made by no stage'}; read by {_few(readers) or 'no other stage'}")
            for finding in found[:SHOWN]:
                also = [f"the same bytes: {', '.join(finding.names[1:])}"] if finding.names[1:] else []
                lines.append(f"  {finding.kind:<8} {finding.names[0]}")
                lines += [f"           {text}" for text in (*finding.reasons, *also)]
            lines += [f"  and {len(found) - SHOWN} more files"] if len(found) > SHOWN else []
        lines += [CURE] if self.findings else []
        for text, names in (
            ("left alone, since it is being trained", self.busy),
            ("stages without any file here", self.absent),
            (f"files of which neither {LOCK} nor anybody else has a hash; gcflow record", self.unknown),
        ):
            lines += [f"{len(names)} {text}: {_few(names)}"] if names else []
        whole = "all whole" if self.files else "nothing is here"
        verdict = f"{len(self.findings)} not whole" if self.findings else whole
        read = f"{plural(self.files, 'file')}, {size(self.bytes)} in {duration(self.seconds)}"
        return "\n".join([*lines, f"{self.target}: {read}: {verdict}"])


def verify(params: Params, targets: Sequence[str], scale: str) -> Report:
    """Reads every file of targets and of all that they need.

    Args:
        params: the grid.
        targets: views of the paper, data sets, runs, stages, or `all` of the scale.
        scale: whose data sets `all` and the views mean.

    Raises:
        GcflowError: there is no such target, or dvc.lock is not what DVC writes.
    """
    begun, read, found = time.monotonic(), 0, _Verification(params, scale)
    wanted = {name for target in targets for name in found.graph.target(target)}
    for name, job in found.graph.jobs.items():
        if name in wanted:
            found.collect(job)
    groups: dict[tuple[int, int, int], list[str]] = defaultdict(list)
    for name in found.claims:
        stat = (params.root / name).stat()
        groups[stat.st_dev, stat.st_ino, stat.st_size].append(name)
    with Progress("verify", sum(size for *_, size in groups) // MEGABYTE, unit="megabyte") as progress:
        for (_, _, size), names in groups.items():
            found.read(names)
            read += size
            progress.update(read // MEGABYTE)
    order = list(found.graph.jobs)
    return Report(
        f"{' '.join(targets)} at scale {scale}",
        sorted(found.findings, key=lambda finding: [order.index(stage) for stage in finding.stages]),
        len(found.claims),
        read,
        time.monotonic() - begun,
        list(found.busy.values()),
        [name for name, claims in found.claims.items() if not claims and not HASH_OF_ITS_OWN.search(name)],
        found.absent,
        [job for name, job in found.graph.jobs.items() if name in wanted],
    )


class _Verification:
    """What is known of files, by their paths relative to the project's root, and what is found when they are read.

    claims: of every file that is there. owners: the stage that makes it, empty for a file that the user has put there.
    """

    def __init__(self, params: Params, scale: str) -> None:
        self.root, self.graph = params.root, Graph(params, scale)
        self.makers = {out: job.name for job in self.graph.jobs.values() for out in job.outs}
        self.locked, self.cache = locked_stages(self.root), cache_folder(self.root)
        self.claims: dict[str, list[Claim]] = {}
        self.owners: dict[str, str] = {}
        self.findings: list[Finding] = []
        self.busy: dict[str, str] = {}
        self.absent: list[str] = []

    def collect(self, job: Stage) -> None:
        """Notes the files of a stage and who knows a hash of them; finds those that are missing."""
        if self._is_trained(job.name):
            return
        recorded = {out["path"]: out.get("md5") for out in self.locked.get(job.name, {}).get("outs", [])}
        outs: dict[str, str | None] = dict.fromkeys(job.outs) | recorded
        there = [out for out in outs if (self.root / out).exists()]
        self.absent += [] if there else [job.name]
        for out in outs if there else ():
            if out not in there:
                self._find("missing", [out], [f"other files of {job.name} are there"], job.name)
            elif (self.root / out).is_dir():
                self._collect_folder(job.name, out, outs[out])
            else:
                self._add(out, job.name, outs[out])
        for dep in job.deps:
            if dep not in self.makers and dep.endswith(".safetensors") and (self.root / dep).exists():
                self._add(dep, "", None)
        # What a damaged manifest says does not count.
        manifest = next((out for out in there if out.endswith("/manifest.json")), None)
        if manifest and not self._reasons([manifest]):
            for file, sha256 in read_json(self.root / manifest)["sha256"].items():
                self.claims.get(str(Path(manifest).parent / file), []).append(Claim("sha256", sha256, manifest))
        for path in sorted(_state(self.root, job).glob(f"{CONFIGURATION}/**/*")) if job.kind == "train" else ():
            # Resuming puts a checkpoint that does not load aside under such a name.
            if path.is_file() and not path.name.startswith((".", "damaged-")):
                self._add(str(path.relative_to(self.root)), job.name, None)

    def _collect_folder(self, stage: str, folder: str, md5: str | None) -> None:
        paths = {path.relative_to(self.root / folder).as_posix(): path for path in (self.root / folder).rglob("*")}
        here = {name: path for name, path in paths.items() if path.is_file() and not path.name.startswith(".")}
        listed = self._listed(md5) if md5 else None
        if md5 and listed is None and _listing_md5({name: _hash(path, "md5") for name, path in here.items()}) != md5:
            self._find("damaged", [folder], [f"its files are not those that {LOCK} has ({md5[:DIGITS]})"], stage)
        for name in sorted({*here, *(listed or ())}):
            if name not in here:
                self._find("missing", [f"{folder}/{name}"], [f"{LOCK} has it"], stage)
            elif listed is not None and name not in listed:
                self._find("stray", [f"{folder}/{name}"], [f"{LOCK} has no such file"], stage)
            else:
                self._add(f"{folder}/{name}", stage, (listed or {}).get(name))

    def _listed(self, md5: str) -> dict[str, str] | None:
        """Path to md5 of each file of a recorded folder; None if DVC's cache does not have that list whole."""
        path = self.cache / md5[:2] / md5[2:]
        if not path.exists() or f"{_hash(path, 'md5')}.dir" != md5:
            return None
        return {entry["relpath"]: entry["md5"] for entry in json.loads(path.read_bytes())}

    def _add(self, name: str, stage: str, md5: str | None) -> None:
        self.owners.setdefault(name, stage)
        self.claims.setdefault(name, []).extend([Claim("md5", md5, LOCK)] if md5 else [])

    def _is_trained(self, name: str) -> bool:
        """Whether a process trains the run of a stage now; notes which."""
        job = self.graph.jobs.get(name)
        lease = newest_lease(_state(self.root, job)) if job and job.kind == "train" else None
        if lease and lease.held:
            self.busy[name] = f"{name} by {lease.holder}"
        return bool(lease and lease.held)

    def read(self, names: list[str]) -> None:
        """Reads the bytes that have these names, and notes if they are damaged."""
        reasons = self._reasons(names)
        # A run that was begun meanwhile may have replaced them.
        if reasons and not any(self._is_trained(self.owners[name]) for name in names):
            kept = (self.cache / c.expected[:2] / c.expected[2:] for name in names for c in self.claims[name])
            # DVC takes its own name of the same bytes for whole, since it once wrote them.
            same = {path: None for path in kept if path.exists() and path.samefile(self.root / names[0])}
            copies = [path.relative_to(self.root) if path.is_relative_to(self.root) else path for path in same]
            self._find("damaged", [*names, *map(str, copies)], reasons)

    def _reasons(self, names: list[str]) -> list[str]:
        path, claims = self.root / names[0], dict.fromkeys(claim for name in names for claim in self.claims[name])
        try:
            found = {algorithm: _hash(path, algorithm) for algorithm in {claim.algorithm for claim in claims}}
            own = own_reason(path)
        except OSError as error:
            return [f"cannot be read ({error.strerror})"]
        wrong = (claim for claim in claims if found[claim.algorithm] != claim.expected)
        reasons = [f"{algorithm} is {found[algorithm][:DIGITS]}, {by} has {it[:DIGITS]}" for algorithm, it, by in wrong]
        return [*reasons, own] if own else reasons

    def _find(self, kind: str, names: list[str], reasons: list[str], stage: str = "") -> None:
        stages = dict.fromkeys(owner for name in names if (owner := self.owners.get(name, stage)))
        touched, readers = {*names, *(str(Path(name).parent) for name in names)}, []
        for job in self.graph.jobs.values():
            if touched.intersection(job.deps):
                readers.append(job.name)
                touched.update(job.outs)
        self.findings.append(Finding(kind, names, reasons, list(stages), readers))


def _state(root: Path, job: Stage) -> Path:
    assert job.run
    return run_folder(root, job.run) / "state"


def _few(names: Sequence[str]) -> str:
    return ", ".join([*names[:SHOWN], *([f"{len(names) - SHOWN} more"] if len(names) > SHOWN else [])])


def _hash(path: Path, algorithm: str) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()


def _listing_md5(files: Mapping[str, str]) -> str:
    """DVC's hash of a folder. files: path in it to md5."""
    listed = [{"md5": md5, "relpath": name} for name, md5 in sorted(files.items())]
    return f"{hashlib.md5(json.dumps(listed).encode(), usedforsecurity=False).hexdigest()}.dir"
