"""`gcflow bench`: what it measures, what it reports, and what it refuses."""

import json
from pathlib import Path

import pytest
import torch
from projects import gcflow, prepare_data, tiny_params, write_project

import gcflow as package
from gcflow.pipeline.features.networks import make_features
from gcflow.pipeline.params import Params, Run
from gcflow.tools.bench import Trainer, bench_features, peak_rate
from gcflow.tools.plan import passes_per_sample


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A project whose data were never prepared, and its measurements."""
    root = write_project(tmp_path_factory.mktemp("bench"))
    options = ["--method", "ic", "--method", "gc", "--method", "cd", "--steps", "3", "--rounds", "2"]
    result = gcflow(root, "bench", "digits", *options, "--set", "training.batch=8", "--set", "network.dropout=0.1")
    return root, result, json.loads((root / "results" / "digits" / "bench.json").read_text())


def test_training_and_sampling_are_measured_and_described(measured):
    _, result, document = measured
    methods = document["train"]["methods"]
    assert list(methods) == ["ic", "gc", "cd"]
    for row in methods.values():
        assert row["images_per_second"] == pytest.approx(8 / row["seconds_per_step"])
        assert row["peak_memory_bytes"] is None
        share = row["images_per_second"] * row["passes_per_image"] * document["train"]["operations_per_pass"]
        assert row["share_of_peak"] == pytest.approx(share / document["train"]["peak_operations_per_second"])
    assert methods["ic"]["step_over_first"] == 1
    assert [row["passes_per_image"] for row in methods.values()] == [4, 4.5, 5]
    assert set(document["sampling_images_per_second"]) == {"consistency-1", "consistency-2"}
    assert document["training"]["batch"] == 8
    assert document["network"]["dropout"] == 0.1
    assert document["machine"]["torch"] == torch.__version__
    assert document["peak_process_bytes"] > 1e8
    assert document["command"].startswith("gcflow bench digits")
    for method in methods:
        assert method in result.stderr


def test_measuring_needs_no_data_and_leaves_nothing_but_its_file_which_a_plan_reads(measured):
    root, _, _ = measured
    assert sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()) == [
        "params.yaml",
        "results/digits/bench.json",
    ]
    shown = gcflow(root, "plan", "digits").stdout
    assert "unknown" not in shown
    assert "float32 on" in shown


def test_without_a_choice_the_first_method_of_each_coupling_is_timed(tmp_path):
    root = write_project(tmp_path)
    gcflow(root, "bench", "digits", "--steps", "1", "--rounds", "1", "--out", "here.json")
    assert list(json.loads((root / "here.json").read_text())["train"]["methods"]) == ["ic", "gc"]


@pytest.mark.slow
def test_features_are_timed_once_their_network_is_made(tmp_path):
    document = tiny_params()
    document["datasets"]["mixture2d"] |= {
        "data": {"source": "synthetic", "shape": [3, 8, 8], "count": 100, "seed": 0},
        "features": {"kind": "surrogate", "protocols": {"clean": {}, "legacy": {"resize": "legacy-tensorflow"}}},
    }
    root = prepare_data(write_project(tmp_path, document), "digits")
    params = Params(root / "params.yaml")
    digits = torch.from_numpy(params.dataset("digits").data.timing_samples())
    images = torch.from_numpy(params.dataset("mixture2d").data.timing_samples())[:4]
    assert bench_features(params, "digits", digits, "cpu") == bench_features(params, "mixture2d", images, "cpu") == {}
    for dataset in ("digits", "mixture2d"):
        make_features(params, dataset, Path("archives"), False)
    assert bench_features(params, "digits", digits, "cpu")["classifier"] > 1
    assert min(bench_features(params, "mixture2d", images, "cpu").values()) > 0.1
    points = Params(write_project(tmp_path / "points") / "params.yaml")
    assert list(bench_features(points, "mixture2d", torch.zeros(9, 2), "cpu")) == ["identity"]


def test_a_method_that_switches_mu_on_late_is_timed_with_mu_on(tmp_path):
    document = tiny_params()
    document["datasets"]["digits"]["methods"]["gc"] |= {"mu": 1.0, "mu_from_step": 30}
    params = Params(write_project(tmp_path, document) / "params.yaml")
    data = torch.zeros(20, 1, 8, 8, dtype=torch.uint8)
    trainer = Trainer(params, Run("digits", "gc", 0), {}, data, "cpu")
    predicted = []
    trainer.state.ema.network.register_forward_hook(lambda module, inputs, output: predicted.append(len(output)))
    trainer.steps(2)
    assert predicted == [16, 16]
    assert passes_per_sample(trainer.config) == 5


def test_weights_from_files_are_timed_as_the_runs_own_network(tmp_path):
    document = tiny_params()
    methods = document["datasets"]["digits"]["methods"]
    methods["ect"]["init"] = {"file": "checkpoints/a.safetensors"}
    methods["cd"]["teacher"] = {"file": "checkpoints/a.safetensors"}
    methods["gc-frozen"]["predictor"] = {"file": "checkpoints/b.safetensors"}
    params = Params(write_project(tmp_path, document) / "params.yaml")
    data = torch.zeros(20, 1, 8, 8, dtype=torch.uint8)
    for method, role in (("ect", None), ("cd", "teacher"), ("gc-frozen", "predictor")):
        trainer = Trainer(params, Run("digits", method, 0), {}, data, "cpu")
        trainer.steps(1)
        helpers = {name for name in ("predictor", "teacher") if getattr(trainer.helpers, name) is not None}
        assert helpers == ({role} if role else set())


def test_each_method_is_timed_in_its_own_precision(tmp_path):
    document = tiny_params()
    document["datasets"]["digits"]["methods"]["gc"]["training"] = {"precision": "tf32"}
    params = Params(write_project(tmp_path, document) / "params.yaml")
    data = torch.zeros(20, 1, 8, 8, dtype=torch.uint8)
    trainers = [Trainer(params, Run("digits", method, 0), {}, data, "cpu") for method in ("ic", "gc")]
    found = []
    for trainer in trainers:
        trainer.steps(1)
        found.append(torch.backends.cuda.matmul.allow_tf32)
    assert found == [False, True]
    trainers[0].steps(1)


def test_a_run_that_ends_is_timed_from_its_first_step_again(tmp_path):
    params = Params(write_project(tmp_path) / "params.yaml")
    trainer = Trainer(params, Run("digits", "gc", 0), {}, torch.zeros(20, 1, 8, 8, dtype=torch.uint8), "cpu")
    trainer.steps(95)
    assert trainer.state.step == 15


def test_the_peak_rate_is_that_of_a_product_of_matrices():
    assert 1e8 < peak_rate("float32", "cpu") < 1e14


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--method", "nope"), "--method nope: digits has no such runs; known: ic"),
        (("--set", "training.steppes=3"), "training.steppes is not a known key"),
        (("--set", "training.precision=fp8"), "'float32', 'tf32' or 'bfloat16'"),
        (("--set", "precision=tf32"), "expected e.g. training.precision=bfloat16"),
        (("--set", "network.dropout=2"), "network.dropout is 2, expected a number < 1"),
    ],
)
def test_a_measurement_that_cannot_be_made_is_refused_in_one_line(tmp_path, options, message):
    root = write_project(tmp_path)
    result = gcflow(root, "bench", "digits", *options, check=False)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert message in line
    assert not (root / "results").exists()


def test_the_recipe_of_the_paper_is_a_valid_grid():
    params = Params(Path(package.__file__).parents[1] / "benchmarks" / "cifar10.yaml")
    run = params.run_config("cifar10/ic/0")
    assert (run.training.batch, run.network.multipliers, run.network.blocks) == (512, (1, 2, 2), 3)
    assert run.training.optimizer == "lion"
