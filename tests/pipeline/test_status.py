"""`gcflow status`: how far runs are, told from their files while real processes train, die and are stopped."""

import fcntl
import json
import os
import pty
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from projects import (
    ROOT,
    SCRIPT,
    Fork,
    checkpoints,
    contents,
    environment,
    error_line,
    gcflow,
    prepare_data,
    run_folder,
    state_folder,
    tiny_params,
    train_here,
    wait_until,
    write_project,
)

from gcflow.errors import Preempted
from gcflow.files import tensors_header
from gcflow.pipeline.graph import Graph
from gcflow.pipeline.lock import Holder
from gcflow.pipeline.params import Params
from gcflow.tools import status
from gcflow.tools.status import Standing, Survey, show, table

RUN = "digits/ic/0"
ENDLESS = 1_000_000


def project(folder: Path, **training: Any) -> Path:
    """A project with prepared digits; `training` changes that block of iCT-IC."""
    params = tiny_params()
    methods = params["datasets"]["digits"]["methods"]
    methods["ic"]["training"] = training
    methods["gc-frozen"]["predictor"]["step"] = training.get("snapshot_every", 20)
    return prepare_data(write_project(folder, params), "digits")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return project(tmp_path / "project")


@pytest.fixture
def endless(tmp_path: Path) -> Path:
    """A project whose runs outlast every test."""
    return project(tmp_path / "endless", steps=ENDLESS, snapshot_every=ENDLESS)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with one run to its end."""
    root = project(tmp_path_factory.mktemp("trained") / "project")
    train_here(root, RUN)
    return root


@pytest.fixture
def done(trained: Path, tmp_path: Path) -> Path:
    """A copy of it, to change."""
    return Path(shutil.copytree(trained, tmp_path / "done"))


def standings(root: Path, target: str = "all", scale: str = "all") -> dict[str, Standing]:
    found = Survey(Params(root / "params.yaml"), target, scale).standings()
    return {standing.run: standing for standing in found}


def standing(root: Path, run: str = RUN) -> Standing:
    return standings(root, run)[run]


def ending(root: Path, run: str = RUN) -> dict[str, Any]:
    """How the run's last job says that it ended."""
    document: dict[str, Any] = json.loads((run_folder(root, run) / "state" / "end.json").read_text())
    return document


def logged(root: Path, run: str = RUN) -> bool:
    return any(path.stat().st_size for path in run_folder(root, run).glob("state/*/metrics.jsonl"))


def of_another_machine(root: Path, silence: float, run: str = RUN, **changes: Any) -> Path:
    """Makes the run's lock that of a process on node7, last heard of so long ago."""
    folder = run_folder(root, run) / "state"
    folder.mkdir(parents=True, exist_ok=True)
    for old in (*folder.glob("lock.*"), *folder.glob("end.json")):
        old.unlink()
    path = folder / "lock.00000002"
    holder = replace(Holder.here(), host="node7", pid=123, job="4711", since="2026-01-01T00:00:00+00:00")
    path.write_text(json.dumps(asdict(replace(holder, **changes))))
    os.utime(path, (time.time() - silence,) * 2)
    return path


# Real processes.


def test_a_live_run_is_shown_with_its_step_speed_and_process(endless):
    process = Fork(endless, "train", RUN, env={"SLURM_JOB_ID": "4711"})
    try:
        wait_until(lambda: logged(endless) and standing(endless).images_per_second)
        found = standing(endless)
        assert found.state == "running"
        assert (found.host, found.pid, found.slurm_job) == (socket.gethostname(), process.pid, "4711")
        assert 0 < found.step < found.steps == ENDLESS
        left = (ENDLESS - found.step) * 16 / found.images_per_second
        assert found.seconds_left == pytest.approx(left)
        assert (found.attempt, found.finished) == (1, False)
        before = found.step
        wait_until(lambda: standing(endless).step > before)
        shown = gcflow(endless, "status", RUN).stdout
        assert f"{socket.gethostname()}, Slurm job 4711, process {process.pid}" in shown
    finally:
        process.process.kill()
        process.wait()


