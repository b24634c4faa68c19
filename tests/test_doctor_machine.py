import base64
import os
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from doctor_projects import FOLDER, asked, paper_params, project, refused
from projects import prepare_data, train_here, write_project

from gcflow.pipeline.doctor import asking, services
from gcflow.pipeline.doctor.check import Check
from gcflow.pipeline.doctor.disk import check_disk, check_folders, needed_bytes
from gcflow.pipeline.doctor.machine import check_device, check_packages, check_python
from gcflow.pipeline.doctor.services import check_dvc, check_slurm, check_tracking
from gcflow.pipeline.params import Params
from gcflow.pipeline.stages import Stages


@pytest.fixture(autouse=True)
def patience(monkeypatch):
    """On a machine that other tests keep busy, a command takes longer to answer than a person would wait."""
    monkeypatch.setattr(asking, "ANSWER_SECONDS", 60.0)
    monkeypatch.setattr(services, "PATIENCE_SECONDS", 120.0)


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Puts shell scripts into a PATH that has little else."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("sh", "echo", "sleep"):
        (folder / name).symlink_to(shutil.which(name))
    monkeypatch.setenv("PATH", str(folder))

    def write(name: str, script: str) -> None:
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)

    return write


# Python, packages, device.


def test_a_package_that_is_missing_or_of_another_version_is_named():
    lines = ["torch>=99", "numpy>=2", "no-such-package-of-gcflow>=1.5", 'also-none; extra == "dev"']
    (check,) = check_packages(lines)
    refused(check, "missing", f"torch {torch.__version__} is not >=99", "no-such-package-of-gcflow is not installed")
    assert check.mend == "python -m pip install 'torch>=99' 'no-such-package-of-gcflow>=1.5'"
    assert "also-none" not in check.found
    (old,) = check_packages(['numpy<2; extra == "pipeline"'])
    refused(old, "broken", f"numpy {np.__version__} is not <2")


def test_the_installed_packages_are_those_required():
    (check,) = check_packages()
    assert check.verdict == "OK", check
    (python,) = check_python()
    assert python.found == ".".join(map(str, sys.version_info[:3]))


def test_a_device_that_is_not_there_is_broken_and_named():
    *_, check = check_device("cuda:7", False)
    refused(check, "broken", "cuda:7", "--device cpu")
    *_, unknown = check_device("abacus", False)
    refused(unknown, "broken", "abacus")


def test_the_cpu_is_fine_at_the_embedded_scale_and_slow_beyond(tmp_path):
    *_, check = check_device("cpu", False)
    assert check.verdict == "OK"
    assert asked(write_project(tmp_path), None, "embedded").slow_on_cpu is False
    beyond = asked(project(tmp_path, paper_params(FOLDER)), "photos")
    assert beyond.slow_on_cpu
    *_, slow = check_device("cpu", beyond.slow_on_cpu)
    assert (slow.verdict, slow.fails) == ("warning", False)
    assert "weeks" in slow.found
    assert not asked(tmp_path, "prepare-photos").slow_on_cpu


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch can use a GPU")
def test_a_gpu_that_torch_cannot_use_is_a_warning(programs):
    programs("nvidia-smi", 'case "$1" in *name) echo "Some GPU";; *) echo 580.65;; esac')
    version, check = check_device("auto", False)
    assert "driver 580.65" in version.found
    assert (check.verdict, check.fails) == ("warning", False)
    assert "Some GPU" in check.found


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_is_named_with_its_memory():
    version, check = check_device("auto", True)
    assert check.verdict == "OK"
    assert torch.cuda.get_device_name(0) in check.found
    assert re.search(r"[\d.]+ GiB of [\d.]+ GiB free, (no )?bf16", check.found)
    assert f"CUDA {torch.version.cuda}" in version.found


# Disk and folders.


