"""`gcflow doctor`: whether this machine can run a target, one line per check, and the line that mends what cannot.

Nothing beyond the standard library and click is imported before the check that is about it, so that a machine on which
a package is missing is told so by name.
"""

import gzip
import json
import math
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import zlib
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from functools import lru_cache, partial
from http.client import HTTPException
from importlib import import_module, metadata
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar
from urllib.parse import unquote, urlsplit

import click

from gcflow.errors import GcflowError

if TYPE_CHECKING:
    from gcflow.config import NetworkConfig
    from gcflow.pipeline.params import Params, Run
    from gcflow.pipeline.stages import Stage, Stages
    from gcflow.sources import ArchivedSource, DataSource

# A server that is asked, and all that is asked beside each other.
ANSWER_SECONDS, PATIENCE_SECONDS = 3.0, 8.0
# Fewer bytes per image than any archive of images has: an error page under its name, or the start of a download.
LEAST_IMAGE_BYTES = 64
BLOCK = 1 << 20
EXTRAS = ("", "pipeline")

# Asked in a process of its own, which can be given up: is this remote there?
ASK_REMOTE = """
import sys
from dvc.repo import Repo
remote = Repo(".").cloud.get_remote(sys.argv[1])
remote.fs.exists(remote.path)
"""

T = TypeVar("T")
Verdict = Literal["OK", "warning", "missing", "broken", "skipped"]
MARKS: dict[Verdict, tuple[str, str]] = {
    "OK": ("✓", "green"),
    "warning": ("!", "yellow"),
    "missing": ("✗", "red"),
    "broken": ("✗", "red"),
    "skipped": ("-", "bright_black"),
}


class Check(NamedTuple):
    """What was found about one subject.

    mend: what to do about it. needed: the target cannot run while this is missing or broken.
    """

    subject: str
    verdict: Verdict
    found: str
    mend: str = ""
    needed: bool = True

    @property
    def fails(self) -> bool:
        """Whether this keeps the target from running."""
        return self.needed and self.verdict in ("missing", "broken")


@dataclass(frozen=True)
class Request:
    """What is asked.

    path: of params.yaml. target: a table or figure of the paper, a data set or a stage; None means the whole scale.
    archives: relative to the project's root. thorough: read every byte of data and archives.
    """

    path: Path = Path("params.yaml")
    target: str | None = None
    scale: str = "embedded"
    archives: Path = Path("archives")
    device: str = "auto"
    thorough: bool = False


@dataclass(frozen=True)
class Target:
    """A request whose params.yaml is valid.

    stages: those of all scales. needed: the ones that make the target, and those that they depend on.
    """

    request: Request
    params: "Params"
    stages: "Stages"
    needed: "frozenset[Stage]"

    @property
    def archives(self) -> Path:
        """Where archives are looked for."""
        return self.params.root / self.request.archives

    @property
    def datasets(self) -> list[str]:
        """The data sets whose arrays are needed."""
        return [name for name in self.stages.datasets if self.stages.prepare(name) in self.needed]

    @property
    def runs(self) -> "list[Run]":
        """The runs that are needed."""
        runs = (run for name in self.stages.datasets for run in self.params.runs(name))
        return [run for run in runs if self.stages.train(run) in self.needed]

    @property
    def slow_on_cpu(self) -> bool:
        """Whether a run is made for a GPU."""
        return any(self.params.dataset(run.dataset).scale != "embedded" for run in self.runs)


class Probe(NamedTuple):
    """A check to be made. waits: for something outside of this process, so it is made beside the others."""

    subject: str
    look: Callable[[], Iterable[Check]]
    needed: bool = True
    waits: bool = False


def one_line(error: object) -> str:
    """The text of an error in one line."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def size(count: float) -> str:
    """Bytes, for people."""
    for unit in ("bytes", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def _refusal(subject: str, error: GcflowError) -> Check:
    """Messages of missing and damaged files say what was found, a semicolon, and what to do."""
    found, _, mend = one_line(error).partition("; ")
    where, missing, _ = found.partition(": missing")
    return Check(subject, "missing", where, mend) if missing else Check(subject, "broken", found, mend)


def _output(*command: str, seconds: float | None = None, folder: Path | None = None) -> str:
    """What a command prints; a GcflowError with its last words if it fails, or runs for longer."""
    seconds = seconds or ANSWER_SECONDS
    try:
        result = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        raise GcflowError(f"no answer within {seconds:.0f} s") from None
    if result.returncode != 0:
        raise GcflowError((result.stderr.strip() or result.stdout.strip() or "no message").splitlines()[-1])
    return result.stdout


# This machine.


def check_python() -> Iterator[Check]:
    """Python's version against what the package requires."""
    from packaging.specifiers import SpecifierSet

    version = sys.version.split()[0]
    required = metadata.metadata("gcflow")["Requires-Python"]
    if SpecifierSet(required).contains(version, prereleases=True):
        yield Check("Python", "OK", version)
    else:
        yield Check("Python", "broken", f"{version}, required is {required}", "make PYTHON=python3.11 .venv/complete")


