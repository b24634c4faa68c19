"""`gcflow doctor`: does what the stages of a target will do first, and says what of it fails and what to do.

Packages are imported by the checks that need them: that one is missing is a finding, not the end of the diagnosis.
"""

import getpass
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import click

from gcflow.errors import GcflowError
from gcflow.readable import one_line, size

ANSWER_SECONDS = 15.0
# Where stages write.
FOLDERS = ("data", "checkpoints", "results")
COLOURS = {"✓": "green", "!": "yellow", "✗": "red"}


class Check(NamedTuple):
    """A check. look: makes it and returns what was found, or raises a GcflowError `what is wrong; what to do`.

    needed: the target cannot be made where this fails.
    """

    name: str
    look: Callable[[], str]
    needed: bool = True


class Note(GcflowError):
    """Something to know and perhaps to mend, which keeps no stage from running."""


def checks(path: Path, target: str, scale: str, archives: Path, chosen: str) -> Iterator[Check]:
    """Every check, in order. path: of params.yaml. archives: folder of official files. chosen: device, or `auto`."""
    asked: list[Asked] = []

    def params() -> str:
        asked.append(Asked(path, scale, archives))
        return f"{len(asked[0].params.datasets)} data sets, {sum(1 for _ in asked[0].params.runs())} runs"

    yield Check("packages", packages)
    yield Check("device", partial(device, chosen))
    yield Check("user", user)
    yield Check("folders", partial(folders, path.parent))
    yield Check("Slurm", slurm, needed=False)
    yield Check("DVC", partial(dvc, path.parent), needed=False)
    yield Check(path.name, params)
    # What a params.yaml with mistakes needs is not known.
    for valid in asked:
        yield from valid.checks(target)


def said(*command: str) -> str:
    """What another program prints.

    Raises:
        GcflowError: it fails, or does not answer in time.
    """
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise GcflowError(f"{command[0]} does not answer within {ANSWER_SECONDS:.0f} s; look at it by hand") from None
    if answer.returncode != 0:
        raise GcflowError((answer.stderr.strip() or f"{command[0]} fails without a word").splitlines()[-1])
    return answer.stdout


def packages() -> str:
    """Every installed package against what this one requires."""
    from packaging.requirements import Requirement

    wrong = []
    for item in map(Requirement, metadata.requires("gcflow") or []):
        if item.marker is None or item.marker.evaluate({"extra": "pipeline"}):
            try:
                fits = item.specifier.contains(version := metadata.version(item.name), prereleases=True)
            except metadata.PackageNotFoundError:
                fits, version = False, "none"
            wrong += [] if fits else [f"{item.name}{item.specifier} (here: {version})"]
    if wrong:
        raise GcflowError(f"needs {', '.join(wrong)}; python -m pip install --editable '.[pipeline]'")
    return f"Python {sys.version.split()[0]}, gcflow {metadata.version('gcflow')} and all that it requires"


def device(choice: str) -> str:
    """A product on the device that `--device` would take."""
    import torch

    name = choice if choice != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    try:
        ones = torch.ones(64, 64, device=name)
        total = float((ones @ ones).sum())
    except (RuntimeError, AssertionError) as error:
        raise GcflowError(f"{name}: {str(error).splitlines()[0]}; give --device cpu, or look at nvidia-smi") from None
    if total != 64**3:
        raise GcflowError(f"{name}: a product of ones sums to {total:g}; this hardware miscomputes")
    found = f"torch {torch.__version__} on {name}"
    if ones.is_cuda:
        free, memory = torch.cuda.mem_get_info(ones.device)
        return f"{found}: {torch.cuda.get_device_name(ones.device)}, {size(free)} of {size(memory)} free"
    if choice == "auto" and shutil.which("nvidia-smi"):
        gpu = said("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader").strip()
        mend = "install the build of torch for its driver: https://pytorch.org/get-started/locally"
        raise Note(f"{found}, which cannot use this GPU ({gpu}); {mend}")
    return f"{found}, {os.cpu_count()} cores"


def compiler() -> str:
    """A file with Python's headers, as Triton and torch.compile have it compiled."""
    mend = "install gcc, g++ and python3-dev, or name other compilers in CC and CXX"
    named = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    if named is None:
        raise GcflowError(f"none, and runs have training.compile; {mend}")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "source.c"
        source.write_text("#include <Python.h>\n", encoding="utf-8")
        headers = f"-I{sysconfig.get_path('include')}"
        try:
            said(named, "-shared", "-fPIC", headers, str(source), "-o", str(source.with_suffix(".so")))
        except (GcflowError, OSError) as error:
            raise GcflowError(f"{named}: {one_line(error)}; {mend}") from None
    return f"{named}, with Python's headers"


