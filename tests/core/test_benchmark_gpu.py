"""benchmarks/gpu.py at its tiny size, on the CPU: every section that needs no GPU gives the numbers it is there for."""

import json
import math
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from projects import ROOT

from gcflow.tools.plan import Speed

# It compiles, with a cache of its own.
pytestmark = pytest.mark.slow
SCRIPT = ROOT / "benchmarks" / "gpu.py"
# What gcflow needs elsewhere, and a machine that has only torch lacks.
LACKING = ["yaml", "ruamel", "click", "dvc", "lmdb", "mlflow", "pandas", "PIL", "sklearn", "snakemake"]
# Row of a training step: method, precision, compile, grain of a batch of 4, dropout.
ROWS = {
    "ic-tf32": ("ic", "tf32", "none", 1, 0.0),
    "ic-512": ("ic", "bfloat16", "fused", 4, 0.0),
    "ic-128": ("ic", "bfloat16", "fused", 1, 0.0),
    "gc-128": ("gc", "bfloat16", "fused", 1, 0.0),
    "gc-512": ("gc", "bfloat16", "fused", 4, 0.0),
    "ic-compiled": ("ic", "bfloat16", "default", 4, 0.0),
    "ic-64": ("ic", "bfloat16", "fused", 1, 0.0),
    "gc-64": ("gc", "bfloat16", "fused", 1, 0.0),
    "ot-128": ("ot", "bfloat16", "fused", 1, 0.0),
    "cd-128": ("cd", "bfloat16", "fused", 1, 0.0),
    "ect-128": ("ect", "bfloat16", "fused", 1, 0.0),
    "dropout-128": ("ic", "bfloat16", "fused", 1, 0.3),
    "gc-compiled": ("gc", "bfloat16", "default", 4, 0.0),
    "ic-float32": ("ic", "float32", "none", 4, 0.0),
}
EXACT = {"exact-fused": "fused", "exact-graph": "graph", "exact-tf32": "none", "exact-compiled": "default"}
PASSES = {"ic": 4, "ot": 4, "gc": 4.5, "cd": 5, "ect": 4}
GRAPHS = ["ic-128", "gc-128", "ic-64", "gc-64"]
OTHER = {"env", "peaks", "convolutions", "fid", "kernels", "graphs", "sampling", "features", "processes", "equality"}
COMPILER = shutil.which("g++") is not None
COMPILED = {name for name, (*_, how, _, _) in ROWS.items() if how == "default"} | {"exact-compiled"}
EXPECTED = ({*ROWS, *EXACT} | OTHER) - (set() if COMPILER else COMPILED)


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


def test_nothing_is_skipped_and_nothing_fails(measured):
    _, result, sections = measured
    assert set(sections) == EXPECTED
    for name in EXPECTED:
        assert sections[name]["rows"], name
        assert sections[name]["seconds"] > 0
        assert not {"failed", "skipped"} & sections[name].keys()
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
    for name, (row,) in ((name, rows(measured, name)) for name in ROWS.keys() & EXPECTED):
        method, precision, how, grain, dropout = ROWS[name]
        training, network = row["config"]["training"], row["config"]["network"]
        assert network["architecture"] == ("single-layer" if how == "default" else "ddpm++")
        assert (training["precision"], training["compile"], training["grain"]) == (precision, how, grain)
        assert (row["config"]["method_name"], network["dropout"], training["channels_last"]) == (method, dropout, True)
        assert training["batch"] == (1 if method == "ect" else 4)


def test_the_ceilings_are_of_three_precisions_and_of_memory(measured):
    *products, copy = rows(measured, "peaks")
    assert [row["precision"] for row in products] == ["bfloat16", "tf32", "float32"]
    assert all(1e6 < row["flop_per_second"] < 1e14 for row in products)
    assert copy["bytes"] == 4 * 4 * 256**2
    assert 1e8 < copy["bytes_per_second"] < 1e13


