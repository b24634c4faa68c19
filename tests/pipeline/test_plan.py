"""`gcflow plan`: which jobs, which are done, and their operations, time and disk as they are counted by hand."""

import json
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import torch
from projects import error_line, gcflow, prepare_data, run_folder, tiny_params, train_here, write_project
from safetensors import safe_open

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
from gcflow.optimizers import make_optimizer
from gcflow.pipeline.features.networks import make_features
from gcflow.pipeline.graph import Graph
from gcflow.pipeline.params import Params
from gcflow.pipeline.reference import compute_reference
from gcflow.pipeline.run_state import LOG
from gcflow.pipeline.stages import Stages
from gcflow.readable import duration
from gcflow.tools.plan import (
    INCEPTION_OPERATIONS,
    MOMENTS,
    Counts,
    Speed,
    pass_operations,
    passes_per_sample,
    plan,
    text,
)

SHIPPED = Path(package.__file__).parents[1] / "params.yaml"


# Which jobs.


@pytest.fixture(scope="module")
def shipped():
    return Graph(Params(SHIPPED), "paper")


def test_every_target_of_the_paper_is_a_closed_set_of_jobs(shipped):
    whole = shipped.target("all")
    assert len(whole) == len(list(Stages(shipped.params, "paper")))
    kinds = {job.kind: name for name, job in shipped.jobs.items()}
    for target in (*shipped.views, *shipped.params.datasets, *kinds.values()):
        names = shipped.target(target)
        for place, name in enumerate(names):
            assert set(shipped.needs[name]) <= set(names[:place])


def test_a_view_needs_what_its_runs_need(tmp_path):
    graph = Graph(Params(write_project(tmp_path) / "params.yaml"), "embedded")
    assert graph.target("train@digits-cd-0") == ["prepare-digits", "train@digits-denoiser-0", "train@digits-cd-0"]
    table = graph.target("table-digits-table1")
    assert set(table) == {
        "prepare-digits",
        "features-digits",
        "reference-digits-classifier",
        *(f"{kind}@digits-{run}" for kind in ("train", "evaluate") for run in ("ic-0", "ic-1", "gc-0")),
        "table-digits-table1",
    }
    assert all(graph.jobs[name].dataset == "mixture2d" for name in graph.target("mixture2d"))


def test_an_unknown_target_is_refused_with_those_that_are_known(tmp_path):
    document = tiny_params()
    document["datasets"]["digits"]["tables"]["table1"]["reproduces"] = "table1"
    root = write_project(tmp_path, document)
    result = gcflow(root, "plan", "train@digit-cd-0", check=False)
    assert result.returncode == 2
    line = error_line(result.stderr)
    assert "views table1" in line
    assert "data sets digits, mixture2d" in line
    assert "train@digits-cd-0" in line


def test_a_graph_without_claims_has_none(tmp_path):
    graph = Graph(Params(write_project(tmp_path) / "params.yaml"), "embedded")
    assert "claims" not in graph.jobs
    with pytest.raises(GcflowError, match="target 'claims'"):
        graph.target("claims")


# What is done.


@pytest.fixture
def trained(tmp_path):
    root = prepare_data(write_project(tmp_path), "digits")
    train_here(root, "digits/denoiser/0")
    train_here(root, "digits/cd/0")
    return root


def done(root):
    graph = Graph(Params(root / "params.yaml"), "embedded")
    return graph.done(graph.target("all"))


def test_stages_with_all_their_files_are_done(trained):
    assert done(trained) == {"prepare-digits", "train@digits-denoiser-0", "train@digits-cd-0"}
    (run_folder(trained, "digits/cd/0") / "metrics.jsonl").unlink()
    assert done(trained) == {"prepare-digits", "train@digits-denoiser-0"}


def test_what_needs_a_stage_that_is_not_done_is_not_done_either(trained):
    (run_folder(trained, "digits/denoiser/0") / "config.json").unlink()
    assert done(trained) == {"prepare-digits"}


def test_a_run_of_another_configuration_is_not_done(trained):
    params = tiny_params()
    params["datasets"]["digits"]["methods"]["cd"]["training"] = {"learning_rate": 2.0e-3}
    write_project(trained, params)
    assert done(trained) == {"prepare-digits", "train@digits-denoiser-0"}