def test_a_killed_run_goes_on_from_its_checkpoint_and_then_runs_again(endless):
    process = Fork(endless, "train", RUN)
    wait_until(lambda: len(checkpoints(endless, RUN)) == 2)
    process.send(signal.SIGKILL)
    process.wait()
    found = standing(endless)
    assert found.state == "interrupted"
    assert f"checkpoint-{found.step:08d}.safetensors" == checkpoints(endless, RUN)[-1].name
    assert found.pid == process.pid
    assert found.images_per_second is None
    assert "ended without a word, last heard of 0:00:" in gcflow(endless, "status", RUN).stdout

    again = Fork(endless, "train", RUN)
    try:
        wait_until(lambda: standing(endless).state == "running" and standing(endless).step > found.step)
        wait_until(lambda: standing(endless).images_per_second is not None)
        assert standing(endless).attempt == 2
        assert "attempt 2" in gcflow(endless, "status", RUN).stdout
    finally:
        again.process.kill()
        again.wait()


def test_a_run_killed_before_its_first_checkpoint_is_interrupted_at_step_0(root):
    of_another_machine(root, silence=1000.0)
    found = standing(root)
    assert (found.state, found.step, found.host) == ("interrupted", 0, "node7")


def test_a_stopped_run_is_interrupted_and_says_why_and_a_refused_job_beside_it_says_nothing(endless):
    job = Fork(endless, "train", RUN)
    wait_until(lambda: logged(endless))
    refused = gcflow(endless, "train", RUN, check=False)
    assert "already being trained" in error_line(refused.stderr)
    assert not (run_folder(endless, RUN) / "state" / "end.json").exists()
    job.send(signal.SIGTERM)
    assert job.wait() == 75
    found, end = standing(endless), ending(endless)
    assert found.state == "interrupted"
    assert found.detail == f"stopped by SIGTERM; saved at step {found.step} of {ENDLESS}"
    assert found.host is None
    assert (end["job"], end["state"], end["exit_code"]) == ("train", "interrupted", 75)
    assert end["error"] == f"{RUN}: {found.detail}" == error_line(job.output)


def test_a_failed_run_shows_its_error_until_it_runs_again_or_has_other_parameters(tmp_path):
    root = project(tmp_path / "diverging", learning_rate=1.0e15, gradient_clip=None)
    failed = gcflow(root, "train", RUN, check=False)
    found, end = standing(root), ending(root)
    assert (found.state, end["state"]) == ("failed", "failed")
    assert end["exit_code"] == failed.returncode == 3
    assert end["error"] == f"{RUN}: {found.detail}" == error_line(failed.stderr)
    assert found.detail in gcflow(root, "status").stdout
    project(root)
    assert (standing(root).state, standing(root).detail) == ("waiting", "")
    train_here(root, RUN)
    assert standing(root).state == "done"


def test_a_run_that_fails_before_it_has_a_lock_is_failed(root):
    assert gcflow(root, "train", "digits/cd/0", check=False).returncode == 2
    found = standings(root)["digits/cd/0"]
    assert found.state == "failed"
    assert found.detail.endswith("run gcflow train digits/denoiser/0 first")
    assert found.attempt == 0


def test_an_error_that_is_nobodys_fault_is_recorded_with_its_kind(root, monkeypatch):
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("CUDA error\nfar away")

    monkeypatch.setattr("gcflow.pipeline.train.initial_state", broken)
    with pytest.raises(RuntimeError):
        train_here(root, RUN)
    assert (standing(root).state, standing(root).detail) == ("failed", "RuntimeError: CUDA error far away")
    assert ending(root)["exit_code"] == 1


