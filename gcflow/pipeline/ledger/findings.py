"""A verdict for each claim and data set, with regard to all the tests of that data set: in numbers, and in words."""

import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from gcflow.errors import GcflowError
from gcflow.pipeline.folders import results_folder, run_folder
from gcflow.pipeline.ledger.evidence import Evidence, compare_costs, compare_runs, statement_checks
from gcflow.pipeline.ledger.plans import Plan, Verdict, plans
from gcflow.pipeline.params import CLAIMS, Params
from gcflow.pipeline.schema import Claims, RunsClaim, TransportClaim
from gcflow.readable import NO_BREAK, minus, short
from gcflow.significance import MOST_SEEDS, growth_needed, holm, seeds_needed
from gcflow.theory.check import Check

# What is compared, and the same in a word or two.
MEANINGS = {
    "final": ("distance at the end of training", "end"),
    "start": ("distance at the first snapshot", "first snapshot"),
    "area": ("distance over training (geometric mean of the snapshots)", "mean of training"),
    "rise": ("distance at the end as a multiple of the least during training", "rise at the end"),
    "discrepancy": ("discrepancy R̃ (geometric mean over the noise levels)", "discrepancy"),
    "discrepancy-slope": ("slope of ln R̃ against ln σ, from σ = 1 on", "slope of discrepancy"),
    "falls-at-small-noise": ("transport cost of generator-augmented pairs", "cost"),
    "falls-at-large-noise": ("transport cost of generator-augmented pairs", "cost"),
    "below-ot": ("transport cost of generator-augmented pairs", "cost"),
}
ENDPOINTS = {"gc-exact": "the exact flow", "gc": "the trained predictor"}
UNITS = {"ot": "batches of OT"} | dict.fromkeys(ENDPOINTS, "pairs of GC")
LEAST_P = 1e-4
# In per cent: what floating point leaves of nothing.
ROUNDING = 1e-9


@dataclass(frozen=True)
class Finding:
    """A claim's outcome on a data set.

    test: what was compared. shown: the effect with its interval. text: how it was decided. source: what was read.
    numbers: what its record has besides. evidence: None for a statement of theory.
    """

    plan: Plan
    verdict: Verdict
    test: str
    shown: str
    text: str
    source: str
    numbers: dict[str, Any]
    evidence: Evidence | None = None

    def record(self) -> dict[str, Any]:
        """As claims.json has it."""
        terms = asdict(self.plan.claim)
        return {
            "name": self.plan.name,
            "place": terms.pop("place"),
            "claim": terms.pop("claim"),
            "dataset": self.plan.dataset,
            "verdict": self.verdict,
            "test": terms | {"words": self.test},
            "files": list(self.plan.files),
            **self.numbers,
            "shown": self.shown,
            "text": self.text,
        }


class Judgement(NamedTuple):
    """Every claim on every data set. untested: plans with their reasons."""

    settings: Claims
    datasets: list[str]
    findings: list[Finding]
    untested: list[Plan]


def judge(params: Params, scale: str) -> Judgement:
    """Tests every claim on every data set of a scale that has what it needs.

    Raises:
        GcflowError: there is no claims.yaml, or a file that a test reads is missing or damaged.
    """
    claims = params.claims
    if claims is None:
        raise GcflowError(f"{params.root / CLAIMS}: no such file; there is nothing to test")
    judgement = Judgement(claims, params.at_scale(scale), [], [])
    for dataset in judgement.datasets:
        outcomes = [_outcome(params, plan, claims.confidence) for plan in plans(params, dataset)]
        decisions = iter(decide([found for found in outcomes if isinstance(found, Evidence)], claims))
        for found in outcomes:
            if isinstance(found, Plan):
                judgement.untested.append(found)
            else:
                finding = finding_of(found, next(decisions), claims) if isinstance(found, Evidence) else found
                judgement.findings.append(finding)
    return judgement


def _outcome(params: Params, plan: Plan, confidence: float) -> Plan | Evidence | Finding:
    """What is not tested is its plan, with the reason; what waits for the other tests of the data set is evidence."""
    claim = plan.claim
    if plan.reason is not None:
        return plan
    if isinstance(claim, RunsClaim):
        return compare_runs(params, plan, claim, confidence)
    if isinstance(claim, TransportClaim):
        return compare_costs(params, plan, claim, confidence)
    checks = statement_checks(params, plan, claim.statement)
    return (
        checked(plan, checks) if checks else replace(plan, reason=f"{plan.files[0]} has no check of {claim.statement}")
    )


