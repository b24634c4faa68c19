"""Runs that nothing interrupts: what they publish, what they record, what they are refused for."""

import json
import shutil
import stat
from dataclasses import replace
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from projects import (
    Fork,
    assert_same_run,
    checkpoints,
    error_line,
    gcflow,
    metrics,
    prepare_data,
    run_folder,
    snapshots,
    state_folder,
    temporary_files,
    tiny_params,
    train_here,
    weights,
    write_project,
)
from safetensors.torch import save_file
from torch import zeros

from gcflow.config import NetworkConfig, RunConfig, from_dict
from gcflow.errors import GcflowError, Preempted
from gcflow.files import read_json, sha256_of
from gcflow.pipeline.params import Params
from gcflow.weights import (
    ModelSpec,
    is_denoiser,
    load_model,
    load_run_model,
    load_tensors,
    save_tensors,
    spec_of,
)

STEPS, SNAPSHOT_EVERY, LOG_EVERY = 240, 80, 20
SNAPSHOTS = ["00000080.safetensors", "00000160.safetensors", "00000240.safetensors"]
RUN = "digits/ic/0"


def project(folder: Path, checkpoint_every: int = 80, **training: Any) -> Path:
    """A project with prepared digits whose runs have 240 steps; `training` changes that block."""
    params = tiny_params()
    digits = params["datasets"]["digits"]
    digits["training"] |= {"steps": STEPS, "snapshot_every": SNAPSHOT_EVERY} | training
    digits["cadence"] = {"log_every": LOG_EVERY, "checkpoint_every": checkpoint_every}
    digits["methods"]["gc-frozen"]["predictor"]["step"] = STEPS
    return prepare_data(write_project(folder, params), "digits")


@pytest.fixture(scope="module")
def baseline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a process that nothing interrupted."""
    root = project(tmp_path_factory.mktemp("baseline") / "project")
    gcflow(root, "train", RUN)
    return root


@pytest.fixture
def spare(baseline: Path, tmp_path: Path) -> Path:
    """A copy of the baseline's project, to damage."""
    return Path(shutil.copytree(baseline, tmp_path / "spare"))


# A run that nothing interrupts.


def test_a_run_publishes_its_files_and_they_say_what_it_is(baseline):
    folder = run_folder(baseline, RUN)
    assert {path.name for path in folder.iterdir()} == {
        "config.json",
        "jobs.json",
        "metrics.jsonl",
        "snapshots",
        "state",
        "weights.safetensors",
    }
    assert sorted(snapshots(baseline, RUN)) == SNAPSHOTS
    assert [record["step"] for record in metrics(baseline, RUN)] == list(range(LOG_EVERY, STEPS + 1, LOG_EVERY))
    assert temporary_files(baseline) == []
    document = read_json(folder / "config.json")
    config = Params(baseline / "params.yaml").run_config(RUN)
    _, spec, header = load_model(folder / "weights.safetensors")
    assert from_dict(RunConfig, header["config"]) == config
    assert spec == spec_of(config, (1, 8, 8))
    assert header["config_hash"] == document["config_hash"]
    assert document["inputs"] == {"data_sha256": sha256_of(baseline / "data" / "digits" / "samples.npy")}
    for step, name in zip((80, 160, 240), SNAPSHOTS, strict=True):
        metadata = load_tensors(folder / "snapshots" / name)[1]
        assert metadata["step"] == step
        assert metadata["config_hash"] == document["config_hash"]


def test_published_files_and_state_are_the_same_bytes_on_disk(baseline):
    folder, state = run_folder(baseline, RUN), state_folder(baseline, RUN)
    for name in SNAPSHOTS:
        assert (folder / "snapshots" / name).samefile(state / "snapshots" / name)
    assert (folder / "weights.safetensors").samefile(state / "snapshots" / SNAPSHOTS[-1])
    assert (folder / "metrics.jsonl").samefile(state / "metrics.jsonl")


