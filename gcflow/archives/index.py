"""Indexes of archives: which images they hold, and where the bytes of each lie.

An index is made by seeking from header to header; contents are read only when an image is decoded.
"""

import gzip
import os
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from gcflow.archives.locators import (
    BLOCK,
    FileBytes,
    Item,
    LmdbBytes,
    Locator,
    Report,
    TarBytes,
    ZipBytes,
    named,
    read_only_lmdb,
    shown,
    silent,
)
from gcflow.errors import GcflowError

DAMAGED = "it is truncated or damaged; fetch it again"
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")


def _is_image(name: str) -> bool:
    parts = name.split("/")
    return name.lower().endswith(IMAGE_SUFFIXES) and not any(part.startswith((".", "__MACOSX")) for part in parts)


def _plain(name: str) -> str:
    return name.removeprefix("./").lstrip("/")


def image_files(folder: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Path relative to `folder`, and size and time, of each image file below it, sorted."""
    names = (os.path.join(parent, name) for parent, _, names in os.walk(folder) for name in names)
    for name in sorted(Path(name).relative_to(folder).as_posix() for name in names):
        if _is_image(name):
            yield name, (folder / name).stat()


def folder_members(folder: Path) -> dict[str, Locator]:
    """The images below a folder."""
    return {name: FileBytes(str(folder / name)) for name, _ in image_files(folder)}


def zip_members(path: Path) -> dict[str, Locator]:
    """The images of a zip.

    Raises:
        GcflowError: it is no whole zip, or packed in an uncommon way.
    """
    members: dict[str, Locator] = {}
    with opened_zip(path) as archive:
        for info in archive.infolist():
            name = _plain(info.filename)
            if info.is_dir() or not _is_image(name):
                continue
            if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise GcflowError(f"{path}: {shown(name)} is encrypted or not deflated; pack the zip again, plainly")
            members[name] = ZipBytes(str(path), info.header_offset, info.compress_size, info.compress_type, info.CRC)
    return members


def opened_zip(path: Path) -> zipfile.ZipFile:
    """A zip, open for reading.

    Raises:
        GcflowError: it is no whole zip.
    """
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise GcflowError(f"{path}: not a whole zip ({error}); {DAMAGED}") from None


def _tar_members(path: Path, file: IO[bytes], offset: int, end: int) -> Iterator[tuple[str, int, int]]:
    """Name, offset and size of each file of the tar that lies from `offset` to `end` of `file`."""
    file.seek(offset)
    try:
        with tarfile.TarFile(path, fileobj=file) as archive:
            for member in archive:
                if member.offset_data + member.size > end:
                    raise GcflowError(f"{path}: ends within {shown(member.name)}; {DAMAGED}")
                if member.isreg():
                    yield _plain(member.name), member.offset_data, member.size
    except (tarfile.TarError, ValueError, EOFError) as error:
        raise GcflowError(f"{path}: not a whole tar ({error}); {DAMAGED}") from None


def tar_members(path: Path) -> dict[str, Locator]:
    """The images of an uncompressed tar.

    Raises:
        GcflowError: it is no whole tar.
    """
    with path.open("rb") as file:
        members = _tar_members(path, file, 0, path.stat().st_size)
        return {name: TarBytes(str(path), offset, size) for name, offset, size in members if _is_image(name)}


def nested_tar_members(path: Path) -> dict[str, Locator]:
    """The images of a tar of tars, each with the name of its inner tar (without .tar) as its folder.

    Raises:
        GcflowError: one of them is no whole tar.
    """
    images: dict[str, Locator] = {}
    with path.open("rb") as file:
        outer = list(_tar_members(path, file, 0, path.stat().st_size))
        for folder, begin, length in outer:
            if folder.endswith(".tar"):
                for name, offset, size in _tar_members(path, file, begin, begin + length):
                    if _is_image(name):
                        images[f"{folder.removesuffix('.tar')}/{name}"] = TarBytes(str(path), offset, size)
    return images


def lmdb_members(folder: Path) -> dict[str, Locator]:
    """The values of an LMDB, by their keys.

    Raises:
        GcflowError: `data.mdb` is no whole LMDB.
    """
    import lmdb

    path = folder / "data.mdb"
    try:
        with read_only_lmdb(str(folder)) as environment:
            pages, size = environment.info()["last_pgno"] + 1, environment.stat()["psize"]
            # A page beyond the end of the file would kill the process that looks at it.
            if pages * size > path.stat().st_size:
                raise GcflowError(f"{path}: has {path.stat().st_size} of its {pages * size} bytes; {DAMAGED}")
            with environment.begin() as transaction:
                keys = list(transaction.cursor().iternext(keys=True, values=False))
    except lmdb.Error as error:
        raise GcflowError(f"{path}: not a whole LMDB ({str(error).splitlines()[-1]}); {DAMAGED}") from None
    return {key.decode("ascii", "backslashreplace"): LmdbBytes(str(folder), key) for key in keys}


def _unpack(
    path: Path,
    source: IO[bytes] | gzip.GzipFile,
    position: Callable[[], int],
    total: int,
    out: Path,
    report: Report,
) -> None:
    temporary = out.with_name(f"{out.name}.part")
    with temporary.open("wb") as file:
        while True:
            try:
                content = source.read(BLOCK)
            except (EOFError, gzip.BadGzipFile, zlib.error, zipfile.BadZipFile) as error:
                raise GcflowError(f"{path}: {error or 'ends too early'}; {DAMAGED}") from None
            if not content:
                break
            with named(out):
                file.write(content)
            report(position(), total, "unpack")
    temporary.replace(out)


def unpacked_tar(path: Path, scratch: Path, report: Report = silent) -> Path:
    """The plain tar that lies in a .tar.gz, written to `scratch` unless it is there already.

    Raises:
        GcflowError: it is truncated or damaged.
    """
    out = scratch / "unpacked.tar"
    if not out.exists():
        with path.open("rb") as raw, gzip.GzipFile(fileobj=raw) as source:
            _unpack(path, source, raw.tell, path.stat().st_size, out, report)
    return out


def unpacked_lmdb(path: Path, scratch: Path, report: Report = silent) -> Path:
    """The folder of the LMDB that lies in a zip, written to `scratch` unless it is there already.

    Raises:
        GcflowError: the zip is damaged or holds no data.mdb.
    """
    out = scratch / "lmdb" / "data.mdb"
    if not out.exists():
        shutil.rmtree(out.parent, ignore_errors=True)
        out.parent.mkdir(parents=True)
        with opened_zip(path) as archive:
            names = [name for name in archive.namelist() if name.rpartition("/")[2] == "data.mdb"]
            if len(names) != 1:
                raise GcflowError(f"{path}: holds no LMDB (data.mdb); it is another archive, fetch the right one")
            with archive.open(names[0]) as source:
                _unpack(path, source, source.tell, archive.getinfo(names[0]).file_size, out, report)
    return out.parent


def labelled(members: dict[str, Locator]) -> list[Item]:
    """Images sorted by name; the label is the number of an image's folder among the sorted folders of images."""
    folders = {name: number for number, name in enumerate(sorted({name.rpartition("/")[0] for name in members}))}
    return [Item(name, folders[name.rpartition("/")[0]], members[name]) for name in sorted(members)]


def members_of(path: Path, scratch: Path, report: Report = silent) -> dict[str, Locator]:
    """The images of a folder, zip, tar or tar.gz, whatever its name. A tar.gz is unpacked to `scratch`.

    Raises:
        GcflowError: it is truncated, or of another kind.
    """
    if path.is_dir():
        return folder_members(path)
    with path.open("rb") as file:
        start = file.read(512)
    if start[:2] == b"\x1f\x8b":
        return tar_members(unpacked_tar(path, scratch, report))
    if start[:4] == b"PK\x03\x04":
        return zip_members(path)
    if start[257:262] == b"ustar":
        return tar_members(path)
    raise GcflowError(f"{path}: is no folder, zip, tar or tar.gz of images; pack it as one of these")
