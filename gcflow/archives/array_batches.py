"""Images that come as arrays in batches: pickles of CIFAR-10 and of downsampled ImageNet, and .npz files.

A pickle is a program. Of its requests only those that make a numpy array are answered, by inert stand-ins that record
what the array would be made of; numpy itself makes it afterwards, from checked bytes.
"""

import math
import pickle
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Generator, Iterator
from io import BytesIO
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from gcflow.archives.images import Block
from gcflow.archives.index import DAMAGED, opened_zip
from gcflow.archives.locators import shown
from gcflow.edm_pickle import InertFunction
from gcflow.errors import GcflowError

SIDE = 32
ROWS = 1024
ARRAY_PARTS = {
    (module, name)
    for module in ("numpy", "numpy.core.multiarray", "numpy._core.multiarray")
    for name in ("_reconstruct", "ndarray", "dtype")
}
TYPES = {"u1": np.uint8, "i4": np.int32, "i8": np.int64}


class Refusal(ValueError):
    """Why a batch cannot be read; the reader puts the file's name before it."""


class _Type:
    """Stands for a numpy dtype. BUILD gives its byte order."""

    __slots__ = ("code", "order")

    def __init__(self, code: Any, *rest: Any) -> None:
        self.code = code.decode() if isinstance(code, bytes) else code
        self.order = "|"

    def __setstate__(self, state: Any) -> None:
        order = state[1]
        self.order = order.decode() if isinstance(order, bytes) else order


class _Array:
    """Stands for a numpy array. BUILD gives its shape, type and bytes."""

    __slots__ = ("state",)
    state: tuple[Any, ...]

    def __init__(self, *arguments: Any) -> None:
        self.state = ()

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def array(self) -> np.ndarray:
        """The array itself."""
        _, shape, kind, fortran, content = self.state
        if not isinstance(kind, _Type) or kind.code not in TYPES or kind.order not in ("|", "<", "=") or fortran:
            raise Refusal("holds an array of a type that no batch has")
        if isinstance(content, str):
            content = content.encode("latin-1")
        dtype = np.dtype(TYPES[kind.code])
        if len(content) != math.prod(shape) * dtype.itemsize:
            raise Refusal("holds an array whose shape is not its content's")
        return np.frombuffer(content, dtype).reshape(shape)


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """An inert stand-in for a part of a numpy array; nothing else."""
        if (module, name) not in ARRAY_PARTS:
            raise Refusal(f"asks for {shown(module)}.{shown(name)}, which no batch of images needs; do not trust it")
        return InertFunction({"_reconstruct": _Array, "ndarray": _Array, "dtype": _Type}[name])


class Batch(NamedTuple):
    """samples: uint8 [n, 3, 32, 32]. labels: int64 [n]."""

    samples: np.ndarray
    labels: np.ndarray


def _batch(content: Any) -> Batch:
    if not isinstance(content, dict):
        raise Refusal("is no dictionary of data and labels")
    named = {key.decode("latin-1") if isinstance(key, bytes) else key: value for key, value in content.items()}
    if not {"data", "labels"} <= named.keys():
        raise Refusal("lacks data or labels, so it is a batch of another data set")
    data, labels = (value.array() if isinstance(value, _Array) else value for value in (named["data"], named["labels"]))
    labels = np.asarray(labels)
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.shape[1:] != (3 * SIDE**2,):
        raise Refusal(f"has data that are not uint8 of shape [n, {3 * SIDE**2}]")
    if labels.shape != data.shape[:1] or labels.dtype.kind not in "iu":
        raise Refusal("has labels that are not one integer per image")
    return Batch(data.reshape(-1, 3, SIDE, SIDE), labels.astype(np.int64))


