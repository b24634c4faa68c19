"""Prepared data: a data set's arrays on disk, with a manifest that vouches for them."""

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from gcflow.config import to_dict
from gcflow.errors import GcflowError
from gcflow.files import atomic_path, read_json, sha256_of, write_json
from gcflow.sources import DataSource


class Dataset(NamedTuple):
    """Prepared data. samples: uint8 [n, C, H, W] or float32 [n, d]. labels: int64 [n]. sha256: of the samples file."""

    samples: Tensor
    labels: Tensor
    sha256: str

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return tuple(self.samples.shape[1:])


def prepare(source: DataSource, folder: Path) -> dict[str, Any]:
    """Writes samples.npy, labels.npy and, last, manifest.json to `folder`; returns the manifest.

    Interrupted, it leaves no manifest, or one whose hashes `load_dataset` finds wrong.
    """
    raw = source.load()
    arrays = {"samples": raw.samples, "labels": raw.labels}
    for name, array in arrays.items():
        with atomic_path(folder / f"{name}.npy") as temporary, temporary.open("wb") as file:
            np.save(file, array)
    scaled = raw.samples / 127.5 - 1 if raw.samples.dtype == np.uint8 else raw.samples.astype(np.float64)
    channels = tuple(axis for axis in range(scaled.ndim) if axis != 1)
    manifest = {
        **raw.provenance,
        "options": to_dict(source),
        "count": len(raw.samples),
        "shape": list(raw.samples.shape[1:]),
        "dtype": str(raw.samples.dtype),
        "channel_mean": [round(float(m), 6) for m in scaled.mean(channels)],
        "channel_std": [round(float(s), 6) for s in scaled.std(channels)],
        "std": round(math.sqrt(float(scaled.var())), 6),
        "sha256": {f"{name}.npy": sha256_of(folder / f"{name}.npy") for name in arrays},
    }
    write_json(folder / "manifest.json", manifest)
    return manifest


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
    if not isinstance(manifest["sha256"], dict) or not {"samples.npy", "labels.npy"} <= manifest["sha256"].keys():
        raise GcflowError(f"{folder}/manifest.json: sha256 lacks samples.npy or labels.npy; {again}")
    for name, expected in manifest["sha256"].items():
        path = folder / name
        if not path.exists():
            raise GcflowError(f"{path}: missing, though the manifest lists it; {again}")
        if sha256_of(path) != expected:
            raise GcflowError(f"{path}: sha256 differs from manifest.json, so it is truncated or changed; {again}")
    # Mapped, not read: data larger than the memory are streamed from the file.
    samples = np.load(folder / "samples.npy", mmap_mode="c")
    if list(samples.shape) != [manifest["count"], *manifest["shape"]]:
        raise GcflowError(f"{folder}/samples.npy: shape {list(samples.shape)} is not the manifest's; {again}")
    labels = np.load(folder / "labels.npy")
    return Dataset(torch.from_numpy(samples), torch.from_numpy(labels), manifest["sha256"]["samples.npy"])
