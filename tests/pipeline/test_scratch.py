"""Prepared data copied to a node's own disk: once for all its jobs, whole or not at all, and to the same bits."""

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from projects import (
    Fork,
    assert_same_run,
    contents,
    error_line,
    gcflow,
    prepare_data,
    run_folder,
    tiny_params,
    train_here,
    wait_until,
    write_project,
)

from gcflow.data import load_dataset
from gcflow.errors import GcflowError, Preempted
from gcflow.files import read_json, sha256_of
from gcflow.scratch import load_near

RUN = "digits/gc/0"
FILES = ["held_out.npy", "labels.npy", "manifest.json", "samples.npy"]
# Loads data near and says from where they are mapped. Slowed down, so that others arrive in the middle.
LOAD = """
import sys, time
from pathlib import Path
from gcflow import scratch
from gcflow.errors import Preempted
from gcflow.pipeline.train import Deadline
folder, near, slow, size = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])
scratch.BLOCK, scratch.POLL_SECONDS = size, 0.01
deadline = Deadline(None)
def meanwhile():
    time.sleep(slow)
    deadline.check("{}")
try:
    data = scratch.load_near(folder, near, lambda text: print(text, flush=True), meanwhile)
except Preempted as stopped:
    sys.exit(print(stopped))
maps = Path("/proc/self/maps").read_text()
print("from", "copy" if f"{near}/" in maps else "original", int(data.samples.sum()), data.sha256, flush=True)
"""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    params = tiny_params()
    params["datasets"]["digits"]["training"]["grain"] = 8
    return prepare_data(write_project(tmp_path_factory.mktemp("scratch") / "project", params), "digits")


@pytest.fixture
def data(root: Path) -> Path:
    return root / "data" / "digits"


@pytest.fixture
def near(tmp_path: Path) -> Path:
    """A scratch folder that is not there yet."""
    return tmp_path / "disk" / "mine"


def copy_of(data: Path, near: Path) -> Path:
    return near / f"digits-{sha256_of(data / 'samples.npy')[:16]}"


def load(data: Path, near: Path | None) -> list[str]:
    """Loads the data near, checks that they are right, and returns what was said."""
    said: list[str] = []
    found, expected = load_near(data, near, said.append), load_dataset(data)
    assert found.samples.equal(expected.samples)
    assert found.labels.equal(expected.labels)
    assert found.held_out.equal(expected.held_out)
    assert found.sha256 == expected.sha256
    return said


def loading(data: Path, near: Path, slow: float = 0.0, size: int = 1 << 24, file_size: int | None = None) -> Fork:
    return Fork(data, "-c", LOAD, data, near, str(slow), str(size), file_size=file_size)


def said_by(process: Fork) -> str:
    """What a process has said that ends well."""
    assert process.wait() == 0, process.output
    return process.output


def leftovers(near: Path) -> list[str]:
    return [path.name for path in near.iterdir() if "copying" in path.name]


# The copy.


def test_a_copy_is_made_once_and_read_from_then_on(data, near):
    copy = copy_of(data, near)
    (line,) = load(data, near)
    assert line.startswith(f"  {data} is copied to {copy}, ")
    assert sorted(path.name for path in copy.iterdir()) == FILES
    assert contents(copy) == contents(data)
    before = copy.stat().st_ino
    assert load(data, near) == []
    assert copy.stat().st_ino == before
    assert leftovers(near) == []


def test_a_process_maps_the_copy_and_not_the_original(data, near):
    load(data, near)
    assert said_by(loading(data, near)).startswith("from copy ")


def test_without_a_scratch_folder_nothing_is_copied(data):
    assert load(data, None) == []


def test_only_what_the_manifest_vouches_for_is_copied(data, near):
    (data / "notes.txt").write_text("not of the data set")
    load(data, near)
    assert sorted(path.name for path in copy_of(data, near).iterdir()) == FILES


def test_other_data_of_the_same_name_get_a_copy_of_their_own(data, near):
    load(data, near)
    first = copy_of(data, near)
    content = bytearray((data / "samples.npy").read_bytes())
    content[-1] ^= 255
    (data / "samples.npy").write_bytes(content)
    manifest = read_json(data / "manifest.json")
    manifest["sha256"]["samples.npy"] = sha256_of(data / "samples.npy")
    (data / "manifest.json").write_text(json.dumps(manifest))
    load(data, near)
    assert copy_of(data, near) != first
    assert first.exists()
    assert copy_of(data, near).exists()


def test_other_labels_of_the_same_samples_are_not_taken_from_the_old_copy(data, near):
    load(data, near)
    labels = np.load(data / "labels.npy")
    np.save(data / "labels.npy", labels[::-1])
    manifest = read_json(data / "manifest.json")
    manifest["sha256"]["labels.npy"] = sha256_of(data / "labels.npy")
    (data / "manifest.json").write_text(json.dumps(manifest))
    said = load(data, near)
    assert "is damaged" in said[0]
    assert contents(copy_of(data, near)) == contents(data)


