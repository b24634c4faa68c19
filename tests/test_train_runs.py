import json
import os
import shutil
import signal
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from projects import gcflow, limit_file_size, prepare_data, start, tiny_params, train_here, write_project

from gcflow.errors import GcflowError, Preempted
from gcflow.files import read_json, sha256_of
from gcflow.pipeline.params import Params
from gcflow.pipeline.train import RunState
from gcflow.training import initial_state, load_model, load_tensors, weights_metadata

STEPS, SNAPSHOT_EVERY, LOG_EVERY = 240, 80, 20
SNAPSHOTS = ["00000080.safetensors", "00000160.safetensors", "00000240.safetensors"]
RUN = "digits/ic/0"


def project(folder: Path, checkpoint_every: int = 80, log_every: int = LOG_EVERY, **training: Any) -> Path:
    """A project with prepared digits whose runs have 240 steps; `training` changes that block."""
    params = tiny_params()
    digits = params["datasets"]["digits"]
    digits["training"] |= {"steps": STEPS, "snapshot_every": SNAPSHOT_EVERY} | training
    digits["cadence"] = {"log_every": log_every, "checkpoint_every": checkpoint_every}
    digits["methods"]["gc-frozen"]["predictor"]["step"] = STEPS
    return prepare_data(write_project(folder, params), "digits")


def run_folder(root: Path, run: str = RUN) -> Path:
    dataset, method, seed = run.split("/")
    return root / "results" / dataset / method / f"seed{seed}"


def state_folder(root: Path, run: str = RUN) -> Path:
    (folder,) = (path for path in (run_folder(root, run) / "state").iterdir() if path.is_dir())
    return folder


def checkpoints(root: Path) -> list[Path]:
    return sorted(run_folder(root).glob("state/*/checkpoint-*.safetensors"))


def metrics(root: Path, run: str = RUN) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without what depends on the clock."""
    lines = (run_folder(root, run) / "metrics.jsonl").read_text().splitlines()
    clock = ("time", "images_per_second")
    return [{k: v for k, v in json.loads(line).items() if k not in clock} for line in lines]


def weights(root: Path, run: str = RUN) -> bytes:
    return (run_folder(root, run) / "weights.safetensors").read_bytes()


def snapshots(root: Path, run: str = RUN) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (run_folder(root, run) / "snapshots").iterdir()}


def temporary_files(root: Path) -> list[Path]:
    """Files below results/ that no complete or stopped run has."""
    known = {"config.json", "weights.safetensors", "metrics.jsonl", "lock", *SNAPSHOTS}
    files = [path for path in (root / "results").rglob("*") if path.is_file()]
    return [path for path in files if path.name not in known and not path.name.startswith("checkpoint-")]


def assert_same_run(root: Path, other: Path) -> None:
    assert weights(root) == weights(other)
    assert snapshots(root) == snapshots(other)
    assert metrics(root) == metrics(other)


def error_line(result: subprocess.CompletedProcess[str]) -> str:
    """The one line of a refusal, checked to be the only error and no traceback."""
    errors = [line for line in result.stderr.splitlines() if line.startswith("gcflow: error: ")]
    assert len(errors) == 1, result.stderr
    assert "Traceback" not in result.stderr
    return errors[0].removeprefix("gcflow: error: ")


def stopped_in_the_middle(root: Path) -> subprocess.Popen[str]:
    """A `gcflow train` that has written a checkpoint and was then frozen by SIGSTOP, before its end."""
    process = start(root, "train", RUN)
    while not checkpoints(root):
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)
    process.send_signal(signal.SIGSTOP)
    assert not (run_folder(root) / "weights.safetensors").exists()
    assert process.poll() is None
    return process


@pytest.fixture(scope="module")
def baseline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a process that nothing interrupted."""
    root = project(tmp_path_factory.mktemp("baseline") / "project")
    gcflow(root, "train", RUN)
    return root


