"""The layers of the design: imports point downwards, and the science runs on five packages alone."""

import ast
import subprocess
import sys
from pathlib import Path

import gcflow

PACKAGE = Path(gcflow.__file__).parent
THEORY = sorted(f"theory.{path.stem}" for path in (PACKAGE / "theory").glob("*.py") if path.stem != "__init__")
MODULES = sorted(path.stem for path in PACKAGE.glob("*.py") if path.stem not in ("__init__", "__main__", "cli"))
ARCHIVES = sorted(f"archives.{path.stem}" for path in (PACKAGE / "archives").glob("*.py") if path.stem != "__init__")
SCIENCE = MODULES + THEORY + ARCHIVES
OURS_FOR_PIPELINES = (
    "pydantic",
    "click",
    "tqdm",
    "pandas",
    "matplotlib",
    "mlflow",
    "dvc",
    "snakemake",
    "sklearn",
    "cleanfid",
)


def imported_modules(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module


def upwards(name, *above):
    """The modules of the layers above that a module of the science imports."""
    path = PACKAGE / f"{name.replace('.', '/')}.py"
    return [module for module in imported_modules(path) if module.startswith(above)]


def test_no_module_of_the_science_imports_a_stage_a_tool_or_the_command_line():
    for name in SCIENCE:
        assert upwards(name, "gcflow.pipeline", "gcflow.tools", "gcflow.cli") == [], name


def test_the_theory_rests_on_the_science_and_nothing_of_that_on_the_theory():
    for name in MODULES:
        assert upwards(name, "gcflow.theory") == [], name
    # It knows distributions and their flows, and no training.
    allowed = ("gcflow.oracles", "gcflow.randomness", "gcflow.theory")
    for name in THEORY:
        assert [module for module in upwards(name, "gcflow") if not module.startswith(allowed)] == [], name


def test_no_stage_imports_a_tool_and_neither_the_command_line():
    for folder, above in (("pipeline", ("gcflow.tools", "gcflow.cli")), ("tools", ("gcflow.cli",))):
        for path in (PACKAGE / folder).rglob("*.py"):
            assert not [module for module in imported_modules(path) if module.startswith(above)], path.name


def test_the_science_imports_without_the_packages_of_the_pipeline():
    code = (
        f"import sys\nfor name in {OURS_FOR_PIPELINES!r}: sys.modules[name] = None\n"
        f"import importlib\nfor name in {SCIENCE!r}: importlib.import_module('gcflow.' + name)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert len(MODULES) > 10
    assert len(THEORY) > 4


def test_reading_the_grid_needs_no_torch():
    code = (
        "import sys\nsys.modules['torch'] = None\nfrom pathlib import Path\n"
        "from gcflow.pipeline.params import Params\nfrom gcflow.pipeline.stages import Stages\n"
        f"print(len(list(Stages(Params(Path({str(PACKAGE.parent / 'params.yaml')!r}))))))\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(result.stdout) > 40
