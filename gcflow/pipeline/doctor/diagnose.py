"""All checks of a request.

Nothing beyond the standard library and click is imported before the check that is about it, so that a machine on which
a package is missing is told so by name.
"""

import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import NamedTuple

from gcflow.pipeline.doctor.asking import PATIENCE_SECONDS, started
from gcflow.pipeline.doctor.check import Check, Request, unexpected
from gcflow.pipeline.doctor.data import check_data
from gcflow.pipeline.doctor.disk import check_disk, check_folders
from gcflow.pipeline.doctor.machine import check_device, check_packages, check_python
from gcflow.pipeline.doctor.networks import check_inception, check_models
from gcflow.pipeline.doctor.project import check_dvc_yaml, check_params, check_snakemake, resolve
from gcflow.pipeline.doctor.services import check_dvc, check_slurm, check_tracking


class Probe(NamedTuple):
    """A check to be made. waits: for something outside of this process, so it is made beside the others."""

    subject: str
    look: Callable[[], Iterable[Check]]
    needed: bool = True
    waits: bool = False


def _listed(look: Callable[[], Iterable[Check]]) -> list[Check]:
    return list(look())


def made(probes: Iterable[Probe]) -> list[Check]:
    """The checks, in order. One that fails in another way than it should is broken, one that hangs is given up."""
    begun = time.monotonic()
    asked = [(probe, started(partial(_listed, probe.look)) if probe.waits else None) for probe in probes]
    checks: list[Check] = []
    for probe, future in asked:
        try:
            left = max(0.0, begun + PATIENCE_SECONDS - time.monotonic())
            checks += probe.look() if future is None else future.result(left)
        except TimeoutError:
            found = f"no answer within {PATIENCE_SECONDS:.0f} s"
            checks.append(Check(probe.subject, "broken", found, "look at it by hand", probe.needed))
        except Exception as error:
            checks.append(unexpected(probe.subject, error, probe.needed))
    return checks


def diagnose(request: Request) -> list[Check]:
    """Every check of a request.

    Raises:
        GcflowError: the target does not exist.
    """
    params_checks, params = check_params(request)
    target = resolve(request, params) if params else None
    root = request.path.parent
    slow_on_cpu = target is not None and target.slow_on_cpu
    before = [
        Probe("Python", check_python),
        Probe("packages", check_packages),
        Probe("device", partial(check_device, request.device, slow_on_cpu)),
        Probe(request.path.name, lambda: params_checks),
    ]
    if params and target:
        before += [
            Probe("dvc.yaml", partial(check_dvc_yaml, params, request.scale), needed=False),
            Probe("Snakemake", partial(check_snakemake, root)),
            Probe("data", partial(check_data, target)),
            Probe("Inception", partial(check_inception, target)),
            Probe("model", partial(check_models, target)),
            Probe("disk", partial(check_disk, target)),
            Probe("MLflow", partial(check_tracking, params), needed=False, waits=True),
        ]
    else:
        left_out = "data, networks, disk and MLflow: params.yaml says which"
        skipped = Check("the rest", "skipped", left_out, f"mend {request.path.name} first", needed=False)
        before += [
            Probe("Snakemake", partial(check_snakemake, root)),
            Probe("the rest", lambda: [skipped]),
        ]
    after = [
        Probe("folders", partial(check_folders, root)),
        Probe("DVC", partial(check_dvc, root), needed=False, waits=True),
        Probe("Slurm", check_slurm, needed=False, waits=True),
    ]
    return made([*before, *after])
