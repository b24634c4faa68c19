"""The measurement of each claim's test on a data set, from the stages' files, before other tests are looked at.

Every effect is the side that the claim says is lower minus the other, so that a negative one supports the claim.
"""

import math
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal

from gcflow.errors import GcflowError
from gcflow.files import expected_form, read_json
from gcflow.pipeline.ledger.plans import DISCREPANCY_STATISTICS, Plan, run_file
from gcflow.pipeline.ledger.run_statistics import run_statistic
from gcflow.pipeline.params import Params
from gcflow.pipeline.schema import RunsClaim, TransportClaim
from gcflow.pipeline.stages import Stages
from gcflow.significance import Comparison, Estimate, paired_comparison, welch_comparison
from gcflow.theory.check import Check

SEEDS = "training seed; the two methods' runs with the same seed are a pair"
PAIRS = "pair of data and noise; both costs are of the same pairs"
PAIRS_AND_BATCHES = (
    "pair of data and noise for GC, batch for OT; each cost as a saving on IC's of the same pairs, taken as independent"
)
RELATIONS: tuple[Literal["="], Literal["<"], Literal[">"]] = ("=", "<", ">")


@dataclass(frozen=True)
class Evidence:
    """The outcome of one test, whatever other tests there are.

    contrast: what is claimed to be lower than what. unit: of replication. replicates: units of each side. values: what
    was compared, by side; for runs, seed to statistic. estimates: what was compared as means with standard errors; none
    for runs. base: the cost that the effect is a change of; None where effects are of logarithms or slopes.
    """

    plan: Plan
    statistic: str
    contrast: str
    unit: str
    replicates: dict[str, int]
    values: dict[str, dict[str, float]]
    comparison: Comparison
    estimates: tuple[Estimate, ...] = ()
    base: float | None = None

    @property
    def scale(self) -> str:
        """The terms of which the effect is a difference."""
        if self.base is not None:
            return "costs"
        return "slopes" if self.statistic == "discrepancy-slope" else "natural logarithms"

    def ratio(self, effect: float | None) -> float | None:
        """An effect as a ratio of the two sides; None for slopes, and where there is no effect."""
        if effect is None or self.scale == "slopes":
            return None
        return math.exp(effect) if self.base is None else max(0.0, 1 + effect / self.base)


class Files:
    """The stages' files, read once each, with errors that name the command that makes them."""

    def __init__(self, params: Params) -> None:
        self.root = params.root
        self.makers = {out: stage.command for stage in Stages(params) for out in stage.outs}
        self.documents: dict[str, Any] = {}

    def read(self, file: str) -> Any:
        """The content of a JSON file of a stage."""
        if not (self.root / file).exists():
            raise GcflowError(f"{self.root / file}: no such file; run {self.makers[file]}")
        if file not in self.documents:
            self.documents[file] = read_json(self.root / file)
        return self.documents[file]

    def expected(self, file: str) -> AbstractContextManager[None]:
        """Turns what a file of another form leads to into an error that names it."""
        return expected_form(self.root / file, self.makers[file])


def compare_runs(params: Params, files: Files, plan: Plan, claim: RunsClaim) -> Evidence:
    """A statistic of runs with the same seeds, lower minus higher."""
    assert params.claims is not None
    labels = [params.dataset(plan.dataset).runs[method].label for method in (claim.lower, claim.higher)]
    values: dict[str, dict[str, float]] = {}
    for method, runs in zip((claim.lower, claim.higher), zip(*plan.runs, strict=True), strict=True):
        values[method] = {}
        for run in runs:
            file = run_file(claim, run)
            document = files.read(file)
            with files.expected(file):
                records = document["records"] if claim.statistic in DISCREPANCY_STATISTICS else document
                values[method][str(run.seed)] = run_statistic(claim.statistic, records, str(files.root / file))
    lower, higher = ([*values[method].values()] for method in (claim.lower, claim.higher))
    return Evidence(
        plan,
        claim.statistic,
        f"{labels[0]} < {labels[1]}",
        SEEDS,
        dict.fromkeys(values, len(lower)),
        values,
        paired_comparison(lower, higher, params.claims.confidence),
    )


def compare_costs(params: Params, files: Files, plan: Plan, claim: TransportClaim) -> Evidence:
    """Transport costs of generator-augmented pairs against those of other noise levels or couplings.

    The exact flow predicts their endpoints, or the trained predictor, where the data are too large for the exact one.
    """
    assert params.claims is not None
    (file,) = plan.files
    document = files.read(file)
    with files.expected(file):
        records, samples = document["records"], document["samples"]
        name = "gc-exact" if "gc-exact" in samples else "gc"
        levels = sorted((r for r in records if r["coupling"] == name), key=lambda r: r["sigma"])
        least, largest, replicates, unit = levels[0], levels[-1], {name: int(samples[name])}, PAIRS
        if claim.statistic == "falls-at-small-noise":
            contrast = f"GC at σ = {least['sigma']:g} < GC at σ_min"
            values = {name: {"change": least["change"]}}
            estimates = [Estimate(least["change"], least["change_standard_error"], replicates[name])]
            base = least["cost"] - least["change"]
        elif claim.statistic == "falls-at-large-noise":
            contrast = f"GC at σ = {largest['sigma']:g} < GC at σ = {levels[-2]['sigma']:g}"
            values = {name: {"change": largest["change"]}}
            estimates = [Estimate(largest["change"], largest["change_standard_error"], replicates[name])]
            base = largest["cost"] - largest["change"]
        else:
            ot = max((r for r in records if r["coupling"] == "ot"), key=lambda r: r["batch"])
            contrast, unit = f"GC at σ = {largest['sigma']:g} < OT in batches of {ot['batch']}", PAIRS_AND_BATCHES
            values = {name: {"saving": largest["saving"]}, "ot": {"saving": ot["saving"]}}
            replicates["ot"] = samples["ot"] // ot["batch"]
            estimates = [
                Estimate(record["saving"], record["saving_standard_error"], replicates[side])
                for side, record in (("ot", ot), (name, largest))
            ]
            base = ot["cost"]
        found = welch_comparison(estimates, params.claims.confidence)
    return Evidence(plan, claim.statistic, contrast, unit, replicates, values, found, tuple(estimates), base)


def statement_checks(files: Files, plan: Plan, statement: str) -> list[Check]:
    """The checks of a statement; none, if its data set has none."""
    (file,) = plan.files
    document = files.read(file)
    with files.expected(file):
        return [_check(found) for found in document["checks"] if found["statement"] == statement]


def _check(found: dict[str, Any]) -> Check:
    return Check(
        statement=found["statement"],
        name=found["name"],
        measured=float(found["measured"]),
        expected=float(found["expected"]),
        tolerance=float(found["tolerance"]),
        reason=found["reason"],
        relation=RELATIONS[RELATIONS.index(found["relation"])],
    )


def lead_in_tolerances(check: Check) -> float:
    """Distance of measured from expected, in tolerances; for an inequality negative on the wrong side."""
    gap = check.measured - check.expected
    size = abs(gap) / check.tolerance if check.tolerance > 0 else math.inf if gap else 0.0
    return -size if gap and check.relation == ("<" if gap > 0 else ">") else size