def test_a_steps_time_and_its_rates_say_the_same(measured):
    ceilings = {
        "share_of_peak": rows(measured, "peaks")[0]["flop_per_second"],
        "share_of_convolutions": rows(measured, "convolutions")[0]["flop_per_second"],
    }
    assert {name for name, _ in steps(measured)} == (ROWS.keys() | {"graphs"}) & EXPECTED
    for name, row in steps(measured):
        assert row["seconds_per_step"] == statistics.median(row["seconds_of_rounds"])
        batch = row["config"]["training"]["batch"]
        assert row["images_per_second"] * row["seconds_per_step"] == pytest.approx(batch)
        for share, ceiling in ceilings.items():
            assert row[share] == pytest.approx(row["flop_per_second"] / ceiling), name
        assert row["step_over_passes"] > 0
        assert row["first_step_seconds"] > 0
        assert row["peak_memory_bytes"] is None
        if name not in COMPILED:
            (today,) = rows(measured, "ic-tf32")
            cost, of_ic = (each["flop_per_second"] / each["images_per_second"] for each in (row, today))
            assert cost / of_ic == pytest.approx(PASSES[row["config"]["method_name"]] / 4), name


def test_the_steps_of_graphs_are_those_that_are_launched_kernel_by_kernel_too(measured):
    for name, row in zip(GRAPHS, rows(measured, "graphs"), strict=True):
        (plain,) = rows(measured, name)
        assert row["config"]["training"].pop("compile") == "graph"
        assert plain["config"]["training"].pop("compile") == "fused"
        assert row["config"] == plain["config"]


def test_losses_of_the_fast_path_are_nearer_to_those_of_tf32_than_those_of_another_seed(measured):
    for method, row in zip(("ic", "gc"), rows(measured, "equality"), strict=True):
        exact, fast, seed = row["losses"].values()
        assert row["config"]["method_name"] == method
        assert len(exact) == len(fast) == len(seed) == 10
        found = [max(abs(b / a - 1) for a, b in zip(exact, other, strict=True)) for other in (fast, seed)]
        assert found == [row["largest_difference"], row["largest_difference_of_seed"]]
        assert 0 < found[0] < found[1]
        assert row["note"].endswith("on random pixels")


def test_a_run_repeats_and_resumes_to_the_bit(measured):
    for name in EXACT.keys() & EXPECTED:
        again, resumed = rows(measured, name)
        for row, way in ((again, "repeated"), (resumed, "resumed")):
            assert row["what"].endswith(way)
            assert row["note"] == "identical"
            assert row["identical"] is row["weights_moved"] is True
            assert row["config"]["training"]["compile"] == EXACT[name]
            assert row["config"]["method"]["coupling"] == "gc"
            assert row["config"]["network"]["dropout"] == 0.1


def test_the_convolutions_are_most_of_a_pass_and_are_timed_both_ways(measured):
    exact, fastest = rows(measured, "convolutions")
    (step,) = rows(measured, "ic-512")
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


def test_samples_features_and_their_distance_are_timed_and_rounding_is_measured(measured):
    exact, *rounded = rows(measured, "sampling")
    (step,) = rows(measured, "ic-512")
    cost = step["flop_per_second"] / step["images_per_second"]
    for row in (exact, *rounded):
        assert row["flop_per_second"] / row["images_per_second"] == pytest.approx(cost / 4)
        assert row["features"] == "Inception's surrogate"
    assert exact["largest_pixel_difference"] == exact["relative_feature_difference"] == 0
    assert 0 < rounded[-1]["relative_feature_difference"] < 0.2
    first, second, distance = rows(measured, "fid")
    assert first["distance"] == pytest.approx(second["distance"], rel=0.05)
    assert distance["what"].startswith("Fréchet distance on cpu")
    assert len(rows(measured, "features")) == 2


def test_the_ten_longest_operators_are_named_with_their_share(measured):
    found = rows(measured, "kernels")
    # Which ones they are is a matter of time, and of what else the machine does.
    assert len({row["kernel"] for row in found}) == len(found) == 10
    assert any(row["kernel"].startswith("aten::") for row in found)
    shares = [row["share"] for row in found]
    assert shares == sorted(shares, reverse=True)
    assert 0.5 < sum(shares) <= 1


