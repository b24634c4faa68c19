"""When jobs end that wait for each other and for places to run: list scheduling, and its lower bound."""

import heapq
from collections.abc import Iterable
from typing import NamedTuple


class Task(NamedTuple):
    """A job to schedule. pool: the kind of place it takes. places: how many. needs: names of others, if they matter."""

    name: str
    seconds: float
    pool: str
    places: int
    needs: tuple[str, ...]


def longest_paths(tasks: Iterable[Task]) -> dict[str, float]:
    """Name to the time from a task's beginning to the end of whatever waits for it, were there places without end.

    Tasks come after those that they need.
    """
    ordered = list(tasks)
    tails = {task.name: 0.0 for task in ordered}
    paths = {}
    for task in reversed(ordered):
        paths[task.name] = task.seconds + tails[task.name]
        for needed in task.needs:
            if needed in tails:
                tails[needed] = max(tails[needed], paths[task.name])
    return paths


def critical_path(tasks: Iterable[Task]) -> tuple[float, list[str]]:
    """The longest chain of tasks that wait for each other: its time, below which no number of places leads; its names.

    Tasks come after those that they need.
    """
    ends: dict[str, float] = {}
    before: dict[str, str | None] = {}
    for task in tasks:
        latest = max((name for name in task.needs if name in ends), key=lambda name: ends[name], default=None)
        ends[task.name] = task.seconds + (ends[latest] if latest is not None else 0.0)
        before[task.name] = latest
    chain: list[str] = []
    name = max(ends, key=lambda name: ends[name], default=None)
    total = ends[name] if name is not None else 0.0
    while name is not None:
        chain.append(name)
        name = before[name]
    return total, chain[::-1]


def makespan(tasks: Iterable[Task], places: dict[str, int]) -> float:
    """When the last task ends if, whenever a place is free, the ready task with the longest path ahead takes it.

    Args:
        tasks: after those that they need. One that wants more places than there are takes all.
        places: of each pool, at least 1.
    """
    ordered = list(tasks)
    ahead = longest_paths(ordered)
    names = {task.name for task in ordered}
    waiting = {task.name: {name for name in task.needs if name in names} for task in ordered}
    ready = [task for task in ordered if not waiting[task.name]]
    free, now = dict(places), 0.0
    running: list[tuple[float, int, Task]] = []
    order = {task.name: number for number, task in enumerate(ordered)}

    def taken(task: Task) -> int:
        return min(task.places, places[task.pool])

    while ready or running:
        ready.sort(key=lambda task: (-ahead[task.name], order[task.name]))
        for task in list(ready):
            if taken(task) <= free[task.pool]:
                free[task.pool] -= taken(task)
                heapq.heappush(running, (now + task.seconds, order[task.name], task))
                ready.remove(task)
        now, _, ended = heapq.heappop(running)
        free[ended.pool] += taken(ended)
        for task in ordered:
            if ended.name in waiting[task.name]:
                waiting[task.name].remove(ended.name)
                if not waiting[task.name]:
                    ready.append(task)
    return now