def check_packages(requirements: Iterable[str] | None = None) -> Iterator[Check]:
    """Every installed version against the package's requirements, or against those given."""
    from packaging.requirements import Requirement

    listed = metadata.requires("gcflow") or [] if requirements is None else requirements
    parsed = [Requirement(line) for line in listed]
    ours = [item for item in parsed if item.marker is None or any(item.marker.evaluate({"extra": e}) for e in EXTRAS)]
    problems: dict[str, str] = {}
    verdict: Verdict = "OK"
    for item in ours:
        wanted = f"'{item.name}{item.specifier}'"
        try:
            version = metadata.version(item.name)
        except metadata.PackageNotFoundError:
            problems[wanted], verdict = f"{item.name} is not installed", "missing"
            continue
        if not item.specifier.contains(version, prereleases=True):
            problems[wanted] = f"{item.name} {version} is not {item.specifier}"
            verdict = "broken" if verdict == "OK" else verdict
    found = ", ".join(problems.values()) or f"all {len(ours)} that gcflow requires"
    yield Check("packages", verdict, found, f"python -m pip install {' '.join(problems)}" if problems else "")


def _nvidia(field: str) -> str:
    """What NVIDIA's driver says of its first GPU; empty where there is none."""
    if shutil.which("nvidia-smi") is None:
        return ""
    try:
        lines = _output("nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader").splitlines()
    except GcflowError:
        return ""
    return lines[0].strip() if lines else ""


def check_device(choice: str, slow_on_cpu: bool) -> Iterator[Check]:
    """Torch, and a small product on the device that would be used.

    Args:
        choice: `auto`, or a torch device.
        slow_on_cpu: the target trains networks that are made for a GPU.
    """
    import torch

    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
    driver = _nvidia("driver_version")
    yield Check("torch", "OK", f"{torch.__version__}, {built}" + (f", driver {driver}" if driver else ""))
    name = choice if choice != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    try:
        ones = torch.ones(64, 64, device=name)
        total = float((ones @ ones).sum())
    except Exception as error:
        yield Check("device", "broken", f"{name}: {one_line(error)}", "give --device cpu, or look at nvidia-smi")
        return
    if total != 64**3:
        yield Check("device", "broken", f"{name}: a product of ones sums to {total:g}", "this hardware miscomputes")
    elif ones.device.type == "cuda":
        free, memory = torch.cuda.mem_get_info(ones.device)
        kind = torch.cuda.get_device_properties(ones.device).name
        with torch.cuda.device(ones.device):
            bf16 = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no bf16"
        yield Check("device", "OK", f"{name}: {kind}, {size(free)} of {size(memory)} free, {bf16}")
    elif ones.device.type != "cpu":
        yield Check("device", "OK", name)
    else:
        from gcflow.images import available_cores

        found = f"CPU, {available_cores()} cores, {torch.get_num_threads()} threads"
        unused = _nvidia("name") if choice == "auto" else ""
        if unused:
            mend = "install the build of torch for this driver: https://pytorch.org/get-started/locally"
            yield Check("device", "warning", f"{found}; torch cannot use this {unused}", mend, needed=False)
        elif slow_on_cpu:
            mend = "run it on a machine with a GPU, or take --scale embedded"
            yield Check("device", "warning", f"{found}: the target's runs would take weeks", mend, needed=False)
        else:
            yield Check("device", "OK", found)


