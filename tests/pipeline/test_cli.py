import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from builders import Outcome, refused
from projects import (
    ROOT,
    SCRIPT,
    contents,
    environment,
    error_line,
    gcflow,
    limit_file_size,
    prepare_data,
    run_folder,
    start,
    tiny_params,
    train_here,
    write_project,
)

from gcflow.cli import main
from gcflow.files import sha256_of
from gcflow.pipeline.features.networks import make_features
from gcflow.pipeline.params import Params
from gcflow.weights import load_tensors

VERBS = {
    "adopt",
    "bench",
    "claims",
    "discrepancy",
    "doctor",
    "evaluate",
    "export",
    "features",
    "figure",
    "import-edm",
    "plan",
    "status",
    "prepare",
    "pretrained",
    "record",
    "reference",
    "report",
    "sample",
    "stages",
    "table",
    "theory",
    "track",
    "train",
    "transport",
    "verify",
}


def process(root: Path, *args: str) -> Outcome:
    result = gcflow(root, *args, check=False)
    return Outcome(result.returncode, result.stdout, result.stderr)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with its data, a feature classifier and a trained run."""
    root = prepare_data(write_project(tmp_path_factory.mktemp("cli") / "project"), "digits", "mixture2d")
    train_here(root, "digits/ic/0")
    make_features(Params(root / "params.yaml"), "digits", Path("archives"), fetch=False)
    return root


# Help.


def imported(root: Path, *args: str) -> tuple[set[str], int]:
    """Top-level modules that a `gcflow` process imports, and its exit code."""
    command = [sys.executable, "-X", "importtime", str(SCRIPT), *args]
    result = subprocess.run(command, cwd=root, env=environment(), capture_output=True, text=True, check=False)
    modules = re.findall(r"^import time:.*\| +([\w.]+)$", result.stderr, re.MULTILINE)
    return {name.split(".")[0] for name in modules}, result.returncode


HEAVY = {"torch", "mlflow", "numpy", "pandas", "matplotlib", "scipy", "sklearn"}


def test_help_lists_every_verb_and_the_exit_codes():
    result = gcflow(Path.cwd(), "--help")
    verbs = result.stdout.split("Stages, ")[1].split("Examples:")[0]
    listed = re.findall(r"^  ([\w-]+)  +\S", verbs, re.MULTILINE)
    assert len(listed) == len(set(listed))
    assert set(listed) == set(main.commands)
    assert set(listed) >= VERBS
    for code in ("0 done", "2 bad input", "3 the loss", "75 stopped"):
        assert code in " ".join(result.stdout.split())


@pytest.mark.parametrize("args", [("--help",), ("train", "--help"), ("track", "sync", "--help"), ("--version",)])
def test_help_imports_nothing_heavy(tmp_path, args):
    modules, code = imported(tmp_path, *args)
    assert code == 0
    assert "click" in modules
    assert modules & HEAVY == set()


def test_a_run_that_does_not_exist_is_refused_before_the_pipelines_packages_are_imported(tmp_path):
    modules, code = imported(write_project(tmp_path), "train", "digits/ic/99")
    assert code == 2
    assert "ruamel" in modules
    assert modules & (HEAVY - {"torch", "numpy"}) == set()


@pytest.mark.parametrize("name", sorted(VERBS))
def test_the_help_of_a_verb_has_an_example_that_calls_it(here, tmp_path, name):
    (example,) = re.findall(r"^\s*Example: (.*)$", here(tmp_path, name, "--help").output, re.MULTILINE)
    assert example.startswith(f"gcflow {name}")


def test_the_examples_of_help_are_runs_of_the_repositorys_own_params(here):
    params = Params(ROOT / "params.yaml")
    text = gcflow(Path.cwd(), "--help").stdout
    runs = re.findall(r"^  +gcflow (?:train|evaluate) (\S+)", text, re.MULTILINE)
    assert runs
    for run in runs:
        params.parse_run(run)


# Bad params.yaml.


def test_a_bad_params_file_is_refused_by_key_and_overwrites_nothing(tmp_path):
    document = tiny_params()
    document["datasets"]["digits"]["training"]["stepps"] = 3
    root = write_project(tmp_path, document)
    (root / "dvc.yaml").write_text("good\n")
    before = contents(root)
    refused(process(root, "stages"), "params.yaml: datasets.digits.training.stepps is not a known key")
    assert contents(root) == before


def test_a_missing_params_file_is_refused_by_name(tmp_path):
    refused(process(tmp_path, "prepare", "digits"), "params.yaml: no such file", "--params")
    refused(process(tmp_path, "--params", "other.yaml", "prepare", "digits"), "other.yaml: no such file")
    refused(process(tmp_path, "--params", str(tmp_path), "prepare", "digits"), str(tmp_path))
    assert list(tmp_path.iterdir()) == []


# Bad names.


@pytest.mark.parametrize(
    ("args", "named"),
    [
        (("prepare", "cifar"), "datasets has no 'cifar'; known: digits, mixture2d"),
        (("features", "cifar"), "datasets has no 'cifar'"),
        (("reference", "cifar"), "datasets has no 'cifar'"),
        (("transport", "cifar"), "datasets has no 'cifar'"),
        (("table", "cifar", "table1"), "datasets has no 'cifar'"),
        (("figure", "cifar", "samples"), "datasets has no 'cifar'"),
        (("train", "cifar/ic/0"), "datasets has no 'cifar'"),
        (("train", "digits/ot/0"), "datasets.digits.runs has no 'ot'; known: ic, gc, gc-frozen, cd, denoiser"),
        (("evaluate", "digits/ic/7"), "datasets.digits.runs.ic.seeds has no 7; known: 0, 1"),
        (("train", "digits-ic-0"), "run 'digits-ic-0' is not of the form dataset/method/seed"),
        (("evaluate", "digits/ic/zero"), "run 'digits/ic/zero' is not of the form dataset/method/seed"),
        (("table", "digits", "table9"), "datasets.digits.tables has no 'table9'; known: table1; did you mean"),
        (("figure", "digits", "nope"), "datasets.digits.figures has no 'nope'; known: convergence"),
        (("features", "mixture2d"), "datasets.mixture2d.features.kind is identity"),
        (("transport", "mixture2d"), "datasets.mixture2d.transport is missing"),
    ],
)
def test_a_name_that_does_not_exist_is_refused_with_what_is_known(root, here, args, named):
    before = contents(root)
    refused(here(root, *args), named)
    assert contents(root) == before


# Damaged inputs.


def no_manifest(folder: Path) -> str:
    (folder / "manifest.json").unlink()
    return "manifest.json: missing, so preparation did not finish; run gcflow prepare digits"


def truncated_samples(folder: Path) -> str:
    os.truncate(folder / "samples.npy", 5000)
    return "samples.npy: sha256 differs from manifest.json"


def another_hash(folder: Path) -> str:
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["sha256"]["labels.npy"] = "0" * 64
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return "labels.npy: sha256 differs from manifest.json"


def manifest_not_json(folder: Path) -> str:
    (folder / "manifest.json").write_text("{")
    return "manifest.json: not valid JSON"


@pytest.mark.parametrize(
    ("damage", "verb"),
    [
        (no_manifest, ("train", "digits/ic/0")),
        (truncated_samples, ("features", "digits")),
        (another_hash, ("reference", "digits")),
        (manifest_not_json, ("train", "digits/ic/0")),
    ],
)
def test_damaged_data_are_refused_by_file_and_nothing_is_overwritten(root, here, damage, verb):
    expected = damage(root / "data" / "digits")
    before = contents(root)
    refused(here(root, *verb), f"data/digits/{expected}")
    assert contents(root) == before


def test_data_that_cannot_be_written_are_named_and_leave_the_old_arrays(root):
    before = contents(root)
    result = gcflow(root, "prepare", "digits", check=False, preexec=lambda: limit_file_size(20_000))
    after = contents(root)
    assert after.items() <= before.items()
    assert before.keys() - after.keys() <= {"data/digits/manifest.json"}
    refused(Outcome(result.returncode, result.stdout, result.stderr), "data/digits/samples.npy: ")


def test_within_a_workflow_a_failure_that_can_only_be_repeated_is_repeated_at_once(tmp_path):
    root, failures = write_project(tmp_path / "project"), tmp_path / "failures"
    failures.mkdir()
    workflow = {"GCFLOW_FAILURES": str(failures)}
    first = gcflow(root, "train", "digits/ic/0", check=False, env=workflow)
    prepare_data(root, "digits")
    retry = gcflow(root, "train", "digits/ic/0", check=False, env=workflow)
    assert (retry.returncode, retry.stderr) == (first.returncode, first.stderr) == (2, first.stderr)
    (line,) = failures.iterdir()
    line.write_text("3 digits/ic/0: loss is nan")
    retry = gcflow(root, "train", "digits/ic/0", check=False, env=workflow)
    assert (retry.returncode, retry.stderr) == (3, "gcflow: error: digits/ic/0: loss is nan\n")
    # Another run, or a person's own start, is none of its retries.
    gcflow(root, "train", "digits/ic/1", env=workflow)
    gcflow(root, "train", "digits/ic/0")


def test_missing_features_are_refused_by_file(root, here):
    reference, classifier = (
        f"results/digits/features/{name}.safetensors" for name in ("reference-classifier", "classifier")
    )
    refused(here(root, "evaluate", "digits/ic/0"), f"{reference}: no such file")
    (root / classifier).unlink()
    before = contents(root)
    refused(here(root, "reference", "digits"), f"{classifier}: no such file")
    assert contents(root) == before


def test_missing_and_damaged_snapshots_are_refused_by_file(root, here):
    snapshot = root / "results" / "digits" / "ic" / "seed0" / "snapshots" / "00000020.safetensors"
    assert here(root, "reference", "digits").code == 0
    os.truncate(snapshot, 1000)
    name = str(snapshot.relative_to(root))
    refused(here(root, "evaluate", "digits/ic/0"), f"{name}: not a readable safetensors file")
    snapshot.unlink()
    refused(here(root, "evaluate", "digits/ic/0"), f"{name}: no such file")
    assert not (root / "results" / "digits" / "ic" / "seed0" / "evaluation").exists()


def test_a_view_without_its_numbers_is_refused_by_file(root, here):
    missing = "results/digits/ic/seed0/evaluation/metrics.json: no such file"
    reference = "results/digits/features/reference-classifier.safetensors: no such file"
    refused(here(root, "table", "digits", "table1"), reference)
    refused(here(root, "figure", "digits", "convergence"), missing)
    refused(here(root, "figure", "digits", "transport-cost"), "results/digits/transport.json: no such file")
    assert not (root / "results" / "digits" / "tables").exists()


@pytest.mark.parametrize("content", ["[]", "{}"])
def test_numbers_of_another_kind_are_refused_by_file(root, here, content):
    path = root / "results" / "digits" / "ic" / "seed0" / "evaluation" / "metrics.json"
    path.parent.mkdir()
    path.write_text(content)
    refused(here(root, "table", "digits", "table1"), str(path.relative_to(root)))


@pytest.mark.parametrize("device", ["banana", "cuda:99"])
def test_a_device_that_does_not_exist_is_refused_by_name(root, here, device):
    before = contents(root)
    refused(here(root, "train", "digits/ic/0", "--device", device), device)
    assert contents(root).items() >= before.items()


# Environments.


@pytest.mark.parametrize("place", [{"RANK": ""}, {"RANK": "3"}, {"WORLD_SIZE": ""}, {"RANK": "1", "WORLD_SIZE": "2"}])
def test_what_a_launcher_left_in_the_environment_keeps_no_verb_from_speaking(root, here, monkeypatch, place):
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    refused(here(root, "prepare", "cifar"), "datasets has no 'cifar'")
    refused(here(root, "evaluate", "digits/ic/0"), "features/")
    if place.get("WORLD_SIZE") == "":
        assert here(root, "train", "digits/ic/0").code == 0
    if place.get("WORLD_SIZE") == "2":
        refused(here(root, "train", "digits/ic/0"), "the processes of this run do not find each other")


def test_a_number_of_processes_that_is_none_is_refused(root, here, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "two")
    refused(here(root, "train", "digits/ic/0"), "WORLD_SIZE is 'two'")


def test_text_is_utf_8_whatever_the_locale(tmp_path):
    document = tiny_params()
    document["datasets"]["digits"]["tables"]["table1"]["title"] = "Share μ, ± and 日本"
    root = write_project(tmp_path, document)
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    result = gcflow(root, "report", check=False, env=ascii_only)
    assert (result.returncode, "Traceback" in result.stderr) == (0, False)
    assert "μ" in (root / "results" / "report.html").read_text("utf-8")
    result = gcflow(root, "status", check=False, env=ascii_only)
    assert (result.returncode, "Traceback" in result.stderr) == (0, False)


def test_who_reads_no_further_ends_a_verb_without_a_word(tmp_path):
    process = start(write_project(tmp_path), "status")
    process.stdout.close()
    assert process.wait() != 0
    assert process.stderr.read() == ""


def test_closed_standard_streams_are_none_of_a_runs_files(tmp_path):
    root = prepare_data(write_project(tmp_path), "mixture2d")
    command = f"{SCRIPT} train mixture2d/ic/0 <&- >&- 2>&-"
    result = subprocess.run(["bash", "-c", command], cwd=root, env=environment(), capture_output=True, check=False)
    assert result.returncode == 0, result.stderr
    assert b"Traceback" not in result.stderr
    lines = (run_folder(root, "mixture2d/ic/0") / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines][-1] == 40
    assert load_tensors(run_folder(root, "mixture2d/ic/0") / "weights.safetensors")[1]["step"] == 40


@pytest.mark.parametrize("command", ["--help", "status"])
def test_a_full_disk_behind_what_is_printed_is_one_line(tmp_path, command):
    result = subprocess.run(
        ["bash", "-c", f"{SCRIPT} {command} > /dev/full"],
        cwd=write_project(tmp_path),
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2
    assert error_line(result.stderr).startswith("No space left on device")


# Samples.


WEIGHTS = "results/digits/ic/seed0/weights.safetensors"


# Weights from elsewhere, and for elsewhere.


UNET = {"architecture": "ddpm++", "channels": 8, "multipliers": [1, 2], "blocks": 1, "attention": [4], "dropout": 0.1}
IMPORTED = "checkpoints/denoiser.safetensors"


@pytest.fixture(scope="module")
def unets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project of U-Nets with a denoiser, and a run of distillation and one of ECT from it and from a file of it."""
    params = tiny_params()
    digits = params["datasets"]["digits"]
    digits["network"] = UNET
    digits["training"] |= {"steps": 8, "snapshot_every": 8}
    # Those that a plain state dict is taken to be of.
    digits["process"] = {"sigma_data": 0.5}
    methods, runs = digits["methods"], digits["runs"]
    for method in ("gc-frozen", "ect-gc"):
        del methods[method], runs[method]
    for method, role in (("cd", "teacher"), ("ect", "init")):
        methods[f"{method}-file"] = methods[method] | {role: {"file": IMPORTED}}
        runs[f"{method}-file"] = {"label": "from a file", "seeds": [0]}
    root = prepare_data(write_project(tmp_path_factory.mktemp("unets") / "project", params), "digits")
    for method in ("denoiser", "cd", "ect"):
        train_here(root, f"digits/{method}/0")
    return root


