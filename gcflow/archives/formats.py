"""What folders, zips, tars and LMDBs hold: the images of each by their names, and how to read one.

Only headers are read to list them. What is compressed as a whole (a tar.gz, an LMDB in a zip) is unpacked first.
"""

import gzip
import os
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, NamedTuple, NoReturn

from gcflow.errors import GcflowError
from gcflow.files import atomic_path

if TYPE_CHECKING:
    import numpy as np

Report = Callable[[int, int, str], None]
"""Called with what is done, the total (0: unknown), and what is counted: a key of `gcflow.archives.formats.PHASES`."""

PHASES = {"download": "bytes", "unpack": "bytes", "hash": "bytes", "images": "images", "held-out images": "images"}
BLOCK = 1 << 20
# Some need a plugin of Pillow (HEIC, JPEG XL): they are refused by name, not passed over.
PHOTOGRAPHS = (".jpg", ".jpeg", ".jpe", ".jfif", ".jp2", ".jxl", ".webp", ".avif", ".heic", ".heif")
IMAGE_SUFFIXES = (*PHOTOGRAPHS, ".png", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
Filter = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]
Members = dict[str, Callable[[], bytes]]
"""The images of an archive: name to a function that reads the file, in any thread."""


class Item(NamedTuple):
    """An image. name: inside its archive. content: reads its file, or its pixels, uint8 [3, H, W]."""

    name: str
    label: int
    content: "Callable[[], bytes] | np.ndarray"


class Split(NamedTuple):
    """Images that belong together, in their order.

    archive: named in errors. images: how many `items` should be. filter: of the resize that makes files square.
    as_seen: whether they are first made what a viewer shows (`decoding.as_seen`).
    """

    archive: Path
    items: Iterable[Item]
    images: int
    filter: Filter = "lanczos"
    as_seen: bool = False


def silent(done: int, total: int, phase: str) -> None:
    """A `Report` that says nothing."""


def shown(name: str) -> str:
    """A name out of an archive, safe to print in one line."""
    return name.encode("unicode_escape").decode()[:200]


def damage(error: Exception) -> str:
    """What a reader says of a damaged file, in one line; a failure of the disk is raised again."""
    if isinstance(error, OSError) and error.errno is not None:
        raise error
    # Pillow's messages end with an address in memory, different each time.
    lines = str(error).partition(" <_io")[0].splitlines()
    return lines[0] if lines else type(error).__name__


@contextmanager
def whole(where: object) -> Iterator[None]:
    """Makes whatever a damaged archive lets its readers raise one line that names it."""
    try:
        yield
    except (GcflowError, MemoryError):
        raise
    except Exception as error:
        message = f"{where}: is truncated, damaged or another archive ({damage(error)}); put a whole one there"
        raise GcflowError(message) from None


def _is_image(name: str) -> bool:
    parts = name.split("/")
    return name.lower().endswith(IMAGE_SUFFIXES) and not any(part.startswith((".", "__MACOSX")) for part in parts)


def _plain(name: str) -> str:
    return name.removeprefix("./").lstrip("/")


def labelled(members: Members) -> list[Item]:
    """Images sorted by name; the label is the number of an image's folder among the sorted folders of images."""
    folders = {name: number for number, name in enumerate(sorted({name.rpartition("/")[0] for name in members}))}
    return [Item(name, folders[name.rpartition("/")[0]], members[name]) for name in sorted(members)]


def image_files(folder: Path) -> list[str]:
    """The image files below a folder, also behind links, relative to it, sorted.

    Raises:
        GcflowError: a link leads back to a folder that it lies in.
        OSError: a folder cannot be read.
    """

    def fail(error: OSError) -> NoReturn:
        raise error

    paths = []
    for parent, folders, names in os.walk(folder, onerror=fail, followlinks=True):
        above = {path.resolve() for path in (Path(parent), *Path(parent).parents)}
        for path in (Path(parent, name) for name in folders):
            if path.is_symlink() and path.resolve() in above:
                raise GcflowError(f"{path}: a link to a folder that it lies in; remove it")
        paths += [Path(parent, name) for name in names]
    return sorted(filter(_is_image, (path.relative_to(folder).as_posix() for path in paths)))


def folder_members(folder: Path) -> Members:
    """The images below a folder."""
    return {name: (folder / name).read_bytes for name in image_files(folder)}


def _by_name(path: Path, found: Iterable[tuple[str, Callable[[], bytes]]]) -> Members:
    members: Members = {}
    for name, read in found:
        if _is_image(name):
            if name in members:
                raise GcflowError(f"{path}: holds {shown(name)} twice; pack it again")
            members[name] = read
    return members


