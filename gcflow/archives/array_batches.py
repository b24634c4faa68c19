"""Images that come as arrays in batches: pickles of CIFAR-10 and of downsampled ImageNet, and .npz files.

A pickle is a program. Of its requests only those that make a numpy array are answered, by inert stand-ins that record
what the array would be made of; numpy itself makes it afterwards, from checked bytes.
"""

import pickle
import tarfile
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import numpy as np

from gcflow.archives.formats import Item, shown, whole
from gcflow.edm_pickle import InertFunction
from gcflow.errors import GcflowError

SIDE = 32
NUMPY = ("numpy", "numpy.core.multiarray", "numpy._core.multiarray")
TYPES = {"u1": np.uint8, "i4": np.int32, "i8": np.int64}


class _Recorded:
    """Stands for a numpy dtype or array: what it is called with, and the state that BUILD gives it."""

    __slots__ = ("arguments", "state")
    state: tuple[Any, ...]

    def __init__(self, *arguments: Any) -> None:
        self.arguments, self.state = arguments, ()

    def __setstate__(self, state: Any) -> None:
        self.state = state


def _text(value: Any) -> Any:
    return value.decode("latin-1") if isinstance(value, bytes) else value


def _array(value: Any) -> np.ndarray:
    """The array that a stand-in or a list stands for."""
    if not isinstance(value, _Recorded):
        return np.asarray(value)
    _, shape, kind, fortran, content = value.state
    code, order = _text(kind.arguments[0]), _text(kind.state[1])
    if code not in TYPES or order not in ("|", "<", "=") or fortran:
        raise ValueError("holds an array of a type that no batch has")
    content = content.encode("latin-1") if isinstance(content, str) else content
    return np.frombuffer(content, TYPES[code]).reshape(shape)


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """An inert stand-in for a part of a numpy array; nothing else."""
        if module not in NUMPY or name not in ("_reconstruct", "ndarray", "dtype"):
            raise ValueError(f"asks for {shown(module)}.{shown(name)}, which no batch of images needs; do not trust it")
        return InertFunction(_Recorded)


def read_batch(file: IO[bytes], where: str, numpy_format: bool, labels: range) -> list[Item]:
    """The images of a batch out of a pickle or, if `numpy_format`, an .npz file; no code of it is run.

    Args:
        file: open for reading.
        where: named in errors.
        numpy_format: whether it is an .npz file.
        labels: that may occur in it, of which the first becomes 0.

    Raises:
        GcflowError: it is damaged, of another data set, or holds anything else than arrays.
    """
    # A refusal is one line; Python and numpy would warn of some damage besides.
    with whole(where), warnings.catch_warnings(action="ignore"), ExitStack() as stack:
        if numpy_format:
            content: Any = stack.enter_context(np.load(file, allow_pickle=False))
        else:
            content = {_text(key): value for key, value in _Unpickler(file, encoding="bytes").load().items()}
        pixels, numbers = _array(content["data"]), _array(content["labels"])
        if pixels.dtype != np.uint8 or pixels.shape[1:] != (3 * SIDE**2,):
            raise ValueError(f"has data that are not uint8 of shape [n, {3 * SIDE**2}]")
        if numbers.shape != pixels.shape[:1] or numbers.dtype.kind not in "iu":
            raise ValueError("has labels that are not one integer per image")
        if len(numbers) and not (min(labels) <= numbers.min() and numbers.max() <= max(labels)):
            raise ValueError(f"has labels outside the {len(labels)} classes, so it is of another data set")
        images = pixels.reshape(-1, 3, SIDE, SIDE)
        return [Item("", int(number) - min(labels), image) for number, image in zip(numbers, images, strict=True)]


def cifar_images(path: Path, names: tuple[str, ...]) -> Iterator[Item]:
    """The images of the batches `names` of CIFAR-10's archive, in that order.

    Raises:
        GcflowError: the archive is damaged, or another one.
    """
    with whole(path), tarfile.open(path) as archive:
        for name in names:
            file = archive.extractfile(f"cifar-10-batches-py/{name}")
            assert file is not None
            yield from read_batch(file, f"{path}: {name}", False, range(10))


def downsampled_images(files: tuple[Path, ...]) -> Iterator[Item]:
    """The images of the ten batches of downsampled ImageNet. files: the batches, or one zip of them.

    Raises:
        GcflowError: a batch is missing, damaged, or of another data set.
    """
    archive = files[0].parent if files[0].suffix != ".zip" else files[0]
    with whole(archive), ExitStack() as stack:
        batches: dict[str, Any] = {path.name: path for path in files}
        if archive == files[0]:
            zipped = stack.enter_context(zipfile.ZipFile(archive))
            batches = {Path(name).name: zipfile.Path(zipped, name) for name in zipped.namelist()}
        for number in range(1, 11):
            stem = f"train_data_batch_{number}"
            name = next((name for name in batches if name.removesuffix(".npz") == stem), None)
            if name is None:
                raise GcflowError(f"{archive}: holds no {stem}; it is incomplete or another archive")
            with batches[name].open("rb") as file:
                yield from read_batch(file, f"{archive}: {stem}", name.endswith(".npz"), range(1, 1001))
