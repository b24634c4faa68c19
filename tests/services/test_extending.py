"""A project with a coupling, an objective, a schedule, a data set, a network and a metric of its own: of examples/."""

import json
import math
import re
import shutil
import signal
from dataclasses import replace
from itertools import permutations

import pytest
import torch
import yaml
from builders import Loss, gaussian, randomised, run_config
from projects import (
    Fork,
    checkpoints,
    error_line,
    gcflow,
    metrics,
    run_folder,
    tiny_params,
    wait_until,
    weights,
    write_project,
)
from pydantic import ValidationError
from scipy import stats
from workflows import ROOT, clone, duplicate, dvc, dvc_stages, snakemake

from gcflow import register
from gcflow.batches import Batches, draw_levels
from gcflow.config import (
    IctSchedule,
    MethodConfig,
    NetworkConfig,
    NoiseProcess,
    RunConfig,
    from_dict,
    to_dict,
)
from gcflow.couplings import optimal_assignment
from gcflow.distributed import World
from gcflow.errors import GcflowError
from gcflow.extensions import load_extensions
from gcflow.objectives import Batch
from gcflow.options import mistakes
from gcflow.pipeline.features import further_values
from gcflow.pipeline.params import Params
from gcflow.pipeline.stages import Stages
from gcflow.preparation import prepare
from gcflow.randomness import coupling_uniforms
from gcflow.training import Helpers, initial_state, make_loss
from gcflow.weights import load_model, spec_of

FILES = ("sinkhorn.py", "continuous.py", "rings.py", "convolutional.py", "coverage.py")
RUNS = {f"rings/{name}" for name in ("ic/0", "ic/1", "sinkhorn/0", "sinkhorn/1", "sinkhorn-conv/0")}
CONTINUOUS = "digits/continuous/0"
OF_SINKHORN = {"rings/sinkhorn/0", "rings/sinkhorn/1", "rings/sinkhorn-conv/0"}
CPU = torch.device("cpu")


def tiny_example():
    """examples/params.yaml, shortened, without runs and figures that have nothing of its own."""
    document = yaml.safe_load((ROOT / "examples" / "params.yaml").read_text())
    rings, digits = document["datasets"]["rings"], document["datasets"]["digits"]
    rings["data"]["count"] = 200
    del rings["runs"]["ot"], rings["figures"]["samples"], digits["runs"]["ic"], digits["tables"]
    rings["tables"]["couplings"]["methods"].remove("ot")
    rings["figures"]["convergence"]["methods"].remove("ot")
    for entry in document["datasets"].values():
        entry["training"] |= {"steps": 40, "batch": 16, "grain": 8, "snapshot_every": 20}
        entry["network"] |= {"channels": 16, "blocks": 1}
        entry["cadence"] = {"log_every": 10, "checkpoint_every": 5}
        entry["features"] |= {"epochs": 1, "minimum_accuracy": 0.0}
        entry["evaluation"] |= {"samples": 40}
    return document | {"claims": yaml.safe_load((ROOT / "examples" / "claims.yaml").read_text())}


