"""What a run's files say at their ends and beginnings: metrics and logs that still grow, headers of checkpoints."""

import json
import os
import re
from pathlib import Path
from typing import Any

METRICS_BYTES = 4096
LOG_BYTES = 65536
HEADER_BYTES = 65536
ERROR = "gcflow: error: "
TRACEBACK = "Traceback (most recent call last)"
# How a job ends that was stopped on request: it failed at nothing.
STOPPED = re.compile(r"; saved at step \d+ of \d+$|; nothing was begun$|^stopped while it waited$")


def _last_lines(path: Path, size: int) -> list[str]:
    """The lines with text among the last bytes of a file; the first of them may be cut."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - size))
            content = file.read().decode(errors="replace")
    except OSError:
        return []
    return [line for line in content.splitlines() if line.strip()]


def last_record(path: Path) -> dict[str, Any]:
    """The last whole line of a metrics.jsonl; empty if it has none."""
    for line in reversed(_last_lines(path, METRICS_BYTES)):
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and {"step", "images_per_second", "time"} <= record.keys():
            return record
    return {}


def last_words(path: Path, run: str) -> tuple[str, bool]:
    """Why a job ended by its log, without the run's name, and whether that is a failure; empty if it does not say."""
    lines = _last_lines(path, LOG_BYTES)
    errors = [line for line in lines if line.startswith(ERROR)]
    unwound = any(TRACEBACK in line for line in lines)
    if not errors and not unwound:
        return "", False
    said = (errors or lines)[-1]
    # As one line on a terminal, whatever the log has in it.
    said = "".join(c if c.isprintable() else " " for c in said)
    said = said.removeprefix(ERROR).removeprefix(f"{run}: ").strip()
    return said, not (errors and STOPPED.search(said))


def checkpoint_header(path: Path) -> dict[str, Any]:
    """What a checkpoint says of itself; empty if it is damaged.

    It stands before the names of the tensors, of which there are thousands.
    """
    try:
        with path.open("rb") as file:
            start = file.read(HEADER_BYTES)[8:].decode(errors="replace")
        metadata, _ = json.JSONDecoder().raw_decode(start.removeprefix('{"__metadata__":'))
        header = json.loads(metadata["gcflow"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return header if isinstance(header, dict) else {}