@pytest.mark.parametrize("name", ["network.pt", "network.safetensors"])
def test_an_exported_network_is_imported_again_and_serves_as_teacher_and_as_start(unets, here, tmp_path, name):
    root = Path(shutil.copytree(unets, tmp_path / "project"))
    trained = f"{run_folder(Path(), 'digits/denoiser/0')}/weights.safetensors"
    outcome = here(root, "export", trained, "--out", name)
    assert (outcome.code, outcome.output) == (0, "")
    outcome = here(root, "import-edm", name, "--preconditioning", "edm", "--out", IMPORTED)
    assert (outcome.code, outcome.output) == (0, "")
    expected = "ddpm++, 8 channels x [1, 2], edm preconditioning, samples of shape [1, 8, 8]"
    assert outcome.errors.splitlines() == [f"  {IMPORTED}: {expected}"]
    assert process(root, "stages").code == 0
    assert IMPORTED in (root / "workflow/runs.yaml").read_text()

    drawn = []
    for weights in (trained, IMPORTED):
        assert here(root, "sample", weights, "--count", "4", "--heun-steps", "3", "--out", "four.npy").code == 0
        drawn.append((root / "four.npy").read_bytes())
    assert drawn[0] == drawn[1]

    for method, role in (("cd", "teacher"), ("ect", "init")):
        assert here(root, "train", f"digits/{method}-file/0").code == 0
        folder = run_folder(root, f"digits/{method}-file/0")
        ours, header = load_tensors(folder / "weights.safetensors")
        theirs, _ = load_tensors(run_folder(root, f"digits/{method}/0") / "weights.safetensors")
        assert ours.keys() == theirs.keys()
        assert all(ours[tensor].equal(theirs[tensor]) for tensor in ours)
        assert header["inputs"][f"{role}_sha256"] == sha256_of(root / IMPORTED)


