"""What the report is made from: recorded files alone, so that it is the same bytes wherever it is made from them."""

import base64
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from gcflow.errors import GcflowError
from gcflow.files import expected_form, sha256_of
from gcflow.pipeline.stages import Stage

Part = TypeVar("Part")
MEDIA = {".png": "image/png", ".svg": "image/svg+xml"}
# Drawn for paper: at night its black and white are those of the page.
NIGHT = b"""@media (prefers-color-scheme: dark) {
[style*="fill: #ffffff"] { fill: #1f2127 !important; } [style*="stroke: #ffffff"] { stroke: #1f2127 !important; }
[style*="fill: #000000"] { fill: #eeeef2 !important; } [style*="stroke: #000000"] { stroke: #eeeef2 !important; }
text { fill: #eeeef2; } }
</style>"""
# Snakemake's own mark inside directories that its rules write.
MARK = ".snakemake_timestamp"


@contextmanager
def recorded(path: Path) -> Iterator[Any]:
    """The content of a JSON file, or all lines of a JSON-lines file; None if it is not there.

    Raises:
        GcflowError: it is not JSON, or what is looked for in the block is not in it.
    """
    with expected_form(path):
        text = path.read_text(encoding="utf-8") if path.exists() else None
        if text is None:
            yield None
        elif path.suffix == ".jsonl":
            yield [json.loads(line) for line in text.splitlines()]
        else:
            yield json.loads(text)


def or_without(damaged: list[str], make: Callable[[], Part], without: Part) -> Part:
    """A part of the report, or how it is without a file of its own that is damaged, which is noted."""
    try:
        return make()
    except GcflowError as error:
        damaged.append(str(error))
        return without


def embedded(content: bytes, media: str) -> str:
    """A picture as a data URI."""
    return f"data:{media};base64,{base64.b64encode(content).decode()}"


def picture(path: Path) -> str | None:
    """A PNG or SVG file as a data URI; None if it is not there."""
    if not path.exists():
        return None
    return embedded(path.read_bytes().replace(b"</style>", NIGHT, 1), MEDIA[path.suffix])


class Made(NamedTuple):
    """A stage. files: path, size and sha256 of each that is there, in folders one by one. missing: outputs."""

    stage: Stage
    files: list[tuple[str, int, str]]
    missing: list[str]


def made_by(root: Path, stage: Stage, read: frozenset[str]) -> Made:
    """What a stage made, of the files that the report reads: others, there or not, must not change it."""
    outs = [out for out in stage.outs if out in read]
    files = [
        (file.relative_to(root).as_posix(), file.stat().st_size, sha256_of(file))
        for out in outs
        for file in (sorted((root / out).rglob("*")) if (root / out).is_dir() else [root / out])
        if file.is_file() and file.name != MARK
    ]
    return Made(stage, files, [out for out in outs if not (root / out).exists()])