def test_a_run_stopped_from_the_keyboard_did_not_fail(root, monkeypatch):
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("gcflow.pipeline.train.initial_state", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_here(root, RUN)
    assert (standing(root).state, standing(root).detail) == ("interrupted", "KeyboardInterrupt:")


def test_a_killed_run_says_nothing_of_how_the_job_before_it_ended(endless):
    with pytest.raises(Preempted):
        train_here(endless, RUN, minutes=0)
    assert ending(endless)["state"] == "interrupted"
    process = Fork(endless, "train", RUN)
    wait_until(lambda: logged(endless))
    process.send(signal.SIGKILL)
    process.wait()
    assert standing(endless).detail.startswith("ended without a word")


def test_a_finished_run_is_done_and_evaluated_when_its_metrics_are_newer(done):
    found = standing(done)
    assert (found.state, found.step, found.finished) == ("done", 40, False)
    assert standings(done, "train@digits-ic-0")[RUN].finished
    metrics = run_folder(done, RUN) / "evaluation" / "metrics.json"
    metrics.parent.mkdir()
    metrics.write_text("[]")
    found = standing(done)
    assert (found.state, found.finished) == ("evaluated", True)
    os.utime(metrics, (0, 0))
    assert standing(done).state == "done"


def test_a_failed_evaluation_is_told(done):
    assert gcflow(done, "evaluate", RUN, check=False).returncode == 2
    found = standing(done)
    assert found.state == "failed"
    assert found.detail.startswith("evaluation: results/digits/features/")
    assert found.step == 40
    assert standings(done, "train@digits-ic-0")[RUN].state == "done"


# What a run waits for, and what counts no more.


def test_a_run_waits_for_data_for_other_runs_and_for_files(tmp_path):
    params = tiny_params()
    params["datasets"]["digits"]["methods"]["ect"]["init"] = {"file": "checkpoints/edm.safetensors"}
    root = write_project(tmp_path / "project", params)
    assert standings(root)["digits/cd/0"].detail == "waits for the data of digits, digits/denoiser/0"
    prepare_data(root, "digits")
    found = standings(root)
    assert found["digits/cd/0"].detail == "waits for digits/denoiser/0"
    assert found["digits/ect/0"].detail == "waits for checkpoints/edm.safetensors"
    assert found["digits/ic/0"].detail == ""
    assert found["mixture2d/ic/0"].detail == "waits for the data of mixture2d"
    assert {standing.state for standing in found.values()} == {"waiting"}
    train_here(root, "digits/denoiser/0")
    assert standings(root)["digits/cd/0"].detail == ""


def test_a_run_of_other_parameters_is_to_be_trained_again(done):
    project(done, learning_rate=2.0e-3)
    found = standing(done)
    assert (found.state, found.step) == ("waiting", 0)
    assert found.detail == "trained with other parameters or data"


def test_a_run_of_other_data_is_to_be_trained_again(done):
    manifest = done / "data" / "digits" / "manifest.json"
    document = json.loads(manifest.read_text())
    document["sha256"]["samples.npy"] = "0" * 64
    manifest.write_text(json.dumps(document))
    assert standing(done).state == "waiting"
    manifest.unlink()
    # Trained is trained, wherever its data went.
    assert standing(done).state == "done"


def test_a_checkpoint_of_other_parameters_counts_nothing(root):
    with pytest.raises(Preempted):
        train_here(root, RUN, minutes=0)
    (path,) = checkpoints(root, RUN)
    path.rename(path.with_name("checkpoint-00000020.safetensors"))
    before = tensors_header(checkpoints(root, RUN)[0])
    assert before["config"]["training"]["learning_rate"] == 1.0e-3
    project(root, learning_rate=2.0e-3)
    assert standing(root).state == "waiting"


def test_of_two_configurations_the_running_one_is_shown(done):
    project(done, steps=ENDLESS, snapshot_every=ENDLESS)
    process = Fork(done, "train", RUN)
    try:
        wait_until(lambda: standing(done).state == "running" and standing(done).step > 40)
    finally:
        process.process.kill()
        process.wait()


# Other machines.


def test_a_process_of_another_machine_runs_until_it_was_silent_for_long(endless):
    with pytest.raises(Preempted):
        train_here(endless, RUN, minutes=0)
    of_another_machine(endless, silence=30.0)
    found = standing(endless)
    assert (found.state, found.host, found.pid, found.slurm_job) == ("running", "node7", 123, "4711")
    assert found.attempt == 2
    of_another_machine(endless, silence=1000.0)
    found = standing(endless)
    assert found.state == "interrupted"
    text = table(Survey(Params(endless / "params.yaml"), RUN, "all"), [found])
    assert "node7, Slurm job 4711, process 123; attempt 2; ended without a word, last heard of 0:16:4" in text


def metrics_of(root: Path, age: float, step: int = 500) -> None:
    record = {"step": step, "loss": 0.1, "images_per_second": 160.0, "time": time.time() - age}
    folder = run_folder(root, RUN) / "state" / "0123456789abcdef"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "jobs.json").write_text("[]")
    lines = [json.dumps(record | {"step": n, "pad": "x" * 90}) for n in (*range(100), step)]
    # The last line is being written.
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n" + lines[0][:-20])