def zip_members(path: Path) -> Members:
    """The images of a zip; some of Windows' programs separate folders by backslashes.

    Raises:
        GcflowError: it is no whole zip, or has two images of one name.
    """
    with whole(path):
        archive = zipfile.ZipFile(path)
    lock = threading.Lock()

    def read(member: zipfile.ZipInfo) -> bytes:
        with lock:
            return archive.read(member)

    found = ((_plain(member.filename.replace("\\", "/")), partial(read, member)) for member in archive.infolist())
    return _by_name(path, found)


def _range(path: Path, offset: int, size: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(size)


def _tar_files(path: Path, file: IO[bytes], start: int, end: int) -> Iterator[tuple[str, int, int]]:
    """Name, offset and size of each file of the tar that lies from `start` to `end` of `file`."""
    file.seek(start)
    with whole(path), tarfile.TarFile(fileobj=file) as archive:
        for member in archive:
            if member.offset_data + member.size > end:
                raise EOFError(f"it ends within {shown(member.name)}")
            if member.isreg():
                yield _plain(member.name), member.offset_data, member.size
            elif _is_image(_plain(member.name)) and not member.isdir():
                remedy = "pack it with tar --dereference --hard-dereference"
                raise GcflowError(f"{path}: {shown(member.name)} is a link or no file; {remedy}")


def tar_members(path: Path, nested: bool = False) -> Members:
    """The images of an uncompressed tar.

    Args:
        path: of the tar.
        nested: take the images of the tars in it, each with the name of its tar (without .tar) as its folder.

    Raises:
        GcflowError: it is no whole tar, or has two images of one name.
    """
    with path.open("rb") as file:
        found = list(_tar_files(path, file, 0, path.stat().st_size))
        if nested:
            found = [
                (f"{tar.removesuffix('.tar')}/{name}", offset, size)
                for tar, start, length in found
                if tar.endswith(".tar")
                for name, offset, size in _tar_files(path, file, start, start + length)
            ]
    return _by_name(path, ((name, partial(_range, path, offset, size)) for name, offset, size in found))


def lmdb_members(folder: Path) -> Members:
    """The values of an LMDB, by their keys.

    Raises:
        GcflowError: `data.mdb` is no whole LMDB.
    """
    import lmdb

    path, lock = folder / "data.mdb", threading.Lock()

    # A process may open it only once at a time.
    def opened() -> lmdb.Environment:
        return lmdb.open(str(folder), readonly=True, lock=False, readahead=False, create=False)

    def read(key: bytes) -> Any:
        with lock, opened() as database, database.begin() as transaction:
            return transaction.get(key)

    with whole(path), opened() as database:
        pages, page = database.info()["last_pgno"] + 1, database.stat()["psize"]
        # A page beyond the end of the file would kill the process that looks at it.
        if pages * page > path.stat().st_size:
            raise EOFError(f"it has {path.stat().st_size} of {pages * page} bytes")
        with database.begin() as transaction:
            keys = list(transaction.cursor().iternext(keys=True, values=False))
    return {key.decode("ascii", "backslashreplace"): partial(read, key) for key in keys}


def _unpack(path: Path, source: IO[bytes] | gzip.GzipFile, total: int, out: Path, report: Report) -> None:
    done = 0
    with atomic_path(out) as temporary, temporary.open("wb") as file:
        while True:
            with whole(path):
                content = source.read(BLOCK)
            if not content:
                break
            file.write(content)
            done += len(content)
            report(done, total, "unpack")


def unpacked_lmdb(path: Path, scratch: Path, report: Report = silent) -> Path:
    """The folder of the LMDB that lies in a zip, written to `scratch` unless it is there already.

    Raises:
        GcflowError: the zip is damaged or holds no data.mdb.
    """
    out = scratch / "data.mdb"
    if not out.exists():
        with whole(path):
            archive = zipfile.ZipFile(path)
        with archive:
            found = [member for member in archive.infolist() if member.filename.rpartition("/")[2] == out.name]
            if len(found) != 1:
                raise GcflowError(f"{path}: holds no LMDB (data.mdb); it is another archive, fetch the right one")
            with archive.open(found[0]) as source:
                _unpack(path, source, found[0].file_size, out, report)
    return scratch


def members_of(path: Path, scratch: Path, report: Report = silent) -> Members:
    """The images of a folder, zip, tar or tar.gz, whatever its name. A tar.gz is unpacked to `scratch`.

    Raises:
        GcflowError: it is truncated, or of another kind.
    """
    if path.is_dir():
        return folder_members(path)
    start = _range(path, 0, 512)
    if start[:2] == b"\x1f\x8b":
        out = scratch / "unpacked.tar"
        if not out.exists():
            with gzip.open(path) as source:
                _unpack(path, source, 0, out, report)
        return tar_members(out)
    if start[:4] == b"PK\x03\x04":
        return zip_members(path)
    if start[257:262] == b"ustar":
        return tar_members(path)
    raise GcflowError(f"{path}: is no folder, zip, tar or tar.gz of images; pack it as one of these")