def test_a_run_of_other_data_is_not_done(trained):
    manifest = trained / "data" / "digits" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"samples.npy": "', '"samples.npy": "0'))
    assert done(trained) == {"prepare-digits"}


def test_a_run_of_weights_that_were_replaced_is_not_done(trained):
    weights = run_folder(trained, "digits/denoiser/0") / "snapshots" / "00000040.safetensors"
    weights.write_bytes(weights.read_bytes() + b" ")
    assert done(trained) == {"prepare-digits", "train@digits-denoiser-0"}


def planned(root, target="all", **options):
    """A plan as a document and as it is shown."""
    found = plan(Params(root / "params.yaml"), target, "embedded", **options)
    return found, text(found)


def test_what_is_done_stays_in_the_plan_and_nothing_of_it_is_left(trained):
    whole, shown = planned(trained, "train@digits-cd-0", tflops=1)
    total = whole["rows"]["total"]
    assert (total["runs"], total["jobs"], total["done"]) == (2, 3, 3)
    assert (total["seconds_left"], total["bytes_left"], whole["longest_chain_seconds"]) == (0, 0, 0)
    assert total["seconds"] > 0
    assert "Everything is done." in shown
    assert "Disk:" not in shown
    (run_folder(trained, "digits/cd/0") / "config.json").unlink()
    rest, shown = planned(trained, "train@digits-cd-0", tflops=1)
    cd = rest["jobs"]["train@digits-cd-0"]
    assert rest["rows"]["total"] == total | {"done": 2, "seconds_left": cd["seconds"], "bytes_left": cd["bytes"]}
    assert "Everything is done." not in shown


def test_of_a_finished_project_nothing_is_left_though_nothing_was_measured(finished):
    found = plan(Params(finished / "params.yaml"), "all", "embedded")
    graph = Graph(Params(finished / "params.yaml"), "embedded")
    assert found["rows"]["total"]["done"] == found["rows"]["total"]["jobs"] == len(graph.jobs)
    assert all(row["seconds_left"] == row["bytes_left"] == 0 for row in found["rows"].values())
    assert "Everything is done." in text(found)


# How many operations.


def config(method: dict, architecture: str = "mlp", **network) -> RunConfig:
    schedule = {"schedule": EdmSchedule()} if method["objective"] == "denoising" else {}
    return RunConfig(
        dataset="d",
        method_name="m",
        seed=0,
        process=NoiseProcess(),
        network=NetworkConfig(architecture=architecture, channels=8, blocks=1, **network),
        training=TrainingConfig(steps=1000, batch=4, learning_rate=1e-3, snapshot_every=10, **schedule),
        method=MethodConfig(**method),
    )


CONSISTENCY = {"objective": "consistency"}
GC = CONSISTENCY | {"coupling": "gc", "predictor": "ema"}


@pytest.mark.parametrize(
    ("method", "passes"),
    [
        (CONSISTENCY, 4),
        (CONSISTENCY | {"coupling": "ot"}, 4),
        (GC | {"mu": 0.5}, 4.5),
        (GC | {"mu": (0.0, 1.0), "predictor": "online"}, 4.5),
        (GC | {"mu": 1.0, "mu_from_step": 750}, 4.25),
        ({"objective": "distillation", "teacher": "exact"}, 4),
        ({"objective": "distillation", "teacher": RunReference("denoiser")}, 5),
        ({"objective": "denoising"}, 3),
        ({"objective": "denoising", "coupling": "gc", "mu": 0.5, "predictor": RunReference("ic")}, 3.5),
    ],
)
def test_a_step_costs_the_passes_of_student_teacher_and_predictor_on_average(method, passes):
    assert passes_per_sample(config(method)) == pytest.approx(passes, abs=0.005)


def test_the_operations_of_a_pass_are_those_of_its_layers():
    products = [(64, 8), (8, 8), (6, 8), (8, 8), (8, 16), (8, 8), (8, 6)]
    assert pass_operations(config(CONSISTENCY), (6,)) == 2 * sum(a * b for a, b in products)


