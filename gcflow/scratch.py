"""Prepared data beside the processes that read them: one copy per node on its local disk, made by the first of them.

A copy is as trustworthy as the original, since it has the original's manifest and is loaded as the original is: with
its hashes compared. What cannot be copied is read where it lies.
"""

import errno
import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from gcflow.data import Dataset, load_dataset
from gcflow.errors import GcflowError
from gcflow.files import read_json

VARIABLE = "GCFLOW_SCRATCH"
MANIFEST = "manifest.json"
BLOCK = 1 << 24
POLL_SECONDS = 0.2
MIB = 1 << 20


def scratch_folder() -> Path | None:
    """The folder on the node's own disk that the environment names."""
    named = os.environ.get(VARIABLE)
    return Path(named) if named else None


def load_near(
    folder: Path,
    scratch: Path | None,
    say: Callable[[str], None],
    meanwhile: Callable[[], None] = lambda: None,
) -> Dataset:
    """Reads and verifies prepared data from their copy in `scratch`, which is made or mended first where it has to be.

    Copies live in `<scratch>/<data set>-<first 16 digits of the samples' sha256>`. None that this process has not
    verified is read, and none is removed when data change. Without a scratch folder, or where nothing can be written to
    it, the data are read from `folder`.

    Args:
        folder: prepared data.
        scratch: a folder on the node's own disk; made if it is missing.
        say: is told, in a line, what is copied and why something is not.
        meanwhile: called now and then while copying or waiting for another process that does; what it raises ends it.

    Raises:
        GcflowError: preparation did not finish, or an array is not the one that the manifest describes.
    """
    if scratch is None:
        return load_dataset(folder)
    files = _listed(folder)
    if files is None:
        return load_dataset(folder)
    copy = scratch / f"{folder.name}-{files['samples.npy'][:16]}"
    try:
        return _loaded(folder, [*files, MANIFEST], copy, say, meanwhile)
    except OSError as error:
        say(f"  warning: {folder} is not copied to {scratch} ({error.strerror or error}), but read from where it is")
    return load_dataset(folder)


def _listed(folder: Path) -> dict[str, str] | None:
    """File to sha256 by the manifest; None if it says nothing that a copy could be compared with."""
    try:
        manifest: Any = read_json(folder / MANIFEST)
        files: dict[str, str] = manifest["sha256"]
        plain = all(Path(name).name == name for name in files)
        return files if plain and files["samples.npy"].isalnum() else None
    except (GcflowError, OSError, KeyError, TypeError, AttributeError):
        return None


def _loaded(
    folder: Path, names: list[str], copy: Path, say: Callable[[str], None], meanwhile: Callable[[], None]
) -> Dataset:
    """The data from their copy. Copies are verified side by side and made one at a time."""
    while True:
        judged = _identity(copy)
        if judged is not None:
            try:
                return _verified(folder, copy)
            except (GcflowError, OSError) as error:
                found = str(error)
            # Another process may have mended it in between.
            if _identity(copy) == judged:
                say(f"  warning: {copy} is damaged ({found.partition('; ')[0]}); it is copied again")
        copy.parent.mkdir(parents=True, exist_ok=True)
        with _alone(copy.with_name(f".{copy.name}.lock"), meanwhile):
            for left in copy.parent.glob(f".{copy.name}.copying-*"):
                shutil.rmtree(left, ignore_errors=True)
            if _identity(copy) == judged:
                return _copied(folder, names, copy, say, meanwhile)


def _identity(copy: Path) -> tuple[int, int] | None:
    with suppress(FileNotFoundError):
        found = copy.stat()
        return found.st_ino, found.st_mtime_ns
    return None


def _verified(folder: Path, copy: Path) -> Dataset:
    if (copy / MANIFEST).read_bytes() != (folder / MANIFEST).read_bytes():
        raise GcflowError(f"{copy / MANIFEST}: not that of {folder}")
    return load_dataset(copy)


@contextmanager
def _alone(path: Path, meanwhile: Callable[[], None]) -> Iterator[None]:
    # Never removed: another process could lock the file that is gone while a third one makes a new one.
    descriptor = os.open(path, os.O_RDONLY | os.O_CREAT, 0o644)
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                meanwhile()
                time.sleep(POLL_SECONDS)
        yield
    finally:
        os.close(descriptor)


def _copied(
    folder: Path, names: list[str], copy: Path, say: Callable[[str], None], meanwhile: Callable[[], None]
) -> Dataset:
    """Makes the copy under a temporary name, verifies it and puts it in the place of what is there."""
    needed = sum((folder / name).stat().st_size for name in names)
    free = shutil.disk_usage(copy.parent).free
    if needed > free:
        raise OSError(errno.ENOSPC, f"it takes {needed / MIB:.0f} MiB, and {free / MIB:.0f} MiB are free")
    say(f"  {folder} is copied to {copy}, {needed / MIB:.0f} MiB")
    temporary = copy.with_name(f".{copy.name}.copying-{os.getpid()}")
    try:
        temporary.mkdir()
        for name in names:
            _copy_file(folder / name, temporary / name, meanwhile)
        try:
            dataset = _verified(folder, temporary)
        except GcflowError as error:
            # If the original is damaged as well, loading it says so.
            raise OSError(errno.EIO, f"the copy is not what the manifest describes: {error}") from None
        # Whoever reads the damaged one has its files open and keeps them.
        with suppress(FileNotFoundError):
            shutil.rmtree(copy)
        temporary.rename(copy)
        return dataset
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _copy_file(source: Path, target: Path, meanwhile: Callable[[], None]) -> None:
    with source.open("rb") as reading, target.open("wb") as writing:
        while block := reading.read(BLOCK):
            meanwhile()
            writing.write(block)
