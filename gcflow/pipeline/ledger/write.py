"""`gcflow claims`: the ledger of claims as JSON, Markdown and a forest plot."""

import math
from collections import Counter
from typing import Any

from gcflow.files import write_json, write_text
from gcflow.pipeline.drawing.canvas import save_figure
from gcflow.pipeline.folders import claims_path, course_path
from gcflow.pipeline.ledger.course import course_plot
from gcflow.pipeline.ledger.findings import Finding, Judgement, judge
from gcflow.pipeline.ledger.forest import forest_plot
from gcflow.pipeline.ledger.plans import MARKS, METHODS_NOTE, VERDICTS
from gcflow.pipeline.ledger.summaries import COMMAND
from gcflow.pipeline.markdown import escaped, table
from gcflow.pipeline.params import Params
from gcflow.pipeline.progress import say

UNTESTED = "–"


def write_ledger(params: Params, scale: str) -> None:
    """Writes results/claims.{json,md,png,svg} and claims-course.{png,svg} of a scale, and says each verdict.

    Raises:
        GcflowError: there is no claims.yaml, or a file that a test reads is missing or damaged.
    """
    judgement = judge(params, scale)
    write_json(claims_path(params.root, "json"), ledger_document(judgement))
    write_text(claims_path(params.root, "md"), markdown(judgement))
    canvas = forest_plot(judgement.findings, judgement.settings.confidence)
    course = course_plot(judgement.findings)
    for suffix in ("png", "svg"):
        save_figure(canvas, claims_path(params.root, suffix))
        save_figure(course, course_path(params.root, suffix))
    for found in judgement.findings:
        here = f"; here {found.shown_here}{', which points apart' if found.apart else ''}" if found.here else ""
        say(f"  {f'{found.plan.dataset}/{found.plan.name}':<42} {found.verdict:<13}  {found.shown}{here}")
    for note in judgement.notes.values():
        say(f"  {note}")
    counts = Counter(found.verdict for found in judgement.findings)
    summary = ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS)
    say(f"  {summary}; {claims_path(params.root, 'md')} says how each was decided")


def ledger_document(judgement: Judgement) -> dict[str, Any]:
    """The content of claims.json: a record per tested claim and data set, and why the others were not tested.

    Numbers that JSON does not have are null.
    """
    tests = Counter(found.plan.dataset for found in judgement.findings if found.evidence)
    document = {
        "confidence": judgement.settings.confidence,
        "correction": "Holm, over all statistical tests of a data set",
        "commits": judgement.commits,
        "notes": judgement.notes,
        "tests": {dataset: tests[dataset] for dataset in judgement.datasets},
        "methods": judgement.methods,
        "records": [found.record() for found in judgement.findings],
        "not_tested": [
            {"name": plan.name, "dataset": plan.dataset, "reason": plan.reason} for plan in judgement.untested
        ],
    }
    return dict(_finite(document))


def _finite(value: Any) -> Any:
    """The same with null for numbers that JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def markdown(judgement: Judgement) -> str:
    """claims.md: an overview, then for each data set a table and how each verdict came about."""
    marks = {(found.plan.name, found.plan.dataset): MARKS[found.verdict] for found in judgement.findings}
    overview = [
        [entry.claim, entry.place, *(marks.get((name, dataset), UNTESTED) for dataset in judgement.datasets)]
        for name, entry in judgement.settings.entries.items()
    ]
    parts = [
        "# The paper's claims, tested",
        _introduction(judgement),
        table([["claim", "place", *judgement.datasets], *overview]),
        f"{', '.join(f'{mark} {verdict}' for verdict, mark in MARKS.items())}, {UNTESTED} not tested.",
    ]
    for dataset in judgement.datasets:
        here = [found for found in judgement.findings if found.plan.dataset == dataset]
        parts.append(f"## {dataset}")
        parts += [escaped(words) for words in [origin_words(judgement, dataset)] if words]
        if here:
            beside = ["measured here"] if dataset in judgement.commits else []
            lines = [
                [f.plan.claim.claim, f.plan.claim.place, f.test, f.shown, *_here(f)[: len(beside)], f.verdict]
                for f in here
            ]
            parts.append(table([["claim", "place", "test", "effect", *beside, "verdict"], *lines]))
        if judgement.methods[dataset]:
            parts += [METHODS_NOTE, table(judgement.methods[dataset])]
        parts += [escaped(f"**{found.plan.claim.claim}** {found.text} Data: {found.source}") for found in here]
        missing = [
            escaped(f"- {plan.claim.claim} ({plan.reason})") for plan in judgement.untested if plan.dataset == dataset
        ]
        if missing:
            parts += ["Not tested here:", "\n".join(missing)]
    return "\n\n".join(parts) + "\n"


def _here(found: Finding) -> list[str]:
    return [f"{found.shown_here}{'; points apart' if found.apart else ''}" if found.here else UNTESTED]


def origin_words(judgement: Judgement, dataset: str) -> str:
    """What decided on a data set, where that is not this project's own results, or why docs/evidence did not."""
    if dataset in judgement.notes:
        return f"Decided by what was measured here alone. {judgement.notes[dataset]}"
    if dataset not in judgement.commits:
        return ""
    counts = [len(f.evidence.seeds) for f in judgement.findings if f.plan.dataset == dataset and f.evidence]
    seeds = sorted(number for number in counts if number)
    over = f" over {seeds[0]}{f' to {seeds[-1]}' if seeds[-1] > seeds[0] else ''} seeds" if seeds else ""
    return (
        f"Decided by docs/evidence/{dataset}.jsonl{over}, made by `{COMMAND}` at commit "
        f"{', '.join(judgement.commits[dataset])}; beside it what was measured here, which points apart where its "
        "effect speaks against the verdict."
    )


def _introduction(judgement: Judgement) -> str:
    settings = judgement.settings
    confidence, risk = f"{100 * settings.confidence:g} %", f"{1 - settings.confidence:.2g}"
    return (
        "Each claim is a test that claims.yaml writes down, the same on every data set. "
        "Effects set the side that a claim has lower against the other: a negative one, or a factor below 1, speaks "
        "for it. Distances are of samples from EMA weights with the fewest network evaluations. Runs are compared "
        "in pairs of the same seed by an anytime-valid t test, which may be looked at after every seed; transport "
        "costs in pairs of the same data and noise (two-sided paired t test), and the cost of GC with that of OT in "
        f"batches as independent means (Welch's t test). A verdict needs p < {risk} after Holm's correction for all "
        f"statistical tests of a data set, so that the chance of any wrong one there is about {risk} at most, whenever "
        "one looks and stops. No difference: the interval lies inside the margin of claims.yaml. Intervals hold "
        f"together, with {confidence}; few seeds have none. Undecided speaks neither for a claim nor against it. "
        "Statements of theory are checked numerically and have no p value."
    )
