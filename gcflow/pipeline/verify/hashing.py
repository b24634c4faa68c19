"""Hashes of many files: each is read once, several at a time, and hard links of the same bytes are one file."""

import hashlib
import os
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from pathlib import Path
from threading import Lock

from gcflow.pipeline.progress import Progress
from gcflow.pipeline.verify.statements import Algorithm
from gcflow.pipeline.verify.tensors import Header, content_sha256

# Of hashlib's work the interpreter's lock is not held, so threads share the cores; more than these wait for the disk.
MOST_THREADS = 16
BLOCK = 1 << 22
MEGABYTE = 10**6
SECONDS_BETWEEN_UPDATES = 0.2

Inode = tuple[int, int]
Digests = dict[Algorithm, str]


def inode(path: Path) -> Inode:
    """What hard links of the same bytes have in common."""
    found = path.stat()
    return found.st_dev, found.st_ino


def _digests(path: Path, wanted: set[Algorithm], header: Header | None, advance: Callable[[int], None]) -> Digests:
    found: Digests = {}
    buffer = memoryview(bytearray(BLOCK))
    plain = [name for name in wanted if name != "content"]
    hashes = {name: hashlib.new(name, usedforsecurity=False) for name in plain}
    with path.open("rb", buffering=0) as file:
        while hashes and (count := file.readinto(buffer)):
            for each in hashes.values():
                each.update(buffer[:count])
            advance(count)
        found.update({name: hashes[name].hexdigest() for name in plain})
        if header is not None and "content" in wanted:
            # Its tensors stand in another order than in the file, which is in the system's memory now.
            found["content"] = content_sha256(header, file, buffer, (lambda _: advance(0)) if hashes else advance)
    return found


class Hashes:
    """Hashes of files.

    Args:
        root: what paths are relative to.
        wanted: path to the hashes of interest.
        headers: of the safetensors files among them.
    """

    def __init__(self, root: Path, wanted: Mapping[str, set[Algorithm]], headers: Mapping[str, Header]) -> None:
        self.found: dict[str, Digests] = {}
        self.unreadable: dict[str, str] = {}
        self.bytes = 0
        self._lock = Lock()
        self._read = 0
        self._stopped = False
        groups: dict[Inode, list[str]] = {}
        sizes: dict[Inode, int] = {}
        for path in wanted:
            try:
                stat = (root / path).stat()
            except OSError as error:
                self.unreadable[path] = error.strerror or str(error)
                continue
            groups.setdefault((stat.st_dev, stat.st_ino), []).append(path)
            sizes[stat.st_dev, stat.st_ino] = stat.st_size
        self.bytes = sum(sizes.values())
        total = -(-self.bytes // MEGABYTE)
        threads = min(MOST_THREADS, len(os.sched_getaffinity(0)))
        with Progress("verify", total, unit="megabyte") as progress, ThreadPoolExecutor(threads) as pool:
            jobs: dict[Future[Digests], list[str]] = {}
            # The largest first: the last file of a queue is the one that is waited for.
            for key in sorted(groups, key=lambda key: -sizes[key]):
                names = groups[key]
                header = next((headers[name] for name in names if name in headers), None)
                algorithms = set().union(*(wanted[name] for name in names))
                jobs[pool.submit(_digests, root / names[0], algorithms, header, self._advance)] = names
            open_jobs = set(jobs)
            try:
                while open_jobs:
                    done, open_jobs = wait(open_jobs, SECONDS_BETWEEN_UPDATES)
                    for job in done:
                        self._keep(job, jobs[job])
                    progress.update(min(total, self._read // MEGABYTE))
            except BaseException:
                # Ctrl-C. Python waits for its threads, each of which may have begun a file of many gigabytes.
                self._stopped = True
                pool.shutdown(wait=False, cancel_futures=True)
                raise
            progress.update(total)

    def _advance(self, count: int) -> None:
        if self._stopped:
            raise CancelledError
        with self._lock:
            self._read += count

    def _keep(self, job: "Future[Digests]", names: list[str]) -> None:
        error = job.exception()
        if isinstance(error, OSError):
            self.unreadable |= dict.fromkeys(names, error.strerror or str(error))
        else:
            self.found |= dict.fromkeys(names, job.result())
