import json
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from doctor_projects import FOLDER, asked, paper_params, project, refused
from projects import contents, gcflow, tiny_params

from gcflow.cli import main
from gcflow.pipeline.doctor import diagnose
from gcflow.pipeline.doctor.check import Check, Request
from gcflow.pipeline.doctor.diagnose import Probe, made
from gcflow.pipeline.doctor.project import check_dvc_yaml, check_snakemake, resolve
from gcflow.pipeline.doctor.screen import screen
from gcflow.pipeline.params import Params
from gcflow.pipeline.stages import write_dvc_yaml

REPOSITORY = Path(__file__).parent.parent


class Answer(NamedTuple):
    code: int
    text: str
    checks: dict[str, Check]


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    """`gcflow doctor` within this process; any exception but its exit is a failure."""

    def call(root: Path, *args: str) -> Answer:
        monkeypatch.chdir(root)
        monkeypatch.setenv("GCFLOW_DEVICE", "cpu")
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main(["doctor", *args, "--json", str(root / "answer.json")])
        output, errors = capsys.readouterr()
        assert errors == ""
        answer = json.loads((root / "answer.json").read_text())
        (root / "answer.json").unlink()
        checks = [Check(**check) for check in answer["checks"]]
        code = int(caught.value.code or 0)
        assert answer["can_run"] == (code == 0)
        return Answer(code, output, {check.subject: check for check in checks})

    return call


# The whole screen.


@pytest.fixture
def ready(tmp_path: Path) -> Path:
    """A project that lacks nothing at the embedded scale."""
    root = project(tmp_path, tiny_params())
    write_dvc_yaml(Params(root / "params.yaml"), "embedded")
    return root


def test_a_project_that_lacks_nothing_can_run(ready, here):
    before = contents(ready)
    answer = here(ready)
    assert answer.code == 0, answer.text
    assert answer.text.splitlines()[-1] == "everything at scale embedded: can run here"
    assert answer.checks["params.yaml"].found == "valid: 2 data sets, 9 runs"
    assert answer.checks["dvc.yaml"].verdict == "OK"
    assert answer.checks["disk"].verdict == "OK"
    assert torch.__version__ in answer.checks["torch"].found
    assert answer.checks["device"].found.startswith("CPU, ")
    assert contents(ready) == before


def test_a_screen_has_a_line_per_check_and_one_more_for_what_mends_it(ready, here):
    answer = here(ready)
    *lines, _ = answer.text.splitlines()
    mending = [line for line in lines if line.lstrip().startswith("→ ")]
    checks = [line for line in lines if line not in mending]
    assert [re.split(r"  +", line[2:])[1] for line in checks] == list(answer.checks)
    assert len(mending) == sum(check.verdict != "OK" and check.mend != "" for check in answer.checks.values())
    assert all(re.match(r"[✓!✗-] (OK|warning|missing|broken|skipped) ", line) for line in checks)
    # The address of MLflow's default is as long as the path of the project.
    assert max(len(line) for line in lines if "sqlite:" not in line) <= 100
    assert "\x1b" not in answer.text


def test_everything_that_is_not_ok_says_what_mends_it(ready, here):
    for check in here(ready).checks.values():
        assert check.verdict in ("OK", "skipped") or check.mend, check


def test_a_real_process_exits_with_2_if_something_is_missing(tmp_path):
    root = project(tmp_path, paper_params(FOLDER))
    result = gcflow(root, "doctor", "--scale", "paper", check=False)
    assert (result.returncode, result.stderr) == (2, "")
    assert "✗ missing  archive photos" in result.stdout
    assert "→ put a folder, zip, tar or tar.gz of images there" in result.stdout
    assert "everything at scale paper: cannot run here yet, 2 of " in result.stdout


@pytest.mark.parametrize("module", ["pydantic", "packaging", "torch"])
def test_a_package_that_does_not_import_is_named_without_a_traceback(ready, tmp_path_factory, module):
    shadow = tmp_path_factory.mktemp("shadow")
    (shadow / f"{module}.py").write_text(f"raise ModuleNotFoundError('No module named {module}', name={module!r})\n")
    result = gcflow(ready, "doctor", check=False, env={"PYTHONPATH": str(shadow)})
    assert result.returncode == 2
    assert "Traceback" not in result.stdout + result.stderr
    assert f"ModuleNotFoundError: No module named {module}" in result.stdout
    assert f"→ python -m pip install {module}\n" in result.stdout


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_that_cannot_show_marks_gets_the_words(ready, encoding):
    result = gcflow(ready, "doctor", check=False, env={"PYTHONIOENCODING": encoding, "GCFLOW_SCALE": "embedded"})
    assert result.stderr == ""
    assert result.returncode == 0
    assert "OK       params.yaml" in result.stdout


def test_colours_only_on_a_terminal(ready):
    request, checks = Request(), [Check("data", "OK", "there"), Check("disk", "broken", "full", "free some space")]
    assert "\x1b[32m✓ OK     \x1b[0m" in screen(request, checks)
    assert "\x1b[31m✗ broken \x1b[0m" in screen(request, checks)


# The target.