# Damage.


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(("name", "damage"), list(zip(FILES, (truncate, flip, Path.unlink, truncate), strict=True)))
def test_a_damaged_copy_is_made_again(data, near, name, damage):
    load(data, near)
    damage(copy_of(data, near) / name)
    damaged, again = load(data, near)
    assert damaged.startswith(f"  warning: {copy_of(data, near)} is damaged (")
    assert damaged.endswith("it is copied again")
    assert "is copied to" in again
    assert contents(copy_of(data, near)) == contents(data)
    assert load(data, near) == []


def test_a_copy_that_lost_its_files_is_made_again(data, near):
    copy_of(data, near).mkdir(parents=True)
    assert len(load(data, near)) == 2
    assert contents(copy_of(data, near)) == contents(data)


@pytest.mark.parametrize("name", ["samples.npy", "held_out.npy"])
def test_a_damaged_original_is_refused_as_without_a_scratch_folder_and_no_copy_stays(data, near, name):
    flip(data / name)
    said: list[str] = []
    with pytest.raises(GcflowError) as caught:
        load_near(data, near, said.append)
    with pytest.raises(GcflowError) as plain:
        load_dataset(data)
    assert str(caught.value) == str(plain.value)
    assert [path.name for path in near.iterdir() if not path.name.endswith(".lock")] == []


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"sha256": {"samples.npy": "../../x"}}', '{"sha256": {}}'])
def test_a_manifest_that_says_nothing_is_refused_as_without_a_scratch_folder(data, near, content):
    (data / "manifest.json").write_text(content)
    with pytest.raises(GcflowError) as caught:
        load_near(data, near, print)
    with pytest.raises(GcflowError) as plain:
        load_dataset(data)
    assert str(caught.value) == str(plain.value)
    assert not near.exists()


def test_a_good_copy_does_not_hide_that_an_original_was_never_finished(data, near):
    load(data, near)
    (data / "manifest.json").unlink()
    with pytest.raises(GcflowError, match="preparation did not finish"):
        load_near(data, near, print)


# No room.


def warned(said: list[str], data: Path, near: Path) -> str:
    """The reason in the one line of warning."""
    (line,) = [line for line in said if "warning" in line]
    assert line.startswith(f"  warning: {data} is not copied to {near} (")
    assert line.endswith("), but read from where it is")
    return line.partition(f"{near} (")[2].removesuffix("), but read from where it is")


@pytest.fixture
def small_disk(near: Path) -> Iterator[Path]:
    """A file system of 64 KiB, which only root can mount."""
    near.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(near)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("cannot mount a small file system here")
    yield near
    subprocess.run(["umount", str(near)], check=True)


def test_what_does_not_fit_is_not_begun(data, small_disk):
    said = load(data, small_disk)
    assert len(said) == 1
    assert warned(said, data, small_disk) == "it takes 0 MiB, and 0 MiB are free"
    assert leftovers(small_disk) == []


def test_a_disk_that_fills_up_while_copying_is_left_as_it_was(data, small_disk, monkeypatch):
    free = shutil.disk_usage(small_disk)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free._replace(free=1 << 30))
    assert warned(load(data, small_disk), data, small_disk) == "No space left on device"
    assert leftovers(small_disk) == []
    assert not copy_of(data, small_disk).exists()


def test_a_file_that_cannot_be_written_leaves_nothing_and_the_original_is_read(data, near):
    output = said_by(loading(data, near, file_size=50_000))
    assert "(File too large)" in output
    assert output.splitlines()[-1].startswith("from original ")
    assert leftovers(near) == []
    assert not copy_of(data, near).exists()


def test_a_scratch_folder_that_is_no_folder_is_warned_of(data, near):
    near.parent.mkdir()
    near.write_text("a file")
    assert warned(load(data, near), data, near) == "File exists"


# Several processes.


def test_of_several_processes_one_copies_and_the_others_wait_for_it(data, near):
    processes = [loading(data, near, 0.02, 10_000) for _ in range(3)]
    outputs = [said_by(process) for process in processes]
    assert sum("is copied to" in output for output in outputs) == 1
    assert len({output.splitlines()[-1] for output in outputs}) == 1
    assert all("from copy" in output for output in outputs)
    assert contents(copy_of(data, near)) == contents(data)


@pytest.mark.slow
def test_of_several_processes_that_find_a_damaged_copy_one_mends_it(data, near):
    load(data, near)
    flip(copy_of(data, near) / "samples.npy")
    processes = [loading(data, near, 0.02, 10_000) for _ in range(3)]
    outputs = [said_by(process) for process in processes]
    assert sum("is copied to" in output for output in outputs) == 1
    assert all("from copy" in output for output in outputs)
    assert contents(copy_of(data, near)) == contents(data)


