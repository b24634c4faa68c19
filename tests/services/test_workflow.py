"""The whole workflow, through Snakemake, in a clone of the repository: then DVC, then MLflow, on what it made."""

import json
import re
import subprocess

import pytest
from filelock import FileLock, Timeout
from projects import environment, prepare_data, tiny_params
from slurm_workflows import Trainer, tiny_unets
from workflows import SCRIPTS, duplicate, dvc, rules_for, snakemake

from gcflow.pipeline.params import Params
from gcflow.pipeline.stages import Stages


@pytest.fixture(scope="session")
def project(finished, tmp_path_factory):
    return duplicate(finished, tmp_path_factory.mktemp("workflow") / "project")


def test_every_declared_file_of_every_stage_exists(project):
    missing = [
        out for stage in Stages(Params(project / "params.yaml")) for out in stage.outs if not (project / out).exists()
    ]
    assert missing == []


def test_a_second_run_has_nothing_to_do(project):
    assert "Nothing to be done" in snakemake(project, "all")


def test_snakemakes_report_is_one_file_that_holds_figures_and_asks_for_nothing(project):
    text = (project / "results" / "workflow-report.html").read_text()
    for content in (
        "Tiny convergence",
        "data:image/png",
        "are <strong>not</strong> FID",
    ):
        assert content in text
    assert "<script src=" not in text
    assert '<link rel="stylesheet" href="http' not in text


def test_every_number_travels_with_its_protocol(project):
    records = json.loads((project / "results/digits/gc/seed0/evaluation/metrics.json").read_text())
    keys = {
        "metric", "value", "run", "step", "weights", "sampler", "network_evaluations", "boundary", "precision",
        "generation_seed", "clipping", "quantisation", "resize", "extractor_sha256", "generated", "generation_batch",
        "protocol", "reference", "reference_split",
    }  # fmt: skip
    assert all(set(record) == keys for record in records)
    assert {record["reference"] for record in records} == {1797}
    assert {(r["step"], r["weights"]) for r in records} == {(s, w) for s in (20, 40) for w in ("ema", "raw")}
    final = [r for r in records if r["step"] == 40 and r["metric"] == "classifier-fd" and r["weights"] == "ema"]
    assert {(r["network_evaluations"], r["generation_seed"]) for r in final} == {(1, 0), (1, 1), (2, 0), (2, 1)}
    assert not any("fid" in record["metric"].lower() for record in records)


def test_a_table_of_classifier_features_says_that_it_is_not_fid(project):
    text = (project / "results/digits/tables/table1.md").read_text()
    assert "not FID" in text
    assert "published" not in text.lower()


def test_table_cells_are_the_mean_and_deviation_of_the_records(project):
    values = []
    for seed in (0, 1):
        records = json.loads((project / f"results/digits/ic/seed{seed}/evaluation/metrics.json").read_text())
        chosen = [
            r["value"]
            for r in records
            if (r["metric"], r["weights"], r["step"], r["network_evaluations"]) == ("classifier-fd", "ema", 40, 1)
        ]
        assert len(chosen) == 2
        values.append(sum(chosen) / 2)
    mean, deviation = sum(values) / 2, abs(values[0] - values[1]) / 2**0.5
    row = next(
        line for line in (project / "results/digits/tables/table1.md").read_text().splitlines() if "iCT-IC" in line
    )
    assert f"{mean:.2f} ± {deviation:.2f}" in row


def test_dvc_is_clean_and_idle_after_recording(project):
    assert dvc(project, "status").strip() == "Data and pipelines are up to date."
    output = dvc(project, "repro")
    assert "Running stage" not in output
    assert "Data and pipelines are up to date." in output


def test_recorded_weights_are_on_disk_once(project):
    weights = project / "results/digits/ic/seed0/weights.safetensors"
    names = [weights, *project.glob("results/digits/ic/seed0/**/snapshots/00000040.safetensors")]
    assert len({path.stat().st_ino for path in names}) == 1
    cached = [path for path in (project / ".dvc/cache").rglob("*") if path.is_file()]
    assert weights.stat().st_ino in {path.stat().st_ino for path in cached}


def planned(folder, verb):
    """Runs that Snakemake would give to a verb."""
    plan = snakemake(folder, "-n", "-p", "--quiet", "host", "--", "all")
    return set(re.findall(rf"gcflow {verb} (\S+)", plan))


def test_dvc_repro_restores_a_lost_output_that_snakemake_then_accepts(project, tmp_path):
    folder = duplicate(project, tmp_path / "project")
    table = folder / "results/digits/tables/table1.md"
    before = table.read_bytes()
    table.unlink()
    dvc(folder, "repro", "--single-item", "table-digits-table1")
    assert table.read_bytes() == before
    assert planned(folder, "table") == set()


def test_how_a_stage_ends_is_told_by_it_alone_whatever_becomes_of_its_log(tmp_path):
    folder, programs = rules_for(tmp_path / "project", tiny_params()), tmp_path / "programs"
    programs.mkdir()
    # As on a full disk.
    (programs / "tee").write_text("#!/bin/sh\ncat\nexit 1\n")
    (programs / "tee").chmod(0o755)
    env = {"PATH": f"{programs}:{SCRIPTS}:{environment()['PATH']}"}
    snakemake(folder, "data/mixture2d/manifest.json", env=env)
    assert (folder / "data/mixture2d/samples.npy").exists()
    (folder / "data/mixture2d/samples.npy").write_bytes(b"damaged")
    weights = "results/mixture2d/ic/seed0/weights.safetensors"
    output = snakemake(folder, weights, "--rerun-triggers", "params", check=False, env=env)
    # At Snakemake's end.
    assert [line for line in output.splitlines()[-6:] if line.startswith("gcflow: error: ")]
    assert not (folder / weights).exists()


def test_trainings_side_by_side_have_each_a_gpu_of_its_own(tmp_path):
    folder, seeds = rules_for(tmp_path / "project", tiny_unets(2)), range(2)
    prepare_data(folder, "digits")
    targets = [f"results/digits/ic/seed{seed}/weights.safetensors" for seed in seeds]
    env = {"CUDA_VISIBLE_DEVICES": "2,5", "TMPDIR": str(tmp_path), "PATH": f"{SCRIPTS}:{environment()['PATH']}"}
    command = ["snakemake", "--profile", "local", *targets, "--cores", "2", "--resources", "gpu=2"]
    process = subprocess.Popen(command, cwd=folder, env=environment(env), stderr=subprocess.PIPE, text=True)
    trainers = [Trainer.held(folder, f"digits/ic/{seed}") for seed in seeds]
    (leases,) = tmp_path.glob("gcflow-gpus-*")
    assert sorted(file.name for file in leases.iterdir()) == ["2", "5"]
    for file in leases.iterdir():
        with pytest.raises(Timeout):
            FileLock(file, timeout=0).acquire()
    for trainer in trainers:
        trainer.go_on()
    _, output = process.communicate()
    assert process.returncode == 0, output


def test_a_mistake_in_params_stops_snakemake_before_anything_runs_with_one_line(tmp_path):
    params = tiny_params()
    params["datasets"]["digits"]["methods"]["gc"]["mu"] = 1.5
    output = snakemake(rules_for(tmp_path, params), "all", check=False)
    assert "datasets.digits.methods.gc.mu is 1.5, expected a number <= 1" in output
    assert "Traceback" not in output
    assert not list((tmp_path / "results").rglob("*.json"))
