"""What MLflow says of a run besides its points: tags, parameters, and a note that leads back to the files."""

import getpass
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from gcflow.pipeline.folders import run_folder
from gcflow.pipeline.params import Params, Run
from gcflow.pipeline.tracking.files import RunFiles


def flat_parameters(config: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Dotted keys and values as text, for MLflow's parameters."""
    flat: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat |= flat_parameters(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = str(value)
    return flat


def studies_of(params: Params, run: Run) -> list[str]:
    """The tables and figures that show a run's method."""
    entry = params.dataset(run.dataset)
    tables = [name for name, table in entry.tables.items() if run.method in table.methods]
    return tables + [name for name, figure in entry.figures.items() if run.method in figure.methods]


def tags_of(params: Params, files: RunFiles) -> dict[str, str]:
    """Tags of a run; those of the job are of the last one that trained it."""
    run, jobs, studies = files.run, files.jobs(), studies_of(params, files.run)
    job = jobs[-1] if jobs else {}
    tags = {
        "run": run.name,
        "config_hash": files.config_hash,
        "origin": files.origin or None,
        "dataset": run.dataset,
        "method": run.method,
        "label": params.dataset(run.dataset).runs[run.method].label,
        "seed": run.seed,
        # To group by: MLflow hides runs that are nested under another one, and draws no charts of them.
        "study": studies[0] if studies else None,
        "studies": ", ".join(studies) or None,
        "host": job.get("host"),
        "device": job.get("device"),
        "processes": job.get("processes"),
        "torch": job.get("torch"),
        "slurm_job": job.get("slurm_job"),
        "git_commit": job.get("commit"),
        "git_dirty": job.get("dirty"),
        "resumed": len(jobs) - 1 if jobs else None,
        # What the columns of MLflow's own table show.
        "mlflow.source.name": "gcflow train",
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": job.get("commit"),
    }
    with suppress(OSError, KeyError):
        tags["mlflow.user"] = getpass.getuser()
    return {key: str(value) for key, value in tags.items() if value is not None}


def weights_of(params: Params, files: RunFiles, md5: str) -> dict[str, str]:
    """Where the weights of a published run are: they are not uploaded a second time. md5: DVC's hash of them."""
    run = files.run
    return {
        "path": str(run_folder(params.root, run).relative_to(params.root) / "weights.safetensors"),
        "md5": md5,
        "fetch": f"dvc pull train@{run.dataset}-{run.method}-{run.seed}",
        "sample": f"gcflow sample {run_folder(params.root, run).relative_to(params.root)}/weights.safetensors",
    }


def note(weights: dict[str, str] | None, files: RunFiles) -> str:
    """The description on a run's page, in Markdown. weights: where they are, if they are published."""
    lines = [f"`gcflow train {files.run.name}`" + ("" if files.complete else ": not finished yet")]
    if weights:
        lines += ["", f"Weights: `{weights['path']}`, md5 (DVC) `{weights['md5']}`"]
        lines += ["", f"Elsewhere: `{weights['fetch']}`, then `{weights['sample']}`"]
    return "\n".join(lines)


def study_note(title: str, methods: Iterable[str]) -> str:
    """The description of a table or figure."""
    shown = ", ".join(methods)
    return title + (f"\n\nMethods: {shown}" if shown else "")
