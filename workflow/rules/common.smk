# The validated grid, and the named helpers that rules use instead of lambdas.

import json
import logging
import os
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.logging import logger
from snakemake_interface_logger_plugins.common import LogEvent

from gcflow.errors import GcflowError
from gcflow.pipeline.params import Params, Run
from gcflow.pipeline.stages import Stages

# Which data sets `all` means: `--config scale=paper`, GCFLOW_SCALE, or else what runs anywhere.
SCALE = config.get("scale", os.environ.get("GCFLOW_SCALE", "embedded"))

# Jobs in a cluster outlive a Snakemake that was killed: the one that is submitted again waits for the end of the first.
os.environ.setdefault("GCFLOW_WAIT", "1")

try:
    PARAMS = Params(Path("params.yaml"))
    STAGES = Stages(PARAMS, SCALE)
except GcflowError as error:
    raise WorkflowError(error) from None

VIEWS = STAGES.views()

# Figure 1 is low-dimensional: the paper's scale leaves it to an embedded data set.
PAPERS_VIEWS = [
    out
    for stages in (VIEWS.values() if SCALE == "paper" else [])
    for stage in stages
    for out in stage.outs
]


class Chatter(logging.Filter):
    """Drops what Snakemake says around every job; its progress, warnings and errors stay."""

    def filter(self, record):
        text = record.getMessage()
        finished = getattr(record, "event", None) == LogEvent.JOB_FINISHED
        return not (finished or text.startswith(("Select jobs to execute", "Execute ")))


logger.addFilter(Chatter())


wildcard_constraints:
    dataset="[a-z0-9-]+",
    method="[a-z0-9-]+",
    seed="[0-9]+",
    name="[a-z0-9-]+",
    protocol="[a-z0-9-]+",
    extractor="classifier[.]safetensors|inception[.]pt|surrogate[.]pt",


def run_of(wildcards):
    return Run(wildcards.dataset, wildcards.method, int(wildcards.seed))


def slice_of(stage):
    """A stage's own part of params.yaml: a change elsewhere in the file reruns nothing."""
    return json.dumps(stage.slice(PARAMS), sort_keys=True)


def prepare_inputs(wildcards):
    return STAGES.prepare(wildcards.dataset).deps


def prepare_slice(wildcards):
    return slice_of(STAGES.prepare(wildcards.dataset))


def features_inputs(wildcards):
    return STAGES.features(wildcards.dataset).deps


def features_slice(wildcards):
    return slice_of(STAGES.features(wildcards.dataset))


def reference_inputs(wildcards):
    return STAGES.reference(wildcards.dataset, wildcards.protocol).deps


def reference_slice(wildcards):
    return slice_of(STAGES.reference(wildcards.dataset, wildcards.protocol))


def pretrained_slice(wildcards):
    return slice_of(STAGES.pretrained(wildcards.name))


def train_inputs(wildcards):
    return STAGES.train(run_of(wildcards)).deps


def train_slice(wildcards):
    return slice_of(STAGES.train(run_of(wildcards)))


def train_threads(wildcards):
    return PARAMS.run_config(run_of(wildcards).name).training.cpu_threads


def evaluate_inputs(wildcards):
    return STAGES.evaluate(run_of(wildcards)).deps


def evaluate_slice(wildcards):
    return slice_of(STAGES.evaluate(run_of(wildcards)))


def transport_inputs(wildcards):
    return STAGES.transport(wildcards.dataset).deps


def transport_slice(wildcards):
    return slice_of(STAGES.transport(wildcards.dataset))


def discrepancy_inputs(wildcards):
    return STAGES.discrepancy(run_of(wildcards)).deps


def discrepancy_slice(wildcards):
    return slice_of(STAGES.discrepancy(run_of(wildcards)))


def theory_inputs(wildcards):
    return STAGES.theory(wildcards.dataset).deps


def theory_slice(wildcards):
    return slice_of(STAGES.theory(wildcards.dataset))


def table_inputs(wildcards):
    return STAGES.table(wildcards.dataset, wildcards.name).deps


def table_slice(wildcards):
    return slice_of(STAGES.table(wildcards.dataset, wildcards.name))


def figure_inputs(wildcards):
    return STAGES.figure(wildcards.dataset, wildcards.name).deps


def figure_slice(wildcards):
    return slice_of(STAGES.figure(wildcards.dataset, wildcards.name))


def claims_inputs(wildcards):
    return STAGES.claims().deps


def claims_slice(wildcards):
    return slice_of(STAGES.claims())


def report_inputs(wildcards):
    return STAGES.report().deps


def report_slice(wildcards):
    return slice_of(STAGES.report())


def figure_title(wildcards):
    return PARAMS.dataset(wildcards.dataset).figures[wildcards.name].title


def table_title(wildcards):
    return PARAMS.dataset(wildcards.dataset).tables[wildcards.name].title


def tracked_files(wildcards):
    return [out for stage in STAGES for out in stage.outs]
