"""`gcflow claims`: the ledger of claims as JSON, Markdown, a page and a forest plot."""

import math
from collections import Counter
from dataclasses import asdict
from typing import Any

from gcflow.files import write_json, write_text
from gcflow.pipeline.drawing.canvas import save_figure
from gcflow.pipeline.folders import claims_path
from gcflow.pipeline.ledger.forest import forest_plot
from gcflow.pipeline.ledger.legend import VERDICTS
from gcflow.pipeline.ledger.pages import html, markdown
from gcflow.pipeline.ledger.verdicts import Finding, Judgement, TheoryFinding, judge
from gcflow.pipeline.ledger.wording import Row, rows
from gcflow.pipeline.params import Params
from gcflow.pipeline.progress import say


def write_ledger(params: Params, scale: str) -> None:
    """Writes results/claims.{json,md,html,png,svg} on the data sets of a scale and says each verdict.

    Raises:
        GcflowError: there is no claims.yaml, or a file that a test reads is missing or damaged.
    """
    judgement = judge(params, scale)
    words = rows(judgement)
    write_json(claims_path(params.root, "json"), _finite(ledger_document(judgement, words)))
    write_text(claims_path(params.root, "md"), markdown(judgement, words))
    write_text(claims_path(params.root, "html"), html(judgement, words))
    tested = [found for found in judgement.findings if isinstance(found, Finding)]
    canvas = forest_plot(tested, judgement.settings.confidence)
    for suffix in ("png", "svg"):
        save_figure(canvas, claims_path(params.root, suffix))
    for row in words:
        say(f"  {f'{row.dataset}/{row.name}':<42} {row.verdict:<12}  {row.effect}")
    say(f"  {_summary(words)}; {claims_path(params.root, 'md')} says how each was decided")


def _summary(words: list[Row]) -> str:
    counts = Counter(row.verdict for row in words)
    return ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS)


def ledger_document(judgement: Judgement, words: list[Row]) -> dict[str, Any]:
    """The content of claims.json: a record per tested claim and data set, and why the others were not tested."""
    records = [_record(found, row, judgement) for found, row in zip(judgement.findings, words, strict=True)]
    return {
        "confidence": judgement.settings.confidence,
        "power": judgement.settings.power,
        "correction": "Holm, over all statistical tests of a data set",
        "tests": {
            dataset: sum(isinstance(f, Finding) and f.plan.dataset == dataset for f in judgement.findings)
            for dataset in judgement.datasets
        },
        "records": records,
        "not_tested": [
            {"name": plan.name, "dataset": plan.dataset, "reason": plan.reason} for plan in judgement.untested
        ],
    }


def _record(found: Finding | TheoryFinding, row: Row, judgement: Judgement) -> dict[str, Any]:
    plan = found.plan
    terms = {key: value for key, value in asdict(plan.claim).items() if key not in ("place", "claim")}
    record = {
        "name": row.name,
        "place": row.place,
        "claim": row.claim,
        "dataset": row.dataset,
        "verdict": found.verdict,
        "test": terms | {"words": row.test},
        "files": list(plan.files),
    }
    if isinstance(found, TheoryFinding):
        measured = {"checks": [check.record() for check in found.checks], "worst": found.worst, "margin": found.margin}
        return record | measured | {"shown": row.effect, "text": row.decided}
    evidence, effect = found.evidence, found.evidence.comparison
    return record | {
        "runs": [run.name for pair in plan.runs for run in pair],
        "seeds": [run.seed for run, _ in plan.runs],
        "unit": evidence.unit,
        "replicates": evidence.replicates,
        "values": evidence.values,
        "effect_is": f"difference of {evidence.scale}, lower minus higher: negative supports the claim",
        "effect": effect.effect,
        "interval": [effect.low, effect.high],
        "ratio": evidence.ratio(effect.effect),
        "ratio_interval": [evidence.ratio(effect.low), evidence.ratio(effect.high)],
        "std": effect.std,
        "standard_error": effect.standard_error,
        "confidence": judgement.settings.confidence,
        "p": effect.p,
        "p_adjusted": found.p_adjusted,
        "tests": found.tests,
        "seeds_needed": found.seeds_needed,
        "assumed_std": found.assumed_std,
        "growth_needed": found.growth_needed,
        "shown": row.effect,
        "text": row.decided,
    }


def _finite(value: Any) -> Any:
    """The same with null for numbers that JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
