"""gcflow as a library: installed with the core's dependencies alone, typed, and used by the scripts of examples/."""

import importlib.metadata
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement
from projects import ROOT, environment

import gcflow

EXAMPLES = ROOT / "examples"
# pip installs it, and mypy reads torch.
pytestmark = pytest.mark.slow


def core_distributions():
    """Names of the installed distributions that the core needs, directly or not."""
    wanted = [r for r in map(Requirement, importlib.metadata.requires("gcflow") or []) if not str(r.marker or "")]
    found = set()
    while wanted:
        requirement = wanted.pop()
        if requirement.name in found or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        found.add(requirement.name)
        wanted += map(Requirement, importlib.metadata.requires(requirement.name) or [])
    return found


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with gcflow as pip installs it, and what its core depends on; nothing of the pipeline's extra."""
    folder = tmp_path_factory.mktemp("library") / "site-packages"
    source = tmp_path_factory.mktemp("source")
    for name in ("gcflow", "pyproject.toml", "README.md", "LICENSE"):
        subprocess.run(["cp", "--recursive", ROOT / name, source], check=True)
    options = ("--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--target", folder)
    subprocess.run([sys.executable, "-m", "pip", "install", *options, source], check=True, env=environment())
    for name in core_distributions():
        distribution = importlib.metadata.distribution(name)
        for top in {file.parts[0] for file in distribution.files or () if file.parts[0] not in ("..", "__pycache__")}:
            if not (folder / top).exists():
                (folder / top).symlink_to(distribution.locate_file(top))
    return folder


def python(installed, *arguments):
    """A Python process that finds what `installed` has and the standard library, and nothing else."""
    start = f"import sys, runpy; sys.path.append({str(installed)!r}); sys.argv = sys.argv[1:]; "
    run = "sys.argv[0] == '-c' and (exec(sys.argv[1]), sys.exit()); runpy.run_path(sys.argv[0], run_name='__main__')"
    command = [sys.executable, "-I", "-S", "-c", start + run, *map(str, arguments)]
    result = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_every_module_of_the_library_is_there_without_the_pipelines_dependencies(installed):
    code = """
import importlib.util, json, gcflow
for name in gcflow.MODULES:
    getattr(gcflow, name)
pipeline = [name for name in ("ruamel", "click", "mlflow", "pandas", "sklearn") if importlib.util.find_spec(name)]
print(json.dumps([gcflow.__file__, pipeline, gcflow.metrics.frechet_distance.__name__]))
"""
    file, pipeline, name = json.loads(python(installed, "-c", code))
    assert file == str(installed / "gcflow" / "__init__.py")
    assert pipeline == []
    assert name == "frechet_distance"


def test_the_command_line_without_the_pipelines_dependencies_says_what_it_needs(installed):
    code = "import runpy; runpy.run_module('gcflow', run_name='__main__')"
    with pytest.raises(AssertionError) as caught:
        python(installed, "-c", code)
    needed = "gcflow: error: the command line needs the extra `pipeline`: pip install 'gcflow[pipeline]'\n"
    assert str(caught.value).startswith(needed)


def test_the_installed_package_is_typed_has_its_data_and_imports_nothing_heavy(installed):
    assert (installed / "gcflow" / "py.typed").exists()
    assert (installed / "gcflow" / "pipeline/drawing/print.mplstyle").exists()
    code = "import sys, gcflow; print('torch' in sys.modules, 'numpy' in sys.modules)"
    assert python(installed, "-c", code).split() == ["False", "False"]


def test_the_lazy_modules_are_those_that_type_checkers_see():
    seen = [line.split()[-1] for line in Path(gcflow.__file__).read_text().splitlines() if " import " in line]
    assert tuple(name for name in seen if name in gcflow.MODULES) == gcflow.MODULES == tuple(sorted(gcflow.MODULES))
    assert set(gcflow.MODULES) <= set(dir(gcflow))
    with pytest.raises(AttributeError, match="module 'gcflow' has no attribute 'nothing'"):
        _ = gcflow.nothing


def test_training_on_a_tensor_lowers_the_loss_and_its_samples_are_like_the_images(installed, tmp_path):
    weights = tmp_path / "weights.safetensors"
    output = python(installed, EXAMPLES / "train_on_tensor.py", weights)
    losses = [float(line.split()[-1]) for line in output.splitlines()]
    assert len(losses) == 4
    assert losses[-1] < 0.8 * losses[0]
    python(installed, EXAMPLES / "sample_from_weights.py", weights, tmp_path / "samples.npy")
    samples = np.load(tmp_path / "samples.npy")
    assert (samples.shape, samples.dtype) == ((16, 1, 8, 8), np.uint8)
    # Vertical stripes, dark and light, each elsewhere: rows of an image are alike, images are not.
    assert samples.std(2).mean() < 0.1 * samples.std()
    assert samples.mean((1, 2)).std(0).min() > 40


def test_the_scripts_pass_a_strict_type_checker():
    # With the settings of `make lint`, whose cache of torch's types it shares.
    scripts = [EXAMPLES / name for name in ("train_on_tensor.py", "sample_from_weights.py")]
    command = [sys.executable, "-m", "mypy", *scripts]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_tutorial_shows_what_its_cells_compute(tmp_path):
    cells = [c for c in json.loads((ROOT / "docs/tutorial.ipynb").read_text())["cells"] if c["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == [*range(1, len(cells) + 1)]
    # How samples differ from each other, and predictions from noise of 80 and of 7.
    facts = "print(sample().float().std(0).mean().item(), 127.5 * (predictions[0] - predictions[4]).std().item())"
    code = "\n".join(["import matplotlib; matplotlib.use('agg')", *("".join(cell["source"]) for cell in cells), facts])
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    *printed, facts = result.stdout.splitlines()
    stored = [line for cell in cells for output in cell["outputs"] for line in output.get("text", [])]
    new, old = ([float(x) for x in re.findall(r"\d+\.?\d*", "\n".join(lines))] for lines in (printed, stored))
    # Another processor rounds otherwise, and a training with noise makes something of it.
    assert new == pytest.approx(old, abs=0.1)
    spread, change = map(float, facts.split())
    assert spread > 30
    assert change < 0.5 * spread
