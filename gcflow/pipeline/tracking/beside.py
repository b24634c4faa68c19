"""MLflow beside a job: another process mirrors its run, and never holds it up.

It is started only beside a job that lasts; short ones are mirrored when the workflow ends. It notices the end of the
job, whatever ends it, by the end of its standard input, sends the rest, and ends. What goes wrong with the server
stands in its log alone.
"""

import os
import subprocess
import sys
import threading
from types import TracebackType
from typing import Self

from gcflow.pipeline.folders import tracking_folder
from gcflow.pipeline.params import Params, Run


class Follower:
    """A process that mirrors a run to MLflow from `tracking.follow_after` seconds after `begin` to the block's end."""

    def __init__(self, params: Params, run: Run) -> None:
        self.params, self.run = params, run
        self.process: subprocess.Popen[bytes] | None = None
        self.timer: threading.Timer | None = None

    def __enter__(self) -> Self:
        return self

    def begin(self) -> None:
        """The job trains from now on."""
        after = self.params.tracking.follow_after
        if after is not None:
            self.timer = threading.Timer(after, self._start)
            self.timer.daemon = True
            self.timer.start()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Lets it send the rest by itself: the job does not wait."""
        if self.timer is not None:
            self.timer.cancel()
        if self.process is not None and self.process.stdin is not None:
            self.process.stdin.close()

    def _start(self) -> None:
        folder = tracking_folder(self.params.root, self.run)
        verb = [sys.executable, "-m", "gcflow", "--params", str(self.params.path), "track", "follow", self.run.name]
        # Not a member of the run's processes, and alone where a launcher ends its group.
        environment = {k: v for k, v in os.environ.items() if k not in {"RANK", "WORLD_SIZE", "LOCAL_RANK"}}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / "log").open("ab") as log:
                # A core that the training does not use is enough.
                self.process = subprocess.Popen(
                    ["nice", "-n", "19", *verb],
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    env=environment,
                    start_new_session=True,
                )
        except OSError as error:
            sys.stderr.write(f"gcflow: warning: MLflow does not follow {self.run.name} ({error.strerror})\n")
