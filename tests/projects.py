"""Tiny projects for tests: a params.yaml whose runs take a fraction of a second, and `gcflow` as a real process."""

import hashlib
import json
import multiprocessing
import os
import random
import re
import resource
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from shutil import copy
from types import SimpleNamespace
from typing import Any, NoReturn

import yaml

ROOT = Path(__file__).parent.parent
SCRIPT = Path(sysconfig.get_path("scripts")) / "gcflow"


def tiny_params() -> dict[str, Any]:
    """A fresh params.yaml document: every kind of stage and schedule, two data sets, nine runs of 40 steps."""
    process = {"sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0, "sigma_data": 0.75, "data_mean": -0.39}
    training = {
        "steps": 40,
        "batch": 16,
        "optimizer": "adam",
        "learning_rate": 1.0e-3,
        "learning_rate_decay": "linear",
        "gradient_clip": 1.0,
        "ema_decay": 0.9,
        "snapshot_every": 20,
        "schedule": {"kind": "ict", "s0": 4, "s1": 16, "p_mean": -1.1, "p_std": 2.0},
    }
    # Geng et al. 2024: a denoiser's weights, pairs of noise levels that close in over the stages, the L2 norm.
    tuned = {
        "optimizer": "radam",
        "distance": "pseudo-huber",
        "huber_c": 0.0,
        "schedule": {"kind": "ect", "stage_every": 20},
    }
    evaluation = {
        "samples": 64,
        "generation_seeds": [0, 1],
        "intermediate_sigmas": [0.82],
        "heun_steps": 3,
        "grid": 4,
    }
    document = {
        # A watch beside each of the tests' workflows would cost more than they do.
        "tracking": {"experiment": "tiny", "watch_every": None},
        "datasets": {
            "digits": {
                "data": {"source": "digits"},
                "process": process,
                "network": {"architecture": "mlp", "channels": 16, "blocks": 1, "dropout": 0.1},
                "training": training,
                "cadence": {"log_every": 10, "checkpoint_every": 10},
                "methods": {
                    "ic": {"objective": "consistency", "coupling": "ic"},
                    "gc": {"objective": "consistency", "coupling": "gc", "mu": [0.0, 1.0], "predictor": "ema"},
                    "gc-frozen": {
                        "objective": "consistency",
                        "coupling": "gc",
                        "mu": 0.5,
                        "predictor": {"method": "ic", "step": 20},
                        "network": {"channels": 24},
                    },
                    "cd": {"objective": "distillation", "teacher": {"method": "denoiser"}},
                    "denoiser": {
                        "objective": "denoising",
                        "training": {"schedule": {"kind": "edm", "p_mean": -1.2, "p_std": 1.2}},
                    },
                    "ect": {"objective": "consistency", "init": {"method": "denoiser"}, "training": tuned},
                    "ect-gc": {
                        "objective": "consistency",
                        "coupling": "gc",
                        "mu": 0.3,
                        "predictor": "ema",
                        "init": {"method": "denoiser"},
                        "training": tuned,
                    },
                },
                "runs": {
                    "ic": {"label": "iCT-IC", "seeds": [0, 1]},
                    "gc": {"label": "iCT-GC", "seeds": [0]},
                    "gc-frozen": {"label": "iCT-GC, frozen", "seeds": [0]},
                    "cd": {"label": "CD", "seeds": [0]},
                    "denoiser": {"label": "Denoiser", "seeds": [0]},
                    "ect": {"label": "ECT", "seeds": [0]},
                    "ect-gc": {"label": "ECT-GC", "seeds": [0]},
                },
                "features": {
                    "kind": "classifier",
                    "epochs": 1,
                    "batch": 64,
                    "learning_rate": 4.0e-3,
                    "held_out": 0.2,
                    "minimum_accuracy": 0.5,
                    "seed": 0,
                },
                "evaluation": evaluation,
                "transport": {
                    "predictor": {"method": "ic", "seed": 0},
                    "samples": 64,
                    "batch_sizes": [16, 32],
                    "sigmas": [0.5, 5.0],
                    "seed": 0,
                },
                "discrepancy": {"samples": 64, "sigmas": [0.5, 5.0], "seed": 0},
                "tables": {"table1": {"title": "Tiny table", "methods": ["ic", "gc"], "reproduces": "table1"}},
                "figures": {
                    "convergence": {"kind": "convergence", "title": "Tiny convergence", "methods": ["ic", "gc"]},
                    "transport-cost": {"kind": "transport", "title": "Tiny transport cost"},
                    "samples": {"kind": "samples", "title": "Tiny samples", "methods": ["ic", "cd"]},
                    "discrepancy": {"kind": "discrepancy", "title": "Tiny discrepancy", "methods": ["denoiser"]},
                },
            },
            "mixture2d": {
                "data": {
                    "source": "mixture2d",
                    "means": [[1.2, 0.4], [-0.9, 1.1]],
                    "std": 0.35,
                    "count": 400,
                    "seed": 0,
                },
                "process": process | {"sigma_data": 0.8, "data_mean": 0.0},
                "network": {"architecture": "mlp", "channels": 8, "blocks": 1},
                "training": training | {"optimizer": "lion", "schedule": {"kind": "ict", "s0": 4, "s1": 8}},
                "methods": {"ic": {"objective": "consistency", "coupling": "ic"}},
                "runs": {"ic": {"label": "iCT-IC", "seeds": [0]}},
                "features": {"kind": "identity"},
                "evaluation": evaluation,
                "figures": {"samples": {"kind": "samples", "title": "Tiny points", "methods": ["ic"]}},
            },
        },
    }
    # Through JSON, so that no two blocks are the same object: a test may change one of them.
    fresh: dict[str, Any] = json.loads(json.dumps(document))
    return fresh


def dump(path: Path, content: Any) -> None:
    """Writes JSON, and the folder around it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def write_project(folder: Path, params: dict[str, Any] | None = None) -> Path:
    """Writes `params` (default: `tiny_params()`) as params.yaml of a project in `folder`, which it returns.

    Its key `claims` becomes claims.yaml; paper.yaml stands beside it if it names numbers of it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    document = dict(tiny_params() if params is None else params)
    documents = {"params.yaml": document, "claims.yaml": document.pop("claims", None)}
    for name, content in documents.items():
        if content is None:
            (folder / name).unlink(missing_ok=True)
        else:
            (folder / name).write_text(yaml.safe_dump(content, sort_keys=False))
    if re.search("paper:|published:", (folder / "params.yaml").read_text()):
        copy(ROOT / "paper.yaml", folder / "paper.yaml")
    return folder


def environment(extra: dict[str, str] | None = None) -> dict[str, str]:
    """This process's environment, without the settings that would change what gcflow does."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("GCFLOW_", "MLFLOW_"))}
    ours = {"GCFLOW_DEVICE": "cpu", "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    return kept | ours | (extra or {})


# What a process reads once, as it begins.
READ_AT_START = ("PYTHON", "LC_", "LANG", "TZ", "OMP_", "MKL_")


def gcflow(
    folder: Path,
    *args: str | Path,
    check: bool = True,
    env: dict[str, str] | None = None,
    preexec: Callable[[], None] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Runs `gcflow` as a process in a project; with `check` a failure shows what it wrote.

    It is a `Fork`, unless `env` or `preexec` change what is read or done at a process's start: then the installed one.
    """
    if preexec is None and not any(key.startswith(READ_AT_START) for key in env or {}):
        process = Fork(folder, *args, env=env, together=False)
        process.wait(600)
        result = process.result()
    else:
        command = [sys.executable, str(SCRIPT), *map(str, args)]
        result = subprocess.run(
            command, cwd=folder, env=environment(env), capture_output=True, text=True, check=False, preexec_fn=preexec
        )
    if check and result.returncode != 0:
        called = " ".join(map(str, ("gcflow", *args)))
        raise AssertionError(f"{called} exited with {result.returncode}:\n{result.stdout}{result.stderr}")
    return result


def start(folder: Path, *args: str | Path, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
    """Starts the installed `gcflow` in a project and returns at once."""
    command = [sys.executable, str(SCRIPT), *map(str, args)]
    return subprocess.Popen(
        command, cwd=folder, env=environment(env), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


PRELOADED = [
    "pytest",
    "gcflow.cli",
    *(f"gcflow.pipeline.{name}" for name in ("train", "evaluate", "figure", "table", "theory_checks", "discrepancy")),
    *("gcflow.pipeline.ledger.write", "gcflow.pipeline.report.write", "gcflow.tools.status", "torch._dynamo"),
]


class _ForkedMember:
    """What `launch` needs of `subprocess.Popen`, for a process forked from its launcher."""

    def __init__(self, command: list[str], env: dict[str, str], pass_fds: tuple[int, ...]) -> None:
        assert command[1:3] == ["-m", "gcflow"]
        assert "RANK" not in os.environ, "a process that was launched must launch no others"
        self.code: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            for descriptor in {int(name) for name in os.listdir("/proc/self/fd")} - {0, 1, 2, *pass_fds}:
                with suppress(OSError):
                    os.close(descriptor)
            _run(tuple(command[3:]), env)

    def poll(self) -> int | None:
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if pid else None
        return self.code

    def wait(self) -> None:
        wait_until(lambda: self.poll() is not None)

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _run(args: tuple[str, ...], env: dict[str, str]) -> NoReturn:
    """`gcflow`, or with `-c` a script, in this process, which then ends."""
    from gcflow.cli import main

    code: Any = 1
    try:
        os.environ.clear()
        os.environ.update(env)
        if args[:1] == ("-c",):
            sys.argv = ["-c", *args[2:]]
            exec(args[1], {"__name__": "__main__"})
            code = 0
        else:
            sys.argv = ["gcflow", *args]
            main(list(args))
    except SystemExit as ended:
        code = ended.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _forked(
    folder: Path, args: tuple[str, ...], env: dict[str, str], outputs: tuple[Path, ...], file_size: int | None
) -> None:
    from gcflow.pipeline import launch

    for number, output in enumerate(outputs, 1):
        os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.chdir(folder)
    # Ignored in what a shell starts in the background.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if file_size is not None:
        limit_file_size(file_size)
    launch.subprocess = SimpleNamespace(Popen=_ForkedMember)
    _run(args, env)


class Fork:
    """`gcflow` as a process of its own that begins with torch imported, which costs tenths of a second.

    It is forked from a server that has imported it once, and so are the processes that it launches. args: of gcflow,
    or `-c` and a script and its own. output: what it has written, with `together` to standard error too. exitcode: -9
    after SIGKILL, None while it runs.
    """

    def __init__(
        self,
        folder: Path,
        *args: str | Path,
        env: dict[str, str] | None = None,
        file_size: int | None = None,
        together: bool = True,
    ) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        self.args = list(map(str, args))
        self.folder = tempfile.TemporaryDirectory()
        self.outputs = tuple(Path(self.folder.name) / name for name in ("output", "output" if together else "errors"))
        target = (folder, tuple(self.args), environment(env), self.outputs, file_size)
        self.process = context.Process(target=_forked, args=target)
        self.process.start()
        assert self.process.pid is not None
        self.pid = self.process.pid

    @property
    def output(self) -> str:
        return self.outputs[0].read_text() if self.outputs[0].exists() else ""

    def result(self) -> subprocess.CompletedProcess[str]:
        """Of a process that has ended, as `subprocess.run` gives it."""
        assert self.exitcode is not None
        return subprocess.CompletedProcess(self.args, self.exitcode, *(path.read_text() for path in self.outputs))

    @property
    def exitcode(self) -> int | None:
        return self.process.exitcode

    def send(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self, seconds: float = 300.0) -> int:
        """Its exit code; a failure if it runs on for so long."""
        self.process.join(seconds)
        code = self.process.exitcode
        if code is None:
            self.process.kill()
            raise AssertionError(f"still running after {seconds} s:\n{self.output}")
        return code


def wait_until(condition: Callable[[], Any], seconds: float = 600.0, pause: float = 0.02) -> None:
    """Waits for a condition, on a machine that may do much else; a failure if it does not come true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{condition} is not true after {seconds} s"
        time.sleep(pause)


def free_port() -> int:
    """One that no connection is given by chance: a server that is down finds its own again."""
    given = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    # Tests side by side, and those of hypothesis, must not draw the same ones.
    draw = random.SystemRandom()
    while True:
        with suppress(OSError), socket.create_server(("127.0.0.1", draw.randrange(given // 2, given))) as free:
            return int(free.getsockname()[1])


def alive(pid: int) -> bool:
    """Whether a process runs; one that ended and that nobody asked about does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(") ")[2][0] not in "ZX"


def children(pid: int) -> list[int]:
    """The processes that a process has started and that still run."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(") ")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
        if parent == pid:
            found.append(int(path.parent.name))
    return sorted(child for child in found if alive(child))


def limit_file_size(size: int) -> None:
    """For `preexec`: every file of the process fails to grow beyond `size` bytes, as on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def prepare_data(folder: Path, *datasets: str) -> Path:
    """Prepares data sets of a project within this process, which costs milliseconds; returns the project."""
    from gcflow.pipeline.folders import data_folder
    from gcflow.pipeline.params import Params
    from gcflow.preparation import prepare

    params = Params(folder / "params.yaml")
    for name in datasets:
        prepare(params.dataset(name).data, data_folder(params.root, name))
    return folder


def train_here(folder: Path, run: str, minutes: float | None = None) -> None:
    """`gcflow train` within this process, for tests of what is no behaviour of a process."""
    from gcflow.pipeline.params import Params
    from gcflow.pipeline.train import STOPPING, train_run

    handlers = {number: signal.getsignal(number) for number in STOPPING}
    try:
        train_run(Params(folder / "params.yaml"), run, minutes=minutes)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


# What a run leaves.


def run_folder(root: Path, run: str) -> Path:
    dataset, method, seed = run.split("/")
    return root / "results" / dataset / method / f"seed{seed}"


def state_folder(root: Path, run: str) -> Path:
    """The folder of the run's only configuration so far."""
    (folder,) = (path for path in (run_folder(root, run) / "state").iterdir() if path.is_dir())
    return folder


def checkpoints(root: Path, run: str) -> list[Path]:
    """Oldest first."""
    return sorted(run_folder(root, run).glob("state/*/checkpoint-*.safetensors"))


def metrics(root: Path, run: str) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without what depends on the clock, or on where a run was stopped."""
    lines = (run_folder(root, run) / "metrics.jsonl").read_text().splitlines()
    clocks = ("time", "images_per_second", "memory_gib", "system/", "checkpoint")
    return [{k: v for k, v in json.loads(line).items() if not k.startswith(clocks)} for line in lines]


def weights(root: Path, run: str) -> bytes:
    return (run_folder(root, run) / "weights.safetensors").read_bytes()


def snapshots(root: Path, run: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (run_folder(root, run) / "snapshots").iterdir()}


def temporary_files(root: Path) -> list[Path]:
    """Files below results/ that no complete or stopped run has."""
    known = {"config.json", "end.json", "jobs.json", "weights.safetensors", "metrics.jsonl"}
    files = [path for path in (root / "results").rglob("*") if path.is_file() and path.name not in known]
    return [
        path for path in files if not re.fullmatch(r"(checkpoint-|kept-)?\d{8}\.safetensors|lock\.\d{8}", path.name)
    ]


def assert_same_run(root: Path, other: Path, run: str) -> None:
    """That a run in two projects has the same bits and the same losses."""
    assert weights(root, run) == weights(other, run)
    assert snapshots(root, run) == snapshots(other, run)
    assert metrics(root, run) == metrics(other, run)


def error_line(errors: str) -> str:
    """The one line of a refusal on standard error, checked to be the only one and no traceback."""
    lines = [line for line in errors.splitlines() if line.startswith("gcflow: error: ")]
    assert len(lines) == 1, errors
    assert "Traceback" not in errors
    return lines[0].removeprefix("gcflow: error: ")


def contents(folder: Path) -> dict[str, str]:
    """Relative path to sha256 of every file below `folder`, but of those that tell how a job ended."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "end.json")
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