def test_the_network_of_the_paper_costs_what_its_convolutions_do():
    paper = config(CONSISTENCY, "ddpm++", multipliers=(1, 2, 2))
    small = pass_operations(paper, (3, 32, 32))
    assert small == pass_operations(config(CONSISTENCY, "ddpm++", multipliers=(1, 2, 2), dropout=0.3), (3, 32, 32))
    # Convolutions dominate, and their cost is proportional to the number of pixels.
    assert 3.9 < pass_operations(paper, (3, 64, 64)) / small < 4.1


def test_the_operations_of_jobs_are_their_passes(tmp_path):
    document = tiny_params()
    document["datasets"]["digits"]["evaluation"]["weights"] = ["ema"]
    params = Params(write_project(tmp_path, document) / "params.yaml")
    counts, graph = Counts(params), Graph(params, "embedded")
    one = pass_operations(params.run_config("digits/ic/0"), (1, 8, 8))
    # 40 steps of 16 images in 4 passes.
    assert counts.work(graph.jobs["train@digits-ic-1"]).training == 40 * 16 * 4 * one
    # 64 samples: of a snapshot in one step; of the last with two seeds, in one step and in two.
    work = counts.work(graph.jobs["evaluate@digits-ic-0"])
    assert (work.sampling, work.features) == (64 * (1 + 2 * 1 + 2 * 2) * one, {"classifier": 64 * 5})
    # A denoiser's end alone, in five passes.
    assert counts.work(graph.jobs["evaluate@digits-denoiser-0"]).sampling == 64 * 2 * 5 * one
    assert counts.work(graph.jobs["transport-digits"]).sampling == 64 * 2 * one
    assert counts.work(graph.jobs["discrepancy@digits-denoiser-0"]).sampling == 64 * 2 * one
    assert counts.work(graph.jobs["reference-digits-classifier"]).features == {"classifier": 1797}
    assert counts.work(graph.jobs["table-digits-table1"]).operations == 0


@pytest.mark.slow
def test_the_paper_is_counted_without_any_measurement(shipped):
    found = plan(shipped.params, "all", "paper", gpus=8, tflops=100)
    rows = found["rows"]
    assert rows["total"]["jobs"] == len(list(Stages(shipped.params, "paper")))
    assert {"table1", "figure5", "cifar10", "church64"} <= set(rows)
    assert all(row["seconds"] == pytest.approx(row["operations"] / 1e14) for row in rows.values())
    job = found["jobs"]["train@cifar10-ic-0"]
    training = shipped.params.run_config("cifar10/ic/0").training
    assert job["operations"] == training.steps * training.batch * 4 * 16_735_141_888
    # Classifiers and the like are small; Inception is not.
    held = found["jobs"]["reference-cifar10-clean"]
    assert held["operations"] % INCEPTION_OPERATIONS == 0 < held["operations"]
    shown = text(found)
    assert "unknown" not in shown
    assert "GPU time" in shown
    assert f"On 8 GPUs: at least {duration(rows['total']['seconds'] / 8)}" in shown


# How long.


def measured(root, dataset="digits", gpu=None, features=None):
    """Writes a bench.json: the first method trains at 10^6 operations per second, the second at half of that."""
    found = {
        "machine": {"gpu": gpu, "cpu": "a CPU"},
        "training": {"precision": "float32"},
        "train": {
            "operations_per_pass": 1000,
            "peak_operations_per_second": 2e6,
            "methods": {"ic": {"share_of_peak": 0.5}, "gc": {"share_of_peak": 0.25}},
        },
        "sampling_images_per_second": {"consistency-2": 50.0, "consistency-1": 1.0},
        "evaluation_images_per_second": features or {},
    }
    path = root / "results" / dataset / "bench.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found))
    return root


def test_times_are_operations_over_what_was_measured(tmp_path):
    root = measured(write_project(tmp_path), features={"classifier": 8.0})
    counts = Counts(Params(root / "params.yaml"))
    graph = Graph(counts.params, "embedded")
    found, shown = planned(root, "digits")
    seconds = {name: job["seconds"] for name, job in found["jobs"].items()}
    work = {name: counts.work(graph.jobs[name]) for name in seconds}
    for method, rate in {"ic": 1e6, "gc": 5e5, "cd": 1e6, "gc-frozen": 1e6}.items():
        name = f"train@digits-{method}-0"
        assert seconds[name] == pytest.approx(work[name].training / rate)
    # Two passes of 1000 operations, 50 times a second.
    name = "evaluate@digits-gc-0"
    assert seconds[name] == pytest.approx(work[name].sampling / 1e5 + work[name].features["classifier"] / 8)
    assert seconds["prepare-digits"] == seconds["table-digits-table1"] == 0
    assert found["rows"]["digits"]["seconds"] == pytest.approx(sum(seconds.values()))
    assert "CPU time" in shown
    assert "Speed of digits: 1\u00a0MFLOP/s in training, 100\u00a0kFLOP/s in sampling, float32 on a CPU" in shown
    _, shown = planned(measured(root, gpu="a GPU"), "digits")
    assert "GPU time" in shown
    assert f"on a GPU ({root}/results/digits/bench.json)" in shown


