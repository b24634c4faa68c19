"""The claims' findings in words, for a reader who knows nothing of the code."""

import math
from dataclasses import dataclass

from gcflow.pipeline.ledger.evidence import Evidence
from gcflow.pipeline.ledger.legend import Verdict
from gcflow.pipeline.ledger.verdicts import Finding, Judgement, TheoryFinding
from gcflow.pipeline.schema import Claims
from gcflow.readable import NO_BREAK, minus, short
from gcflow.significance import MOST_SEEDS
from gcflow.theory.check import Check

MEANINGS = {
    "final": "distance at the end of training",
    "start": "distance at the first snapshot",
    "area": "distance over training (geometric mean of the snapshots)",
    "rise": "distance at the end as a multiple of the least during training",
    "discrepancy": "discrepancy R̃ (geometric mean over the noise levels)",
    "discrepancy-slope": "slope of ln R̃ against ln σ, from σ = 1 on",
    "falls-at-small-noise": "transport cost of generator-augmented pairs",
    "falls-at-large-noise": "transport cost of generator-augmented pairs",
    "below-ot": "transport cost of generator-augmented pairs",
}
ENDPOINTS = {"gc-exact": "the exact flow", "gc": "the trained predictor"}
UNITS = {"ot": "batches of OT"} | dict.fromkeys(ENDPOINTS, "pairs of GC")
LEAST_P = 1e-4
# In per cent: what floating point leaves of nothing.
ROUNDING = 1e-9


@dataclass(frozen=True)
class Row:
    """A finding as text. test: what was compared. effect: with its interval. decided: how. data: what was read."""

    name: str
    place: str
    claim: str
    dataset: str
    test: str
    effect: str
    verdict: Verdict
    decided: str
    data: str


def rows(judgement: Judgement) -> list[Row]:
    """Every finding in words."""
    return [
        _theory_row(found) if isinstance(found, TheoryFinding) else _row(found, judgement.settings)
        for found in judgement.findings
    ]


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


def _p(value: float) -> str:
    return f"p < {LEAST_P:g}" if value < LEAST_P else f"p = {value:.2g}"


def _row(finding: Finding, settings: Claims) -> Row:
    evidence = finding.evidence
    plan = evidence.plan
    decided = f"{_basis(evidence, settings)} {_test(finding)} {_conclusion(finding, settings)}"
    test = f"{_meaning(evidence)}: {evidence.contrast}"
    words = (plan.name, plan.claim.place, plan.claim.claim, plan.dataset, test, effect_words(evidence))
    return Row(*words, finding.verdict, decided, _data(evidence))


def _meaning(evidence: Evidence) -> str:
    endpoints = [f", endpoints by {ENDPOINTS[side]}" for side in evidence.replicates if side in ENDPOINTS]
    return MEANINGS[evidence.statistic] + ("".join(endpoints) if evidence.estimates else "")


def _basis(evidence: Evidence, settings: Claims) -> str:
    found, shown = evidence.comparison, effect_words(evidence)
    if found.count == 1:
        return f"One seed is common to both methods: {shown}, and nothing that tells how much of it is chance."
    interval = f"{100 * settings.confidence:g} % interval of this comparison alone"
    if found.count is not None:
        return (
            f"Over {found.count} seeds, paired: mean difference of {evidence.scale} {short(found.effect)}, standard "
            f"deviation {short(found.std or 0.0)}; as an effect {shown} ({interval})."
        )
    units = " and ".join(f"{count} {UNITS[side]}" for side, count in evidence.replicates.items())
    return (
        f"Over {units}: difference of {evidence.scale} {short(found.effect)}, standard error "
        f"{short(found.standard_error or 0.0)}; as an effect {shown} ({interval})."
    )


def _test(finding: Finding) -> str:
    found = finding.evidence.comparison
    test = "Welch's t test" if len(finding.evidence.estimates) == 2 else "paired t test"
    if found.count == 1:
        return f"It counts as p = 1 among the {finding.tests} tests of this data set."
    return (
        f"Two-sided {test}: {_p(found.p)}, after Holm's correction for {finding.tests} tests {_p(finding.p_adjusted)}."
    )


def _conclusion(finding: Finding, settings: Claims) -> str:
    alpha = f"{1 - settings.confidence:.2g}"
    if finding.verdict == "supported":
        return f"Supported: below {alpha}, and of the claimed sign."
    if finding.verdict == "contradicted":
        return f"Contradicted: below {alpha}, and of the other sign."
    return f"Undecided: {_needed(finding, settings)}"


def _needed(finding: Finding, settings: Claims) -> str:
    found = finding.evidence.comparison
    none = "no effect to speak of."
    level = f"{1 - settings.confidence:.2g}/{finding.tests}"
    terms = f"(power {100 * settings.power:g} %, at α = {level}, which is conservative)"
    if found.count is None:
        growth = finding.growth_needed or 0.0
        return f"about {growth:.2g} times as many samples would decide it {terms}." if math.isfinite(growth) else none
    if finding.seeds_needed is None:
        return f"more than {MOST_SEEDS} seeds would be needed: {none}"
    if finding.assumed_std is None:
        return "at least 2 seeds are needed."
    source = ""
    if found.count == 1:
        source = (
            ", if their differences vary as in the other comparisons of this statistic: pooled standard deviation "
            f"{short(finding.assumed_std)}"
        )
    return f"about {finding.seeds_needed} seeds would decide it {terms}{source}."


def _data(evidence: Evidence) -> str:
    plan = evidence.plan
    if not plan.runs:
        return f"{plan.files[0]}; unit of replication: {evidence.unit}."
    folder, _, name = plan.files[0].partition(f"/{plan.runs[0][0].method}/seed{plan.runs[0][0].seed}/")
    methods, seeds = ",".join(run.method for run in plan.runs[0]), ",".join(str(run.seed) for run, _ in plan.runs)
    return f"{folder}/{{{methods}}}/seed{{{seeds}}}/{name}; unit of replication: {evidence.unit}."


def _theory_row(finding: TheoryFinding) -> Row:
    plan, checks = finding.plan, finding.checks
    effect = f"{sum(check.holds for check in checks)} of {len(checks)} checks hold"
    if finding.worst is not None:
        effect += f"; off by at most {short(finding.worst, 2)} tolerances"
    if finding.margin is not None:
        effect += f"; apart by at least {short(finding.margin, 2)} tolerances"
    words = (plan.name, plan.claim.place, plan.claim.claim, plan.dataset, "numerical checks", effect)
    return Row(*words, finding.verdict, " ".join(map(_check_words, checks)), f"{plan.files[0]}.")


def _check_words(check: Check) -> str:
    relation = {"=": "expected", "<": "expected less than", ">": "expected more than"}[check.relation]
    return (
        f"{check.name}: measured {short(check.measured, 4)}, {relation} {short(check.expected, 4)}, tolerance "
        f"{short(check.tolerance, 2)} ({check.reason}): {'holds' if check.holds else 'fails'}."
    )
