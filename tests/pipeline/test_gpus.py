"""GPUs that jobs lease from each other, pretended by CUDA_VISIBLE_DEVICES: the machine needs none."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from projects import gcflow, write_project

from gcflow.errors import GcflowError
from gcflow.pipeline.gpus import leased

HOLD = """
import os, sys
from gcflow.pipeline.gpus import leased
with leased(int(sys.argv[1])):
    print(os.environ.get("CUDA_VISIBLE_DEVICES"), flush=True)
    sys.stdin.read()
"""
Job = subprocess.Popen[str]


@pytest.fixture
def lease(tmp_path: Path) -> Iterator[Callable[..., Job]]:
    """Starts a job that leases so many of some GPUs, until it is ended, and prints which."""
    jobs: list[Job] = []

    def begin(count: int, gpus: str) -> Job:
        env = os.environ | {"TMPDIR": str(tmp_path), "CUDA_VISIBLE_DEVICES": gpus}
        command = [sys.executable, "-c", HOLD, str(count)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        jobs.append(subprocess.Popen(command, env=env, text=True, **pipes))
        return jobs[-1]

    yield begin
    for job in jobs:
        job.kill()
        job.communicate()


def got(job: Job) -> str:
    assert job.stdout is not None
    return job.stdout.readline().strip()


@pytest.mark.slow
def test_each_of_four_jobs_has_a_gpu_of_its_own_and_a_fifth_that_of_one_that_was_killed(lease):
    jobs = [lease(1, "0,1,GPU-8f2c,3") for _ in range(4)]
    had = [got(job) for job in jobs]
    assert sorted(had) == ["0", "1", "3", "GPU-8f2c"]
    fifth = lease(1, "0,1,GPU-8f2c,3")
    assert "waits for 1 of the GPUs 0, 1, GPU-8f2c, 3" in fifth.stderr.readline()
    jobs[2].kill()
    assert got(fifth) == had[2]


def test_a_job_of_several_gpus_takes_so_many_and_gives_all_back(lease):
    first, second = lease(2, "4, 5, 6, 7"), lease(2, "4, 5, 6, 7")
    pairs = [set(got(job).split(",")) for job in (first, second)]
    assert pairs[0] | pairs[1] == {"4", "5", "6", "7"}
    third = lease(3, "4,5,6,7")
    assert "waits for 3" in third.stderr.readline()
    for job in (first, second):
        job.communicate("")
    assert len(got(third).split(",")) == 3


@pytest.mark.parametrize("hidden", ["", "-1"])
def test_a_machine_without_a_gpu_has_none_to_lease(hidden, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    with leased(2):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == hidden


def test_more_gpus_than_there_are_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with pytest.raises(GcflowError, match="3 GPUs are asked for, of which there are 2: 0, 1"), leased(3):
        pass
    env = {"CUDA_VISIBLE_DEVICES": "0,1"}
    result = gcflow(write_project(tmp_path), "train", "digits/gc/0", "--gpus", "3", check=False, env=env)
    assert result.returncode == 2
    assert "of which there are 2" in result.stderr
