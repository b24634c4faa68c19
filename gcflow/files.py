"""Files that are either whole or absent."""

import csv
import errno
import hashlib
import json
import math
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from gcflow.errors import GcflowError, MissingFile
from gcflow.readable import one_line


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def naming(path: Path, temporary: Path | None = None) -> Iterator[None]:
    """Gives a failed write the name of its file: a full disk says neither where nor, from numpy, why.

    temporary: name under which it is written, which nobody asked for.
    """
    try:
        yield
    except OSError as error:
        if error.filename not in (None, str(temporary)):
            raise
        raise OSError(error.errno or errno.EIO, error.strerror or str(error), str(path)) from error


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that is synced and renamed to it when the block ends well, else removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}{path.suffix}")
    try:
        with naming(path, temporary):
            yield temporary
            _sync(temporary)
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    with naming(path.parent):
        _sync(path.parent)


def remove_temporaries(folder: Path) -> None:
    """Removes what processes that were killed inside `atomic_path` left in a folder that nobody else writes to now."""
    for path in folder.glob(".*"):
        name = path.name.removesuffix(path.suffix)
        if path.is_file() and name.rpartition(".")[2].isdecimal():
            path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a text file atomically, as UTF-8."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, document: Any) -> None:
    """Writes a JSON file atomically, indented, keys in the given order."""
    write_text(path, json.dumps(document, indent=2) + "\n")


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    """Writes rows, all with the columns of the first, with ten digits of each number; nothing for None and nan."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(rows[0])
        writer.writerows([_cell(value) for value in row.values()] for row in rows)


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.10g}"
    return value


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
        MissingFile: it is not there.
        GcflowError: it is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MissingFile(path) from None
    except ValueError as error:
        raise GcflowError(f"{path}: not valid JSON ({error}); delete it to make it again") from None


@contextmanager
def expected_form(path: Path, made_by: str = "its stage") -> Iterator[None]:
    """Turns what a file of another form leads to into an error that names it, and what writes it."""
    try:
        yield
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, EOFError) as error:
        problem = one_line(f"{type(error).__name__}: {error}")
        raise GcflowError(f"{path}: not what {made_by} writes ({problem}); make it again") from None


@contextmanager
def json_document(path: Path) -> Iterator[Any]:
    """The content of a JSON file, for a block in which another form of it is an error that names it.

    Raises:
        MissingFile: it is not there.
        GcflowError: it is not JSON.
    """
    document = read_json(path)
    with expected_form(path):
        yield document


@contextmanager
def opened_tensors(path: Path, framework: str) -> Iterator[Any]:
    """A safetensors file, open for reading; `framework` is `pt` or `np` (which does without torch).

    Raises:
        MissingFile: it is not there.
        GcflowError: it is damaged.
    """
    try:
        with safe_open(path, framework=framework) as file:
            yield file
    except FileNotFoundError:
        raise MissingFile(path) from None
    except (SafetensorError, ValueError, RecursionError, OSError) as error:
        raise GcflowError(f"{path}: not a readable safetensors file ({error}); make or fetch it again") from None


def tensors_metadata(file: Any) -> dict[str, Any]:
    """The metadata in the header of an open safetensors file of ours; empty if it is not ours."""
    document = json.loads((file.metadata() or {}).get("gcflow", "{}"))
    return document if isinstance(document, dict) else {}


def read_header(path: Path) -> dict[str, Any]:
    """The header of a safetensors file of ours, without its tensors; empty if it is not ours.

    Raises:
        GcflowError: the file is missing or damaged.
    """
    with opened_tensors(path, "np") as file:
        return tensors_metadata(file)


def tensors_header(path: Path) -> dict[str, Any]:
    """The same; also empty if the file is damaged or missing."""
    try:
        return read_header(path)
    except GcflowError:
        return {}


def clock_of(folder: Path) -> float:
    """The time by the clock that dates the files in a folder, of a server perhaps, in seconds since the epoch."""
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".clock.") as probe:
        os.utime(probe.name)
        return os.stat(probe.name).st_mtime


def refuse_times_ahead(inputs: Iterable[Path], folder: Path) -> None:
    """Refuses files from the future: Snakemake takes what is made of them now for older, and throws it away.

    folder: in which something is to be made.

    Raises:
        GcflowError: a file is more than a minute ahead.
    """
    now = clock_of(folder)
    for path in inputs:
        ahead = max(path.stat().st_mtime, path.lstat().st_mtime) - now
        if ahead > 60:
            cure = f"set the clocks right, or give it the present time: touch {path} && touch -h {path}"
            raise GcflowError(f"{path}: its time is {ahead / 60:.0f} minutes ahead of the clock here; {cure}")


def sha256_of(path: Path) -> str:
    """sha256 (hex) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
