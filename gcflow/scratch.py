"""Prepared data beside the processes that read them: one copy per node on its local disk, made by the first of them.

A copy is as trustworthy as the original, since it has the original's manifest and is loaded as the original is: with
its hashes compared. What cannot be copied is read where it lies.
"""

import errno
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

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
    digest = _samples_digest(folder)
    if scratch is None or digest is None:
        return load_dataset(folder)
    copy = scratch / f"{folder.name}-{digest[:16]}"
    try:
        if copy.exists():
            with suppress(GcflowError, OSError):
                return _verified(folder, copy)
        scratch.mkdir(parents=True, exist_ok=True)
        lock = FileLock(scratch / f".{copy.name}.lock")
        while True:
            try:
                with lock.acquire(timeout=POLL_SECONDS, poll_interval=POLL_SECONDS):
                    return _made(folder, copy, say, meanwhile)
            except Timeout:
                meanwhile()
    except OSError as error:
        say(f"  warning: {folder} is not copied to {scratch} ({error.strerror or error}), but read from where it is")
    return load_dataset(folder)


def _samples_digest(folder: Path) -> str | None:
    """sha256 of the samples by the manifest; None if it says nothing that a copy could be compared with."""
    with suppress(GcflowError, OSError, KeyError, TypeError, AttributeError):
        files: dict[str, str] = read_json(folder / MANIFEST)["sha256"]
        if files["samples.npy"].isalnum() and all(Path(name).name == name for name in files):
            return files["samples.npy"]
    return None


def _verified(folder: Path, copy: Path) -> Dataset:
    if (copy / MANIFEST).read_bytes() != (folder / MANIFEST).read_bytes():
        raise GcflowError(f"{copy / MANIFEST}: not that of {folder}")
    return load_dataset(copy)


def _made(folder: Path, copy: Path, say: Callable[[str], None], meanwhile: Callable[[], None]) -> Dataset:
    """The data from their copy, which no other process makes now."""
    if copy.exists():
        try:
            # Another process may have made or mended it in between.
            return _verified(folder, copy)
        except (GcflowError, OSError) as error:
            say(f"  warning: {copy} is damaged ({str(error).partition('; ')[0]}); it is copied again")
    names = [*read_json(folder / MANIFEST)["sha256"], MANIFEST]
    needed = sum((folder / name).stat().st_size for name in names)
    free = shutil.disk_usage(copy.parent).free
    if needed > free:
        raise OSError(errno.ENOSPC, f"it takes {needed / MIB:.0f} MiB, and {free / MIB:.0f} MiB are free")
    say(f"  {folder} is copied to {copy}, {needed / MIB:.0f} MiB")
    temporary = copy.with_name(f".{copy.name}.copying")
    shutil.rmtree(temporary, ignore_errors=True)
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