def test_needed_bytes_are_what_is_not_there_yet(tmp_path):
    root = write_project(tmp_path)
    params = Params(root / "params.yaml")
    stages = Stages(params)
    assert 1797 * 64 <= needed_bytes(params, [stages.prepare("digits")]) <= 1.2 * 1797 * 64
    (run,) = (run for run in params.runs() if run.name == "mixture2d/ic/0")
    before = needed_bytes(params, [stages.train(run)])
    prepare_data(root, "mixture2d")
    train_here(root, run.name)
    # What is published is linked to what lies in state/.
    files = {path.stat().st_ino: path.stat().st_size for path in (root / "results/mixture2d/ic/seed0").rglob("*.*")}
    written = sum(files.values())
    assert before == pytest.approx(written, rel=0.2)
    assert needed_bytes(params, [stages.prepare("mixture2d"), stages.train(run)]) == 0


def test_a_disk_that_is_too_small_is_broken(tmp_path):
    root = project(tmp_path, paper_params({"source": "synthetic", "shape": [3, 64, 64], "count": 10**12, "seed": 0}))
    (check,) = check_disk(asked(root, "prepare-photos"))
    refused(check, "broken", "free", f"{(12288 + 8) * 10**12 / 2**30:.1f} GiB to be written")


def test_folders_that_cannot_be_written_are_broken(tmp_path):
    (tmp_path / "results").symlink_to("/proc/sys")
    (check,) = check_folders(tmp_path)
    refused(check, "broken", "results", "cannot be written")


