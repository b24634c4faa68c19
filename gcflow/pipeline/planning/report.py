"""`gcflow plan`: the jobs of a target with their time and disk, in rows and in total, and what those done took."""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from gcflow.files import write_json
from gcflow.pipeline.params import Params
from gcflow.pipeline.planning.disk import Space, free_bytes, second_copy, space_of
from gcflow.pipeline.planning.jobs import Graph, Job
from gcflow.pipeline.planning.schedule import Task, critical_path, makespan
from gcflow.pipeline.planning.seconds import Estimate, Machine, actual_seconds, benchmark_path

USUAL_GPUS = (1, 4, 8)
UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
SHOWN_OF_PATH = 8


class Entry(NamedTuple):
    """A job with what it costs. actual: seconds that it took, where it is done and was timed."""

    job: Job
    done: bool
    time: Estimate
    space: Space
    actual: float | None


class Amount(NamedTuple):
    """A number, or if not `exact` what it is at least; None is unknown altogether."""

    value: float | None
    exact: bool


@dataclass(frozen=True)
class Plan:
    """The jobs of a target, in an order in which they could run.

    gpus: numbers of GPUs for which the wall-clock time is wanted. cores: of the machine that was measured.
    """

    target: str
    graph: Graph
    entries: dict[str, Entry]
    gpus: tuple[int, ...]
    cores: int

    def left(self, names: Iterable[str]) -> list[Entry]:
        """Those of these jobs that are not done."""
        return [self.entries[name] for name in names if not self.entries[name].done]

    def hours(self, names: Iterable[str], gpu: bool) -> Amount:
        """GPU-hours, or core-hours of the jobs without a GPU, that are left."""
        entries = [entry for entry in self.left(names) if entry.time.gpu == gpu or entry.time.left is None]
        known = [entry.time for entry in entries if entry.time.left is not None]
        exact = all(entry.time.exact for entry in entries)
        if not known and entries:
            return Amount(None, False)
        return Amount(sum((time.left or 0.0) * (1 if gpu else time.threads) for time in known) / 3600, exact)

    def tasks(self, names: Iterable[str]) -> list[Task]:
        """The jobs left, as the scheduler takes them; what is unknown takes no time."""
        return [
            Task(
                entry.job.name,
                entry.time.left or 0.0,
                "gpu" if entry.time.gpu else "cpu",
                1 if entry.time.gpu else entry.time.threads,
                entry.job.needs,
            )
            for entry in self.left(names)
        ]

    def wall(self, names: Iterable[str], gpus: int) -> Amount:
        """Hours from the first job's beginning to the last one's end."""
        left = self.left(names)
        exact = all(entry.time.exact for entry in left)
        if left and all(entry.time.left is None for entry in left):
            return Amount(None, False)
        return Amount(makespan(self.tasks(names), {"gpu": gpus, "cpu": self.cores}) / 3600, exact)

    def bytes(self, names: Iterable[str]) -> Amount:
        """That the jobs left will write."""
        spaces = [entry.space for entry in self.left(names)]
        return Amount(sum(space.outputs + space.state for space in spaces), all(space.known for space in spaces))


def plan(params: Params, target: str, scale: str, gpus: int | None = None) -> Plan:
    """What a target costs.

    Args:
        params: the grid.
        target: a view of the paper, a data set, a stage, or `all` of the scale.
        scale: whose stages `all` and the views mean.
        gpus: that jobs share; None asks for the usual numbers.

    Raises:
        GcflowError: there is no such target, or a measurement does not read.
    """
    graph = Graph(params, scale)
    machine = Machine(graph)
    names = graph.target(target)
    if target == "all":
        names = graph.closure([*names, *(name for jobs in graph.views.values() for name in jobs)])
    done = graph.done(names)
    entries = {}
    for name in names:
        job = graph.jobs[name]
        actual = actual_seconds(benchmark_path(params.root, job)) if name in done else None
        entries[name] = Entry(job, name in done, machine.estimate(job), space_of(params, job), actual)
    return Plan(target, graph, entries, (gpus,) if gpus else USUAL_GPUS, machine.cores or os.cpu_count() or 1)