def read_batch(file: IO[bytes], where: str, numpy_format: bool) -> Batch:
    """A batch out of a pickle or, if `numpy_format`, an .npz file; no code of it is run. where: named in errors.

    Raises:
        GcflowError: it is damaged, or anything else than arrays.
    """
    try:
        if numpy_format:
            with np.load(file, allow_pickle=False) as arrays:
                return _batch({name: arrays[name] for name in ("data", "labels") if name in arrays.files})
        return _batch(_Unpickler(file, encoding="bytes").load())
    except Refusal as refusal:
        raise GcflowError(f"{where}: {refusal}") from None
    except OSError as error:
        if isinstance(error, zipfile.BadZipFile) or error.errno is None:
            raise GcflowError(f"{where}: {error}; {DAMAGED}") from None
        raise
    except Exception:  # A damaged pickle or .npz lets its readers raise almost anything.
        raise GcflowError(f"{where}: not a whole batch of images; {DAMAGED}") from None


class ArrayBatches(NamedTuple):
    """Images of one split as arrays, one batch in memory at a time.

    archive: named in errors. read: gives the batches in order. images: how many there are together.
    """

    archive: Path
    read: Callable[[], Iterator[Batch]]
    images: int

    def blocks(self, start: int = 0) -> Generator[Block]:
        """The images from number `start` on; no block reaches over a multiple of ROWS.

        Raises:
            GcflowError: there are more or fewer than `images`.
        """
        before = 0
        for samples, labels in self.read():
            first = max(start - before, 0)
            while first < len(samples):
                last = min(len(samples), first + ROWS - (before + first) % ROWS)
                yield Block(samples[first:last], labels[first:last], last - first, {}, [], None)
                first = last
            before += len(samples)
        if before != self.images:
            raise GcflowError(
                f"{self.archive}: holds {before} images, expected {self.images}; it is incomplete or of another data "
                "set; fetch it again"
            )


def cifar_batches(path: Path, names: tuple[str, ...]) -> Iterator[Batch]:
    """The batches `names` of CIFAR-10's archive, in that order.

    Raises:
        GcflowError: the archive is damaged, or another one.
    """
    for name in names:
        member = f"cifar-10-batches-py/{name}"
        try:
            with tarfile.open(path) as archive:
                file = archive.extractfile(member)
                content = b"" if file is None else file.read()
        except KeyError:
            raise GcflowError(f"{path}: holds no {member}, so it is not CIFAR-10's; fetch the right archive") from None
        except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise GcflowError(f"{path}: not a whole tar.gz ({error}); {DAMAGED}") from None
        batch = read_batch(BytesIO(content), f"{path}: {name}", numpy_format=False)
        yield _checked(batch, 10, f"{path}: {name}")


def _checked(batch: Batch, classes: int, where: str) -> Batch:
    if len(batch.labels) and not 0 <= batch.labels.min() <= batch.labels.max() < classes:
        raise GcflowError(f"{where}: has labels outside the {classes} classes; it is of another data set")
    return batch


def downsampled_batches(files: tuple[Path, ...]) -> Iterator[Batch]:
    """The ten batches of downsampled ImageNet, with labels 0..999. files: of the batches, or of one zip of them.

    Raises:
        GcflowError: one is missing, damaged, or of another data set.
    """
    zipped = files[0] if files[0].suffix == ".zip" else None
    for number in range(1, 11):
        stem = f"train_data_batch_{number}"
        if zipped is None:
            path = next((file for file in files if file.name.removesuffix(".npz") == stem), None)
            if path is None:
                raise GcflowError(f"{files[0].parent}: holds no {stem}; fetch all ten batches")
            with path.open("rb") as file:
                batch, where = read_batch(file, str(path), path.suffix == ".npz"), str(path)
        else:
            where = f"{zipped}: {stem}"
            with opened_zip(zipped) as archive:
                names = [name for name in archive.namelist() if Path(name).name.removesuffix(".npz") == stem]
                if not names:
                    raise GcflowError(f"{zipped}: holds no {stem}; it is incomplete or another archive")
                try:
                    with archive.open(names[0]) as member:
                        batch = read_batch(member, where, names[0].endswith(".npz"))
                except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
                    raise GcflowError(f"{where}: {error}; {DAMAGED}") from None
        yield _checked(Batch(batch.samples, batch.labels - 1), 1000, where)