@pytest.fixture
def folder(tmp_path):
    """A project of the examples, with nothing made."""
    project = write_project(tmp_path / "project", tiny_example())
    for file in FILES:
        shutil.copy(ROOT / "examples" / file, project)
    return project


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A clone that has made and recorded everything; to be read only."""
    document = tiny_example()
    document["extensions"] = [f"examples/{file}" for file in FILES]
    base = tmp_path_factory.mktemp("extending") / "project"
    clone(base, document)
    snakemake(base, "all")
    gcflow(base, "record")
    return base


@pytest.fixture
def examples():
    load_extensions(ROOT / "examples", FILES)


# The whole workflow.


def test_the_metrics_numbers_are_in_records_and_tables_with_their_protocol(project):
    table = (project / "results/rings/tables/couplings.csv").read_text().splitlines()
    assert table[0].endswith("precision ↑,recall ↑,density ↑,coverage ↑,protocol")
    assert len(table) == 4
    records = json.loads((project / "results/rings/sinkhorn/seed0/evaluation/metrics.json").read_text())
    assert {record["metric"] for record in records} > {"precision", "recall", "density", "coverage", "classifier-fd"}
    (code,) = {json.dumps(record["metrics"]) for record in records}
    assert re.search(r'"neighbours": 5.*"examples/coverage.py": "[0-9a-f]{64}"', code)
    final = [r["value"] for r in records if (r["metric"], r["step"], r["network_evaluations"]) == ("coverage", 40, 1)]
    row = next(line for line in table if "convolutions" not in line and "Sinkhorn" in line)
    assert len(final) == 2
    assert all(0 <= value <= 1 for value in final)
    assert re.search(r",\d\.\d\d ± \d\.\d\d \(\d\.\d\d\),classifier$", row)


def test_claims_and_figures_are_made_of_the_projects_own_coupling(project):
    (tested,) = json.loads((project / "results/claims.json").read_text())["records"]
    assert (tested["name"], tested["test"]["lower"]) == ("sinkhorn-beats-ic", "sinkhorn")
    assert (project / "results/rings/figures/convergence.svg").exists()


def test_both_graphs_have_the_files_and_nothing_is_left_to_do(project):
    stages = dvc_stages(project)
    using = {file: {name for name, (_, deps, *_) in stages.items() if f"examples/{file}" in deps} for file in FILES}
    evaluations = {f"evaluate@{run.replace('/', '-')}" for run in RUNS}
    assert using == {
        "rings.py": {"prepare-rings"},
        "continuous.py": {"train@digits-continuous-0"},
        "sinkhorn.py": {f"train@{run.replace('/', '-')}" for run in OF_SINKHORN},
        "convolutional.py": {"train@rings-sinkhorn-conv-0", "evaluate@rings-sinkhorn-conv-0"},
        "coverage.py": evaluations,
    }
    assert "Nothing to be done" in snakemake(project, "-n", "all")
    assert dvc(project, "status").strip() == "Data and pipelines are up to date."


def test_the_hash_of_each_file_is_part_of_the_runs_identity(project):
    inputs = {run: json.loads((run_folder(project, run) / "config.json").read_text())["inputs"] for run in RUNS}
    assert {run for run in RUNS if "examples/sinkhorn.py" in inputs[run]} == OF_SINKHORN
    assert {run for run in RUNS if "examples/convolutional.py" in inputs[run]} == {"rings/sinkhorn-conv/0"}
    assert not any("examples/rings.py" in found for found in inputs.values())
    (own,) = json.loads((run_folder(project, CONTINUOUS) / "config.json").read_text())["inputs"].keys() - {
        "data_sha256"
    }
    assert own == "examples/continuous.py"


@pytest.mark.parametrize(
    ("files", "prepared", "trained", "evaluated"),
    [
        (("rings.py",), {"rings"}, RUNS, RUNS),
        (("sinkhorn.py",), set(), OF_SINKHORN, OF_SINKHORN),
        # The metric's own makes evaluations of rings out of date, and no training.
        (("continuous.py", "coverage.py"), set(), {CONTINUOUS}, {CONTINUOUS, *RUNS}),
    ],
)
def test_an_edit_of_a_file_makes_exactly_what_uses_it_out_of_date_in_both_graphs(
    project, tmp_path, files, prepared, trained, evaluated
):
    folder = duplicate(project, tmp_path / "project")
    for file in files:
        edit(folder, file)
    plan = snakemake(folder, "-n", "-p", "--quiet", "host", "--", "all")
    planned = {verb: set(re.findall(rf"gcflow {verb} (\S+)", plan)) for verb in ("prepare", "train", "evaluate")}
    assert planned == {"prepare": prepared, "train": trained, "evaluate": evaluated}
    paths = {f"examples/{file}" for file in files}
    using = {stage.name for stage in Stages(Params(folder / "params.yaml")) if paths & set(stage.deps)}
    assert set(json.loads(dvc(folder, "status", "--json"))) == using


def edit(folder, file):
    with (folder / "examples" / file).open("a") as source:
        source.write("\n# Another version.\n")


def test_weights_of_another_version_of_their_network_are_refused_until_they_are_trained_again(project, tmp_path):
    folder = duplicate(project, tmp_path / "project")
    edit(folder, "convolutional.py")
    line = error_line(gcflow(folder, "evaluate", "rings/sinkhorn-conv/0", check=False).stderr)
    assert "weights of another version of examples/convolutional.py; run gcflow train rings/sinkhorn-conv/0" in line


def test_samples_of_the_projects_own_network_need_its_file(project, tmp_path):
    weights = run_folder(project, "rings/sinkhorn-conv/0") / "weights.safetensors"
    gcflow(project, "sample", weights, "--count", 4, "--out", tmp_path / "here.npy")
    line = error_line(gcflow(tmp_path, "sample", weights, "--out", "there.npy", check=False).stderr)
    assert "architecture is 'convolutional', expected 'ddpm++', 'ncsn++', 'mlp'; list its file under extensions" in line
    assert not (tmp_path / "there.npy").exists()


# Training.


@pytest.mark.parametrize("run", ["rings/sinkhorn-conv/0", CONTINUOUS])
def test_a_killed_run_with_all_of_them_ends_in_the_bits_of_an_undisturbed_one(project, tmp_path, run):
    folder = duplicate(project, tmp_path / "project")
    shutil.rmtree(run_folder(folder, run))
    fork = Fork(folder, "train", run)
    wait_until(lambda: checkpoints(folder, run) or fork.exitcode is not None)
    fork.send(signal.SIGKILL)
    fork.wait()
    gcflow(folder, "train", run)
    assert weights(folder, run) == weights(project, run)
    assert metrics(folder, run) == metrics(project, run)


def test_two_processes_end_with_the_bits_of_one(project, tmp_path):
    run, folder = "rings/sinkhorn-conv/0", duplicate(project, tmp_path / "project")
    shutil.rmtree(run_folder(folder, run))
    gcflow(folder, "train", run, "--processes", "2")
    assert json.loads((run_folder(folder, run) / "jobs.json").read_text())[-1]["processes"] == 2
    assert weights(folder, run) == weights(project, run)
    assert metrics(folder, run) == metrics(project, run)


def test_a_coupling_draws_by_seed_step_and_place_in_the_global_batch_alone(folder):
    params = Params(folder / "params.yaml")
    config = params.run_config("rings/sinkhorn/0")
    x = torch.from_numpy(params.dataset("rings").data.load().samples)
    seen = []

    class Watching(type(config.method.coupling)):
        def assignment(self, x, z, uniform):
            seen.append((len(x), uniform))
            return super().assignment(x, z, uniform)

    config.method.__dict__["coupling"] = Watching(epsilon=0.02)
    for rank in (0, 1):
        with Batches(config, x, CPU, World(rank, 2)) as batches:
            _ = batches[39]
    expected = coupling_uniforms(config.seed, 39, 16)
    assert [length for length, _ in seen] == [16, 16]
    assert all(torch.equal(uniform, expected) for _, uniform in seen)
    assert not torch.equal(expected, coupling_uniforms(config.seed, 38, 16))
    assert not torch.equal(expected, coupling_uniforms(config.seed + 1, 39, 16))


# What is refused.


def edited(folder, old, new):
    path = folder / "params.yaml"
    text = yaml.safe_dump(yaml.safe_load(path.read_text()), sort_keys=False, default_flow_style=True, width=10000)
    assert old in text
    path.write_text(text.replace(old, new))


def refusal(folder):
    with pytest.raises(GcflowError) as caught:
        Params(folder / "params.yaml")
    return str(caught.value).splitlines()[0].replace(f"{folder}/", "")


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            "kind: sinkhorn,",
            "kind: sinkhorm,",
            "methods.sinkhorn.coupling.kind is 'sinkhorm', expected 'ic', 'ot', 'gc', ",
        ),
        ("coupling: ot", "coupling: oot", "methods.ot.coupling is 'oot', expected 'ic', 'ot', 'gc', 'sinkhorn'"),
        ("epsilon: 0.02", "epsilon: -1.0", "methods.sinkhorn.coupling.epsilon is -1.0, expected a number > 0"),
        ("epsilon: 0.02", "epsilon: few", "methods.sinkhorn.coupling.epsilon is 'few', expected a valid number"),
        ("epsilon: 0.02", "epsilon: 0.02, eps: 1", "methods.sinkhorn.coupling.eps is not a known key"),
        (
            "{kind: sinkhorn, epsilon: 0.02}",
            "sinkhorn",
            "methods.sinkhorn.coupling is 'sinkhorn', expected {kind: sink",
        ),
        ("{kind: sinkhorn, epsilon: 0.02}", "{epsilon: 0.02}", "methods.sinkhorn.coupling.kind is missing"),
        ("neighbours: 5", "neighbours: 0", "evaluation.metrics.1.neighbours is 0, expected a number >= 1"),
        ("kind: density-coverage", "kind: dc", "evaluation.metrics.1.kind is 'dc', expected 'precision-recall', 'de"),
        (
            "architecture: convolutional",
            "architecture: conv",
            "methods.sinkhorn-conv.network.architecture is 'conv', ex",
        ),
        ("channels: 16, layers: 3", "width: 16", "methods.sinkhorn-conv.network.channels is missing"),
        ("source: rings", "source: ring", "data.source is 'ring', expected 'digits'"),
        ("count: 200", "count: many", "data.count is 'many', expected a valid integer"),
    ],
)
def test_a_wrong_name_or_option_is_refused_by_key_with_the_known_ones(folder, old, new, expected):
    edited(folder, old, new)
    assert refusal(folder).startswith(f"params.yaml: datasets.rings.{expected}")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("x = 1\n\nx / 0\n", "sinkhorn.py:3: ZeroDivisionError: division by zero; params.yaml: extensions lists it"),
        ("def f(:\n", "sinkhorn.py:1: SyntaxError: invalid syntax; params.yaml: extensions lists it"),
        ("import a_neighbour\n", "sinkhorn.py:1: ModuleNotFoundError: No module named 'a_neighbour'"),
        ("raise SystemExit(1)\n", "sinkhorn.py:1: SystemExit: 1"),
        ("x = 1\n", "sinkhorn.py: registers nothing, though params.yaml: extensions lists it"),
        (None, "params.yaml: extensions lists 'sinkhorn.py', which cannot be read (No such file or directory)"),
    ],
)
def test_a_file_that_fails_is_refused_by_file_and_line(folder, content, expected):
    path = folder / "sinkhorn.py"
    (folder / "a_neighbour.py").touch()
    path.unlink() if content is None else path.write_text(content)
    assert refusal(folder).startswith(expected)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("(Coupling)", "(register.Options)", "TypeError: Sinkhorn does not derive from Coupling"),
        ('Literal["sinkhorn"] = "sinkhorn"', 'Literal["ot"] = "ot"', "ValueError: there is a coupling 'ot' already"),
        ('Literal["sinkhorn"] =', "str =", "TypeError: Sinkhorn has no name; give it a field kind"),
    ],
)
def test_a_class_that_cannot_be_registered_is_refused(folder, old, new, expected):
    text = (folder / "sinkhorn.py").read_text()
    assert old in text
    (folder / "sinkhorn.py").write_text(text.replace(old, new))
    assert re.match(rf"sinkhorn\.py:\d+: {re.escape(expected)}", refusal(folder))


@pytest.mark.parametrize("file", ["../sinkhorn.py", "./sinkhorn.py", "/tmp/sinkhorn.py"])
def test_a_file_elsewhere_is_refused(folder, file):
    edited(folder, "[sinkhorn.py", f"[{file}")
    assert refusal(folder).startswith(f"params.yaml: extensions lists {file!r}, expected a path below its folder")


def test_snakemake_refuses_before_anything_runs(project, tmp_path):
    folder = duplicate(project, tmp_path / "project")
    (folder / "examples" / "rings.py").write_text("1 / 0\n")
    output = snakemake(folder, "-n", "all", check=False)
    assert "examples/rings.py:1: ZeroDivisionError: division by zero; params.yaml: extensions lists it" in output
    assert "Traceback" not in output


def test_a_metric_that_gives_other_numbers_than_its_columns_is_refused(examples, monkeypatch):
    metric = register.metric.named("precision-recall")()
    monkeypatch.setattr(type(metric), "compare", lambda self, generated, real: {"precision": 1.0})
    with pytest.raises(GcflowError, match="precision-recall gives precision, but its columns are precision, recall"):
        further_values((metric,), torch.zeros(4, 2), torch.zeros(4, 2))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_metric_that_gives_no_number_is_refused(examples, monkeypatch, value):
    metric = register.metric.of({"kind": "precision-recall", "neighbours": 1})
    monkeypatch.setattr(type(metric), "compare", lambda *_: {"precision": 1.0, "recall": value})
    with pytest.raises(GcflowError, match=f"metric precision-recall gives {value} for recall, not a number"):
        further_values((metric,), torch.zeros(2, 2), torch.zeros(2, 2))


@pytest.mark.parametrize(
    ("gives", "expected"),
    [
        (lambda x: torch.full((len(x),), -1), "gives noises -1 to -1; expected 0 to 15"),
        (lambda x: torch.arange(len(x)) + 1, "gives noises 1 to 16; expected 0 to 15"),
        (lambda x: torch.zeros(len(x)), "gives float32 [16] on cpu; expected int64 [16] on the CPU"),
        (lambda x: torch.zeros(3, dtype=torch.int64), "gives int64 [3] on cpu; expected int64 [16] on the CPU"),
        (lambda x: None, "gives NoneType; expected int64 [16] on the CPU"),
    ],
)
def test_an_assignment_that_is_not_one_is_refused(folder, gives, expected):
    params = Params(folder / "params.yaml")
    config = params.run_config("rings/sinkhorn/0")
    x = torch.from_numpy(params.dataset("rings").data.load().samples)

    class Wrong(type(config.method.coupling)):
        def assignment(self, x, z, uniform):
            return gives(x)

    config.method.__dict__["coupling"] = Wrong(epsilon=0.02)
    with Batches(config, x, CPU, World(0, 1)) as batches, pytest.raises(GcflowError) as caught:
        _ = batches[0]
    assert str(caught.value) == f"coupling sinkhorn: assignment {expected}"


@pytest.mark.parametrize(
    ("gives", "found"),
    [
        (lambda x: x[:1], "float32 [1, 2] on cpu"),
        (lambda x: x.double(), "float64 [16, 2] on cpu"),
        (lambda x: [x], "list"),
    ],
)
def test_endpoints_that_are_not_like_the_data_are_refused(folder, gives, found):
    config = Params(folder / "params.yaml").run_config("rings/sinkhorn/0")

    class Wrong(type(config.method.coupling)):
        def endpoints(self, x, z, context):
            return gives(x)

    config.method.__dict__["coupling"] = Wrong(epsilon=0.02)
    x, levels = gaussian(0, 16, 2), torch.ones(16)
    batch = Batch(x, x, levels, 2 * levels, levels.bool(), levels.int(), levels.int(), torch.arange(16))
    with pytest.raises(GcflowError) as caught:
        Loss(config, lambda x, sigma, keys: x, lambda x, sigma: x)(batch)
    assert str(caught.value) == f"coupling sinkhorn: endpoints gives {found}; expected float32 [16, 2] on cpu"


def test_a_network_that_changes_the_shape_ends_training_in_one_line(folder):
    path = folder / "convolutional.py"
    text = path.read_text()
    assert text.count("self.last(silu(h))") == 1
    path.write_text(text.replace("self.last(silu(h))", "self.last(silu(h))[:, :, :1]"))
    gcflow(folder, "prepare", "rings")
    result = gcflow(folder, "train", "rings/sinkhorn-conv/0", check=False)
    assert result.returncode == 2
    expected = "the network gives [8, 1, 1, 8] for samples [8, 1, 8, 8]; they must agree"
    assert error_line(result.stderr) == expected
    assert not list(folder.rglob("*.safetensors"))


def test_columns_that_are_taken_are_refused(folder):
    text = (folder / "coverage.py").read_text()
    (folder / "coverage.py").write_text(text.replace('"coverage":', '"classifier-fd":'))
    assert refusal(folder).startswith("params.yaml: datasets.rings.evaluation.metrics gives 'classifier-fd'")


def test_a_project_knows_nothing_of_the_one_read_before(folder, tmp_path):
    config = Params(folder / "params.yaml").run_config("rings/sinkhorn-conv/0")
    assert from_dict(RunConfig, to_dict(config)) == config
    document = tiny_params()
    document["datasets"]["digits"]["methods"]["ic"]["coupling"] = "sinkhorn"
    with pytest.raises(GcflowError, match="coupling is 'sinkhorn', expected 'ic', 'ot', 'gc'"):
        Params(write_project(tmp_path / "other", document) / "params.yaml")
    again = Params(folder / "params.yaml").run_config("rings/sinkhorn-conv/0")
    assert again == config


# The science of the examples.


def toy(objective, schedule, **method):
    """A run of points in the plane."""
    how = MethodConfig(objective=objective, **method)
    return run_config(how, schedule, NoiseProcess(sigma_data=1.0), NetworkConfig("mlp", 16, 2), steps=10, batch=30)


def own_schedule(low=0.05, high=20.0):
    return register.schedule.named("log-uniform")(low=low, high=high)


def test_continuous_time_is_the_limit_of_pairs_that_close_in(examples):
    config = toy(register.objective.named("continuous")(c=0.0), own_schedule())
    model = randomised(spec_of(config, (2,)).build(3))
    model.double()
    x, z = gaussian(1, 30, 2).double(), gaussian(2, 30, 2).double()
    sigma = draw_levels(config, 4)[0].double()
    keys, gap = torch.zeros(30).int(), 1e-5
    batch = Batch(x, z, sigma, sigma, keys.bool(), keys, keys, torch.arange(0))
    Loss(config, model, None)(batch).backward()
    ours = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    # The L2 norm of a pair without its weight, whose gradient is that of f along the direction of the difference.
    pair = batch._replace(low=sigma * (1 - gap))
    loss = Loss(toy("consistency", IctSchedule()), model, None)
    loss.context = replace(loss.context, distance=lambda y, x: (x - y).norm(dim=1) * (pair.high - pair.low))
    loss(pair).backward()
    for own, parameter in zip(ours, model.parameters(), strict=True):
        torch.testing.assert_close(own, parameter.grad, rtol=1e-3, atol=1e-6)
    assert any(own.abs().max() > 1e-3 for own in ours)


def test_the_own_schedule_draws_single_levels_of_uniform_logarithm(examples):
    config = toy("denoising", own_schedule())
    config = replace(config, training=replace(config.training, batch=5000))
    low, high, _ = draw_levels(config, 7)
    assert torch.equal(low, high)
    shares = (high / 0.05).log() / math.log(20.0 / 0.05)
    assert stats.kstest(shares.numpy(), "uniform").pvalue > 1e-3


@pytest.mark.parametrize(
    ("objective", "schedule", "expected"),
    [
        ("continuous", IctSchedule(), "'ict', expected edm or log-uniform, because objective is continuous"),
        ("consistency", None, "'log-uniform', expected ict or ect, because objective is consistency"),
    ],
)
def test_an_objective_and_a_schedule_that_do_not_fit_are_refused(examples, objective, schedule, expected):
    with pytest.raises(ValidationError) as caught:
        toy(objective, schedule or own_schedule())
    assert mistakes(caught.value) == [f"training.schedule.kind is {expected}"]


@pytest.mark.parametrize(
    ("gives", "found"),
    [(lambda x: x, "float32 [16, 2] on cpu"), (lambda x: 0.5, "float"), (lambda x: None, "NoneType")],
)
def test_an_objective_that_gives_no_scalar_is_refused(examples, monkeypatch, gives, found):
    config = toy("continuous", own_schedule())
    monkeypatch.setattr(type(config.method.objective), "mean_loss", lambda self, batch, context: gives(batch.data))
    x, zeros = gaussian(0, 16, 2), torch.zeros(16)
    loss = make_loss(config, initial_state(config, (2,)), Helpers())
    with pytest.raises(GcflowError) as caught:
        loss(Batch(x, x, zeros, zeros, zeros.bool(), zeros.int(), zeros.int(), torch.arange(0)))
    assert str(caught.value) == f"objective continuous: mean_loss gives {found}; expected a scalar"


def test_a_mistyped_objective_is_refused_with_the_known_ones(examples):
    known = "'consistency', 'distillation', 'denoising', 'continuous'"
    with pytest.raises(ValidationError) as caught:
        MethodConfig(objective="consistancy")
    assert mistakes(caught.value) == [f"objective is 'consistancy', expected {known}; did you mean 'consistency'?"]


def test_a_schedule_that_gives_no_levels_is_refused(examples, monkeypatch):
    config = toy("continuous", own_schedule())
    monkeypatch.setattr(type(config.training.schedule), "levels", lambda self, *given: (given[3][:5], given[4]))
    with pytest.raises(GcflowError) as caught:
        draw_levels(config, 0)
    expected = "levels gives float32 [5] on cpu; expected float32 [30] on the CPU"
    assert str(caught.value) == f"schedule log-uniform: {expected}"


@pytest.mark.parametrize("epsilon", [0.05, 0.5])
def test_the_plan_of_sinkhorn_has_the_right_marginals(examples, epsilon):
    x, z = gaussian(0, 24, 3), gaussian(1, 24, 3)
    plan = register.coupling.named("sinkhorn")(epsilon=epsilon, iterations=5000).plan(x, z)
    assert torch.allclose(plan.sum(1), torch.ones(24).double(), atol=1e-12)
    assert torch.allclose(plan.sum(0), torch.ones(24).double(), atol=1e-6)
    # Entropic plans are the only ones of the form a_i b_j exp(-c_ij / epsilon): second differences show the cost.
    cost = torch.cdist(x.double(), z.double()).square()
    logits = plan.log() + cost / (epsilon * cost.mean())
    assert torch.allclose(logits - logits[:1] - logits[:, :1] + logits[0, 0], torch.zeros(24, 24).double(), atol=1e-6)


def test_for_small_entropy_sinkhorn_pairs_as_optimal_transport_and_for_large_independently(examples):
    x, z = gaussian(2, 6, 2), gaussian(3, 6, 2)
    uniform = torch.rand(6, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    sharp = register.coupling.named("sinkhorn")(epsilon=1e-3, iterations=20_000).assignment(x, z, uniform)
    assert sharp.tolist() == optimal_assignment(x, z).tolist()
    cost = torch.cdist(x, z).square()
    assert sharp.tolist() == list(min(permutations(range(6)), key=lambda order: cost[range(6), order].sum()))
    blurred = register.coupling.named("sinkhorn")(epsilon=1e6).plan(x, z)
    assert torch.allclose(blurred, torch.full((6, 6), 1 / 6).double(), atol=1e-5)


def test_sinkhorn_draws_each_noise_as_often_as_its_plan_says(examples):
    x, z, coupling = gaussian(5, 5, 2), gaussian(6, 5, 2), register.coupling.named("sinkhorn")(epsilon=0.5)
    draws = 500
    counts = torch.zeros(5, 5)
    for draw in range(draws):
        counts[range(5), coupling.assignment(x, z, (torch.arange(5).double() / 5 + draw / draws) % 1)] += 1
    assert torch.allclose(counts / draws, coupling.plan(x, z).float(), atol=2 / draws)


@pytest.mark.parametrize("neighbours", [1, 3])
def test_density_and_coverage_are_those_of_a_brute_force_count(examples, neighbours):
    generated, real = 1.2 * gaussian(7, 40, 3).double() + 0.5, gaussian(8, 60, 3).double()
    values = register.metric.named("density-coverage")(neighbours=neighbours).compare(generated, real)
    gaps = [[float((a - b).square().sum().sqrt()) for b in generated] for a in real]
    radii = [sorted(float((a - b).square().sum().sqrt()) for b in real)[neighbours] for a in real]
    inside = [sum(gap <= radius for gap in row) for row, radius in zip(gaps, radii, strict=True)]
    assert values == {"density": sum(inside) / (neighbours * 40), "coverage": sum(map(bool, inside)) / 60}
    assert 0 < values["coverage"] < 1


def test_rings_are_the_same_at_every_call_and_have_four_radii(examples, tmp_path):
    source = register.source.named("rings")(count=400, side=16)
    first, second = source.load(), source.load()
    assert (first.samples == second.samples).all()
    assert first.samples.shape == (source.count, *source.shape)
    assert sorted(set(first.labels.tolist())) == [0, 1, 2, 3]
    brightness = [first.samples[first.labels == label].mean() for label in range(4)]
    assert brightness == sorted(brightness)
    manifest = prepare(source, tmp_path / "rings")
    assert manifest["options"] == {"count": 400, "side": 16, "seed": 0, "source": "rings"}


def test_a_file_of_weights_remembers_the_options_of_the_projects_own_network(project):
    Params(project / "params.yaml")
    model, spec, _ = load_model(run_folder(project, "rings/sinkhorn-conv/0") / "weights.safetensors")
    assert to_dict(spec.network) == {"channels": 16, "layers": 3, "architecture": "convolutional"}
    x = gaussian(9, 3, 1, 8, 8)
    assert model(x, torch.full((3,), 2.0)).shape == x.shape