class Decision(NamedTuple):
    """A verdict on a statistical test.

    tests: of the data set, for all of which p_adjusted holds. seeds_needed: that would decide an undecided claim about
    runs; None if more than 1000. assumed_std: of the differences, for seeds_needed; None if it is not known and
    seeds_needed is but the least. growth_needed: for an undecided claim about transport cost, how many times the pairs.
    """

    verdict: Verdict
    p_adjusted: float
    tests: int
    seeds_needed: int | None = None
    assumed_std: float | None = None
    growth_needed: float | None = None


def decide(evidence: list[Evidence], settings: Claims) -> list[Decision]:
    """Verdicts on the statistical tests of one data set, whose p values are adjusted by Holm's method together."""
    adjusted = holm([item.comparison.p for item in evidence])
    return [_decision(item, p, evidence, settings) for item, p in zip(evidence, adjusted, strict=True)]


def _decision(item: Evidence, p_adjusted: float, family: list[Evidence], settings: Claims) -> Decision:
    found, alpha = item.comparison, 1 - settings.confidence
    if p_adjusted < alpha:
        return Decision("supported" if found.effect < 0 else "contradicted", p_adjusted, len(family))
    # Holm's method is strictest with the least p value; for the others this number of seeds is on the safe side.
    undecided, strictest = Decision("undecided", p_adjusted, len(family)), alpha / len(family)
    if found.count is None:
        return undecided._replace(growth_needed=growth_needed(item.estimates, strictest, settings.power))
    std = found.std if found.std is not None else _pooled_std(item.statistic, family)
    if std is None:
        return undecided._replace(seeds_needed=2)
    seeds = seeds_needed(found.effect, std, strictest, settings.power)
    return undecided._replace(seeds_needed=max(seeds, found.count + 1) if seeds else None, assumed_std=std)


def _pooled_std(statistic: str, family: list[Evidence]) -> float | None:
    stds = [e.comparison.std for e in family if e.statistic == statistic and e.comparison.std is not None]
    return math.sqrt(sum(std**2 for std in stds) / len(stds)) if stds else None


def finding_of(evidence: Evidence, decision: Decision, settings: Claims) -> Finding:
    """A claim that was tested statistically."""
    plan, found = evidence.plan, evidence.comparison
    endpoints = [f", endpoints by {ENDPOINTS[side]}" for side in evidence.replicates if side in ENDPOINTS]
    meaning, _ = MEANINGS[evidence.statistic]
    words = (_basis(evidence, settings), _significance(evidence, decision), _conclusion(evidence, decision, settings))
    return Finding(
        plan,
        decision.verdict,
        test=f"{meaning}{''.join(endpoints) if evidence.estimates else ''}: {evidence.contrast}",
        shown=effect_words(evidence),
        text=" ".join(words),
        source=f"{_files(plan)}; unit of replication: {evidence.unit}.",
        numbers={
            "runs": [run.name for pair in plan.runs for run in pair],
            "seeds": [run.seed for run, _ in plan.runs],
            "unit": evidence.unit,
            "replicates": evidence.replicates,
            "values": evidence.values,
            "effect_is": f"difference of {evidence.scale}, lower minus higher: negative supports the claim",
            "effect": found.effect,
            "interval": [found.low, found.high],
            "ratio": evidence.ratio(found.effect),
            "ratio_interval": [evidence.ratio(found.low), evidence.ratio(found.high)],
            "std": found.std,
            "standard_error": found.standard_error,
            "confidence": settings.confidence,
            "p": found.p,
            **{key: value for key, value in decision._asdict().items() if key != "verdict"},
        },
        evidence=evidence,
    )


def effect_words(evidence: Evidence) -> str:
    """`−12 % [−20 %, −3 %]`, or as factors where a percentage would be large, or a plain difference of slopes."""
    found = evidence.comparison
    parts = [found.effect] if found.low is None or found.high is None else [found.effect, found.low, found.high]
    ratios = [ratio for part in parts if (ratio := evidence.ratio(part)) is not None]
    if not ratios:
        shown = [minus(f"{part:+.2f}") for part in parts]
    elif max(ratios) >= 2:
        shown = [f"×{ratio:.2g}" if ratio < 1000 else f"×{ratio:.0e}" for ratio in ratios]
    else:
        shown = [_percent(ratio) for ratio in ratios]
    return shown[0] if len(shown) == 1 else f"{shown[0]} [{shown[1]}, {shown[2]}]"


def _percent(ratio: float) -> str:
    percentage = 100 * (ratio - 1)
    if abs(percentage) < ROUNDING:
        return f"0{NO_BREAK}%"
    decimals = max(1, -math.floor(math.log10(abs(percentage)))) if abs(percentage) < 10 else 0
    return minus(f"{percentage:+.{decimals}f}{NO_BREAK}%")


