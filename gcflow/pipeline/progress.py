"""Progress of a running job for a person: a bar on a terminal of one's own, a line now and then among other jobs."""

import sys
import threading
import time
from contextlib import suppress
from types import TracebackType
from typing import Self

from tqdm import tqdm

from gcflow.readable import clock, duration

SECONDS_BETWEEN_LINES = 10.0
# Its own lock is shared among processes, for which Python starts one more process.
tqdm.set_lock(threading.RLock())


def say(text: str) -> None:
    """A line on standard error, whole and above any bar; nothing where nobody reads it any more."""
    with suppress(OSError):
        tqdm.write(f"{text}\n", sys.stderr, end="")
        sys.stderr.flush()


class Progress:
    """Progress of one job, from `start` to `total` units.

    On a terminal it is a bar. Elsewhere, as among the jobs of a workflow, it is at most one line every ten seconds.
    """

    def __init__(self, name: str, total: int, start: int = 0, unit: str = "step") -> None:
        self.name, self.total, self.unit = name, total, unit
        self.begun = self.spoken = time.monotonic()
        self.start = self.done = start
        self.detail = ""
        on_terminal = sys.stderr.isatty()
        self.bar = (
            tqdm(total=total, initial=start, desc=name, unit=unit, dynamic_ncols=True, leave=True)
            if on_terminal
            else None
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.close()
        elif kind is None:
            taken = duration(time.monotonic() - self.begun)
            say(f"  {self.name:<30} done: {self.done} {self.unit}s in {taken}  {self.detail}")

    def update(self, done: int, detail: str = "") -> None:
        """Reports that `done` of `total` units are finished, with e.g. loss and images/s as `detail`."""
        advanced, self.done, self.detail = done - self.done, done, detail
        if self.bar is not None:
            self.bar.set_postfix_str(detail, refresh=False)
            self.bar.update(advanced)
            return
        now = time.monotonic()
        if now - self.spoken < SECONDS_BETWEEN_LINES or done >= self.total:
            return
        self.spoken = now
        left = (now - self.begun) / max(1, done - self.start) * (self.total - done)
        share = f"{self.unit} {done}/{self.total} ({done / self.total:.0%})"
        say(f"  {self.name:<30} {share}  {detail}  {clock(left)} left")
