"""Small archives in each official format, written without the package."""

import io
import struct
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
from PIL import Image

RANDOM = np.random.default_rng(1)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """An image file of a kind that Pillow writes."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def photograph(height: int = 30, width: int = 24) -> bytes:
    """A JPEG."""
    small = Image.fromarray(RANDOM.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    return encoded(small.resize((width, height), Image.Resampling.BICUBIC), "JPEG", quality=90)


def opened(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content)).convert("RGB")


def square(content: bytes, size: int, resampling: Image.Resampling = Image.Resampling.LANCZOS) -> np.ndarray:
    """The centre of an image whose shorter side is resized; uint8 [3, size, size]."""
    image = opened(content)
    width, height = image.size
    resized = (size, int(size * height / width)) if width <= height else (int(size * width / height), size)
    left, top = (round((length - size) / 2) for length in resized)
    return np.asarray(image.resize(resized, resampling))[top : top + size, left : left + size].transpose(2, 0, 1)


def write_tar(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def write_zip(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def write_lmdb(folder: Path, members: dict[bytes, bytes]) -> Path:
    environment = lmdb.open(str(folder), map_size=1 << 24)
    with environment.begin(write=True) as transaction:
        for key, content in members.items():
            transaction.put(key, content)
    environment.close()
    (folder / "lock.mdb").unlink()
    return folder


# Pickles as Python 2 wrote them, opcode by opcode: Python 3 writes no byte strings in protocol 2.


def _string(content: bytes) -> bytes:
    short = len(content) < 256
    return (b"U" + bytes([len(content)]) if short else b"T" + struct.pack("<i", len(content))) + content


def _integer(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def _array(values: np.ndarray) -> bytes:
    shape = b"".join(_integer(length) for length in values.shape)
    make = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n(K\x00t" + _string(b"b") + b"\x87R"
    dtype = b"cnumpy\ndtype\n" + _string(b"u1") + b"K\x00K\x01\x87R(K\x03" + _string(b"|") + b"NNN" + 2 * _integer(-1)
    dtype += b"K\x00tb"
    return make + b"(K\x01(" + shape + b"t" + dtype + b"\x89" + _string(values.tobytes()) + b"tb"


def python2_batch(data: np.ndarray, labels: list[int], extra: bytes = b"") -> bytes:
    """A batch of CIFAR-10. data: uint8 [n, 3072]. extra: opcodes of a further value."""
    listed = b"](" + b"".join(_integer(label) for label in labels) + b"e"
    items = _string(b"batch_label") + _string(b"training batch 1 of 5") + _string(b"data") + _array(data)
    items += _string(b"labels") + listed + (_string(b"extra") + extra if extra else b"")
    return b"\x80\x02}(" + items + b"u."


def random_batch(count: int, classes: int = 10, first: int = 0) -> tuple[np.ndarray, list[int]]:
    data = RANDOM.integers(0, 256, (count, 3072), dtype=np.uint8)
    return data, RANDOM.integers(first, first + classes, count).tolist()
