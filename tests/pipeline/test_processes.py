"""Runs of several processes: the bits of one process, and an orderly end whatever happens to one."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from projects import (
    Fork,
    alive,
    assert_same_run,
    checkpoints,
    children,
    environment,
    error_line,
    gcflow,
    metrics,
    prepare_data,
    run_folder,
    state_folder,
    temporary_files,
    tiny_params,
    train_here,
    wait_until,
    write_project,
)

from gcflow.files import read_json
from gcflow.pipeline.params import Params
from gcflow.weights import load_tensors, spec_of

STEPS, LONG, MIDDLE = 48, 120, 10
BATCH, GRAIN = 16, 4
TWO = ("--processes", "2")
RUN, LONG_RUN = "digits/gc/0", "digits/long/0"
UNET = {"architecture": "ddpm++", "channels": 8, "blocks": 1, "dropout": 0.2}
CONSISTENCY = {"objective": "consistency"}
METHODS: dict[str, dict[str, Any]] = {
    "ot": CONSISTENCY | {"coupling": "ot"},
    "unet": CONSISTENCY | {"network": UNET},
    "long": CONSISTENCY | {"training": {"steps": LONG, "snapshot_every": LONG // 2}},
    "diverging": CONSISTENCY | {"training": {"learning_rate": 1.0e20, "gradient_clip": None}},
}


def project(folder: Path) -> Path:
    """A project with prepared digits, dropout, and a trained denoiser."""
    params = tiny_params()
    digits = params["datasets"]["digits"]
    del digits["methods"]["gc-frozen"], digits["runs"]["gc-frozen"]
    digits["methods"] |= METHODS
    digits["runs"] |= {name: {"label": name, "seeds": [0]} for name in METHODS}
    digits["network"] = {"architecture": "mlp", "channels": 24, "blocks": 2, "dropout": 0.2}
    digits["training"] |= {"steps": STEPS, "batch": BATCH, "grain": GRAIN, "snapshot_every": STEPS // 2}
    digits["cadence"] = {"log_every": 6, "checkpoint_every": 5}
    return prepare_data(write_project(folder, params), "digits")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project with its data and its denoiser."""
    root = project(tmp_path_factory.mktemp("prepared") / "project")
    train_here(root, "digits/denoiser/0")
    return root


