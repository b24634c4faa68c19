"""The jobs that trained runs, on which machines and with which code, and how long they took."""

from datetime import datetime
from itertools import pairwise
from typing import Any, NamedTuple


class Environment(NamedTuple):
    """The machine and the code of a job."""

    host: str
    device: str
    processes: int
    torch: str
    gcflow: str
    code: str

    @property
    def versions(self) -> str:
        """The versions of the two packages that decide what is computed."""
        return f"gcflow {self.gcflow}, torch {self.torch}"


class Job(NamedTuple):
    """A job of a run. steps: from, to. seconds: spent in its training steps; None if nothing tells."""

    begun: float
    steps: tuple[int, int]
    seconds: float | None
    environment: Environment
    slurm_job: str


class Use(NamedTuple):
    """The jobs of an environment. runs: how many had a job in it. seconds: spent in their training steps."""

    environment: Environment
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
                begun=datetime.fromisoformat(entry["begun"]).timestamp(),
                steps=(entry["step"], end),
                seconds=training_seconds(lines, batch, entry["step"], end),
                environment=Environment(
                    host=entry["host"],
                    device=entry["device"],
                    processes=entry["processes"],
                    torch=entry["torch"],
                    gcflow=entry["gcflow"],
                    code=_code(entry["commit"], entry["dirty"]),
                ),
                slurm_job=entry["slurm_job"] or "–",
            )
        )
    return found


def _code(commit: str | None, dirty: bool | None) -> str:
    if commit is None:
        return "no git repository"
    return f"{commit[:12]}{', with uncommitted changes' if dirty else ''}"


def environments(jobs_of_runs: list[list[Job]]) -> list[Use]:
    """The different environments of all jobs, those with the most time first."""
    found: dict[Environment, Use] = {}
    for jobs in jobs_of_runs:
        seen = set()
        for job in jobs:
            known = found.get(job.environment, Use(job.environment, 0, 0.0))
            found[job.environment] = known._replace(
                runs=known.runs + (job.environment not in seen), seconds=known.seconds + (job.seconds or 0.0)
            )
            seen.add(job.environment)
    return sorted(found.values(), key=lambda known: (-known.seconds, known))
