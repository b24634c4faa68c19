"""Arrays in the making: rows appended to .npy files, shard by shard, in a hidden folder beside their destination.

A shard counts once its rows are on the disk and its hashes in the hidden folder's state. What is whole at last is
renamed into place, the manifest after everything that it vouches for.
"""

import fcntl
import hashlib
import io
import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gcflow.archives.locators import BLOCK, named
from gcflow.errors import GcflowError
from gcflow.files import read_json, write_json

STAGING = ".preparing"
STATE = "state.json"
MANIFEST = "manifest.json"


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keeps other processes from preparing the same folder.

    Raises:
        GcflowError: another one does.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise GcflowError(f"{folder}: another process prepares this data set; wait for it") from None
        except OSError:
            # Some network file systems cannot lock a folder; there it is for the caller to start only one.
            pass
        yield
    finally:
        os.close(descriptor)


class Rows:
    """An .npy file that grows by rows. Its header, whose length does not depend on their number, is written last."""

    def __init__(self, path: Path, dtype: str, shape: tuple[int, ...]) -> None:
        self.path, self.shape = path, shape
        self.dtype = np.dtype(dtype)
        self.row_bytes = self.dtype.itemsize * math.prod(shape)
        self.rows = self.shard_start = 0
        self.hash = hashlib.sha256()
        with named(path):
            self.file = open(path, "r+b" if path.exists() else "w+b", buffering=0)  # noqa: SIM115
            self._header()

    def __enter__(self) -> "Rows":
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()

    def _write(self, content: "bytes | memoryview") -> None:
        with named(self.path):
            while len(content):
                content = content[self.file.write(content) :]

    def _header(self) -> None:
        header = io.BytesIO()
        fields = {"descr": self.dtype.str, "fortran_order": False, "shape": (self.rows, *self.shape)}
        np.lib.format.write_array_header_1_0(header, fields)
        self.start = len(header.getvalue())
        self.file.seek(0)
        self._write(header.getvalue())
        self.file.seek(self.start + self.rows * self.row_bytes)

    def holds(self, rows: int, expected: str) -> bool:
        """Whether the next rows of the file are those of a shard."""
        hashed, left = hashlib.sha256(), rows * self.row_bytes
        while left and (content := self.file.read(min(left, BLOCK))):
            hashed.update(content)
            left -= len(content)
        return left == 0 and hashed.hexdigest() == expected

    def cut(self, rows: int) -> None:
        """Forgets what follows the first `rows`."""
        self.rows = self.shard_start = rows
        end = self.start + rows * self.row_bytes
        self.file.truncate(end)
        self.file.seek(end)

    def append(self, rows: np.ndarray) -> None:
        """Writes rows at the end."""
        content = np.ascontiguousarray(rows, self.dtype).reshape(-1).view(np.uint8).data
        self._write(content)
        self.hash.update(content)
        self.rows += len(rows)

    def end_shard(self) -> tuple[int, str]:
        """Makes the rows since the last shard durable; returns their number and sha256."""
        with named(self.path):
            os.fsync(self.file.fileno())
        ended = self.rows - self.shard_start, self.hash.hexdigest()
        self.shard_start, self.hash = self.rows, hashlib.sha256()
        return ended

    def finish(self) -> None:
        """Makes the file a valid .npy."""
        self._header()
        with named(self.path):
            os.fsync(self.file.fileno())


@dataclass(frozen=True)
class Shard:
    """Finished rows. rows, sha256: per file. items: images, with those skipped. converted: images per Pillow mode."""

    items: int
    rows: dict[str, int]
    sha256: dict[str, str]
    converted: dict[str, int]
    skipped: list[str]


class Staging:
    """The hidden folder: arrays in the making, and which of their shards are finished."""

    def __init__(self, folder: Path, key: dict[str, Any]) -> None:
        """Goes on with what is there if it was made from the same files in the same way, else begins anew."""
        self.folder, self.key = folder / STAGING, key
        self.hashes: dict[str, str] = {}
        self.shards: dict[str, list[Shard]] = {}
        try:
            state = read_json(self.folder / STATE)
        except GcflowError:
            state = {}
        if isinstance(state, dict) and state.get("key") == json.loads(json.dumps(key)):
            self.hashes = state["hashes"]
            self.shards = {split: [Shard(**shard) for shard in shards] for split, shards in state["shards"].items()}
        else:
            shutil.rmtree(self.folder, ignore_errors=True)
        self.save()

    def save(self) -> None:
        """Writes the state."""
        shards = {split: [asdict(shard) for shard in shards] for split, shards in self.shards.items()}
        write_json(self.folder / STATE, {"key": self.key, "hashes": self.hashes, "shards": shards})

    def finish(self, folder: Path, manifest: dict[str, Any]) -> None:
        """Moves everything into place. Cut short, it is done again from the hidden folder's manifest."""
        write_json(self.folder / MANIFEST, manifest)
        for name in (*manifest["sha256"], MANIFEST):
            if (self.folder / name).exists():
                (self.folder / name).replace(folder / name)
        descriptor = os.open(folder, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
        shutil.rmtree(self.folder)

    def finished(self, folder: Path) -> dict[str, Any] | None:
        """The manifest of arrays that are whole but not all in place, or None."""
        if not (self.folder / MANIFEST).exists():
            return None
        manifest: dict[str, Any] = read_json(self.folder / MANIFEST)
        here = all((self.folder / name).exists() or (folder / name).exists() for name in manifest["sha256"])
        return manifest if here else None
