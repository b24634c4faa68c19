"""`gcflow record`: writes what is complete to dvc.lock: `dvc status` is clean, `dvc repro` does nothing."""

import subprocess
import sys

from gcflow.errors import GcflowError
from gcflow.pipeline.params import Params
from gcflow.pipeline.progress import say
from gcflow.pipeline.stages import Stages, write_dvc_yaml


def record(params: Params) -> None:
    """Commits every stage whose inputs and outputs exist to dvc.lock and DVC's cache; the rest is left as it is.

    Raises:
        GcflowError: nothing is complete, or DVC fails (its message is shown).
    """
    write_dvc_yaml(params)
    stages = list(Stages(params))
    complete = [s.name for s in stages if all((params.root / path).exists() for path in (*s.deps, *s.outs))]
    if not complete:
        raise GcflowError("nothing to record: no stage is complete; run `snakemake --profile local all` first")
    command = [sys.executable, "-m", "dvc", "commit", "--force", "--quiet", *complete]
    result = subprocess.run(command, cwd=params.root, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise GcflowError(f"dvc commit failed: {' '.join(result.stderr.split()) or 'no message'}")
    say(f"recorded {len(complete)} of {len(stages)} stages in dvc.lock")
