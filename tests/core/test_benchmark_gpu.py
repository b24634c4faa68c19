"""benchmarks/gpu.py at its tiny size, on the CPU: every section that needs no GPU gives the numbers it is there for."""

import json
import math
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from projects import ROOT

# It compiles, with a cache of its own.
pytestmark = pytest.mark.slow
SCRIPT = ROOT / "benchmarks" / "gpu.py"
# What gcflow needs elsewhere, and a machine that has only torch lacks.
LACKING = ["scipy", "yaml", "ruamel", "click", "dvc", "lmdb", "mlflow", "pandas", "PIL", "sklearn", "snakemake"]
EAGER = {
    "eager-tf32": ("tf32", 0.0),
    "eager-bf16": ("bfloat16", 0.0),
    "eager-bf16-gc": ("bfloat16", 0.0),
    "eager-bf16-dropout": ("bfloat16", 0.3),
    "eager-fp32-dropout": ("float32", 0.3),
    "eager-tf32-dropout": ("tf32", 0.3),
    "eager-plain": ("tf32", 0.0),
}
COMPILED = ("compile-bf16", "own-step", "compile-bf16-gc")
CUDA_ONLY = {"small-batches"}
OTHER = ("env", "peaks", "exact", "convolutions", "sampling", "processes", *CUDA_ONLY)
COMPILER = shutil.which("g++") is not None
EXPECTED = {*EAGER, *OTHER, *(COMPILED if COMPILER else ())}
COMPILES = pytest.mark.skipif(not COMPILER, reason="torch.compile needs a C++ compiler")
PROFILES = {"eager-bf16": "profile-eager-bf16.txt", "compile-bf16": "profile-compile-bf16.txt"}