def test_a_process_that_logs_no_more_is_told(endless):
    of_another_machine(endless, silence=5.0)
    metrics_of(endless, age=100.0)
    assert standing(endless).detail == ""
    metrics_of(endless, age=700.0)
    found = standing(endless)
    assert found.state == "running"
    assert re.fullmatch(r"no step logged for 0:11:4\d, usually every 0:00:01", found.detail)


def test_a_process_that_has_logged_nothing_yet_does_not_show_the_speed_of_the_one_before(endless):
    metrics_of(endless, age=700.0)
    began = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(time.time() - 60))
    of_another_machine(endless, silence=5.0, since=began)
    found = standing(endless)
    assert (found.step, found.images_per_second, found.seconds_left) == (500, None, None)
    assert re.fullmatch(r"begun 0:01:0\d ago, no step logged yet", found.detail)


# Damaged files.


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe\x00", b'{"config": 1}'])
def test_damaged_files_never_end_in_a_failure(done, content):
    folder = run_folder(done, RUN)
    newest = state_folder(done, RUN)
    for path in (
        folder / "config.json",
        newest / "metrics.jsonl",
        checkpoints(done, RUN)[-1],
        folder / "state" / "end.json",
    ):
        path.write_bytes(content)
    (done / "data" / "digits" / "manifest.json").write_bytes(content)
    assert standing(done).state == "waiting"
    lock = of_another_machine(done, silence=1.0)
    assert standing(done).step == 0
    lock.write_bytes(content)
    os.utime(lock, (time.time(),) * 2)
    assert standing(done).state == "running"
    assert gcflow(done, "status").returncode == 0


def test_looking_changes_no_file_and_no_lease(done):
    lock = of_another_machine(done, silence=1000.0)
    before = contents(done), lock.stat().st_mtime, lock.stat().st_ctime
    gcflow(done, "status")
    assert (contents(done), lock.stat().st_mtime, lock.stat().st_ctime) == before


# Targets.


@pytest.mark.parametrize("target", ["all", "table1", "digits", "mixture2d", "digits/cd/0", "table-digits-table1"])
def test_a_target_means_the_runs_that_its_plan_has(root, target):
    graph = Graph(Params(root / "params.yaml"), "embedded")
    jobs = [graph.jobs[name] for name in graph.target(target)]
    assert list(standings(root, target, "embedded")) == [job.run.name for job in jobs if job.kind == "train"]


def test_a_run_is_shown_after_those_that_it_needs(root):
    assert list(standings(root, "digits/cd/0")) == ["digits/denoiser/0", "digits/cd/0"]
    # Which the target does not want to be measured.
    with_needed = standings(root, "digits/cd/0")
    assert not any(standing.finished for standing in with_needed.values())


@pytest.mark.parametrize(
    ("target", "named"),
    [("tabel1", "views table1"), ("digits/ic/9", "known: 0, 1"), ("digits/nothing/0", "known: ic, gc")],
)
def test_an_unknown_target_is_refused_with_what_is_known(root, target, named):
    result = gcflow(root, "status", target, check=False)
    assert result.returncode == 2
    assert named in error_line(result.stderr)


def test_the_repositorys_own_grid_is_shown_at_every_scale():
    params = Params(ROOT / "params.yaml")
    runs = [run.name for run in params.runs()]
    found = Survey(params, "all", "all").standings()
    assert sorted(standing.run for standing in found) == sorted(runs)


# The command.


def test_a_pipe_gets_a_whole_table_without_colours(done):
    text = gcflow(done, "status", env={"COLUMNS": "20"}).stdout
    first, blank, header, *rows = text.splitlines()
    assert first == "everything at scale embedded: 9 runs, 8 waiting, 1 done"
    assert blank == ""
    assert header.split() == ["run", "state", "step", "images/s", "left"]
    assert len(rows) == 9
    assert "\x1b" not in text
    assert len({row.index(" done ") if " done " in row else row.index(" waiting ") for row in rows}) == 1


def test_json_says_everything(done):
    document = json.loads(gcflow(done, "status", "digits", "--json").stdout)
    assert (document["target"], document["scale"]) == ("digits", "embedded")
    by_run = {run["run"]: Standing(**run) for run in document["runs"]}
    assert by_run == standings(done, "digits")


