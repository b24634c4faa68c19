import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from archive_files import RANDOM, photograph, write_lmdb, write_tar, write_zip
from doctor_projects import FOLDER, asked, paper_params, project, refused
from projects import prepare_data, tiny_params, write_project

from gcflow.data import prepare
from gcflow.files import sha256_of
from gcflow.inception import INCEPTION_URL, write_surrogate
from gcflow.pipeline.doctor.check import Check
from gcflow.pipeline.doctor.data import check_data
from gcflow.pipeline.doctor.networks import check_inception, check_models
from gcflow.pipeline.params import Params
from gcflow.weights import save_tensors

PICKLE_URL = "https://example.org/model.pkl"


def photographs(count: int = 6) -> dict[str, bytes]:
    return {f"a/{number}.jpg": photograph() for number in range(count)}


def data_checks(root: Path, thorough: bool = False) -> list[Check]:
    return list(check_data(asked(root, thorough=thorough)))


def data_check(root: Path, thorough: bool = False) -> Check:
    (check,) = data_checks(root, thorough)
    return check


# Data.


def test_prepared_data_are_compared_with_their_manifest(tmp_path):
    root = prepare_data(write_project(tmp_path), "mixture2d")
    folder = root / "data" / "mixture2d"

    def check(thorough: bool = False) -> Check:
        (found,) = check_data(asked(root, "mixture2d", "embedded", thorough))
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
    (check,) = check_data(asked(root, "mixture2d", "embedded"))
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


def test_prepared_data_need_no_archive(tmp_path):
    root = project(tmp_path, paper_params(FOLDER))
    write_zip(root / "archives" / "photos.zip", photographs())
    prepare(Params(root / "params.yaml").dataset("photos").data, root / "data" / "photos", root / "archives", 1)
    (root / "archives" / "photos.zip").unlink()
    assert data_check(root).found == "6 samples of shape 3x32x32, sizes as in the manifest"
    project(root, paper_params(FOLDER | {"filter": "box"}))
    other, archive = data_checks(root)
    assert other.verdict == "warning"
    refused(archive, "missing", "photos.zip")
    assert "archive photos" not in [check.subject for check in check_data(asked(root, "digits", "embedded"))]


# Inception and public models.


def test_inceptions_weights_are_looked_for_and_loaded(tmp_path):
    root = project(tmp_path, paper_params(FOLDER))

    def check() -> Check:
        (found,) = check_inception(asked(root))
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
    assert list(check_inception(asked(root, "digits", "embedded"))) == []


def started_from_a_file(root: Path, sha256: str | None = None, listed: bool = True) -> Path:
    methods = {"ic": {"objective": "consistency", "coupling": "ic", "init": {"file": "checkpoints/public.safetensors"}}}
    document = paper_params(FOLDER, methods=methods)
    if listed:
        document["pretrained"] = {"public": {"pickle": "model.pkl", "url": PICKLE_URL, "sha256": sha256}}
    return project(root, document)


def models(root: Path) -> list[Check]:
    return list(check_models(asked(root, "train-photos-ic-0")))


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
    assert list(check_models(asked(root, "digits", "embedded"))) == []


def test_a_start_that_nothing_makes_must_be_there(tmp_path):
    root = started_from_a_file(tmp_path, listed=False)
    (check,) = models(root)
    refused(check, "missing", "checkpoints/public.safetensors", "import-edm")
    save_tensors(root / "checkpoints" / "public.safetensors", {"a": torch.zeros(3)}, {})
    assert models(root) == []