def run(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """The script where only torch, numpy, safetensors, pydantic and the repository are found, and no GPU."""
    place = folder / "lacking"
    place.mkdir(parents=True, exist_ok=True)
    (place / "sitecustomize.py").write_text(f"import sys\nsys.modules.update(dict.fromkeys({LACKING}))\n")
    environment = os.environ | {
        "PYTHONPATH": f"{place}{os.pathsep}{ROOT}",
        "CUDA_VISIBLE_DEVICES": "",
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, str(SCRIPT), "--out", str(folder / "out"), *options]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def written(folder: Path):
    return json.loads((folder / "out" / "gpu.json").read_text())


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Everything; compiling takes longer than all else here."""
    folder = tmp_path_factory.mktemp("gpu")
    result = run(folder, "--budget", "100000", *([] if COMPILER else ["--only", *EXPECTED]))
    assert result.returncode == 0, result.stderr
    return folder, result, written(folder)["sections"]


def rows(measured, section):
    return measured[2][section]["rows"]


def steps(measured):
    """Every row of a training step that is timed, with its section."""
    return [(name, row) for name in measured[2] for row in rows(measured, name) if "seconds_of_rounds" in row]


def numbers(value):
    """Every number in a JSON document, with its key."""
    for key, part in value.items() if isinstance(value, dict) else enumerate(value):
        if isinstance(part, dict | list):
            yield from numbers(part)
        elif isinstance(part, float | int) and not isinstance(part, bool):
            yield key, part


def test_only_what_needs_cuda_is_skipped_and_nothing_fails(measured):
    _, result, sections = measured
    assert set(sections) == EXPECTED
    assert {name for name, section in sections.items() if "skipped" in section} == CUDA_ONLY
    assert sections["small-batches"] == {"rows": [], "skipped": "needs CUDA"}
    for name in EXPECTED - CUDA_ONLY:
        assert sections[name]["rows"], name
        assert sections[name]["seconds"] > 0
        assert "failed" not in sections[name]
        for row in sections[name]["rows"]:
            assert row["what"] in result.stdout


def test_a_process_group_of_one_adds_up_to_the_same(measured):
    (row,) = rows(measured, "processes")
    assert (row["what"], row["note"]) == ("gloo, one process", "mean 1, expected 1")


def test_every_number_is_finite_and_every_measurement_positive(measured):
    for name in measured[2]:
        for key, value in numbers(measured[2][name]):
            assert math.isfinite(value), (name, key)
            if str(key).endswith(("seconds", "per_second", "per_step", "share_of_peak", "flop")):
                assert value > 0, (name, key)


def test_what_it_ran_on_and_at_which_size_is_told(measured):
    document, (row,) = written(measured[0]), rows(measured, "env")
    assert (document["device"], document["size"]) == ("cpu", "tiny")
    assert document["command"].startswith("python benchmarks/gpu.py --out ")
    assert row["gpu"] is row["cuda"] is None
    assert row["python"] == ".".join(map(str, sys.version_info[:3]))
    for name, row in steps(measured):
        config = row["config"]
        assert config["network"]["architecture"] == ("single-layer" if name in COMPILED else "ddpm++")
        assert config["network"].get("channels") == (None if name in COMPILED else 8)
        assert config["training"]["compile"] == ("default" if name in COMPILED else "none")
        assert config["training"]["channels_last"] == (name != "eager-plain")
        assert config["method"]["coupling"] == ("gc" if name.endswith("-gc") else "ic")
        precision, dropout = EAGER.get(name, ("bfloat16", 0.0))
        assert (config["training"]["precision"], config["network"]["dropout"]) == (precision, dropout)


def test_the_ceilings_are_of_three_precisions_and_of_memory(measured):
    *products, copy = rows(measured, "peaks")
    assert [row["precision"] for row in products] == ["bfloat16", "tf32", "float32"]
    assert all(1e6 < row["flop_per_second"] < 1e14 for row in products)
    assert copy["bytes"] == 4 * 4 * 256**2
    assert 1e8 < copy["bytes_per_second"] < 1e13


def test_a_steps_time_and_its_rates_say_the_same(measured):
    peak = rows(measured, "peaks")[0]["flop_per_second"]
    assert {name for name, _ in steps(measured)} >= set(EAGER)
    for name, row in steps(measured):
        assert row["seconds_per_step"] == statistics.median(row["seconds_of_rounds"])
        batch = row["config"]["training"]["batch"]
        assert row["images_per_second"] * row["seconds_per_step"] == pytest.approx(batch)
        assert row["share_of_peak"] == pytest.approx(row["flop_per_second"] / peak), name
        assert row["peak_memory_bytes"] is None


def test_a_step_of_gc_costs_four_and_a_half_passes_where_ic_costs_four(measured):
    (gc,), ic = rows(measured, "eager-bf16-gc"), rows(measured, "eager-bf16")[0]
    cost = [row["flop_per_second"] / row["images_per_second"] for row in (gc, ic)]
    assert cost[0] / cost[1] == pytest.approx(4.5 / 4)


def test_a_run_repeats_and_resumes_to_the_bit(measured):
    again, resumed = rows(measured, "exact")
    for row, way in ((again, "repeated"), (resumed, "resumed")):
        assert row["what"].endswith(way)
        assert row["note"] == "identical"
        assert row["identical"] is row["weights_moved"] is True
        assert row["config"]["method"]["coupling"] == "gc"
        assert row["config"]["network"]["dropout"] == 0.1


def test_the_convolutions_are_most_of_a_pass_and_are_timed_both_ways(measured):
    exact, fastest = rows(measured, "convolutions")
    step = rows(measured, "eager-bf16")[0]
    whole = step["flop_per_second"] * step["seconds_per_step"]
    for row in (exact, fastest):
        forward, backward, flop = (
            sum(layer["count"] * layer[key] for layer in row["layers"])
            for key in ("forward_seconds", "backward_seconds", "flop")
        )
        assert row["seconds_per_step"] == pytest.approx(2 * forward + backward)
        assert row["images_per_second"] == pytest.approx(row["batch"] / row["seconds_per_step"])
        for layer in row["layers"]:
            # All keep the side of their input: resampling is no convolution in DDPM++.
            outputs, inputs, *kernel = layer["weight"]
            assert inputs == layer["input"][0]
            products = row["batch"] * math.prod(layer["input"][1:]) * outputs * inputs * math.prod(kernel)
            assert layer["flop"] == 2 * products
        # The rest are linear layers and attention.
        assert 0.9 < 4 * flop / whole < 1
    assert exact["what"].endswith("deterministic, bfloat16")
    assert fastest["what"].endswith("fastest, bfloat16")
    assert [x["weight"] for x in exact["layers"]] == [x["weight"] for x in fastest["layers"]]


def test_samples_are_drawn_at_a_rate(measured):
    (row,) = rows(measured, "sampling")
    step = rows(measured, "eager-bf16")[0]
    cost = step["flop_per_second"] / step["images_per_second"]
    assert row["flop_per_second"] / row["images_per_second"] == pytest.approx(cost / 4)


@COMPILES
def test_compiled_steps_are_timed_with_convolutions_that_repeat_and_without(measured):
    exact, profile, fastest = rows(measured, "compile-bf16")
    assert (exact["deterministic"], fastest["deterministic"]) == (True, False)
    assert exact["config"] == fastest["config"]
    assert profile["file"] == PROFILES["compile-bf16"]
    for name in EAGER:
        assert rows(measured, name)[0]["deterministic"] is True


@COMPILES
def test_the_step_without_the_loop_has_a_loss_and_the_fastest_convolutions(measured):
    (row,) = rows(measured, "own-step")
    assert row["loss"] > 0
    assert row["deterministic"] is False
    assert row["what"].endswith("without the loop")


@pytest.mark.parametrize("section", ["eager-bf16", pytest.param("compile-bf16", marks=COMPILES)])
def test_a_profile_names_the_operators_of_a_step(measured, section):
    text = (measured[0] / "out" / PROFILES[section]).read_text()
    assert "aten::convolution" in text
    assert "CPU total" in text


def test_what_the_budget_does_not_allow_is_skipped_and_said(tmp_path):
    result = run(tmp_path, "--budget", "0", "--only", "peaks", "sampling")
    assert result.returncode == 0, result.stderr
    sections = written(tmp_path)["sections"]
    assert list(sections) == ["peaks", "sampling"]
    for name, needs in (("peaks", 5), ("sampling", 10)):
        assert sections[name]["rows"] == []
        assert sections[name]["skipped"].startswith(f"needs {needs} s")
        assert f"{name:<20}skipped: needs {needs} s" in result.stdout


def test_a_section_that_fails_keeps_its_rows_and_stops_no_other(tmp_path):
    (tmp_path / "out" / PROFILES["eager-bf16"]).mkdir(parents=True)
    result = run(tmp_path, "--only", "eager-bf16", "sampling")
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1] == "failed: eager-bf16"
    sections = written(tmp_path)["sections"]
    assert sections["eager-bf16"]["failed"].startswith("IsADirectoryError")
    assert len(sections["eager-bf16"]["rows"]) == len(sections["sampling"]["rows"]) == 1
    assert "failed" not in sections["sampling"]


def test_an_unknown_section_is_refused(tmp_path):
    result = run(tmp_path, "--only", "peak")
    assert result.returncode == 2
    assert "argument --only: invalid choice: 'peak'" in result.stderr.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_what_is_measured_on_a_gpu_is_the_recipe_of_the_paper():
    # In a process of its own: the script registers a network.
    code = (
        "import json, gpu; from gcflow.config import to_dict; size = gpu.SIZES['paper']; "
        "print(json.dumps([size.shape, size.images, *(to_dict(gpu.recipe(size, way)) for way in ('ic', 'gc'))]))"
    )
    environment = os.environ | {"PYTHONPATH": f"{SCRIPT.parent}{os.pathsep}{ROOT}"}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    shape, images, ic, gc = json.loads(result.stdout)
    paper = yaml.safe_load((ROOT / "benchmarks" / "cifar10.yaml").read_text())["datasets"]["cifar10"]
    assert (shape, images) == (paper["data"]["shape"], paper["data"]["count"])
    duration = ("steps", "snapshot_every")
    for run_config, method in ((ic, "ic"), (gc, "gc")):
        assert paper["network"].items() <= run_config["network"].items()
        assert run_config["process"] == paper["process"] | {"data_mean": 0.0}
        for key, value in paper["training"].items():
            if key == "schedule":
                assert value.items() <= run_config["training"][key].items()
            elif key not in duration:
                assert run_config["training"][key] == value, key
        for key in ("objective", "coupling", "mu", "predictor"):
            assert run_config["method"][key] == paper["methods"][method].get(key)
