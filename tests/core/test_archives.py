import hashlib
import io
import json
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from archive_files import (
    RANDOM,
    opened,
    photograph,
    python2_batch,
    random_batch,
    square,
    write_lmdb,
    write_tar,
    write_zip,
)
from PIL import Image

from gcflow.archives import array_batches, preparation
from gcflow.archives.base import Archived
from gcflow.archives.sources import Celeba64, Church64, Cifar10, Folder, Imagenet32, Imagenet32Downsampled
from gcflow.data import load_dataset, prepare
from gcflow.errors import GcflowError


@pytest.fixture
def archives(tmp_path: Path) -> Path:
    (tmp_path / "archives").mkdir()
    return tmp_path / "archives"


def prepared(source: Archived, archives: Path, **options: Any) -> tuple[dict[str, Any], Any]:
    """Manifest and data, by this process alone."""
    folder = archives.parent / "data" / source.source
    manifest = prepare(source, folder, archives, workers=1, **options)
    data = load_dataset(folder)
    assert json.loads((folder / "manifest.json").read_text()) == manifest
    assert sorted(path.name for path in folder.iterdir()) == [
        "held_out.npy",
        "labels.npy",
        "manifest.json",
        "samples.npy",
    ]
    assert data.shape == source.shape
    assert len(data.samples) == manifest["count"] == sum(shard["rows"] for shard in manifest["shards"])
    assert len(data.held_out) == manifest["held_out"]
    for name in ("samples.npy", "labels.npy", "held_out.npy"):
        file = io.BytesIO()
        np.save(file, np.load(folder / name))
        assert file.getvalue() == (folder / name).read_bytes()
    return manifest, data


def refusal(source: Archived, archives: Path, **options: Any) -> str:
    """The message of a refusal: one line, and nothing that could be taken for data."""
    folder = archives.parent / "data" / source.source
    with pytest.raises(GcflowError) as caught:
        prepare(source, folder, archives, workers=1, **options)
    assert not any((folder / name).exists() for name in ("samples.npy", "labels.npy", "manifest.json"))
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message


def hashed(path: Path) -> list[dict[str, Any]]:
    content = path.read_bytes()
    return [{"file": path.name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}]


# CIFAR-10.


@pytest.fixture(scope="module")
def cifar(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Cifar10, dict[str, tuple[np.ndarray, list[int]]]]:
    batches = {name: random_batch(20) for name in [*(f"data_batch_{k}" for k in (4, 2, 1, 3, 5)), "test_batch"]}
    members = {f"cifar-10-batches-py/{name}": python2_batch(*batch) for name, batch in batches.items()}
    path = tmp_path_factory.mktemp("cifar") / "cifar-10-python.tar.gz"
    write_tar(path, {"cifar-10-batches-py/batches.meta": b"unread", **members}, "w:gz")
    md5 = hashlib.md5(path.read_bytes()).hexdigest()
    return path, Cifar10(md5=md5, images=100, held_out_images=20), batches


def test_cifar10_is_its_five_batches_and_holds_its_test_batch_out(cifar):
    path, source, batches = cifar
    manifest, data = prepared(source, path.parent)
    train = [batches[f"data_batch_{k}"] for k in range(1, 6)]
    expected = np.concatenate([pixels for pixels, _ in train])
    # Row k of an image is 1024 red values, then green, then blue, each 32 rows of 32.
    assert np.array_equal(data.samples.numpy().reshape(100, -1), expected)
    assert data.samples[7, 1, 2, 3] == expected[7, 1024 + 2 * 32 + 3]
    assert data.labels.tolist() == [label for _, labels in train for label in labels]
    assert np.array_equal(data.held_out.numpy().reshape(20, -1), batches["test_batch"][0])
    assert manifest["source"] == hashed(path)
    scaled = expected.reshape(100, 3, 1024) / 127.5 - 1
    assert manifest["channel_mean"] == pytest.approx(scaled.mean((0, 2)), abs=1e-6)
    assert manifest["channel_std"] == pytest.approx(scaled.std((0, 2)), abs=1e-6)
    assert manifest["std"] == pytest.approx(scaled.std(), abs=1e-6)
    assert manifest["dtype"] == "uint8"


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_batches_that_python_3_pickled_are_read_too(protocol):
    data, labels = random_batch(3)
    content = pickle.dumps({"data": data, "labels": labels}, protocol=protocol)
    if protocol == 2:
        with pytest.raises(GcflowError, match=r"asks for _codecs\.encode"):
            array_batches.read_batch(io.BytesIO(content), "batch", numpy_format=False)
    else:
        batch = array_batches.read_batch(io.BytesIO(content), "batch", numpy_format=False)
        assert np.array_equal(batch.samples.reshape(3, -1), data)
        assert batch.labels.tolist() == labels


