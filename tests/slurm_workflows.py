"""Clones of the repository whose Snakemake submits to a Slurm of the tests, and the trainers in its jobs."""

import json
import os
import shlex
import signal
import subprocess
import sysconfig
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from projects import alive, environment, prepare_data, run_folder, tiny_params, wait_until
from slurm_cluster import Cluster
from workflows import clone

RUN = "digits/ic"


def tiny_unets(seeds: int) -> dict[str, Any]:
    """Runs digits/ic/0, ... of a U-Net, which asks for a GPU, of some seconds each. Nothing else is asked for."""
    params = tiny_params()
    digits = params["datasets"]["digits"]
    digits["network"] = {"architecture": "ddpm++", "channels": 4, "blocks": 1}
    digits["training"] |= {"steps": 200, "grain": 8, "snapshot_every": 100}
    digits["cadence"] = {"log_every": 10, "checkpoint_every": 50}
    digits["methods"] = {"ic": digits["methods"]["ic"]}
    digits["runs"] = {"ic": {"label": "iCT-IC", "seeds": list(range(seeds))}}
    for block in ("transport", "discrepancy", "tables", "figures"):
        del digits[block]
    return {"tracking": params["tracking"], "datasets": {"digits": digits}}


class Workflow:
    """A project, and its Snakemake as a process of its own.

    Args:
        cluster: where its jobs go.
        folder: where it is made.
        params: its params.yaml.
        gpu_partition: for jobs with a GPU.
        processes: GPUs of each run.
    """

    def __init__(
        self,
        cluster: Cluster,
        folder: Path,
        params: dict[str, Any],
        gpu_partition: str = "gpu",
        processes: int = 1,
    ) -> None:
        self.cluster = cluster
        self.folder = clone(folder, params)
        # Asks Slurm sooner and waits less than a person would.
        profile = self.folder / "workflow/profiles/slurm/config.yaml"
        text = profile.read_text().replace("before-status-checks: 20", "before-status-checks: 1")
        profile.write_text(text.replace("latency-wait: 60", "latency-wait: 10"))
        prepare_data(self.folder, *(name for name in params["datasets"] if name == "digits"))
        settings = {
            "GCFLOW_SLURM_PARTITION": "cpu",
            "GCFLOW_SLURM_GPU_PARTITION": gpu_partition,
            "GCFLOW_SLURM_MINUTES": "30",
            "GCFLOW_PROCESSES": str(processes),
        }
        path = f"{cluster.programs}:{sysconfig.get_path('scripts')}:{os.environ['PATH']}"
        reach = {key: value for key, value in cluster.environment.items() if key.startswith("SLURM_")}
        self.environment = environment(reach | settings | {"PATH": path})
        self.output = self.folder / "snakemake.output"
        self.process: subprocess.Popen[bytes] | None = None

    def shadow(self, name: str, lines: str) -> None:
        """Has its processes run a shell script of their own first where they mean a program."""
        program = self.folder / ".programs" / name
        program.parent.mkdir(exist_ok=True)
        others = self.environment["PATH"].removeprefix(f"{program.parent}:")
        program.write_text(f'#!/bin/sh\n{lines}\nPATH={others} exec {name} "$@"\n')
        program.chmod(0o755)
        self.environment["PATH"] = f"{program.parent}:{others}"

    def start(self, *targets: str) -> None:
        """Submits what the targets need."""
        self.run(f"snakemake --profile slurm {' '.join(targets)} --config scale=embedded")

    def run(self, command: str) -> None:
        """Starts a command as it is written."""
        with self.output.open("ab") as output:
            self.process = subprocess.Popen(
                shlex.split(command),
                cwd=self.folder,
                env=self.environment,
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
            )

    def submit(self, *script: str) -> str:
        """The number of a job of its own, on both nodes for GPUs, which find each other on this machine."""
        output = self.folder / "results/logs/slurm/rule_submitted/%j.log"
        output.parent.mkdir(parents=True, exist_ok=True)
        options = ["--parsable", "--partition=gpu", "--gpus-per-node=1", f"--output={output}"]
        return self.call("env", "MASTER_ADDR=127.0.0.1", "sbatch", *options, *script).strip()

    def plan(self, target: str) -> str:
        """What `snakemake -n` says of a target."""
        return self.call("snakemake", "--profile", "slurm", "-n", target, "--config", "scale=embedded")

    def call(self, *command: str) -> str:
        """What a command says in the project; a failure shows it."""
        result = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, f"{' '.join(command)}:\n{result.stdout}{result.stderr}"
        return result.stdout + result.stderr

    def kill(self) -> None:
        """As a lost submit node would: nothing is cleaned up."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def finish(self, seconds: float = 900.0) -> None:
        """Waits for Snakemake's success."""
        assert self.end(seconds) == 0, self.logs()

    def end(self, seconds: float = 900.0) -> int:
        """Waits for Snakemake's end, and returns its exit code."""
        assert self.process is not None
        return self.process.wait(seconds)

    def trainer(self, seed: int, step: int = 0) -> "Trainer":
        """The process that trains a run, held in the midst of it, after a step."""
        return Trainer.held(self.folder, f"{RUN}/{seed}", step)

    def jobs(self, name: str = "") -> list[dict[str, str]]:
        """Its jobs in Slurm, oldest first, or those of a rule and its wildcards, such as `train digits_ic_0`."""
        ours = [job for job in self.cluster.jobs() if job["folder"] == str(self.folder)]
        return [job for job in ours if name in ("", job["name"])]

    def job(self, seed: int) -> str:
        """The number of the newest job that trains a run."""
        return self.jobs(f"train digits_ic_{seed}")[-1]["id"]

    def attempts(self, rule: str) -> list[str]:
        """The log of each Slurm job of a rule and its wildcards (`train/digits_ic_0`), oldest first."""
        files = sorted((self.folder / f"results/logs/slurm/rule_{rule}").glob("*.log"), key=_number)
        return [file.read_text() for file in files]

    def logs(self) -> str:
        """Whatever Snakemake and the jobs said."""
        files = [self.output, *sorted((self.folder / "results/logs/slurm").rglob("*.log"))]
        texts = [f"--- {file.relative_to(self.folder)}\n{file.read_text()[-6000:]}" for file in files if file.exists()]
        return "\n".join([*texts, json.dumps(self.cluster.jobs(), indent=1)])