def _rows(planned: Plan) -> dict[str, list[str]]:
    """Title to jobs: the views and data sets that all jobs of the plan are of, and the total."""
    known = planned.entries
    rows = {view: names for view, names in planned.graph.views.items() if planned.target in ("all", view)}
    datasets = dict.fromkeys(entry.job.dataset for entry in known.values() if entry.job.dataset)
    rows |= {name: [job for job, entry in known.items() if entry.job.dataset == name] for name in datasets}
    return rows | {"total": planned.graph.target(planned.target)}


def document(planned: Plan) -> dict[str, Any]:
    """The plan as JSON: rows, totals, the critical path, disk, predicted against actual, and every job."""
    total = planned.graph.target(planned.target)
    seconds, chain = critical_path(planned.tasks(total))
    root = planned.graph.params.root
    left = planned.left(total)
    copy = second_copy(root)
    outputs, state = (sum(getattr(entry.space, kind) for entry in left) for kind in ("outputs", "state"))
    return {
        "target": planned.target,
        "scale": planned.graph.scale,
        "rows": {title: _row(planned, names) for title, names in _rows(planned).items()},
        "wall_clock_hours": {str(gpus): planned.wall(total, gpus)._asdict() for gpus in planned.gpus},
        "cores": planned.cores,
        "critical_path": {"hours": seconds / 3600, "jobs": chain, "exact": all(e.time.exact for e in left)},
        "disk": {
            "outputs": outputs,
            "checkpoints": state,
            "second_copy": outputs if copy else 0,
            "cache": str(copy) if copy else None,
            "exact": all(entry.space.known for entry in left),
            "free": free_bytes(root),
        },
        "notes": dict(Counter(note for entry in left for note in entry.time.notes)),
        "remedies": list(dict.fromkeys(e.time.remedy for e in left if e.time.remedy and not e.time.exact)),
        "ran": _ran(planned, total),
        "jobs": [_job(entry) for name, entry in planned.entries.items() if name in set(total)],
    }


def _row(planned: Plan, names: list[str]) -> dict[str, Any]:
    return {
        "jobs": len(names),
        "done": len(names) - len(planned.left(names)),
        "gpu_hours": planned.hours(names, True)._asdict(),
        "core_hours": planned.hours(names, False)._asdict(),
        "wall_clock_hours": planned.wall(names, planned.gpus[0])._asdict(),
        "bytes": planned.bytes(names)._asdict(),
    }


def _ran(planned: Plan, names: list[str]) -> dict[str, dict[str, float]]:
    """By kind of stage, over the jobs done that were timed and can be predicted: their number, both sums of seconds."""
    found: dict[str, dict[str, float]] = {}
    for name in names:
        entry = planned.entries[name]
        if entry.actual is None or entry.time.whole is None or not entry.time.exact:
            continue
        for kind in (entry.job.kind, "total"):
            row = found.setdefault(kind, {"jobs": 0, "predicted_seconds": 0.0, "actual_seconds": 0.0})
            row["jobs"] += 1
            row["predicted_seconds"] += entry.time.whole
            row["actual_seconds"] += entry.actual
    return dict(sorted(found.items(), key=lambda item: item[0] == "total"))


def _job(entry: Entry) -> dict[str, Any]:
    return {
        "name": entry.job.name,
        "needs": list(entry.job.needs),
        "done": entry.done,
        "seconds": entry.time.whole,
        "seconds_left": 0.0 if entry.done else entry.time.left,
        "exact": entry.time.exact,
        "gpu": entry.time.gpu,
        "threads": entry.time.threads,
        "bytes": entry.space.outputs + entry.space.state,
        "actual_seconds": entry.actual,
    }


def _hours(amount: dict[str, Any]) -> str:
    """A time as a person reads it: in the unit of its size, `>=` where it is a lower bound."""
    value = amount["value"]
    if value is None:
        return "unknown"
    seconds = value * 3600
    if value == 0 and amount["exact"]:
        return "-"
    text = f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min" if seconds < 6000 else f"{value:.4g} h"
    return text if amount["exact"] else f">= {text}"


def size(count: float) -> str:
    """Bytes in a binary unit."""
    unit = 0
    while count >= 1000 and unit < len(UNITS) - 1:
        count, unit = count / 1024, unit + 1
    return f"{count:.3g} {UNITS[unit]}"


