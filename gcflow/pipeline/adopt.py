"""`gcflow adopt`: Snakemake takes over what DVC pulled or made: `snakemake all` has nothing to do."""

import subprocess
import sys

from gcflow.errors import GcflowError
from gcflow.pipeline.dvc_stages import versioned, write_dvc_yaml
from gcflow.pipeline.params import Params
from gcflow.pipeline.progress import say
from gcflow.pipeline.scheduler import PROFILE, opened
from gcflow.pipeline.stages import Stage
from gcflow.pipeline.versions import Versions

MIRROR = "results/tracking.json"


def adopt(params: Params, scale: str) -> None:
    """Makes Snakemake accept every stage of a scale that dvc.lock vouches for; the rest is left to it, named.

    dvc.lock vouches for a stage if its parameters, inputs and outputs are those that lie there. Inputs that were not
    pulled may be missing, if nothing that is there contradicts them.

    Raises:
        GcflowError: dvc.lock vouches for nothing, Snakemake runs here, or Snakemake or DVC fails.
    """
    write_dvc_yaml(params, scale)
    stages = versioned(params, scale)
    versions = Versions(params, stages)
    with opened(params, scale, stages) as scheduler:
        doubted = [stage for stage in stages if not scheduler.vouches(stage)]
        adopted = _vouched(doubted, versions)
        present = [stage for stage in stages if stage not in doubted]
        if not adopted and not present:
            raise GcflowError("nothing to adopt: dvc.lock vouches for nothing that is here; `dvc pull` first")
        if adopted:
            scheduler.accept([stage.outs[0] for stage in (*present, *adopted)])
    say(f"Snakemake: {len(adopted)} stages adopted, {len(present) + len(adopted)} of {len(stages)} up to date")
    if left := [stage.name for stage in doubted if stage not in adopted]:
        say(f"  left to Snakemake, since dvc.lock does not vouch for what is here: {', '.join(left)}")
    # Snakemake's records as they are now: it keeps what it has read.
    with opened(params, scale, stages) as scheduler:
        if adopted:
            versions.note({s.name: scheduler.begun(s) for s in (*present, *adopted) if versions.whole(s)})
        only_mirror = scheduler.would_make(MIRROR) and not any(map(scheduler.would_make, scheduler.needs(MIRROR)))
    if only_mirror:
        _mirror(params, scale)


def _vouched(doubted: list[Stage], versions: Versions) -> list[Stage]:
    """Those that are whole, and whose ancestors, as far as Snakemake doubts them, nothing contradicts."""
    contradicted: set[str] = set()
    vouched = []
    for stage in doubted:
        if versions.contradicted(stage) or contradicted.intersection(stage.deps):
            contradicted.update(stage.outs)
        elif versions.whole(stage):
            vouched.append(stage)
    return vouched


def _mirror(params: Params, scale: str) -> None:
    """Lets Snakemake send the runs to MLflow: no version of what is in MLflow here could have been pulled."""
    command = [sys.executable, "-m", "snakemake", "--profile", str(PROFILE.parent), "--config", f"scale={scale}"]
    # Without the watch that would send the same beside it.
    result = subprocess.run(
        [*command, "--no-hooks", "--", MIRROR], cwd=params.root, capture_output=True, text=True, check=False
    )
    if result.returncode != 0:
        say(f"gcflow: warning: the runs were not mirrored to MLflow; see {params.root / 'results/logs/track.log'}")
