"""Several processes for one run on one machine: the same command once per GPU, as torchrun would start it.

torchrun itself works too, and is the way to several machines. It reports every failure as exit code 1, where a
scheduler has to tell a run that was stopped and saved (75) from one that failed.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from types import FrameType

from gcflow.distributed import launched
from gcflow.errors import Preempted

LIFELINE = "GCFLOW_LIFELINE"
POLL_SECONDS = 0.1
# For the others to notice by themselves that a process has failed, or that the first is done.
GRACE_SECONDS = 10.0


def is_member() -> bool:
    """Whether this process is one of several of its run; if `launch` started it, it dies with its launcher."""
    if LIFELINE in os.environ:
        descriptor = int(os.environ[LIFELINE])
        threading.Thread(target=_die_with, args=(descriptor,), daemon=True).start()
    return launched()


def _die_with(lifeline: int) -> None:
    # The other end is the launcher's alone: reading ends when the launcher does, however it ended.
    os.read(lifeline, 1)
    os.kill(os.getpid(), signal.SIGKILL)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def launch(processes: int) -> int:
    """Runs this process's own command line in `processes` copies; returns their exit code.

    SIGTERM, SIGINT and SIGHUP are passed on. When one fails the others are ended, and the failure's code is returned.
    """
    lifeline, held = os.pipe()
    place = {
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        LIFELINE: str(lifeline),
    }
    members = [
        subprocess.Popen(
            [sys.executable, "-m", "gcflow", *sys.argv[1:]],
            env={**os.environ, **place, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            pass_fds=(lifeline,),
        )
        for rank in range(processes)
    ]
    os.close(lifeline)

    def pass_on(number: int, frame: FrameType | None) -> None:
        for member in members:
            if member.poll() is None:
                member.send_signal(number)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, pass_on)
    try:
        return _wait(members)
    finally:
        for member in members:
            if member.poll() is None:
                member.kill()
            member.wait()
        os.close(held)


def _wait(members: list[subprocess.Popen[bytes]]) -> int:
    decided: float | None = None
    while True:
        codes = [member.poll() for member in members]
        if all(code is not None for code in codes):
            break
        # The first process alone writes: once it has ended, however it did, the others have nothing left to do.
        failed = any(code not in (None, 0, Preempted.exit_code) for code in codes)
        if failed or codes[0] is not None:
            decided = decided or time.monotonic()
            if time.monotonic() - decided > GRACE_SECONDS:
                break
        time.sleep(POLL_SECONDS)
    # The first process speaks for all; a code of ours says more than the signal that ended a process beside it.
    code = codes[0] or max((code for code in codes if code), default=0)
    return code if code >= 0 else 128 - code
