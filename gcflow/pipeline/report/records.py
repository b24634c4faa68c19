"""The inputs of the report: recorded files alone, so that it is the same bytes wherever it is made from them."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from gcflow.files import expected_form, read_json, sha256_of
from gcflow.pipeline.stages import Stage, Stages

# Snakemake's own mark inside directories that its rules write.
MARK = ".snakemake_timestamp"


class Output(NamedTuple):
    """A file that a stage makes. state: `there`, `missing`, or `not read`. sha256, size: of one that is there."""

    path: str
    state: str
    sha256: str | None = None
    size: int | None = None


class Pending(NamedTuple):
    """A stage that lacks files: its command, and which."""

    name: str
    command: str
    files: list[str]


class Records:
    """The files of a project, by their paths relative to its root. What is not there is None, never an error.

    Args:
        root: the project's folder.
        stages: of the scale; what its report depends on is all that is read.
    """

    def __init__(self, root: Path, stages: Stages) -> None:
        self.root = root
        self.read = frozenset(stages.report().deps)

    def path(self, name: Path | str) -> Path | None:
        """The path of a file, if it is there."""
        path = self.root / name
        return path if path.exists() else None

    def json(self, name: Path | str) -> Any:
        """The content of a JSON file.

        Raises:
            GcflowError: it is not JSON.
        """
        path = self.path(name)
        return None if path is None else read_json(path)

    def text(self, name: Path | str) -> str | None:
        """The content of a text file.

        Raises:
            GcflowError: it is not UTF-8.
        """
        path = self.path(name)
        if path is None:
            return None
        with expected_form(path):
            return path.read_text(encoding="utf-8")

    def lines(self, name: Path | str) -> list[dict[str, Any]]:
        """The objects of a JSON-lines file; none, if it is not there.

        Raises:
            GcflowError: a line is not JSON.
        """
        text = self.text(name) or ""
        with expected_form(self.root / name):
            return [json.loads(line) for line in text.splitlines()]

    def outputs(self, stage: Stage) -> list[Output]:
        """Every file that a stage makes, with its hash; the files of folders one by one."""
        found: list[Output] = []
        for out in stage.outs:
            path = self.path(out)
            # What the report does not depend on must not change it, there or not.
            if out not in self.read:
                found.append(Output(f"{out}/", "not read"))
            elif path is None:
                found.append(Output(out, "missing"))
            else:
                found += [self._output(file) for file in _files(path)]
        return found

    def _output(self, file: Path) -> Output:
        return Output(file.relative_to(self.root).as_posix(), "there", sha256_of(file), file.stat().st_size)

    def pending(self, stages: Iterable[Stage]) -> list[Pending]:
        """The stages that lack files of those that the report reads."""
        found = []
        for stage in stages:
            missing = [out for out in stage.outs if out in self.read and self.path(out) is None]
            if missing:
                found.append(Pending(stage.name, stage.command, missing))
        return found


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    return sorted(file for file in path.rglob("*") if file.is_file() and file.name != MARK)
