"""What the claims' tests on a data set read: gathered from the stages' files, or kept in docs/evidence of all seeds."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gcflow.config import digest
from gcflow.errors import GcflowError
from gcflow.files import expected_form, json_document, write_text
from gcflow.pipeline.folders import evidence_path
from gcflow.pipeline.job import code_of, commit_words
from gcflow.pipeline.ledger.plans import DISCREPANCY_STATISTICS, Plan, plans
from gcflow.pipeline.ledger.run_statistics import summary
from gcflow.pipeline.params import Params, Run
from gcflow.pipeline.schema import RunsClaim, TransportClaim

METHODS = "methods."
COMMAND = "snakemake --profile local decided"
COSTS = ("coupling", "sigma", "batch", "cost", "saving", "saving_standard_error", "change", "change_standard_error")
# Of a data set's entry, what a measurement depends on besides methods.
BLOCKS = {
    "evaluate": ("data", "process", "network", "training", "features", "evaluation"),
    "discrepancy": ("data", "process", "network", "training", "discrepancy"),
    "transport": ("data", "process", "network", "training", "transport"),
    "theory": ("data", "process", "network", "training", "theory"),
}


@dataclass
class Summaries:
    """Of a data set.

    path: the file that has them; None where they were gathered. commits: at which its parts were made, in words. stale:
    what of params.yaml is not as it was when lines of the file were measured, which are left out. runs: verb and run to
    its summary. transport: the costs that claims are about, and numbers of samples. checks: of the theory.
    """

    path: Path | None = None
    commits: list[str] = field(default_factory=list)
    stale: list[str] = field(default_factory=list)
    runs: dict[tuple[str, Run], dict[str, Any]] = field(default_factory=dict)
    transport: dict[str, Any] = field(default_factory=dict)
    checks: list[dict[str, Any]] = field(default_factory=list)

    def lacks(self, plan: Plan) -> dict[str, tuple[str, Run | None]]:
        """The files of a plan that say more than this: each with the command and the run that it is of."""
        if isinstance(plan.claim, RunsClaim):
            runs = (run for side in zip(*plan.runs, strict=True) for run in side)
            verb = verb_of(plan.claim)
            return {
                file: (verb, run) for file, run in zip(plan.files, runs, strict=True) if (verb, run) not in self.runs
            }
        verb, known = (
            ("transport", self.transport) if isinstance(plan.claim, TransportClaim) else ("theory", self.checks)
        )
        return {} if known else dict.fromkeys(plan.files, (verb, None))


def verb_of(claim: RunsClaim) -> str:
    """The command that makes what a claim about runs reads."""
    return "discrepancy" if claim.statistic in DISCREPANCY_STATISTICS else "evaluate"


def gather(params: Params, dataset: str, known: Summaries | None = None) -> Summaries:
    """From the stages' files. known: of docs/evidence: what that lacks of all seeds, with those of seeds.yaml.

    Raises:
        GcflowError: a file is missing or damaged.
    """
    found, files = Summaries(), dict[str, tuple[str, Run | None]]()
    for plan in plans(params, dataset, added=known is not None):
        files |= (known or found).lacks(plan)
    for file, (verb, run) in files.items():
        with json_document(params.root / file) as document:
            if verb == "theory":
                found.checks = list(document["checks"])
            elif run is None:
                records = [{key: r[key] for key in COSTS if key in r} for r in document["records"]]
                found.transport = {"samples": document["samples"], "records": records}
            else:
                records = document["records"] if verb == "discrepancy" else document
                found.runs[verb, run] = summary(verb, records, str(params.root / file))
    return found


def append_evidence(params: Params, dataset: str, found: Summaries) -> Path:
    """Adds them to docs/evidence: a line of how they were made, one for each run, for the costs, for each check."""
    head = {"dataset": dataset, **code_of(params.root), "command": COMMAND, "settings": settings(params, dataset)}
    lines: list[dict[str, Any]] = [head]
    for (verb, run), numbers in sorted(found.runs.items(), key=lambda item: (item[0][1].method, item[0][1].seed)):
        lines.append({"run": run.name, verb: numbers})
    lines += [{"transport": found.transport}] if found.transport else []
    lines += [{"check": check} for check in found.checks]
    path = evidence_path(params.root, dataset)
    path.parent.mkdir(parents=True, exist_ok=True)
    before = path.read_text("utf-8") if path.exists() else ""
    write_text(path, before + "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    return path


def present_evidence(params: Params, dataset: str) -> Summaries:
    """What docs/evidence has of a data set, of the settings that params.yaml has now.

    Raises:
        GcflowError: the file is damaged.
    """
    path = evidence_path(params.root, dataset)
    found, now = Summaries(path.relative_to(params.root)), settings(params, dataset)
    if not path.exists():
        return found
    then: dict[str, str] = {}
    with expected_form(path, COMMAND):
        for line in map(json.loads, path.read_text("utf-8").splitlines()):
            if "dataset" in line:
                then = line["settings"]
                found.commits.append(commit_words(line["commit"], line["dirty"]))
                continue
            run = None
            if "run" in line:
                of, method, seed = line.pop("run").split("/")
                run = Run(of, method, int(seed))
            ((what, value),) = line.items()
            verb = "theory" if what == "check" else what
            other = [key for key in _needed(params, dataset, verb, run) if then.get(key) != now.get(key)]
            if other:
                found.stale += [key for key in other if key not in found.stale]
            elif run:
                found.runs[verb, run] = value
            elif verb == "theory":
                found.checks.append(value)
            else:
                found.transport = value
    return found


def complete_evidence(params: Params, dataset: str) -> Summaries | None:
    """What docs/evidence has of a data set; None without it.

    Raises:
        GcflowError: the file is damaged, or lacks what this project's own runs say: it names settings that are others.
    """
    found = present_evidence(params, dataset)
    if not found.commits:
        return None
    lacking = [file for plan in plans(params, dataset) for file in found.lacks(plan)]
    if lacking:
        other = f"of other settings of {dataset} than {params.path.name} has now: {', '.join(found.stale)}"
        raise GcflowError(f"{found.path}: {other if found.stale else f'lacks {lacking[0]}'}; renew it with {COMMAND}")
    return found


def settings(params: Params, dataset: str) -> dict[str, str]:
    """Hashes of what the measurements of a data set depend on, by key of its entry in params.yaml."""
    raw, claims = params.document["datasets"][dataset], params.claims.entries.values() if params.claims else ()
    compared = [method for claim in claims if isinstance(claim, RunsClaim) for method in (claim.lower, claim.higher)]
    parts = {key: raw[key] for verb in BLOCKS for key in BLOCKS[verb] if raw.get(key) is not None}
    for verb in ("transport", "theory"):
        compared += _predictors(params, dataset, verb)
    parts |= {f"{METHODS}{name}": raw["methods"][name] for name in _with_frozen(params, dataset, compared)}
    return {key: digest(part)[:12] for key, part in parts.items()}


def _needed(params: Params, dataset: str, verb: str, run: Run | None) -> list[str]:
    """The keys of `settings` that a measurement depends on."""
    methods = [run.method] if run else _predictors(params, dataset, verb)
    return [*BLOCKS[verb], *(f"{METHODS}{name}" for name in _with_frozen(params, dataset, methods))]


def _predictors(params: Params, dataset: str, verb: str) -> list[str]:
    reference = getattr(getattr(params.dataset(dataset), verb), "predictor", None)
    return [reference.method] if reference else []


def _with_frozen(params: Params, dataset: str, names: list[str]) -> list[str]:
    """Those methods that a data set has, and whose weights they need."""
    methods = params.dataset(dataset).methods
    runs = params.with_needed(Run(dataset, name, 0) for name in names if name in methods)
    return sorted({run.method for run in runs})