class Hostile:
    def __init__(self, sentinel: Path) -> None:
        self.sentinel = sentinel

    def __reduce__(self) -> Any:
        return (Path.touch, (self.sentinel,))


def calls_system(sentinel: Path) -> bytes:
    command = f"touch {sentinel}".encode()
    return b"cos\nsystem\n(U" + bytes([len(command)]) + command + b"tR"


def calls_system_by_inst(sentinel: Path) -> bytes:
    command = f"touch {sentinel}".encode()
    return b"(U" + bytes([len(command)]) + command + b"ios\nsystem\n"


def calls_numpy(sentinel: Path) -> bytes:
    return b"cnumpy.testing._private.utils\nrunstring\n(U\x04pass}tR"


def builds_on_a_stand_in(sentinel: Path) -> bytes:
    return b"cnumpy\nndarray\n}U\x08__call__cos\nsystem\nsb"


@pytest.mark.parametrize("hostile", [calls_system, calls_system_by_inst, calls_numpy, builds_on_a_stand_in])
def test_no_code_of_a_pickle_is_run(archives, tmp_path, hostile):
    sentinel = tmp_path / "sentinel"
    batch = python2_batch(*random_batch(2), extra=hostile(sentinel))
    write_tar(archives / "cifar-10-python.tar.gz", {"cifar-10-batches-py/data_batch_1": batch}, "w:gz")
    message = refusal(Cifar10(md5=None, images=10), archives)
    assert message.startswith(f"{archives}/cifar-10-python.tar.gz: data_batch_1: asks for ")
    assert not sentinel.exists()


def test_a_stand_in_of_numpy_cannot_be_changed(tmp_path):
    content = python2_batch(*random_batch(2), extra=b"cnumpy\nndarray\n}U\x08__call__K\x01sb")
    with pytest.raises(GcflowError, match="not a whole batch"):
        array_batches.read_batch(io.BytesIO(content), "batch", numpy_format=False)
    assert array_batches.read_batch(io.BytesIO(python2_batch(*random_batch(2))), "batch", numpy_format=False)


def test_a_hostile_object_is_refused_by_its_name(tmp_path):
    content = pickle.dumps({"data": Hostile(tmp_path / "sentinel"), "labels": []})
    with pytest.raises(GcflowError, match="which no batch of images needs; do not trust it"):
        array_batches.read_batch(io.BytesIO(content), "batch", numpy_format=False)
    assert not (tmp_path / "sentinel").exists()


def cifar_with(archives: Path, **batches: bytes) -> Path:
    members = {f"cifar-10-batches-py/data_batch_{k}": python2_batch(*random_batch(4)) for k in range(1, 6)}
    members |= {f"cifar-10-batches-py/{name}": content for name, content in batches.items()}
    return write_tar(archives / "cifar-10-python.tar.gz", members, "w:gz")


@pytest.mark.parametrize(
    ("batch", "named"),
    [
        (lambda: python2_batch(*random_batch(4))[:5000], "not a whole batch"),
        (lambda: b"", "not a whole batch"),
        (lambda: python2_batch(random_batch(4)[0], [0, 1, 2]), "labels that are not one integer per image"),
        (lambda: python2_batch(random_batch(4)[0], [0, 1, 2, 10]), "outside the 10 classes"),
        (lambda: python2_batch(random_batch(4)[0][:, :3000], [0, 1, 2, 3]), "not uint8 of shape [n, 3072]"),
        (lambda: python2_batch(*random_batch(4)).replace(b"U\x06labels", b"U\x0bfine_labels"), "lacks data or labels"),
        (lambda: b"\x80\x02](K\x01e.", "no dictionary"),
    ],
)
def test_a_damaged_batch_is_refused_by_name(archives, batch, named):
    cifar_with(archives, data_batch_3=batch())
    message = refusal(Cifar10(md5=None, images=20), archives)
    assert message.startswith(f"{archives}/cifar-10-python.tar.gz: data_batch_3: ")
    assert named in message


