"""`gcflow doctor`: what it says of a machine and a project that lack something, and of those that lack nothing."""

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import dinov2_weights
from projects import ROOT, SCRIPT, contents, environment, error_line, gcflow, prepare_data, tiny_params, write_project
from workflows import clone

from gcflow.errors import GcflowError
from gcflow.files import sha256_of
from gcflow.inception import INCEPTION_URL, write_surrogate
from gcflow.pipeline.params import Params
from gcflow.pipeline.versions import run_dvc
from gcflow.tools import doctor
from gcflow.tools.doctor import Asked, Check, Note, look, user
from gcflow.weights import save_tensors

FOLDER = {"source": "folder", "path": "photos.zip", "size": 32, "images": 10}
PICKLE_URL = "https://example.org/model.pkl"


def paper_params(data: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """A grid with a data set `photos` at the paper's scale, beside the tiny ones."""
    document = tiny_params()
    entry = json.loads(json.dumps(document["datasets"]["mixture2d"]))
    entry |= {
        "scale": "paper",
        "data": data or FOLDER,
        "features": {"kind": "inception", "weights": "inception.pt", "protocols": {"clean": {"score_splits": 2}}},
        "figures": {"grid": {"kind": "samples", "title": "Photographs", "reproduces": "figure9", "methods": ["ic"]}},
    }
    document["datasets"]["photos"] = entry | changes
    return document


def project(root: Path, document: dict[str, Any] | None = None) -> Path:
    write_project(root, document or paper_params())
    (root / "archives").mkdir(exist_ok=True)
    return root


def asked(root: Path, scale: str = "paper") -> Asked:
    return Asked(root / "params.yaml", scale, Path("archives"))


def refused(call: Callable[[], Any], *named: str, kind: type[GcflowError] = GcflowError) -> None:
    """That a check fails, in words that name what is wrong and, behind a semicolon, what to do."""
    with pytest.raises(GcflowError) as caught:
        call()
    assert type(caught.value) is kind
    for name in named:
        assert name in str(caught.value)


# The command.


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone that lacks nothing at the embedded scale, though its archives are missing."""
    return clone(tmp_path_factory.mktemp("ready") / "clone", paper_params())


@pytest.mark.service
def test_a_project_that_lacks_nothing_at_its_scale_can_be_made(ready):
    before = contents(ready)
    result = gcflow(ready, "doctor")
    *lines, last = result.stdout.splitlines()
    assert last == "everything at scale embedded: can be made here"
    assert "✓ params.yaml: 3 data sets, 10 runs" in lines
    assert "✓ data digits: not prepared yet, needs no download" in lines
    (plan,) = (line for line in lines if line.startswith("✓ Snakemake: "))
    made, _, of, *_ = plan.removeprefix("✓ Snakemake: ").split()
    assert made == of
    assert "photos" not in result.stdout
    assert "\x1b" not in result.stdout
    assert {
        path for path in contents(ready).items() - before.items() if not path[0].startswith((".snakemake", ".dvc/tmp"))
    } == set()


@pytest.mark.service
def test_what_is_missing_is_said_with_what_to_do_and_ends_with_2(ready):
    result = gcflow(ready, "doctor", env={"GCFLOW_SCALE": "paper"}, check=False)
    assert (result.returncode, result.stderr) == (2, "")
    lines = result.stdout.splitlines()
    place = lines.index("✗ data photos: archives/photos.zip: missing")
    assert lines[place + 1] == "    → put a folder, zip, tar or tar.gz of images there"
    place = lines.index("✗ features photos: archives/inception.pt: missing")
    assert lines[place + 1].endswith("to there, or set GCFLOW_DOWNLOAD=1")
    assert lines[-1] == "everything at scale paper: cannot be made here yet"


@pytest.mark.parametrize("module", ["pydantic", "torch"])
def test_a_package_that_does_not_import_is_named_without_a_traceback(tmp_path, module):
    shadow = project(tmp_path / "project") / "shadow"
    shadow.mkdir()
    (shadow / f"{module}.py").write_text(f"raise ModuleNotFoundError('No module named {module}', name={module!r})\n")
    result = gcflow(
        tmp_path / "project", "doctor", check=False, env={"PYTHONPATH": f"{shadow}:{os.environ.get('PYTHONPATH', '')}"}
    )
    assert result.returncode == 2
    assert "Traceback" not in result.stdout + result.stderr
    assert f"ModuleNotFoundError: No module named {module}\n    → python -m pip install {module}\n" in result.stdout


def test_a_terminal_that_cannot_show_marks_gets_the_words(tmp_path):
    command = [sys.executable, str(SCRIPT), "doctor"]
    latin = environment({"PYTHONIOENCODING": "latin-1"})
    result = subprocess.run(command, cwd=tmp_path, env=latin, capture_output=True, check=False)
    assert (result.returncode, result.stderr) == (2, b"")
    assert b"? params.yaml: params.yaml: no such file" in result.stdout


def test_each_mistake_in_params_is_a_line_and_the_machine_is_examined_still(tmp_path):
    document = tiny_params()
    document["datasets"]["digits"]["training"]["stepps"] = 3
    document["datasets"]["digits"]["features"]["epochs"] = "many"
    result = gcflow(project(tmp_path, document), "doctor", check=False)
    assert result.returncode == 2
    assert "✗ params.yaml: params.yaml: datasets.digits.training.stepps is not a known key" in result.stdout
    assert "✗ params.yaml: params.yaml: datasets.digits.features.epochs is 'many'" in result.stdout
    for name in ("packages", "device", "folders"):
        assert f"✓ {name}: " in result.stdout


@pytest.mark.parametrize("target", ["tabel1", "digits/gc/9"])
def test_a_target_that_does_not_exist_is_refused_with_what_is_known(tmp_path, target):
    result = gcflow(project(tmp_path), "doctor", target, check=False)
    assert result.returncode == 2
    assert "known" in error_line(result.stderr)


@pytest.mark.parametrize(
    ("target", "scale", "datasets"),
    [
        ("all", "embedded", {"digits", "mixture2d", "gaussian2d", "two-gaussians2d"}),
        # Of its data sets the one whose figure shows a trained predictor.
        ("figure1", "paper", {"two-gaussians2d"}),
        ("figure1", "embedded", {"two-gaussians2d"}),
        ("digits/gc/0", "paper", {"digits"}),
        ("all", "paper", {"cifar10", "imagenet32", "celeba64", "church64"}),
    ],
)
def test_only_what_the_target_needs_is_looked_for(target, scale, datasets):
    names = [check.name for check in asked(ROOT, scale).checks(target)]
    found = {name.removeprefix("data ") for name in names if name.startswith("data ")}
    assert found == datasets
    assert ("model edm-cifar10" in names) == (scale == "paper" and target == "all")


def test_a_check_that_fails_in_another_way_than_it_should_is_a_line():
    def failing() -> str:
        raise RuntimeError("first\nsecond")

    assert look(Check("a", failing)) == [("✗", "RuntimeError: first second")]
    assert look(Check("a", failing, needed=False)) == [("!", "RuntimeError: first second")]


# The machine.


def test_a_package_that_is_missing_or_of_another_version_is_named(monkeypatch):
    assert doctor.packages().startswith("Python 3.")
    lines = ["torch>=99", "numpy>=2", "no-such-package-of-gcflow>=1.5", 'also-none; extra == "dev"', "click<1"]
    monkeypatch.setattr(doctor.metadata, "requires", lambda name: lines)
    wrong = f"torch>=99 (here: {torch.__version__}), no-such-package-of-gcflow>=1.5 (here: none), click<1 (here: "
    refused(doctor.packages, f"needs {wrong}", "python -m pip install")


def test_who_has_no_name_is_told_how_to_get_one(monkeypatch):
    monkeypatch.setattr(os, "getuid", lambda: 4_000_000_000)
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(GcflowError, match=r"number 4000000000 has no name.* export USER=me"):
        user()
    monkeypatch.setenv("USER", "me")
    assert user() == "me"


def test_what_dvc_says_of_the_machine_is_shown(tmp_path):
    params = Params(write_project(tmp_path) / "params.yaml")
    with pytest.raises(GcflowError, match=r"dvc status failed: .*not inside of a DVC repository"):
        run_dvc(params, "status", "--json")


def test_a_device_that_is_not_there_is_named():
    refused(partial(doctor.device, "cuda:7"), "cuda:7", "--device cpu")
    refused(partial(doctor.device, "abacus"), "abacus", "--device cpu")
    assert doctor.device("cpu").startswith(f"torch {torch.__version__} on cpu, ")


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Puts shell scripts into a PATH that has little else."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("sh", "echo", "sleep"):
        (folder / name).symlink_to(shutil.which(name))
    monkeypatch.setenv("PATH", str(folder))

    def write(name: str, script: str) -> None:
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)

    return write


def test_a_compiler_is_wanted_with_pythons_headers_and_by_runs_that_are_compiled_alone(programs, tmp_path, monkeypatch):
    found = {name: shutil.which(name, path=os.defpath) for name in ("gcc", "clang")}
    refused(doctor.compiler, "none", "CC")
    programs("clang", "echo no such file: Python.h >&2; exit 1")
    refused(doctor.compiler, "clang", "Python.h")
    if real := found["gcc"]:
        monkeypatch.setenv("PATH", os.defpath)
        monkeypatch.setenv("CC", real)
        assert doctor.compiler() == f"{real}, with Python's headers"
    for mode, names in (("none", []), ("fused", ["compiler"])):
        document = tiny_params()
        document["datasets"]["digits"]["training"]["compile"] = mode
        checks = asked(write_project(tmp_path / mode, document), "embedded").checks("all")
        assert [check.name for check in checks if check.name == "compiler"] == names


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch can use a GPU")
def test_a_gpu_that_torch_cannot_use_is_a_note(programs):
    programs("nvidia-smi", "echo Some GPU, 580.65")
    refused(partial(doctor.device, "auto"), "cannot use this GPU (Some GPU, 580.65); install", kind=Note)
    assert "on cpu" in doctor.device("cpu")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_is_named_with_its_memory():
    assert torch.cuda.get_device_name(0) in doctor.device("auto")


def test_folders_that_cannot_be_written_are_named_and_missing_links_are_a_note(tmp_path, monkeypatch):
    assert doctor.folders(tmp_path).startswith("can be written, ")
    (tmp_path / "results").symlink_to("/proc/sys")
    refused(partial(doctor.folders, tmp_path), "results cannot be written (", "; give yourself the right")
    (tmp_path / "results").unlink()

    def refuse(*_: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    refused(partial(doctor.folders, tmp_path), "without hard links", kind=Note)
    assert list(tmp_path.iterdir()) == []


def test_slurms_partitions_with_gpus_and_its_accounting(programs, tmp_path, monkeypatch):
    assert doctor.slurm().startswith("none here")
    programs("sbatch", "exit 0")
    programs("sinfo", 'echo "one" >&2; echo "Unable to contact slurm controller" >&2; exit 1')
    refused(doctor.slurm, "Unable to contact slurm controller")
    programs("sinfo", 'echo "cpu*|(null)"')
    refused(doctor.slurm, "1 partitions, none with GPUs; ", kind=Note)
    programs("sinfo", 'echo "cpu*|(null)"; echo "long|gpu:a100:4"; echo "long|gpu:a100:4"')
    refused(doctor.slurm, "GPUs in long (gpu:a100:4), no accounting; ", "squeue", kind=Note)
    programs("sacct", "exit 1")
    refused(doctor.slurm, "no accounting", kind=Note)
    programs("sacct", "exit 0")
    assert doctor.slurm() == "GPUs in long (gpu:a100:4), accounting"
    monkeypatch.setattr(doctor, "ANSWER_SECONDS", 0.3)
    programs("sinfo", f"sleep 60; touch {tmp_path / 'answered'}")
    refused(doctor.slurm, "sinfo does not answer")
    assert not (tmp_path / "answered").exists()


def test_dvcs_repository_and_its_remotes(tmp_path):
    refused(partial(doctor.dvc, tmp_path), "no repository; dvc init", kind=Note)
    for command in (["init", "--no-scm", "--quiet"], ["remote", "add", "near", "/somewhere/near"]):
        subprocess.run([sys.executable, "-m", "dvc", *command], cwd=tmp_path, env=environment(), check=True)
    assert doctor.dvc(tmp_path) == "a repository with near (/somewhere/near)"
    cache = tmp_path / ".dvc" / "cache"
    shutil.rmtree(cache / "files")
    (cache / "files").write_text("no folder")
    marks = look(Check("DVC", partial(doctor.dvc, tmp_path), needed=False))
    assert marks[0][0] == "!"
    assert "cache/files" in marks[0][1]
    (cache / "files").unlink()
    (tmp_path / ".dvc" / "config").write_text("[nonsense")
    assert look(Check("DVC", partial(doctor.dvc, tmp_path), needed=False))[0][0] == "!"


def test_a_link_out_of_the_git_repository_is_a_note(tmp_path):
    root = tmp_path / "project"
    root.mkdir()
    for command in (["git", "init", "--quiet"], [sys.executable, "-m", "dvc", "init", "--quiet"]):
        subprocess.run(command, cwd=root, env=environment(), check=True)
    assert doctor.dvc(root).startswith("a repository")
    (tmp_path / "elsewhere").mkdir()
    (root / "data").symlink_to(tmp_path / "elsewhere")
    refused(partial(doctor.dvc, root), f"data is a link to {tmp_path}/elsewhere, and DVC records nothing", kind=Note)


# Data and weights.


def test_prepared_data_are_read_as_a_run_reads_them(tmp_path):
    root = prepare_data(project(tmp_path), "mixture2d")
    check = partial(asked(root).data, "mixture2d")
    assert check() == "400 samples of shape [2], as their manifest says"
    samples = root / "data" / "mixture2d" / "samples.npy"
    content = bytearray(samples.read_bytes())
    content[-1] ^= 1
    samples.write_bytes(content)
    refused(check, "samples.npy: sha256 differs", "; run gcflow prepare mixture2d")
    samples.unlink()
    refused(check, "samples.npy: missing", "; run gcflow prepare mixture2d")


@pytest.mark.parametrize(
    ("data", "named"),
    [
        ({"source": "cifar10"}, "cs.toronto.edu"),
        ({"source": "imagenet32"}, "image-net.org"),
        ({"source": "imagenet32-downsampled"}, "image-net.org"),
        ({"source": "celeba64"}, "mmlab.ie.cuhk.edu.hk"),
        ({"source": "church64"}, "dl.yf.io"),
        (FOLDER, "put a folder"),
    ],
)
def test_a_missing_archive_says_where_it_can_be_had(tmp_path, data, named):
    root = project(tmp_path, paper_params(data))
    refused(partial(asked(root).data, "photos"), "archives/", ": missing; ", named)


def test_an_archive_that_is_there_is_shown_with_its_size(tmp_path):
    root = project(tmp_path)
    (root / "archives" / "photos.zip").write_bytes(bytes(2048))
    assert asked(root).data("photos") == f"not prepared yet, {root / 'archives' / 'photos.zip'} has 2.05\u00a0kB"


def test_inceptions_weights_are_looked_for_and_loaded(tmp_path):
    root = project(tmp_path)
    check = partial(asked(root).features, "photos")
    refused(check, "archives/inception.pt: missing; ", INCEPTION_URL)
    weights = root / "archives" / "inception.pt"
    weights.write_bytes(b"no network")
    refused(check, "not a readable TorchScript file", INCEPTION_URL)
    write_surrogate(weights, 0)
    assert check() == f"{weights}, not as published"
    features = {"kind": "inception", "weights": "inception.pt", "protocols": {"clean": {}}, "sha256": "0" * 64}
    project(root, paper_params(features=features))
    refused(partial(asked(root).features, "photos"), "expected 000")
    made = root / "results" / "photos" / "features" / "inception.pt"
    made.parent.mkdir(parents=True)
    weights.rename(made)
    assert str(made) in check()
    assert asked(root).features("digits") == "a classifier, to be made here"


def test_dinov2s_weights_are_those_published_or_those_that_are_pinned(tmp_path):
    features = {"kind": "dinov2", "protocols": {"pillow": {}}}
    root = project(tmp_path, paper_params(features=features))
    url = "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth"
    refused(partial(asked(root).features, "photos"), "archives/dinov2_vitl14_pretrain.pth: missing; fetch ", url)
    weights = dinov2_weights(root / "archives" / "dinov2_vitl14_pretrain.pth")
    published = "expected d5383ea8f4877b2472eb973e0fd72d557c7da5d3611bd527ceeb1d7162cbf428"
    refused(partial(asked(root).features, "photos"), "another version of DINOv2", sha256_of(weights), published)
    project(root, paper_params(features=features | {"sha256": sha256_of(weights)}))
    assert asked(root).features("photos") == f"{weights}, not as published"


def started_from_a_file(root: Path, sha256: str | None = None, listed: bool = True) -> Asked:
    methods = {"ic": {"objective": "consistency", "coupling": "ic", "init": {"file": "checkpoints/public.safetensors"}}}
    document = paper_params(methods=methods)
    if listed:
        document["pretrained"] = {"public": {"pickle": "model.pkl", "url": PICKLE_URL, "sha256": sha256}}
    return asked(project(root, document))


def test_a_public_model_is_looked_for_among_archives_and_checkpoints(tmp_path):
    check = partial(started_from_a_file(tmp_path).pretrained, "public")
    refused(check, "archives/model.pkl: missing; ", PICKLE_URL)
    pickle = tmp_path / "archives" / "model.pkl"
    pickle.write_bytes(b"\x80\x04N.")
    assert check() == str(pickle)
    refused(partial(started_from_a_file(tmp_path, "0" * 64).pretrained, "public"), "expected 000", PICKLE_URL)
    assert started_from_a_file(tmp_path, sha256_of(pickle)).pretrained("public") == str(pickle)
    imported = tmp_path / "checkpoints" / "public.safetensors"
    save_tensors(imported, {"a": torch.zeros(3)}, {})
    assert check() == f"{imported}, 1 tensors"
    os.truncate(imported, 20)
    refused(check, "public.safetensors: not a readable")


def test_a_start_that_nothing_makes_must_be_there(tmp_path):
    grid = started_from_a_file(tmp_path, listed=False)
    (check,) = (check for check in grid.checks("photos/ic/0") if check.name.startswith("model"))
    assert check.name == "model checkpoints/public.safetensors"
    refused(check.look, "missing; ", "import-edm")
    save_tensors(tmp_path / "checkpoints" / "public.safetensors", {"a": torch.zeros(3)}, {})
    assert check.look().endswith("1 tensors")


# MLflow.


@pytest.fixture
def tracking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[tuple[str, str]]]:
    grid = asked(project(tmp_path / "project"))
    monkeypatch.setattr("gcflow.tools.track.mirror.SETTINGS", {})
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")

    def call(uri: str) -> list[tuple[str, str]]:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        return look(Check("MLflow", grid.tracking, needed=False))

    return call


class Answering(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_: Any) -> None:
        """Says nothing."""


@pytest.fixture
def server() -> Iterator[str]:
    running = ThreadingHTTPServer(("127.0.0.1", 0), Answering)
    threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
    yield f"127.0.0.1:{running.server_port}"
    running.shutdown()
    running.server_close()


def test_a_tracking_server_that_does_not_answer_is_a_note_without_its_password(tracking, server):
    assert tracking(f"http://me:secret@{server}") == [("✓", f"http://{server}")]
    with socket.create_server(("127.0.0.1", 0)) as silent:
        ((mark, text),) = tracking(f"http://me:secret@127.0.0.1:{silent.getsockname()[1]}")
    assert mark == "!"
    assert "secret" not in text
    assert "gcflow track sync sends what is missing" in text


def test_the_tracking_database_must_be_one(tracking, tmp_path):
    path = tmp_path / "runs.db"
    assert tracking(f"sqlite:///{path}") == [("✓", f"sqlite:///{path} is to be made")]
    assert not path.exists()
    path.write_bytes(b"no database at all" * 100)
    ((mark, text),) = tracking(f"sqlite:///{path}")
    assert mark == "!"
    assert "not a database" in text