def test_a_file_system_without_hard_links_is_a_warning(tmp_path, monkeypatch):
    def refuse(*_: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    _, check = check_folders(tmp_path)
    assert (check.verdict, check.fails) == ("warning", False)
    assert list(tmp_path.iterdir()) == []


# Slurm.


def slurm() -> Check:
    (check,) = check_slurm()
    assert not check.fails, "runs need no Slurm here"
    return check


def test_where_there_is_no_slurm_that_is_no_failure(programs):
    assert slurm() == Check("Slurm", "skipped", "no Slurm here: jobs run on this machine", needed=False)


def test_slurms_partitions_with_gpus_and_its_accounting(programs):
    programs("sbatch", "exit 0")
    assert slurm().found == "squeue, sinfo not in PATH"
    programs("squeue", "exit 0")
    programs("sinfo", 'echo "slurm_load_partitions: Unable to contact slurm controller" >&2; exit 1')
    assert slurm().found == "sinfo: slurm_load_partitions: Unable to contact slurm controller"
    programs("sinfo", 'echo "cpu*|(null)"')
    assert slurm().found == "1 partitions, none with GPUs"
    programs("sinfo", 'echo "cpu*|(null)"; echo "long|gpu:a100:4"; echo "long|gpu:a100:4"')
    assert slurm().found == "GPUs in long (gpu:a100:4); no accounting"
    assert "squeue" in slurm().mend
    programs("sacct", 'echo "Slurm accounting storage is disabled" >&2; exit 1')
    assert slurm().verdict == "warning"
    programs("sacct", "exit 0")
    assert (slurm().verdict, slurm().found) == ("OK", "GPUs in long (gpu:a100:4); accounting")


def test_a_slurm_that_does_not_answer_is_given_up(programs, tmp_path, monkeypatch):
    monkeypatch.setattr(asking, "ANSWER_SECONDS", 0.3)
    for name in ("sbatch", "squeue"):
        programs(name, "exit 0")
    programs("sinfo", f"sleep 60; touch {tmp_path / 'answered'}")
    assert slurm().verdict == "broken"
    assert not (tmp_path / "answered").exists()


# MLflow.


class Health(BaseHTTPRequestHandler):
    status = 200

    accounts: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.accounts.append(self.headers.get("Authorization", ""))
        self.send_response(self.status if self.path == "/health" else 404)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Says nothing."""


@pytest.fixture
def server() -> Iterator[str]:
    running = ThreadingHTTPServer(("127.0.0.1", 0), Health)
    threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{running.server_port}"
    running.shutdown()
    running.server_close()


@pytest.fixture
def tracking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Check]:
    params = Params(write_project(tmp_path / "project") / "params.yaml")

    def call(uri: str) -> Check:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        (check,) = check_tracking(params)
        assert not check.fails, "tracking never stops a run"
        return check

    return call


def test_a_tracking_server_that_runs_is_ok_and_one_that_does_not_is_a_warning(tracking, server, monkeypatch):
    assert tracking(server) == Check("MLflow", "OK", server, needed=False)
    assert tracking(server.replace("//", "//me:se%40cret@")) == Check("MLflow", "OK", server, needed=False)
    assert base64.b64decode(Health.accounts[-1].removeprefix("Basic ")) == b"me:se@cret"
    monkeypatch.setattr(Health, "status", 500)
    assert "answers 500" in tracking(server).found
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        stopped = tracking(f"http://127.0.0.1:{free.getsockname()[1]}")
    assert stopped.verdict == "warning"
    assert "not reachable" in stopped.found
    assert "gcflow track" in stopped.mend


def test_a_tracking_server_that_never_answers_is_given_up(tracking, monkeypatch):
    monkeypatch.setattr(asking, "ANSWER_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert tracking(f"http://127.0.0.1:{silent.getsockname()[1]}").verdict == "warning"


def test_the_tracking_database_must_be_writable(tracking, tmp_path):
    path = tmp_path / "runs.db"
    assert tracking("").verdict == "OK"
    assert tracking(f"sqlite:///{path}").verdict == "OK"
    path.write_bytes(b"no database at all" * 100)
    assert "not a database" in tracking(f"sqlite:///{path}").found
    path.unlink()
    with sqlite3.connect(path) as database:
        database.execute("create table runs (id)")
        assert tracking(f"sqlite:///{path}").verdict == "OK"
    assert tracking(str(tmp_path / "mlruns")).verdict == "OK"
    assert tracking("postgresql://me:secret@host/runs").verdict == "skipped"
    assert "secret" not in tracking("postgresql://me:secret@host/runs").found
    assert tracking("databricks").verdict == "skipped"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["project", "runs.db"]


# DVC.


def dvc(root: Path, *args: str) -> None:
    subprocess.run([sys.executable, "-m", "dvc", *args], cwd=root, check=True, capture_output=True)


def remotes(root: Path) -> dict[str, Check]:
    checks = {check.subject: check for check in check_dvc(root)}
    assert not any(check.fails for check in checks.values()), "no stage needs DVC"
    return checks


def test_dvc_and_each_of_its_remotes(tmp_path, server):
    assert remotes(tmp_path)["DVC"].verdict == "missing"
    dvc(tmp_path, "init", "--no-scm", "--quiet")
    assert remotes(tmp_path)["DVC remote"].verdict == "skipped"
    # Longer than a line of any terminal.
    store = f"a store {'x' * 100}"
    (tmp_path / store).mkdir()
    urls = {
        "near": f"../{store}",
        "gone": "/no/such/folder",
        "web": f"{server}/store",
        "down": "http://127.0.0.1:9/store",
        "strange": "ssh://host.invalid/store",
    }
    blocks = (f"['remote \"{name}\"']\n    url = {url}\n" for name, url in urls.items())
    (tmp_path / ".dvc" / "config").write_text(f"[core]\n    no_scm = true\n    remote = near\n{''.join(blocks)}")
    found = remotes(tmp_path)
    assert found["DVC remote near"].found == str(tmp_path / store)
    assert {name: check.verdict for name, check in found.items()} == {
        "DVC": "OK",
        "DVC remote near": "OK",
        "DVC remote gone": "warning",
        "DVC remote web": "OK",
        "DVC remote down": "warning",
        "DVC remote strange": "warning",
    }
    assert "no such folder" in found["DVC remote gone"].found
    (tmp_path / ".dvc" / "config").write_text("[nonsense")
    assert remotes(tmp_path)["DVC"].verdict == "broken"