def test_another_archive_in_the_place_of_cifar10_is_refused(archives):
    path = write_tar(archives / "cifar-10-python.tar.gz", {"cifar-100-python/train": b""}, "w:gz")
    message = refusal(Cifar10(), archives)
    assert message.startswith(f"{path}: md5 is ")
    assert "expected c58f30108f718f92721af3b95e74349a" in message
    assert "fetch it again" in message
    assert "holds no cifar-10-batches-py/data_batch_1" in refusal(Cifar10(md5=None), archives)


def test_a_truncated_cifar10_is_refused(cifar, archives):
    path, source, _ = cifar
    (archives / path.name).write_bytes(path.read_bytes()[:-3000])
    assert "it is truncated" in refusal(source, archives)
    assert f"{archives}/{path.name}: not a whole tar.gz" in refusal(
        Cifar10(md5=None, images=100, held_out_images=20), archives
    )


@pytest.mark.parametrize("images", [99, 101])
def test_too_few_and_too_many_images_of_cifar10_are_refused_each_time(cifar, archives, images):
    path, _, _ = cifar
    shutil.copy(path, archives)
    for _ in range(2):
        message = refusal(Cifar10(md5=None, images=images, held_out_images=20), archives)
        assert f"{path.name}: holds 100 images, expected {images}" in message


# ImageNet.


def imagenet_classes() -> dict[str, dict[str, bytes]]:
    shapes = [(50, 40), (40, 50), (32, 32), (70, 33)]
    return {
        name: {f"{name}_{k}.JPEG": photograph(*shapes[k]) for k in (2, 0, 3, 1)}
        for name in ("n02000000", "n01000000", "n03000000")
    }


def write_imagenet(path: Path, classes: dict[str, dict[str, bytes]], scratch: Path) -> Path:
    members = {
        f"{name}.tar": write_tar(scratch / "inner.tar", content).read_bytes() for name, content in classes.items()
    }
    return write_tar(path, members)


@pytest.mark.parametrize("filter_", ["bilinear", "lanczos"])
def test_imagenet32_is_the_resized_centre_of_each_image_in_the_tar_of_tars(archives, tmp_path, filter_):
    classes = imagenet_classes()
    path = write_imagenet(archives / "ILSVRC2012_img_train.tar", classes, tmp_path)
    manifest, data = prepared(Imagenet32(images=12, filter=filter_), archives)
    order = [
        (label, classes[name][image]) for label, name in enumerate(sorted(classes)) for image in sorted(classes[name])
    ]
    expected = [square(content, 32, Image.Resampling[filter_.upper()]) for _, content in order]
    assert np.array_equal(data.samples.numpy(), np.stack(expected))
    assert data.labels.tolist() == [label for label, _ in order]
    assert manifest["source"] == hashed(path)
    assert manifest["filter"] == filter_
    assert manifest["transform"] == "shorter side resized to 32, then the centre cropped"
    assert len(data.held_out) == 0


def test_an_unpacked_imagenet_gives_the_same_arrays_and_a_hash_that_sha256sum_can_check(archives, tmp_path):
    classes = imagenet_classes()
    write_imagenet(archives / "ILSVRC2012_img_train.tar", classes, tmp_path)
    packed, _ = prepared(Imagenet32(images=12), archives)
    (archives / "ILSVRC2012_img_train.tar").unlink()
    for name, members in classes.items():
        (archives / "train" / name).mkdir(parents=True)
        for image, content in members.items():
            (archives / "train" / name / image).write_bytes(content)
    (archives / "train" / "n01000000" / "notes.txt").write_text("no image")
    unpacked, _ = prepared(Imagenet32(images=12), archives)
    assert unpacked["sha256"] == packed["sha256"]
    lines = [
        f"{hashlib.sha256(classes[name][image]).hexdigest()}  {name}/{image}\n"
        for name in sorted(classes)
        for image in sorted(classes[name])
    ]
    total = sum(len(content) for members in classes.values() for content in members.values())
    digest = hashlib.sha256("".join(lines).encode()).hexdigest()
    assert unpacked["source"] == [{"file": "train", "bytes": total, "sha256": digest}]