def test_features_that_were_not_timed_cost_inceptions_operations_and_else_nothing(tmp_path):
    document = tiny_params()
    document["datasets"]["digits"]["features"] = {
        "kind": "inception",
        "protocols": {"clean": {}, "few": {"reference_images": 100}},
    }
    root = measured(write_project(tmp_path, document), features={"clean": 10.0})
    jobs = plan(Params(root / "params.yaml"), "digits", "embedded")["jobs"]
    assert jobs["reference-digits-clean"]["seconds"] == pytest.approx(1797 / 10)
    assert jobs["reference-digits-few"]["seconds"] == pytest.approx(100 * INCEPTION_OPERATIONS / 1e5)
    document["datasets"]["digits"]["features"] = {"kind": "dinov2", "protocols": {"few": {"reference_images": 100}}}
    root = measured(write_project(tmp_path / "dinov2", document))
    params = Params(root / "params.yaml")
    # Of a token in a block 12 F^2 products and sums, and 2 F with each other token; the patches' 588 values times F.
    tokens, width, blocks = 257, 1024, 24
    each = blocks * tokens * (24 * width**2 + 4 * tokens * width) + 2 * 256 * 588 * width
    job = plan(params, "digits", "embedded")["jobs"]["reference-digits-few"]
    assert job["seconds"] == pytest.approx(100 * each / 1e5)
    assert job["bytes"] == width * (8 * width + 4 * 100)
    other = measured(write_project(tmp_path / "other"))
    jobs = plan(Params(other / "params.yaml"), "digits", "embedded")["jobs"]
    assert jobs["reference-digits-classifier"]["seconds"] == 0


def test_what_was_not_measured_is_unknown_with_the_command_that_tells(tmp_path):
    root = measured(write_project(tmp_path))
    found, shown = planned(root)
    rows = found["rows"]
    assert rows["digits"]["seconds"] > 0
    assert rows["mixture2d"]["seconds"] is rows["total"]["seconds"] is found["longest_chain_seconds"] is None
    lines = shown.splitlines()
    assert "  gcflow bench mixture2d" in lines
    assert "  gcflow bench digits" not in lines
    assert "unknown" in next(line for line in lines if line.startswith("total "))
    result = gcflow(root, "plan", "--tflops", "0.001", "--gpus", "4", "--json", "plan.json")
    found = json.loads((root / "plan.json").read_text())
    assert found["rows"]["total"]["seconds"] == pytest.approx(found["rows"]["total"]["operations"] / 1e9)
    assert result.stdout == f"{text(found)}\n"
    assert "On 4 GPUs" in result.stdout
    assert "unknown" not in result.stdout
    assert "gcflow bench" not in result.stdout


def test_several_gpus_share_the_work_but_no_chain_of_jobs(tmp_path):
    root = measured(write_project(tmp_path), gpu="a GPU")
    found, shown = planned(root, "digits", gpus=1000)
    jobs = {name: job["seconds"] for name, job in found["jobs"].items()}
    chain = sum(jobs[f"{kind}@digits-{run}"] for kind, run in (("train", "ic-0"), ("train", "gc-frozen-0")))
    assert found["longest_chain_seconds"] == pytest.approx(chain + jobs["evaluate@digits-gc-frozen-0"])
    assert f"On 1000 GPUs: at least {duration(found['longest_chain_seconds'])};" in shown
    found, shown = planned(root, "digits", gpus=2)
    assert f"On 2 GPUs: at least {duration(found['rows']['total']['seconds'] / 2)};" in shown


