"""`gcflow bench`: what it counts, what it reports, and what it refuses."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from projects import gcflow, tiny_params, write_project

import gcflow as package
from gcflow.config import (
    EdmSchedule,
    MethodConfig,
    NetworkConfig,
    NoiseProcess,
    RunConfig,
    RunReference,
    TrainingConfig,
)
from gcflow.errors import GcflowError
from gcflow.pipeline.bench import Trainer, peak_rate
from gcflow.pipeline.params import Params, Run
from gcflow.pipeline.planning import measure, sampling_speed
from gcflow.pipeline.planning.sampling_speed import as_evaluated, bench_sampling
from gcflow.pipeline.planning.work import pass_operations, passes_per_sample


def config(method: dict, architecture: str = "mlp", **network) -> RunConfig:
    schedule = {"schedule": EdmSchedule()} if method["objective"] == "denoising" else {}
    return RunConfig(
        dataset="d",
        method_name="m",
        seed=0,
        process=NoiseProcess(),
        network=NetworkConfig(architecture=architecture, channels=8, blocks=1, **network),
        training=TrainingConfig(steps=100, batch=4, learning_rate=1e-3, snapshot_every=10, **schedule),
        method=MethodConfig(**method),
    )


CONSISTENCY = {"objective": "consistency"}


@pytest.mark.parametrize(
    ("method", "passes"),
    [
        (CONSISTENCY, 4),
        (CONSISTENCY | {"coupling": "ot"}, 4),
        (CONSISTENCY | {"coupling": "gc", "mu": 0.5, "predictor": "ema"}, 4.5),
        (CONSISTENCY | {"coupling": "gc", "mu": (0.0, 1.0), "predictor": "online"}, 4.5),
        ({"objective": "distillation", "teacher": "exact"}, 4),
        ({"objective": "distillation", "teacher": RunReference("denoiser")}, 5),
        ({"objective": "denoising"}, 3),
        ({"objective": "denoising", "coupling": "gc", "mu": 0.5, "predictor": RunReference("ic")}, 3.5),
    ],
)
def test_a_step_costs_the_passes_of_student_teacher_and_predictor(method, passes):
    assert passes_per_sample(config(method)) == passes


def test_a_method_that_switches_mu_on_late_is_timed_with_mu_on(tmp_path):
    document = tiny_params()
    document["datasets"]["digits"]["methods"]["gc"] |= {"mu": 1.0, "mu_from_step": 30}
    params = Params(write_project(tmp_path, document) / "params.yaml")
    data = torch.zeros(20, 1, 8, 8, dtype=torch.uint8)
    trainer = Trainer.of(params, Run("digits", "gc", 0), {}, data, "cpu")
    predicted = []
    trainer.state.ema.network.register_forward_hook(lambda module, inputs, output: predicted.append(len(output)))
    trainer.steps(2)
    assert predicted == [16, 16]
    assert passes_per_sample(trainer.config) == 5


def test_the_operations_of_a_pass_are_those_of_its_layers():
    mlp = config(CONSISTENCY)
    products = [(64, 8), (8, 8), (6, 8), (8, 8), (8, 16), (8, 8), (8, 6)]
    assert pass_operations(mlp, (6,)) == 2 * sum(a * b for a, b in products)


def test_the_network_of_the_paper_costs_what_its_convolutions_do():
    paper = config(CONSISTENCY, "ddpm++", multipliers=(1, 2, 2))
    small = pass_operations(paper, (3, 32, 32))
    assert small == pass_operations(paper, (3, 32, 32))
    # Convolutions dominate, and their cost is proportional to the number of pixels.
    assert 3.9 < pass_operations(paper, (3, 64, 64)) / small < 4.1


def test_the_peak_rate_is_that_of_a_product_of_matrices():
    assert 1e8 < peak_rate("float32", "cpu") < 1e14


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A project whose data were never prepared, and its measurements."""
    root = write_project(tmp_path_factory.mktemp("bench"))
    options = ["--method", "ic", "--method", "gc", "--method", "cd", "--steps", "3", "--rounds", "2"]
    result = gcflow(root, "bench", "digits", *options, "--set", "training.batch=8", "--set", "network.dropout=0.1")
    return root, result, json.loads((root / "results" / "digits" / "bench.json").read_text())


def test_training_sampling_and_evaluation_are_measured_and_described(measured):
    _, result, document = measured
    methods = document["train"]["methods"]
    assert list(methods) == ["ic", "gc", "cd"]
    for row in methods.values():
        assert row["images_per_second"] == pytest.approx(8 / row["seconds_per_step"])
        assert row["step_over_passes"] > 0.5
        assert row["peak_memory_bytes"] is None
        share = row["images_per_second"] * row["passes_per_image"] * document["train"]["operations_per_pass"]
        assert row["share_of_peak"] == pytest.approx(share / document["train"]["peak_operations_per_second"])
    assert [row["passes_per_image"] for row in methods.values()] == [4, 4.5, 5]
    assert set(document["sampling_images_per_second"]) == {"consistency-1", "consistency-2"}
    assert set(document["evaluation_images_per_second"]) == {"features", "frechet_distance"}
    assert document["training"]["batch"] == 8
    assert document["network"]["dropout"] == 0.1
    assert document["machine"]["torch"] == torch.__version__
    assert document["command"].startswith("gcflow bench digits")
    for method in methods:
        assert method in result.stderr


