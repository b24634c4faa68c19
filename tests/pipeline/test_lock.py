import errno
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from projects import environment, limit_file_size

from gcflow.errors import GcflowError
from gcflow.pipeline.lock import Holder, RunLock

RUN = "digits/ic/0"
PATIENCE = 30.0
OPENING = """
import json, os, signal, socket, sys
from pathlib import Path
from gcflow.errors import GcflowError
from gcflow.pipeline import lock
folder, host, options = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
# A shell that starts jobs in the background has them ignore it.
signal.signal(signal.SIGINT, signal.default_int_handler)
lock.POLL_SECONDS = 0.02
if host:
    socket.gethostname = lambda: host
"""
# Takes the lock, says so, and answers every line: `leave`, or anything for `require`.
HOLD = """
try:
    with lock.RunLock(folder, "digits/ic/0", **options) as held:
        print("in", flush=True)
        for line in sys.stdin:
            if line.strip() == "leave":
                break
            try:
                held.require()
                print("held", flush=True)
            except GcflowError as error:
                print(error, flush=True)
except GcflowError as error:
    sys.exit(str(error))
"""
# Enters again and again, alone or not at all, and at last dies inside.
RACE = """
print("ready", flush=True)
sys.stdin.readline()
inside = folder / "inside"
rounds = options.pop("rounds")
for n in range(rounds):
    with lock.RunLock(folder, "digits/ic/0", wait=True, **options) as held:
        os.close(os.open(inside, os.O_CREAT | os.O_EXCL))
        held.require()
        with (folder / "entries").open("a") as file:
            file.write(f"{os.getpid()}\\n")
        inside.unlink()
        if n == rounds - 1 and not host:
            os.kill(os.getpid(), signal.SIGKILL)
"""


class Process:
    """A process that runs a script on the lock of `folder`, on the machine `host` if one is named."""

    def __init__(self, script: str, folder: Path, host: str = "", env: dict[str, str] | None = None, **options: Any):
        command = [sys.executable, "-c", OPENING + script, str(folder), host, json.dumps(options)]
        pipe = subprocess.PIPE
        self.popen = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment(env))
        self.pid = self.popen.pid

    def hears(self) -> str:
        return self.popen.stdout.readline().strip()

    def ask(self, line: str = "require") -> str:
        self.popen.stdin.write(f"{line}\n")
        self.popen.stdin.flush()
        return self.hears()

    def ends(self, line: str = "") -> tuple[int, str]:
        """Exit code and standard error."""
        error = self.popen.communicate(f"{line}\n", timeout=PATIENCE)[1]
        return self.popen.returncode, error.strip()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def hold(folder: Path) -> Iterator[Callable[..., Process]]:
    started: list[Process] = []

    def start(script: str = HOLD, **options: Any) -> Process:
        started.append(Process(script, folder, **options))
        return started[-1]

    yield start
    for process in started:
        process.popen.kill()
        process.popen.communicate()


