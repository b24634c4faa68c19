"""Making prepared data from a source: at once if it is small, else shard by shard, so that a cut preparation goes on.

A shard is SHARD consecutive images of a split. It lies as a file of its own in a hidden folder beside the arrays, and
counts once its notes (labels, modes, images left out) are written. The arrays are put together when all shards exist.
"""

import hashlib
import json
import os
import shutil
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import suppress
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock, Timeout

from gcflow.archives.formats import BLOCK, Item, Report, Split, image_files, shown, silent
from gcflow.archives.layouts import Archived
from gcflow.config import to_dict
from gcflow.data import described, write_array
from gcflow.download import download as fetch
from gcflow.errors import GcflowError, Transient
from gcflow.files import atomic_path, read_json, sha256_of, write_json
from gcflow.sources import SmallSource, Source

if TYPE_CHECKING:
    from gcflow.archives.decoding import Decoded

SHARD = 8192
# Images that a thread decodes in one go, and such goes in memory per thread.
CHUNK = 16
IN_FLIGHT = 4
HIDDEN = ".preparing"
SOURCE = "source.json"


def prepare(
    source: Source,
    folder: Path,
    archives: Path = Path("archives"),
    workers: int | None = None,
    skip_broken: bool = False,
    download: bool = False,
    report: Report = silent,
) -> dict[str, Any]:
    """Writes samples.npy, labels.npy, held_out.npy and, last, manifest.json to `folder`; returns the manifest.

    Interrupted, it leaves no manifest, or one whose hashes `load_dataset` finds wrong, or the old data. From archives
    a second call goes on after the last whole shard, and ends with the same bytes.

    Args:
        source: of the samples.
        folder: is made if it is missing. From archives it takes, for a while, twice the size of the arrays.
        archives: the folder in which archives are looked for.
        workers: threads that decode images; by default one per available core.
        skip_broken: leave out images that do not decode, and list them in the manifest, instead of failing.
        download: fetch a missing archive that can be downloaded by a program.
        report: called with what is done, the total (0: unknown), and which of `archives.formats.PHASES` this is.

    Raises:
        GcflowError: an archive is missing, truncated, or of another data set, or an image does not decode.
        OSError: the arrays cannot be written.
    """
    if isinstance(source, Archived):
        if download:
            _fetch_missing(source, archives, report)
        files = source.locate(archives)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(folder.with_name(f".{folder.name}.lock"), timeout=0):
                return _from_archive(source, files, folder, workers or available_cores(), skip_broken, report)
        except Timeout:
            raise Transient(f"{folder}: another process prepares this data set; wait for it") from None
    assert isinstance(source, SmallSource)
    raw = source.load()
    held_out = raw.samples[:0] if raw.held_out is None else raw.held_out
    for name, array in {"samples": raw.samples, "labels": raw.labels, "held_out": held_out}.items():
        write_array(folder / f"{name}.npy", array.shape, array.dtype, [array.tobytes()])
    manifest = {**raw.provenance, "options": to_dict(source), **described(folder)}
    write_json(folder / "manifest.json", manifest)
    return manifest