def test_every_other_verb_is_measured_for_the_plan(measured):
    _, _, document = measured
    stages = document["stages"]
    assert set(stages["startup_seconds"]) == set(measure.PROBED)
    assert all(0.01 < value < 60 for value in stages["startup_seconds"].values())
    # Of gc-frozen and of the denoiser, which were not asked for, nothing is known.
    (network,) = stages["sampling"]
    assert set(network["images_per_second"]) == {"consistency-1", "consistency-2"}
    assert network["network"]["dropout"] == 0.0
    (classifier,) = stages["features"].values()
    assert classifier["images_per_second"] > 100
    assert classifier["network"] == "classifier, untrained"
    assert stages["prepare"]["seconds"] < 10
    assert not stages["prepare"]["assumed"]
    assert stages["transport"]["settings"]["samples"] == 64
    for value in (stages["classifier_step_seconds"], stages["transport"]["seconds"], stages["assignment_seconds"]):
        assert 0 < value < 10
    assert document["train"]["methods"]["cd"]["config"]["training"]["batch"] == 8


def test_data_that_are_not_at_hand_are_timed_on_random_pixels_and_inception_by_its_surrogate(tmp_path):
    document = tiny_params()
    document["datasets"]["cifar10"] = paper = document["datasets"]["digits"]
    paper["data"] = {"source": "cifar10"}
    protocol = {"kid_subsets": 2, "kid_subset_size": 50}
    paper["features"] = {"kind": "inception", "protocols": {"clean": protocol}}
    root = write_project(tmp_path, document)
    params = Params(root / "params.yaml")
    images = torch.from_numpy(params.dataset("cifar10").data.timing_samples())
    found = measure.features(params, "cifar10", images, root / "archives", "cpu")["clean"]
    assert found["network"] == "surrogate"
    assert found["images_per_second"] > 1
    assert found["seconds_per_comparison"] > 0
    prepared = measure.preparation(params.dataset("cifar10"), root / "archives")
    assert prepared["assumed"]
    assert prepared["images_per_second"] > 0
    # Its exact denoiser is never asked for.
    config = params.run_config("cifar10/ic/0")
    assert measure.exact_denoising(params, "cifar10", config, images) == 0


def test_weights_from_files_are_timed_as_the_runs_own_network(tmp_path):
    document = tiny_params()
    methods = document["datasets"]["digits"]["methods"]
    methods["ect"]["init"] = {"file": "checkpoints/a.safetensors"}
    methods["cd"]["teacher"] = {"file": "checkpoints/a.safetensors"}
    methods["gc-frozen"]["predictor"] = {"file": "checkpoints/b.safetensors"}
    params = Params(write_project(tmp_path, document) / "params.yaml")
    data = torch.zeros(20, 1, 8, 8, dtype=torch.uint8)
    for method, role in (("ect", None), ("cd", "teacher"), ("gc-frozen", "predictor")):
        trainer = Trainer.of(params, Run("digits", method, 0), {}, data, "cpu")
        trainer.steps(1)
        trainer.passes(1)
        helpers = {name for name in ("predictor", "teacher") if getattr(trainer.helpers, name) is not None}
        assert helpers == ({role} if role else set())


def test_sampling_is_timed_as_it_is_evaluated(tmp_path, monkeypatch):
    params = Params(write_project(tmp_path) / "params.yaml")
    assert set(bench_sampling(params.run_config("digits/denoiser/0"), params, (1, 8, 8), "cpu")) == {"heun-5"}
    monkeypatch.setattr(sampling_speed, "LONGEST_SAMPLING", 0.0)
    assert bench_sampling(params.run_config("digits/denoiser/0"), params, (1, 8, 8), "cpu") == {}
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic
    for precision, allowed in (("tf32", True), ("float32", False), ("bfloat16", False)):
        training = replace(params.run_config("digits/ic/0").training, precision=precision)
        with as_evaluated(training):
            assert torch.backends.cuda.matmul.allow_tf32 is torch.backends.cudnn.allow_tf32 is allowed
            assert torch.backends.cudnn.deterministic
        backends = torch.backends
        assert (backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32, backends.cudnn.deterministic) == before


def test_a_trial_that_fails_is_reported(monkeypatch):
    monkeypatch.setitem(measure.PROBED, "prepare", ("prepare", "nothing"))
    with pytest.raises(GcflowError, match=r"a trial of gcflow prepare nothing failed: .*'nothing'"):
        measure.startups("cpu")


def test_measuring_needs_no_data_and_leaves_nothing_but_its_file(measured):
    root, _, _ = measured
    assert sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()) == [
        "params.yaml",
        "results/digits/bench.json",
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--method", "nope"), "--method nope: digits has runs of"),
        (("--set", "training.steppes=3"), "training.steppes is not a known key"),
        (("--set", "training.precision=fp8"), "'float32', 'tf32' or 'bfloat16'"),
        (("--set", "precision=tf32"), "expected e.g. training.precision=bfloat16"),
        (("--set", "network.dropout=2"), "network.dropout is 2.0"),
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