def test_watching_as_json_is_refused(root):
    result = gcflow(root, "status", "--watch", "--json", check=False)
    assert result.returncode == 2
    assert "give one of them" in error_line(result.stderr)


def test_watching_draws_again_what_changed(root, monkeypatch, capsys):
    survey = Survey(Params(root / "params.yaml"), "train@digits-ic-0", "all")

    def sleep(seconds: float) -> None:
        train_here(root, RUN)

    monkeypatch.setattr(status, "time", SimpleNamespace(sleep=sleep, time=time.time))
    show(survey, watch=True)
    summaries = [line for line in capsys.readouterr().out.splitlines() if line.startswith("train@digits")]
    assert [line.partition(": ")[2] for line in summaries] == ["1 run, 1 waiting", "1 run, 1 done"]


def test_watching_ends_well_with_control_c(root):
    # A shell that starts jobs in the background has them ignore it.
    begin = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    command = [sys.executable, "-c", f"{begin}; from gcflow.cli import main; main(['status', '--watch'])"]
    shown = subprocess.Popen(
        command,
        cwd=root,
        env=environment({"PYTHONUNBUFFERED": "1"}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert shown.stdout is not None
    assert "9 runs" in shown.stdout.readline()
    time.sleep(0.5)
    shown.send_signal(signal.SIGINT)
    _, errors = shown.communicate(timeout=60)
    assert (shown.returncode, errors) == (0, "")


def on_a_terminal(root: Path, columns: int, lines: int, *args: str) -> str:
    """What `gcflow status` writes to a terminal of this size."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    without = {key: value for key, value in environment().items() if key not in ("COLUMNS", "LINES")}
    command = [sys.executable, str(SCRIPT), "status", *args]
    process = subprocess.Popen(command, cwd=root, env=without | {"TERM": "xterm"}, stdout=theirs)
    os.close(theirs)
    parts = []
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:
            break
        if not part:
            break
        parts.append(part)
    os.close(ours)
    assert process.wait() == 0
    return b"".join(parts).decode().replace("\r\n", "\n")


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*[mHJ]", "", text)


def test_a_terminal_gets_colours_and_no_line_that_is_too_long(done):
    wide, narrow = on_a_terminal(done, 120, 40), on_a_terminal(done, 30, 40)
    assert "\x1b[32mdone" in wide
    assert max(map(len, plain(wide).splitlines())) <= 120
    assert len(plain(wide).splitlines()) == 3 + 9
    assert max(map(len, plain(narrow).splitlines())) <= 30


def test_a_watched_terminal_is_drawn_again_from_its_top(done):
    text = on_a_terminal(done, 100, 40, "train@digits-ic-0", "--watch")
    assert text.startswith("\x1b[2J\x1b[1;1H")
    assert "1 run, 1 done" in plain(text)


def some(count: int) -> list[Standing]:
    states = ("evaluated", "done", "running", "interrupted", "failed", "waiting")
    return [
        Standing(
            f"imagenet32/gc-frozen-weak/{n}",
            states[n % 6],
            1000 * n,
            400_000,
            images_per_second=5123.4 if n % 6 == 2 else None,
            seconds_left=123_456.0 if n % 6 == 2 else None,
            host="node7" if n % 6 == 2 else None,
            pid=123,
            detail="loss is nan by step 17; lower training.learning_rate" if n % 6 == 4 else "",
        )
        for n in range(count)
    ]


@pytest.mark.parametrize("columns", [10, 25, 40, 60, 80, 100, 120, 200])
@pytest.mark.parametrize("lines", [8, 24, None])
def test_any_terminal_is_large_enough(root, columns, lines):
    survey = Survey(Params(root / "params.yaml"), "digits", "all")
    shown = plain(table(survey, some(30), columns, lines)).splitlines()
    assert max(map(len, shown)) <= columns
    if lines is None:
        assert sum(line.startswith("imagenet32"[:columns]) for line in shown) == 30
    else:
        assert len(shown) < lines
        assert shown[-1].startswith("and ")
        if lines == 8 and columns >= 60:
            # Nothing but what is wrong has room.
            assert all("failed" in line or not line.startswith("imagenet32") for line in shown)
