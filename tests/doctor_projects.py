"""Projects at the paper's scale whose data are a folder of photographs, for the tests of `gcflow doctor`."""

import json
from pathlib import Path
from typing import Any

from projects import tiny_params, write_project

from gcflow.pipeline.doctor.check import Check, Request, Target
from gcflow.pipeline.doctor.project import resolve
from gcflow.pipeline.params import Params

FOLDER = {"source": "folder", "path": "photos.zip", "size": 32, "images": 6}


def paper_params(data: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A grid with a data set `photos` at the paper's scale, beside the tiny ones."""
    document = tiny_params()
    entry = json.loads(json.dumps(document["datasets"]["mixture2d"]))
    entry |= {
        "scale": "paper",
        "data": data,
        "features": {"kind": "inception", "weights": "inception.pt", "protocols": {"clean": {}}},
        "figures": {"grid": {"kind": "samples", "title": "Photographs", "reproduces": "figure9", "methods": ["ic"]}},
    }
    document["datasets"]["photos"] = entry | changes
    return document


def project(root: Path, document: dict[str, Any]) -> Path:
    write_project(root, document)
    (root / "archives").mkdir(exist_ok=True)
    (root / "Snakefile").touch()
    return root


def asked(root: Path, target: str | None = "photos", scale: str = "paper", thorough: bool = False) -> Target:
    request = Request(root / "params.yaml", target, scale, thorough=thorough)
    return resolve(request, Params(request.path))


def refused(check: Check, verdict: str, *named: str) -> None:
    """That a check failed, in words that name what is wrong and what to do."""
    assert check.verdict == verdict, check
    assert check.fails
    assert check.mend
    for name in named:
        assert name in f"{check.found} {check.mend}"
