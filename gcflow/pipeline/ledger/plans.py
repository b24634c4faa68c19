"""The claims that are tested on each data set, and from which files. The graph of stages takes its inputs from here."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from gcflow.pipeline.folders import discrepancy_path, results_folder, theory_path
from gcflow.pipeline.measurements import metrics_path
from gcflow.pipeline.params import Params, Run
from gcflow.pipeline.schema import Claim, RunsClaim, TransportClaim

DISCREPANCY_STATISTICS = ("discrepancy", "discrepancy-slope")
CURVE_STATISTICS = ("start", "area", "rise")
Verdict = Literal["supported", "contradicted", "no difference", "undecided"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
MARKS: dict[str, str] = dict(zip(VERDICTS, "✓✗=?", strict=True))
METHODS_NOTE = (
    "The methods at the end of training, EMA weights, over all seeds that decide; ± is the standard deviation over "
    "training seeds, in brackets over generation seeds of one run."
)


@dataclass(frozen=True)
class Plan:
    """A claim on a data set.

    runs: pairs of runs that are compared, one pair per common seed; for a claim about runs. files: what the test reads,
    relative to the root. reason: why it is not tested there; None if it is.
    """

    name: str
    claim: Claim
    dataset: str
    runs: tuple[tuple[Run, Run], ...]
    files: tuple[str, ...]
    reason: str | None


def plans(params: Params, dataset: str, added: bool = False) -> Iterator[Plan]:
    """Every claim on a data set, in the file's order. added: over the seeds of seeds.yaml, too."""
    for name, claim in (params.claims.entries if params.claims else {}).items():
        runs: tuple[tuple[Run, Run], ...] = ()
        if isinstance(claim, RunsClaim):
            runs = _pairs(params, claim, dataset, added)
            files = [run_file(claim, run) for side in zip(*runs, strict=True) for run in side]
            reason = next(_obstacles(params, claim, dataset, runs), None)
        elif isinstance(claim, TransportClaim):
            files = [results_folder(Path(), dataset) / "transport.json"]
            reason = _why_no_transport(params, claim, dataset)
        else:
            files = [theory_path(Path(), dataset)]
            reason = None if params.dataset(dataset).theory else f"{dataset} has no theory block"
        yield Plan(name, claim, dataset, () if reason else runs, () if reason else tuple(map(str, files)), reason)


def run_file(claim: RunsClaim, run: Run) -> Path:
    """The file with a run's statistic, relative to the root."""
    path = discrepancy_path if claim.statistic in DISCREPANCY_STATISTICS else metrics_path
    return path(Path(), run)


def _pairs(params: Params, claim: RunsClaim, dataset: str, added: bool) -> tuple[tuple[Run, Run], ...]:
    runs = params.dataset(dataset).runs
    if claim.lower not in runs or claim.higher not in runs:
        return ()
    seeds = params.seeds(dataset, claim.higher, added)
    common = [seed for seed in params.seeds(dataset, claim.lower, added) if seed in seeds]
    return tuple((Run(dataset, claim.lower, seed), Run(dataset, claim.higher, seed)) for seed in common)


def _obstacles(params: Params, claim: RunsClaim, dataset: str, pairs: tuple[tuple[Run, Run], ...]) -> Iterator[str]:
    """The reasons against comparing two methods on a data set; each is looked for where those before it are not."""
    entry, of_discrepancy = params.dataset(dataset), claim.statistic in DISCREPANCY_STATISTICS
    for method in (claim.lower, claim.higher):
        if method not in entry.methods:
            yield f"{dataset} has no method {method}"
        if method not in entry.runs:
            yield f"{dataset} has no runs of {method}"
        denoiser = entry.methods[method].objective.denoises
        if of_discrepancy and not denoiser:
            yield f"{method} is no denoiser on {dataset}"
        if claim.statistic in CURVE_STATISTICS and denoiser:
            yield f"{method} is a denoiser on {dataset}, and those are evaluated at their end only"
    if of_discrepancy and entry.discrepancy is None:
        yield f"{dataset} has no discrepancy block"
    if not pairs:
        yield f"{claim.lower} and {claim.higher} have no seed in common on {dataset}"
    steps = [params.run_config(run.name).training.snapshot_steps for run in pairs[0]]
    if claim.statistic in CURVE_STATISTICS and steps[0] != steps[1]:
        yield f"{claim.lower} and {claim.higher} have snapshots at different steps on {dataset}"


def _why_no_transport(params: Params, claim: TransportClaim, dataset: str) -> str | None:
    settings = params.dataset(dataset).transport
    if settings is None:
        return f"{dataset} has no transport block"
    if claim.statistic == "falls-at-large-noise" and len(settings.sigmas) < 2:
        return f"the transport block of {dataset} has a single noise level"
    if claim.statistic == "below-ot" and not settings.batch_sizes:
        return f"the transport block of {dataset} has no batch size for OT"
    return None
