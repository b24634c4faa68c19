"""A report on the terminal, and as a document."""

from typing import Any

import click

from gcflow.pipeline.verify.findings import Reason
from gcflow.pipeline.verify.inspection import Advice, Report
from gcflow.pipeline.verify.statements import Algorithm, Kind

MARKS: dict[Kind, tuple[str, str]] = {
    "damaged": ("✗", "red"),
    "stray": ("✗", "red"),
    "missing": ("✗", "red"),
    "older": ("!", "yellow"),
}
NAMES: dict[Algorithm | str, str] = {"md5": "md5", "sha256": "sha256", "content": "hash of its tensors"}
HANGING = " " * 11
SHOWN = 3
DIGITS = 8


def _listed(names: list[str] | tuple[str, ...]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _reason(path: str, reason: Reason) -> str:
    if not reason.found:
        return reason.what
    by = "the file itself" if reason.by == path else reason.by
    what = NAMES.get(reason.what, reason.what)
    return f"{what}: {reason.found[:DIGITS]} found, {reason.expected[:DIGITS]} expected by {by}"


def _lines(advice: Advice) -> list[str]:
    finding = advice.finding
    mark, colour = MARKS[finding.kind]
    lines = [f"{click.style(f'{mark} {finding.kind:<7}', fg=colour)}  {finding.path}"]
    lines += [f"{HANGING}{_reason(finding.path, reason)}" for reason in finding.reasons]
    if finding.also:
        lines.append(f"{HANGING}the same bytes: {', '.join(finding.also)}")
    if advice.dependents:
        lines.append(f"{HANGING}read by {_listed(advice.dependents)}")
    return [*lines, f"{HANGING}→ {advice.cure}"]


def screen(targets: tuple[str, ...], scale: str, report: Report) -> str:
    """The report as lines, with colours."""
    lines = [line for advice in report.advice for line in _lines(advice)]
    lines += [
        f"- {run} is being trained by {holder}: its files were not looked at" for run, holder in report.busy.items()
    ]
    if any(advice.finding.kind in ("damaged", "stray") for advice in report.advice):
        lines.append("- if something was made again on purpose since it was recorded: gcflow record, then verify again")
    for stages, text in (
        (report.renewed, "made again with other settings since they were recorded, not compared with dvc.lock: {}"),
        (report.absent, "recorded in dvc.lock, not here: {}; dvc checkout, or dvc pull"),
        (report.open, "not computed yet: {}"),
    ):
        if stages:
            lines.append(f"- {len(stages)} stages {text.format(_listed(stages))}")
    if report.unknown:
        what = f"{len(report.unknown)} files not recorded, nobody vouches for them"
        lines.append(f"- {what}: {_listed(report.unknown)}; gcflow record")
    name = "everything" if targets == ("all",) else " ".join(targets)
    speed = report.bytes / 1e6 / max(report.seconds, 1e-9)
    read = f"{report.files} files, {report.bytes / 1e9:.2f} GB in {report.seconds:.1f} s ({speed:.0f} MB/s)"
    result = f"{name} at scale {scale}: {read}; {_verdict(report)}"
    lines.append(click.style(result, fg="green" if report.whole else "red"))
    return "\n".join(lines)


def _verdict(report: Report) -> str:
    counts = {kind: sum(advice.finding.kind == kind for advice in report.advice) for kind in MARKS}
    found = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
    return found or ("all of them whole" if report.files else "nothing is here to compare")


def document(targets: tuple[str, ...], scale: str, report: Report) -> dict[str, Any]:
    """What `--json` writes."""
    return {
        "targets": list(targets),
        "scale": scale,
        "whole": report.whole,
        "findings": [_finding(advice) for advice in report.advice],
        "files": report.files,
        "bytes": report.bytes,
        "seconds": round(report.seconds, 3),
        "busy": report.busy,
        "not_recorded": report.unknown,
        "made_again": report.renewed,
        "not_here": report.absent,
        "not_computed": report.open,
    }


def _finding(advice: Advice) -> dict[str, Any]:
    finding = advice.finding
    return {
        "kind": finding.kind,
        "path": finding.path,
        "same_bytes": list(finding.also),
        "reasons": [reason._asdict() for reason in finding.reasons],
        "cure": advice.cure,
        "dependents": list(advice.dependents),
    }