@pytest.mark.slow
def test_when_the_copying_process_is_killed_a_waiting_one_copies_anew(data, near):
    first = loading(data, near, 0.5, 10_000)
    wait_until(lambda: near.exists() and leftovers(near))
    second = loading(data, near)
    assert second.exitcode is None
    first.send(signal.SIGKILL)
    first.wait()
    output = said_by(second)
    assert "is copied to" in output
    assert "from copy" in output
    assert leftovers(near) == []
    assert contents(copy_of(data, near)) == contents(data)


def test_a_reader_of_a_copy_that_is_replaced_keeps_its_bytes(data, near):
    load(data, near)
    held = load_near(data, near, print)
    expected = held.samples.clone()
    (copy_of(data, near) / "labels.npy").unlink()
    load(data, near)
    assert held.samples.equal(expected)


def test_what_ends_the_copying_leaves_nothing_behind(data, near):
    def stop() -> None:
        raise Preempted("asked to stop")

    with pytest.raises(Preempted, match="asked to stop"):
        load_near(data, near, print, stop)
    assert leftovers(near) == []
    assert not copy_of(data, near).exists()
    assert len(load(data, near)) == 1


# Training and evaluation.


@pytest.fixture(scope="module")
def baseline(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that read its data where they are."""
    root = Path(shutil.copytree(prepared, tmp_path_factory.mktemp("baseline") / "project"))
    train_here(root, RUN)
    return root


@pytest.mark.parametrize("share", ["0.5", "0"])
def test_a_run_that_reads_a_copy_has_the_same_bits(root, data, near, baseline, share):
    process = Fork(root, "train", RUN, "--scratch", near, "--data-share", share)
    assert process.wait() == 0, process.output
    assert process.output.count("is copied to") == 1
    assert_same_run(root, baseline, RUN)
    record = read_json(run_folder(root, RUN) / "config.json")
    assert record == read_json(run_folder(baseline, RUN) / "config.json")


def test_the_environment_names_the_folder_for_training_evaluation_and_reference(root, data, near):
    folder = {"GCFLOW_SCRATCH": str(near)}
    for args in (("train", RUN), ("features", "digits"), ("reference", "digits"), ("evaluate", RUN)):
        shutil.rmtree(near, ignore_errors=True)
        process = Fork(root, *args, env=folder)
        assert process.wait() == 0, process.output
        assert near.exists() == (args[0] != "features")
    assert "GCFLOW_SCRATCH" in gcflow(root, "train", "--help").stdout


def test_processes_that_share_a_run_share_a_copy_and_say_so_once(root, near):
    process = Fork(root, "train", RUN, "--processes", "2", "--scratch", near)
    assert process.wait() == 0, process.output
    assert process.output.count("is copied to") <= 1
    assert len([path for path in near.iterdir() if not path.name.startswith(".")]) == 1


def test_a_run_without_room_on_the_nodes_disk_warns_and_trains(root, near, baseline):
    near.parent.mkdir()
    near.write_text("a file")
    process = Fork(root, "train", RUN, "--scratch", near)
    assert process.wait() == 0
    assert process.output.count("warning: ") == 1
    assert_same_run(root, baseline, RUN)


def catches(pid: int, number: signal.Signals) -> bool:
    """Whether a process has a handler of its own for a signal."""
    mask = re.search(r"SigCgt:\s*(\w+)", Path(f"/proc/{pid}/status").read_text())
    return mask is not None and bool(int(mask[1], 16) >> (number - 1) & 1)


def test_sigterm_while_another_process_copies_ends_a_run_that_has_begun_nothing(root, data, near):
    near.mkdir(parents=True)
    with FileLock(near / f".{copy_of(data, near).name}.lock"):
        process = Fork(root, "train", RUN, "--scratch", near)
        wait_until(lambda: process.exitcode is not None or catches(process.pid, signal.SIGTERM))
        assert process.exitcode is None, process.output
        process.send(signal.SIGTERM)
        assert process.wait() == 75, process.output
    expected = f"{RUN}: stopped by SIGTERM while its data were copied; nothing was begun"
    assert error_line(process.output) == expected
    assert [path.name for path in run_folder(root, RUN).rglob("*") if path.is_file()] == ["end.json"]
    assert not copy_of(data, near).exists()


def test_sigterm_while_copying_leaves_nothing_and_the_next_process_copies_whole(data, near):
    process = loading(data, near, 0.05, 5_000)
    wait_until(lambda: near.exists() and leftovers(near))
    process.send(signal.SIGTERM)
    assert "stopped by SIGTERM" in said_by(process)
    assert leftovers(near) == []
    assert not copy_of(data, near).exists()
    load(data, near)
    assert contents(copy_of(data, near)) == contents(data)