def _files(plan: Plan) -> str:
    if not plan.runs:
        return plan.files[0]
    name = Path(plan.files[0]).relative_to(run_folder(Path(), plan.runs[0][0]))
    methods, seeds = ",".join(run.method for run in plan.runs[0]), ",".join(str(run.seed) for run, _ in plan.runs)
    return f"{results_folder(Path(), plan.dataset)}/{{{methods}}}/seed{{{seeds}}}/{name}"


def _basis(evidence: Evidence, settings: Claims) -> str:
    found, shown = evidence.comparison, effect_words(evidence)
    if found.count == 1:
        return f"One seed is common to both methods: {shown}, and nothing that tells how much of it is chance."
    if found.count is not None:
        units, spread = f"{found.count} seeds, paired: mean", f"standard deviation {short(found.std or 0.0)}"
    else:
        units = " and ".join(f"{count} {UNITS[side]}" for side, count in evidence.replicates.items()) + ":"
        spread = f"standard error {short(found.standard_error or 0.0)}"
    return (
        f"Over {units} difference of {evidence.scale} {short(found.effect)}, {spread}; as an effect {shown} "
        f"({100 * settings.confidence:g} % interval of this comparison alone)."
    )


def _significance(evidence: Evidence, decision: Decision) -> str:
    if evidence.comparison.count == 1:
        return f"It counts as p = 1 among the {decision.tests} tests of this data set."
    test = "Welch's t test" if len(evidence.estimates) == 2 else "paired t test"
    p, adjusted = (
        f"p < {LEAST_P:g}" if p < LEAST_P else f"p = {p:.2g}" for p in (evidence.comparison.p, decision.p_adjusted)
    )
    return f"Two-sided {test}: {p}, after Holm's correction for {decision.tests} tests {adjusted}."


def _conclusion(evidence: Evidence, decision: Decision, settings: Claims) -> str:
    alpha = f"{1 - settings.confidence:.2g}"
    if decision.verdict == "supported":
        return f"Supported: below {alpha}, and of the claimed sign."
    if decision.verdict == "contradicted":
        return f"Contradicted: below {alpha}, and of the other sign."
    terms = f"(power {100 * settings.power:g} %, at α = {alpha}/{decision.tests}, which is conservative)"
    none, growth, std = "no effect to speak of.", decision.growth_needed, decision.assumed_std
    if evidence.comparison.count is None:
        finite = growth is not None and math.isfinite(growth)
        needed = f"about {growth:.2g} times as many samples would decide it {terms}." if finite else none
    elif decision.seeds_needed is None:
        needed = f"more than {MOST_SEEDS} seeds would be needed: {none}"
    elif std is None:
        needed = "at least 2 seeds are needed."
    else:
        borrowed = (
            ", if their differences vary as in the other comparisons of this statistic: pooled standard deviation "
            f"{short(std)}"
        )
        source = borrowed if evidence.comparison.count == 1 else ""
        needed = f"about {decision.seeds_needed} seeds would decide it {terms}{source}."
    return f"Undecided: {needed}"


def checked(plan: Plan, checks: list[Check]) -> Finding:
    """A statement that was checked numerically: supported if every check holds."""
    equalities = [_lead(check) for check in checks if check.relation == "="]
    bounds = [_lead(check) for check in checks if check.relation != "="]
    worst, margin = max(equalities, default=None), min(bounds, default=None)
    held = sum(check.holds for check in checks)
    shown = f"{held} of {len(checks)} checks hold"
    shown += "" if worst is None else f"; off by at most {short(worst, 2)} tolerances"
    shown += "" if margin is None else f"; apart by at least {short(margin, 2)} tolerances"
    return Finding(
        plan,
        "supported" if held == len(checks) else "contradicted",
        test="numerical checks",
        shown=shown,
        text=" ".join(map(_check_words, checks)),
        source=f"{plan.files[0]}.",
        numbers={"checks": [check.record() for check in checks], "worst": worst, "margin": margin},
    )


def _lead(check: Check) -> float:
    """Distance of measured from expected, in tolerances; for an inequality negative on the wrong side."""
    gap = check.measured - check.expected
    size = abs(gap) / check.tolerance if check.tolerance > 0 else math.inf if gap else 0.0
    return -size if gap and check.relation == ("<" if gap > 0 else ">") else size


def _check_words(check: Check) -> str:
    relation = {"=": "expected", "<": "expected less than", ">": "expected more than"}[check.relation]
    return (
        f"{check.name}: measured {short(check.measured, 4)}, {relation} {short(check.expected, 4)}, tolerance "
        f"{short(check.tolerance, 2)} ({check.reason}): {'holds' if check.holds else 'fails'}."
    )
