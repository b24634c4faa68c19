"""Where the bytes of an image lie, so that any process can read it by itself."""

import os
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple, Self

from gcflow.errors import GcflowError

if TYPE_CHECKING:
    import lmdb

Report = Callable[[int, int, str], None]
"""Called with what is done, the total (0: unknown), and what is counted: a key of `gcflow.archives.locators.PHASES`."""

PHASES = {"download": "bytes", "unpack": "bytes", "hash": "bytes", "images": "images", "held-out images": "images"}
BLOCK = 1 << 20


def silent(done: int, total: int, phase: str) -> None:
    """A `Report` that says nothing."""


def shown(name: str) -> str:
    """A name out of an archive, safe to print in one line."""
    return name.encode("unicode_escape").decode()[:200]


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Gives a failed write (a full disk), which says not where, the name of its file."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


class DamagedMember(ValueError):
    """One image of an archive cannot be read; others can."""


def read_only_lmdb(path: str) -> "lmdb.Environment":
    """An LMDB that is only read, which needs no lock."""
    import lmdb

    return lmdb.open(path, readonly=True, lock=False, readahead=False, create=False)


class OpenFiles:
    """Files and databases, each opened once."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._files: dict[str, int] = {}
        self._databases: dict[str, lmdb.Transaction] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()

    def read(self, path: str, offset: int, size: int) -> bytes:
        """`size` bytes from `offset` on.

        Raises:
            GcflowError: the file ends before.
        """
        if path not in self._files:
            self._files[path] = os.open(path, os.O_RDONLY)
            self._stack.callback(os.close, self._files[path])
        content = os.pread(self._files[path], size, offset)
        while len(content) < size:
            more = os.pread(self._files[path], size - len(content), offset + len(content))
            if not more:
                raise GcflowError(
                    f"{path}: ends at byte {offset + len(content)}, within an image; it is truncated, fetch it again"
                )
            content += more
        return content

    def database(self, path: str) -> "lmdb.Transaction":
        """A read transaction of an LMDB."""
        if path not in self._databases:
            environment = self._stack.enter_context(read_only_lmdb(path))
            self._databases[path] = self._stack.enter_context(environment.begin(buffers=False))
        return self._databases[path]


class FileBytes(NamedTuple):
    """A whole file."""

    path: str

    def read(self, files: OpenFiles) -> bytes:
        """Its content."""
        return Path(self.path).read_bytes()


class TarBytes(NamedTuple):
    """A member of a plain tar, or of a tar in it. offset: of its content in the outer file."""

    path: str
    offset: int
    size: int

    def read(self, files: OpenFiles) -> bytes:
        """Its content."""
        return files.read(self.path, self.offset, self.size)


class ZipBytes(NamedTuple):
    """A member of a zip. header: offset of its local header. size: compressed."""

    path: str
    header: int
    size: int
    method: int
    crc: int

    def read(self, files: OpenFiles) -> bytes:
        """Its content, uncompressed.

        Raises:
            DamagedMember: it is not what the directory of the zip says.
        """
        start = files.read(self.path, self.header, 30)
        # The local header has lengths of its own; those of the directory may differ.
        lengths = int.from_bytes(start[26:28], "little") + int.from_bytes(start[28:30], "little")
        content = files.read(self.path, self.header + 30 + lengths, self.size)
        if self.method == zipfile.ZIP_DEFLATED:
            try:
                content = zlib.decompress(content, -zlib.MAX_WBITS)
            except zlib.error as error:
                raise DamagedMember(f"it does not uncompress: {error}") from None
        if zlib.crc32(content) != self.crc:
            raise DamagedMember("its checksum differs from the zip's")
        return content


class LmdbBytes(NamedTuple):
    """A value of an LMDB."""

    path: str
    key: bytes

    def read(self, files: OpenFiles) -> bytes:
        """Its content."""
        value: bytes | None = files.database(self.path).get(self.key)  # type: ignore[assignment]
        if value is None:
            raise DamagedMember("its key is gone")
        return value


Locator = FileBytes | TarBytes | ZipBytes | LmdbBytes


class Item(NamedTuple):
    """An image that is not read yet. name: inside its archive. label: its class."""

    name: str
    label: int
    locator: Locator
