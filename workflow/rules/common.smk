# The validated grid, and the named helpers that rules use instead of lambdas.

import json
import os
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.logging import logger

from gcflow.errors import GcflowError
from gcflow.pipeline.params import Params, Run
from gcflow.pipeline.rule_graph import rule_graph
from gcflow.pipeline.scheduler import made_otherwise
from gcflow.pipeline.stages import OF_RUNS, Stages, Subset

# Jobs in a cluster outlive a Snakemake that was killed: the one that is submitted again waits for the end of the first.
os.environ.setdefault("GCFLOW_WAIT", "1")
if workflow.remote_exec:
    os.environ.update(GCFLOW_REQUEUE="1")

# How a job ends is told by `gcflow` alone, whatever becomes of its log. A scheduler's SIGTERM reaches every process of a
# job, and is for `gcflow`, which saves: the shell waits for it, and what copies its words goes on.
shell.prefix("trap : TERM; log_to() {{ trap '' TERM; tee \"$1\"; }}; ")
shell.suffix("; exit ${{PIPESTATUS[0]}}")

# --config scale=paper, GCFLOW_SCALE, or else what runs anywhere; and of it --config methods="ic gc" seeds="0 1".
SCALE = config.get("scale", os.environ.get("GCFLOW_SCALE") or "embedded")
try:
    if unknown := config.keys() - {"scale", "methods", "seeds"}:
        raise GcflowError(
            f"--config {min(unknown)}: known are scale, methods and seeds"
        )
    PARAMS = Params(Path("params.yaml"))
    STAGES = Stages(
        PARAMS, SCALE, Subset.parse(config.get("methods"), config.get("seeds"))
    )
except GcflowError as error:
    raise WorkflowError(error) from None

if STAGES.left_out and workflow.is_main_process:
    others = [stage.name for stage in STAGES.left_out if not stage.run]
    logger.info(f"Left out, since they show other runs, too: {', '.join(others)}")

VIEWS = STAGES.views()

# Figure 1 is low-dimensional: the paper's scale leaves it to an embedded data set.
PAPERS_VIEWS = [
    out
    for stages in (VIEWS.values() if SCALE == "paper" and not STAGES.left_out else [])
    for stage in stages
    for out in stage.outs
]


wildcard_constraints:
    dataset="[a-z0-9-]+",
    method="[a-z0-9-]+",
    seed="[0-9]+",
    name="[a-z0-9-]+",
    protocol="[a-z0-9-]+",
    extractor="classifier[.]safetensors|dinov2[.]pth|inception[.]pt|surrogate[.]pt",


DATA = multiext(
    "data/{dataset}/", "manifest.json", "samples.npy", "labels.npy", "held_out.npy"
)


def stage_of(kind, wildcards):
    if kind in OF_RUNS:
        run = Run(wildcards.dataset, wildcards.method, int(wildcards.seed))
        return getattr(STAGES, kind)(run)
    words = [word for name, word in wildcards.items() if name != "extractor"]
    return getattr(STAGES, kind)(*words)


def reads(kind):
    """Of a rule, the inputs that no wildcard tells: frozen weights, references, what a table shows, extensions."""

    def inputs(wildcards):
        stage = stage_of(kind, wildcards)
        if made_otherwise(PARAMS, stage):
            workflow.dag.forcefiles.add(stage.outs[0])
        return stage.reads

    return inputs


def slice_of(kind):
    """A stage's own part of params.yaml: a change elsewhere in the file reruns nothing."""

    def params(wildcards):
        return json.dumps(stage_of(kind, wildcards).slice(PARAMS), sort_keys=True)

    return params


def train_threads(wildcards):
    run = Run(wildcards.dataset, wildcards.method, int(wildcards.seed))
    return PARAMS.run_config(run.name).training.cpu_threads


def figure_labels(wildcards):
    """A row of Snakemake's report: the figure of the paper that it answers, and its own name."""
    place = PARAMS.dataset(wildcards.dataset).figures[wildcards.name].reproduces or ""
    return {
        "of the paper": place.replace("figure", "Figure ") or "–",
        "figure": wildcards.name,
    }


def figure_title(wildcards):
    return PARAMS.dataset(wildcards.dataset).figures[wildcards.name].title


# Something to look at within minutes: the first table from its methods' first seeds, in a report that names what is to come.
FIRST = next((stage for stage in STAGES if stage.kind == "table"), None)


def first_runs(wildcards):
    if FIRST is None:
        return []
    entry = PARAMS.dataset(FIRST.dataset)
    methods = entry.tables[FIRST.item].methods
    runs = [
        Run(FIRST.dataset, method, entry.runs[method].seeds[0]) for method in methods
    ]
    return [out for run in runs for out in STAGES.evaluate(run).outs]
