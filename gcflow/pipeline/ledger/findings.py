"""A verdict for each claim and data set, with regard to all the tests of that data set: in numbers, and in words."""

import math
from dataclasses import asdict, dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from gcflow.errors import GcflowError
from gcflow.pipeline.features import KINDS
from gcflow.pipeline.folders import results_folder, run_folder
from gcflow.pipeline.ledger.evidence import Evidence, compare_costs, compare_runs, statement_checks
from gcflow.pipeline.ledger.plans import Plan, Verdict, plans
from gcflow.pipeline.ledger.summaries import Summaries, complete_evidence, gather
from gcflow.pipeline.params import CLAIMS, Params, Run
from gcflow.pipeline.schema import Claims, RunsClaim, TransportClaim
from gcflow.pipeline.table import cell
from gcflow.readable import NO_BREAK, minus, number
from gcflow.significance import MOST_SEEDS, Paired, holm, seeds_needed
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
    numbers: what its record has besides. evidence, decision: None for a statement of theory. here: where docs/evidence
    decides, the same of this project's own results.
    """

    plan: Plan
    verdict: Verdict
    test: str
    shown: str
    text: str
    source: str
    numbers: dict[str, Any]
    evidence: Evidence | None = None
    decision: "Decision | None" = None
    here: "Finding | None" = None

    @property
    def apart(self) -> bool:
        """Whether what was measured here points away from the verdict of docs/evidence."""
        if self.here is None or self.verdict == "undecided":
            return False
        if self.here.evidence is None or self.here.decision is None:
            return self.here.verdict != self.verdict
        effect = self.here.evidence.comparison.effect
        if self.verdict == "no difference":
            return abs(effect) > self.here.decision.margin
        return effect > 0 if self.verdict == "supported" else effect < 0

    @property
    def shown_here(self) -> str:
        """What was measured here, beside the verdict of docs/evidence; empty where that did not decide."""
        if self.here is None:
            return ""
        return "the same" if self.here.shown == self.shown else self.here.shown

    def record(self) -> dict[str, Any]:
        """As claims.json has it."""
        terms = asdict(self.plan.claim)
        here = {"here": self.shown_here, "here_seeds": len(self.here.numbers.get("seeds", []))} if self.here else {}
        return {
            "name": self.plan.name,
            "place": terms.pop("place"),
            "claim": terms.pop("claim"),
            "dataset": self.plan.dataset,
            "verdict": self.verdict,
            "test": terms | {"words": self.test},
            "files": list(self.plan.files),
            **self.numbers,
            **here,
            "apart": self.apart,
            "shown": self.shown,
            "text": self.text,
        }


class Judgement(NamedTuple):
    """Every claim on every data set.

    untested: plans with their reasons. commits: by data set, of what decided in docs/evidence. notes: why it did not.
    methods: by data set a table of the methods over all seeds of what decided.
    """

    settings: Claims
    datasets: list[str]
    findings: list[Finding]
    untested: list[Plan]
    commits: dict[str, list[str]]
    notes: dict[str, str]
    methods: dict[str, list[list[str]]]


def judge(params: Params, scale: str) -> Judgement:
    """Tests every claim on every data set of a scale that has what it needs.

    On this project's own results; where docs/evidence has them of the same settings, on that, with what was measured
    here beside it.

    Raises:
        GcflowError: there is no claims.yaml, or a file that a test reads is missing or damaged.
    """
    claims = claims_of(params)
    judgement = Judgement(claims, params.at_scale(scale), [], [], {}, {}, {})
    for dataset in judgement.datasets:
        decides = gather(params, dataset)
        findings, untested = findings_on(params, dataset, decides)
        judgement.untested.extend(untested)
        try:
            if (evidence := complete_evidence(params, dataset)) is not None:
                here = {found.plan.name: found for found in findings}
                found, _ = findings_on(params, dataset, evidence)
                findings = [replace(finding, here=here[finding.plan.name]) for finding in found]
                judgement.commits[dataset] = list(dict.fromkeys(evidence.commits))
                decides = evidence
        except GcflowError as error:
            judgement.notes[dataset] = str(error).removeprefix(f"{params.root}/")
        judgement.findings.extend(findings)
        judgement.methods[dataset] = methods_over_seeds(params, dataset, decides)
    return judgement


def methods_over_seeds(params: Params, dataset: str, data: Summaries) -> list[list[str]]:
    """A table of the distance at the end of training of each method over all its seeds; empty where none is known."""
    entry = params.dataset(dataset)
    values: dict[str, list[list[float]]] = {}
    for (verb, run), numbers in data.runs.items():
        if verb == "evaluate":
            values.setdefault(run.method, []).append([*numbers[max(numbers, key=int)].values()])
    measured = {method: values[method] for method in entry.runs if method in values}
    rows = [[entry.runs[method].label, str(len(found)), cell(found)] for method, found in measured.items()]
    return [["method", "seeds", KINDS[entry.features.kind].distance.heading], *rows] if rows else []


def claims_of(params: Params) -> Claims:
    """Those of claims.yaml, or a GcflowError without it."""
    if params.claims is None:
        raise GcflowError(f"{params.root / CLAIMS}: no such file; there is nothing to test")
    return params.claims


def findings_on(params: Params, dataset: str, data: Summaries) -> tuple[list[Finding], list[Plan]]:
    """What the data say of every claim on a data set, and the plans of those that are not tested there."""
    claims = claims_of(params)
    outcomes = [_outcome(params, plan, data) for plan in plans(params, dataset)]
    family = [found for found in outcomes if isinstance(found, Evidence)]
    decisions = iter(decide(family, claims))
    findings: list[Finding] = []
    for found in outcomes:
        if isinstance(found, Evidence):
            findings.append(finding_of(found, next(decisions), claims, data.path))
        elif isinstance(found, Finding):
            findings.append(found)
    return findings, [found for found in outcomes if isinstance(found, Plan)]


def _outcome(params: Params, plan: Plan, data: Summaries) -> Plan | Evidence | Finding:
    """What is not tested is its plan, with the reason; what waits for the other tests of the data set is evidence."""
    claim = plan.claim
    if plan.reason is not None:
        return plan
    if isinstance(claim, RunsClaim):
        return compare_runs(params, plan, claim, data, claims_of(params).prior_scale)
    if isinstance(claim, TransportClaim):
        return compare_costs(params, plan, claim, data)
    checks = statement_checks(params, plan, claim.statement, data)
    reason = f"{plan.files[0]} has no check of {claim.statement}"
    return checked(plan, checks, data.path) if checks else replace(plan, reason=reason)


class Decision(NamedTuple):
    """A verdict on a statistical test.

    interval: of the effect: it excludes 0 where a claim is supported or contradicted, lies inside +-margin where there
    is no difference, and is infinite where there are too few seeds for any. level: alpha of it. tests: of the data set,
    for all of which p_adjusted holds. seeds_needed: that would decide an undecided claim about runs; None if more than
    1000. assumed_std: of the differences, for seeds_needed; None if it is not known and seeds_needed is but the least.
    growth_needed: for an undecided claim about transport cost, how many times the pairs.
    """

    verdict: Verdict
    p_adjusted: float
    tests: int
    level: float
    interval: tuple[float, float]
    margin: float
    seeds_needed: int | None = None
    assumed_std: float | None = None
    growth_needed: float | None = None


def decide(evidence: list[Evidence], settings: Claims) -> list[Decision]:
    """Verdicts on the statistical tests of one data set, whose p values are adjusted by Holm's method together.

    Of runs p is 1 / the largest e-value. That there is no difference is said at the level of all tests together.
    """
    adjusted = holm([item.comparison.p for item in evidence])
    return [_decision(item, *found, evidence, settings) for item, found in zip(evidence, adjusted, strict=True)]


def _decision(item: Evidence, p_adjusted: float, step: int, family: list[Evidence], settings: Claims) -> Decision:
    found, alpha, tests = item.comparison, 1 - settings.confidence, len(family)
    margin = settings.margins[item.statistic] * (item.base or 1.0)
    rejected = p_adjusted < alpha
    level = alpha / (step if rejected else tests)
    low, high = found.interval(level)
    undecided = Decision("undecided", p_adjusted, tests, level, (low, high), margin)
    if rejected:
        return undecided._replace(verdict="supported" if low + high < 0 else "contradicted")
    if -margin < low and high < margin:
        return undecided._replace(verdict="no difference")
    if found.count is None:
        return undecided._replace(growth_needed=found.growth_needed(level, margin))
    std = found.std if found.std is not None else _pooled_std(item.statistic, family)
    seeds = seeds_needed(found.effect, std or 0.0, settings.prior_scale, level, margin)
    return undecided._replace(seeds_needed=max(seeds, found.count + 1) if seeds else None, assumed_std=std)


def _pooled_std(statistic: str, family: list[Evidence]) -> float | None:
    stds = [e.comparison.std for e in family if e.statistic == statistic and e.comparison.std is not None]
    return math.sqrt(sum(std**2 for std in stds) / len(stds)) if stds else None


def pairs_wanted(item: Evidence, decision: Decision, settings: Claims) -> int:
    """How many pairs a claim is to have before it is looked at again: as many as it has where it is decided.

    Half as many more at most, since what is known of its variance now may be wrong, and not fewer than can decide.
    """
    known, least = item.comparison.count, seeds_needed(0.0, 0.0, settings.prior_scale, decision.level, 1.0)
    if known is None or decision.verdict != "undecided":
        return known or 0
    most = max(least or 0, known + max(2, known // 2))
    return max(known, min(most, max(least or 0, decision.seeds_needed or most), settings.most_seeds))


def seeds_wanted(params: Params, findings: list[Finding]) -> dict[str, set[int]]:
    """By method the seeds that undecided claims on a data set want beyond those there are, with all that they need."""
    wanted: set[Run] = set()
    for found in findings:
        if found.evidence and found.decision and found.evidence.comparison.count is not None:
            seeds = set(found.evidence.seeds)
            others = (seed for seed in count() if seed not in found.evidence.seeds)
            while len(seeds) < pairs_wanted(found.evidence, found.decision, claims_of(params)):
                seeds.add(next(others))
            wanted |= {Run(found.plan.dataset, method, seed) for method in found.evidence.values for seed in seeds}
    new: dict[str, set[int]] = {}
    for run in params.with_needed(wanted):
        if run.seed not in params.seeds(run.dataset, run.method):
            new.setdefault(run.method, set()).add(run.seed)
    return new


def finding_of(evidence: Evidence, decision: Decision, settings: Claims, path: Path | None = None) -> Finding:
    """A claim that was tested statistically. path: of docs/evidence, where that was read."""
    plan, found, (low, high) = evidence.plan, evidence.comparison, decision.interval
    endpoints = [f", endpoints by {ENDPOINTS[side]}" for side in evidence.replicates if side in ENDPOINTS]
    meaning, _ = MEANINGS[evidence.statistic]
    shown = effect_words(evidence, decision)
    words = (
        _basis(evidence, shown, settings),
        _significance(evidence, decision),
        _conclusion(evidence, decision, settings),
    )
    seeds = evidence.seeds
    return Finding(
        plan,
        decision.verdict,
        test=f"{meaning}{''.join(endpoints) if evidence.base else ''}: {evidence.contrast}",
        shown=shown,
        text=" ".join(words),
        source=f"{path or _files(plan)}; unit of replication: {evidence.unit}.",
        numbers={
            "runs": [f"{plan.dataset}/{method}/{seed}" for seed in seeds for method in evidence.values],
            "seeds": seeds,
            "unit": evidence.unit,
            "replicates": evidence.replicates,
            "values": evidence.values,
            "effect_is": f"difference of {evidence.scale}, lower minus higher: negative supports the claim",
            "effect": found.effect,
            "ratio": evidence.ratio(found.effect),
            "ratio_interval": [evidence.ratio(low), evidence.ratio(high)],
            "std": found.std,
            "standard_error": found.standard_error,
            "confidence": settings.confidence,
            "p": found.p,
            **{key: value for key, value in decision._asdict().items() if key != "verdict"},
        },
        evidence=evidence,
        decision=decision,
    )


def effect_words(evidence: Evidence, decision: Decision) -> str:
    """`−12 % [−20 %, −3 %]`, or as factors where a percentage would be large, or a plain difference of slopes."""
    parts = [evidence.comparison.effect, *(end for end in decision.interval if math.isfinite(end))]
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
    size = abs(percentage)
    text = number(size, 1) if size < 1 else f"{size:.{1 if size < 10 else 0}f}"
    return f"{'+' if percentage > 0 else minus('-')}{text}{NO_BREAK}%"


def _files(plan: Plan) -> str:
    if not plan.runs:
        return plan.files[0]
    name = Path(plan.files[0]).relative_to(run_folder(Path(), plan.runs[0][0]))
    methods, seeds = ",".join(run.method for run in plan.runs[0]), ",".join(str(run.seed) for run, _ in plan.runs)
    return f"{results_folder(Path(), plan.dataset)}/{{{methods}}}/seed{{{seeds}}}/{name}"


def _basis(evidence: Evidence, shown: str, settings: Claims) -> str:
    found = evidence.comparison
    if found.count == 1:
        return f"One seed is common to both methods: {shown}, and nothing that tells how much of it is chance."
    if found.count is not None:
        units, spread = f"{found.count} seeds, paired: mean", f"standard deviation {number(found.std or 0.0, 3)}"
    else:
        units = " and ".join(f"{replicates} {UNITS[side]}" for side, replicates in evidence.replicates.items()) + ":"
        spread = f"standard error {number(found.standard_error or 0.0, 3)}"
    interval = f" ({100 * settings.confidence:g} % interval, of all tests together)" if "[" in shown else ""
    return (
        f"Over {units} difference of {evidence.scale} {number(found.effect, 3)}, {spread}; "
        f"as an effect {shown}{interval}."
    )


def _significance(evidence: Evidence, decision: Decision) -> str:
    found = evidence.comparison
    if found.count == 1:
        return f"It counts as p = 1 among the {decision.tests} tests of this data set."
    p, adjusted = (f"p < {LEAST_P:g}" if p < LEAST_P else f"p = {p:.2g}" for p in (found.p, decision.p_adjusted))
    corrected = f"after Holm's correction for {decision.tests} tests {adjusted}."
    if isinstance(found, Paired):
        return f"Anytime-valid t test: the largest e-value is {number(1 / found.p, 3)} ({p}); {corrected}"
    test = "Welch's t test" if len(found.estimates) == 2 else "paired t test"
    return f"Two-sided {test}: {p}, {corrected}"


def _conclusion(evidence: Evidence, decision: Decision, settings: Claims) -> str:
    alpha, share = f"{1 - settings.confidence:.2g}", settings.margins[evidence.statistic]
    if decision.verdict == "supported":
        return f"Supported: below {alpha}, and of the claimed sign."
    if decision.verdict == "contradicted":
        return f"Contradicted: below {alpha}, and of the other sign."
    margin = f"{share:g} in {evidence.scale}" if evidence.base is None else f"{100 * share:g} % of the cost"
    if decision.verdict == "no difference":
        return f"No difference beyond {margin}: the whole interval is nearer to 0."
    none, growth, std = f"no effect to speak of, and no proof that it is below {margin}.", decision.growth_needed, None
    terms = "if effect and spread stay what they are now"
    if evidence.comparison.count is None:
        finite = growth is not None and math.isfinite(growth)
        needed = f"about {growth:.2g} times as many samples would decide it, {terms}." if finite else none
    elif decision.seeds_needed is None:
        needed = f"more than {MOST_SEEDS} seeds would be needed: {none}"
    elif (std := decision.assumed_std) is None:
        needed = f"at least {decision.seeds_needed} seeds are needed."
    else:
        borrowed = f" and differences vary as in the other comparisons of this statistic, pooled: {number(std, 3)}"
        source = borrowed if evidence.comparison.count == 1 else ""
        needed = f"about {decision.seeds_needed} seeds would decide it, {terms}{source}."
    return f"Undecided: {needed}"


def checked(plan: Plan, checks: list[Check], path: Path | None = None) -> Finding:
    """A statement that was checked numerically: supported if every check holds."""
    equalities = [_lead(check) for check in checks if check.relation == "="]
    bounds = [_lead(check) for check in checks if check.relation != "="]
    worst, margin = max(equalities, default=None), min(bounds, default=None)
    held = sum(check.holds for check in checks)
    shown = f"{held} of {len(checks)} checks hold"
    shown += "" if worst is None else f"; off by at most {number(worst, 2)} tolerances"
    shown += "" if margin is None else f"; apart by at least {number(margin, 2)} tolerances"
    return Finding(
        plan,
        "supported" if held == len(checks) else "contradicted",
        test="numerical checks",
        shown=shown,
        text=" ".join(map(_check_words, checks)),
        source=f"{path or plan.files[0]}.",
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
        f"{check.name}: measured {number(check.measured, 4)}, {relation} {number(check.expected, 4)}, tolerance "
        f"{number(check.tolerance, 2)} ({check.reason}): {'holds' if check.holds else 'fails'}."
    )
