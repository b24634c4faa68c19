"""What the profile `slurm` plans, for which no Slurm is needed."""

import copy
import re
import shutil

import pytest
import yaml
from projects import ROOT, tiny_params
from slurm_workflows import tiny_unets
from workflows import as_a_plan, rules_for, run

from gcflow.pipeline.params import Params


@pytest.fixture
def folder(tmp_path):
    for name in ("Snakefile", "workflow", "slurm", "params.yaml", "claims.yaml", "paper.yaml"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


README = (ROOT / "README.md").read_text()
WRITTEN = re.findall(
    r"^((?:[A-Z_]+=\S+ )?snakemake --[^#\n]+?)(?: +#.*)?$|`((?:[A-Z_]+=\S+ )?snakemake --[^`]+)`",
    "\n".join(page.read_text() for page in sorted((ROOT / "docs").glob("*.md"))),
    re.MULTILINE,
)
# `…` stands for what a table lists; these say how they begin. The README's own commands have a test of theirs, and so
# has the guide whose project is called `own`.
PLANNED = {(line or span).partition(" && ")[0] for line, span in WRITTEN if "…" not in span}
COMMANDS = sorted(command for command in PLANNED if f"\n{command} " not in README and " own " not in command)


def trained(folder, *arguments):
    """Runs that a dry run would train."""
    output = run(folder, "snakemake", "--profile", "slurm", *arguments)
    found = re.search(r"^train +(\d+)$", output, re.MULTILINE)
    assert found, output
    return int(found[1])


# The paper's scale takes the runs of the low-dimensional Figure 1 from the embedded scale.
@pytest.mark.parametrize(
    ("arguments", "scale", "of_figure1"), [((), "paper", ["ic"]), (("--config", "scale=embedded"), "embedded", [])]
)
def test_all_means_the_papers_scale_unless_the_command_line_says_another(folder, arguments, scale, of_figure1):
    params = Params(ROOT / "params.yaml")
    runs = [run for dataset in params.at_scale(scale) for run in params.runs(dataset)]
    assert trained(folder, *arguments, "-n", "all") == len(runs) + len(of_figure1)


def test_hundreds_of_runs_are_one_plan(tmp_path):
    document = yaml.safe_load((ROOT / "params.yaml").read_text())
    digits = copy.deepcopy(document["datasets"]["digits"])
    for replicates in digits["runs"].values():
        replicates["seeds"] = list(range(-(-300 // len(digits["runs"]))))
    folder = rules_for(tmp_path, {"tracking": document["tracking"], "datasets": {"digits": digits}})
    assert trained(folder, "--config", "scale=embedded", "-n", "all") >= 300


def test_the_pages_show_commands_of_snakemake():
    assert len(PLANNED) > 10
    assert len(COMMANDS) > 5


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_of_snakemake_in_the_pages_plans_what_it_names_as_it_is_written(folder, command):
    programs = folder / "programs"
    programs.mkdir()
    (folder / "local").symlink_to(ROOT / "local")
    shutil.copytree(ROOT / "examples", folder / "examples", ignore=shutil.ignore_patterns(".snakemake", "results"))
    output = run(folder, "bash", "-c", f"PATH={as_a_plan(programs)}:$PATH; {command}")
    assert "unlock" in command or "dry-run" in output or "Nothing to be done" in output


@pytest.mark.parametrize(("variable", "value"), [("GCFLOW_SLURM_MINUTES", "24h"), ("GCFLOW_PROCESSES", "0")])
def test_a_setting_that_is_no_number_is_refused_by_name(folder, variable, value):
    output = run(folder, "snakemake", "--profile", "slurm", "-n", "all", check=False, env={variable: value})
    assert f"{variable} is '{value}', expected a whole number from 1 up" in output
    assert "Traceback" not in output


def test_a_run_gets_as_many_processes_as_can_share_its_batches_and_points_get_one(tmp_path):
    params = tiny_unets(1)
    params["datasets"]["mixture2d"] = tiny_params()["datasets"]["mixture2d"]
    folder = rules_for(tmp_path / "project", params)
    output = run(folder, "snakemake", "--profile", "local", "-n", "-p", "all", env={"GCFLOW_PROCESSES": "3"})
    # A batch of 16 in grains of 8.
    assert "gcflow train digits/ic/0 --gpus 2 --processes 2 " in output
    assert "gcflow train mixture2d/ic/0 --gpus 0 --processes 1 " in output