@pytest.mark.parametrize(
    ("args", "named"),
    [
        (("import-edm", "network.pt", "--out", IMPORTED), "network.pt: is a plain state dict, which does not tell its"),
        (("import-edm", "missing.pkl", "--out", IMPORTED), "missing.pkl: no such file"),
        (("import-edm", "params.yaml", "--out", IMPORTED), "params.yaml: "),
        (("import-edm", WEIGHTS, "--preconditioning", "edm", "--out", IMPORTED), f"{WEIGHTS}: no such file"),
        (("export", "missing.safetensors", "--out", "a.pt"), "missing.safetensors: no such file"),
        (("export", "network.pt", "--out", "a.pt"), "network.pt: not a readable safetensors file"),
        (("export", "results/digits/denoiser/seed0/weights.safetensors", "--out", "a.pkl"), "a.pkl: "),
    ],
)
def test_what_cannot_be_imported_or_exported_is_refused_by_file(unets, here, tmp_path, args, named):
    root = Path(shutil.copytree(unets, tmp_path / "project"))
    trained = "results/digits/denoiser/seed0/weights.safetensors"
    assert here(root, "export", trained, "--out", "network.pt").code == 0
    before = contents(root)
    refused(here(root, *args), named)
    assert contents(root) == before


@pytest.mark.parametrize(
    ("words", "file", "command"),
    [
        (
            "evaluate digits/ic/0",
            "digits/features/reference-classifier.safetensors",
            "gcflow reference digits classifier",
        ),
        ("figure digits transport-cost", "digits/transport.json", "gcflow transport digits"),
        ("figure mixture2d samples", "mixture2d/ic/seed0/evaluation/samples.npy", "gcflow evaluate mixture2d/ic/0"),
    ],
)
def test_a_file_that_is_not_there_yet_is_named_with_the_command_that_makes_it(here, root, words, file, command):
    refused(here(root, *words.split()), f"results/{file}: no such file; run {command}")


@pytest.mark.slow
def test_a_machine_without_a_compiler_says_so_in_one_line(tmp_path):
    document = tiny_params()
    document["datasets"]["digits"]["training"]["compile"] = "default"
    root = prepare_data(write_project(tmp_path, document), "digits")
    found = gcflow(root, "train", "digits/ic/0", check=False, env={"PATH": str(tmp_path)})
    expected = "training.compile needs a C and a C++ compiler"
    refused(Outcome(found.returncode, found.stdout, found.stderr), expected)


# Stages.


def test_stages_are_written_once_and_again_when_the_grid_has_changed(tmp_path):
    root = write_project(tmp_path)
    assert "written" in process(root, "stages").errors
    written = contents(root)
    assert "up to date" in process(root, "stages").errors
    assert contents(root) == written
    document = tiny_params()
    document["datasets"]["digits"]["runs"]["ic"]["seeds"] = [0, 1, 2]
    write_project(root, document)
    assert "written" in process(root, "stages").errors
    assert contents(root) != written
