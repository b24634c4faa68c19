"""`gcflow record`: writes what is complete to dvc.lock: `dvc status` is clean, `dvc repro` does nothing."""

import json
import subprocess
import sys

from gcflow.errors import GcflowError
from gcflow.pipeline.params import Params
from gcflow.pipeline.progress import say
from gcflow.pipeline.stages import Stages, write_dvc_yaml


def _dvc(params: Params, *arguments: str) -> str:
    command = [sys.executable, "-m", "dvc", *arguments]
    result = subprocess.run(command, cwd=params.root, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise GcflowError(f"dvc {arguments[0]} failed: {' '.join(result.stderr.split()) or 'no message'}")
    return result.stdout


def record(params: Params, scale: str) -> None:
    """Commits every stage of a scale whose inputs and outputs exist to dvc.lock and DVC's cache; the rest is left.

    Raises:
        GcflowError: nothing is complete, or DVC fails (its message is shown).
    """
    write_dvc_yaml(params, scale)
    stages = list(Stages(params, scale))
    complete = [s.name for s in stages if all((params.root / path).exists() for path in (*s.deps, *s.outs))]
    if not complete:
        raise GcflowError("nothing to record: no stage is complete; run `snakemake --profile local all` first")
    new = complete
    if (params.root / "dvc.lock").exists():
        changed = json.loads(_dvc(params, "status", "--json"))
        new = [name for name in complete if name in changed]
    if new:
        # Without names DVC writes dvc.lock once for all stages, with names once for each.
        _dvc(params, "commit", "--force", "--quiet", *([] if len(new) == len(stages) else new))
    say(f"dvc.lock: {len(new)} stages recorded, {len(complete)} of {len(stages)} complete")
