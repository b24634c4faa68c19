"""A diagnosis on the terminal, and as a document."""

from typing import Any

import click

from gcflow.pipeline.doctor.check import Check, Request, Verdict

MARKS: dict[Verdict, tuple[str, str]] = {
    "OK": ("✓", "green"),
    "warning": ("!", "yellow"),
    "missing": ("✗", "red"),
    "broken": ("✗", "red"),
    "skipped": ("-", "bright_black"),
}


def screen(request: Request, checks: list[Check]) -> str:
    """The checks as lines, with colours, and what follows from them."""
    column = max(len(check.subject) for check in checks)
    hanging = " " * (2 + 9 + column + 2)
    lines = []
    for check in checks:
        mark, colour = MARKS[check.verdict]
        if not check.needed and check.verdict in ("missing", "broken"):
            mark, colour = MARKS["warning"]
        head = f"{click.style(f'{mark} {check.verdict:<7}', fg=colour)}  {check.subject:<{column}}  "
        lines.append(head + check.found)
        if check.mend and check.verdict != "OK":
            lines.append(f"{hanging}→ {check.mend}")
    failing = sum(check.fails for check in checks)
    what = f"{request.target or 'everything'} at scale {request.scale}"
    result = f"{what}: cannot run here yet, {failing} of {len(checks)} checks fail"
    lines.append(click.style(result, fg="red") if failing else click.style(f"{what}: can run here", fg="green"))
    return "\n".join(lines)


def document(request: Request, checks: list[Check]) -> dict[str, Any]:
    """What `--json` writes."""
    return {
        "target": request.target,
        "scale": request.scale,
        "can_run": not any(check.fails for check in checks),
        "checks": [check._asdict() for check in checks],
    }