def test_a_truncated_imagenet_is_refused(archives, tmp_path):
    path = write_imagenet(archives / "ILSVRC2012_img_train.tar", imagenet_classes(), tmp_path)
    whole = path.read_bytes()
    for length in (len(whole) // 2, 600, 100, 0):
        path.write_bytes(whole[:length])
        assert f"{path}: " in refusal(Imagenet32(images=12), archives)


def test_an_imagenet_that_lacks_a_class_is_refused(archives, tmp_path):
    classes = imagenet_classes()
    del classes["n01000000"]
    write_imagenet(archives / "ILSVRC2012_img_train.tar", classes, tmp_path)
    assert "holds 8 images, expected 12" in refusal(Imagenet32(images=12), archives)


def test_the_validation_images_in_the_place_of_imagenet_are_refused(archives):
    write_tar(archives / "ILSVRC2012_img_train.tar", {"ILSVRC2012_val_00000001.JPEG": photograph()})
    assert "so it is not ImageNet's training set" in refusal(Imagenet32(), archives)


# Downsampled ImageNet.


def downsampled(numpy_format: bool) -> tuple[dict[str, bytes], np.ndarray, list[int]]:
    members, pixels, labels = {}, [], []
    for number in range(1, 11):
        data, batch_labels = random_batch(6, 1000, first=1)
        pixels.append(data)
        labels += [label - 1 for label in batch_labels]
        content = {"data": data, "labels": batch_labels, "mean": data.mean(0)}
        file = io.BytesIO()
        if numpy_format:
            np.savez(file, **{name: np.array(value) for name, value in content.items()})
        else:
            pickle.dump(content, file, protocol=4)
        members[f"train_data_batch_{number}{'.npz' if numpy_format else ''}"] = file.getvalue()
    return members, np.concatenate(pixels), labels


@pytest.mark.parametrize("numpy_format", [True, False])
@pytest.mark.parametrize("zipped", [True, False])
def test_downsampled_imagenet_is_its_ten_batches_in_order(archives, numpy_format, zipped):
    members, pixels, labels = downsampled(numpy_format)
    name = "Imagenet32_train_npz" if numpy_format else "Imagenet32_train"
    if zipped:
        write_zip(archives / f"{name}.zip", members)
    else:
        (archives / name).mkdir()
        for member, content in members.items():
            (archives / name / member).write_bytes(content)
    manifest, data = prepared(Imagenet32Downsampled(images=60), archives)
    assert np.array_equal(data.samples.numpy().reshape(60, -1), pixels)
    assert data.labels.tolist() == labels
    assert "downsampled" in manifest["variant"]
    assert manifest["variant"] != Imagenet32().provenance()["variant"]
    assert len(manifest["source"]) == (1 if zipped else 10)


def test_damaged_batches_of_downsampled_imagenet_are_refused(archives):
    members, _, _ = downsampled(numpy_format=True)
    path = archives / "Imagenet32_train_npz.zip"
    broken = members | {"train_data_batch_3.npz": members["train_data_batch_3.npz"][:9000]}
    write_zip(path, broken)
    assert refusal(Imagenet32Downsampled(images=60), archives).startswith(f"{path}: train_data_batch_3: ")
    write_zip(path, {name: content for name, content in members.items() if "_3" not in name})
    assert "holds no train_data_batch_3" in refusal(Imagenet32Downsampled(images=60), archives)
    file = io.BytesIO()
    np.savez(file, data=random_batch(6)[0], labels=np.arange(6))
    write_zip(path, members | {"train_data_batch_3.npz": file.getvalue()})
    assert "outside the 1000 classes" in refusal(Imagenet32Downsampled(images=60), archives)
    file = io.BytesIO()
    np.savez(file, data=np.array([Hostile(archives / "sentinel")]), labels=np.arange(1))
    write_zip(path, members | {"train_data_batch_3.npz": file.getvalue()})
    assert "not a whole batch" in refusal(Imagenet32Downsampled(images=60), archives)
    assert not (archives / "sentinel").exists()


# CelebA.


def write_celeba(archives: Path, compression: int = zipfile.ZIP_STORED) -> dict[str, bytes]:
    members = {f"img_align_celeba/{k:06}.jpg": photograph(218, 178) for k in range(1, 10)}
    write_zip(archives / "img_align_celeba.zip", {"img_align_celeba/": b"", **members}, compression)
    lines = [f"{k:06}.jpg {0 if k < 6 else 1 if k < 8 else 2}" for k in range(1, 10)]
    (archives / "list_eval_partition.txt").write_text("\n".join(lines) + "\n")
    return members


CELEBA = Celeba64(images=5, held_out_images=2)


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_celeba64_is_the_training_split_resized_by_lanczos_and_then_cropped(archives, compression):
    members = list(write_celeba(archives, compression).values())
    manifest, data = prepared(CELEBA, archives)
    resized = [opened(content).resize((64, 78), Image.Resampling.LANCZOS) for content in members]
    expected = np.stack([np.asarray(image.crop((0, 7, 64, 71))).transpose(2, 0, 1) for image in resized])
    assert np.array_equal(data.samples.numpy(), expected[:5])
    assert np.array_equal(data.held_out.numpy(), expected[7:])
    assert manifest["transform"] == "shorter side resized to 64, then the centre cropped"
    assert manifest["filter"] == "lanczos"
    assert data.labels.tolist() == [0] * 5
    assert [entry["file"] for entry in manifest["source"]] == ["img_align_celeba.zip", "list_eval_partition.txt"]
    assert manifest["source"][:1] == hashed(archives / "img_align_celeba.zip")


def no_partition(archives: Path) -> str:
    (archives / "list_eval_partition.txt").unlink()
    return "list_eval_partition.txt: missing; fetch list_eval_partition.txt (folder Eval)"


def no_zip(archives: Path) -> str:
    (archives / "img_align_celeba.zip").unlink()
    return (
        "img_align_celeba.zip: missing; fetch img_align_celeba.zip (folder Img) from the Google Drive of https://mmlab"
    )


def another_zip(archives: Path) -> str:
    write_zip(archives / "img_align_celeba.zip", {"faces/000001.jpg": photograph()})
    return "img_align_celeba.zip: holds no img_align_celeba/"


def truncated_zip(archives: Path) -> str:
    path = archives / "img_align_celeba.zip"
    path.write_bytes(path.read_bytes()[:-500])
    return "img_align_celeba.zip: not a whole zip"


def image_missing(archives: Path) -> str:
    members = write_celeba(archives)
    del members["img_align_celeba/000003.jpg"]
    write_zip(archives / "img_align_celeba.zip", members)
    return "img_align_celeba.zip: lacks img_align_celeba/000003.jpg"


def image_damaged(archives: Path) -> str:
    path = archives / "img_align_celeba.zip"
    content = path.read_bytes()
    start = content.index(b"000003.jpg") + 2000
    path.write_bytes(content[:start] + bytes([content[start] ^ 1]) + content[start + 1 :])
    return "img_align_celeba.zip: image img_align_celeba/000003.jpg does not decode (its checksum differs"


def partition_of_another_kind(archives: Path) -> str:
    (archives / "list_eval_partition.txt").write_text("000001.jpg 0\n000002.jpg\n")
    return "list_eval_partition.txt: line 2 is '000002.jpg'"


def too_few_listed(archives: Path) -> str:
    (archives / "list_eval_partition.txt").write_text("000001.jpg 0\n000008.jpg 2\n000009.jpg 2\n")
    return "list_eval_partition.txt: holds 1 images of a split, expected 5"


@pytest.mark.parametrize(
    "damage",
    [
        no_partition,
        no_zip,
        another_zip,
        truncated_zip,
        image_missing,
        image_damaged,
        partition_of_another_kind,
        too_few_listed,
    ],
)
def test_a_damaged_celeba_is_refused_by_file(archives, damage):
    write_celeba(archives)
    expected = damage(archives)
    assert refusal(CELEBA, archives).startswith(f"{archives}/{expected}")


def test_celeba_cannot_be_downloaded(archives):
    assert "no program can download it" in refusal(CELEBA, archives, download=True)


# LSUN church.


def church_members() -> dict[bytes, bytes]:
    members = {RANDOM.bytes(8).hex().encode(): photograph(40, 60) for _ in range(6)}
    file = io.BytesIO()
    opened(photograph(50, 80)).save(file, "WEBP", lossless=True)
    return members | {b"00": file.getvalue()}


@pytest.mark.parametrize("zipped", [False, True])
def test_church64_is_each_value_of_the_lmdb_resized_by_lanczos_and_then_cropped(archives, zipped):
    members = church_members()
    folder = write_lmdb(archives / "church_outdoor_train_lmdb", members)
    if zipped:
        name = "church_outdoor_train_lmdb/data.mdb"
        write_zip(archives / "church_outdoor_train_lmdb.zip", {name: (folder / "data.mdb").read_bytes()})
        shutil.rmtree(folder)
    before = sorted(archives.rglob("*"))
    manifest, data = prepared(Church64(images=7), archives)
    assert np.array_equal(data.samples.numpy(), np.stack([square(members[key], 64) for key in sorted(members)]))
    assert manifest["transform"] == "shorter side resized to 64, then the centre cropped"
    assert manifest["source"] == hashed(archives / "church_outdoor_train_lmdb.zip" if zipped else folder / "data.mdb")
    assert sorted(archives.rglob("*")) == before


@pytest.mark.parametrize("length", [0.9, 0.3, 5000, 100, 0])
def test_a_truncated_lmdb_is_refused(archives, length):
    path = write_lmdb(archives / "church_outdoor_train_lmdb", church_members()) / "data.mdb"
    content = path.read_bytes()
    path.write_bytes(content[: int(length * len(content)) if isinstance(length, float) else length])
    assert refusal(Church64(images=7), archives).startswith(f"{path}: ")


def test_a_damaged_church_zip_and_an_incomplete_lmdb_are_refused(archives):
    folder = write_lmdb(archives / "church_outdoor_train_lmdb", church_members())
    assert f"{folder}/data.mdb: holds 7 images, expected 126227" in refusal(Church64(), archives)
    path = write_zip(
        archives / "church_outdoor_train_lmdb.zip", {"church/data.mdb": (folder / "data.mdb").read_bytes()}
    )
    shutil.rmtree(folder)
    content = bytearray(path.read_bytes())
    content[500] ^= 255
    path.write_bytes(content)
    assert refusal(Church64(images=7), archives).startswith(f"{path}: ")
    write_zip(path, {"bridge/readme.txt": b""})
    assert "holds no LMDB" in refusal(Church64(images=7), archives)


# Any images.


def class_images() -> dict[str, bytes]:
    return {f"{folder}/{k}.jpg": photograph(20 + k, 30) for folder in ("dogs", "cats") for k in range(4)}


def as_folder(path: Path, members: dict[str, bytes]) -> None:
    for name, content in members.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)


