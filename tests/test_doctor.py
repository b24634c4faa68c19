import base64
import hashlib
import json
import os
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pytest
import torch
from archive_files import RANDOM, photograph, write_lmdb, write_tar, write_zip
from projects import contents, gcflow, prepare_data, tiny_params, train_here, write_project

from gcflow.cli import main
from gcflow.data import prepare
from gcflow.files import sha256_of
from gcflow.inception import INCEPTION_URL, write_surrogate
from gcflow.pipeline import doctor
from gcflow.pipeline.doctor import Check, Probe, Request, made, needed_bytes, resolve, screen
from gcflow.pipeline.params import Params
from gcflow.pipeline.stages import Stages, write_dvc_yaml
from gcflow.weights import save_tensors

REPOSITORY = Path(__file__).parent.parent
PICKLE_URL = "https://example.org/model.pkl"


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


def paper_params(data: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A grid with a data set `photos` at the paper's scale, beside the tiny ones."""
    document = tiny_params()
    entry = json.loads(json.dumps(document["datasets"]["mixture2d"]))
    entry |= {
        "scale": "paper",
        "data": data,
        "features": {"kind": "inception", "weights": "inception.pt", "protocols": {"clean": {}}},
        "figures": {"grid": {"kind": "samples", "title": "Photographs", "reproduces": "figure9", "methods": ["ic"]}},
    }
    document["datasets"]["photos"] = entry | changes
    return document


def project(root: Path, document: dict[str, Any]) -> Path:
    write_project(root, document)
    (root / "archives").mkdir(exist_ok=True)
    (root / "Snakefile").touch()
    return root


FOLDER = {"source": "folder", "path": "photos.zip", "size": 32, "images": 6}


def photographs(count: int = 6) -> dict[str, bytes]:
    return {f"a/{number}.jpg": photograph() for number in range(count)}


def asked(root: Path, target: str | None = "photos", scale: str = "paper", thorough: bool = False) -> doctor.Target:
    request = Request(root / "params.yaml", target, scale, thorough=thorough)
    return resolve(request, Params(request.path))


def data_checks(root: Path, thorough: bool = False) -> list[Check]:
    return list(doctor.check_data(asked(root, thorough=thorough)))


def data_check(root: Path, thorough: bool = False) -> Check:
    (check,) = data_checks(root, thorough)
    return check


def refused(check: Check, verdict: str, *named: str) -> None:
    """That a check failed, in words that name what is wrong and what to do."""
    assert check.verdict == verdict, check
    assert check.fails
    assert check.mend
    for name in named:
        assert name in f"{check.found} {check.mend}"


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


def test_a_real_process_answers_in_seconds_and_exits_with_2_if_something_is_missing(tmp_path):
    root = project(tmp_path, paper_params(FOLDER))
    begun = time.monotonic()
    result = gcflow(root, "doctor", "--scale", "paper", check=False)
    assert time.monotonic() - begun < 30
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


# Python, packages, device.


def test_a_package_that_is_missing_or_of_another_version_is_named():
    lines = ["torch>=99", "numpy>=2", "no-such-package-of-gcflow>=1.5", 'also-none; extra == "dev"']
    (check,) = doctor.check_packages(lines)
    refused(check, "missing", f"torch {torch.__version__} is not >=99", "no-such-package-of-gcflow is not installed")
    assert check.mend == "python -m pip install 'torch>=99' 'no-such-package-of-gcflow>=1.5'"
    assert "also-none" not in check.found
    (old,) = doctor.check_packages(['numpy<2; extra == "pipeline"'])
    refused(old, "broken", f"numpy {np.__version__} is not <2")


def test_the_installed_packages_are_those_required():
    (check,) = doctor.check_packages()
    assert check.verdict == "OK", check
    (python,) = doctor.check_python()
    assert python.found == ".".join(map(str, sys.version_info[:3]))


def test_a_device_that_is_not_there_is_broken_and_named():
    *_, check = doctor.check_device("cuda:7", False)
    refused(check, "broken", "cuda:7", "--device cpu")
    *_, unknown = doctor.check_device("abacus", False)
    refused(unknown, "broken", "abacus")


def test_the_cpu_is_fine_at_the_embedded_scale_and_slow_beyond(tmp_path):
    *_, check = doctor.check_device("cpu", False)
    assert check.verdict == "OK"
    assert asked(write_project(tmp_path), None, "embedded").slow_on_cpu is False
    beyond = asked(project(tmp_path, paper_params(FOLDER)), "photos")
    assert beyond.slow_on_cpu
    *_, slow = doctor.check_device("cpu", beyond.slow_on_cpu)
    assert (slow.verdict, slow.fails) == ("warning", False)
    assert "weeks" in slow.found
    assert not asked(tmp_path, "prepare-photos").slow_on_cpu


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch can use a GPU")
def test_a_gpu_that_torch_cannot_use_is_a_warning(programs):
    programs("nvidia-smi", 'case "$1" in *name) echo "Some GPU";; *) echo 580.65;; esac')
    version, check = doctor.check_device("auto", False)
    assert "driver 580.65" in version.found
    assert (check.verdict, check.fails) == ("warning", False)
    assert "Some GPU" in check.found


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_is_named_with_its_memory():
    version, check = doctor.check_device("auto", True)
    assert check.verdict == "OK"
    assert torch.cuda.get_device_name(0) in check.found
    assert re.search(r"[\d.]+ GiB of [\d.]+ GiB free, (no )?bf16", check.found)
    assert f"CUDA {torch.version.cuda}" in version.found


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
        (found,) = doctor.check_dvc_yaml(params, scale)
        assert not found.fails
        return found

    assert check("paper").verdict == "missing"
    write_dvc_yaml(params, "paper")
    assert check("paper").verdict == "OK"
    assert (check("embedded").verdict, check("embedded").mend) == ("warning", "gcflow stages --scale embedded")
    write_dvc_yaml(params, "all")
    assert check("embedded").found == "up to date for scale all"


def test_without_a_snakefile_there_is_nothing_to_schedule(tmp_path):
    (check,) = doctor.check_snakemake(tmp_path)
    refused(check, "missing", "Snakefile")


# Data.


def test_prepared_data_are_compared_with_their_manifest(tmp_path):
    root = prepare_data(write_project(tmp_path), "mixture2d")
    folder = root / "data" / "mixture2d"

    def check(thorough: bool = False) -> Check:
        (found,) = doctor.check_data(asked(root, "mixture2d", "embedded", thorough))
        return found

    assert check().found == "400 samples of shape 2, sizes as in the manifest"
    assert check(thorough=True).found.endswith("sha256 as in the manifest")
    manifest = json.loads((folder / "manifest.json").read_text())

    samples = (folder / "samples.npy").read_bytes()
    flipped = bytearray(samples)
    flipped[-1] ^= 1
    (folder / "samples.npy").write_bytes(flipped)
    assert check().verdict == "OK"
    refused(check(thorough=True), "broken", "samples.npy: sha256 differs", "gcflow prepare mixture2d")
    (folder / "samples.npy").write_bytes(samples[:-100])
    refused(check(), "broken", "samples.npy", "gcflow prepare mixture2d")
    (folder / "samples.npy").unlink()
    refused(check(), "missing", "samples.npy")
    (folder / "samples.npy").write_bytes(samples)

    (folder / "manifest.json").write_text(json.dumps(manifest | {"count": 399}))
    refused(check(), "broken", "shape [400, 2], the manifest says [399, 2]")
    (folder / "manifest.json").write_text(json.dumps({"count": 400}))
    refused(check(), "broken", "lacks count, shape or held_out")
    (folder / "manifest.json").write_text("{")
    refused(check(), "broken", "not valid JSON")


def test_data_of_other_options_than_params_are_shown_and_harm_nothing(tmp_path):
    document = tiny_params()
    root = prepare_data(write_project(tmp_path, document), "mixture2d")
    document["datasets"]["mixture2d"]["data"]["seed"] = 5
    write_project(root, document)
    (check,) = doctor.check_data(asked(root, "mixture2d", "embedded"))
    assert (check.verdict, check.mend, check.fails) == ("warning", "gcflow prepare mixture2d", False)


def test_a_folder_zip_tar_or_targz_that_is_whole_is_ok_and_a_cut_one_is_not(tmp_path):
    for name, write in (
        ("photos.zip", write_zip),
        ("photos.tar", write_tar),
        ("photos.tar.gz", lambda path, members: write_tar(path, members, "w:gz")),
    ):
        root = project(tmp_path / name.replace(".", "-"), paper_params(FOLDER | {"path": name}))
        archive = write(root / "archives" / name, photographs())
        whole = data_check(root)
        assert whole.verdict == "OK", whole
        assert name in whole.found
        assert data_check(root, thorough=True).found.endswith("all of it reads")
        content = archive.read_bytes()
        for part in (len(content) // 2, len(content) - 20, 0):
            archive.write_bytes(content[:part])
            refused(data_check(root), "broken", name, "fetch it again")
        archive.write_bytes(b"<html>please sign in</html>" * 500)
        refused(data_check(root), "broken", "so it is no archive")


def test_an_archive_with_too_few_images_is_broken(tmp_path):
    root = project(tmp_path, paper_params(FOLDER | {"images": 7}))
    write_zip(root / "archives" / "photos.zip", photographs(6))
    refused(data_check(root), "broken", "holds 6 images, expected 7")


def test_a_damaged_byte_of_a_zip_is_found_by_a_thorough_look_alone(tmp_path):
    root = project(tmp_path, paper_params(FOLDER))
    archive = write_zip(root / "archives" / "photos.zip", photographs())
    content = bytearray(archive.read_bytes())
    content[200] ^= 255
    archive.write_bytes(content)
    assert data_check(root).verdict == "OK"
    refused(data_check(root, thorough=True), "broken", "photos.zip")


def test_a_folder_of_images_is_ok_and_one_without_is_not(tmp_path):
    root = project(tmp_path, paper_params(FOLDER | {"path": "photos"}))
    folder = root / "archives" / "photos"
    folder.mkdir()
    refused(data_check(root), "broken", "holds no images")
    (folder / "1.jpg").write_bytes(photograph())
    assert data_check(root).verdict == "OK"


def cifar(path: Path) -> bytes:
    batches = {f"cifar-10-batches-py/{name}": RANDOM.bytes(40 * 3073) for name in ("data_batch_1", "test_batch")}
    return write_tar(path, batches, "w:gz").read_bytes()


def test_cifars_md5_is_compared_by_a_thorough_look(tmp_path):
    root = tmp_path
    (root / "archives").mkdir()
    content = cifar(root / "archives" / "cifar-10-python.tar.gz")
    data = {"source": "cifar10", "images": 40, "held_out_images": 40, "md5": hashlib.md5(content).hexdigest()}
    project(root, paper_params(data))
    assert data_check(root, thorough=True).verdict == "OK"
    project(root, paper_params(data | {"md5": "0" * 32}))
    assert data_check(root).verdict == "OK"
    refused(data_check(root, thorough=True), "broken", "md5 is", "expected 000")


def test_an_archive_smaller_than_its_images_could_be_is_broken(tmp_path):
    root = project(tmp_path, paper_params({"source": "cifar10"}))
    cifar(root / "archives" / "cifar-10-python.tar.gz")
    refused(data_check(root), "broken", "KiB for 50000 images")


@pytest.mark.parametrize(
    ("data", "named"),
    [
        ({"source": "cifar10"}, "cs.toronto.edu"),
        ({"source": "imagenet32"}, "image-net.org"),
        ({"source": "imagenet32-downsampled"}, "image-net.org"),
        ({"source": "celeba64"}, "mmlab.ie.cuhk.edu.hk"),
        ({"source": "church64"}, "dl.yf.io"),
    ],
)
def test_a_missing_archive_says_where_it_can_be_had(tmp_path, data, named):
    refused(data_check(project(tmp_path, paper_params(data))), "missing", "archives", named)


def test_what_a_program_can_fetch_says_the_command(tmp_path):
    check = data_check(project(tmp_path, paper_params({"source": "cifar10"})))
    assert check.mend.endswith("or run gcflow prepare photos --download")


def test_churches_as_lmdb_or_as_its_zip(tmp_path):
    root = project(tmp_path, paper_params({"source": "church64", "images": 6}))
    name = "church_outdoor_train_lmdb"
    folder = write_lmdb(root / "archives" / name, {f"{n}".encode(): photograph(64, 64) for n in range(6)})
    assert data_check(root).verdict == "OK"
    database = folder / "data.mdb"
    whole = database.read_bytes()
    os.truncate(database, len(whole) // 2)
    refused(data_check(root), "broken", "data.mdb")
    shutil.rmtree(folder)
    write_zip(root / "archives" / f"{name}.zip", {f"{name}/data.mdb": whole})
    assert data_check(root).verdict == "OK"


def test_celeba_needs_its_list_too(tmp_path):
    root = project(tmp_path, paper_params({"source": "celeba64", "images": 4, "held_out_images": 2}))
    write_zip(root / "archives" / "img_align_celeba.zip", {f"img_align_celeba/{n}.jpg": photograph() for n in range(6)})
    refused(data_check(root), "missing", "list_eval_partition.txt", "folder Eval")
    (root / "archives" / "list_eval_partition.txt").write_text("".join(f"{n}.jpg {n // 4 * 2}\n" for n in range(6)))
    assert data_check(root).found.startswith("img_align_celeba.zip and list_eval_partition.txt, ")


def test_prepared_data_need_no_archive(tmp_path, here):
    root = project(tmp_path, paper_params(FOLDER))
    write_zip(root / "archives" / "photos.zip", photographs())
    prepare(Params(root / "params.yaml").dataset("photos").data, root / "data" / "photos", root / "archives", 1)
    (root / "archives" / "photos.zip").unlink()
    assert data_check(root).found == "6 samples of shape 3x32x32, sizes as in the manifest"
    project(root, paper_params(FOLDER | {"filter": "box"}))
    other, archive = data_checks(root)
    assert other.verdict == "warning"
    refused(archive, "missing", "photos.zip")
    assert "archive photos" not in here(root, "digits").checks


# Inception and public models.


def test_inceptions_weights_are_looked_for_and_loaded(tmp_path):
    root = project(tmp_path, paper_params(FOLDER))

    def check() -> Check:
        (found,) = doctor.check_inception(asked(root))
        return found

    refused(check(), "missing", "archives/inception.pt", INCEPTION_URL, "gcflow features photos --download")
    weights = root / "archives" / "inception.pt"
    weights.write_bytes(b"no network")
    refused(check(), "broken", "not a readable TorchScript file", INCEPTION_URL)
    write_surrogate(weights, 0)
    assert (check().verdict, check().fails) == ("warning", False)
    assert sha256_of(weights)[:12] in check().found

    features = {"kind": "inception", "weights": "inception.pt", "protocols": {"clean": {}}}
    project(root, paper_params(FOLDER, features=features | {"sha256": sha256_of(weights)}))
    assert check().found.endswith("as params.yaml says")
    project(root, paper_params(FOLDER, features=features | {"sha256": "0" * 64}))
    refused(check(), "broken", "expected 000", INCEPTION_URL)

    project(root, paper_params(FOLDER))
    made = root / "results" / "photos" / "features" / "inception.pt"
    made.parent.mkdir(parents=True)
    weights.rename(made)
    assert str(made) in check().found
    assert list(doctor.check_inception(asked(root, "digits", "embedded"))) == []


def started_from_a_file(root: Path, sha256: str | None = None, listed: bool = True) -> Path:
    methods = {"ic": {"objective": "consistency", "coupling": "ic", "init": {"file": "checkpoints/public.safetensors"}}}
    document = paper_params(FOLDER, methods=methods)
    if listed:
        document["pretrained"] = {"public": {"pickle": "model.pkl", "url": PICKLE_URL, "sha256": sha256}}
    return project(root, document)


def models(root: Path) -> list[Check]:
    return list(doctor.check_models(asked(root, "train-photos-ic-0")))


def test_public_models_are_looked_for_among_archives_and_checkpoints(tmp_path):
    root = started_from_a_file(tmp_path)
    (check,) = models(root)
    refused(check, "missing", "archives/model.pkl", PICKLE_URL, "gcflow pretrained public --download")
    pickle = root / "archives" / "model.pkl"
    for content in (b"", b"<html>", b"\x80\x04 cut"):
        pickle.write_bytes(content)
        refused(models(root)[0], "broken", "is no whole pickle")
    pickle.write_bytes(b"\x80\x04N.")
    assert models(root)[0].verdict == "OK"
    started_from_a_file(root, "0" * 64)
    refused(models(root)[0], "broken", "expected 000")
    started_from_a_file(root, sha256_of(pickle))
    assert models(root)[0].verdict == "OK"

    imported = root / "checkpoints" / "public.safetensors"
    save_tensors(imported, {"a": torch.zeros(3)}, {})
    assert models(root)[0].found == f"{imported}, 1 tensors"
    os.truncate(imported, 20)
    refused(models(root)[0], "broken", "public.safetensors")
    assert list(doctor.check_models(asked(root, "digits", "embedded"))) == []


def test_a_start_that_nothing_makes_must_be_there(tmp_path):
    root = started_from_a_file(tmp_path, listed=False)
    (check,) = models(root)
    refused(check, "missing", "checkpoints/public.safetensors", "import-edm")
    save_tensors(root / "checkpoints" / "public.safetensors", {"a": torch.zeros(3)}, {})
    assert models(root) == []


# MLflow.


class Health(BaseHTTPRequestHandler):
    status = 200

    accounts: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.accounts.append(self.headers.get("Authorization", ""))
        self.send_response(self.status if self.path == "/health" else 404)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Says nothing."""


@pytest.fixture
def server() -> Iterator[str]:
    running = ThreadingHTTPServer(("127.0.0.1", 0), Health)
    threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{running.server_port}"
    running.shutdown()
    running.server_close()


@pytest.fixture
def tracking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Check]:
    params = Params(write_project(tmp_path / "project") / "params.yaml")

    def call(uri: str) -> Check:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        (check,) = doctor.check_tracking(params)
        assert not check.fails, "tracking never stops a run"
        return check

    return call


def test_a_tracking_server_that_runs_is_ok_and_one_that_does_not_is_a_warning(tracking, server, monkeypatch):
    assert tracking(server) == Check("MLflow", "OK", server, needed=False)
    assert tracking(server.replace("//", "//me:se%40cret@")) == Check("MLflow", "OK", server, needed=False)
    assert base64.b64decode(Health.accounts[-1].removeprefix("Basic ")) == b"me:se@cret"
    monkeypatch.setattr(Health, "status", 500)
    assert "answers 500" in tracking(server).found
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        stopped = tracking(f"http://127.0.0.1:{free.getsockname()[1]}")
    assert stopped.verdict == "warning"
    assert "not reachable" in stopped.found
    assert "gcflow track" in stopped.mend


def test_a_tracking_server_that_never_answers_is_given_up(tracking, monkeypatch):
    monkeypatch.setattr(doctor, "ANSWER_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        begun = time.monotonic()
        assert tracking(f"http://127.0.0.1:{silent.getsockname()[1]}").verdict == "warning"
        assert time.monotonic() - begun < 3


def test_the_tracking_database_must_be_writable(tracking, tmp_path):
    path = tmp_path / "runs.db"
    assert tracking("").verdict == "OK"
    assert tracking(f"sqlite:///{path}").verdict == "OK"
    path.write_bytes(b"no database at all" * 100)
    assert "not a database" in tracking(f"sqlite:///{path}").found
    path.unlink()
    with sqlite3.connect(path) as database:
        database.execute("create table runs (id)")
        assert tracking(f"sqlite:///{path}").verdict == "OK"
    assert tracking(str(tmp_path / "mlruns")).verdict == "OK"
    assert tracking("postgresql://me:secret@host/runs").verdict == "skipped"
    assert "secret" not in tracking("postgresql://me:secret@host/runs").found
    assert tracking("databricks").verdict == "skipped"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["project", "runs.db"]


# DVC.


def dvc(root: Path, *args: str) -> None:
    subprocess.run([sys.executable, "-m", "dvc", *args], cwd=root, check=True, capture_output=True)


def remotes(root: Path) -> dict[str, Check]:
    checks = {check.subject: check for check in doctor.check_dvc(root)}
    assert not any(check.fails for check in checks.values()), "no stage needs DVC"
    return checks


def test_dvc_and_each_of_its_remotes(tmp_path, server):
    assert remotes(tmp_path)["DVC"].verdict == "missing"
    dvc(tmp_path, "init", "--no-scm", "--quiet")
    assert remotes(tmp_path)["DVC remote"].verdict == "skipped"
    (tmp_path / "a store").mkdir()
    urls = {
        "near": "../a store",
        "gone": "/no/such/folder",
        "web": f"{server}/store",
        "down": "http://127.0.0.1:9/store",
        "strange": "ssh://host.invalid/store",
    }
    blocks = (f"['remote \"{name}\"']\n    url = {url}\n" for name, url in urls.items())
    (tmp_path / ".dvc" / "config").write_text(f"[core]\n    no_scm = true\n    remote = near\n{''.join(blocks)}")
    found = remotes(tmp_path)
    assert found["DVC remote near"].found == str(tmp_path / "a store")
    assert {name: check.verdict for name, check in found.items()} == {
        "DVC": "OK",
        "DVC remote near": "OK",
        "DVC remote gone": "warning",
        "DVC remote web": "OK",
        "DVC remote down": "warning",
        "DVC remote strange": "warning",
    }
    assert "no such folder" in found["DVC remote gone"].found
    (tmp_path / ".dvc" / "config").write_text("[nonsense")
    assert remotes(tmp_path)["DVC"].verdict == "broken"


# Disk and folders.


def test_needed_bytes_are_the_arrays_and_snapshots_that_are_not_there_yet(tmp_path):
    root = write_project(tmp_path)
    params = Params(root / "params.yaml")
    stages = Stages(params)
    assert needed_bytes(params, [stages.prepare("digits")]) == 1797 * 64
    assert needed_bytes(params, [stages.prepare("mixture2d")]) == 400 * 2 * 4
    (run,) = (run for run in params.runs() if run.name == "mixture2d/ic/0")
    before = needed_bytes(params, [stages.train(run)])
    prepare_data(root, "mixture2d")
    train_here(root, run.name)
    snapshots = list((root / "results/mixture2d/ic/seed0/snapshots").iterdir())
    # Safetensors and their headers against bare parameters, of which both EMA and raw weights are kept.
    assert before == pytest.approx(sum(path.stat().st_size for path in snapshots), rel=0.5)
    assert needed_bytes(params, [stages.prepare("mixture2d"), stages.train(run)]) == 0


def test_a_disk_that_is_too_small_is_broken(tmp_path):
    root = project(tmp_path, paper_params({"source": "synthetic", "shape": [3, 64, 64], "count": 10**12, "seed": 0}))
    (check,) = doctor.check_disk(asked(root, "prepare-photos"))
    refused(check, "broken", "free", f"{12288 * 10**12 / 2**30:.1f} GiB to be written")


def test_folders_that_cannot_be_written_are_broken(tmp_path):
    (tmp_path / "results").symlink_to("/proc/sys")
    (check,) = doctor.check_folders(tmp_path)
    refused(check, "broken", "results", "cannot be written")


def test_a_file_system_without_hard_links_is_a_warning(tmp_path, monkeypatch):
    def refuse(*_: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    _, check = doctor.check_folders(tmp_path)
    assert (check.verdict, check.fails) == ("warning", False)
    assert list(tmp_path.iterdir()) == []


# Slurm.


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


def slurm() -> Check:
    (check,) = doctor.check_slurm()
    assert not check.fails, "runs need no Slurm here"
    return check


def test_where_there_is_no_slurm_that_is_no_failure(programs):
    assert slurm() == Check("Slurm", "skipped", "no Slurm here: jobs run on this machine", needed=False)


def test_slurms_partitions_with_gpus_and_its_accounting(programs):
    programs("sbatch", "exit 0")
    assert slurm().found == "squeue, sinfo not in PATH"
    programs("squeue", "exit 0")
    programs("sinfo", 'echo "slurm_load_partitions: Unable to contact slurm controller" >&2; exit 1')
    assert slurm().found == "sinfo: slurm_load_partitions: Unable to contact slurm controller"
    programs("sinfo", 'echo "cpu*|(null)"')
    assert slurm().found == "1 partitions, none with GPUs"
    programs("sinfo", 'echo "cpu*|(null)"; echo "long|gpu:a100:4"; echo "long|gpu:a100:4"')
    assert slurm().found == "GPUs in long (gpu:a100:4); no accounting"
    assert "squeue" in slurm().mend
    programs("sacct", 'echo "Slurm accounting storage is disabled" >&2; exit 1')
    assert slurm().verdict == "warning"
    programs("sacct", "exit 0")
    assert (slurm().verdict, slurm().found) == ("OK", "GPUs in long (gpu:a100:4); accounting")


def test_a_slurm_that_does_not_answer_is_given_up(programs, monkeypatch):
    monkeypatch.setattr(doctor, "ANSWER_SECONDS", 0.3)
    for name in ("sbatch", "squeue"):
        programs(name, "exit 0")
    programs("sinfo", "sleep 20")
    begun = time.monotonic()
    assert slurm().verdict == "broken"
    assert time.monotonic() - begun < 5


# Checks that fail themselves.


def test_a_check_that_fails_or_hangs_is_broken_and_the_others_are_made(monkeypatch):
    monkeypatch.setattr(doctor, "PATIENCE_SECONDS", 0.3)

    def failing() -> list[Check]:
        raise RuntimeError("first\nsecond")

    def hanging() -> list[Check]:
        time.sleep(5)
        return []

    fine = Check("fine", "OK", "there")
    begun = time.monotonic()
    checks = made(
        [
            Probe("a", failing),
            Probe("b", hanging, waits=True),
            Probe("c", failing, needed=False, waits=True),
            Probe("d", lambda: [fine]),
        ]
    )
    assert time.monotonic() - begun < 3
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