@pytest.fixture(scope="module")
def alone(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A project in which one process has trained a run."""
    root = Path(shutil.copytree(prepared, tmp_path_factory.mktemp("alone") / "project"))

    def trained(run: str) -> Path:
        if not (run_folder(root, run) / "config.json").exists():
            train_here(root, run)
        return root

    return trained


@pytest.fixture(scope="module")
def shared(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A project in which two processes have trained a run that nothing disturbed."""
    ignored = shutil.ignore_patterns("results")
    root = Path(shutil.copytree(prepared, tmp_path_factory.mktemp("shared") / "project", ignore=ignored))

    def trained(run: str) -> Path:
        if run != "digits/denoiser/0" and not (root / "results" / "digits" / "denoiser").exists():
            shutil.copytree(prepared / "results" / "digits" / "denoiser", root / "results" / "digits" / "denoiser")
        if not (run_folder(root, run) / "config.json").exists():
            process = Fork(root, "train", run, *TWO)
            assert process.wait() == 0, process.output
        return root

    return trained


def running_in(root: Path) -> list[int]:
    """The processes that run in a project's folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cwd"):
        try:
            if path.resolve() == root.resolve() and alive(int(path.parent.name)):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return sorted(found)


def assert_nothing_runs_in(root: Path) -> None:
    wait_until(lambda: not running_in(root))


# The same bits as one process.


@pytest.mark.parametrize(
    "method",
    ["ot", "gc", "cd", *(pytest.param(name, marks=pytest.mark.slow) for name in ("ect-gc", "unet"))],
)
def test_two_processes_end_with_the_bits_of_one(alone, shared, method):
    run = f"digits/{method}/0"
    one, two = alone(run), shared(run)
    assert [line["step"] for line in metrics(two, run)] == list(range(6, STEPS + 1, 6))
    assert_same_run(two, one, run)
    assert temporary_files(two) == []
    # The weights have moved.
    config = Params(one / "params.yaml").run_config(run)
    untrained = spec_of(config, (1, 8, 8)).build(config.seed).network.state_dict()
    trained, _ = load_tensors(run_folder(two, run) / "weights.safetensors")
    assert max((trained[f"raw.{name}"] - tensor).abs().max() for name, tensor in untrained.items()) > 1e-2


def test_the_number_of_processes_is_recorded_with_the_job_and_is_no_part_of_the_run(alone, shared):
    one, two = (run_folder(root, RUN) for root in (alone(RUN), shared(RUN)))
    assert [read_json(folder / "jobs.json")[-1]["processes"] for folder in (one, two)] == [1, 2]
    assert (one / "config.json").read_bytes() == (two / "config.json").read_bytes()


def test_the_command_itself_starts_its_processes_and_speaks_with_one_voice(root, shared):
    result = gcflow(root, "train", RUN, env={"GCFLOW_PROCESSES": "2"})
    assert result.stdout == ""
    (line,) = (line for line in result.stderr.splitlines() if " done: " in line)
    assert line.split()[:5] == [RUN, "done:", str(STEPS), "steps", "in"]
    assert_same_run(root, shared(RUN), RUN)


@pytest.mark.slow
def test_torchrun_starts_the_same_run(root, shared):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "gcflow"]
    result = subprocess.run(
        [*command, "train", RUN], cwd=root, env=environment(), capture_output=True, text=True, check=False, timeout=120
    )
    assert result.returncode == 0, result.stderr
    assert_same_run(root, shared(RUN), RUN)
    ours, theirs = (run_folder(x, RUN) / "config.json" for x in (root, shared(RUN)))
    assert ours.read_bytes() == theirs.read_bytes()


# Refused.


@pytest.mark.parametrize("processes", ["3", "16"])
def test_a_number_of_processes_that_cannot_share_the_grains_is_refused_in_one_line(root, processes):
    process = Fork(root, "train", RUN, "--processes", processes)
    assert process.wait() == 2
    expected = f"{processes} processes cannot share a batch of 4 grains (training.batch / training.grain)"
    assert process.output == f"gcflow: error: {expected}; possible here: 1, 2, 4\n"
    assert [path.name for path in run_folder(root, RUN).rglob("*.*")] == ["end.json"]


def test_a_teacher_that_is_missing_is_told_by_one_of_the_processes(root):
    shutil.rmtree(run_folder(root, "digits/denoiser/0"))
    process = Fork(root, "train", "digits/cd/0", *TWO)
    assert process.wait() == 2
    (line,) = process.output.splitlines()
    assert line.startswith("gcflow: error: results/digits/denoiser/seed0/snapshots/")
    assert line.endswith("digits/cd/0 needs it; run gcflow train digits/denoiser/0 first")


def test_a_loss_that_is_not_finite_ends_both_processes_with_3_and_one_line(root):
    process = Fork(root, "train", "digits/diverging/0", *TWO)
    assert process.wait() == 3
    (line,) = process.output.splitlines()
    assert line == f"gcflow: error: {error_line(process.output)}"
    assert line.endswith("lower training.learning_rate (1e+20)")
    folder = run_folder(root, "digits/diverging/0")
    assert [path.name for path in folder.iterdir()] == ["state"]
    assert_nothing_runs_in(root)


# Killed.


def newest(root: Path) -> int:
    """Step of the newest checkpoint of the long run, -1 if there is none."""
    found = checkpoints(root, LONG_RUN)
    return int(found[-1].stem.removeprefix("checkpoint-")) if found else -1


def in_the_middle(root: Path) -> tuple[Fork, list[int]]:
    """A launcher whose two processes are in the middle of the long run; and them, the first rank first.

    The two are held by SIGSTOP.
    """
    launcher = Fork(root, "train", LONG_RUN, *TWO)
    wait_until(lambda: newest(root) >= MIDDLE or launcher.exitcode is not None, pause=0.002)
    ranks = children(launcher.pid)
    for pid in ranks:
        os.kill(pid, signal.SIGSTOP)
    assert launcher.exitcode is None, launcher.output
    assert len(ranks) == 2
    assert running_in(root) == sorted([launcher.pid, *ranks])
    return launcher, ranks


def assert_stopped_short(root: Path) -> None:
    assert_nothing_runs_in(root)
    assert MIDDLE <= newest(root) < LONG
    assert not (run_folder(root, LONG_RUN) / "weights.safetensors").exists()


def assert_two_processes_finish(root: Path, other: Path) -> None:
    """That the long run is resumed where it was and ends in the bits of an undisturbed one."""
    step = newest(root)
    process = Fork(root, "train", LONG_RUN, *TWO)
    assert process.wait() == 0, process.output
    assert f"resumes at step {step}\n" in process.output
    assert "processes" not in process.output
    assert_same_run(root, other, LONG_RUN)


@pytest.mark.parametrize("victim", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_process_that_is_killed_ends_the_launcher_and_the_other_and_a_restart_finishes(root, shared, victim):
    launcher, ranks = in_the_middle(root)
    os.kill(ranks[victim], signal.SIGKILL)
    os.kill(ranks[1 - victim], signal.SIGCONT)
    code = launcher.wait()
    # The first speaks; without it what ended it is told.
    assert code == (128 + signal.SIGKILL if victim == 0 else 2)
    if victim == 1:
        assert error_line(launcher.output) == f"{LONG_RUN}: another process of this run ended before this one"
    assert_stopped_short(root)
    assert_two_processes_finish(root, shared(LONG_RUN))


@pytest.mark.slow
def test_a_process_that_hangs_while_the_other_is_killed_does_not_keep_the_launcher(root):
    launcher, ranks = in_the_middle(root)
    os.kill(ranks[0], signal.SIGKILL)
    assert launcher.wait() == 128 + signal.SIGKILL
    assert_stopped_short(root)


@pytest.mark.slow
def test_processes_whose_launcher_is_killed_die_and_a_restart_finishes(root, shared):
    launcher, ranks = in_the_middle(root)
    launcher.send(signal.SIGKILL)
    for pid in ranks:
        os.kill(pid, signal.SIGCONT)
    wait_until(lambda: not any(alive(pid) for pid in ranks))
    assert launcher.wait() == -signal.SIGKILL
    assert_stopped_short(root)
    assert_two_processes_finish(root, shared(LONG_RUN))


# Stopped, and continued by as many processes or by another number.


def pending(pid: int) -> bool:
    """Whether a process that is held has a signal waiting."""
    (mask,) = (line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("ShdPnd:"))
    return int(mask.split()[1], 16) != 0


@pytest.fixture(scope="module")
def stopped(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose long run was stopped in the middle by SIGTERM to its launcher."""
    root = Path(shutil.copytree(prepared, tmp_path_factory.mktemp("stopped") / "project"))
    launcher, ranks = in_the_middle(root)
    launcher.send(signal.SIGTERM)
    for pid in ranks:
        wait_until(lambda pid=pid: pending(pid))
        os.kill(pid, signal.SIGCONT)
    assert launcher.wait() == 75, launcher.output
    reasons = [f"{LONG_RUN}: {why}; " for why in ("stopped by SIGTERM", "another of its processes was asked to stop")]
    line = error_line(launcher.output)
    assert line.startswith(tuple(reasons))
    assert line.endswith(f"; saved at step {newest(root)} of {LONG}")
    assert_stopped_short(root)
    return root


def test_two_processes_stopped_by_sigterm_to_their_launcher_continue_to_the_same_bits(interrupted, shared):
    assert_two_processes_finish(interrupted, shared(LONG_RUN))


@pytest.mark.parametrize("processes", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_another_number_of_processes_continues_to_the_same_bits(interrupted, shared, processes):
    step = newest(interrupted)
    process = Fork(interrupted, "train", LONG_RUN, "--processes", str(processes))
    assert process.wait() == 0, process.output
    assert f"resumes at step {step}\n" in process.output
    assert_same_run(interrupted, shared(LONG_RUN), LONG_RUN)


def test_another_device_is_told_when_a_run_goes_on(interrupted, shared):
    jobs = state_folder(interrupted, LONG_RUN) / "jobs.json"
    known = read_json(jobs)
    jobs.write_text(json.dumps([*known[:-1], known[-1] | {"device": "NVIDIA H200"}]))
    step = newest(interrupted)
    process = Fork(interrupted, "train", LONG_RUN, *TWO)
    assert process.wait() == 0, process.output
    expected = f"  device was NVIDIA H200 and is {known[-1]['device']}: bits may differ from step {step} on\n"
    assert process.output.count(expected) == 1
    assert [job["device"] for job in read_json(run_folder(interrupted, LONG_RUN) / "jobs.json")][-2:] == [
        "NVIDIA H200", known[-1]["device"]
    ]  # fmt: skip


@pytest.mark.slow
def test_many_kills_with_another_number_of_processes_each_change_no_bit(root, shared):
    draws = random.Random(0)
    for _ in range(8):
        wanted, processes = newest(root) + draws.randint(1, 10), draws.choice(("1", "2", "4"))
        launcher = Fork(root, "train", LONG_RUN, "--processes", processes)
        wait_until(lambda wanted=wanted, launcher=launcher: newest(root) >= wanted or launcher.exitcode is not None)
        if launcher.exitcode is not None:
            break
        launcher.send(signal.SIGKILL)
        assert_nothing_runs_in(root)
        launcher.wait()
    process = Fork(root, "train", LONG_RUN, "--processes", "4")
    assert process.wait() == 0, process.output
    assert_same_run(root, shared(LONG_RUN), LONG_RUN)