def test_weights_can_be_read_by_whoever_can_read_the_metrics(baseline):
    folder = run_folder(baseline, RUN)
    modes = {
        path.name: stat.S_IMODE(path.stat().st_mode)
        for path in (folder / "metrics.jsonl", folder / "weights.safetensors", *checkpoints(baseline, RUN))
    }
    assert set(modes.values()) == {modes["metrics.jsonl"]}


def test_the_last_checkpoint_stays_and_one_of_those_before_it(baseline):
    assert [path.name for path in checkpoints(baseline, RUN)] == ["checkpoint-00000240.safetensors"]
    (kept,) = state_folder(baseline, RUN).glob("kept-*.safetensors")
    assert int(kept.stem.removeprefix("kept-")) in (80, 160)


# Checkpoints that are not this run's.


def test_a_checkpoint_of_another_configuration_is_refused_with_the_keys_that_differ(spare, tmp_path):
    other = project(tmp_path / "other", learning_rate=2.0e-3, snapshot_every=120)
    with pytest.raises(Preempted):
        train_here(other, RUN, minutes=0)
    target = state_folder(other, RUN) / checkpoints(spare, RUN)[-1].name
    shutil.copyfile(checkpoints(spare, RUN)[-1], target)
    with pytest.raises(GcflowError) as caught:
        train_here(other, RUN)
    keys = "config.training.learning_rate, config.training.snapshot_every"
    assert str(caught.value).startswith(f"{target}: checkpoint of another configuration ({keys} differ)")
    assert caught.value.exit_code == 2
    assert target.read_bytes() == checkpoints(spare, RUN)[-1].read_bytes()
    assert not (run_folder(other, RUN) / "weights.safetensors").exists()


def test_changed_data_make_another_run_and_do_not_continue_the_old_one(spare, capsys):
    samples = spare / "data" / "digits" / "samples.npy"
    content = bytearray(samples.read_bytes())
    content[-1] ^= 255
    samples.write_bytes(content)
    manifest = read_json(samples.parent / "manifest.json")
    manifest["sha256"]["samples.npy"] = sha256_of(samples)
    (samples.parent / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(Preempted, match="saved at step 0"):
        train_here(spare, RUN, minutes=0)
    assert len([path for path in (run_folder(spare, RUN) / "state").iterdir() if path.is_dir()]) == 2


# Publishing.


def test_publishing_again_after_outputs_were_deleted_costs_no_training(spare, baseline, capsys):
    folder = run_folder(spare, RUN)
    logged = (folder / "metrics.jsonl").read_bytes()
    shutil.rmtree(folder / "snapshots")
    for name in ("weights.safetensors", "metrics.jsonl", "config.json"):
        (folder / name).unlink()
    train_here(spare, RUN)
    assert f"resumes at step {STEPS}" in capsys.readouterr().err
    assert (folder / "metrics.jsonl").read_bytes() == logged
    assert read_json(folder / "config.json") == read_json(run_folder(baseline, RUN) / "config.json")
    assert_same_run(spare, baseline, RUN)


def test_snapshots_of_an_earlier_configuration_do_not_stay_among_the_new_ones(spare):
    project(spare, snapshot_every=120)
    train_here(spare, RUN)
    assert sorted(snapshots(spare, RUN)) == ["00000120.safetensors", "00000240.safetensors"]


def test_restart_trains_anew_to_the_same_bits(spare, baseline):
    def times() -> list[float]:
        lines = (run_folder(spare, RUN) / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line)["time"] for line in lines]

    before = times()
    process = Fork(spare, "train", RUN, "--restart")
    assert process.wait() == 0
    assert "resumes" not in process.output
    assert set(times()).isdisjoint(before)
    assert_same_run(spare, baseline, RUN)


def test_where_the_data_lie_changes_no_bit(baseline, tmp_path):
    root = project(tmp_path / "project")
    process = Fork(root, "train", RUN, "--data-share", "0")
    assert process.wait() == 0, process.output
    assert_same_run(root, baseline, RUN)


# What goes wrong.


