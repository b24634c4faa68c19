"""Real MLflow servers over SQLite and PostgreSQL, what can go wrong between them and us, and what they were sent."""

import http.client
import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.request import urlopen

from projects import alive, children, environment, free_port, wait_until

# What MLflow starts beside a server and our runs have no use for: a dozen processes that poll.
QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}


def _answers(address: str) -> bool:
    with suppress(OSError), urlopen(address, timeout=5) as reply:
        return reply.status == 200
    return False


@contextmanager
def mlflow_server(folder: Path, store: str | None = None) -> Iterator[str]:
    """The address of a server that keeps artifacts in a folder, and the rest in `store` or in SQLite there."""
    folder.mkdir(parents=True, exist_ok=True)
    port, store = free_port(), store or f"sqlite:///{folder / 'server.db'}"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", store, "--artifacts-destination", str(folder / "artifacts")]
    with (folder / "server.log").open("ab") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment(QUIET), stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    try:
        wait_until(lambda: process.poll() is not None or _answers(f"{address}/health"), pause=0.1)
        assert process.poll() is None, (folder / "server.log").read_text()
        yield address
    finally:
        workers = children(process.pid)
        process.terminate()
        process.wait()
        wait_until(lambda: not any(map(alive, workers)))


def postgres_programs() -> Path | None:
    """Where initdb and postgres are; Debian keeps them off the path."""
    found = shutil.which("initdb")
    places = [
        *sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True),
        *([Path(found).parent] if found else []),
    ]
    wanted = ("initdb", "postgres", "pg_isready")
    return next((place for place in places if all((place / name).exists() for name in wanted)), None)


@contextmanager
def postgres() -> Iterator[str]:
    """The address of an empty PostgreSQL database. It refuses to run as root, so that another user does then."""
    programs, port = postgres_programs(), free_port()
    assert programs is not None
    us = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    with ExitStack() as stack:
        # Directly below /tmp, where that user gets to.
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="gcflow-postgres-", dir="/tmp")))
        if us:
            shutil.chown(folder, "postgres")
        data = folder / "data"
        subprocess.run(
            [*us, programs / "initdb", "-D", data, "-U", "gcflow", "--auth", "trust", "--no-sync"],
            cwd=folder,
            check=True,
            capture_output=True,
        )
        command = [*us, programs / "postgres", "-D", data, "-p", str(port), "-k", folder, "-h", "127.0.0.1", "-F"]
        log = stack.enter_context((folder / "log").open("ab"))
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)

        def ready() -> bool:
            asked = [programs / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(port)]
            return process.poll() is not None or subprocess.run(asked, check=False).returncode == 0

        try:
            wait_until(ready, pause=0.1)
            assert process.poll() is None, (folder / "log").read_text()
            yield f"postgresql://gcflow@127.0.0.1:{port}/postgres"
        finally:
            # runuser passes it on; the wait is for all of its processes.
            process.terminate()
            process.wait(timeout=60)