def test_a_file_that_is_no_measurement_is_refused(tmp_path):
    path = measured(write_project(tmp_path)) / "results" / "digits" / "bench.json"
    found = json.loads(path.read_text())
    del found["train"]["methods"]
    path.write_text(json.dumps(found))
    result = gcflow(tmp_path, "plan", check=False)
    assert result.returncode == 2
    assert error_line(result.stderr).endswith("run gcflow bench digits again")


@pytest.mark.parametrize(
    "path", sorted((SHIPPED.parent / "benchmarks").glob("*-cpu*.json")), ids=lambda path: path.stem
)
def test_the_measurements_of_the_repository_can_be_planned_with(path):
    document, speed = json.loads(path.read_text()), Speed.measured(path)
    for method, row in document["train"]["methods"].items():
        operations = row["passes_per_image"] * document["train"]["operations_per_pass"]
        assert speed.training[method] == pytest.approx(row["images_per_second"] * operations)


# How much disk.


def numbers(path):
    """Bytes of a safetensors file's numbers, without its header and its log."""
    with safe_open(path, "pt") as file:
        return sum(file.get_tensor(name).nbytes for name in set(file.keys()) - {LOG})


def test_the_bytes_of_a_run_are_those_that_it_writes(trained):
    params = Params(trained / "params.yaml")
    counts, graph = Counts(params), Graph(params, "embedded")
    for run in ("digits/denoiser/0", "digits/cd/0"):
        folder = run_folder(trained, run)
        written = [*(folder / "snapshots").iterdir(), *folder.glob("state/*/*-*.safetensors")]
        assert len(written) == 4
        # Checkpoints count steps, too.
        assert counts.disk(graph.jobs[f"train@{run.replace('/', '-')}"]) == pytest.approx(
            sum(map(numbers, written)), abs=1000
        )
        # The final weights and the snapshots beside the checkpoints are no further bytes.
        assert (folder / "weights.safetensors").stat().st_nlink > 1


@pytest.mark.parametrize("name", get_args(get_type_hints(TrainingConfig)["optimizer"]))
def test_every_optimizer_keeps_the_numbers_that_are_counted(name):
    parameter = torch.nn.Parameter(torch.zeros(1000))
    made = make_optimizer([parameter], TrainingConfig(1, 1, 1.0, 1, optimizer=name))
    parameter.grad = torch.ones(1000)
    made.step()
    kept = sum(tensor.numel() for tensor in made.state_dict()["state"][0].values())
    assert round(kept / 1000) == MOMENTS[name]


def test_the_bytes_of_data_are_known_before_they_are_written(tmp_path):
    params = Params(write_project(tmp_path) / "params.yaml")
    graph = Graph(params, "embedded")
    before = {name: Counts(params).disk(graph.jobs[f"prepare-{name}"]) for name in ("digits", "mixture2d")}
    prepare_data(tmp_path, *before)
    for name, counted in before.items():
        assert counted == pytest.approx((tmp_path / "data" / name / "samples.npy").stat().st_size, abs=200)


@pytest.mark.slow
def test_references_in_inceptions_features_are_statistics_and_a_pool(tmp_path):
    document = tiny_params()
    document["datasets"]["digits"]["features"] = {"kind": "surrogate", "protocols": {"few": {"reference_images": 100}}}
    params = Params(prepare_data(write_project(tmp_path, document), "digits") / "params.yaml")
    make_features(params, "digits", Path("archives"), False)
    compute_reference(params, "digits", "few")
    (written,) = (tmp_path / "results" / "digits" / "features").glob("reference-*.safetensors")
    job = Graph(params, "embedded").jobs["reference-digits-few"]
    assert Counts(params).disk(job) == pytest.approx(numbers(written), rel=0.001)


def test_what_does_not_fit_and_what_is_not_known_are_said(tmp_path):
    document = tiny_params()
    document["datasets"]["digits"]["data"] = {"source": "folder", "path": "photographs", "size": 8}
    found = plan(Params(write_project(tmp_path, document) / "params.yaml"), "all", "embedded")
    assert "How many images digits has is not known" in text(found)
    assert found["unprepared"] == ["digits"]
    assert found["jobs"]["prepare-digits"]["bytes"] == 0
    assert "DOES NOT FIT" not in text(found)
    assert "DOES NOT FIT" in text(found | {"free_bytes": 1000})