def test_a_loss_that_is_not_finite_exits_with_3_and_keeps_the_checkpoint_before_it(tmp_path):
    root = project(tmp_path / "diverging", checkpoint_every=1, learning_rate=1.0e15, gradient_clip=None)
    process = Fork(root, "train", RUN)
    assert process.wait() == 3
    line = error_line(process.output)
    assert line.startswith(f"{RUN}: loss is ")
    assert "training.learning_rate (1e+15)" in line
    assert not (run_folder(root, RUN) / "weights.safetensors").exists()
    assert not (run_folder(root, RUN) / "config.json").exists()
    kept = checkpoints(root, RUN)
    assert kept
    failed = int(line.split("by step ")[1].split(";")[0])
    assert [load_tensors(path)[1]["step"] for path in kept] == list(range(max(1, failed - 2), failed))
    assert all(tensor.isfinite().all() for path in kept for tensor in load_tensors(path)[0].values())


# Every kind of method.


METHODS = ("ic", "denoiser", "gc", "gc-frozen", "cd", "cd-exact", "ect", "ect-gc")


@pytest.fixture(scope="module")
def methods(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run of 40 steps of every kind of method."""
    params = tiny_params()
    digits = params["datasets"]["digits"]
    digits["methods"]["cd-exact"] = {"objective": "distillation", "teacher": "exact"}
    digits["runs"]["cd-exact"] = {"label": "CD, exact", "seeds": [0]}
    root = prepare_data(write_project(tmp_path_factory.mktemp("methods") / "project", params), "digits")
    for method in METHODS:
        train_here(root, f"digits/{method}/0")
    return root


@pytest.fixture
def copied(methods: Path, tmp_path: Path) -> Path:
    """A copy of the project with every method, to change."""
    return Path(shutil.copytree(methods, tmp_path / "copied"))


@pytest.mark.parametrize(
    ("method", "preconditioning", "needs"),
    [
        ("gc", "consistency", {}),
        ("gc-frozen", "consistency", {"predictor": ("digits/ic/0", 20)}),
        ("cd", "consistency", {"teacher": ("digits/denoiser/0", 40)}),
        ("cd-exact", "consistency", {}),
        ("denoiser", "edm", {}),
        ("ect", "edm", {"init": ("digits/denoiser/0", 40)}),
        ("ect-gc", "edm", {"init": ("digits/denoiser/0", 40)}),
    ],
)
def test_every_kind_of_method_trains_and_records_the_weights_it_used(methods, method, preconditioning, needs):
    run = f"digits/{method}/0"
    folder = run_folder(methods, run)
    _, spec, header = load_model(folder / "weights.safetensors")
    assert spec.preconditioning == preconditioning
    assert from_dict(RunConfig, header["config"]) == Params(methods / "params.yaml").run_config(run)
    assert sorted(snapshots(methods, run)) == ["00000020.safetensors", "00000040.safetensors"]
    assert weights(methods, run) == snapshots(methods, run)["00000040.safetensors"]
    assert [record["step"] for record in metrics(methods, run)] == [10, 20, 30, 40]
    inputs = read_json(folder / "config.json")["inputs"]
    expected = {"data_sha256": sha256_of(methods / "data" / "digits" / "samples.npy")}
    for role, (needed, step) in needs.items():
        path = run_folder(methods, needed) / "snapshots" / f"{step:08d}.safetensors"
        expected[f"{role}_sha256"] = sha256_of(path)
    assert inputs == expected


def test_a_run_with_init_starts_from_the_ema_of_that_run(methods, tmp_path):
    root = Path(shutil.copytree(methods, tmp_path / "begun", ignore=shutil.ignore_patterns("ect")))
    with pytest.raises(Preempted):
        train_here(root, "digits/ect/0", minutes=0)
    (begun,) = checkpoints(root, "digits/ect/0")
    found, _ = load_tensors(begun)
    start, _ = load_tensors(run_folder(methods, "digits/denoiser/0") / "weights.safetensors")
    names = [name.removeprefix("ema.") for name in start if name.startswith("ema.")]
    assert len(names) > 10
    for name in names:
        assert found[f"raw.{name}"].equal(start[f"ema.{name}"])
        assert found[f"ema.{name}"].equal(start[f"ema.{name}"])
    assert any(not start[f"raw.{name}"].equal(start[f"ema.{name}"]) for name in names)


@pytest.mark.parametrize("method", ["gc-frozen", "cd", "ect"])
def test_other_weights_in_a_role_make_another_run(copied, method):
    run, needed = f"digits/{method}/0", "ic" if method == "gc-frozen" else "denoiser"
    folder = run_folder(copied, f"digits/{needed}/0") / "snapshots"
    before = metrics(copied, run)
    first, last = folder / "00000020.safetensors", folder / "00000040.safetensors"
    if method == "gc-frozen":
        first, last = last, first
    last.write_bytes(first.read_bytes())
    train_here(copied, run)
    after = metrics(copied, run)
    assert [record["step"] for record in after] == [record["step"] for record in before]
    assert [record["loss"] for record in after] != [record["loss"] for record in before]


def test_a_run_whose_reference_is_missing_is_refused_with_the_run_to_train_first(copied):
    path = run_folder(copied, "digits/denoiser/0") / "snapshots" / "00000040.safetensors"
    path.unlink()
    for method in ("cd", "ect"):
        before = weights(copied, f"digits/{method}/0")
        with pytest.raises(GcflowError) as caught:
            train_here(copied, f"digits/{method}/0")
        assert str(caught.value) == f"{path}: digits/{method}/0 needs it; run gcflow train digits/denoiser/0 first"
        assert weights(copied, f"digits/{method}/0") == before


# Denoisers of each coupling.


POINTS_IC, POINTS_GC = "mixture2d/ic/0", "mixture2d/denoiser-gc/0"


def denoisers_params(**changes: Any) -> dict[str, Any]:
    """tiny_params with denoisers of points for each coupling; `changes` are of the generator-augmented one."""
    params = tiny_params()
    points = params["datasets"]["mixture2d"]
    predictor = {"method": "ic", "step": 20}
    couplings = {
        "denoiser": {},
        "denoiser-ot": {"coupling": "ot"},
        "denoiser-gc": {"coupling": "gc", "mu": 1.0, "mu_from_step": 20, "predictor": predictor} | changes,
    }
    for method, keys in couplings.items():
        points["methods"][method] = {"objective": "denoising", "training": {"schedule": {"kind": "edm"}}} | keys
        points["runs"][method] = {"label": method, "seeds": [0]}
    points["cadence"] = {"log_every": 10, "checkpoint_every": 10}
    return params


@pytest.fixture(scope="module")
def denoisers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a consistency model of points and a denoiser of each coupling, two by the command itself."""
    root = prepare_data(
        write_project(tmp_path_factory.mktemp("denoisers") / "project", denoisers_params()), "mixture2d"
    )
    for run in (POINTS_IC, "mixture2d/denoiser/0"):
        train_here(root, run)
    for run in ("mixture2d/denoiser-ot/0", POINTS_GC):
        gcflow(root, "train", run)
    return root


@pytest.fixture
def points(denoisers: Path, tmp_path: Path) -> Path:
    """A copy of the project with the denoisers, to change."""
    return Path(shutil.copytree(denoisers, tmp_path / "points"))


def test_a_denoiser_of_each_coupling_trains_by_the_command_and_records_what_it_used(denoisers):
    predictor = run_folder(denoisers, POINTS_IC) / "snapshots" / "00000020.safetensors"
    for method in ("denoiser", "denoiser-ot", "denoiser-gc"):
        run = f"mixture2d/{method}/0"
        folder = run_folder(denoisers, run)
        _, spec, header = load_model(folder / "weights.safetensors")
        assert spec.preconditioning == "edm"
        assert is_denoiser(header)
        config = Params(denoisers / "params.yaml").run_config(run)
        assert from_dict(RunConfig, header["config"]) == config
        load_run_model(folder / "weights.safetensors", config)
        inputs = read_json(folder / "config.json")["inputs"]
        assert inputs.pop("data_sha256")
        assert inputs == ({"predictor_sha256": sha256_of(predictor)} if method == "denoiser-gc" else {})
        shares = [0.0, 0.0, 1.0, 1.0] if method == "denoiser-gc" else [None] * 4
        assert [record.get("mu") for record in metrics(denoisers, run)] == shares


def test_a_denoiser_with_a_predictor_from_a_file_has_the_bits_of_one_with_it_from_a_run(points):
    before = load_tensors(run_folder(points, POINTS_GC) / "weights.safetensors")[0]
    file = (run_folder(points, POINTS_IC) / "snapshots" / "00000020.safetensors").relative_to(points)
    write_project(points, denoisers_params(predictor={"file": str(file)}))
    train_here(points, POINTS_GC)
    after, header = load_tensors(run_folder(points, POINTS_GC) / "weights.safetensors")
    assert header["config"]["method"]["predictor"] == {"file": str(file)}
    assert all(before[name].equal(after[name]) for name in before)


def test_a_denoiser_is_refused_as_the_predictor_of_another_and_a_missing_one_is_named(points):
    file = "results/mixture2d/denoiser/seed0/weights.safetensors"
    write_project(points, denoisers_params(predictor={"file": file}))
    line = refusal(points, POINTS_GC)
    key = "datasets.mixture2d.methods.denoiser-gc.predictor.file"
    assert line == f"{points / 'params.yaml'}: {key} is {points / file}, which is a denoiser"
    write_project(points, denoisers_params())
    path = run_folder(points, POINTS_IC) / "snapshots" / "00000020.safetensors"
    path.unlink()
    assert refusal(points, POINTS_GC) == f"{path}: {POINTS_GC} needs it; run gcflow train {POINTS_IC} first"


def test_a_denoiser_of_predicted_endpoints_is_sampled_and_evaluated_as_any_denoiser(points):
    commands = [
        ("reference", "mixture2d"),
        ("evaluate", POINTS_GC),
        ("sample", run_folder(points, POINTS_GC) / "weights.safetensors", "--count", "8", "--out", "samples.npz"),
    ]
    for command in commands:
        process = Fork(points, *command)
        assert process.wait() == 0, process.output
    records = read_json(run_folder(points, POINTS_GC) / "evaluation" / "metrics.json")
    assert {(record["sampler"], record["step"]) for record in records} == {("heun", 40)}
    assert all(isfinite(record["value"]) for record in records)
    with np.load(points / "samples.npz") as samples:
        assert samples["sampler"] == "heun"
        assert np.isfinite(samples["samples"]).all()


# Weights from a file.


ROLES = {"init": "ect", "teacher": "cd", "predictor": "gc-frozen"}


def with_file(root: Path, role: str, file: str = "checkpoints/start.safetensors") -> tuple[str, str]:
    """Makes a run of the project take the weights of a role from a file; its name, and the key that names the file."""
    params = tiny_params()
    params["datasets"]["digits"]["methods"][ROLES[role]][role] = {"file": file}
    write_project(root, params)
    return f"digits/{ROLES[role]}/0", f"datasets.digits.methods.{ROLES[role]}.{role}.file"


def refusal(root: Path, run: str) -> str:
    """The one line with which a run is refused, which leaves what it published before."""
    before = weights(root, run)
    with pytest.raises(GcflowError) as caught:
        train_here(root, run)
    assert weights(root, run) == before
    assert len(str(caught.value).splitlines()) == 1
    assert caught.value.exit_code == 2
    return str(caught.value)


@pytest.mark.parametrize("role", ROLES)
def test_a_missing_file_is_refused_in_one_line_that_names_it_and_its_key(copied, role):
    run, key = with_file(copied, role)
    file = copied / "checkpoints" / "start.safetensors"
    expected = f"{file}: no such file, but {copied / 'params.yaml'} names it in {key}; see gcflow import-edm"
    assert refusal(copied, run) == expected
    process = Fork(copied, "train", run)
    assert process.wait() == 2
    assert process.output == f"gcflow: error: {expected}\n".replace(f"{copied}/", "")


def test_a_run_from_a_file_of_the_same_weights_has_the_same_bits(copied):
    method = "ect"
    run = f"digits/{method}/0"
    before = load_tensors(run_folder(copied, run) / "weights.safetensors")[0]
    needed = run_folder(copied, "digits/denoiser/0") / "weights.safetensors"
    with_file(copied, "init", str(needed.relative_to(copied)))
    train_here(copied, run)
    after, header = load_tensors(run_folder(copied, run) / "weights.safetensors")
    assert header["inputs"]["init_sha256"] == sha256_of(needed)
    assert header["config"]["method"]["init"] == {"file": "results/digits/denoiser/seed0/weights.safetensors"}
    assert before.keys() == after.keys()
    assert all(before[name].equal(after[name]) for name in before)


@pytest.mark.parametrize("role", ROLES)
def test_a_file_that_holds_no_weights_of_ours_is_refused_by_name(copied, role):
    run, _ = with_file(copied, role)
    file = copied / "checkpoints" / "start.safetensors"
    file.parent.mkdir()
    file.write_bytes(b"garbage" * 100)
    assert refusal(copied, run).startswith(f"{file}: not a readable safetensors file")
    save_file({"enc.8x8_conv.weight": zeros(2)}, file)
    assert refusal(copied, run).startswith(f"{file}: has no gcflow header; expected weights of `gcflow train` or")


def start_file(root: Path, **changes: Any) -> None:
    """checkpoints/start.safetensors: untrained weights of the denoiser's form, but for `changes`."""
    config = Params(root / "params.yaml").run_config("digits/denoiser/0")
    spec = replace(spec_of(config, (1, 8, 8)), **changes)
    tensors = {f"ema.{name}": tensor for name, tensor in spec.build().network.state_dict().items()}
    save_tensors(root / "checkpoints" / "start.safetensors", tensors, {"model": spec.header()})


@pytest.mark.parametrize(
    ("role", "changes", "expected"),
    [
        ("init", {"network": NetworkConfig("mlp", 24, 1)}, "whose network has another shape; give both the same"),
        ("init", {"preconditioning": "vp"}, "whose preconditioning is vp; set preconditioning: vp"),
        ("init", {"sigma_data": 0.5}, "which was made for process.sigma_data = 0.5, not 0.75"),
        ("init", {"data_mean": 0.0}, "which was made for process.data_mean = 0, not -0.39"),
        ("init", {"shape": (64,)}, "which was made for samples of shape [64]"),
        ("teacher", {"shape": (1, 4, 4)}, "which was made for samples of shape [1, 4, 4]"),
        ("predictor", {"shape": (3, 8, 8)}, "which was made for samples of shape [3, 8, 8]"),
    ],
)
def test_a_file_that_does_not_fit_its_role_is_refused_by_key_with_the_reason(copied, role, changes, expected):
    run, key = with_file(copied, role)
    process = Params(copied / "params.yaml").run_config(run).process
    inner = {name: changes.pop(name) for name in ("sigma_data", "data_mean") if name in changes}
    start_file(copied, **({"process": replace(process, **inner)} if inner else changes))
    file = copied / "checkpoints" / "start.safetensors"
    line = refusal(copied, run)
    assert line.startswith(f"{copied / 'params.yaml'}: {key} is {file}, {expected}")


@pytest.mark.parametrize(
    ("role", "method", "expected"),
    [("teacher", "ic", "which is a consistency model"), ("predictor", "denoiser", "which is a denoiser")],
)
def test_a_file_of_the_other_kind_of_model_is_refused(copied, role, method, expected):
    run, key = with_file(copied, role, f"results/digits/{method}/seed0/weights.safetensors")
    line = refusal(copied, run)
    assert f"{key} is " in line
    assert line.endswith(expected)


def test_a_teacher_of_another_network_and_preconditioning_is_accepted(copied):
    run, _ = with_file(copied, "teacher")
    start_file(copied, network=NetworkConfig("mlp", 24, 2), preconditioning="vp")
    train_here(copied, run)
    spec = from_dict(ModelSpec, load_tensors(copied / "checkpoints" / "start.safetensors")[1]["model"])
    assert spec.preconditioning == "vp"
    inputs = read_json(run_folder(copied, run) / "config.json")["inputs"]
    assert inputs["teacher_sha256"] == sha256_of(copied / "checkpoints" / "start.safetensors")