@pytest.fixture
def finished(baseline: Path, tmp_path: Path) -> Path:
    """A copy of the baseline's project, to damage."""
    return Path(shutil.copytree(baseline, tmp_path / "finished"))


# A run that nothing interrupts.


def test_a_run_publishes_its_files_and_they_say_what_it_is(baseline):
    folder = run_folder(baseline)
    assert {path.name for path in folder.iterdir()} == {
        "config.json",
        "metrics.jsonl",
        "snapshots",
        "state",
        "weights.safetensors",
    }
    assert sorted(snapshots(baseline)) == SNAPSHOTS
    assert [record["step"] for record in metrics(baseline)] == list(range(LOG_EVERY, STEPS + 1, LOG_EVERY))
    assert temporary_files(baseline) == []
    document = read_json(folder / "config.json")
    config = Params(baseline / "params.yaml").run_config(RUN)
    assert load_model(folder / "weights.safetensors")[1] == config
    assert document["inputs"] == {"data_sha256": sha256_of(baseline / "data" / "digits" / "samples.npy")}
    for step, name in zip((80, 160, 240), SNAPSHOTS, strict=True):
        metadata = load_tensors(folder / "snapshots" / name)[1]
        assert metadata["step"] == step
        assert metadata["config_hash"] == document["config_hash"]


def test_published_files_and_state_are_the_same_bytes_on_disk(baseline):
    folder, state = run_folder(baseline), state_folder(baseline)
    for name in SNAPSHOTS:
        assert (folder / "snapshots" / name).samefile(state / "snapshots" / name)
    assert (folder / "weights.safetensors").samefile(state / "snapshots" / SNAPSHOTS[-1])
    assert (folder / "metrics.jsonl").samefile(state / "metrics.jsonl")


def test_weights_can_be_read_by_whoever_can_read_the_metrics(baseline):
    folder = run_folder(baseline)
    modes = {
        path.name: stat.S_IMODE(path.stat().st_mode)
        for path in (folder / "metrics.jsonl", folder / "weights.safetensors", *checkpoints(baseline))
    }
    assert set(modes.values()) == {modes["metrics.jsonl"]}


def test_the_last_two_checkpoints_are_kept(baseline):
    assert [path.name for path in checkpoints(baseline)] == [
        "checkpoint-00000160.safetensors",
        "checkpoint-00000240.safetensors",
    ]


# Interruptions.


def test_a_killed_run_ends_bit_identical_to_one_that_was_not(baseline, tmp_path):
    root = project(tmp_path / "killed", checkpoint_every=5)
    process = stopped_in_the_middle(root)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    project(root)
    resumed = gcflow(root, "train", RUN)
    assert "resumes at step" in resumed.stderr
    assert_same_run(root, baseline)


class Terminated(NamedTuple):
    root: Path
    second: subprocess.CompletedProcess[str]
    code: int
    output: str
    published: bool
    checkpoints: list[str]


@pytest.fixture(scope="module")
def terminated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Terminated, int]:
    """A run that met a second process in its middle and was then asked to stop by SIGTERM."""
    root = project(tmp_path_factory.mktemp("terminated") / "project", checkpoint_every=5)
    process = stopped_in_the_middle(root)
    second = gcflow(root, "train", RUN, check=False)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGCONT)
    _, output = process.communicate()
    published = (run_folder(root) / "weights.safetensors").exists()
    names = [path.name for path in checkpoints(root)]
    return Terminated(root, second, process.returncode, output, published, names), process.pid


def test_a_second_process_is_kept_out_of_a_run_and_told_who_is_in_it(terminated):
    result, pid = terminated
    line = error_line(result.second)
    assert result.second.returncode == 2
    assert line.startswith(f"{RUN}: already being trained by process {pid} on ")


def test_sigterm_saves_the_step_it_came_to_and_exits_with_75(terminated):
    result, _ = terminated
    assert result.code == 75
    (line,) = (line for line in result.output.splitlines() if line.startswith("gcflow: error: "))
    step = int(line.split("saved at step ")[1].split()[0])
    assert line == f"gcflow: error: {RUN}: stopped by SIGTERM; saved at step {step} of {STEPS}"
    assert 0 < step < STEPS
    assert result.checkpoints[-1] == f"checkpoint-{step:08d}.safetensors"
    assert not result.published


