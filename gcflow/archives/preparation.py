"""Preparing arrays from archives: streamed, restartable, and never taken for complete before they are."""

import hashlib
from collections import Counter
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
import PIL

from gcflow.archives.array_batches import ArrayBatches
from gcflow.archives.base import Archived
from gcflow.archives.images import Block, ImageIndex, available_cores, decoded
from gcflow.archives.index import image_files
from gcflow.archives.locators import BLOCK, Report, shown
from gcflow.archives.staging import Rows, Shard, Staging, alone
from gcflow.config import to_dict
from gcflow.download import download as fetch
from gcflow.errors import GcflowError
from gcflow.files import sha256_of
from gcflow.sources import moments

# Items of a shard: a multiple of the images of a chunk and of the rows of a block.
SHARD = 8192


def _file_key(path: Path) -> dict[str, Any]:
    """What tells a file, or a folder of images, from a changed one without reading it."""
    if not path.is_dir():
        status = path.stat()
        return {"name": path.name, "bytes": status.st_size, "changed": status.st_mtime_ns}
    listing, total = hashlib.sha256(), 0
    for name, status in image_files(path):
        listing.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode(errors="surrogateescape"))
        total += status.st_size
    return {"name": path.name, "bytes": total, "changed": listing.hexdigest()}


def _hash(path: Path, md5: str | None, report: Report) -> str:
    """sha256 of an archive, whose md5 is checked if it is known."""
    sha256, other = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    done, total = 0, path.stat().st_size
    with path.open("rb") as file:
        while content := file.read(BLOCK):
            sha256.update(content)
            if md5 is not None:
                other.update(content)
            done += len(content)
            report(done, total, "hash")
    if md5 is not None and other.hexdigest() != md5:
        raise GcflowError(
            f"{path}: md5 is {other.hexdigest()}, expected {md5}; it is truncated or of another data set; delete it "
            "and fetch it again (--download)"
        )
    return sha256.hexdigest()


def _columns(
    split: str, stream: ImageIndex | ArrayBatches | None, shape: tuple[int, ...]
) -> dict[str, tuple[Any, ...]]:
    """The files of a split: what is in one row of each."""
    if split == "held_out":
        return {"held_out.npy": ("|u1", shape)}
    columns: dict[str, tuple[Any, ...]] = {"samples.npy": ("|u1", shape), "labels.npy": ("<i8", ())}
    return columns | ({"contents.npy": ("|u1", (32,))} if isinstance(stream, ImageIndex) and stream.in_files else {})


def _refuse_broken(archive: Path, name: str, reason: str) -> None:
    raise GcflowError(
        f"{archive}: image {shown(name)} does not decode ({reason}); fetch the archive again, or leave such images out "
        "with --skip-broken"
    )


def _parts(block: Block) -> dict[str, np.ndarray | None]:
    return {
        "samples.npy": block.samples,
        "held_out.npy": block.samples,
        "labels.npy": block.labels,
        "contents.npy": block.contents,
    }


def _append(
    stream: ImageIndex | ArrayBatches,
    files: dict[str, Rows],
    shards: list[Shard],
    staging: Staging,
    workers: int,
    skip_broken: bool,
    report: Report,
) -> None:
    """Appends the images that follow those of `shards`."""
    first = done = sum(shard.items for shard in shards)
    total = len(stream.items) if isinstance(stream, ImageIndex) else stream.images
    phase = "held-out images" if "held_out.npy" in files else "images"
    blocks = decoded(stream, workers, done) if isinstance(stream, ImageIndex) else stream.blocks(done)
    converted, skipped = Counter[str](), list[str]()
    with closing(blocks):
        for block in blocks:
            if block.broken and not skip_broken:
                _refuse_broken(stream.archive, *block.broken[0])
            for name, file in files.items():
                part = _parts(block)[name]
                assert part is not None
                file.append(part)
            converted.update(block.converted)
            skipped += [name for name, _ in block.broken]
            done += block.items
            if done % SHARD == 0 or done == total:
                ended = {name: file.end_shard() for name, file in files.items()}
                rows = {name: count for name, (count, _) in ended.items()}
                sha256 = {name: digest for name, (_, digest) in ended.items()}
                shards.append(Shard(done - first, rows, sha256, dict(converted), skipped))
                staging.save()
                first, converted, skipped = done, Counter(), []
            report(done, total, phase)