def as_plain_tar(path: Path, members: dict[str, bytes]) -> None:
    write_tar(path, {f"./{name}": content for name, content in members.items()})


def as_tar_gz(path: Path, members: dict[str, bytes]) -> None:
    write_tar(path, members, "w:gz")


@pytest.mark.parametrize("write", [as_folder, as_plain_tar, as_tar_gz, write_zip])
def test_a_folder_a_zip_and_tars_of_images_give_the_same_arrays(archives, write):
    members = class_images()
    write(archives / "mine", members | {"readme.txt": b"no image", "__MACOSX/dogs/._0.jpg": b"no image"})
    manifest, data = prepared(Folder("mine", 16, filter="box"), archives)
    expected = [square(members[name], 16, Image.Resampling.BOX) for name in sorted(members)]
    assert np.array_equal(data.samples.numpy(), np.stack(expected))
    assert data.labels.tolist() == [0] * 4 + [1] * 4
    assert manifest["count"] == 8
    assert manifest["source"][0]["file"] == "mine"


def test_images_without_folders_have_label_0(archives):
    as_folder(archives / "mine", {f"{k}.jpg": photograph() for k in range(3)})
    _, data = prepared(Folder("mine", 8), archives)
    assert data.labels.tolist() == [0, 0, 0]


def test_modes_are_counted(archives):
    file = io.BytesIO()
    Image.fromarray(RANDOM.integers(0, 65536, (9, 9), dtype=np.uint16)).save(file, "PNG")
    as_folder(archives / "mine", {"a.jpg": photograph(), "b.png": file.getvalue()})
    manifest, _ = prepared(Folder("mine", 8), archives)
    assert manifest["converted"] == {"I;16": 1}