def files(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def holder(number: int, folder: Path) -> Holder:
    return Holder.read(folder / f"lock.{number:08d}")


def left_behind(folder: Path, silence: float = 0.0, content: bytes | None = None, **changes: Any) -> Path:
    """The lock file of a process of this machine, or what `changes` make of it, last renewed so long ago."""
    folder.mkdir(exist_ok=True)
    path = folder / "lock.00000001"
    text = json.dumps(asdict(replace(Holder.here(), **changes)))
    path.write_bytes(text.encode() if content is None else content)
    os.utime(path, (time.time() - silence,) * 2)
    return path


def eventually(fact: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not fact():
        assert time.monotonic() < end
        time.sleep(0.01)


def dead_pid() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return process.pid


def refused(folder: Path, **options: Any) -> str:
    with pytest.raises(GcflowError) as caught, RunLock(folder, RUN, **options):
        pass
    return str(caught.value)


def taken(folder: Path, **options: Any) -> bool:
    with RunLock(folder, RUN, **options) as lock:
        lock.require()
    return True


def test_a_second_process_is_told_who_is_there(folder, hold):
    first = hold(env={"SLURM_JOB_ID": "77"})
    assert first.hears() == "in"
    code, error = hold().ends()
    assert code == 1
    assert re.sub(r"\d+ s ago", "3 s ago", error) == (
        f"{RUN}: already being trained by process {first.pid} on {socket.gethostname()} (Slurm job 77), "
        "last heard of 3 s ago; give --wait, or stop it"
    )
    assert first.ask() == "held"
    assert first.ends("leave") == (0, "")


def test_a_release_leaves_one_file_which_the_next_holder_replaces(folder):
    assert taken(folder)
    assert files(folder) == ["lock.00000001"]
    assert taken(folder)
    assert files(folder) == ["lock.00000002"]


def test_a_lock_is_released_by_an_exception(folder):
    with pytest.raises(ZeroDivisionError), RunLock(folder, RUN):
        raise ZeroDivisionError
    assert taken(folder)


def test_the_same_process_cannot_hold_it_twice(folder):
    with RunLock(folder, RUN) as lock:
        assert f"process {os.getpid()} on" in refused(folder)
        lock.require()


def test_who_waits_says_so_once_and_gets_it_when_the_first_leaves(folder, hold):
    first = hold()
    assert first.hears() == "in"
    second = hold(wait=True)
    said = second.popen.stderr.readline()
    assert said == f"{RUN}: waits for process {first.pid} on {socket.gethostname()}\n"
    time.sleep(0.2)
    assert first.ends("leave") == (0, "")
    assert second.hears() == "in"
    assert second.ask() == "held"
    assert second.ends("leave") == (0, "")


def test_an_interrupt_ends_the_waiting_and_harms_nobody(folder, hold):
    first = hold()
    assert first.hears() == "in"
    second = hold(wait=True)
    assert "waits for" in second.popen.stderr.readline()
    second.popen.send_signal(signal.SIGINT)
    code, error = second.ends()
    assert code == -signal.SIGINT
    assert error.endswith("KeyboardInterrupt")
    assert first.ask() == "held"
    assert files(folder) == ["lock.00000001"]


@pytest.mark.parametrize("reaped", [True, False])
def test_a_killed_holder_is_followed_at_once(folder, hold, reaped):
    first = hold()
    assert first.hears() == "in"
    first.popen.kill()
    if reaped:
        first.popen.wait()
    else:
        eventually(lambda: b") Z " in Path(f"/proc/{first.pid}/stat").read_bytes())
    assert taken(folder)


def test_a_killed_holder_is_followed_by_who_waits(folder, hold):
    first = hold()
    assert first.hears() == "in"
    second = hold(wait=True)
    assert "waits for" in second.popen.stderr.readline()
    first.popen.kill()
    assert second.hears() == "in"


def test_a_process_of_another_machine_holds_it_as_long_as_it_is_heard_of(folder):
    left_behind(folder, silence=100, host="elsewhere", pid=123)
    error = refused(folder)
    assert "already being trained by process 123 on elsewhere, last heard of 1" in error
    assert "\n" not in error


def test_a_process_of_another_machine_that_fell_silent_is_followed(folder):
    left_behind(folder, silence=130, host="elsewhere", pid=os.getpid())
    assert taken(folder)
    assert files(folder) == ["lock.00000002"]


def test_a_process_of_this_machine_that_lives_holds_it_however_silent(folder):
    left_behind(folder, silence=1e6)
    assert f"process {os.getpid()} on" in refused(folder)


def test_a_pid_that_was_given_to_another_process_is_no_holder(folder):
    left_behind(folder, started=1)
    assert taken(folder)


def test_a_process_from_before_the_boot_is_no_holder(folder):
    left_behind(folder, boot_id="another")
    assert taken(folder)


def test_a_process_of_another_container_is_told_by_its_silence(folder):
    left_behind(folder, namespace="pid:[1]", pid=dead_pid())
    assert "already being trained" in refused(folder)
    left_behind(folder, silence=130, namespace="pid:[1]", pid=dead_pid())
    assert taken(folder)


@pytest.mark.parametrize("content", [b"", b'{"host": "a", "pi', b"\xff\x00", b"[]", b"null", b"1", b'{"host": "a"}'])
def test_a_file_that_cannot_be_read_is_told_by_its_silence(folder, content):
    left_behind(folder, content=content)
    assert "already being trained by an unknown process, last heard of " in refused(folder)
    left_behind(folder, silence=130, content=content)
    assert taken(folder)


@pytest.mark.parametrize("skew", [3600, -3600])
def test_silence_is_measured_by_the_clock_of_the_file_system(folder, monkeypatch, skew):
    touch = os.utime

    def on_the_server(path: Path, times: tuple[float, float] | None = None) -> None:
        touch(path, times or (time.time() + skew,) * 2)

    monkeypatch.setattr(os, "utime", on_the_server)
    left_behind(folder, silence=60 - skew, host="elsewhere")
    assert re.search(r"last heard of [67]\d s ago", refused(folder))
    left_behind(folder, silence=130 - skew, host="elsewhere")
    assert taken(folder)


def test_a_suspended_holder_that_was_followed_finds_out_and_touches_nothing(folder, hold):
    first = hold(host="first", heartbeat=0.05, stale=0.5)
    assert first.hears() == "in"
    first.popen.send_signal(signal.SIGSTOP)
    second = hold(host="second", wait=True)
    assert "waits for" in second.popen.stderr.readline()
    third = hold(host="third", wait=True, stale=0.5)
    assert third.hears() == "in"
    first.popen.send_signal(signal.SIGCONT)
    assert first.ask() == (
        f"{RUN}: the lock was taken over by process {third.pid} on third; this process stops without writing"
    )
    assert first.ends("leave") == (0, "")
    assert third.ask() == "held"
    # The one that waits makes files of its own.
    assert [path.name for path in folder.glob("lock.*")] == ["lock.00000002"]
    assert third.ends("leave")[0] == 0
    assert second.hears() == "in"


def test_a_release_by_a_holder_that_was_followed_unawares_touches_nothing(folder):
    with RunLock(folder, RUN):
        later = folder / "lock.00000002"
        (folder / "lock.00000001").rename(later)
        before = later.stat().st_mtime_ns
    assert files(folder) == ["lock.00000002"]
    assert later.stat().st_mtime_ns == before


def test_the_heartbeat_renews_the_file(folder):
    with RunLock(folder, RUN, heartbeat=0.02):
        path = folder / "lock.00000001"
        for _ in range(2):
            os.utime(path, (1e9, 1e9))
            eventually(lambda: time.time() - path.stat().st_mtime < PATIENCE)


def test_the_heartbeat_notices_a_follower(folder):
    with RunLock(folder, RUN, heartbeat=0.02) as lock:
        (folder / "lock.00000002").write_text("")
        eventually(lambda: lock.lost)
        with pytest.raises(GcflowError, match="taken over by an unknown process"):
            lock.require()


def test_a_removed_file_is_a_lost_lock(folder):
    with RunLock(folder, RUN) as lock:
        (folder / "lock.00000001").unlink()
        with pytest.raises(GcflowError, match="the lock was removed; this process stops"):
            lock.require()
        assert lock.lost


def test_a_lock_is_lost_if_another_process_made_its_file_anew(folder):
    with RunLock(folder, RUN) as lock:
        path = left_behind(folder, host="elsewhere", pid=123)
        with pytest.raises(GcflowError, match="taken over by process 123 on elsewhere"):
            lock.require()
    assert path.stat().st_mtime > 0


def test_a_heartbeat_that_fails_is_not_the_last(folder, monkeypatch):
    touch, failures = os.utime, iter(range(3))

    def flaky(path: Path, times: tuple[float, float] | None = None) -> None:
        if next(failures, None) is not None:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        touch(path, times)

    with RunLock(folder, RUN, heartbeat=0.02) as lock:
        path = folder / "lock.00000001"
        os.utime(path, (1e9, 1e9))
        monkeypatch.setattr(os, "utime", flaky)
        eventually(lambda: time.time() - path.stat().st_mtime < PATIENCE)
        assert next(failures, None) is None
        lock.require()


def test_a_lock_that_cannot_be_checked_is_one_clear_error(folder, monkeypatch):
    with RunLock(folder, RUN) as lock, monkeypatch.context() as patch:
        patch.setattr(os, "listdir", lambda path: os.open("/nowhere/at/all", os.O_RDONLY))
        with pytest.raises(GcflowError, match=rf"^{folder}: its lock cannot be checked \(No such file"):
            lock.require()


@pytest.mark.parametrize("first", ["free", "dead", "silent"])
def test_of_many_processes_one_is_inside(folder, hold, first):
    folder.mkdir()
    if first == "dead":
        left_behind(folder, pid=dead_pid())
    if first == "silent":
        left_behind(folder, silence=1000, host="elsewhere")
    # On machines of their own they see nothing of each other but files, so there nobody may die inside.
    hosts = [f"host{n}" if first == "silent" else "" for n in range(6)]
    racers = [hold(RACE, host=host, rounds=8, heartbeat=0.01) for host in hosts]
    assert [racer.hears() for racer in racers] == ["ready"] * 6
    for racer in racers:
        racer.popen.stdin.write("\n")
        racer.popen.stdin.flush()
    expected = 0 if first == "silent" else -signal.SIGKILL
    for racer in racers:
        code, error = racer.ends()
        assert code == expected, error
        assert all("waits for" in line for line in error.splitlines()), error
    entries = (folder / "entries").read_text().split()
    assert sorted(entries) == sorted([str(racer.pid) for racer in racers] * 8)
    (last,) = [name for name in files(folder) if name != "entries"]
    assert int(last.removeprefix("lock.")) == 48 + (first != "free")


def test_a_process_that_was_slow_to_follow_disturbs_nobody(folder, monkeypatch):
    left_behind(folder, pid=dead_pid())
    create, others = RunLock._create, []

    def slow(lock: RunLock) -> bool:
        monkeypatch.setattr(RunLock, "_create", create)
        assert taken(folder)
        others.append(RunLock(folder, RUN).__enter__())
        return create(lock)

    monkeypatch.setattr(RunLock, "_create", slow)
    assert "already being trained" in refused(folder)
    assert files(folder) == ["lock.00000003"]
    others[0].require()
    others[0].__exit__(None, None, None)


def test_a_full_disk_is_one_clear_error(folder):
    command = [sys.executable, "-c", OPENING + HOLD, str(folder), "", "{}"]
    result = subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment(), preexec_fn=lambda: limit_file_size(10)
    )
    assert result.returncode == 1
    expected = f"{folder}: cannot be locked (File too large); make it writable or free space, then again\n"
    assert result.stderr == expected
    assert files(folder) == []


def test_a_folder_that_cannot_be_written_is_one_clear_error():
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o555)
        # The superuser may write everywhere.
        drop = "if os.getuid() == 0:\n    os.setuid(65534)\n"
        command = [sys.executable, "-c", OPENING + drop + HOLD, name, "", "{}"]
        result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment())
        assert result.returncode == 1
        expected = f"{name}: cannot be locked (Permission denied); make it writable or free space, then again\n"
        assert result.stderr == expected
        assert os.listdir(name) == []


def test_what_is_done_meanwhile_can_end_the_waiting(tmp_path):
    turns = []

    def meanwhile():
        turns.append(1)
        if len(turns) == 2:
            raise GcflowError("enough")

    with RunLock(tmp_path, "digits/ic/0"), pytest.raises(GcflowError, match="enough"):
        RunLock(tmp_path, "digits/ic/0", wait=True, meanwhile=meanwhile).__enter__()
    assert len(turns) == 2
