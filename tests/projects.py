"""Tiny projects for tests: a params.yaml whose runs take a fraction of a second, and `gcflow` as a real process."""

import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

SCRIPT = Path(sysconfig.get_path("scripts")) / "gcflow"


def tiny_params() -> dict[str, Any]:
    """A fresh params.yaml document: every kind of stage, two data sets, seven runs of 40 steps."""
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
        "schedule": {"s0": 4, "s1": 16, "p_mean": -1.1, "p_std": 2.0},
    }
    evaluation = {
        "samples": 64,
        "generation_seeds": [0, 1],
        "intermediate_sigmas": [0.82],
        "heun_steps": 3,
        "grid": 4,
    }
    document = {
        "tracking": {"experiment": "tiny"},
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
                    "denoiser": {"objective": "denoising", "training": {"schedule": {"p_mean": -1.2, "p_std": 1.2}}},
                },
                "runs": {
                    "ic": {"label": "iCT-IC", "seeds": [0, 1]},
                    "gc": {"label": "iCT-GC", "seeds": [0]},
                    "gc-frozen": {"label": "iCT-GC, frozen", "seeds": [0]},
                    "cd": {"label": "CD", "seeds": [0]},
                    "denoiser": {"label": "Denoiser", "seeds": [0]},
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
                "tables": {"table1": {"title": "Tiny table", "methods": ["ic", "gc"], "paper": "cifar10"}},
                "figures": {
                    "convergence": {"kind": "convergence", "title": "Tiny convergence", "methods": ["ic", "gc"]},
                    "transport-cost": {"kind": "transport", "title": "Tiny transport cost"},
                    "samples": {"kind": "samples", "title": "Tiny samples", "methods": ["ic", "cd"]},
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
                "training": training | {"optimizer": "lion", "schedule": {"s0": 4, "s1": 8}},
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


def write_project(folder: Path, params: dict[str, Any] | None = None) -> Path:
    """Writes `params` (default: `tiny_params()`) as params.yaml of a project in `folder`, which it returns."""
    folder.mkdir(parents=True, exist_ok=True)
    document = tiny_params() if params is None else params
    (folder / "params.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
    return folder


def environment(extra: dict[str, str] | None = None) -> dict[str, str]:
    """This process's environment, without the settings that would change what gcflow does."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("GCFLOW_", "MLFLOW_"))}
    ours = {"GCFLOW_DEVICE": "cpu", "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    return kept | ours | (extra or {})


def gcflow(
    folder: Path,
    *args: str | Path,
    check: bool = True,
    env: dict[str, str] | None = None,
    preexec: Callable[[], None] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Runs the installed `gcflow` in a project; with `check` a failure shows what it wrote."""
    command = [sys.executable, str(SCRIPT), *map(str, args)]
    result = subprocess.run(
        command, cwd=folder, env=environment(env), capture_output=True, text=True, check=False, preexec_fn=preexec
    )
    if check and result.returncode != 0:
        raise AssertionError(f"{' '.join(command)} exited with {result.returncode}:\n{result.stdout}{result.stderr}")
    return result


def start(folder: Path, *args: str | Path) -> subprocess.Popen[str]:
    """Starts the installed `gcflow` in a project and returns at once."""
    command = [sys.executable, str(SCRIPT), *map(str, args)]
    return subprocess.Popen(
        command, cwd=folder, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def limit_file_size(size: int) -> None:
    """For `preexec`: every file of the process fails to grow beyond `size` bytes, as on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def prepare_data(folder: Path, *datasets: str) -> Path:
    """Prepares data sets of a project within this process, which costs milliseconds; returns the project."""
    from gcflow.data import prepare
    from gcflow.pipeline.folders import data_folder
    from gcflow.pipeline.params import Params

    params = Params(folder / "params.yaml")
    for name in datasets:
        prepare(params.dataset(name).data, data_folder(params.root, name))
    return folder


def train_here(folder: Path, run: str, minutes: float | None = None) -> None:
    """`gcflow train` within this process, for tests of what is no behaviour of a process."""
    from gcflow.pipeline.params import Params
    from gcflow.pipeline.train import train_run

    handler = signal.getsignal(signal.SIGTERM)
    try:
        train_run(Params(folder / "params.yaml"), run, minutes=minutes)
    finally:
        signal.signal(signal.SIGTERM, handler)


def contents(folder: Path) -> dict[str, str]:
    """Relative path to sha256 of every file below `folder`."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
