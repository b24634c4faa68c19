"""Headers and content hashes of safetensors files without torch."""

import hashlib
import json
from collections.abc import Callable
from io import FileIO
from pathlib import Path
from typing import Any, NamedTuple

# Bytes of one value, and what `gcflow.weights.content_hash` calls the type.
TYPES = {
    "F64": (8, "torch.float64"),
    "F32": (4, "torch.float32"),
    "F16": (2, "torch.float16"),
    "BF16": (2, "torch.bfloat16"),
    "I64": (8, "torch.int64"),
    "I32": (4, "torch.int32"),
    "I16": (2, "torch.int16"),
    "I8": (1, "torch.int8"),
    "U8": (1, "torch.uint8"),
    "BOOL": (1, "torch.bool"),
}


class Tensor(NamedTuple):
    """Where a tensor's values lie, and the text that stands before them in the content hash."""

    title: str
    first: int
    end: int


class Header(NamedTuple):
    """The header of a safetensors file of ours. said: what is said about the tensors, which are in order of name."""

    said: dict[str, Any]
    content_sha256: str
    tensors: list[Tensor]


def read_header(path: Path) -> Header:
    """Reads the header and checks that the tensors fill the file.

    Raises:
        ValueError, KeyError, TypeError: the file is no such file, or its header is damaged.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        size = path.stat().st_size
        if length > size - 8:
            raise ValueError("the header is cut")
        header = json.loads(file.read(length))
    said = json.loads(header.pop("__metadata__")["gcflow"])
    tensors, sizes = [], []
    for name, entry in sorted(header.items()):
        first, end = (8 + length + offset for offset in entry["data_offsets"])
        width, kind = TYPES[entry["dtype"]]
        for side in entry["shape"]:
            width *= side
        if end - first != width:
            raise ValueError(f"{name} has {end - first} bytes and the shape of {width}")
        tensors.append(Tensor(f"{name} {kind} {entry['shape']}", first, end))
        sizes.append((first, end))
    reached = 8 + length
    for first, end in sorted(sizes):
        if first != reached:
            raise ValueError("tensors overlap or leave a gap")
        reached = end
    if reached != size:
        raise ValueError(f"it has {size} bytes, its header describes {reached}")
    return Header(said, said.pop("content_sha256"), tensors)


def content_sha256(header: Header, file: FileIO, buffer: memoryview, advance: Callable[[int], None]) -> str:
    """The hash that `gcflow.weights.content_hash` gives of an open file. advance: told how many bytes were read."""
    found = hashlib.sha256(json.dumps(header.said, sort_keys=True).encode())
    for title, first, end in header.tensors:
        found.update(title.encode())
        file.seek(first)
        left = end - first
        while left and (count := file.readinto(buffer[:left])):
            found.update(buffer[:count])
            advance(count)
            left -= count
    return found.hexdigest()