def _bytes(amount: dict[str, Any]) -> str:
    return f"{'' if amount['exact'] else '>= '}{size(amount['value'])}" if amount["value"] else "-"


def text(found: dict[str, Any]) -> str:
    """The plan as lines, from its document."""
    first = next(iter(found["wall_clock_hours"]))
    header = ("", "jobs", "done", "GPU time", "CPU time", f"clock, {_gpus(first)}", "disk")
    lines: list[tuple[str, ...]] = [header]
    for title, row in found["rows"].items():
        times = (_hours(row[key]) for key in ("gpu_hours", "core_hours", "wall_clock_hours"))
        lines.append((title, str(row["jobs"]), str(row["done"]), *times, _bytes(row["bytes"])))
    out = _aligned(lines)
    out.append("A job that several rows need is counted in each; the total counts each job of its target once.")
    out += ["", *_times(found), *_disk(found)]
    if found["notes"]:
        out += ["", "Assumed:", *(f"  {note} ({count} jobs)" for note, count in found["notes"].items())]
    if found["remedies"]:
        out += ["", "Unknown times become known with:", *(f"  {remedy}" for remedy in found["remedies"])]
    if found["ran"]:
        out += ["", *_comparison(found["ran"])]
    return "\n".join(out)


def _gpus(count: str) -> str:
    return f"{count} GPU{'s' if count != '1' else ''}"


def _aligned(lines: Sequence[tuple[str, ...]]) -> list[str]:
    """Columns, the first to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join([line[0].ljust(widths[0]), *(map(str.rjust, line[1:], widths[1:]))]).rstrip() for line in lines]


def _times(found: dict[str, Any]) -> list[str]:
    clocks = [f"{_hours(amount)} on {_gpus(gpus)}" for gpus, amount in found["wall_clock_hours"].items()]
    if not any(job["gpu"] for job in found["jobs"]):
        clocks = [_hours(next(iter(found["wall_clock_hours"].values())))]
    if all(amount["value"] is None for amount in found["wall_clock_hours"].values()):
        return ["Wall clock: unknown"]
    path = found["critical_path"]
    names = path["jobs"]
    shown = names if len(names) <= SHOWN_OF_PATH else [*names[: SHOWN_OF_PATH - 1], "...", names[-1]]
    lower = {"value": path["hours"], "exact": path["exact"]}
    lines = [f"Wall clock, with {found['cores']} CPU cores for what takes no GPU: {', '.join(clocks)}"]
    # Of a chain with jobs of unknown length it is not known that it is the longest.
    if names and path["hours"] > 0 and all(job["seconds_left"] is not None for job in found["jobs"]):
        lines.append(f"No number of them is faster than {_hours(lower).removeprefix('>= ')}: {' > '.join(shown)}")
    return lines


def _disk(found: dict[str, Any]) -> list[str]:
    disk = found["disk"]
    needed = disk["outputs"] + disk["checkpoints"]
    if not needed:
        return []
    least = "" if disk["exact"] else "at least "
    lines = [
        f"Disk: {least}{size(needed)}, of which {size(disk['checkpoints'])} are the last two checkpoints of each run"
    ]
    if disk["cache"]:
        lines.append(f"  and {size(disk['second_copy'])} more in DVC's cache on another file system, {disk['cache']}")
    lines.append(f"  {size(disk['free'])} are free" + ("" if needed < disk["free"] else ": THIS DOES NOT FIT"))
    return lines


def _comparison(ran: dict[str, dict[str, float]]) -> list[str]:
    lines: list[tuple[str, ...]] = [("done and timed", "jobs", "predicted", "actual", "actual / predicted")]
    for kind, row in ran.items():
        predicted, actual = row["predicted_seconds"], row["actual_seconds"]
        lines.append((kind, f"{row['jobs']:.0f}", f"{predicted:.1f} s", f"{actual:.1f} s", f"{actual / predicted:.2f}"))
    return _aligned(lines)


def show(params: Params, target: str, scale: str, gpus: int | None, json: Any) -> str:
    """The plan of a target as text; also written to a JSON file if one is named."""
    found = document(plan(params, target, scale, gpus))
    if json is not None:
        write_json(json, found)
    return text(found)
