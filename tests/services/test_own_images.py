"""docs/own-images.md as it stands, but with less to train."""

import json
import re

import pytest
import yaml
from projects import ROOT, tiny_params
from workflows import clone, run, snakemake

pytestmark = pytest.mark.service
CODE = re.findall(r"```(\w*)\n(.*?)```", (ROOT / "docs/own-images.md").read_text(), flags=re.DOTALL)
IMAGES, PARAMS, COMMANDS, SAID = (text for _, text in CODE)


def test_the_guide_leads_from_files_of_images_to_a_table_and_a_report(tmp_path):
    clone(tmp_path / "project", tiny_params())
    project = tmp_path / "project"
    run(project, "bash", "-c", IMAGES)
    document = yaml.safe_load(PARAMS)
    entry = document["datasets"]["photos"]
    entry["training"] |= {"steps": 20, "snapshot_every": 10}
    entry["features"] |= {"epochs": 1, "minimum_accuracy": 0.0}
    entry["evaluation"] |= {"samples": 64, "heun_steps": 3}
    (project / "own/params.yaml").write_text(yaml.safe_dump(document))
    prepare, workflow = COMMANDS.splitlines()
    said = run(project, *prepare.split())
    assert SAID.strip() in said
    assert "warning" not in said
    snakemake(project, *workflow.removeprefix("snakemake --profile local ").split())
    results = project / "own/results"
    rows = json.loads((results / "photos/tables/couplings.json").read_text())["rows"]
    assert [row["method"] for row in rows] == ["iCT-IC", "iCT-OT", "iCT-GC"]
    assert "This report is incomplete" not in (results / "report.html").read_text()
