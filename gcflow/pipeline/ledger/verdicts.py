"""A verdict for each claim and data set, with regard to all the tests of that data set."""

import math
from dataclasses import dataclass, replace

from gcflow.errors import GcflowError
from gcflow.pipeline.ledger.evidence import (
    Evidence,
    Files,
    compare_costs,
    compare_runs,
    lead_in_tolerances,
    statement_checks,
)
from gcflow.pipeline.ledger.legend import Verdict
from gcflow.pipeline.ledger.plans import Plan, plans
from gcflow.pipeline.params import CLAIMS, Params
from gcflow.pipeline.schema import Claims, RunsClaim, TransportClaim
from gcflow.significance import growth_needed, holm, seeds_needed
from gcflow.theory.check import Check


@dataclass(frozen=True)
class Finding:
    """A claim tested statistically on a data set.

    tests: of the data set, for all of which p_adjusted holds. seeds_needed: that would decide an undecided claim about
    runs; None if more than 1000. assumed_std: of the differences, for seeds_needed; None if it is not known and
    seeds_needed is but the least. growth_needed: for an undecided claim about transport cost, how many times the pairs.
    """

    evidence: Evidence
    p_adjusted: float
    tests: int
    verdict: Verdict
    seeds_needed: int | None = None
    assumed_std: float | None = None
    growth_needed: float | None = None

    @property
    def plan(self) -> Plan:
        """The claim and its data set."""
        return self.evidence.plan


@dataclass(frozen=True)
class TheoryFinding:
    """A statement checked on a data set: supported if every check holds."""

    plan: Plan
    checks: list[Check]

    @property
    def verdict(self) -> Verdict:
        """Supported if every check holds, else contradicted."""
        return "supported" if all(check.holds for check in self.checks) else "contradicted"

    @property
    def worst(self) -> float | None:
        """Largest distance of measured from expected among checks of equality, in tolerances; None without any."""
        return max((lead_in_tolerances(check) for check in self.checks if check.relation == "="), default=None)

    @property
    def margin(self) -> float | None:
        """Least lead among checks of inequality, in tolerances, negative if the wrong way round; None without any."""
        return min((lead_in_tolerances(check) for check in self.checks if check.relation != "="), default=None)


@dataclass(frozen=True)
class Judgement:
    """Every claim on every data set. untested: plans with their reasons."""

    settings: Claims
    datasets: list[str]
    findings: list[Finding | TheoryFinding]
    untested: list[Plan]


def judge(params: Params, scale: str) -> Judgement:
    """Tests every claim on every data set of a scale that has what it needs.

    Raises:
        GcflowError: there is no claims.yaml, or a file that a test reads is missing or damaged.
    """
    if params.claims is None:
        raise GcflowError(f"{params.root / CLAIMS}: no such file; there is nothing to test")
    files, judgement = Files(params), Judgement(params.claims, params.at_scale(scale), [], [])
    for dataset in judgement.datasets:
        evidence: list[Evidence] = []
        found: list[Finding | TheoryFinding] = []
        for plan in plans(params, dataset):
            if plan.reason is not None:
                judgement.untested.append(plan)
            elif isinstance(plan.claim, RunsClaim):
                evidence.append(compare_runs(params, files, plan, plan.claim))
            elif isinstance(plan.claim, TransportClaim):
                evidence.append(compare_costs(params, files, plan, plan.claim))
            elif checks := statement_checks(files, plan, plan.claim.statement):
                found.append(TheoryFinding(plan, checks))
            else:
                reason = f"{plan.files[0]} has no check of {plan.claim.statement}"
                judgement.untested.append(replace(plan, reason=reason))
        found += decide(evidence, params.claims)
        names = list(params.claims.entries)
        judgement.findings.extend(sorted(found, key=lambda finding: names.index(finding.plan.name)))
    return judgement


def decide(evidence: list[Evidence], settings: Claims) -> list[Finding]:
    """Verdicts on the statistical tests of one data set, whose p values are adjusted by Holm's method together."""
    adjusted = holm([item.comparison.p for item in evidence])
    return [_decided(item, p, evidence, settings) for item, p in zip(evidence, adjusted, strict=True)]


def _decided(item: Evidence, p_adjusted: float, family: list[Evidence], settings: Claims) -> Finding:
    found, alpha = item.comparison, 1 - settings.confidence
    if p_adjusted < alpha:
        return Finding(item, p_adjusted, len(family), "supported" if found.effect < 0 else "contradicted")
    # Holm's method is strictest with the least p value; for the others this number of seeds is on the safe side.
    strictest = alpha / len(family)
    if found.count is None:
        growth = growth_needed(item.estimates, strictest, settings.power)
        return Finding(item, p_adjusted, len(family), "undecided", growth_needed=growth)
    std = found.std if found.std is not None else _pooled_std(item.statistic, family)
    seeds: int | None = 2
    if std is not None:
        seeds = seeds_needed(found.effect, std, strictest, settings.power)
        seeds = max(seeds, found.count + 1) if seeds else None
    return Finding(item, p_adjusted, len(family), "undecided", seeds_needed=seeds, assumed_std=std)


def _pooled_std(statistic: str, family: list[Evidence]) -> float | None:
    stds = [e.comparison.std for e in family if e.statistic == statistic and e.comparison.std is not None]
    return math.sqrt(sum(std**2 for std in stds) / len(stds)) if stds else None
