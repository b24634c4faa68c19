"""The lock of a run's folder, held by one process of all machines that share the file system.

Lock files are numbered, and who created the highest one holds the lock. Numbers only grow: a released lock stays as a
file whose time is 0. Were it deleted, a slow process could take a number a second time and throw out the new holder.

Not flufl.lock: it breaks a dead holder's lock by deleting the file, so that of two processes that found it dead the
slower one deletes the lock of the faster (in the test of many processes two were inside), and it compares local clocks.
"""

import json
import os
import re
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from gcflow.errors import GcflowError
from gcflow.files import clock_of
from gcflow.pipeline.progress import say

HEARTBEAT_SECONDS = 15.0
STALE_SECONDS = 120.0
POLL_SECONDS = 2.0


@dataclass(frozen=True)
class Holder:
    """A process that holds a lock, as its lock file describes it."""

    host: str
    pid: int
    boot_id: str | None = None
    namespace: str | None = None
    started: int | None = None
    job: str | None = None
    since: str = ""
    token: str = ""

    @classmethod
    def here(cls) -> Self:
        """This process, with a new token, so that no two lock files are equal."""
        boot_id = namespace = None
        with suppress(OSError):
            boot_id = Path("/proc/sys/kernel/random/boot_id").read_text("utf-8").strip()
            # Containers may share host name and boot, yet not the numbers of their processes.
            namespace = os.readlink("/proc/self/ns/pid")
        since = datetime.now(UTC).isoformat(timespec="seconds")
        job, token = os.environ.get("SLURM_JOB_ID"), os.urandom(8).hex()
        return cls(socket.gethostname(), os.getpid(), boot_id, namespace, _started(os.getpid()), job, since, token)

    @classmethod
    def read(cls, path: Path) -> Self:
        """The holder that a lock file names: process 0 of no host if it is half-written or unreadable.

        Raises:
            FileNotFoundError: there is no such file.
        """
        with suppress(ValueError, TypeError, PermissionError):
            return cls(**json.loads(path.read_bytes()))
        return cls("", 0)

    def __str__(self) -> str:
        job = f" (Slurm job {self.job})" if self.job else ""
        return f"process {self.pid} on {self.host}{job}" if self.host else "an unknown process"

    def dead(self, silence: float, stale: float) -> bool:
        """Whether it can no longer run, told by the process where it can be seen, else by `silence` beyond `stale`."""
        here = Holder.here()
        if self.host != here.host:
            return silence > stale
        if self.boot_id != here.boot_id:
            return True
        return silence > stale if self.namespace != here.namespace else not _runs(self.pid, self.started)


