"""What MLflow costs a run: step time and start-up with tracking off, to SQLite, and to servers that fail.

`python benchmarks/tracking.py [ROUNDS [STEPS]]`. Every run is `digits/ic/0` of params.yaml with so many steps, followed
from its first second. The ways take turns, so that a machine whose speed drifts treats them alike.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from statistics import median

import yaml

ROOT = Path(__file__).parent.parent
RUN = "digits/ic/0"


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


def project(folder: Path, follow_after: float | None, steps: int) -> Path:
    """The repository's grid, with one short run in it."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["tracking"] = {"experiment": "benchmark", "follow_after": follow_after}
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


def gcflow(folder: Path, *words: str, uri: str | None = None) -> float:
    """Runs the command line, and returns its seconds."""
    environment = os.environ | ({"MLFLOW_TRACKING_URI": uri} if uri else {})
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "gcflow", *words], cwd=folder, env=environment, check=True, stderr=-3)
    return time.perf_counter() - began


def step_milliseconds(folder: Path) -> float:
    """The median over the windows between two lines of metrics, but for the first two, in which a follower starts."""
    path = folder / "results" / RUN.replace("/0", "/seed0") / "metrics.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    batch = yaml.safe_load((folder / "params.yaml").read_text())["datasets"]["digits"]["training"]["batch"]
    return 1000 * median(batch / record["images_per_second"] for record in records[2:])


def main(rounds: int = 5, count: int = 1500) -> None:
    """Prints medians over the rounds."""
    broken = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    with socket.create_server(("127.0.0.1", 0)) as closed:
        refused = f"http://127.0.0.1:{closed.getsockname()[1]}"
    ways = {
        "off": (None, None),
        "SQLite": (0.0, None),
        "server refuses": (0.0, refused),
        "server hangs": (0.0, Server(b"").address),
        "server answers 500": (0.0, Server(broken).address),
    }
    steps: dict[str, list[float]] = {way: [] for way in ways}
    whole: dict[str, list[float]] = {way: [] for way in ways}
    with tempfile.TemporaryDirectory() as place:
        for number in range(rounds):
            for way, (after, uri) in ways.items():
                folder = project(Path(place) / f"{number}-{way.replace(' ', '-')}", after, count)
                gcflow(folder, "prepare", "digits")
                whole[way].append(gcflow(folder, "train", RUN, uri=uri))
                steps[way].append(step_milliseconds(folder))
                # The follower's last pass is not part of the next run.
                time.sleep(6)
    sys.stdout.write(f"{rounds} rounds of {count} steps\n{'tracking':<20}{'ms/step':>9}{'/ off':>8}{'job, s':>9}\n")
    for way in ways:
        ratio = median(a / b for a, b in zip(steps[way], steps["off"], strict=True))
        sys.stdout.write(f"{way:<20}{median(steps[way]):>9.3f}{ratio:>8.3f}{median(whole[way]):>9.2f}\n")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:3]))