@pytest.mark.parametrize("write", [as_folder, write_zip, as_tar_gz])
def test_an_image_that_does_not_decode_is_named_or_skipped_and_listed(archives, write):
    members = class_images() | {"dogs/2.jpg": photograph()[:-100]}
    write(archives / "mine", members)
    message = refusal(Folder("mine", 8), archives)
    assert message.startswith(f"{archives}/mine: image dogs/2.jpg does not decode (image file is truncated")
    assert "--skip-broken" in message
    manifest, data = prepared(Folder("mine", 8), archives, skip_broken=True)
    assert manifest["skipped"] == ["dogs/2.jpg"]
    assert manifest["count"] == 7
    whole = [name for name in sorted(members) if name != "dogs/2.jpg"]
    assert np.array_equal(data.samples.numpy(), np.stack([square(members[name], 8) for name in whole]))
    assert data.labels.tolist() == [0] * 4 + [1] * 3
    assert message == _error(lambda: prepare(Folder("mine", 8), archives.parent / "again", archives, workers=1))


def _error(call: Callable[[], object]) -> str:
    with pytest.raises(GcflowError) as caught:
        call()
    return str(caught.value)


def test_a_folder_without_images_and_a_file_of_another_kind_are_refused(archives):
    (archives / "mine").mkdir()
    assert "holds 0 images" in refusal(Folder("mine", 8), archives)
    (archives / "other").write_text("text")
    assert "is no folder, zip, tar or tar.gz" in refusal(Folder("other", 8), archives)
    as_folder(archives / "mine", {"a.jpg": b"no image"})
    assert "no image decodes" in refusal(Folder("mine", 8), archives, skip_broken=True)
    assert "holds 1 images, expected 2" in refusal(Folder("mine", 8, images=2), archives)


