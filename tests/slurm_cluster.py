"""A real Slurm on this machine: own munge key, controller, three nodes with fake GPUs, all below one folder.

Nothing outside the folder is written, and ports are free ones, so that several of them run side by side.
"""

import os
import shutil
import signal
import socket
import stat
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Self

from projects import alive, children, free_port, wait_until

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "scancel")
NODES = ("one", "two", "spare")
GPUS = 4
# More than the machine has: nothing keeps jobs to what they asked for.
SIZE = f"CPUs=32 RealMemory=256000 Gres=gpu:{GPUS}"
NULL_DEVICE = os.makedev(1, 3)

SLURM_CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
GresTypes=gpu
SlurmdParameters=config_overrides
ReturnToService=2
MinJobAge=3600
KillWait=10
OverTimeLimit=0
SlurmdTimeout=30
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0,requeue_delay=1
{nodes}
PartitionName=cpu Nodes=one,two Default=YES MaxTime=60 State=UP
PartitionName=gpu Nodes=one,two MaxTime=60 State=UP
PartitionName=spare Nodes=spare MaxTime=60 State=UP
"""


# Now and then that of Slurm 22.05 dies of a fault of its own (SIGSEGV): begun again, as by the services of a site.
CONTROLLER = "while slurmctld -D -i; [ $? = 139 ]; do :; done"


def missing() -> str | None:
    """Why no Slurm can be booted here; None if it can."""
    if os.geteuid() != 0:
        return "a Slurm of its own needs root"
    absent = [name for name in PROGRAMS if not shutil.which(name)]
    return f"not installed: {', '.join(absent)} (apt-get install slurm-wlm munge)" if absent else None


def _number(job: dict[str, str]) -> int:
    return int(job["id"])


class Cluster:
    """Boots in its block, and ends in it whatever its jobs do.

    Args:
        folder: for everything that the daemons write; its path must be short enough for a socket.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.conf = folder / "slurm.conf"
        self.programs = folder / "bin"
        self.daemons: list[subprocess.Popen[bytes]] = []

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to reach this Slurm and no other."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "SBATCH_", "SRUN_"))}
        return kept | {"SLURM_CONF": str(self.conf), "PATH": f"{self.programs}:{os.environ['PATH']}"}

    def __enter__(self) -> Self:
        try:
            self._configure()
            # An own group each: what the terminal sends to the tests must not end the daemons before their jobs.
            self._start("munged", "--foreground", "--force", *self._munge_files())
            wait_until((self.folder / "munge.socket").exists)
            self.start_controller()
            for node in NODES:
                self._start("slurmd", "-D", "-N", node)
            wait_until(lambda: self._states() == {"idle"}, pause=0.1)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(AssertionError, subprocess.CalledProcessError):
            self.call("scancel", "--user", "root")
            wait_until(lambda: not self.call("squeue", "--noheader"), pause=0.2)
        for daemon in reversed(self.daemons):
            with suppress(ProcessLookupError):
                os.killpg(daemon.pid, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                daemon.wait(20)
            daemon.kill()
            daemon.wait()
        self.daemons.clear()
        for pid in self.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not self.processes())
        for device in self.folder.glob("gpu*"):
            device.unlink()

    def _munge_files(self) -> list[str]:
        files = {"socket": "socket", "key-file": "key", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        return [f"--{option}={self.folder}/munge.{suffix}" for option, suffix in files.items()]

    def _configure(self) -> None:
        self.programs.mkdir(parents=True)
        self.folder.chmod(0o755)
        (self.folder / "state").mkdir()
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        host = socket.gethostname().partition(".")[0]
        controller_port, *ports = (free_port() for _ in range(1 + len(NODES)))
        nodes = "\n".join(
            f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} {SIZE}"
            for node, port in zip(NODES, ports, strict=True)
        )
        values = {"folder": self.folder, "host": host, "controller_port": controller_port, "nodes": nodes}
        self.conf.write_text(SLURM_CONF.format(**values))
        for number in range(GPUS):
            # Slurm hands out only what has a device file of its own.
            os.mknod(self.folder / f"gpu{number}", 0o666 | stat.S_IFCHR, NULL_DEVICE)
        (self.folder / "gres.conf").write_text(
            f"NodeName={','.join(NODES)} Name=gpu File={self.folder}/gpu[0-{GPUS - 1}]\n"
        )
        # Snakemake takes SLURM_CONF from the environment of the `srun` inside a job.
        srun = self.programs / "srun"
        srun.write_text(f'#!/bin/sh\nSLURM_CONF={self.conf} exec {shutil.which("srun")} "$@"\n')
        srun.chmod(0o755)

    def _start(self, *command: str) -> None:
        with (self.folder / f"{command[0]}.output").open("ab") as output:
            self.daemons.append(
                subprocess.Popen(
                    command,
                    cwd=self.folder,
                    env=self.environment,
                    stdout=output,
                    stderr=output,
                    stdin=subprocess.DEVNULL,
                    process_group=0,
                )
            )

    def lose_controller(self) -> None:
        """Kills the controller; the jobs go on."""
        (controller,) = (daemon for daemon in self.daemons if CONTROLLER in daemon.args)
        os.killpg(controller.pid, signal.SIGKILL)
        controller.wait()
        self.daemons.remove(controller)

    def start_controller(self) -> None:
        """Returns when it answers."""
        self._start("sh", "-c", CONTROLLER)
        wait_until(lambda: bool(self._states()), pause=0.1)

    def _states(self) -> set[str]:
        """Those of the nodes; none while the controller does not answer."""
        for daemon in self.daemons:
            assert daemon.poll() is None, f"{daemon.args} ended\n{self.logs()}"
        with suppress(subprocess.CalledProcessError):
            return set(self.call("sinfo", "--noheader", "--Node", "--format=%T").split())
        return set()

    def call(self, *command: str) -> str:
        """What a command of Slurm says."""
        result = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=True)
        return result.stdout.strip()

    def jobs(self) -> list[dict[str, str]]:
        """Slurm's jobs, ended ones too, oldest first. name: rule and wildcards, as Snakemake comments on its jobs."""
        names = ("id", "state", "partition", "name", "node", "memory", "cpus", "limit", "folder")
        shown = self.call("squeue", "--noheader", "--states=all", "--format=%A|%T|%P|%k|%N|%m|%C|%l|%Z")
        jobs = [dict(zip(names, line.split("|"), strict=True)) for line in shown.splitlines()]
        for job in jobs:
            job["name"] = job["name"].removeprefix("rule_").replace("_wildcards_", " ")
        return sorted(jobs, key=_number)

    def describe(self, job: str) -> dict[str, str]:
        """Everything that Slurm knows of a job."""
        words = self.call("scontrol", "--oneliner", "show", "job", job).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def has_steps(self, job: str) -> bool:
        """Whether a node still looks after processes of a job."""
        title = f"slurmstepd: [{job}.".encode()
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with suppress(OSError):
                if path.read_bytes().startswith(title):
                    return True
        return False

    def processes(self) -> list[int]:
        """Whatever was started with this Slurm's configuration and still runs, daemons apart."""
        mark, found = f"SLURM_CONF={self.conf}".encode(), []
        for path in Path("/proc").glob("[0-9]*/environ"):
            with suppress(OSError):
                if mark in path.read_bytes().split(b"\0"):
                    found.append(int(path.parent.name))
        daemons = {daemon.pid for daemon in self.daemons} | {os.getpid()}
        daemons |= {pid for daemon in self.daemons if CONTROLLER in daemon.args for pid in children(daemon.pid)}
        return sorted(pid for pid in found if pid not in daemons and alive(pid))

    def logs(self) -> str:
        """The ends of the daemons' logs."""
        files = [*sorted(self.folder.glob("*.log")), *sorted(self.folder.glob("*.output"))]
        return "\n".join(f"--- {file.name}\n{file.read_text(errors='replace')[-3000:]}" for file in files)
