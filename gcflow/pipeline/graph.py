"""What a target consists of: the stages of all scales, which others each needs, and which of them are done."""

from dataclasses import dataclass, field
from functools import cached_property

from gcflow.config import digest, to_dict
from gcflow.errors import GcflowError
from gcflow.files import read_json, sha256_of
from gcflow.options import suggestion
from gcflow.pipeline.folders import data_folder, run_folder, snapshot
from gcflow.pipeline.params import Params
from gcflow.pipeline.stages import OF_SCALE, Stage, Stages


@dataclass(frozen=True)
class Graph:
    """Every stage of params.yaml, in an order in which they could run.

    scale: whose stages `all` means, and whose views come first. jobs: by name. needs: of each those whose files it
    reads.
    """

    params: Params
    scale: str
    jobs: dict[str, Stage] = field(init=False)
    needs: dict[str, tuple[str, ...]] = field(init=False)

    def __post_init__(self) -> None:
        stages = [stage for stage in Stages(self.params, "all") if stage.kind not in OF_SCALE]
        stages += Stages(self.params, "all").added
        stages += [stage for stage in self._stages if stage.kind in OF_SCALE]
        maker = {out: stage.name for stage in stages for out in stage.outs}
        needs = {s.name: tuple(dict.fromkeys(maker[dep] for dep in s.deps if dep in maker)) for s in stages}
        object.__setattr__(self, "jobs", {stage.name: stage for stage in stages})
        object.__setattr__(self, "needs", needs)

    @cached_property
    def _stages(self) -> Stages:
        return Stages(self.params, self.scale)

    @cached_property
    def views(self) -> dict[str, list[str]]:
        """The paper's tables and figures to every job that they need."""
        return {view: self.closure([stage.name for stage in stages]) for view, stages in self._stages.views().items()}

    @cached_property
    def whole(self) -> list[str]:
        """Every job of the scale."""
        return self.closure([stage.name for stage in self._stages])

    def closure(self, names: list[str]) -> list[str]:
        """These jobs and all that they need, in an order in which they could run."""
        wanted, open_ends = set(names), list(names)
        while open_ends:
            new = set(self.needs[open_ends.pop()]) - wanted
            wanted |= new
            open_ends += new
        return [name for name in self.jobs if name in wanted]

    def target(self, target: str) -> list[str]:
        """The jobs of a view of the paper, a data set, a run, a stage, or of the whole scale (`all`).

        `decided` are those that the claims read, with the seeds of seeds.yaml.

        Raises:
            GcflowError: there is no such target.
        """
        if target == "all":
            return self.whole
        if target == "decided":
            files = set(self._stages.evidence)
            return self.closure([name for name, job in self.jobs.items() if files.intersection(job.outs)])
        # A view means the scale's own data sets first; every other name is the same at all scales.
        for stages in (self._stages, Stages(self.params, "all")):
            named = stages.named(target)
            if named is not None:
                return self.closure([stage.name for stage in named])
        words = ["all", *self.views, *self.params.datasets, *self.jobs]
        raise GcflowError(
            f"target {target!r}: known are all; the views {', '.join(self.views) or '(none)'}; the data sets "
            f"{', '.join(self.params.datasets)}; and {len(self.jobs)} stages, such as {next(iter(self.jobs))}"
            f"{suggestion(target, words)}"
        )

    def done(self, names: list[str]) -> set[str]:
        """Which of these jobs, each after those that it needs, have all their files, made from files that stay.

        A run must also be of the configuration that params.yaml has now.
        """
        found: set[str] = set()
        for name in names:
            job = self.jobs[name]
            exists = all((self.params.root / out).exists() for out in job.outs)
            if exists and found.issuperset(self.needs[name]) and (job.kind != "train" or self._is_current(job)):
                found.add(name)
        return found

    def _is_current(self, job: Stage) -> bool:
        assert job.run is not None
        run, root = job.run, self.params.root
        record = run_folder(root, run) / "config.json"
        try:
            recorded = read_json(record)
            inputs = dict(recorded["inputs"])
            inputs["data_sha256"] = read_json(data_folder(root, run.dataset) / "manifest.json")["sha256"]["samples.npy"]
            files = {role: root / file for role, file in self.params.needed_files(run).items()}
            files |= {
                role: snapshot(run_folder(root, needed), step)
                for role, (needed, step) in self.params.needed_runs(run).items()
            }
            for role, path in files.items():
                # Reading gigabytes to plan would take minutes; a file older than the run is the one that it read.
                if path.stat().st_mtime > record.stat().st_mtime:
                    inputs[f"{role}_sha256"] = sha256_of(path)
            config = to_dict(self.params.run_config(run.name))
            return bool(recorded["config_hash"] == digest({"config": config, "inputs": inputs}))
        except (GcflowError, OSError, KeyError, TypeError):
            return False