def user() -> str:
    """A name, as Snakemake and DVC have it; a container that runs under any number may have none."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        raise GcflowError(f"number {os.getuid()} has no name, and Snakemake and DVC want one; export USER=me") from None


def folders(root: Path) -> str:
    """Files where stages write, and hard links, by which results are recorded without a copy."""
    linked = True
    for name in FOLDERS:
        place = next(path for path in (root / name, *(root / name).resolve().parents) if path.is_dir())
        try:
            with tempfile.TemporaryDirectory(prefix=".doctor.", dir=place) as scratch:
                file = Path(scratch) / "file"
                file.write_bytes(b"1")
                try:
                    os.link(file, file.with_name("link"))
                except OSError:
                    linked = False
        except OSError as error:
            mend = "give yourself the right to write there, or free its disk"
            raise GcflowError(f"{place} cannot be written ({error.strerror}); {mend}") from None
    free = f"can be written, {size(shutil.disk_usage(place).free)} free (gcflow plan tells what a target takes)"
    if not linked:
        raise Note(f"{free}, but without hard links; none is needed: DVC copies instead, which takes the space twice")
    return free


def slurm() -> str:
    """Whether jobs can be submitted from here, to which GPUs, and whether the past ones are known."""
    if not shutil.which("sbatch"):
        return "none here: jobs run on this machine"
    rows = [line.split("|") for line in said("sinfo", "--noheader", "--format=%P|%G").splitlines()]
    gpus = ", ".join(sorted({f"{partition} ({gres.strip()})" for partition, gres in rows if "gpu" in gres}))
    if not gpus:
        raise Note(f"{len(rows)} partitions, none with GPUs; ask who runs the cluster for nodes with gres gpu")
    try:
        said("sacct", "--noheader", "--format=JobID")
    except (GcflowError, OSError):
        raise Note(f"GPUs in {gpus}, no accounting; let the profile say slurm-status-command: squeue") from None
    return f"GPUs in {gpus}, accounting"


def dvc(root: Path) -> str:
    """The repository in which `gcflow record` records: its lock, its cache, and git's view of the folders."""
    from dvc.exceptions import NotDvcRepoError
    from dvc.repo import Repo
    from dvc.scm import NoSCM

    try:
        with Repo(str(root)) as repo, repo.lock:
            cache = Path(repo.cache.local.path)
            cache.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=cache):
                pass
            remotes = ", ".join(f"{name} ({remote['url']})" for name, remote in repo.config["remote"].items())
            top = None if isinstance(repo.scm, NoSCM) else Path(repo.scm.root_dir).resolve()
    except NotDvcRepoError:
        raise Note("no repository; dvc init (without git: dvc init --no-scm)") from None
    for name in FOLDERS:
        if top and not (place := (root / name).resolve()).is_relative_to(top):
            mend = "move it within, or record without git: dvc init --no-scm --force"
            raise Note(f"{name} is a link to {place}, and DVC records nothing outside the git repository; {mend}")
    return f"a repository with {remotes or 'no remote: results stay here'}"


