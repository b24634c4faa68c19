"""The layers of the design: imports point downwards and never in a circle, and the science runs on few packages."""

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import gcflow

PACKAGE = Path(gcflow.__file__).parent
# The command line imports what a verb needs, and the package a module that is named, when it is asked for.
LAZY = ("gcflow", "gcflow.__main__", "gcflow.cli")
OURS_FOR_PIPELINES = (
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


def module_name(path):
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): path for path in PACKAGE.rglob("*.py")}
STAGES = [name for name in MODULES if name.startswith("gcflow.pipeline")]
SCIENCE = [name for name in MODULES if not name.startswith(("gcflow.pipeline", "gcflow.tools")) and name not in LAZY]


def imported_modules(name, modules=None):
    """The modules that a module imports: at its top, inside its functions and for type checkers alone."""
    modules, found = MODULES if modules is None else modules, set()
    for node in ast.walk(ast.parse(modules[name].read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            full = {f"{node.module}.{alias.name}" for alias in node.names}
            # `from package import module`, or else `from module import name`.
            found.update(full & modules.keys() or {node.module})
    return found


def circle(modules):
    """Modules that import each other, or None."""
    graph = {name: imported_modules(name, modules) & modules.keys() - {name} for name in modules}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return None


def upwards(name, *above):
    """What a module imports from the layers above it."""
    return [module for module in imported_modules(name) if module.startswith(above)]


def test_no_modules_import_each_other():
    assert circle({name: path for name, path in MODULES.items() if name not in LAZY}) is None


@pytest.mark.parametrize(
    "hidden",
    [
        "def f():\n    from gcflow import a\n",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from gcflow.a import x\n",
        "import gcflow.a\n",
    ],
)
def test_a_hidden_circle_is_found(tmp_path, hidden):
    files = {"a": "from gcflow.b import y\n", "b": hidden}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    found = circle({f"gcflow.{name}": tmp_path / name for name in files})
    assert set(found) == {"gcflow.a", "gcflow.b"}


def test_no_module_of_the_science_imports_a_stage_a_tool_or_the_command_line():
    for name in SCIENCE:
        assert upwards(name, "gcflow.pipeline", "gcflow.tools", "gcflow.cli") == [], name


def test_no_stage_imports_a_tool_or_the_command_line():
    for name in STAGES:
        assert upwards(name, "gcflow.tools", "gcflow.cli") == [], name
    for name in MODULES:
        assert name in LAZY or upwards(name, "gcflow.cli") == [], name


def test_the_theory_rests_on_the_science_and_nothing_of_that_on_the_theory():
    theory = [name for name in SCIENCE if name.startswith("gcflow.theory")]
    for name in set(SCIENCE) - set(theory):
        assert upwards(name, "gcflow.theory") == [], name
    # It knows distributions and their flows, and no training.
    allowed = ("gcflow.oracles", "gcflow.randomness", "gcflow.theory")
    for name in theory:
        assert [module for module in upwards(name, "gcflow") if not module.startswith(allowed)] == [], name


def test_the_science_imports_without_the_packages_of_the_pipeline():
    code = (
        f"import sys\nfor name in {OURS_FOR_PIPELINES!r}: sys.modules[name] = None\n"
        f"import importlib\nfor name in {SCIENCE!r}: importlib.import_module(name)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert len(SCIENCE) > 30


def test_what_computes_nothing_waits_for_no_torch():
    modules = ("pipeline.stages", "pipeline.scheduler", "pipeline.table", "pipeline.figure", "pipeline.ledger.write")
    modules += ("pipeline.report.write", "pipeline.record", "pipeline.adopt", "tools.status", "tools.track.sync")
    code = (
        f"import sys\nimport importlib\nfor name in {modules!r}: importlib.import_module('gcflow.' + name)\n"
        "from pathlib import Path\nfrom gcflow.pipeline.params import Params\n"
        f"from gcflow.pipeline.stages import Stages\nassert list(Stages(Params(Path({str(PACKAGE.parent)!r}, "
        "'params.yaml')), 'paper'))\nassert 'torch' not in sys.modules\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_stages_import_nothing_that_only_others_need():
    code = """
import sys
import gcflow.pipeline.train, gcflow.pipeline.report.write
assert not {"pandas", "matplotlib", "mlflow", "sqlalchemy", "dvc", "snakemake"} & set(sys.modules), sorted(sys.modules)
import gcflow.pipeline.ledger.write
assert not {"pandas", "mlflow", "sqlalchemy", "dvc", "snakemake"} & set(sys.modules), sorted(sys.modules)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
