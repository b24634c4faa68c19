"""What the profile `slurm` plans, for which no Slurm is needed."""

import copy
import re

import pytest
import yaml
from projects import ROOT, write_project
from workflows import run

from gcflow.pipeline.params import Params


@pytest.fixture
def folder(tmp_path):
    for name in ("Snakefile", "workflow", "slurm", "params.yaml", "claims.yaml", "paper.yaml"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


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


def test_a_thousand_runs_are_one_plan(tmp_path, folder):
    document = yaml.safe_load((ROOT / "params.yaml").read_text())
    digits = copy.deepcopy(document["datasets"]["digits"])
    for replicates in digits["runs"].values():
        replicates["seeds"] = list(range(-(-1000 // len(digits["runs"]))))
    (folder / "params.yaml").unlink()
    write_project(folder, {"tracking": document["tracking"], "datasets": {"digits": digits}})
    assert trained(folder, "--config", "scale=embedded", "-n", "all") >= 1000
