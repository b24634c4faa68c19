"""Whether the files of an archive are what they are called, and whole."""

import gzip
import os
import zlib
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from gcflow.errors import GcflowError
from gcflow.pipeline.doctor.check import one_line, size

if TYPE_CHECKING:
    from gcflow.archives.base import Archived

# Fewer bytes per image than any archive of images has: an error page under its name, or the start of a download.
LEAST_IMAGE_BYTES = 64
BLOCK = 1 << 20


def require_whole(files: tuple[Path, ...], source: "Archived", thorough: bool) -> None:
    """Raises a GcflowError if files are not what they are called, or end too early."""
    from gcflow.archives.index import DAMAGED

    for path in files:
        _require_structure(path, source.count or 0)
    total = sum(path.stat().st_size for path in files)
    if not files[0].is_dir() and total < LEAST_IMAGE_BYTES * (source.count or 1):
        raise GcflowError(f"{files[0]}: {size(total)} for {source.count} images; {DAMAGED}")
    if thorough:
        published = source.published
        for path in files:
            known = published.md5 if published and published.name == path.name else None
            _require_content(path, known)


def _require_structure(path: Path, images: int) -> None:
    from gcflow.archives.index import DAMAGED, IMAGE_SUFFIXES, lmdb_members, opened_zip

    if path.is_dir():
        names = (name for _, _, names in os.walk(path) for name in names)
        if not any(name.lower().endswith(IMAGE_SUFFIXES) for name in names):
            raise GcflowError(f"{path}: holds no images; put them there")
        return
    with path.open("rb") as file:
        start = file.read(512)
        file.seek(max(0, path.stat().st_size - 512))
        end = file.read()
    found = None
    if path.name == "data.mdb":
        found = len(lmdb_members(path.parent))
    elif start[:2] == b"\x1f\x8b":
        _require_gzip(path, end)
    elif start[:2] == b"PK":
        with opened_zip(path) as archive:
            found = sum(name.lower().endswith(IMAGE_SUFFIXES) for name in archive.namelist()) or None
    elif start[257:262] == b"ustar":
        # A tar ends with blocks of zeros.
        if path.stat().st_size % 512 or end.strip(b"\0"):
            raise GcflowError(f"{path}: does not end as a tar does; {DAMAGED}")
    elif not start or path.suffix in (".gz", ".tgz", ".tar", ".zip"):
        raise GcflowError(f"{path}: begins with {start[:8]!r}, so it is no archive; {DAMAGED}")
    if found is not None and found < images:
        raise GcflowError(f"{path}: holds {found} images, expected {images}; {DAMAGED}")


def _require_gzip(path: Path, end: bytes) -> None:
    from gcflow.archives.index import DAMAGED

    try:
        with gzip.open(path) as file:
            file.read(BLOCK)
    except (OSError, EOFError, zlib.error) as error:
        raise GcflowError(f"{path}: {one_line(error)}; {DAMAGED}") from None
    # The last four bytes are the length of what is packed: a tar, in whole blocks. Those of a cut file are anything.
    if int.from_bytes(end[-4:], "little") % 512:
        raise GcflowError(f"{path}: does not end as a tar.gz does; {DAMAGED}")


def _require_content(path: Path, md5: str | None) -> None:
    """Reads all of a file, and compares what is known about it."""
    import hashlib

    from gcflow.archives.index import DAMAGED, opened_zip

    if path.is_dir():
        return
    with path.open("rb") as file:
        start = file.read(2)
        file.seek(0)
        found = hashlib.file_digest(file, partial(hashlib.md5, usedforsecurity=False)).hexdigest()
    if md5 is not None and found != md5:
        raise GcflowError(f"{path}: md5 is {found}, expected {md5}; {DAMAGED}")
    if start == b"PK":
        with opened_zip(path) as archive:
            bad = archive.testzip()
        if bad is not None:
            raise GcflowError(f"{path}: {bad} is damaged; {DAMAGED}")