def _number(file: Path) -> int:
    return int(file.stem)


class Trainer:
    """A process that trains a run, found by the lock that it holds."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    @classmethod
    def held(cls, root: Path, run: str, step: int = 0) -> "Trainer":
        """The holder of the run's lock, stopped (SIGSTOP) when it has trained on after a step."""
        folder = run_folder(root, run) / "state"

        def training() -> bool:
            with suppress(ValueError):
                for path in folder.glob("*/metrics.jsonl"):
                    return any(json.loads(line)["step"] > step for line in path.read_text().splitlines())
            return False

        wait_until(training)
        # Half-written, or just replaced: the next look will do.
        pid = 0

        def locked() -> bool:
            nonlocal pid
            with suppress(ValueError, FileNotFoundError, IndexError):
                pid = json.loads(sorted(folder.glob("lock.*"))[-1].read_bytes())["pid"]
                os.kill(pid, signal.SIGSTOP)
                return True
            return False

        wait_until(locked)
        return cls(pid)

    def send(self, number: int) -> None:
        os.kill(self.pid, number)

    def go_on(self) -> None:
        self.send(signal.SIGCONT)

    @property
    def alive(self) -> bool:
        return alive(self.pid)

    def hang(self) -> None:
        """Keeps it stopped whoever wakes it, as Slurm does before each of its signals, until it is killed."""

        def stop() -> None:
            with suppress(ProcessLookupError):
                while True:
                    self.send(signal.SIGSTOP)
                    time.sleep(0.001)

        threading.Thread(target=stop, daemon=True).start()