@pytest.mark.parametrize("length", [0.5, 0.9])
def test_a_truncated_tar_gz_is_refused(archives, length):
    as_tar_gz(archives / "mine", class_images())
    content = (archives / "mine").read_bytes()
    (archives / "mine").write_bytes(content[: int(length * len(content))])
    assert refusal(Folder("mine", 8), archives).startswith(f"{archives}/mine: ")


def test_a_name_that_would_break_a_line_is_escaped(archives):
    write_zip(archives / "mine", {"two\nlines.jpg": b"no image"})
    assert "image two\\nlines.jpg does not decode" in refusal(Folder("mine", 8), archives)


@pytest.mark.parametrize(
    ("source", "fetched"),
    [
        (
            Cifar10(),
            "cifar-10-python.tar.gz: missing; put https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz there",
        ),
        (Imagenet32(), "ILSVRC2012_img_train.tar: missing; fetch ILSVRC2012_img_train.tar from https://image-net.org"),
        (Imagenet32Downsampled(), "Imagenet32_train_npz.zip: missing; fetch it"),
        (Church64(), "church_outdoor_train_lmdb.zip: missing; put http://dl.yf.io/lsun/scenes/"),
        (Folder("mine", 32), "mine: missing; put a folder, zip, tar or tar.gz of images there"),
    ],
)
def test_a_missing_archive_is_named_with_what_to_fetch(archives, source, fetched):
    assert refusal(source, archives).startswith(f"{archives}/{fetched}")


@pytest.mark.parametrize(
    ("source", "shape", "count"),
    [
        (Cifar10(), (3, 32, 32), 50000),
        (Imagenet32(), (3, 32, 32), 1281167),
        (Imagenet32Downsampled(), (3, 32, 32), 1281167),
        (Celeba64(), (3, 64, 64), 162770),
        (Church64(), (3, 64, 64), 126227),
        (Folder("mine", 128), (3, 128, 128), None),
    ],
)
def test_shape_count_and_samples_to_time_are_known_without_an_archive(source, shape, count):
    samples = source.timing_samples()
    assert source.shape == shape
    assert source.count == count
    assert samples.shape == (1024, *shape)
    assert samples.dtype == np.uint8
    assert samples.mean() == pytest.approx(127.5, abs=5 * 74 / np.sqrt(samples.size))


@pytest.mark.parametrize(
    ("call", "key"),
    [
        (lambda: Folder("mine", 48), "size"),
        (lambda: Folder("mine", 2), "size"),
        (lambda: Folder("mine", 32, images=0), "images"),
        (lambda: Cifar10(images=0), "images"),
        (lambda: Celeba64(held_out_images=-1), "held_out_images"),
    ],
)
def test_impossible_options_are_refused_by_key(call, key):
    with pytest.raises(ValueError, match=rf"\n{key}\n"):
        call()


def test_shards_are_of_whole_chunks_and_blocks():
    from gcflow.archives import images

    assert preparation.SHARD % images.CHUNK == 0
    assert preparation.SHARD % array_batches.ROWS == 0