def test_a_terminated_run_resumes_bit_identical(terminated, baseline):
    result, _ = terminated
    project(result.root)
    gcflow(result.root, "train", RUN)
    assert_same_run(result.root, baseline)


def test_a_time_limit_saves_and_exits_with_75(tmp_path):
    root = project(tmp_path / "limited")
    result = gcflow(root, "train", RUN, "--time-limit", "0", check=False)
    assert result.returncode == 75
    assert error_line(result) == f"{RUN}: time limit of 0 minutes reached; saved at step 0 of {STEPS}"
    assert [path.name for path in checkpoints(root)] == ["checkpoint-00000000.safetensors"]
    assert not (run_folder(root) / "weights.safetensors").exists()


# Checkpoints that are damaged or not this run's.


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def test_a_truncated_checkpoint_is_reported_and_the_one_before_it_used(finished, baseline, capsys):
    older, newest = checkpoints(finished)
    truncate(newest)
    train_here(finished, RUN)
    said = capsys.readouterr().err
    (report,) = (line for line in said.splitlines() if str(newest) in line)
    assert "not a readable safetensors file" in report
    assert "resumes at step 160" in said
    assert_same_run(finished, baseline)
    assert load_tensors(newest)[1]["step"] == STEPS
    assert load_tensors(older)[1]["step"] == 160


def test_a_run_whose_checkpoints_are_all_damaged_begins_anew(finished, baseline, capsys):
    for path in checkpoints(finished):
        truncate(path)
    train_here(finished, RUN)
    assert "resumes" not in capsys.readouterr().err
    assert_same_run(finished, baseline)


def test_damaged_checkpoints_of_later_steps_do_not_push_out_a_new_one(tmp_path):
    root = project(tmp_path / "damaged")
    config = Params(root / "params.yaml").run_config(RUN)
    state = initial_state(config, (1, 8, 8))
    run_state = RunState(tmp_path / "state", weights_metadata(config, 0, (1, 8, 8)))
    for step in (160, 240):
        state.step = step
        run_state.save(state)
        truncate(run_state.checkpoints()[0])
    fresh = initial_state(config, (1, 8, 8))
    run_state.restore(fresh)
    assert fresh.step == 0
    fresh.step = 20
    run_state.save(fresh)
    again = initial_state(config, (1, 8, 8))
    run_state.restore(again)
    assert again.step == 20


def test_a_checkpoint_of_another_configuration_is_refused_with_the_keys_that_differ(finished, tmp_path):
    other = project(tmp_path / "other", learning_rate=2.0e-3, snapshot_every=120)
    with pytest.raises(Preempted):
        train_here(other, RUN, minutes=0)
    target = state_folder(other) / checkpoints(finished)[-1].name
    shutil.copyfile(checkpoints(finished)[-1], target)
    with pytest.raises(GcflowError) as caught:
        train_here(other, RUN)
    keys = "config.training.learning_rate, config.training.snapshot_every"
    assert str(caught.value).startswith(f"{target}: checkpoint of another configuration ({keys} differ)")
    assert caught.value.exit_code == 2
    assert target.read_bytes() == checkpoints(finished)[-1].read_bytes()
    assert not (run_folder(other) / "weights.safetensors").exists()


