"""The measurement of each claim's test on a data set, before other tests are looked at.

Every effect is the side that the claim says is lower minus the other, so that a negative one supports the claim.
"""

import math
from dataclasses import dataclass, fields
from typing import Any

from gcflow.errors import GcflowError
from gcflow.files import expected_form
from gcflow.pipeline.ledger.plans import Plan, run_file
from gcflow.pipeline.ledger.run_statistics import run_statistic
from gcflow.pipeline.ledger.summaries import Summaries, verb_of
from gcflow.pipeline.params import Params, Run
from gcflow.pipeline.schema import RunsClaim, Statistic, TransportClaim
from gcflow.significance import Estimate, Paired, Welch
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
    was compared, by side; for runs, seed to statistic. base: the cost that the effect is a change of; None where
    effects are of logarithms or slopes.
    """

    plan: Plan
    statistic: Statistic
    contrast: str
    unit: str
    replicates: dict[str, int]
    values: dict[str, dict[str, float]]
    comparison: Paired | Welch
    base: float | None = None

    @property
    def scale(self) -> str:
        """The terms of which the effect is a difference."""
        if self.base is not None:
            return "costs"
        return "slopes" if self.statistic == "discrepancy-slope" else "natural logarithms"

    def ratio(self, effect: float) -> float | None:
        """An effect as a ratio of the two sides; None for slopes, and where there is no number."""
        if self.scale == "slopes" or math.isinf(effect):
            return None
        return math.exp(effect) if self.base is None else max(0.0, 1 + effect / self.base)

    @property
    def seeds(self) -> list[int]:
        """That both sides have, of a test of runs."""
        return [] if self.comparison.count is None else [*map(int, next(iter(self.values.values())))]


def compare_runs(params: Params, plan: Plan, claim: RunsClaim, data: Summaries, prior_scale: float) -> Evidence:
    """A statistic of runs with the same seeds, lower minus higher, in the order of the seeds.

    Raises:
        GcflowError: the data have no such runs, or their numbers no such statistic.
    """
    verb, methods = verb_of(claim), (claim.lower, claim.higher)
    numbers: dict[str, dict[int, dict[str, Any]]] = {method: {} for method in methods}
    for (of, run), measured in data.runs.items():
        if of == verb and run.method in numbers:
            numbers[run.method][run.seed] = measured
    common = sorted(set.intersection(*map(set, numbers.values())))
    if not common:
        raise GcflowError(f"{data.path}: has no runs of {' and '.join(methods)} with the same seed")
    values: dict[str, dict[str, float]] = {method: {} for method in methods}
    for method in methods:
        for seed in common:
            source = str(data.path or params.root / run_file(claim, Run(plan.dataset, method, seed)))
            values[method][str(seed)] = run_statistic(claim.statistic, numbers[method][seed], source)
    pairs = zip(*(of_seeds.values() for of_seeds in values.values()), strict=True)
    contrast = " < ".join(params.dataset(plan.dataset).runs[method].label for method in methods)
    found = Paired(tuple(lower - higher for lower, higher in pairs), prior_scale)
    return Evidence(plan, claim.statistic, contrast, SEEDS, dict.fromkeys(methods, len(common)), values, found)


def compare_costs(params: Params, plan: Plan, claim: TransportClaim, data: Summaries) -> Evidence:
    """Transport costs of generator-augmented pairs against those of other noise levels or couplings.

    The exact flow predicts their endpoints, or the trained predictor, where the data are too large for the exact one.
    """
    with expected_form(data.path or params.root / plan.files[0], f"gcflow transport {plan.dataset}"):
        records, samples = data.transport["records"], data.transport["samples"]
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
        found = Welch(tuple(estimates))
    return Evidence(plan, claim.statistic, contrast, unit, replicates, values, found, base)


def statement_checks(params: Params, plan: Plan, statement: str, data: Summaries) -> list[Check]:
    """The checks of a statement; none, if its data set has none."""
    with expected_form(data.path or params.root / plan.files[0], f"gcflow theory {plan.dataset}"):
        return [_check(found) for found in data.checks if found["statement"] == statement]


def _check(found: dict[str, Any]) -> Check:
    if found["relation"] not in ("=", "<", ">"):
        raise ValueError(f"relation {found['relation']!r}")
    numbers = {name: float(found[name]) for name in ("measured", "expected", "tolerance")}
    return Check(**{field.name: found[field.name] for field in fields(Check)} | numbers)
