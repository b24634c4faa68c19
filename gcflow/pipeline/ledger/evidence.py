"""The measurement of each claim's test on a data set, from the stages' files, before other tests are looked at.

Every effect is the side that the claim says is lower minus the other, so that a negative one supports the claim.
"""

import math
from dataclasses import dataclass, fields
from typing import Any

from gcflow.files import json_document
from gcflow.pipeline.ledger.plans import DISCREPANCY_STATISTICS, Plan, run_file
from gcflow.pipeline.ledger.run_statistics import run_statistic
from gcflow.pipeline.params import Params
from gcflow.pipeline.schema import RunsClaim, TransportClaim
from gcflow.significance import Comparison, Estimate, paired_comparison, welch_comparison
from gcflow.theory.check import Check

SEEDS = "training seed; the two methods' runs with the same seed are a pair"
PAIRS = "pair of data and noise; both costs are of the same pairs"
PAIRS_AND_BATCHES = (
    "pair of data and noise for GC, batch for OT; each cost as a saving on IC's of the same pairs, taken as independent"
)


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


def compare_runs(params: Params, plan: Plan, claim: RunsClaim, confidence: float) -> Evidence:
    """A statistic of runs with the same seeds, lower minus higher."""
    of_discrepancy = claim.statistic in DISCREPANCY_STATISTICS
    verb = "discrepancy" if of_discrepancy else "evaluate"
    values: dict[str, dict[str, float]] = {claim.lower: {}, claim.higher: {}}
    for run in (run for side in zip(*plan.runs, strict=True) for run in side):
        path = params.root / run_file(claim, run)
        with json_document(path, f"gcflow {verb} {run.name}") as document:
            records = document["records"] if of_discrepancy else document
            values[run.method][str(run.seed)] = run_statistic(claim.statistic, records, str(path))
    lower, higher = ([*of_seeds.values()] for of_seeds in values.values())
    contrast = " < ".join(params.dataset(plan.dataset).runs[method].label for method in values)
    found = paired_comparison(lower, higher, confidence)
    return Evidence(plan, claim.statistic, contrast, SEEDS, dict.fromkeys(values, len(lower)), values, found)


def compare_costs(params: Params, plan: Plan, claim: TransportClaim, confidence: float) -> Evidence:
    """Transport costs of generator-augmented pairs against those of other noise levels or couplings.

    The exact flow predicts their endpoints, or the trained predictor, where the data are too large for the exact one.
    """
    with json_document(params.root / plan.files[0], f"gcflow transport {plan.dataset}") as document:
        records, samples = document["records"], document["samples"]
        name = "gc-exact" if "gc-exact" in samples else "gc"
        levels = sorted((r for r in records if r["coupling"] == name), key=lambda r: r["sigma"])
        level, replicates = levels[0 if claim.statistic == "falls-at-small-noise" else -1], {name: int(samples[name])}
        contrast, unit = f"GC at σ = {level['sigma']:g} < ", PAIRS
        if claim.statistic == "below-ot":
            ot = max((r for r in records if r["coupling"] == "ot"), key=lambda r: r["batch"])
            contrast, unit = f"{contrast}OT in batches of {ot['batch']}", PAIRS_AND_BATCHES
            values = {name: {"saving": level["saving"]}, "ot": {"saving": ot["saving"]}}
            replicates["ot"] = samples["ot"] // ot["batch"]
            estimates = [
                Estimate(record["saving"], record["saving_standard_error"], replicates[side])
                for side, record in (("ot", ot), (name, level))
            ]
            base = ot["cost"]
        else:
            before = "σ_min" if claim.statistic == "falls-at-small-noise" else f"σ = {levels[-2]['sigma']:g}"
            contrast = f"{contrast}GC at {before}"
            values = {name: {"change": level["change"]}}
            estimates = [Estimate(level["change"], level["change_standard_error"], replicates[name])]
            base = level["cost"] - level["change"]
        found = welch_comparison(estimates, confidence)
    return Evidence(plan, claim.statistic, contrast, unit, replicates, values, found, tuple(estimates), base)


def statement_checks(params: Params, plan: Plan, statement: str) -> list[Check]:
    """The checks of a statement; none, if its data set has none."""
    with json_document(params.root / plan.files[0], f"gcflow theory {plan.dataset}") as document:
        return [_check(found) for found in document["checks"] if found["statement"] == statement]


def _check(found: dict[str, Any]) -> Check:
    if found["relation"] not in ("=", "<", ">"):
        raise ValueError(f"relation {found['relation']!r}")
    numbers = {name: float(found[name]) for name in ("measured", "expected", "tolerance")}
    return Check(**{field.name: found[field.name] for field in fields(Check)} | numbers)
