"""Prepared data: a data set's arrays on disk, with a manifest that vouches for them."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from gcflow.errors import GcflowError
from gcflow.files import atomic_path, read_json, sha256_of
from gcflow.readable import one_line

MOMENT_ROWS = 1024


class Dataset(NamedTuple):
    """Prepared data. samples: uint8 [n, C, H, W] or float32 [n, d]. labels: int64 [n]. sha256: of the samples file.

    held_out: samples that no training sees, n = 0 if the source has none.
    """

    samples: Tensor
    labels: Tensor
    sha256: str
    held_out: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return tuple(self.samples.shape[1:])


def write_array(path: Path, shape: tuple[int, ...], dtype: "np.dtype[Any]", contents: Iterable[bytes]) -> None:
    """Writes an .npy file atomically. contents: the bytes of its rows.

    Raises:
        OSError: with the file's name, for instance of a full disk.
    """
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        fields = {"descr": dtype.str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, fields)
        for content in contents:
            file.write(content)


def moments(samples: np.ndarray) -> dict[str, Any]:
    """Mean and standard deviation of each channel, and the overall standard deviation, of data in [-1, 1].

    samples: uint8 [n, C, H, W], of which the sums are exact and only some are in memory, or float32 [n, d].
    """
    if samples.dtype == np.uint8:
        total, squares = (np.zeros(samples.shape[1], np.int64) for _ in range(2))
        flat = samples.reshape(*samples.shape[:2], -1)
        # Sums of an image's channel first: narrow integers, in which they are exact, take a sixth of the time.
        narrow = np.uint32 if flat.shape[2] <= 2**16 else np.uint64
        for first in range(0, len(flat), MOMENT_ROWS):
            part = flat[first : first + MOMENT_ROWS]
            total += part.sum(2, dtype=narrow).sum(0, dtype=np.int64)
            squares += np.square(part, dtype=np.uint16).sum(2, dtype=narrow).sum(0, dtype=np.int64)
        pixels = len(samples) * flat.shape[2]
        mean = total / pixels / 127.5 - 1
        deviation = np.sqrt(np.maximum(squares / pixels - (total / pixels) ** 2, 0)) / 127.5
        overall = math.sqrt(float(np.mean(deviation**2) + mean.var()))
    else:
        values = samples.astype(np.float64)
        mean, deviation, overall = values.mean(0), values.std(0), math.sqrt(float(values.var()))
    return {
        "channel_mean": [round(float(value), 6) for value in mean],
        "channel_std": [round(float(value), 6) for value in deviation],
        "std": round(overall, 6),
    }


def described(folder: Path) -> dict[str, Any]:
    """The part of a manifest that follows from the arrays in `folder`."""
    samples, held_out = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("samples", "held_out"))
    return {
        "count": len(samples),
        "held_out": len(held_out),
        "shape": list(samples.shape[1:]),
        "dtype": str(samples.dtype),
        **moments(samples),
        "sha256": {name: sha256_of(folder / name) for name in ("samples.npy", "labels.npy", "held_out.npy")},
    }


def load_dataset(folder: Path) -> Dataset:
    """Reads and verifies prepared data.

    Raises:
        GcflowError: preparation did not finish, or an array is not the one that the manifest describes.
    """
    if not (folder / "manifest.json").exists():
        raise GcflowError(
            f"{folder}/manifest.json: missing, so preparation did not finish; run gcflow prepare {folder.name}"
        )
    manifest = read_json(folder / "manifest.json")
    again = f"run gcflow prepare {folder.name}"
    if not isinstance(manifest, dict) or not {"sha256", "count", "shape"} <= manifest.keys():
        raise GcflowError(f"{folder}/manifest.json: lacks sha256, count or shape; {again}")
    listed = manifest["sha256"] if isinstance(manifest["sha256"], dict) else {}
    for name in ("samples.npy", "labels.npy", "held_out.npy"):
        if name not in listed:
            raise GcflowError(f"{folder}/manifest.json: sha256 lacks {name}; {again}")
    for name, expected in listed.items():
        path = folder / name
        if not path.exists():
            raise GcflowError(f"{path}: missing, though the manifest lists it; {again}")
        if sha256_of(path) != expected:
            raise GcflowError(f"{path}: sha256 differs from manifest.json, so it is truncated or changed; {again}")
    samples, labels, held_out = (
        _mapped(folder / name, again) for name in ("samples.npy", "labels.npy", "held_out.npy")
    )
    if list(samples.shape) != [manifest["count"], *manifest["shape"]]:
        raise GcflowError(f"{folder}/samples.npy: shape {list(samples.shape)} is not the manifest's; {again}")
    alike = held_out.dtype == samples.dtype and held_out.shape[1:] == samples.shape[1:]
    numbered = labels.dtype == np.int64 and labels.shape == samples.shape[:1] and bool((labels >= 0).all())
    for name, fits, expected in (
        ("samples", _are_samples(samples), "uint8 images [n, C, H, W] or finite float32 points [n, d]"),
        ("labels", numbered, "an int64 >= 0 for each sample"),
        ("held_out", alike and _are_samples(held_out), "what samples.npy has"),
    ):
        if not fits:
            raise GcflowError(f"{folder}/{name}.npy: does not hold {expected}; {again}")
    return Dataset(
        torch.from_numpy(samples), torch.from_numpy(labels), listed["samples.npy"], torch.from_numpy(held_out)
    )


def _mapped(path: Path, again: str) -> np.ndarray:
    """An array that is not read but mapped: data larger than the memory are streamed from the file."""
    try:
        return np.lib.format.open_memmap(path, mode="c")
    except ValueError as error:
        raise GcflowError(f"{path}: no array of numbers ({one_line(str(error))}); {again}") from None


def _are_samples(array: np.ndarray) -> bool:
    points = array.dtype == np.float32 and array.ndim == 2
    return (array.dtype == np.uint8 and array.ndim == 4) or (points and bool(np.isfinite(array).all()))
