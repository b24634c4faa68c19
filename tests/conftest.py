import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from builders import Outcome
from hypothesis import settings
from slurm_cluster import Cluster
from workflows import finished_project

from gcflow.cli import main

# Tests run side by side: one thread each is faster and makes floating-point sums repeatable.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# torch.compile's scalar code will do: to find the vector instructions takes it a quarter of a minute in every process.
os.environ.setdefault("TORCHINDUCTOR_VEC_ISA_OK", "0")
# `make test-all` tells every make below it that it is one of its own, which then says where it is.
for variable in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS"):
    os.environ.pop(variable, None)
# A shell ignores the one for what it starts in the background, `nohup` the other, and every process of the tests would.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
settings.register_profile("short", deadline=None, max_examples=20)
settings.load_profile("short")


# `make test-all` gives files whole to one of five processes: first one of those that take longest and one of the next
# five, which are short beside the very longest; then the others as they come.
FIRST = ["versions", "tracking", "slurm", "slurm_trouble", "extending", "pages", "verify", "own_images", "readme"]


def pytest_collection_modifyitems(items):
    """Marks what needs other programs: `services`, a project that Snakemake has finished, a browser, an SSH server."""
    place = {f"test_{name}.py": number for number, name in enumerate(FIRST)}
    items.sort(key=lambda item: place.get(item.path.name, len(place)))
    for item in items:
        if item.path.parent.name == "services" or "finished" in item.fixturenames:
            item.add_marker("service")
        if {"browser", "page"} & set(item.fixturenames):
            item.add_marker("browser")
        if "sshd" in item.fixturenames:
            item.add_marker("remote")


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """The command line within this process, in a folder; any exception but its exit is a failure."""

    def call(root: Path, *args: str | int | Path) -> Outcome:
        monkeypatch.chdir(root)
        monkeypatch.setenv("GCFLOW_DEVICE", "cpu")
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main(list(map(str, args)))
        code = caught.value.code
        return Outcome(code if isinstance(code, int) else 0, *capsys.readouterr())

    return call


@pytest.fixture
def root(prepared: Path, tmp_path: Path) -> Path:
    """A copy of the project that a module has prepared, to damage."""
    return Path(shutil.copytree(prepared, tmp_path / "project"))


@pytest.fixture
def interrupted(stopped: Path, tmp_path: Path) -> Path:
    """A copy of the project in which a module has stopped a run, to damage."""
    return Path(shutil.copytree(stopped, tmp_path / "interrupted"))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A Slurm of a module's own."""
    with Cluster(tmp_path_factory.mktemp("slurm") / "cluster") as booted:
        yield booted
    assert booted.processes() == []


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Path:
    """A finished and recorded tiny project; shared by all tests, so to be read only. `duplicate` copies it."""
    base = tmp_path_factory.getbasetemp()
    return finished_project(base.parent if "PYTEST_XDIST_WORKER" in os.environ else base)
