"""Runs that are killed, stopped, doubled or out of disk: they end in the bytes of a run that nothing interrupted."""

import os
import random
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from projects import (
    Fork,
    alive,
    assert_same_run,
    checkpoints,
    children,
    error_line,
    gcflow,
    limit_file_size,
    prepare_data,
    run_folder,
    snapshots,
    start,
    state_folder,
    temporary_files,
    tiny_params,
    train_here,
    wait_until,
    weights,
    write_project,
)

from gcflow.errors import GcflowError, Preempted
from gcflow.pipeline.params import Params
from gcflow.pipeline.run_state import RunState
from gcflow.pipeline.slurm import minutes_left
from gcflow.training import TrainingState, initial_state
from gcflow.weights import load_tensors, save_tensors, weights_metadata

STEPS, CHECKPOINT_EVERY = 160, 5
METHODS = ("gc", *(pytest.param(method, marks=pytest.mark.slow) for method in ("ot", "ect")))
RUN = "digits/gc/0"
TWO = ("--processes", "2")


def project(folder: Path, checkpoint_every: int = CHECKPOINT_EVERY, channels: int = 48, steps: int = STEPS) -> Path:
    """A project with prepared digits, dropout, and a run of each coupling, of distillation and of ECT."""
    params = tiny_params()
    digits = params["datasets"]["digits"]
    methods, runs = digits["methods"], digits["runs"]
    del methods["gc-frozen"], runs["gc-frozen"]
    methods["ot"] = {"objective": "consistency", "coupling": "ot"}
    runs["ot"] = {"label": "iCT-OT", "seeds": [0]}
    methods["denoiser"]["training"] |= {"steps": 40, "snapshot_every": 40}
    digits["network"] = {"architecture": "mlp", "channels": channels, "blocks": 2, "dropout": 0.2}
    digits["training"] |= {"steps": steps, "snapshot_every": steps // 2, "grain": 8}
    digits["cadence"] = {"log_every": 8, "checkpoint_every": checkpoint_every}
    return prepare_data(write_project(folder, params), "digits")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project with its data and its denoiser."""
    root = project(tmp_path_factory.mktemp("prepared") / "project")
    train_here(root, "digits/denoiser/0")
    return root


def train(root: Path, run: str, processes: int = 1) -> str:
    """Trains a run to its end; what was said."""
    process = Fork(root, "train", run, *(TWO if processes == 2 else ()))
    code = process.wait()
    assert code == 0, process.output
    return process.output


@pytest.fixture(scope="module")
def whole(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], Path]:
    """A project in which a run was trained by so many processes that nothing interrupted."""
    made: dict[tuple[str, int], Path] = {}

    def trained(run: str, processes: int = 1) -> Path:
        if (run, processes) not in made:
            made[run, processes] = Path(shutil.copytree(prepared, tmp_path_factory.mktemp("whole") / "project"))
            assert "resumes" not in train(made[run, processes], run, processes)
        return made[run, processes]

    return trained


def newest(root: Path, run: str) -> int:
    """Step of the newest checkpoint, -1 if there is none."""
    found = checkpoints(root, run)
    return int(found[-1].stem.removeprefix("checkpoint-")) if found else -1


def in_the_loop(process: Fork, root: Path, run: str, steps: int = CHECKPOINT_EVERY) -> None:
    """Waits until a process has trained and saved so many further steps; a failure if it ended before."""
    # Or a machine that does much else might let it come to its end before we look.
    os.setpriority(os.PRIO_PROCESS, process.pid, 19)
    target = max(newest(root, run), 0) + steps
    wait_until(lambda: newest(root, run) >= target or process.exitcode is not None, pause=0.002)
    assert process.exitcode is None, process.output


def assert_gone(pids: list[int]) -> None:
    """That processes end."""
    wait_until(lambda: not any(alive(pid) for pid in pids))


def assert_ends_the_same(root: Path, other: Path, run: str, steps: int = STEPS) -> None:
    """That a finished run has the bits of one that nothing interrupted, and keeps no more than it does."""
    assert_same_run(root, other, run)
    assert [path.name for path in checkpoints(root, run)] == [f"checkpoint-{steps:08d}.safetensors"]


# Killed at random moments.


@pytest.mark.parametrize("method", METHODS)
def test_a_run_that_is_killed_again_and_again_ends_bit_identical(root, whole, method):
    run, moments = f"digits/{method}/0", random.Random(method)
    for _ in range(2):
        process = Fork(root, "train", run)
        in_the_loop(process, root, run, moments.randrange(5, STEPS // 8))
        time.sleep(moments.uniform(0, 0.02))
        process.send(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert not (run_folder(root, run) / "weights.safetensors").exists()
        assert len(checkpoints(root, run)) in (2, 3)
    assert "resumes at step" in train(root, run)
    assert_ends_the_same(root, whole(run), run)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["gc", "ot", "ect"])
def test_a_run_of_two_processes_that_is_killed_again_and_again_ends_bit_identical(root, whole, method):
    run, moments = f"digits/{method}/0", random.Random(method)
    victims = ["launcher", "first", "second"]
    for victim in moments.sample(victims, 2):
        launcher = Fork(root, "train", run, *TWO)
        in_the_loop(launcher, root, run, moments.randrange(5, STEPS // 8))
        ranks = children(launcher.pid)
        assert len(ranks) == 2
        time.sleep(moments.uniform(0, 0.02))
        os.kill({"launcher": launcher.pid, "first": ranks[0], "second": ranks[1]}[victim], signal.SIGKILL)
        assert launcher.wait(15) not in (0, 75)
        assert_gone(ranks)
        assert not (run_folder(root, run) / "weights.safetensors").exists()
    assert "resumes at step" in train(root, run, 2)
    assert_ends_the_same(root, whole(run, 2), run)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_the_command_itself_killed_leaves_no_process_and_ends_bit_identical(root, whole, processes):
    process = start(root, "train", RUN, *(TWO if processes == 2 else ()))
    wait_until(lambda: newest(root, RUN) > 0)
    ranks = children(process.pid)
    assert len(ranks) == (2 if processes == 2 else 0)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert_gone(ranks)
    assert newest(root, RUN) < STEPS
    assert "resumes at step" in train(root, RUN, processes)
    assert_ends_the_same(root, whole(RUN, processes), RUN)


def half_written(root: Path, run: str) -> list[Path]:
    return list(run_folder(root, run).glob("state/*/.checkpoint-*"))


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_run_that_is_killed_in_the_middle_of_writing_checkpoints_ends_bit_identical(tmp_path, processes):
    steps, run = 40, "digits/ic/0"
    other, root = (project(tmp_path / name, 2, 192, steps) for name in ("other", "root"))
    train(other, run, processes)
    hit = 0
    for _ in range(4 if processes == 1 else 2):
        seen = set(half_written(root, run))
        process = Fork(root, "train", run, *(TWO if processes == 2 else ()))
        in_the_loop(process, root, run, 2)
        wait_until(lambda seen=seen: not seen.issuperset(half_written(root, run)), pause=0)
        ranks = children(process.pid)
        for pid in (*ranks[:1], process.pid):
            os.kill(pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert_gone(ranks)
        hit += not seen.issuperset(half_written(root, run))
    assert hit > 0
    assert "resumes at step" in train(root, run, processes)
    assert_same_run(root, other, run)
    assert [load_tensors(path)[1]["step"] for path in checkpoints(root, run)] == [steps]


def test_what_a_killed_process_was_writing_is_removed_by_the_next(root):
    with pytest.raises(Preempted):
        train_here(root, RUN, minutes=0)
    folder = state_folder(root, RUN)
    (folder / "snapshots").mkdir()
    for name in (".checkpoint-00000005.safetensors.4711", "snapshots/.00000100.safetensors.4711"):
        (folder / f"{name}.safetensors").write_bytes(b"half a file")
    train(root, RUN)
    assert temporary_files(root) == []


def test_a_run_that_is_killed_while_it_publishes_is_published_whole_by_the_next(root, whole):
    shutil.copytree(whole(RUN), root, dirs_exist_ok=True)
    folder = run_folder(root, RUN)
    hit = 0
    for _ in range(3):
        shutil.rmtree(folder / "snapshots")
        for path in folder.glob("*.*"):
            path.unlink()
        process = Fork(root, "train", RUN)
        wait_until((folder / "snapshots").exists, pause=0)
        process.send(signal.SIGKILL)
        process.wait()
        # What the pipeline waits for comes last.
        hit += not (folder / "config.json").exists()
        train(root, RUN)
        assert_ends_the_same(root, whole(RUN), RUN)
        assert (folder / "config.json").read_bytes() == (run_folder(whole(RUN), RUN) / "config.json").read_bytes()
    assert hit > 0


# Asked to stop.


SAVED = f"; saved at step {{}} of {STEPS}"


def saved_step(line: str, root: Path, run: str) -> int:
    """The step in the line of a run that was stopped, which must be that of its newest checkpoint."""
    step = int(line.split("saved at step ")[1].split(maxsplit=1)[0])
    assert line.endswith(SAVED.format(step))
    assert newest(root, run) == step
    assert not (run_folder(root, run) / "weights.safetensors").exists()
    return step


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_to_stop_saves_the_step_it_came_to_and_exits_with_75(root, whole, number):
    process = Fork(root, "train", RUN)
    in_the_loop(process, root, RUN)
    process.send(number)
    assert process.wait() == 75, process.output
    line = error_line(process.output)
    assert line.startswith(f"{RUN}: stopped by {number.name}; ")
    assert 0 < saved_step(line, root, RUN) < STEPS
    assert "resumes at step" in train(root, RUN)
    assert_ends_the_same(root, whole(RUN), RUN)


@pytest.mark.parametrize(
    "told", [pytest.param("launcher", marks=pytest.mark.slow), pytest.param("second", marks=pytest.mark.slow), "group"]
)
def test_sigterm_to_any_of_two_processes_stops_both_with_75_and_is_told_once(root, whole, told):
    launcher = Fork(root, "train", RUN, *TWO)
    in_the_loop(launcher, root, RUN)
    ranks = children(launcher.pid)
    for pid in {"launcher": [launcher.pid], "second": ranks[1:], "group": [*ranks, launcher.pid]}[told]:
        os.kill(pid, signal.SIGTERM)
    assert launcher.wait() == 75
    assert_gone(ranks)
    line = error_line(launcher.output)
    reasons = ["another of its processes was asked to stop"]
    if told != "second":
        reasons.append("stopped by SIGTERM")
    assert line.startswith(tuple(f"{RUN}: {reason}; " for reason in reasons))
    assert 0 < saved_step(line, root, RUN) < STEPS
    assert "resumes at step" in train(root, RUN, 2)
    assert_ends_the_same(root, whole(RUN, 2), RUN)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_time_budget_saves_and_exits_with_75_and_the_next_run_goes_on(root, whole, processes):
    options = TWO if processes == 2 else ()
    process = Fork(root, "train", RUN, "--time-budget", "0", *options)
    assert process.wait() == 75
    assert error_line(process.output) == f"{RUN}: time budget of 0 minutes spent; saved at step 0 of {STEPS}"
    assert newest(root, RUN) == 0
    process = Fork(root, "train", RUN, "--time-budget", "0.005", *options)
    assert process.wait() == 75
    line = error_line(process.output)
    reasons = ("time budget of 0.005 minutes spent", "another of its processes was asked to stop")
    assert line.startswith(tuple(f"{RUN}: {reason}; " for reason in reasons[:processes]))
    saved_step(line, root, RUN)
    train(root, RUN, processes)
    assert_same_run(root, whole(RUN, processes), RUN)


@pytest.fixture
def time_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Pretends a Slurm job whose time left `squeue` tells, and whose `scontrol` is only written down."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "7")

    def tell(left: str) -> None:
        for name, line in {"squeue": f"echo {left}", "scontrol": f'echo "$@" >> {tmp_path}/asked'}.items():
            (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{line}\n")
            (tmp_path / "bin" / name).chmod(0o755)

    return tell


@pytest.mark.parametrize(
    ("left", "minutes"),
    [("1-02:03:30", 1561.5), ("2:00:00", 118), ("5:30", 3.5), ("0:30", -1.5), ("UNLIMITED", None), ("INVALID", None)],
)
def test_a_training_has_the_time_that_its_slurm_job_has_left_less_two_minutes_to_save(time_left, left, minutes):
    time_left(left)
    assert minutes_left() == minutes


def test_a_time_limit_without_room_for_a_step_is_an_error_and_no_reason_to_queue_again(root, time_left, tmp_path):
    time_left("2:00")
    process = Fork(root, "train", RUN, "--requeue")
    assert process.wait() == 2
    line = error_line(process.output)
    assert line.endswith(f"saved at step 0 of {STEPS}: not one step; the job needs a longer time limit")
    assert not (tmp_path / "asked").exists()


# Doubled.


@pytest.fixture
def frozen(root: Path) -> Iterator[Fork]:
    """A process that trains and was stopped by SIGSTOP in the middle."""
    process = Fork(root, "train", RUN)
    in_the_loop(process, root, RUN)
    process.send(signal.SIGSTOP)
    yield process
    if process.exitcode is None:
        process.send(signal.SIGKILL)
        process.wait()


def test_a_second_process_is_kept_out_of_a_run_and_told_who_is_in_it(root, frozen):
    for options in ((), TWO):
        second = Fork(root, "train", RUN, *options)
        assert second.wait(30) == 2
        (line,) = second.output.splitlines()
        assert line.startswith(f"gcflow: error: {RUN}: already being trained by process {frozen.pid} on ")
    assert frozen.exitcode is None


def waiting(root: Path, first: Fork, *options: str) -> Fork:
    """A second process that has said that it waits for the first."""
    second = Fork(root, "train", RUN, "--wait", *options)
    wait_until(lambda: "waits for" in second.output or second.exitcode is not None)
    assert second.output.startswith(f"{RUN}: waits for process {first.pid} on ")
    return second


@pytest.mark.parametrize("options", [(), TWO])
def test_a_process_that_waits_obeys_its_time_budget_and_begins_nothing(root, frozen, options):
    process = Fork(root, "train", RUN, "--wait", "--time-budget", "0.01", *options)
    assert process.wait() == 75
    waits, line = process.output.splitlines()
    assert "waits for process" in waits
    assert line.endswith("time budget of 0.01 minutes spent while it waited; nothing was begun")


@pytest.mark.slow
def test_a_second_process_that_waits_finds_the_work_done(root, whole, frozen):
    second = waiting(root, frozen)
    frozen.send(signal.SIGCONT)
    assert frozen.wait() == 0
    assert second.wait() == 0
    assert f"resumes at step {STEPS}" in second.output
    assert_ends_the_same(root, whole(RUN), RUN)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_second_process_that_waits_goes_on_where_the_first_came_to(root, whole, frozen, number):
    second = waiting(root, frozen)
    frozen.send(number)
    frozen.send(signal.SIGCONT)
    assert frozen.wait() == (75 if number == signal.SIGTERM else -signal.SIGKILL)
    step = newest(root, RUN)
    assert second.wait() == 0
    assert f"resumes at step {step}" in second.output
    assert_ends_the_same(root, whole(RUN), RUN)


def test_a_process_that_lost_its_lock_adds_no_line_to_the_log(root, monkeypatch):
    save = RunState.save

    def then_suspended_for_long(self: RunState, state: TrainingState) -> None:
        save(self, state)
        (self.folder.parent / "lock.00000099").touch()

    monkeypatch.setattr(RunState, "save", then_suspended_for_long)
    with pytest.raises(GcflowError, match="the lock was taken over"):
        train_here(root, RUN)
    assert newest(root, RUN) == CHECKPOINT_EVERY
    assert not (state_folder(root, RUN) / "metrics.jsonl").exists()


# Inputs from the future.


@pytest.mark.parametrize("linked", [False, True])
def test_data_with_a_time_to_come_are_refused_before_a_step_is_trained(root, linked):
    path, ahead = root / "data/digits/samples.npy", time.time() + 90 * 60
    if linked:
        path.symlink_to(path.rename(root / "kept.npy"))
    os.utime(path, (ahead, ahead), follow_symlinks=False)
    with pytest.raises(GcflowError, match=r"samples.npy: its time is 90 minutes ahead of the clock here") as refused:
        train_here(root, RUN)
    assert newest(root, RUN) == -1
    subprocess.run(str(refused.value).partition("time: ")[2], shell=True, check=True)
    train_here(root, RUN)


# Checkpoints that are damaged.


@pytest.fixture(scope="module")
def stopped(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose run was killed in the middle and has two checkpoints."""
    root = Path(shutil.copytree(prepared, tmp_path_factory.mktemp("stopped") / "project"))
    process = Fork(root, "train", RUN)
    in_the_loop(process, root, RUN, STEPS // 2)
    process.send(signal.SIGTERM)
    assert process.wait() == 75
    assert len(checkpoints(root, RUN)) == 2
    return root


def flipped(position: Callable[[bytes], int]) -> Callable[[bytes], bytes]:
    def damage(content: bytes) -> bytes:
        place = position(content)
        assert 0 <= place < 8 + int.from_bytes(content[:8], "little")
        return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]

    return damage


def inside(text: bytes, further: int = 0) -> Callable[[bytes], bytes]:
    """One bit is flipped in the last character of a text of the header, or so many bytes further."""
    return flipped(lambda content: content.index(text) + len(text) - 1 + further)


DAMAGES = {
    "truncated": lambda content: content[:-1000],
    "empty": lambda content: b"",
    "zeros": lambda content: bytes(len(content)),
    "another length of the header": flipped(lambda content: 0),
    "a huge header": flipped(lambda content: 6),
    "no brace": flipped(lambda content: 8),
    "another key of the metadata": inside(b'"__metadata__'),
    "our metadata no JSON": inside(b'\\"config_hash\\":'),
    "a weight of another name": inside(b'"raw.input.weigh'),
    "a moment of another name": inside(b'"optimizer.0.exp_avg_s'),
    "a window of another name": inside(b'"window.loss_su'),
    "no step": inside(b'\\"step\\": ', further=-4),
    "another step": inside(b'\\"step\\": ', further=3),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_checkpoint_is_reported_and_the_one_before_it_used(interrupted, damage, capsys):
    older, last = checkpoints(interrupted, RUN)
    step = load_tensors(older)[1]["step"]
    last.write_bytes(damage(last.read_bytes()))
    with pytest.raises(Preempted, match=f"saved at step {step} of {STEPS}"):
        train_here(interrupted, RUN, minutes=0)
    said = capsys.readouterr().err
    (report,) = (line for line in said.splitlines() if str(last) in line)
    assert "trying the checkpoint before it" in report
    assert f"resumes at step {step}\n" in said


@pytest.mark.parametrize("damaged", [1, 2])
def test_a_run_of_which_one_or_all_checkpoints_are_damaged_ends_the_same(interrupted, whole, damaged, capsys):
    for path in checkpoints(interrupted, RUN)[-damaged:]:
        path.write_bytes(DAMAGES["truncated"](path.read_bytes()))
    train_here(interrupted, RUN)
    said = capsys.readouterr().err
    assert said.count("trying the checkpoint before it") == damaged
    assert ("resumes" in said) == (damaged == 1)
    assert_ends_the_same(interrupted, whole(RUN), RUN)


def test_damaged_checkpoints_of_later_steps_do_not_push_out_a_new_one(tmp_path):
    config = Params(write_project(tmp_path / "project") / "params.yaml").run_config("digits/ic/0")
    state = initial_state(config, (1, 8, 8))
    run_state = RunState(tmp_path / "state", weights_metadata(config, 0, (1, 8, 8)))
    for step in (160, 240):
        state.step = step
        run_state.save(state)
        path = run_state.checkpoints()[0]
        path.write_bytes(path.read_bytes()[:-1000])
    fresh = initial_state(config, (1, 8, 8))
    assert run_state.restore(fresh) is None
    assert fresh.step == 0
    fresh.step = 20
    run_state.save(fresh)
    again = initial_state(config, (1, 8, 8))
    assert run_state.restore(again) == run_state.checkpoints()[0]
    assert again.step == 20


LOSSES = {
    "the last line": lambda lines: lines[:-1],
    "half of it": lambda lines: lines[: len(lines) // 2],
    "half a line": lambda lines: [*lines, lines[-1][:20]],
    "zeros": lambda lines: ["\0" * len("".join(lines))],
    "all": lambda lines: [],
    "doubled": lambda lines: lines * 2,
    "later steps": lambda lines: [*lines, lines[-1].replace('"step": ', '"step": 9')],
}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_whatever_becomes_of_the_log_in_a_crash_each_line_is_there_once_in_the_end(interrupted, whole, loss):
    log = state_folder(interrupted, RUN) / "metrics.jsonl"
    left = "".join(loss(log.read_text().splitlines(keepends=True)))
    log.unlink()
    if left:
        log.write_text(left)
    train_here(interrupted, RUN)
    assert_ends_the_same(interrupted, whole(RUN), RUN)


def test_a_checkpoint_without_a_log_is_left_as_it_is(interrupted):
    for path in checkpoints(interrupted, RUN):
        tensors, metadata = load_tensors(path)
        del tensors["log"]
        save_tensors(path, tensors, metadata)
    with pytest.raises(GcflowError, match="older version"):
        train_here(interrupted, RUN)
    assert len(checkpoints(interrupted, RUN)) == 2


# Out of disk.


def test_a_disk_that_is_full_in_the_middle_ends_a_run_in_one_line_and_keeps_what_it_had(root, whole):
    process = Fork(root, "train", RUN)
    in_the_loop(process, root, RUN, STEPS // 4)
    # As `limit_file_size`, but of a process that already runs.
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (10_000, 10_000))
    assert process.wait() == 2
    line = error_line(process.output)
    assert line.startswith("results/digits/gc/seed0/state/")
    assert "cannot be written" in line
    assert "checkpoint-" in line or "snapshots/" in line
    assert temporary_files(root) == []
    kept = [load_tensors(path)[1]["step"] for path in checkpoints(root, RUN)]
    assert len(kept) == 2
    assert f"resumes at step {kept[-1]}" in train(root, RUN)
    assert_ends_the_same(root, whole(RUN), RUN)


def test_a_checkpoint_that_cannot_be_written_is_named_and_leaves_nothing_behind(root, whole):
    (snapshot, *_), (checkpoint, *_) = snapshots(whole(RUN), RUN).values(), checkpoints(whole(RUN), RUN)
    limit = (len(snapshot) + checkpoint.stat().st_size) // 2
    process = Fork(root, "train", RUN, file_size=limit)
    assert process.wait() == 2
    line = error_line(process.output)
    assert line.startswith("results/digits/gc/seed0/state/")
    assert "checkpoint-00000005.safetensors: cannot be written" in line
    assert checkpoints(root, RUN) == []
    assert temporary_files(root) == []
    train(root, RUN)
    assert_ends_the_same(root, whole(RUN), RUN)


def test_a_metrics_line_that_cannot_be_written_is_named_and_costs_no_line_in_the_end(tmp_path, whole):
    # Without a checkpoint before the first lines.
    root = project(tmp_path / "full", checkpoint_every=STEPS // 2)
    process = Fork(root, "train", RUN, file_size=300)
    assert process.wait() == 2
    line = error_line(process.output)
    assert (state_folder(root, RUN) / "metrics.jsonl").stat().st_size == 300
    assert line.startswith("results/digits/gc/seed0/state/")
    assert "metrics.jsonl: " in line
    train(root, RUN)
    assert_same_run(root, whole(RUN), RUN)


@pytest.fixture
def small_disk(tmp_path: Path, whole: Callable[[str], Path]) -> Iterator[Path]:
    """A file system with room for two checkpoints and a bit, which only root can mount."""
    folder = tmp_path / "disk"
    folder.mkdir()
    room = int(2.7 * checkpoints(whole(RUN), RUN)[0].stat().st_size)
    command = ["mount", "-t", "tmpfs", "-o", f"size={room}", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("cannot mount a small file system here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_ends_a_run_in_one_line_and_with_room_it_goes_on_to_the_same_bits(tmp_path, whole, small_disk):
    root = project(tmp_path / "full")
    (root / "results").symlink_to(small_disk)
    result = gcflow(root, "train", RUN, check=False)
    assert result.returncode == 2
    line = error_line(result.stderr)
    assert "No space left on device" in line
    assert line.startswith("results/digits/gc/seed0/state/")
    assert temporary_files(root) == []
    assert not (run_folder(root, RUN) / "weights.safetensors").exists()
    subprocess.run(["mount", "-o", "remount,size=32m", str(small_disk)], check=True)
    assert f"resumes at step {newest(root, RUN)}" in train(root, RUN)
    assert_ends_the_same(root, whole(RUN), RUN)


def test_a_project_that_cannot_be_locked_for_want_of_space_says_so_in_one_line(root):
    result = gcflow(root, "train", RUN, check=False, preexec=lambda: limit_file_size(10))
    assert result.returncode == 2
    assert error_line(result.stderr).startswith("results/digits/gc/seed0/state: cannot be locked (")
    assert weights(root, "digits/denoiser/0")
    with pytest.raises(Preempted):
        train_here(root, RUN, minutes=0)