class Asked:
    """A valid params.yaml, and what has to be here before its stages.

    Raises:
        GcflowError: it has mistakes, a line each.
    """

    def __init__(self, path: Path, scale: str, archives: Path) -> None:
        from gcflow.pipeline.params import Params

        self.params = Params(path)
        self.scale, self.archives = scale, self.params.root / archives

    def checks(self, target: str) -> Iterator[Check]:
        """What the stages of a target read that no stage makes, or that is made already; then what runs them.

        Raises:
            GcflowError: there is no such target.
        """
        from gcflow.pipeline.graph import Graph

        graph = Graph(self.params, self.scale)
        jobs = [graph.jobs[name] for name in graph.target(target)]
        for job in jobs:
            if job.kind == "pretrained":
                yield Check(f"model {job.item}", partial(self.pretrained, job.item))
            elif job.kind == "prepare" and job.dataset:
                yield Check(f"data {job.dataset}", partial(self.data, job.dataset))
            elif job.kind == "features" and job.dataset:
                yield Check(f"features {job.dataset}", partial(self.features, job.dataset))
        runs = [job.run for job in jobs if job.kind == "train" and job.run]
        made = {out for job in jobs for out in job.outs}
        for file in sorted({file for run in runs for file in self.params.needed_files(run).values()} - made):
            yield Check(f"model {file}", partial(self.weights, self.params.root / file))
        if any(self.params.run_config(run.name).training.compile != "none" for run in runs):
            yield Check("compiler", compiler)
        yield Check("Snakemake", partial(self.snakemake, [job.outs[0] for job in jobs]))
        yield Check("MLflow", self.tracking, needed=False)

    def data(self, name: str) -> str:
        """Prepared arrays as a run reads them, or else the archive that they are made from."""
        from gcflow.archives.layouts import Archived
        from gcflow.data import load_dataset
        from gcflow.pipeline.folders import data_folder
        from gcflow.pipeline.prepare import check_classes, doubts

        source, folder = self.params.dataset(name).data, data_folder(self.params.root, name)
        if (folder / "manifest.json").exists():
            dataset = load_dataset(folder)
            check_classes(self.params, name)
            for doubt in doubts(self.params, name):
                raise Note(doubt)
            return f"{len(dataset.samples)} samples of shape {list(dataset.shape)}, as their manifest says"
        if not isinstance(source, Archived):
            return "not prepared yet, needs no download"
        files = source.locate(self.archives)
        return f"not prepared yet, {files[0]} has {size(sum(file.stat().st_size for file in files))}"

    def features(self, name: str) -> str:
        """Published weights as `gcflow features` has stored them, or where it looks for them."""
        from gcflow.pipeline.features.networks import published_file
        from gcflow.pipeline.folders import extractor_path
        from gcflow.pipeline.published import find_published

        settings = self.params.dataset(name).features
        path = extractor_path(self.params.root, name, settings.kind)
        if (file := published_file(settings)) is None:
            return f"a {settings.kind}, {'which is' if path.exists() else 'to be'} made here"
        if not path.exists():
            path = find_published(self.archives, file.name, file.url, None, fetch=False)
        published = file.network.load(path, sha256=file.sha256).sha256 == file.published
        return f"{path}, {'as' if published else 'not as'} published"

    def pretrained(self, name: str) -> str:
        """A public model as `gcflow pretrained` has stored it, or where it looks for it."""
        from gcflow.pipeline.folders import pretrained_path
        from gcflow.pipeline.published import find_published

        path, entry = pretrained_path(self.params.root, name), self.params.pretrained[name]
        if path.exists():
            return self.weights(path)
        return str(find_published(self.archives, entry.pickle, entry.url, entry.sha256, fetch=False))

    def weights(self, path: Path) -> str:
        """Weights that runs start from."""
        from gcflow.files import opened_tensors

        if not path.exists():
            raise GcflowError(f"{path}: missing; put it there (gcflow import-edm makes one)")
        with opened_tensors(path, "np") as file:
            return f"{path}, {len(file.keys())} tensors"

    def snakemake(self, outs: list[str]) -> str:
        """What Snakemake plans. outs: one of each stage."""
        from gcflow.pipeline.scheduler import opened

        with opened(self.params, self.scale, []) as scheduler:
            left = sum(scheduler.would_make(out) for out in outs)
        return f"{left} of {len(outs)} stages are to be run"

    def tracking(self) -> str:
        """Whether runs can be mirrored to MLflow now."""
        from gcflow.tools.track.mirror import Mirror, database, one_line, shown_address

        address, path = shown_address(self.params), database(self.params)
        if path and not path.exists():
            return f"{address} is to be made"
        try:
            Mirror(self.params).client.search_experiments(max_results=1)
        except Exception as error:
            later = "no run waits for it, and gcflow track sync sends what is missing"
            raise Note(f"{address}: {one_line(error)}; {later}") from None
        return address


def look(check: Check) -> list[tuple[str, str]]:
    """Makes a check. Of each finding its mark, and what was found, with what to do in a line of its own."""
    try:
        return [("✓", check.look())]
    except Exception as error:
        mark = "✗" if check.needed and not isinstance(error, Note) else "!"
        if isinstance(error, GcflowError):
            # What a stage takes as an option, a workflow takes from its environment.
            text = str(error).replace("give --download", "set GCFLOW_DOWNLOAD=1")
            return [(mark, line.replace("; ", "\n    → ", 1)) for line in text.splitlines()]
        text = f"{type(error).__name__}: {one_line(error)}"
        absent = error.name if isinstance(error, ImportError) else None
        return [(mark, f"{text}\n    → python -m pip install {absent.partition('.')[0]}" if absent else text)]


def diagnose(path: Path, target: str, scale: str, archives: Path, chosen: str) -> bool:
    """Makes every check, tells of each as it is made, and returns whether the target can be made here."""
    failures = set()
    for check in checks(path, target, scale, archives, chosen):
        for mark, text in look(check):
            if text in failures:
                # Of a file that several stages read.
                continue
            click.echo(click.style(f"{mark} {check.name}", fg=COLOURS[mark]) + f": {text}")
            failures |= {text} if mark == "✗" else set()
    what = "everything" if target == "all" else target
    result = "cannot be made here yet" if failures else "can be made here"
    click.echo(click.style(f"{what} at scale {scale}: {result}", bold=True))
    return not failures