def test_changed_data_make_another_run_and_do_not_continue_the_old_one(finished, capsys):
    samples = finished / "data" / "digits" / "samples.npy"
    content = bytearray(samples.read_bytes())
    content[-1] ^= 255
    samples.write_bytes(content)
    manifest = read_json(samples.parent / "manifest.json")
    manifest["sha256"]["samples.npy"] = sha256_of(samples)
    (samples.parent / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(Preempted, match="saved at step 0"):
        train_here(finished, RUN, minutes=0)
    assert len([path for path in (run_folder(finished) / "state").iterdir() if path.is_dir()]) == 2


# Publishing.


def test_publishing_again_after_outputs_were_deleted_costs_no_training(finished, baseline, capsys):
    folder = run_folder(finished)
    logged = (folder / "metrics.jsonl").read_bytes()
    shutil.rmtree(folder / "snapshots")
    for name in ("weights.safetensors", "metrics.jsonl", "config.json"):
        (folder / name).unlink()
    train_here(finished, RUN)
    assert f"resumes at step {STEPS}" in capsys.readouterr().err
    assert (folder / "metrics.jsonl").read_bytes() == logged
    assert read_json(folder / "config.json") == read_json(run_folder(baseline) / "config.json")
    assert_same_run(finished, baseline)


def test_a_temporary_file_of_a_killed_process_is_not_published(finished):
    left = state_folder(finished) / "snapshots" / f".{SNAPSHOTS[0]}.4711.safetensors"
    left.write_bytes(b"half a snapshot")
    train_here(finished, RUN)
    assert sorted(snapshots(finished)) == SNAPSHOTS


def test_snapshots_of_an_earlier_configuration_do_not_stay_among_the_new_ones(finished):
    project(finished, snapshot_every=120)
    train_here(finished, RUN)
    assert sorted(snapshots(finished)) == ["00000120.safetensors", "00000240.safetensors"]


def test_restart_trains_anew_to_the_same_bits(finished, baseline):
    def times() -> list[float]:
        lines = (run_folder(finished) / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line)["time"] for line in lines]

    before = times()
    result = gcflow(finished, "train", RUN, "--restart")
    assert "resumes" not in result.stderr
    assert set(times()).isdisjoint(before)
    assert_same_run(finished, baseline)


# What goes wrong.


def test_a_loss_that_is_not_finite_exits_with_3_and_keeps_the_checkpoint_before_it(tmp_path):
    root = project(tmp_path / "diverging", checkpoint_every=1, learning_rate=1.0e30, gradient_clip=None)
    result = gcflow(root, "train", RUN, check=False)
    assert result.returncode == 3
    line = error_line(result)
    assert line.startswith(f"{RUN}: loss is ")
    assert "training.learning_rate (1e+30)" in line
    assert not (run_folder(root) / "weights.safetensors").exists()
    assert not (run_folder(root) / "config.json").exists()
    kept = checkpoints(root)
    assert kept
    failed = int(line.split("by step ")[1].split(";")[0])
    assert [load_tensors(path)[1]["step"] for path in kept] == list(range(max(1, failed - 2), failed))
    assert all(tensor.isfinite().all() for path in kept for tensor in load_tensors(path)[0].values())


def test_a_checkpoint_that_cannot_be_written_is_named_and_leaves_nothing_behind(baseline, tmp_path):
    root = project(tmp_path / "full")
    snapshot_size, checkpoint_size = len(weights(baseline)), checkpoints(baseline)[0].stat().st_size
    limit = (snapshot_size + checkpoint_size) // 2
    result = gcflow(root, "train", RUN, check=False, preexec=lambda: limit_file_size(limit))
    assert result.returncode == 2
    assert error_line(result).startswith("results/digits/ic/seed0/state/")
    assert "checkpoint-00000080.safetensors: cannot be written" in error_line(result)
    assert checkpoints(root) == []
    assert temporary_files(root) == []
    train_here(root, RUN)
    assert_same_run(root, baseline)