def _started(pid: int) -> int | None:
    """When a process began, in ticks since boot: 0 for one that has ended, None where this cannot be seen."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b") ")[2].split()
    except OSError:
        return None
    return 0 if state in {b"Z", b"X"} else int(fields[18])


def _runs(pid: int, started: int | None) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return started is None or _started(pid) in {None, started}


class Lease(NamedTuple):
    """The newest lock of a run as others see it.

    attempt: how often the lock was taken. released: whether the holder gave it back. held: whether it may still run.
    silence: seconds since its last sign of life. changed: when the file last was, in seconds since the epoch.
    """

    holder: Holder
    attempt: int
    released: bool
    held: bool
    silence: float
    changed: float


def newest_lease(folder: Path, stale: float = STALE_SECONDS) -> Lease | None:
    """Who holds or last held the lock of a folder, without touching it; None if nobody ever did."""
    while folder.is_dir() and (numbers := _numbers(folder)):
        path = _path(folder, numbers[-1])
        # Taken over, and removed, since the listing.
        with suppress(FileNotFoundError):
            holder, found = Holder.read(path), path.stat()
            silence, released = max(0.0, time.time() - found.st_mtime), found.st_mtime == 0
            held = not released and not holder.dead(silence, stale)
            return Lease(holder, numbers[-1], released, held, silence, found.st_ctime)
    return None


def _path(folder: Path, number: int) -> Path:
    return folder / f"lock.{number:08d}"


def _numbers(folder: Path) -> list[int]:
    found = (re.fullmatch(r"lock\.(\d{8,})", name) for name in os.listdir(folder))
    return sorted(int(match[1]) for match in found if match)


class RunLock:
    """Keeps every other process out of a run while its block runs.

    A holder that died is followed at once on its own machine, elsewhere when its lock file was not renewed for `stale`
    seconds. One that was only suspended for so long is told by `require`. A `RunLock` is used once.

    Args:
        folder: where the lock files lie; made if it is missing.
        name: the run, for messages.
        wait: wait for the holder instead of failing.
        meanwhile: called now and then while waiting; what it raises ends the waiting.
        heartbeat: seconds between renewals.
        stale: seconds without renewal after which the holder on another machine counts as dead.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        wait: bool = False,
        meanwhile: Callable[[], None] = lambda: None,
        heartbeat: float = HEARTBEAT_SECONDS,
        stale: float = STALE_SECONDS,
    ) -> None:
        self.folder, self.name = folder, name
        self.wait, self.heartbeat, self.stale = wait, heartbeat, stale
        self.meanwhile = meanwhile
        self.number = 0
        self.text = ""
        self.lost = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name=f"lock of {name}", daemon=True)

    def __enter__(self) -> Self:
        """Takes the lock.

        Raises:
            GcflowError: another process holds it and `wait` is false, or the folder cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            told = False
            while busy := self._take():
                holder, silence = busy
                if not self.wait:
                    raise GcflowError(
                        f"{self.name}: already being trained by {holder}, last heard of {max(silence, 0):.0f} s ago; "
                        "give --wait, or stop it"
                    )
                if not told:
                    say(f"{self.name}: waits for {holder}")
                told = True
                self.meanwhile()
                # Jitter not from `random`, whose state may be seeded and is the run's.
                time.sleep(POLL_SECONDS * (0.75 + os.urandom(1)[0] / 512))
            self._thread.start()
        except BaseException as error:
            self._release()
            if isinstance(error, OSError):
                reason = f"{self.folder}: cannot be locked ({error.strerror})"
                raise GcflowError(f"{reason}; make it writable or free space, then again") from None
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Gives the lock back, unless it was lost."""
        self._ended.set()
        # First, lest a last renewal undo the release.
        self._thread.join()
        self._release()

    def require(self) -> None:
        """Makes sure that the lock is still held; to be called before every write.

        Raises:
            GcflowError: another process took it over, or it cannot be told.
        """
        try:
            self._renew()
            if self.lost:
                numbers = _numbers(self.folder)
                fate = f"taken over by {Holder.read(_path(self.folder, numbers[-1]))}" if numbers else "removed"
                raise GcflowError(f"{self.name}: the lock was {fate}; this process stops without writing")
        except OSError as error:
            raise GcflowError(f"{self.folder}: its lock cannot be checked ({error.strerror})") from None

    def _held(self) -> bool:
        # The text too: a folder that was deleted and made again counts from 1 again.
        path = _path(self.folder, self.number)
        return _numbers(self.folder)[-1:] == [self.number] and path.read_bytes() == self.text.encode()

    def _take(self) -> tuple[Holder, float] | None:
        """Takes the lock; if it is held, the holder and the seconds since its last sign of life."""
        while True:
            # By the clock that also dates the heartbeats, and before the listing: a change to the folder makes an NFS
            # client look at it anew.
            now, numbers = clock_of(self.folder), _numbers(self.folder)
            if numbers:
                last = _path(self.folder, numbers[-1])
                try:
                    holder, seen = Holder.read(last), last.stat().st_mtime
                except FileNotFoundError:
                    continue
                if seen != 0 and not holder.dead(now - seen, self.stale):
                    return holder, now - seen
            self.number, self.text = (numbers[-1] if numbers else 0) + 1, json.dumps(asdict(Holder.here()))
            if self._create():
                for number in numbers:
                    with suppress(OSError):
                        _path(self.folder, number).unlink()
                return None

    def _create(self) -> bool:
        """Makes the lock file, unless the lock is another's by now."""
        path = _path(self.folder, self.number)
        try:
            file = path.open("x", encoding="utf-8")
        except FileExistsError:
            return False
        try:
            with file:
                file.write(self.text)
                file.flush()
                os.fsync(file.fileno())
            with suppress(FileNotFoundError):
                os.utime(path)
                if self._held():
                    return True
        except OSError:
            path.unlink(missing_ok=True)
            raise
        path.unlink(missing_ok=True)
        return False

    def _renew(self) -> None:
        """Renews the lock file, or notices that the lock was lost."""
        try:
            # Asks an NFS server, where the listing alone may be a minute old.
            os.utime(_path(self.folder, self.number))
            if not self._held():
                self.lost = True
        except FileNotFoundError:
            self.lost = True

    def _beat(self) -> None:
        while not self.lost and not self._ended.wait(self.heartbeat):
            with suppress(OSError):
                self._renew()

    def _release(self) -> None:
        self._ended.set()
        # Best effort: a lock that cannot be marked as free is one of a process that is gone.
        with suppress(OSError):
            if not self.lost and self._held():
                os.utime(_path(self.folder, self.number), (0, 0))