def _stage(
    split: str,
    stream: ImageIndex | ArrayBatches | None,
    shape: tuple[int, ...],
    staging: Staging,
    workers: int,
    skip_broken: bool,
    report: Report,
) -> list[Shard]:
    """Writes the rows of a split that are not written yet; returns its shards."""
    with ExitStack() as stack:
        columns = _columns(split, stream, shape)
        files = {name: stack.enter_context(Rows(staging.folder / name, *kind)) for name, kind in columns.items()}
        kept: list[Shard] = []
        for shard in staging.shards.get(split, []):
            if shard.skipped and not skip_broken:
                break
            if not all(file.holds(shard.rows[name], shard.sha256[name]) for name, file in files.items()):
                break
            kept.append(shard)
        staging.shards[split] = kept
        for name, file in files.items():
            file.cut(sum(shard.rows[name] for shard in kept))
        if stream is not None:
            _append(stream, files, kept, staging, workers, skip_broken, report)
        for file in files.values():
            file.finish()
    return kept


def _folder_hash(index: ImageIndex, contents: Path) -> str:
    """sha256 of what `sha256sum` prints for the sorted files."""
    listing = hashlib.sha256()
    for item, content in zip(index.items, np.load(contents, mmap_mode="r"), strict=True):
        listing.update(f"{content.tobytes().hex()}  {item.name}\n".encode(errors="surrogateescape"))
    return listing.hexdigest()


def _missing_fetched(source: Archived, archives: Path, report: Report) -> None:
    published = source.published
    if published is None:
        return
    try:
        source.locate(archives)
    except GcflowError:
        fetch(published.url, archives / published.name, published.md5, report)


def prepare_archive(
    source: Archived,
    folder: Path,
    archives: Path,
    workers: int | None,
    skip_broken: bool,
    download: bool,
    report: Report,
) -> dict[str, Any]:
    """`gcflow.data.prepare` for a source that lies in archives."""
    if download:
        _missing_fetched(source, archives, report)
    files = source.locate(archives)
    folder.mkdir(parents=True, exist_ok=True)
    with alone(folder):
        key = {
            **source.provenance(),
            "options": to_dict(source),
            "files": [_file_key(path) for path in files],
            "decoder": f"Pillow {PIL.__version__}",
            "shard": SHARD,
        }
        staging = Staging(folder, key)
        manifest = staging.finished(folder)
        if manifest is None:
            manifest = _staged(source, files, staging, workers or available_cores(), skip_broken, report)
        staging.finish(folder, manifest)
    return manifest


def _staged(
    source: Archived, files: tuple[Path, ...], staging: Staging, workers: int, skip_broken: bool, report: Report
) -> dict[str, Any]:
    """Writes every array to the hidden folder; returns the manifest."""
    splits = source.open(files, staging.folder, report)
    md5 = source.published.md5 if source.published else None
    for path in files:
        if path.is_file() and path.name not in staging.hashes:
            staging.hashes[path.name] = _hash(path, md5, report)
            staging.save()
    shards = _stage("samples", splits.samples, source.shape, staging, workers, skip_broken, report)
    held_out = _stage("held_out", splits.held_out, source.shape, staging, workers, skip_broken, report)
    if isinstance(splits.samples, ImageIndex) and splits.samples.in_files:
        staging.hashes[files[0].name] = _folder_hash(splits.samples, staging.folder / "contents.npy")
    samples = np.load(staging.folder / "samples.npy", mmap_mode="r")
    if not len(samples):
        raise GcflowError(f"{splits.samples.archive}: no image decodes; give another archive")
    everything = [*shards, *held_out]
    converted = sum((Counter(shard.converted) for shard in everything), Counter[str]())
    return {
        "source": [
            {"file": entry["name"], "bytes": entry["bytes"], "sha256": staging.hashes[entry["name"]]}
            for entry in staging.key["files"]
        ],
        **source.provenance(),
        "decoder": staging.key["decoder"],
        "options": staging.key["options"],
        "count": len(samples),
        "held_out": sum(shard.rows["held_out.npy"] for shard in held_out),
        "shape": list(source.shape),
        "dtype": "uint8",
        **moments(samples),
        "sha256": {name: sha256_of(staging.folder / name) for name in ("samples.npy", "labels.npy", "held_out.npy")},
        "shards": [{"rows": shard.rows["samples.npy"], "sha256": shard.sha256["samples.npy"]} for shard in shards],
        "converted": dict(sorted(converted.items())),
        "skipped": [name for shard in everything for name in shard.skipped],
    }