def test_a_target_is_a_view_a_data_set_a_stage_or_everything(tmp_path):
    root = project(tmp_path, paper_params(FOLDER))
    everything = asked(root, None, "all")
    assert len(everything.needed) == len(list(everything.stages))
    assert asked(root, "figure9").datasets == ["photos"]
    # No data set of the embedded scale answers it.
    assert asked(root, "figure9", "embedded").datasets == ["photos"]
    assert {stage.name for stage in asked(root, "prepare-photos").needed} == {"prepare-photos"}
    frozen = asked(root, "train-digits-gc-frozen-0", "embedded")
    assert {stage.name for stage in frozen.needed} == {
        "prepare-digits",
        "train-digits-ic-0",
        "train-digits-gc-frozen-0",
    }
    assert [run.name for run in frozen.runs] == ["digits/ic/0", "digits/gc-frozen/0"]
    assert asked(root, "figure-mixture2d-samples", "all").datasets == ["mixture2d"]


@pytest.mark.parametrize(
    ("args", "named"),
    [
        (("tabel1",), "digits, mixture2d, and the stages of dvc.yaml"),
        (("photos",), "there is no such thing at scale embedded; give --scale paper"),
        (("train-photos-ic-0",), "give --scale paper"),
        (("digits", "--scale", "paper"), "give --scale embedded"),
    ],
)
def test_a_target_that_does_not_exist_is_refused_with_what_is_known(tmp_path, args, named):
    result = gcflow(project(tmp_path, paper_params(FOLDER)), "doctor", *args, check=False)
    assert result.returncode == 2
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"gcflow: error: target {args[0]!r}: ")
    assert named in line


def test_only_what_the_target_needs_fails(tmp_path, here):
    root = project(tmp_path, paper_params(FOLDER))
    assert here(root, "digits", "--scale", "all").code == 0
    answer = here(root, "prepare-photos", "--scale", "all")
    assert answer.code == 2
    assert [name for name, check in answer.checks.items() if check.fails] == ["archive photos"]


@pytest.mark.parametrize("target", ["table1", "figure2", "cifar10", "edm-cifar10", "claims"])
def test_the_repositorys_own_targets_resolve(target):
    request = Request(REPOSITORY / "params.yaml", "pretrained-edm-cifar10" if "edm" in target else target, "paper")
    needed = resolve(request, Params(request.path))
    assert needed.needed
    assert ("cifar10" in needed.datasets) == (target != "edm-cifar10")


# params.yaml, dvc.yaml, Snakemake.


def test_each_mistake_in_params_is_a_line_and_the_machine_is_examined_still(tmp_path, here):
    document = tiny_params()
    document["datasets"]["digits"]["training"]["stepps"] = 3
    document["datasets"]["digits"]["features"]["epochs"] = "many"
    answer = here(project(tmp_path, document))
    assert answer.code == 2
    assert "✗ broken   params.yaml  datasets.digits.training.stepps is not a known key" in answer.text
    assert "✗ broken   params.yaml  datasets.digits.features.epochs is 'many'" in answer.text
    assert {"Python", "packages", "device", "Snakemake", "folders", "Slurm"} <= set(answer.checks)
    assert answer.checks["the rest"].verdict == "skipped"


@pytest.mark.parametrize("text", ["a: [", "\x00", "3", ""])
def test_a_params_file_that_is_no_yaml_mapping_is_one_line(tmp_path, here, text):
    root = project(tmp_path, tiny_params())
    (root / "params.yaml").write_text(text)
    refused(here(root).checks["params.yaml"], "broken")


def test_a_missing_params_file_is_missing(tmp_path, here):
    refused(here(tmp_path).checks["params.yaml"], "missing", "--params")


def test_dvc_yaml_is_compared_with_params_at_the_scale(tmp_path):
    root = project(tmp_path, paper_params(FOLDER))
    params = Params(root / "params.yaml")

    def check(scale: str) -> Check:
        (found,) = check_dvc_yaml(params, scale)
        assert not found.fails
        return found

    assert check("paper").verdict == "missing"
    write_dvc_yaml(params, "paper")
    assert check("paper").verdict == "OK"
    assert (check("embedded").verdict, check("embedded").mend) == ("warning", "gcflow stages --scale embedded")
    write_dvc_yaml(params, "all")
    assert check("embedded").found == "up to date for scale all"


def test_without_a_snakefile_there_is_nothing_to_schedule(tmp_path):
    (check,) = check_snakemake(tmp_path)
    refused(check, "missing", "Snakefile")


# Checks that fail themselves.


def test_a_check_that_fails_or_hangs_is_broken_and_the_others_are_made(monkeypatch):
    monkeypatch.setattr(diagnose, "PATIENCE_SECONDS", 1.0)

    def failing() -> list[Check]:
        raise RuntimeError("first\nsecond")

    done = threading.Event()
    outlasted = []

    def hanging() -> list[Check]:
        outlasted.append(done.wait(60))
        return []

    fine = Check("fine", "OK", "there")
    checks = made(
        [
            Probe("a", failing),
            Probe("b", hanging, waits=True),
            Probe("c", failing, needed=False, waits=True),
            Probe("d", lambda: [fine]),
        ]
    )
    assert not outlasted
    done.set()
    assert [(check.subject, check.verdict, check.fails) for check in checks] == [
        ("a", "broken", True),
        ("b", "broken", True),
        ("c", "broken", False),
        ("fine", "OK", False),
    ]
    assert checks[0].found == "RuntimeError: first second"
    assert "no answer" in checks[1].found
    text = screen(Request(), checks)
    assert text.splitlines()[-1].count("2 of 4 checks fail")
