"""Prepared data: a data set's arrays on disk, with a manifest that vouches for them."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from gcflow.archives.base import Archived
from gcflow.archives.locators import Report, silent
from gcflow.config import to_dict
from gcflow.errors import GcflowError
from gcflow.files import atomic_path, read_json, sha256_of, write_json
from gcflow.sources import SmallSource, Source, moments


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


def prepare(
    source: Source,
    folder: Path,
    archives: Path = Path("archives"),
    workers: int | None = None,
    skip_broken: bool = False,
    download: bool = False,
    report: Report = silent,
) -> dict[str, Any]:
    """Writes samples.npy, labels.npy, held_out.npy and, last, manifest.json to `folder`; returns the manifest.

    Interrupted, it leaves no manifest, or one whose hashes `load_dataset` finds wrong, or the old data. From archives
    a second call goes on where the first was cut, and ends with the same bytes.

    Args:
        source: of the samples.
        folder: is made if it is missing.
        archives: the folder in which archives are looked for.
        workers: processes that decode images; by default one per available core.
        skip_broken: leave out images that do not decode, and list them in the manifest, instead of failing.
        download: fetch a missing archive that can be downloaded by a program.
        report: called with what is done, the total (0: unknown), and which of `archives.locators.PHASES` this is.

    Raises:
        GcflowError: an archive is missing, truncated, or of another data set, or an image does not decode.
        OSError: the arrays cannot be written.
    """
    if isinstance(source, Archived):
        # Here, because it needs Pillow, without which everything else does.
        from gcflow.archives.preparation import prepare_archive

        return prepare_archive(source, folder, archives, workers, skip_broken, download, report)
    assert isinstance(source, SmallSource)
    raw = source.load()
    held_out = raw.samples[:0] if raw.held_out is None else raw.held_out
    arrays = {"samples.npy": raw.samples, "labels.npy": raw.labels, "held_out.npy": held_out}
    for name, array in arrays.items():
        with atomic_path(folder / name) as temporary, temporary.open("wb") as file:
            np.save(file, array)
    manifest = {
        **raw.provenance,
        "options": to_dict(source),
        "count": len(raw.samples),
        "held_out": len(held_out),
        "shape": list(raw.samples.shape[1:]),
        "dtype": str(raw.samples.dtype),
        **moments(raw.samples),
        "sha256": {name: sha256_of(folder / name) for name in arrays},
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
    # Mapped, not read: data larger than the memory are streamed from the file.
    samples, held_out = (np.load(folder / name, mmap_mode="c") for name in ("samples.npy", "held_out.npy"))
    if list(samples.shape) != [manifest["count"], *manifest["shape"]]:
        raise GcflowError(f"{folder}/samples.npy: shape {list(samples.shape)} is not the manifest's; {again}")
    labels = np.load(folder / "labels.npy")
    return Dataset(
        torch.from_numpy(samples), torch.from_numpy(labels), listed["samples.npy"], torch.from_numpy(held_out)
    )
