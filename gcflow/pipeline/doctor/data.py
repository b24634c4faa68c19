"""Prepared arrays, or the archives that they would be made from."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gcflow.errors import GcflowError
from gcflow.pipeline.doctor.archives import require_whole
from gcflow.pipeline.doctor.check import Check, Target, one_line, refusal, size

if TYPE_CHECKING:
    from gcflow.archives.base import Archived
    from gcflow.register import Source


def check_data(target: Target) -> Iterator[Check]:
    """Prepared arrays; where there are none, what they would be made from."""
    from gcflow.archives.base import Archived
    from gcflow.pipeline.folders import data_folder

    for name in target.datasets:
        source, folder = target.params.dataset(name).data, data_folder(target.params.root, name)
        prepared = (folder / "manifest.json").exists()
        if prepared:
            check = _prepared(name, folder, source, target.request.thorough)
            yield check
            if check.verdict != "warning":
                continue
        if isinstance(source, Archived):
            yield _archive(name, source, target.archives, target.request.thorough)
        elif not prepared:
            yield Check(f"data {name}", "OK", "not prepared yet; its source needs no download")


def _prepared(name: str, folder: Path, source: "Source", thorough: bool) -> Check:
    from gcflow.config import to_dict

    subject, again = f"data {name}", f"gcflow prepare {name}"
    try:
        manifest = _described_arrays(folder)
        if thorough:
            from gcflow.data import load_dataset

            load_dataset(folder)
    except GcflowError as error:
        return refusal(subject, error)._replace(mend=again)
    if manifest.get("options") != json.loads(json.dumps(to_dict(source))):
        return Check(subject, "warning", "prepared with other options than params.yaml's", again, needed=False)
    shape, how = "x".join(map(str, manifest["shape"])), "sha256" if thorough else "sizes"
    return Check(subject, "OK", f"{manifest['count']} samples of shape {shape}, {how} as in the manifest")


def _described_arrays(folder: Path) -> dict[str, Any]:
    """The manifest; a GcflowError if an array is missing, cut, or of another shape than it says."""
    import numpy as np

    from gcflow.files import read_json

    manifest = read_json(folder / "manifest.json")
    if not isinstance(manifest, dict) or not {"count", "shape", "held_out"} <= manifest.keys():
        raise GcflowError(f"{folder / 'manifest.json'}: lacks count, shape or held_out")
    count, shape = manifest["count"], manifest["shape"]
    expected = {"samples.npy": [count, *shape], "labels.npy": [count], "held_out.npy": [manifest["held_out"], *shape]}
    for name, wanted in expected.items():
        try:
            # Mapped: a file that is shorter than its header says is refused, and nothing is read.
            found = list(np.load(folder / name, mmap_mode="r").shape)
        except FileNotFoundError:
            raise GcflowError(f"{folder / name}: missing") from None
        except (OSError, ValueError, EOFError) as error:
            raise GcflowError(f"{folder / name}: {one_line(error)}") from None
        if found != wanted:
            raise GcflowError(f"{folder / name}: shape {found}, the manifest says {wanted}")
    return manifest


def _archive(name: str, source: "Archived", archives: Path, thorough: bool) -> Check:
    subject = f"archive {name}"
    try:
        files = source.locate(archives)
        require_whole(files, source, thorough)
    except GcflowError as error:
        refused = refusal(subject, error)
        return refused._replace(mend=refused.mend.replace("give --download", f"run gcflow prepare {name} --download"))
    shown = " and ".join(path.name for path in files) if len(files) <= 2 else f"{len(files)} files in {files[0].parent}"
    if files[0].is_dir():
        return Check(subject, "OK", f"the folder {files[0]}, which has images")
    total = size(sum(path.stat().st_size for path in files))
    how = "all of it reads" if thorough else "begins and ends as it should"
    return Check(subject, "OK", f"{shown}, {total}, {how}")