def _present(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    return next(path for path in (folder, *folder.resolve().parents) if path.is_dir())


def check_folders(root: Path) -> Iterator[Check]:
    """That files can be written where stages write, and linked among results."""
    for name in ("data", "results", "checkpoints"):
        folder = _present(root / name)
        try:
            with tempfile.TemporaryFile(dir=folder) as file:
                file.write(b"1")
        except OSError as error:
            found = f"{folder} cannot be written ({error.strerror})"
            yield Check("folders", "broken", found, f"give yourself the right to write to {folder}, or free its disk")
            return
    yield Check("folders", "OK", "data, results and checkpoints can be written")
    with tempfile.TemporaryDirectory(prefix=".links.", dir=_present(root / "results")) as scratch:
        file_there = Path(scratch) / "file"
        file_there.touch()
        try:
            os.link(file_there, file_there.with_name("link"))
        except OSError as error:
            mend = "none is needed: DVC copies instead, which takes the space twice"
            yield Check("hard links", "warning", f"not in results ({error.strerror})", mend, needed=False)
        else:
            yield Check("hard links", "OK", "results can be linked, so recording them copies nothing")


def check_slurm() -> Iterator[Check]:
    """Whether jobs can be submitted here, to which GPUs, and whether the past ones are known."""
    absent = [name for name in ("sbatch", "squeue", "sinfo") if shutil.which(name) is None]
    if len(absent) == 3:
        yield Check("Slurm", "skipped", "no Slurm here: jobs run on this machine", needed=False)
        return
    if absent:
        mend = "load the module or install the package that has Slurm's commands"
        yield Check("Slurm", "broken", f"{', '.join(absent)} not in PATH", mend, needed=False)
        return
    try:
        rows = [line.split("|") for line in _output("sinfo", "--noheader", "--format=%P|%G").splitlines()]
    except GcflowError as error:
        yield Check("Slurm", "broken", f"sinfo: {one_line(error)}", "ask who runs the cluster", needed=False)
        return
    gpus = sorted({f"{row[0].strip()} ({row[1].strip()})" for row in rows if len(row) == 2 and "gpu" in row[1]})
    if not gpus:
        mend = "ask who runs the cluster for a partition whose nodes have gres gpu"
        yield Check("Slurm", "warning", f"{len(rows)} partitions, none with GPUs", mend, needed=False)
        return
    found = f"GPUs in {', '.join(gpus)}"
    try:
        _output("sacct", "--noheader", "--format=JobID")
    except (GcflowError, FileNotFoundError):
        mend = "let the profile say slurm-status-command: squeue"
        yield Check("Slurm", "warning", f"{found}; no accounting", mend, needed=False)
    else:
        yield Check("Slurm", "OK", f"{found}; accounting", needed=False)


# The project.


def _stages_of(stages: "Stages", target: str | None) -> "list[Stage] | None":
    """The stages that a target names; None if nothing has this name."""
    if target is None:
        return list(stages)
    if target in stages.views():
        return stages.views()[target]
    if target in stages.datasets:
        return list(stages.of_dataset(target))
    return [stage for stage in stages if stage.name == target] or None


def resolve(request: Request, params: "Params") -> Target:
    """The target with all that it depends on.

    Raises:
        GcflowError: nothing has its name, at this scale.
    """
    from gcflow.pipeline.schema import SCALES
    from gcflow.pipeline.stages import Stages

    stages = Stages(params, request.scale)
    asked = _stages_of(stages, request.target)
    if asked is None:
        elsewhere = [scale for scale in SCALES if _stages_of(Stages(params, scale), request.target) is not None]
        known = f"known: {', '.join((*stages.views(), *stages.datasets))}, and the stages of dvc.yaml"
        hint = f"give --scale {elsewhere[0]}" if elsewhere else known
        raise GcflowError(f"target {request.target!r}: there is no such thing at scale {request.scale}; {hint}")
    # A view may be answered by data sets of another scale.
    every = Stages(params, "all")
    makers = {out: stage for stage in every for out in stage.outs}
    needed: set[Stage] = set()
    while asked:
        stage = asked.pop()
        if stage not in needed:
            needed.add(stage)
            asked += [makers[dep] for dep in stage.deps if dep in makers]
    return Target(request, params, every, frozenset(needed))


def check_params(request: Request) -> "tuple[list[Check], Params | None]":
    """params.yaml, with a line per mistake; None if it has any."""
    mend = "mend this key; gcflow/pipeline/schema.py says what each means"
    try:
        from gcflow.pipeline.params import Params

        params = Params(request.path)
    except GcflowError as error:
        name = request.path.name
        lines = [line.removeprefix(f"{request.path}: ") for line in str(error).splitlines()]
        if not request.path.exists():
            return [Check(name, "missing", str(request.path), "run in the project's folder, or give --params")], None
        return [Check(name, "broken", line, mend) for line in lines], None
    except Exception as error:
        return [_unexpected(request.path.name, error, needed=True)], None
    runs = sum(1 for _ in params.runs())
    return [Check(request.path.name, "OK", f"valid: {len(params.datasets)} data sets, {runs} runs")], params


def check_dvc_yaml(params: "Params", scale: str) -> Iterator[Check]:
    """dvc.yaml against params.yaml. Snakemake does without it."""
    from gcflow.pipeline.stages import dvc_document

    path, mend = params.root / "dvc.yaml", f"gcflow stages --scale {scale}"
    if not path.exists():
        yield Check("dvc.yaml", "missing", str(path), mend, needed=False)
        return
    text = path.read_text(errors="replace")
    fits = next((known for known in dict.fromkeys((scale, "all")) if text == dvc_document(params, known)), None)
    if fits:
        yield Check("dvc.yaml", "OK", f"up to date for scale {fits}", needed=False)
    else:
        yield Check("dvc.yaml", "warning", f"is not what {params.path.name} gives at scale {scale}", mend, needed=False)


def check_snakemake(root: Path) -> Iterator[Check]:
    """Snakemake, and what it reads."""
    import_module("snakemake")
    if (root / "Snakefile").exists():
        yield Check("Snakemake", "OK", f"{metadata.version('snakemake')}, Snakefile")
    else:
        yield Check("Snakemake", "missing", str(root / "Snakefile"), "run in a checkout of the repository")


# Data.


def check_data(target: Target) -> Iterator[Check]:
    """Prepared arrays; where there are none, what they would be made from."""
    from gcflow.pipeline.folders import data_folder
    from gcflow.sources import ArchivedSource

    for name in target.datasets:
        source, folder = target.params.dataset(name).data, data_folder(target.params.root, name)
        prepared = (folder / "manifest.json").exists()
        if prepared:
            check = _prepared(name, folder, source, target.request.thorough)
            yield check
            if check.verdict != "warning":
                continue
        if isinstance(source, ArchivedSource):
            yield _archive(name, source, target.archives, target.request.thorough)
        elif not prepared:
            yield Check(f"data {name}", "OK", "not prepared yet; its source needs no download")


def _prepared(name: str, folder: Path, source: "DataSource", thorough: bool) -> Check:
    from gcflow.config import to_dict

    subject, again = f"data {name}", f"gcflow prepare {name}"
    try:
        manifest = _described_arrays(folder)
        if thorough:
            from gcflow.data import load_dataset

            load_dataset(folder)
    except GcflowError as error:
        return _refusal(subject, error)._replace(mend=again)
    if manifest.get("options") != json.loads(json.dumps(to_dict(source))):
        return Check(subject, "warning", "prepared with other options than params.yaml's", again, needed=False)
    shape, how = "x".join(map(str, manifest["shape"])), "sha256" if thorough else "sizes"
    return Check(subject, "OK", f"{manifest['count']} samples of shape {shape}, {how} as in the manifest")


def _described_arrays(folder: Path) -> dict[str, Any]:
    """The manifest; a GcflowError if an array is missing, cut, or of another shape than it says."""
    import numpy as np

    from gcflow.files import read_json

    manifest = read_json(folder / "manifest.json")
    if not isinstance(manifest, dict) or not {"count", "shape", "held_out"} <= manifest.keys():
        raise GcflowError(f"{folder / 'manifest.json'}: lacks count, shape or held_out")
    count, shape = manifest["count"], manifest["shape"]
    expected = {"samples.npy": [count, *shape], "labels.npy": [count], "held_out.npy": [manifest["held_out"], *shape]}
    for name, wanted in expected.items():
        try:
            # Mapped: a file that is shorter than its header says is refused, and nothing is read.
            found = list(np.load(folder / name, mmap_mode="r").shape)
        except FileNotFoundError:
            raise GcflowError(f"{folder / name}: missing") from None
        except (OSError, ValueError, EOFError) as error:
            raise GcflowError(f"{folder / name}: {one_line(error)}") from None
        if found != wanted:
            raise GcflowError(f"{folder / name}: shape {found}, the manifest says {wanted}")
    return manifest


def _archive(name: str, source: "ArchivedSource", archives: Path, thorough: bool) -> Check:
    subject = f"archive {name}"
    try:
        files = source.locate(archives)
        _require_whole(files, source, thorough)
    except GcflowError as error:
        refused = _refusal(subject, error)
        return refused._replace(mend=refused.mend.replace("give --download", f"run gcflow prepare {name} --download"))
    shown = " and ".join(path.name for path in files) if len(files) <= 2 else f"{len(files)} files in {files[0].parent}"
    if files[0].is_dir():
        return Check(subject, "OK", f"the folder {files[0]}, which has images")
    total = size(sum(path.stat().st_size for path in files))
    how = "all of it reads" if thorough else "begins and ends as it should"
    return Check(subject, "OK", f"{shown}, {total}, {how}")


def _require_whole(files: tuple[Path, ...], source: "ArchivedSource", thorough: bool) -> None:
    """Raises a GcflowError if files are not what they are called, or end too early."""
    from gcflow.archives import DAMAGED

    for path in files:
        _require_structure(path, source.count or 0)
    total = sum(path.stat().st_size for path in files)
    if not files[0].is_dir() and total < LEAST_IMAGE_BYTES * (source.count or 1):
        raise GcflowError(f"{files[0]}: {size(total)} for {source.count} images; {DAMAGED}")
    if thorough:
        published = source.published
        for path in files:
            known = published.md5 if published and published.name == path.name else None
            _require_content(path, known)


def _require_structure(path: Path, images: int) -> None:
    from gcflow.archives import DAMAGED, IMAGE_SUFFIXES, lmdb_members, opened_zip

    if path.is_dir():
        names = (name for _, _, names in os.walk(path) for name in names)
        if not any(name.lower().endswith(IMAGE_SUFFIXES) for name in names):
            raise GcflowError(f"{path}: holds no images; put them there")
        return
    with path.open("rb") as file:
        start = file.read(512)
        file.seek(max(0, path.stat().st_size - 512))
        end = file.read()
    found = None
    if path.name == "data.mdb":
        found = len(lmdb_members(path.parent))
    elif start[:2] == b"\x1f\x8b":
        _require_gzip(path, end)
    elif start[:2] == b"PK":
        with opened_zip(path) as archive:
            found = sum(name.lower().endswith(IMAGE_SUFFIXES) for name in archive.namelist()) or None
    elif start[257:262] == b"ustar":
        # A tar ends with blocks of zeros.
        if path.stat().st_size % 512 or end.strip(b"\0"):
            raise GcflowError(f"{path}: does not end as a tar does; {DAMAGED}")
    elif not start or path.suffix in (".gz", ".tgz", ".tar", ".zip"):
        raise GcflowError(f"{path}: begins with {start[:8]!r}, so it is no archive; {DAMAGED}")
    if found is not None and found < images:
        raise GcflowError(f"{path}: holds {found} images, expected {images}; {DAMAGED}")


def _require_gzip(path: Path, end: bytes) -> None:
    from gcflow.archives import DAMAGED

    try:
        with gzip.open(path) as file:
            file.read(BLOCK)
    except (OSError, EOFError, zlib.error) as error:
        raise GcflowError(f"{path}: {one_line(error)}; {DAMAGED}") from None
    # The last four bytes are the length of what is packed: a tar, in whole blocks. Those of a cut file are anything.
    if int.from_bytes(end[-4:], "little") % 512:
        raise GcflowError(f"{path}: does not end as a tar.gz does; {DAMAGED}")


def _require_content(path: Path, md5: str | None) -> None:
    """Reads all of a file, and compares what is known about it."""
    import hashlib

    from gcflow.archives import DAMAGED, opened_zip

    if path.is_dir():
        return
    with path.open("rb") as file:
        start = file.read(2)
        file.seek(0)
        found = hashlib.file_digest(file, partial(hashlib.md5, usedforsecurity=False)).hexdigest()
    if md5 is not None and found != md5:
        raise GcflowError(f"{path}: md5 is {found}, expected {md5}; {DAMAGED}")
    if start == b"PK":
        with opened_zip(path) as archive:
            bad = archive.testzip()
        if bad is not None:
            raise GcflowError(f"{path}: {bad} is damaged; {DAMAGED}")


# Published networks.


def check_inception(target: Target) -> Iterator[Check]:
    """Inception's weights, each file once."""
    from gcflow.inception import INCEPTION_SHA256, INCEPTION_URL, Inception
    from gcflow.pipeline.folders import extractor_path
    from gcflow.pipeline.schema import InceptionNetwork

    wanted: dict[tuple[Path, str | None], str] = {}
    for name in target.stages.datasets:
        settings = target.params.dataset(name).features
        if isinstance(settings, InceptionNetwork) and target.stages.features(name) in target.needed:
            made = extractor_path(target.params.root, name, settings.kind)
            path = made if made.exists() else target.archives / settings.weights
            wanted.setdefault((path, settings.sha256), name)
    for (path, sha256), name in wanted.items():
        if not path.exists():
            mend = f"put {INCEPTION_URL} there, or: gcflow features {name} --download"
            yield Check("Inception", "missing", str(path), mend)
            continue
        try:
            network = Inception.load(path, "cpu", sha256)
        except GcflowError as error:
            refused = _refusal("Inception", error)
            yield refused._replace(mend=refused.mend or f"fetch {INCEPTION_URL} again")
            continue
        found = f"{path}, sha256 {network.sha256[:12]}…"
        if network.sha256 == INCEPTION_SHA256 or sha256:
            yield Check("Inception", "OK", f"{found} as {'params.yaml says' if sha256 else 'published'}")
        else:
            mend = f"fetch {INCEPTION_URL}, whose sha256 is {INCEPTION_SHA256[:12]}…"
            yield Check("Inception", "warning", f"{found} is not the published file's", mend, needed=False)


def check_models(target: Target) -> Iterator[Check]:
    """Weights that runs start from and that no run makes."""
    from gcflow.files import opened_tensors
    from gcflow.pipeline.folders import pretrained_path

    names = [name for name in target.params.pretrained if target.stages.pretrained(name) in target.needed]
    for name in names:
        made, subject = pretrained_path(target.params.root, name), f"model {name}"
        try:
            if made.exists():
                with opened_tensors(made, "np") as file:
                    yield Check(subject, "OK", f"{made}, {len(file.keys())} tensors")
            else:
                yield _model(target, name)
        except GcflowError as error:
            yield _refusal(subject, error)
    files = {file for run in target.runs for file in target.params.needed_files(run).values()}
    made_here = {out for stage in target.needed for out in stage.outs}
    for needed in sorted(files - made_here):
        if not (target.params.root / needed).exists():
            mend = "put it there (gcflow import-edm makes one), or list it under pretrained in params.yaml"
            yield Check("model", "missing", needed, mend)


def _model(target: Target, name: str) -> Check:
    from gcflow.archives import DAMAGED
    from gcflow.files import sha256_of

    entry, subject = target.params.pretrained[name], f"model {name}"
    path = target.archives / entry.pickle
    if not path.exists():
        return Check(subject, "missing", str(path), f"put {entry.url} there, or: gcflow pretrained {name} --download")
    with path.open("rb") as file:
        start = file.read(1)
        file.seek(max(0, path.stat().st_size - 1))
        end = file.read()
    if start in (b"", b"<") or (start == b"\x80" and end != b"."):
        return Check(subject, "broken", f"{path} is no whole pickle ({size(path.stat().st_size)})", DAMAGED)
    if entry.sha256 is not None and (found := sha256_of(path)) != entry.sha256:
        return Check(subject, "broken", f"{path}: sha256 is {found[:12]}…, expected {entry.sha256[:12]}…", DAMAGED)
    return Check(subject, "OK", f"{path}, {size(path.stat().st_size)}")


# Services.


def check_tracking(params: "Params") -> Iterator[Check]:
    """Whether runs can be mirrored to MLflow now; they never wait for it."""
    from gcflow.pipeline.track import tracking_uri

    uri = tracking_uri(params)
    scheme, _, place = uri.partition("://")
    # An address may carry a password.
    shown = f"{scheme}://{place.rpartition('@')[2]}" if place else uri
    if scheme in ("http", "https"):
        problem = _http_problem(f"{uri.rstrip('/')}/health")
    elif scheme == "sqlite":
        problem = _sqlite_problem(Path(place.removeprefix("/")))
    elif scheme == "file" or not (place or uri.startswith("databricks")):
        folder = _present(Path(place or uri))
        problem = None if os.access(folder, os.W_OK) else f"{folder} cannot be written"
    else:
        yield Check("MLflow", "skipped", f"{shown}: not asked", "gcflow track shows whether it answers", needed=False)
        return
    if problem is None:
        yield Check("MLflow", "OK", shown, needed=False)
    else:
        later = "no run needs it; gcflow track sends later what is missing"
        yield Check("MLflow", "warning", f"{shown}: {problem}", later, needed=False)


def _http_problem(url: str, refuses: bool = True) -> str | None:
    """Why an address gives nothing; with `refuses` unset a server that answers at all is no problem."""
    # urllib takes a name and password in an address for a part of the host's name.
    account, at, host = urlsplit(url).netloc.rpartition("@")
    request = urllib.request.Request(url.replace(f"{account}{at}{host}", host, 1))
    if account:
        request.add_header("Authorization", f"Basic {b64encode(unquote(account).encode()).decode()}")
    try:
        with urllib.request.urlopen(request, timeout=ANSWER_SECONDS):
            return None
    except urllib.error.HTTPError as error:
        return f"answers {error.code} ({error.reason})" if refuses else None
    except (OSError, HTTPException) as error:
        return f"not reachable ({one_line(getattr(error, 'reason', error))})"


def _sqlite_problem(path: Path) -> str | None:
    if not path.exists():
        return None if os.access(_present(path.parent), os.W_OK) else f"{path.parent} cannot be written"
    try:
        database = sqlite3.connect(f"{path.resolve().as_uri()}?mode=rw", uri=True, timeout=1)
        try:
            database.execute("begin immediate")
            database.rollback()
        finally:
            database.close()
    except sqlite3.Error as error:
        return one_line(error)
    return None


def check_dvc(root: Path) -> Iterator[Check]:
    """Whether results can be recorded, and the remotes reached. No stage needs it."""
    if not any((folder / ".dvc").is_dir() for folder in (root.resolve(), *root.resolve().parents)):
        yield Check("DVC", "missing", "no DVC repository", "dvc init (without Git: dvc init --no-scm)", needed=False)
        return
    try:
        listed = _output(sys.executable, "-m", "dvc", "remote", "list", seconds=PATIENCE_SECONDS / 2, folder=root)
    except GcflowError as error:
        yield Check("DVC", "broken", one_line(error), "mend .dvc/config", needed=False)
        return
    yield Check("DVC", "OK", "repository is initialised", needed=False)
    lines = (line.strip().removesuffix("(default)").split(maxsplit=1) for line in listed.splitlines())
    remotes = [(line[0], line[1].strip()) for line in lines if len(line) == 2]
    if not remotes:
        mend = "to share results: dvc remote add --default storage PATH-OR-URL"
        yield Check("DVC remote", "skipped", "none is configured", mend, needed=False)
    # Beside each other: each may take its time.
    asked = [_started(partial(_remote_problem, root, name, url)) for name, url in remotes]
    for (name, url), problem in zip(remotes, asked, strict=True):
        found, subject = problem.result(), f"DVC remote {name}"
        if found is None:
            yield Check(subject, "OK", url, needed=False)
        else:
            mend = "mend the remote (dvc remote modify), or work without dvc push and pull"
            yield Check(subject, "warning", f"{url}: {found}", mend, needed=False)


def _remote_problem(root: Path, name: str, url: str) -> str | None:
    if "://" not in url:
        folder = _present(Path(url))
        if folder != Path(url):
            return "no such folder"
        return None if os.access(folder, os.W_OK) else "cannot be written"
    if url.startswith(("http://", "https://")):
        # DVC itself takes a server that is down for one that lacks the file. Only DVC knows the password.
        return _http_problem(url, refuses=False)
    try:
        _output(sys.executable, "-c", ASK_REMOTE, name, seconds=PATIENCE_SECONDS / 2, folder=root)
    except GcflowError as error:
        return one_line(error)
    return None


# Disk.


@lru_cache
def _parameter_bytes(network: "NetworkConfig", shape: tuple[int, ...]) -> int:
    import torch

    from gcflow.networks import build_network

    with torch.device("meta"):
        return sum(4 * parameter.numel() for parameter in build_network(network, shape).parameters())


def needed_bytes(params: "Params", stages: "Iterable[Stage]") -> int:
    """An estimate of what stages that are not complete will write: arrays of data, and snapshots of runs."""
    from gcflow.pipeline.stages import Stages

    every, total = Stages(params, "all"), 0
    todo = {stage for stage in stages if not all((params.root / out).exists() for out in stage.outs)}
    for name, entry in params.datasets.items():
        if every.prepare(name) in todo:
            # Images are bytes, points are float32.
            total += (entry.data.count or 0) * math.prod(entry.data.shape) * (1 if len(entry.data.shape) == 3 else 4)
    for run in params.runs():
        if every.train(run) in todo:
            config = params.run_config(run.name)
            weights = _parameter_bytes(config.network, params.dataset(run.dataset).data.shape)
            total += 2 * weights * len(config.training.snapshot_steps)
    return total


def check_disk(target: Target) -> Iterator[Check]:
    """Free space against what is still to be written."""
    wanted, free = needed_bytes(target.params, target.needed), shutil.disk_usage(target.params.root.resolve()).free
    found = f"{size(free)} free, about {size(wanted)} to be written"
    if wanted < free:
        yield Check("disk", "OK", found)
    else:
        mend = "free some space, or link data, results and checkpoints to a larger disk"
        yield Check("disk", "broken", found, mend)


# All of them.


def _unexpected(subject: str, error: BaseException, needed: bool) -> Check:
    mend = "this check itself failed; mend what the message names"
    if isinstance(error, ModuleNotFoundError) and error.name:
        mend = f"python -m pip install {error.name.partition('.')[0]}"
    return Check(subject, "broken", f"{type(error).__name__}: {one_line(error)}", mend, needed)


def _started(function: Callable[[], T]) -> Future[T]:
    """Begins a call in a thread that does not keep the process alive."""
    future: Future[T] = Future()

    def call() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    Thread(target=call, daemon=True).start()
    return future


def _listed(look: Callable[[], Iterable[Check]]) -> list[Check]:
    return list(look())


def made(probes: Iterable[Probe]) -> list[Check]:
    """The checks, in order. One that fails in another way than it should is broken, one that hangs is given up."""
    begun = time.monotonic()
    asked = [(probe, _started(partial(_listed, probe.look)) if probe.waits else None) for probe in probes]
    checks: list[Check] = []
    for probe, future in asked:
        try:
            left = max(0.0, begun + PATIENCE_SECONDS - time.monotonic())
            checks += probe.look() if future is None else future.result(left)
        except TimeoutError:
            found = f"no answer within {PATIENCE_SECONDS:.0f} s"
            checks.append(Check(probe.subject, "broken", found, "look at it by hand", probe.needed))
        except Exception as error:
            checks.append(_unexpected(probe.subject, error, probe.needed))
    return checks


def diagnose(request: Request) -> list[Check]:
    """Every check of a request.

    Raises:
        GcflowError: the target does not exist.
    """
    params_checks, params = check_params(request)
    target = resolve(request, params) if params else None
    root = request.path.parent
    slow_on_cpu = target is not None and target.slow_on_cpu
    before = [
        Probe("Python", check_python),
        Probe("packages", check_packages),
        Probe("device", partial(check_device, request.device, slow_on_cpu)),
        Probe(request.path.name, lambda: params_checks),
    ]
    if params and target:
        before += [
            Probe("dvc.yaml", partial(check_dvc_yaml, params, request.scale), needed=False),
            Probe("Snakemake", partial(check_snakemake, root)),
            Probe("data", partial(check_data, target)),
            Probe("Inception", partial(check_inception, target)),
            Probe("model", partial(check_models, target)),
            Probe("disk", partial(check_disk, target)),
            Probe("MLflow", partial(check_tracking, params), needed=False, waits=True),
        ]
    else:
        left_out = "data, networks, disk and MLflow: params.yaml says which"
        skipped = Check("the rest", "skipped", left_out, f"mend {request.path.name} first", needed=False)
        before += [
            Probe("Snakemake", partial(check_snakemake, root)),
            Probe("the rest", lambda: [skipped]),
        ]
    after = [
        Probe("folders", partial(check_folders, root)),
        Probe("DVC", partial(check_dvc, root), needed=False, waits=True),
        Probe("Slurm", check_slurm, needed=False, waits=True),
    ]
    return made([*before, *after])


def screen(request: Request, checks: list[Check]) -> str:
    """The checks as lines, with colours, and what follows from them."""
    column = max(len(check.subject) for check in checks)
    hanging = " " * (2 + 9 + column + 2)
    lines = []
    for check in checks:
        mark, colour = MARKS[check.verdict]
        if not check.needed and check.verdict in ("missing", "broken"):
            mark, colour = MARKS["warning"]
        head = f"{click.style(f'{mark} {check.verdict:<7}', fg=colour)}  {check.subject:<{column}}  "
        lines.append(head + check.found)
        if check.mend and check.verdict != "OK":
            lines.append(f"{hanging}→ {check.mend}")
    failing = sum(check.fails for check in checks)
    what = f"{request.target or 'everything'} at scale {request.scale}"
    result = f"{what}: cannot run here yet, {failing} of {len(checks)} checks fail"
    lines.append(click.style(result, fg="red") if failing else click.style(f"{what}: can run here", fg="green"))
    return "\n".join(lines)


def document(request: Request, checks: list[Check]) -> dict[str, Any]:
    """What `--json` writes."""
    return {
        "target": request.target,
        "scale": request.scale,
        "can_run": not any(check.fails for check in checks),
        "checks": [check._asdict() for check in checks],
    }
