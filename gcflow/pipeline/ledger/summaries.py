"""What the claims' tests on a data set read: gathered from the stages' files, or kept in docs/evidence of all seeds."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gcflow.config import digest
from gcflow.errors import GcflowError
from gcflow.files import expected_form, json_document, write_text
from gcflow.pipeline.folders import evidence_path
from gcflow.pipeline.job import code_of
from gcflow.pipeline.ledger.plans import DISCREPANCY_STATISTICS, plans
from gcflow.pipeline.ledger.run_statistics import summary
from gcflow.pipeline.params import Params, Run
from gcflow.pipeline.schema import RunsClaim, TransportClaim

COMMAND = "snakemake --profile local decided"
COSTS = ("coupling", "sigma", "batch", "cost", "saving", "saving_standard_error", "change", "change_standard_error")
# Of a data set's entry, what its measurements depend on besides its methods.
BLOCKS = (
    *("data", "process", "network", "training", "features", "evaluation"),
    *("transport", "discrepancy", "theory"),
)


@dataclass
class Summaries:
    """Of a data set.

    path: the file that has them; None where they were gathered. origin: commit and command that made it. runs: verb and
    run to its summary. transport: the costs that claims are about, and numbers of samples. checks: of the theory.
    """

    path: Path | None = None
    origin: dict[str, Any] = field(default_factory=dict)
    runs: dict[tuple[str, Run], dict[str, Any]] = field(default_factory=dict)
    transport: dict[str, Any] = field(default_factory=dict)
    checks: list[dict[str, Any]] = field(default_factory=list)


def verb_of(claim: RunsClaim) -> str:
    """The command that makes what a claim about runs reads."""
    return "discrepancy" if claim.statistic in DISCREPANCY_STATISTICS else "evaluate"


def gather(params: Params, dataset: str, added: bool = False) -> Summaries:
    """From the stages' files. added: of the seeds of seeds.yaml, too.

    Raises:
        GcflowError: a file is missing or damaged.
    """
    found = Summaries()
    for plan in plans(params, dataset, added):
        files = [params.root / file for file in plan.files]
        if isinstance(plan.claim, RunsClaim):
            verb = verb_of(plan.claim)
            for run, path in zip((run for side in zip(*plan.runs, strict=True) for run in side), files, strict=True):
                if (verb, run) not in found.runs:
                    with json_document(path, f"gcflow {verb} {run.name}") as document:
                        records = document["records"] if verb == "discrepancy" else document
                        found.runs[verb, run] = summary(verb, records, str(path))
        elif files and isinstance(plan.claim, TransportClaim):
            with json_document(files[0], f"gcflow transport {dataset}") as document:
                records = [{key: r[key] for key in COSTS if key in r} for r in document["records"]]
                found.transport = {"samples": document["samples"], "records": records}
        elif files:
            with json_document(files[0], f"gcflow theory {dataset}") as document:
                found.checks = list(document["checks"])
    return found


def keep(params: Params, dataset: str, found: Summaries) -> Path:
    """Writes them into docs/evidence: a line for the whole, then one for each run, for the costs, for each check."""
    lines: list[dict[str, Any]] = [
        {"dataset": dataset, **code_of(params.root), "command": COMMAND, "settings": settings(params, dataset)}
    ]
    for (verb, run), numbers in sorted(found.runs.items(), key=lambda item: (item[0][1].method, item[0][1].seed)):
        lines.append({"run": run.name, verb: numbers})
    lines += [{"transport": found.transport}] if found.transport else []
    lines += [{"check": check} for check in found.checks]
    path = evidence_path(params.root, dataset)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    return path


def kept(params: Params, dataset: str) -> Summaries | None:
    """What docs/evidence has of a data set; None without it.

    Raises:
        GcflowError: the file is damaged, or of other settings than params.yaml has now: it names which.
    """
    path = evidence_path(params.root, dataset)
    if not path.exists():
        return None
    with expected_form(path, COMMAND):
        head, *lines = map(json.loads, path.read_text("utf-8").splitlines())
        found, now = Summaries(path.relative_to(params.root), head), settings(params, dataset)
        if other := [key for key in now if head["settings"].get(key) != now[key]]:
            what = f"other settings of {dataset} than {params.path.name} has now: {', '.join(other)}"
            raise GcflowError(f"{found.path}: of {what}; renew it with {COMMAND}")
        for line in lines:
            if "run" in line:
                of, method, seed = line.pop("run").split("/")
                found.runs |= {(verb, Run(of, method, int(seed))): numbers for verb, numbers in line.items()}
            elif "transport" in line:
                found.transport = line["transport"]
            else:
                found.checks.append(line["check"])
    return found


def settings(params: Params, dataset: str) -> dict[str, str]:
    """Hashes of what the measurements of a data set depend on, by key of its entry in params.yaml."""
    raw, claims = params.document["datasets"][dataset], params.claims.entries.values() if params.claims else ()
    runs = (claim for claim in claims if isinstance(claim, RunsClaim))
    methods = dict.fromkeys(method for claim in runs for method in (claim.lower, claim.higher))
    parts = {key: raw[key] for key in BLOCKS if raw.get(key) is not None}
    parts |= {f"methods.{name}": raw["methods"][name] for name in methods if name in raw["methods"]}
    return {key: digest(part)[:12] for key, part in parts.items()}
