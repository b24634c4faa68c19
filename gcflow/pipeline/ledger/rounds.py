"""`gcflow decide`: a round of the workflow that adds seeds until claims are decided."""

from collections import Counter

import yaml

from gcflow.files import write_json, write_text
from gcflow.pipeline.folders import rounds_path
from gcflow.pipeline.ledger.findings import claims_of, findings_on, seeds_wanted
from gcflow.pipeline.ledger.plans import VERDICTS
from gcflow.pipeline.ledger.summaries import append_evidence, gather, present_evidence
from gcflow.pipeline.params import SEEDS, Params
from gcflow.pipeline.progress import say

HEADER = (
    "# Written by `snakemake --profile local decided`: the seeds that undecided claims asked for, beyond those of\n"
    "# params.yaml, after so many rounds. Tables, figures and `all` do without them.\n"
)


def decide_round(params: Params, scale: str) -> None:
    """Adds to docs/evidence what it lacks of a scale's seeds, and to seeds.yaml those that undecided claims want.

    No seed is added where every claim about runs is decided or has the most seeds that claims.yaml allows.

    Raises:
        GcflowError: there is no claims.yaml, or a file that a test reads is missing or damaged.
    """
    claims, verdicts = claims_of(params), {}
    old = params.added.seeds if params.added else {}
    seeds = {dataset: {method: set(known) for method, known in methods.items()} for dataset, methods in old.items()}
    new = 0
    for dataset in params.at_scale(scale):
        found = gather(params, dataset, present_evidence(params, dataset))
        if found.runs or found.transport or found.checks:
            append_evidence(params, dataset, found)
        findings, _ = findings_on(params, dataset, present_evidence(params, dataset))
        if not findings:
            continue
        verdicts[dataset] = dict(Counter(found.verdict for found in findings))
        for method, wanted in seeds_wanted(params, findings).items():
            seeds.setdefault(dataset, {}).setdefault(method, set()).update(wanted)
            new += len(wanted)
    number = (params.added.round if params.added else 0) + (new > 0)
    if new:
        listed = {dataset: {m: sorted(known) for m, known in methods.items()} for dataset, methods in seeds.items()}
        text = yaml.safe_dump({"round": number, "seeds": listed}, sort_keys=True, default_flow_style=None, width=112)
        write_text(params.root / SEEDS, HEADER + text)
    write_json(rounds_path(params.root), {"round": number, "new": new, "verdicts": verdicts})
    counts = sum(map(Counter, verdicts.values()), Counter[str]())
    say("  " + ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS))
    if new:
        say(f"  round {number}: {new} runs more, {SEEDS} says which")
    else:
        say(f"  no seeds are added: no claim about runs is undecided with fewer than {claims.most_seeds}")