def available_cores() -> int:
    """CPU cores that this process may use, which a scheduler may have limited."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _file_key(path: Path) -> dict[str, Any]:
    """What tells a file, or a folder of images, from a changed one without reading it."""
    if not path.is_dir():
        status = path.stat()
        return {"name": path.name, "bytes": status.st_size, "changed": status.st_mtime_ns}
    listing, total = hashlib.sha256(), 0
    for name in image_files(path):
        status = (path / name).stat()
        listing.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode(errors="surrogateescape"))
        total += status.st_size
    return {"name": path.name, "bytes": total, "changed": listing.hexdigest()}


def _sha256(path: Path, total: int, md5: str | None, report: Report) -> str:
    """sha256 of an archive, whose md5 is checked if it is known; of a folder, that of what `sha256sum` prints."""
    if path.is_dir():
        listing, done = hashlib.sha256(), 0
        for name in image_files(path):
            content = (path / name).read_bytes()
            listing.update(f"{hashlib.sha256(content).hexdigest()}  {name}\n".encode(errors="surrogateescape"))
            done += len(content)
            report(done, total, "hash")
        return listing.hexdigest()
    sha256, other = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            sha256.update(block)
            if md5 is not None:
                other.update(block)
            report(file.tell(), total, "hash")
    if md5 is not None and other.hexdigest() != md5:
        raise GcflowError(
            f"{path}: md5 is {other.hexdigest()}, expected {md5}; it is truncated or of another data set; put the "
            "published file there"
        )
    return sha256.hexdigest()


def _begun(hidden: Path, key: dict[str, Any]) -> dict[str, str]:
    """The hashes of the archives that are known; forgets shards that were made from other files or in another way."""
    with suppress(GcflowError, KeyError, TypeError):
        state = read_json(hidden / SOURCE)
        if state["key"] == json.loads(json.dumps(key)):
            hashes: dict[str, str] = state["sha256"]
            return hashes
    shutil.rmtree(hidden, ignore_errors=True)
    hidden.mkdir()
    return {}


class Shards:
    """The shards of one split: `written` makes those that are not there yet.

    A shard has a file of pixels, uint8 [rows, C, H, W] without a header, and then one of notes: `labels` of its rows,
    images `converted` per Pillow mode other than RGB and per change by `as_seen`, and the names of images `skipped`.
    """

    def __init__(self, folder: Path, name: str, split: Split, size: int, workers: int, report: Report) -> None:
        self.folder, self.name, self.split, self.size = folder, name, split, size
        self.workers, self.report = workers, report
        self.phase = "images" if name == "samples" else "held-out images"
        self.notes: list[dict[str, Any]] = []

    def pixels(self, number: int) -> Path:
        """The file of pixels of a shard."""
        return self.folder / f"{self.name}-{number:05}.u8"

    def contents(self) -> Iterator[bytes]:
        """The pixels of all shards in order."""
        for number in range(len(self.notes)):
            with self.pixels(number).open("rb") as file:
                while block := file.read(BLOCK):
                    yield block

    def write(self, skip_broken: bool) -> None:
        """Decodes what is missing.

        Raises:
            GcflowError: an image does not decode, or there are more or fewer than the split should have.
        """
        items, done = iter(self.split.items), 0
        with ThreadPoolExecutor(self.workers) as pool:
            while batch := list(islice(items, SHARD)):
                pixels = self.pixels(len(self.notes))
                path = pixels.with_suffix(".json")
                notes = read_json(path) if path.exists() and pixels.exists() else None
                if notes is None or (notes["skipped"] and not skip_broken):
                    notes = self._shard(batch, done, pool, skip_broken)
                    write_json(path, notes)
                self.notes.append(notes)
                done += len(batch)
        if done != self.split.images:
            raise GcflowError(
                f"{self.split.archive}: holds {done} images, expected {self.split.images}; it is incomplete or of "
                "another data set; put the whole one there"
            )

    def _shard(self, batch: list[Item], done: int, pool: Executor, skip_broken: bool) -> dict[str, Any]:
        labels, converted, skipped = [], Counter[str](), []
        with atomic_path(self.pixels(len(self.notes))) as temporary, temporary.open("wb", buffering=0) as file:
            for chunk in self._decoded(batch, pool):
                for item, image in chunk:
                    if image.pixels is not None:
                        file.write(image.pixels.tobytes())
                        labels.append(item.label)
                        converted.update(image.changes)
                    elif skip_broken:
                        skipped.append(item.name)
                    else:
                        raise GcflowError(
                            f"{self.split.archive}: image {shown(item.name)} does not decode ({image.problem}); "
                            "replace it, or leave such images out with --skip-broken"
                        )
                done += len(chunk)
                self.report(done, self.split.images, self.phase)
        return {"labels": labels, "converted": dict(converted), "skipped": skipped}

    def _decoded(self, batch: list[Item], pool: Executor) -> "Iterator[list[tuple[Item, Decoded]]]":
        """The images in order; a bounded number of them is in memory."""
        # Pillow is not among the library's own dependencies.
        from gcflow.archives.decoding import decode

        def work(chunk: list[Item]) -> "list[tuple[Item, Decoded]]":
            return [(item, decode(item, self.size, self.split.filter, self.split.as_seen)) for item in chunk]

        pending: deque[Future[list[tuple[Item, Decoded]]]] = deque()
        for first in range(0, len(batch), CHUNK):
            pending.append(pool.submit(work, batch[first : first + CHUNK]))
            if len(pending) == IN_FLIGHT * self.workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _from_archive(
    source: Archived, files: tuple[Path, ...], folder: Path, workers: int, skip_broken: bool, report: Report
) -> dict[str, Any]:
    hidden = folder / HIDDEN
    key: dict[str, Any] = {
        **source.provenance(),
        "options": to_dict(source),
        "files": [_file_key(path) for path in files],
        "decoder": f"Pillow {version('pillow')}",
        "shard": SHARD,
    }
    hashes = _begun(hidden, key)
    splits = source.open(files, hidden, report)
    published = source.published
    for path, entry in zip(files, key["files"], strict=True):
        if path.name not in hashes:
            md5 = published.md5 if published and published.name == path.name else None
            hashes[path.name] = _sha256(path, entry["bytes"], md5, report)
            write_json(hidden / SOURCE, {"key": key, "sha256": hashes})
    written = []
    for name, split in zip(("samples", "held_out"), splits, strict=True):
        shards = Shards(hidden, name, split or Split(folder, (), 0), source.shape[-1], workers, report)
        shards.write(skip_broken)
        written.append(shards)
        rows = sum(len(notes["labels"]) for notes in shards.notes)
        if name == "samples" and not rows:
            raise GcflowError(f"{shards.split.archive}: no image decodes; give another archive")
        write_array(folder / f"{name}.npy", (rows, *source.shape), np.dtype(np.uint8), shards.contents())
    samples, held_out = written
    labels = np.array([label for notes in samples.notes for label in notes["labels"]], np.int64)
    write_array(folder / "labels.npy", labels.shape, labels.dtype, [labels.tobytes()])
    everything = [*samples.notes, *held_out.notes]
    converted = sum((Counter(notes["converted"]) for notes in everything), Counter[str]())
    manifest = {
        "source": [
            {"file": entry["name"], "bytes": entry["bytes"], "sha256": hashes[entry["name"]]} for entry in key["files"]
        ],
        **source.provenance(),
        "decoder": key["decoder"],
        "options": key["options"],
        **described(folder),
        "shards": [
            {"rows": len(notes["labels"]), "sha256": sha256_of(samples.pixels(number))}
            for number, notes in enumerate(samples.notes)
        ],
        "converted": dict(sorted(converted.items())),
        "skipped": [name for notes in everything for name in notes["skipped"]],
    }
    write_json(folder / "manifest.json", manifest)
    shutil.rmtree(hidden)
    return manifest


def _fetch_missing(source: Archived, archives: Path, report: Report) -> None:
    published = source.published
    if published is None:
        return
    try:
        source.locate(archives)
    except GcflowError:
        fetch(published.url, archives / published.name, published.md5, report)
