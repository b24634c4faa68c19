"""Snakemake's graph and DVC's, expanded from the real params.yaml: the same stages, at every scale."""

import json
import os
import re

import pytest
import yaml
from projects import ROOT

from gcflow.pipeline.params import Params
from gcflow.pipeline.scheduler import opened
from gcflow.pipeline.stages import Stages, dvc_document

# Not versioned: `all` itself, the mirror, and the targets that only gather others.
GATHERING = re.compile(r"all|track|table\d|figure\d")


def snakemake_graph(folder, scale):
    """Command to (inputs, outputs, parameters) of each job of `all`."""
    params = Params(folder / "params.yaml")
    with opened(params, scale, list(Stages(params, scale))) as scheduler:
        jobs = [job for job in scheduler._dag.jobs if not GATHERING.fullmatch(job.rule.name)]
        return {
            re.sub(r"^trap '' TERM; | 2>&1 \| tee .*$", "", job.shellcmd): (
                {str(file) for file in job.input},
                {str(file) for file in job.output},
                json.loads(job.params.slice),
            )
            for job in jobs
        }


def dvc_graph(folder, scale):
    """The same of dvc.yaml, parameters by their keys."""
    stages = yaml.safe_load(dvc_document(Params(folder / "params.yaml"), scale))["stages"]

    def paths(entries):
        return {name for entry in entries for name in (entry if isinstance(entry, dict) else [entry])}

    return {
        stage["cmd"]: (
            paths(stage.get("deps", [])),
            paths([out for kind in ("outs", "metrics", "plots") for out in stage.get(kind, [])]),
            set(stage.get("params", [])),
        )
        for stage in stages.values()
    }


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name in ("Snakefile", "workflow", "params.yaml", "examples"):
        if (ROOT / name).exists():
            (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("scale", ["embedded", "rehearsal", "paper"])
def test_both_have_the_same_stages_commands_dependencies_parameters_and_outputs(folder, scale):
    ours, theirs = snakemake_graph(folder, scale), dvc_graph(folder, scale)
    params = Params(folder / "params.yaml")
    assert len(theirs) > {"embedded": 100, "rehearsal": 10, "paper": 150}[scale]
    # Figure 1 is low-dimensional: at the paper's scale Snakemake takes it from an embedded data set.
    elsewhere = set(ours) - set(theirs)
    assert elsewhere <= {
        stage.command for name in params.at_scale("embedded") for stage in Stages(params, "embedded").of_dataset(name)
    }
    assert bool(elsewhere) == (scale == "paper")
    for command, (deps, outs, keys) in theirs.items():
        inputs, outputs, values = ours[command]
        assert inputs == deps, command
        assert outputs == outs, command
        assert set(values) == keys, command
        for key, value in values.items():
            assert value == looked_up(params.document, key), f"{command}: {key}"


def looked_up(document, key):
    for part in key.split("."):
        document = document.get(part) if isinstance(document, dict) else None
    return document


def test_the_committed_dvc_yaml_is_that_of_the_embedded_scale():
    assert (ROOT / "dvc.yaml").read_text() == dvc_document(Params(ROOT / "params.yaml"), "embedded")
    assert os.path.getsize(ROOT / "dvc.yaml") < 500_000
