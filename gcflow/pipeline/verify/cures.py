"""The one command that makes a file what it should be."""

from collections.abc import Container, Mapping
from shlex import join
from typing import NamedTuple

from gcflow.pipeline.graph import Job
from gcflow.pipeline.verify.findings import Finding
from gcflow.pipeline.verify.recorded import Recorded


class Names(NamedTuple):
    """The names of the same bytes: declared outputs of stages, files of a run's state, copies in DVC's cache."""

    outs: tuple[str, ...]
    state: tuple[str, ...]
    cache: tuple[str, ...]


class Cures:
    """Chooses commands.

    Args:
        recorded: dvc.lock.
        versions: path to md5 of every file that is recorded as it should be now.
        declared: every output of every stage.
        bad: every path that is damaged.
    """

    def __init__(
        self, recorded: Recorded, versions: Mapping[str, str], declared: Container[str], bad: set[str]
    ) -> None:
        self.recorded, self.versions, self.declared, self.bad = recorded, versions, declared, bad

    def cure(self, finding: Finding, job: Job, names: Names, scale: str) -> str:
        """What to run in the project's folder for a finding about files of a stage, which is of a scale."""
        if finding.kind == "older":
            return _made_again(finding.path)
        if finding.kind == "stray":
            return join(["rm", "-f", finding.path])
        if names.outs:
            return self._outs(names, job, scale)
        if names.state:
            return self._state(names.state[0], job)
        if names.cache:
            return f"{join(['rm', '-f', *names.cache])} && {join(['dvc', 'commit', '--force', job.name])}"
        again = "gcflow import-edm" if job.kind == "train" else f"{job.stage.command} --download"
        return f"{join(['rm', '-f', finding.path])} && {again}"

    def _outs(self, names: Names, job: Job, scale: str) -> str:
        versions = [self.versions[path] for path in names.outs if path in self.versions]
        if len(versions) == len(names.outs):
            kept = [self.recorded.cached(md5) for md5 in versions]
            whole = all((self.recorded.root / path).exists() and path not in self.bad for path in kept)
            linked = "".join(f" && {join(['ln', '-f', names.outs[0], path])}" for path in names.state)
            # DVC trusts what it once linked, so that it looks at these files no more.
            removed = join(["rm", "-f", *names.outs, *names.cache])
            if whole:
                return f"{removed} && {join(['dvc', 'checkout', *names.outs])}{linked}"
            if self.recorded.has_remote:
                return f"{removed} && {join(['dvc', 'pull', '--force', *names.outs])}{linked}"
        # Snakemake knows a directory as a whole. Equal outputs of several stages are one file in DVC's cache.
        made = {path if path in self.declared else path.rpartition("/")[0]: None for path in names.outs}
        # Training goes on from its state, and publishes what is there.
        states = sorted({_configuration_folder(path) for path in names.state})
        again = f"{join(['rm', '-rf', *made, *names.cache, *states])} && {_made_again(*made)}"
        # A training ends in other bits, or was at another time: beside it the versions of before are damage.
        recorded = self.recorded.outs(job.name)
        return f"{again} && {join(['gcflow', 'record', '--scale', scale])}" if recorded else again

    def _state(self, path: str, job: Job) -> str:
        published = path.partition("/state/")[0]
        snapshot = f"{published}/snapshots/{path.rpartition('/')[2]}"
        if "/snapshots/" not in path:
            # Of two checkpoints the other is enough.
            return join(["rm", "-f", path])
        if (self.recorded.root / snapshot).exists() and snapshot not in self.bad:
            return join(["ln", "-f", snapshot, path])
        return join(["rm", "-rf", _configuration_folder(path)])


def _configuration_folder(path: str) -> str:
    """Of a file in a run's state the folder of its configuration; the locks beside it stay."""
    run, _, inner = path.partition("/state/")
    return f"{run}/state/{inner.partition('/')[0]}"


def _made_again(*paths: str) -> str:
    return join(["snakemake", "--profile", "local", *paths])