def test_a_plan_reads_it_as_what_was_measured(measured):
    speed = Speed.measured(measured[0] / "out" / "gpu.json")
    (today,), *_ = rows(measured, "ic-tf32"), None
    assert speed.training == {"ic": pytest.approx(today["flop_per_second"])}
    rate = rows(measured, "sampling")[1]["flop_per_second"]
    assert speed.sampling == pytest.approx(rate)
    assert not speed.gpu


def test_what_the_budget_does_not_allow_is_skipped_and_said(tmp_path):
    result = run(tmp_path, "--budget", "0", "--only", "peaks", "sampling")
    assert result.returncode == 0, result.stderr
    sections = written(tmp_path)["sections"]
    assert list(sections) == ["peaks", "sampling"]
    for name, needs in (("peaks", 5), ("sampling", 20)):
        assert sections[name]["rows"] == []
        assert sections[name]["skipped"].startswith(f"needs {needs} s")
        assert f"{name:<20}skipped: needs {needs} s" in result.stdout


def test_a_section_that_fails_stops_no_other(tmp_path):
    result = run(tmp_path, "--inception", str(tmp_path / "none.pt"), "--only", "features", "processes")
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1] == "failed: features"
    sections = written(tmp_path)["sections"]
    assert sections["features"]["failed"].startswith("GcflowError: ")
    assert len(sections["processes"]["rows"]) == 1
    assert "failed" not in sections["processes"]


def test_images_of_a_file_take_the_place_of_random_pixels(tmp_path):
    np.save(tmp_path / "images.npy", np.zeros((20, 3, 8, 8), np.uint8))
    result = run(tmp_path, "--images", str(tmp_path / "images.npy"), "--only", "equality", "--budget", "1000")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count(f"on {tmp_path / 'images.npy'}") == 2


def test_a_file_without_such_images_is_refused_in_one_line(tmp_path):
    np.save(tmp_path / "pixels.npy", np.zeros((20, 8, 8, 3), np.uint8))
    (tmp_path / "text.npy").write_text("text")
    for name, problem in (("pixels", "has uint8 [20, 8, 8, 3], expected uint8 [n, 3, 8, 8]"), ("text", ""), ("no", "")):
        result = run(tmp_path, "--images", str(tmp_path / f"{name}.npy"), "--only", "equality")
        assert result.returncode == 1
        (line,) = result.stderr.splitlines()
        assert line.startswith(f"--images {tmp_path / name}.npy: {problem}")


def test_an_unknown_section_is_refused(tmp_path):
    result = run(tmp_path, "--only", "peak")
    assert result.returncode == 2
    assert "argument --only: invalid choice: 'peak'" in result.stderr.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_what_is_measured_on_a_gpu_is_the_recipe_of_the_paper():
    # In a process of its own: the script registers a network.
    code = (
        "import json, gpu; from gcflow.config import to_dict; size = gpu.SIZES['paper']; "
        "print(json.dumps([size.shape, size.images, {way: to_dict(gpu.recipe(size, way)) for way in gpu.METHODS}]))"
    )
    environment = os.environ | {"PYTHONPATH": f"{SCRIPT.parent}{os.pathsep}{ROOT}"}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    shape, images, found = json.loads(result.stdout)
    paper = yaml.safe_load((ROOT / "benchmarks" / "cifar10.yaml").read_text())["datasets"]["cifar10"]
    assert (shape, images) == (paper["data"]["shape"], paper["data"]["count"])
    duration = ("steps", "snapshot_every")
    assert found.keys() == PASSES.keys()
    for method, run_config in found.items():
        ours = {"coupling": "ic"} | paper["methods"][method]
        assert paper["network"].items() <= run_config["network"].items()
        assert run_config["process"] == paper["process"] | {"data_mean": 0.0}
        for key, value in (paper["training"] | ours.get("training", {})).items():
            if key == "schedule":
                assert value.items() <= run_config["training"][key].items()
            elif key not in duration:
                assert run_config["training"][key] == value, key
        for key in ("objective", "coupling", "mu", "predictor"):
            assert run_config["method"][key] == ours.get(key)
