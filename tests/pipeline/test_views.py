"""Tracking without a server, a figure from numbers that are there, and the graph of stages."""

import json

import numpy as np
import pytest
from projects import ROOT, gcflow, prepare_data, tiny_params, write_project

from gcflow.pipeline.drawing.image_files import tile
from gcflow.pipeline.job import machine_load
from gcflow.pipeline.params import Params
from gcflow.pipeline.stages import Stages
from gcflow.pipeline.table import published_values


@pytest.mark.service
def test_a_tracking_server_that_is_down_costs_a_warning_and_nothing_is_lost(tmp_path):
    folder = prepare_data(write_project(tmp_path), "mixture2d")
    gcflow(folder, "train", "mixture2d/ic/0")
    down = gcflow(folder, "track", "sync", env={"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"})
    assert "did not take 1 runs" in down.stderr
    assert "Traceback" not in down.stderr
    receipt = json.loads((folder / "results/tracking.json").read_text())
    assert receipt["pending"] == ["mixture2d/ic/0"]
    gcflow(folder, "track", "sync")
    receipt = json.loads((folder / "results/tracking.json").read_text())
    assert receipt["pending"] == []
    assert list(receipt["sent"]) == ["mixture2d/ic/0"]


def test_the_load_of_a_gpu_is_told_where_it_can_be_read(monkeypatch):
    asked = []

    def unreadable(device):
        asked.append(device)
        raise ModuleNotFoundError("nvidia-ml-py does not seem to be installed")

    machine = {"system/cpu_utilization_percentage", "system/system_memory_usage_percentage"}
    monkeypatch.setattr("torch.cuda.utilization", unreadable)
    assert machine_load("cuda:1").keys() == machine == machine_load("cpu").keys()
    assert asked == ["cuda:1"]
    monkeypatch.setattr("torch.cuda.utilization", lambda device: 73)
    assert machine_load("cuda:1")["system/gpu_utilization_percentage"] == 73.0


def test_tiles_keep_every_pixel_in_its_place():
    images = np.arange(5 * 1 * 2 * 3, dtype=np.uint8).reshape(5, 1, 2, 3)
    grid = tile(images, columns=2)
    assert grid.shape == (3 * 3 + 1, 2 * 4 + 1)
    # A closed frame, and a line between neighbours.
    assert {*grid[::3].ravel(), *grid[:, ::4].ravel()} == {96}
    for index in range(5):
        row, column = divmod(index, 2)
        top, left = row * 3 + 1, column * 4 + 1
        assert (grid[top : top + 2, left : left + 3] == images[index, 0]).all()
    colour = np.zeros((2, 3, 4, 4), dtype=np.uint8)
    assert tile(colour, columns=2).shape == (6, 11, 3)


def test_a_training_stage_depends_on_the_weights_that_its_run_needs(tmp_path):
    document = tiny_params()
    document["datasets"]["digits"]["methods"]["cd"]["init"] = {"file": "checkpoints/start.safetensors"}
    params = Params(write_project(tmp_path, document) / "params.yaml")

    def needs(method):
        deps = Stages(params).train(params.parse_run(f"digits/{method}/0")).deps
        return {dep for dep in deps if not dep.startswith("data/")}

    snapshots = "results/digits/{}/seed0/snapshots".format
    assert needs("gc") == set()
    assert needs("gc-frozen") == {snapshots("ic")}
    assert needs("ect-gc") == {snapshots("denoiser")}
    assert needs("cd") == {snapshots("denoiser"), "checkpoints/start.safetensors"}


def test_labels_and_further_seeds_leave_the_training_stages_as_they_are(tmp_path):
    before = Params(write_project(tmp_path / "a") / "params.yaml")
    document = tiny_params()
    document["datasets"]["digits"]["runs"]["gc"] = {"label": "another", "seeds": [0, 1]}
    after = Params(write_project(tmp_path / "b", document) / "params.yaml")
    run = before.parse_run("digits/gc/0")
    assert Stages(before).train(run).slice(before) == Stages(after).train(run).slice(after)
    assert Stages(before).table("digits", "table1").slice(before) != Stages(after).table("digits", "table1").slice(
        after
    )


def test_the_papers_table_1_is_complete():
    params = Params(ROOT / "params.yaml")
    for dataset in ("cifar10", "imagenet32", "celeba64", "church64"):
        values = published_values(params, params.dataset(dataset).tables["table1-authors"])
        assert set(values) == {"ic", "ot", "gc"}
        assert all(set(row) == {"FID", "KID×10²", "IS"} for row in values.values())
    assert params.published["table1"]["datasets"]["celeba64"]["gc"]["FID"] == [11.74, 0.08]
