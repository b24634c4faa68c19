"""What MLflow costs the step of a run: to SQLite, and to servers that fail.

`python benchmarks/tracking.py [STEPS]`, from 6000 steps on. Every run is `digits/ic/0` of params.yaml, watched from its
first second. The watch is held (SIGSTOP) and let go on in turns of 15 seconds, and the steps of the turns are compared:
two runs of the same work differ by more than what is measured.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from itertools import pairwise
from pathlib import Path
from statistics import mean, stdev

import yaml

ROOT = Path(__file__).parent.parent
RUN = "digits/ic/0"
TURN = 15.0


class Server:
    """Accepts every connection. answer: what it says to a request; empty: nothing, for ever."""

    def __init__(self, answer: bytes) -> None:
        self.answer = answer
        self.held: list[socket.socket] = []
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            connection, _ = self.socket.accept()
            if self.answer:
                connection.recv(65536)
                connection.sendall(self.answer)
                connection.close()
            else:
                self.held.append(connection)


def project(folder: Path, steps: int) -> Path:
    """The repository's grid, with one short run in it."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["tracking"] = {"experiment": "benchmark", "watch_every": 5.0}
    digits = params["datasets"]["digits"]
    digits["training"] |= {"steps": steps, "snapshot_every": steps}
    digits["cadence"] = {"log_every": 50, "checkpoint_every": 250}
    digits["methods"], digits["runs"] = {"ic": digits["methods"]["ic"]}, {"ic": {"label": "IC", "seeds": [0]}}
    for key in ("tables", "figures", "transport", "discrepancy"):
        digits.pop(key, None)
    folder.mkdir(parents=True, exist_ok=True)
    small = {"tracking": params["tracking"], "datasets": {"digits": digits}}
    (folder / "params.yaml").write_text(yaml.safe_dump(small, sort_keys=False))
    return folder


def gcflow(folder: Path, *words: str, uri: str | None = None) -> subprocess.Popen[bytes]:
    """Begins the command line."""
    environment = os.environ | ({"MLFLOW_TRACKING_URI": uri} if uri else {})
    command = ["nice", "-n", "19"] if "--watch" in words else []
    command += [sys.executable, "-m", "gcflow", *words]
    return subprocess.Popen(command, cwd=folder, env=environment, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)


def train_in_turns(folder: Path, uri: str | None) -> list[tuple[float, float, bool]]:
    """Trains beside a watch. Returns the begin and end of each turn, and whether the watch went on in it."""
    job, watch = gcflow(folder, "train", RUN), gcflow(folder, "track", "sync", "--watch", uri=uri)
    # Its imports are the start's cost, not the step's.
    time.sleep(TURN)
    turns = []
    going = True
    while job.poll() is None:
        going = not going
        watch.send_signal(signal.SIGCONT if going else signal.SIGSTOP)
        began = time.time()
        time.sleep(TURN)
        turns.append((began, time.time(), going))
    watch.send_signal(signal.SIGCONT)
    # Its last pass is not part of the next run.
    watch.communicate()
    # The last turn is cut short by the end of the job.
    return turns[:-1]


def step_milliseconds(folder: Path, turns: list[tuple[float, float, bool]]) -> list[float]:
    """Mean milliseconds of a step in each turn, over the lines of metrics that begin and end in it."""
    path = folder / "results" / RUN.replace("/0", "/seed0") / "metrics.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    lines = [(a["time"], b["time"], b["step"] - a["step"]) for a, b in pairwise(records)]
    means = []
    for begin, end, _ in turns:
        inside = [(b - a, steps) for a, b, steps in lines if begin <= a and b <= end]
        means.append(1000 * sum(seconds for seconds, _ in inside) / sum(steps for _, steps in inside))
    return means


def main(count: int = 12000) -> None:
    """Prints the mean step of both kinds of turns, and the ratio of neighbours with its standard error."""
    broken = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    with socket.create_server(("127.0.0.1", 0)) as closed:
        refused = f"http://127.0.0.1:{closed.getsockname()[1]}"
    ways = {
        "SQLite": None,
        "server refuses": refused,
        "server hangs": Server(b"").address,
        "server answers 500": Server(broken).address,
    }
    head = f"{'tracking':<20}{'held, ms':>10}{'going, ms':>11}{'ratio':>8}{'std err':>9}{'pairs':>7}"
    sys.stdout.write(f"{count} steps, turns of {TURN:g} s\n{head}\n")
    with tempfile.TemporaryDirectory() as place:
        for way, uri in ways.items():
            folder = project(Path(place) / way.replace(" ", "-"), count)
            gcflow(folder, "prepare", "digits").wait()
            turns = train_in_turns(folder, uri)
            steps = step_milliseconds(folder, turns)
            # Each turn against both of its neighbours, so that a drift cancels.
            ratios = [steps[i] / mean((steps[i - 1], steps[i + 1])) for i in range(1, len(steps) - 1) if turns[i][2]]
            held = mean(ms for ms, turn in zip(steps, turns, strict=True) if not turn[2])
            going = mean(ms for ms, turn in zip(steps, turns, strict=True) if turn[2])
            error = stdev(ratios) / len(ratios) ** 0.5
            sys.stdout.write(f"{way:<20}{held:>10.3f}{going:>11.3f}{mean(ratios):>8.3f}{error:>9.3f}{len(ratios):>7}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
