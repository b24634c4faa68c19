"""What Snakemake thinks of each stage, asked of Snakemake itself: which jobs it would run, and why not the others."""

import os
import time
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from gcflow.config import to_dict
from gcflow.errors import GcflowError
from gcflow.files import expected_form, read_json
from gcflow.pipeline.params import Params
from gcflow.pipeline.stages import Stage

SNAKEFILE = "Snakefile"
PROFILE = Path("workflow", "profiles", "local", "config.yaml")


class Scheduler:
    """Snakemake's jobs for the stages of a scale, as they stand on disk now. `opened` makes one."""

    def __init__(self, workflow: Any, stages: list[Stage]) -> None:
        self._workflow, self._dag = workflow, workflow.dag
        self._persistence = workflow.persistence
        self.stages = stages
        self._jobs = {str(out): job for job in self._dag.jobs for out in job.output}
        self._needed = set(self._dag.needrun_jobs())
        locks = sorted((Path(self._persistence.path) / "locks").glob("*.output.lock"))
        self._claimed = {line: lock.stat().st_mtime for lock in locks for line in lock.read_text("utf-8").splitlines()}

    def would_make(self, path: str) -> bool:
        """Whether Snakemake would run the job that makes a file, or has none."""
        return path not in self._jobs or self._jobs[path] in self._needed

    def needs(self, path: str) -> list[str]:
        """The files that the job which makes a file reads."""
        return [str(file) for file in self._jobs[path].input]

    def vouches(self, stage: Stage) -> bool:
        """Whether Snakemake made the outputs of a stage, from the present inputs and parameters, and has left them.

        Not while a running Snakemake is still to make them again, whatever lies there.
        """
        if self.would_make(stage.outs[0]):
            return False
        job = self._jobs[stage.outs[0]]
        # An input need not be here.
        if any(self._rewritten(file) for file in job.input if str(file) in self._jobs and os.path.lexists(file)):
            return False
        for out in job.output:
            made = self._persistence.metadata(out)
            # Without a record Snakemake trusts modification times, which say nothing of parameters.
            if made is None or made.endtime is None or self._rewritten(out):
                return False
            if made.starttime < self._claimed.get(str(out), 0):
                return False
        return True

    def begun(self, stage: Stage) -> float:
        """When the job began that made the outputs of a stage for which it vouches, which tells it from all others."""
        return float(self._persistence.metadata(self._jobs[stage.outs[0]].output[0]).starttime)

    def accept(self, paths: list[str]) -> None:
        """Makes Snakemake take the files of the jobs that make `paths` for made by it, now.

        All get one time. Two files may be one inode in DVC's cache, so none could be made newer than another.

        Raises:
            GcflowError: Snakemake runs here, or a file belongs to somebody else.
        """
        from snakemake.exceptions import LockException

        now = time.time()
        jobs = {id(job): job for job in (self._jobs[path] for path in paths)}.values()
        try:
            with self._persistence.lock():
                for job in jobs:
                    for file in (*job.output, *([job.benchmark] if job.benchmark else [])):
                        if os.path.lexists(file):
                            file.touch((now, now))
                # Snakemake remembers times from planning; its records are to have the new ones.
                self._workflow.iocache.deactivate()
                for job in jobs:
                    self._workflow.async_run(self._persistence.finished(job))
        except LockException:
            raise GcflowError(
                "Snakemake runs in this folder: wait for its end (if it was killed: snakemake --profile local --unlock)"
            ) from None
        except PermissionError as error:
            raise GcflowError(
                f"{error.filename or 'a file'}: its time cannot be set, since it belongs to another user's cache; "
                "dvc config --local cache.type reflink,copy, then dvc checkout --relink"
            ) from None

    def _rewritten(self, path: Any) -> bool:
        """Whether somebody else wrote to an output after it was made; of a directory Snakemake sees its stamp only."""
        made = self._persistence.metadata(path)
        stamp = Path(path) / ".snakemake_timestamp"
        files = (file.lstat().st_mtime for file in Path(path).rglob("*") if file.is_file())
        written = max([os.lstat(stamp if stamp.exists() else path).st_mtime, *files])
        return made is not None and made.endtime is not None and written > made.endtime


def made_otherwise(params: Params, stage: Stage) -> bool:
    """Whether data or a run tell of another params.yaml, and Snakemake has no record of the job that made them.

    It knows of nothing but their times then, and would take them for what the stage makes now.
    """
    path = params.root / stage.outs[0]
    record = params.root / ".snakemake" / "metadata" / urlsafe_b64encode(stage.outs[0].encode()).decode()
    if stage.kind not in ("prepare", "train") or not path.exists() or record.exists():
        return False
    if stage.run:
        key, wanted = "config", to_dict(params.run_config(stage.run.name))
    else:
        key, wanted = "options", to_dict(params.dataset(stage.dataset or "").data)
    with suppress(GcflowError), expected_form(path):
        return bool(read_json(path)[key] != wanted)
    return False


@contextmanager
def opened(params: Params, scale: str, stages: list[Stage]) -> Iterator[Scheduler]:
    """Plans `snakemake all` of a scale, and those of its stages that are no part of that, without running anything.

    Raises:
        GcflowError: Snakemake cannot plan it (its message is shown), or it is not there.
    """
    if not (params.root / SNAKEFILE).exists():
        raise GcflowError(f"{params.root / SNAKEFILE}: no such file; run this in a clone of the project")
    from snakemake.api import SnakemakeApi
    from snakemake.exceptions import RuleException, WorkflowError
    from snakemake.settings import types as settings
    from snakemake.settings.enums import Quietness

    own = set(params.runs())
    targets = {stage.outs[0] for stage in stages if stage.run and stage.run not in own}
    triggers = yaml.safe_load((params.root / PROFILE).read_text("utf-8"))["rerun-triggers"]
    output = settings.OutputSettings(quiet={Quietness.ALL})
    with SnakemakeApi(output) as api:
        try:
            planned = api.workflow(
                settings.ResourceSettings(cores=1),
                settings.ConfigSettings(config={"scale": scale}),
                snakefile=(params.root / SNAKEFILE).resolve(),
                workdir=params.root,
            )
            planned.dag(
                settings.DAGSettings(
                    targets={"all", *targets},
                    rerun_triggers={settings.RerunTrigger.parse_choice(name) for name in triggers},
                    # A job that began and did not end is one to run.
                    force_incomplete=True,
                )
            )
            workflow: Any = planned._workflow
            workflow.execution_settings = settings.ExecutionSettings()
            workflow.remote_execution_settings = settings.RemoteExecutionSettings()
            workflow._prepare_dag(forceall=False, ignore_incomplete=False, lock_warn_only=False)
            workflow._build_dag()
        except (RuleException, WorkflowError) as error:
            raise GcflowError(f"Snakemake cannot plan {scale}: {' '.join(str(error).split())}") from None
        yield Scheduler(workflow, stages)