class Proxy:
    """Stands before a server. fault: what it does with requests from now on.

    `""`: passes them on. `refuses`: closes the connection. `hangs`: keeps it, and says nothing. `dribbles`: answers
    with a byte now and then. `fails`: answers 500. `later`: asks to come back in an hour. `swallows`: passes them on
    and keeps the answer to itself, so that the client cannot know. `drops`: does that or refuses, of 30 % of them.
    patience: how many requests it passes on before the fault. held: connections that it keeps. asked: how many
    requests came.
    """

    def __init__(self, server: str) -> None:
        self.server = server.removeprefix("http://")
        self.fault, self.patience, self.asked, self.held = "", 0, 0, 0
        self.healed = threading.Condition()
        self.dice = random.Random(1)
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _pass(self) -> None:
                proxy.handle(self)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _pass  # noqa: N815

            def log_message(self, *arguments: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.address = f"http://127.0.0.1:{self.http.server_address[1]}"

    def __enter__(self) -> "Proxy":
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.heal()
        self.http.shutdown()
        self.http.server_close()

    def breaks(self, fault: str, patience: int = 0) -> None:
        with self.healed:
            self.fault, self.patience = fault, patience

    def heal(self) -> None:
        with self.healed:
            self.fault = ""
            self.healed.notify_all()

    def handle(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers.get("Content-Length", 0)))
        with self.healed:
            self.asked += 1
            self.patience -= 1
            fault = self.fault if self.patience < 0 else ""
            if fault == "drops":
                fault = self.dice.choice(["refuses", "swallows"]) if self.dice.random() < 0.3 else ""
            if fault == "hangs":
                self.held += 1
                self.healed.wait_for(lambda: not self.fault)
                self.held -= 1
        request.close_connection = bool(fault)
        if fault in {"refuses", "hangs"}:
            return
        if fault == "dribbles":
            request.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
            with suppress(OSError):
                while self.fault:
                    request.wfile.write(b" ")
                    time.sleep(0.1)
            return
        answers = {"fails": (500, [], b""), "later": (503, [("Retry-After", "3600")], b"")}
        status, headers, content = answers[fault] if fault in answers else self._ask(request, body)
        if fault == "swallows":
            return
        request.send_response(status)
        for name, value in headers:
            if name.lower() not in {"content-length", "connection", "transfer-encoding", "date", "server"}:
                request.send_header(name, value)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        request.wfile.write(content)

    def _ask(self, request: BaseHTTPRequestHandler, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection(self.server, timeout=120)
        try:
            headers = {k: v for k, v in request.headers.items() if k.lower() not in {"host", "connection"}}
            connection.request(request.command, request.path, body, headers)
            reply = connection.getresponse()
            return reply.status, reply.getheaders(), reply.read()
        finally:
            connection.close()


class Found:
    """What MLflow has below an experiment. address: MLFLOW_TRACKING_URI."""

    def __init__(self, address: str, experiment: str) -> None:
        from mlflow import MlflowClient

        self.client = MlflowClient(tracking_uri=address)
        self.experiment = experiment

    def runs(self, deleted: bool = False) -> list[Any]:
        """Every run, studies too, by name."""
        from mlflow.entities import ViewType

        kind = ViewType.DELETED_ONLY if deleted else ViewType.ACTIVE_ONLY
        experiments = self.client.search_experiments()
        ours = [e.experiment_id for e in experiments if f"{e.name}/".startswith(f"{self.experiment}/")]
        found = list(self.client.search_runs(ours, run_view_type=kind)) if ours else []
        return sorted(found, key=lambda run: run.info.run_name)

    def run(self, name: str) -> Any:
        """The only run of a name."""
        (found,) = (run for run in self.runs() if run.data.tags.get("run") == name)
        return found

    def history(self, name: str) -> dict[str, list[tuple[int, float]]]:
        """Steps and values of each metric of a run, in the order in which MLflow gives them."""
        run = self.run(name)
        return {
            metric: [(p.step, p.value) for p in self.client.get_metric_history(run.info.run_id, metric)]
            for metric in run.data.metrics
        }

    def models(self, name: str, metric: str) -> list[Any]:
        """The models of the experiment of a run, the best by a metric first."""
        order = [{"field_name": f"metrics.{metric}", "ascending": True}]
        return list(self.client.search_logged_models([self.run(name).info.experiment_id], order_by=order))

    def artifacts(self, run_id: str, folder: str = "") -> list[str]:
        """Every file of a run."""
        files: list[str] = []
        for entry in self.client.list_artifacts(run_id, folder or None):
            files += self.artifacts(run_id, entry.path) if entry.is_dir else [entry.path]
        return sorted(files)

    def everything(self) -> str:
        """All of it as text, to be compared."""
        runs = [*self.runs(), *self.runs(deleted=True)]
        names = {run.info.run_id: sorted(run.data.metrics) for run in runs}
        points = {
            i: [[(p.key, p.step, p.value, p.timestamp) for p in self.client.get_metric_history(i, m)] for m in metrics]
            for i, metrics in names.items()
        }
        described = [[run.to_dictionary(), points[run.info.run_id], self.artifacts(run.info.run_id)] for run in runs]
        return json.dumps(described, indent=1, sort_keys=True)
