"""The standings of runs on a terminal, once or again and again, and as a document."""

import json
import shutil
import sys
import time
from collections import Counter
from dataclasses import asdict
from typing import Any, NamedTuple

import click

from gcflow.pipeline.status.survey import Standing, State, Survey, clock

SECONDS_BETWEEN_DRAWINGS = 5.0
COLOURS: dict[State, str] = {
    "evaluated": "green",
    "done": "green",
    "running": "cyan",
    "interrupted": "yellow",
    "failed": "red",
    "waiting": "bright_black",
}
# Which runs are shown where not all have room.
URGENCY: tuple[State, ...] = ("failed", "running", "interrupted", "waiting", "done", "evaluated")
HEADER = ("run", "state", "step", "", "images/s", "left", "")
TO_THE_RIGHT = {2, 3, 4, 5}
STATE_COLUMN = 1
LEAST_DETAIL = 24


class Room(NamedTuple):
    """Columns and lines that there are; None is any number."""

    columns: int | None = None
    lines: int | None = None


def _detail(standing: Standing) -> str:
    process = ""
    if standing.host:
        names = [standing.host]
        names += [f"Slurm job {standing.slurm_job}"] if standing.slurm_job else []
        names += [f"process {standing.pid}"]
        process = ", ".join(names)
        if standing.state == "interrupted":
            process = f"{process} ended without a word, last heard of {clock(standing.seconds_silent or 0)} ago"
    again = f"attempt {standing.attempt}" if standing.attempt > 1 and not standing.trained else ""
    return "; ".join(text for text in (process, again, standing.detail) if text)


def _cells(standing: Standing) -> tuple[str, ...]:
    begun = standing.step > 0
    return (
        standing.run,
        standing.state,
        f"{standing.step}/{standing.steps}",
        f"{100 * standing.step // standing.steps}%" if begun else "",
        f"{standing.images_per_second:.4g}" if standing.images_per_second is not None else "",
        clock(standing.seconds_left) if standing.seconds_left is not None else "",
        _detail(standing),
    )


def _cut(text: str, columns: int | None) -> str:
    return text if columns is None or len(text) <= columns else f"{text[: max(0, columns - 3)]}..."[:columns]


def summary(survey: Survey, standings: list[Standing]) -> str:
    """How many runs are in which state."""
    counts = Counter(standing.state for standing in standings)
    parts = [f"{counts[state]} {state}" for state in COLOURS if counts[state]]
    what = "everything" if survey.target == "all" else survey.target
    runs = f"{len(standings)} run{'s' if len(standings) != 1 else ''}"
    return f"{what} at scale {survey.scale}: {', '.join([runs, *parts])}"


def screen(survey: Survey, standings: list[Standing], room: Room) -> str:
    """The standings as lines, with colours: a table, or two lines for each run where it does not fit."""
    rows = [_cells(standing) for standing in standings]
    used = [n for n in range(len(HEADER) - 1) if any(row[n] for row in rows)]
    widths = {n: max(len(HEADER[n]), *(len(row[n]) for row in rows)) for n in used}
    left = None if room.columns is None else room.columns - sum(widths.values()) - 2 * len(used)
    needed = LEAST_DETAIL if any(row[-1] for row in rows) else 0
    wide = left is None or left >= needed

    first = _cut(summary(survey, standings), room.columns)
    shown = _most_urgent(standings, None if room.lines is None else (room.lines - 5) // (1 if wide else 2))
    lines = [click.style(first, bold=True), ""]
    if wide:
        lines.append(_line(HEADER, widths, None, left).rstrip())
    for n in shown:
        row, colour = rows[n], COLOURS[standings[n].state]
        if wide:
            lines.append(_line(row, widths, colour, left).rstrip())
        else:
            lines.append(_cut(f"{row[0]}  {row[1]}", room.columns).replace(row[1], click.style(row[1], fg=colour)))
            lines.append(_cut("  " + "  ".join(cell for cell in row[2:] if cell), room.columns))
    if len(shown) < len(rows):
        lines.append(_cut(f"and {len(rows) - len(shown)} more", room.columns))
    return "\n".join(lines)


def _line(row: tuple[str, ...], widths: dict[int, int], colour: str | None, left: int | None) -> str:
    cells = [row[n].rjust(width) if n in TO_THE_RIGHT else row[n].ljust(width) for n, width in widths.items()]
    if colour:
        cells[STATE_COLUMN] = click.style(cells[STATE_COLUMN], fg=colour)
    return "  ".join([*cells, _cut(row[-1], left)])


def _most_urgent(standings: list[Standing], count: int | None) -> list[int]:
    """The places of the runs to be shown, in their order."""
    ranked = sorted(range(len(standings)), key=lambda n: URGENCY.index(standings[n].state))
    return sorted(ranked if count is None else ranked[: max(1, count)])


def document(survey: Survey, standings: list[Standing]) -> dict[str, Any]:
    """What `--json` writes."""
    counts = Counter(standing.state for standing in standings)
    return {
        "target": survey.target,
        "scale": survey.scale,
        "finished": all(standing.finished for standing in standings),
        "counts": {state: counts[state] for state in COLOURS},
        "runs": [asdict(standing) for standing in standings],
    }


def _say(text: str) -> None:
    # No status must fail at a character of a log that the terminal does not have.
    encoding = sys.stdout.encoding or "utf-8"
    click.echo(text.encode(encoding, "replace").decode(encoding))


def show(survey: Survey) -> None:
    """Writes the standings, in the columns of the terminal if this is one."""
    columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    _say(screen(survey, survey.standings(), Room(columns)))


def show_json(survey: Survey) -> None:
    """Writes the standings as JSON."""
    click.echo(json.dumps(document(survey, survey.standings()), indent=2))


def watch(survey: Survey, seconds: float = SECONDS_BETWEEN_DRAWINGS) -> None:
    """Draws the standings every few seconds, elsewhere than on a terminal if they changed, until all is finished."""
    before = ""
    try:
        while True:
            standings = survey.standings()
            if sys.stdout.isatty():
                click.clear()
                _say(screen(survey, standings, Room(*shutil.get_terminal_size())))
            elif (text := screen(survey, standings, Room())) != before:
                _say(f"\n{text}" if before else text)
                before = text
            if all(standing.finished for standing in standings):
                return
            time.sleep(seconds)
    except KeyboardInterrupt:
        click.echo()
