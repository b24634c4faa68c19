"""The shipped graph as Snakemake and as DVC have it, each expanded by the tool itself: the same at every scale."""

import json
import re
import subprocess
import sys
from pathlib import PurePath

import pytest
from projects import ROOT, environment, tiny_params, write_project
from workflows import dvc_stages

from gcflow.errors import GcflowError
from gcflow.pipeline.dvc_stages import dvc_documents, write_dvc_yaml
from gcflow.pipeline.params import Params, Run
from gcflow.pipeline.scheduler import opened
from gcflow.pipeline.stages import Stages, Subset

# Not versioned: `all` itself, the mirror, and the targets that only gather others.
GATHERING = re.compile(r"all|track|table\d|figure\d")


def snakemake_graph(folder, scale):
    """Command to (inputs, outputs, parameters, what is announced) of each job of `all`."""
    params = Params(folder / "params.yaml")
    with opened(params, scale, list(Stages(params, scale))) as scheduler:
        jobs = [job for job in scheduler._dag.jobs if not GATHERING.fullmatch(job.rule.name)]
        return {
            re.sub(r"( --gpus \d)?( --processes \d)? 2>&1 \| log_to .*$", "", job.shellcmd): (
                {str(file) for file in job.input},
                {str(file) for file in job.output},
                json.loads(job.params.slice),
                job.message,
            )
            for job in jobs
        }


