"""The jobs that trained runs, on which machines and with which code, and how long they took."""

from itertools import pairwise
from typing import Any, NamedTuple

NOT_RECORDED = "not recorded"


class Job(NamedTuple):
    """A job of a run. steps: from, to. seconds: spent in its training steps; None if nothing tells."""

    begun: str
    steps: tuple[int, int]
    seconds: float | None
    host: str
    device: str
    processes: int
    torch: str
    gcflow: str
    code: str
    slurm_job: str


class Environment(NamedTuple):
    """Where and with what jobs ran. runs: how many runs had a job in it."""

    host: str
    device: str
    processes: int
    torch: str
    gcflow: str
    code: str
    runs: int
    seconds: float


def training_seconds(
    lines: list[dict[str, Any]], batch: int | None, begin: int = 0, end: int | None = None
) -> float | None:
    """Seconds that the training steps from `begin` to `end` took, by the speed of each line of metrics.jsonl."""
    if not lines or batch is None:
        return None
    places = [0, *(line["step"] for line in lines)]
    return sum(
        (step - before) * batch / line["images_per_second"]
        for (before, step), line in zip(pairwise(places), lines, strict=True)
        if begin < step and (end is None or step <= end)
    )


def read_jobs(document: Any, lines: list[dict[str, Any]], batch: int | None) -> list[Job]:
    """The jobs of a run's jobs.json; none where it has none."""
    found = []
    entries = list(document or [])
    last = lines[-1]["step"] if lines else 0
    for index, entry in enumerate(entries):
        end = entries[index + 1]["step"] if index + 1 < len(entries) else last
        found.append(
            Job(
                begun=entry["begun"].replace("T", " ").replace("+00:00", " UTC"),
                steps=(entry["step"], end),
                seconds=training_seconds(lines, batch, entry["step"], end),
                host=entry["host"],
                device=entry["device"],
                processes=entry["processes"],
                torch=entry["torch"],
                gcflow=entry["gcflow"],
                code=_code(entry["commit"], entry["dirty"]),
                slurm_job=entry["slurm_job"] or "–",
            )
        )
    return found


def _code(commit: str | None, dirty: bool | None) -> str:
    if commit is None:
        return "no git repository"
    return f"{commit[:12]}{', with uncommitted changes' if dirty else ''}"


def environments(jobs_of_runs: list[list[Job]]) -> list[Environment]:
    """The different environments of all jobs, those with the most time first."""
    found: dict[tuple[Any, ...], Environment] = {}
    for jobs in jobs_of_runs:
        seen = set()
        for job in jobs:
            key = (job.host, job.device, job.processes, job.torch, job.gcflow, job.code)
            known = found.get(key) or Environment(*key, runs=0, seconds=0.0)
            found[key] = known._replace(
                runs=known.runs + (key not in seen), seconds=known.seconds + (job.seconds or 0.0)
            )
            seen.add(key)
    return sorted(found.values(), key=lambda known: (-known.seconds, known))