def test_a_metrics_line_that_cannot_be_written_is_named_and_costs_no_line_in_the_end(baseline, tmp_path):
    root = project(tmp_path / "full")
    result = gcflow(root, "train", RUN, check=False, preexec=lambda: limit_file_size(300))
    assert result.returncode == 2
    line = error_line(result)
    (state,) = (run_folder(root) / "state").glob("*/metrics.jsonl")
    assert state.stat().st_size == 300
    train_here(root, RUN)
    assert_same_run(root, baseline)
    assert line.startswith("results/digits/ic/seed0/state/")
    assert "metrics.jsonl: " in line


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB, which only root can mount."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("cannot mount a small file system here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_ends_a_run_in_one_line_and_with_room_it_goes_on_to_the_same_bits(baseline, small_disk, tmp_path):
    root = project(tmp_path / "full")
    (root / "results").symlink_to(small_disk)
    result = gcflow(root, "train", RUN, check=False)
    assert result.returncode == 2
    line = error_line(result)
    assert "No space left on device" in line
    assert line.startswith("results/digits/ic/seed0/state/")
    assert temporary_files(root) == []
    assert not (run_folder(root) / "weights.safetensors").exists()
    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
    train_here(root, RUN)
    assert_same_run(root, baseline)


# Every kind of method.


@pytest.fixture(scope="module")
def methods(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run of 40 steps of every kind of method that needs another run, or the exact denoiser."""
    params = tiny_params()
    digits = params["datasets"]["digits"]
    digits["methods"]["cd-exact"] = {"objective": "distillation", "teacher": "exact"}
    digits["runs"]["cd-exact"] = {"label": "CD, exact", "seeds": [0]}
    root = prepare_data(write_project(tmp_path_factory.mktemp("methods") / "project", params), "digits")
    for method in ("ic", "denoiser", "gc", "gc-frozen", "cd", "cd-exact"):
        train_here(root, f"digits/{method}/0")
    return root


@pytest.mark.parametrize(
    ("method", "kind", "reference"),
    [
        ("gc", "consistency", None),
        ("gc-frozen", "consistency", "digits/ic/0 at 20"),
        ("cd", "consistency", "digits/denoiser/0 at 40"),
        ("cd-exact", "consistency", None),
        ("denoiser", "denoising", None),
    ],
)
def test_every_kind_of_method_trains_and_records_the_weights_it_used(methods, method, kind, reference):
    run = f"digits/{method}/0"
    folder = run_folder(methods, run)
    model, config = load_model(folder / "weights.safetensors")
    assert model.kind == kind
    assert config == Params(methods / "params.yaml").run_config(run)
    assert sorted(snapshots(methods, run)) == ["00000020.safetensors", "00000040.safetensors"]
    assert weights(methods, run) == snapshots(methods, run)["00000040.safetensors"]
    assert [record["step"] for record in metrics(methods, run)] == [10, 20, 30, 40]
    inputs = read_json(folder / "config.json")["inputs"]
    expected = {"data_sha256": sha256_of(methods / "data" / "digits" / "samples.npy")}
    if reference is not None:
        needed, step = reference.split(" at ")
        path = run_folder(methods, needed) / "snapshots" / f"{int(step):08d}.safetensors"
        expected["reference_sha256"] = sha256_of(path)
    assert inputs == expected


def test_another_frozen_predictor_makes_another_run(methods, tmp_path):
    root = Path(shutil.copytree(methods, tmp_path / "changed"))
    folder = run_folder(root, "digits/ic/0") / "snapshots"
    before = metrics(root, "digits/gc-frozen/0")
    shutil.copyfile(folder / "00000040.safetensors", folder / "00000020.safetensors")
    train_here(root, "digits/gc-frozen/0")
    after = metrics(root, "digits/gc-frozen/0")
    assert [record["step"] for record in after] == [record["step"] for record in before]
    assert [record["loss"] for record in after] != [record["loss"] for record in before]


def test_a_run_whose_reference_is_missing_is_refused_with_the_run_to_train_first(methods, tmp_path):
    root = Path(shutil.copytree(methods, tmp_path / "missing"))
    path = run_folder(root, "digits/denoiser/0") / "snapshots" / "00000040.safetensors"
    path.unlink()
    before = weights(root, "digits/cd/0")
    with pytest.raises(GcflowError) as caught:
        train_here(root, "digits/cd/0")
    assert str(caught.value) == f"{path}: digits/cd/0 needs it; run gcflow train digits/denoiser/0 first"
    assert weights(root, "digits/cd/0") == before