@pytest.fixture
def folder(tmp_path, monkeypatch):
    files = ("Snakefile", "params.yaml", "claims.yaml", "paper.yaml", "examples")
    for name in (*files, "workflow/rules", "workflow/profiles", "workflow/report"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc/config").write_text("[core]\n    no_scm = true\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.service
@pytest.mark.parametrize("scale", ["embedded", "rehearsal", "paper"])
def test_both_have_the_same_stages_commands_dependencies_parameters_and_outputs(folder, scale):
    params = Params(folder / "params.yaml")
    write_dvc_yaml(params, scale)
    ours, theirs, stages = snakemake_graph(folder, scale), dvc_stages(folder), list(Stages(params, scale))
    assert set(theirs) == {stage.name for stage in stages}
    assert len(theirs) > {"embedded": 90, "rehearsal": 10, "paper": 150}[scale]
    made = {"claims.yaml", "paper.yaml"}
    for stage in stages:
        inputs, outputs, values, announced = ours.pop(stage.command)
        command, deps, keys, outs = theirs[stage.name]
        assert command == stage.command
        assert inputs == set(stage.deps), stage.name
        assert outputs == outs == set(stage.outs), stage.name
        assert set(values) == keys == set(stage.keys), stage.name
        assert values == {key: looked_up(params.document, key) for key in keys}
        assert f"gcflow {announced}" == stage.command.partition(" --")[0]
        # The report depends on folders.
        assert all(stage.kind == "report" or dep in inputs for dep in deps), stage.name
        assert all(deps & {file, *map(str, PurePath(file).parents)} for file in inputs), stage.name
        assert made.issuperset(inputs), stage.name
        made |= outputs
    # Figure 1 is low-dimensional: at the paper's scale Snakemake takes it from an embedded data set.
    embedded = {s.command for name in params.at_scale("embedded") for s in Stages(params, "embedded").of_dataset(name)}
    assert set(ours) <= embedded
    assert bool(ours) == (scale == "paper")


def looked_up(document, key):
    for part in key.split("."):
        document = document.get(part) if isinstance(document, dict) else None
    return document


def test_the_committed_files_are_those_of_the_embedded_scale_and_can_be_read():
    documents = dvc_documents(Params(ROOT / "params.yaml"), "embedded")
    assert documents == {name: (ROOT / name).read_text() for name in documents}
    assert documents["dvc.yaml"].count("\n") < 400


@pytest.mark.service
def test_a_run_that_reads_less_than_others_of_its_kind_depends_on_no_file_more(folder):
    params = Params(write_project(folder / "tiny") / "params.yaml")
    write_dvc_yaml(params, "embedded")
    (folder / ".dvc").rename(folder / "tiny/.dvc")
    stages = dvc_stages(folder / "tiny")
    data = set(Stages(params).prepare("digits").outs)
    assert stages["train@digits-ic-0"][1] == data
    assert stages["train@digits-cd-0"][1] == {*data, "results/digits/denoiser/seed0/snapshots"}


def stages_of(tmp_path, methods=None, seeds=None):
    document = tiny_params()
    claim = {"place": "here", "claim": "it is", "test": "runs", "statistic": "final", "lower": "gc", "higher": "ic"}
    document["claims"] = {
        "confidence": 0.95,
        "prior_scale": 1.0,
        "most_seeds": 9,
        "margins": {"final": 0.1},
        "entries": {"one": claim},
    }
    params = Params(write_project(tmp_path, document) / "params.yaml")
    return Stages(params, "embedded", Subset.parse(methods, seeds))


def test_a_subset_has_its_runs_and_what_shows_no_other(tmp_path):
    stages = stages_of(tmp_path, "ic gc", "0")
    names = {stage.name for stage in stages}
    assert {stage.run for stage in stages if stage.run} == {
        Run("digits", "ic", 0), Run("digits", "gc", 0), Run("mixture2d", "ic", 0)
    }  # fmt: skip
    # Table 1 shows the second seed of ic, too; the transport cost is that of the first.
    assert {"figure-digits-transport-cost", "figure-mixture2d-samples", "reference-digits-classifier"} <= names
    left = {stage.name for stage in stages.left_out if not stage.run}
    assert left == {
        "table-digits-table1", "figure-digits-convergence", "figure-digits-samples", "figure-digits-discrepancy",
        "claims", "report",
    }  # fmt: skip
    assert names.isdisjoint(left)
    assert "table-digits-table1" in {stage.name for stage in stages_of(tmp_path, "[ic, gc]")}
    whole = stages_of(tmp_path)
    assert not whole.left_out
    assert {"claims", "report"} <= {stage.name for stage in whole}


@pytest.mark.parametrize(
    ("methods", "seeds", "message"),
    [
        ("ic goc", None, "methods: no run of scale embedded has goc; known: ic, gc, gc-frozen,"),
        (None, "0 7", "seeds: no run of scale embedded has 7; known: 0, 1"),
        (None, "ic", "seeds: 'ic', expected names such as '0 1'"),
        (" ", None, "methods: ' ', expected names such as 'ic gc'"),
    ],
)
def test_a_subset_of_what_there_is_not_is_one_line(tmp_path, methods, seeds, message):
    with pytest.raises(GcflowError, match=re.escape(message)) as error:
        stages_of(tmp_path, methods, seeds)
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_the_script_without_the_three_tools_goes_on_where_it_stopped(tmp_path):
    project, absent = write_project(tmp_path / "project"), tmp_path / "absent"
    absent.mkdir()
    for name in ("snakemake", "dvc", "mlflow"):
        (absent / f"{name}.py").write_text("raise ImportError")

    def script(target, device):
        paths = f"{absent}:{ROOT}"
        command = [sys.executable, ROOT / "examples/stages_in_order.py", target, "--scale", "embedded"]
        env = environment({"PYTHONPATH": paths, "GCFLOW_DEVICE": device})
        return subprocess.run(command, cwd=project, env=env, capture_output=True, text=True, check=False)

    first = script("train@mixture2d-ic-0", "nowhere")
    assert re.findall(r"^\[\d/\d\] \S+", first.stdout, re.MULTILINE) == ["[1/2] prepare-mixture2d:"]
    assert first.stderr.endswith("\ntrain@mixture2d-ic-0 failed\n")
    second = script("train@mixture2d-ic-0", "cpu")
    assert second.returncode == 0, second.stderr
    assert re.findall(r"^\[\d/\d\] \S+", second.stdout, re.MULTILINE) == ["[1/1] train@mixture2d-ic-0:"]
    assert (project / "results/mixture2d/ic/seed0/weights.safetensors").exists()
    mistaken = script("mixture", "cpu")
    assert mistaken.stderr.startswith("target 'mixture': known are all;")
    assert mistaken.stderr.count("\n") == 1
