"""Every official format: the arrays that its archive becomes, and what is said of one that is damaged or another."""

import hashlib
import io
import json
import pickle
import shutil
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from archive_files import (
    RANDOM,
    encoded,
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

from gcflow.archives.array_batches import read_batch
from gcflow.archives.layouts import Archived, Celeba64, Church64, Cifar10, Folder, Imagenet32, Imagenet32Downsampled
from gcflow.data import load_dataset
from gcflow.errors import GcflowError
from gcflow.preparation import prepare

Files = dict[str, bytes]


@pytest.fixture
def archives(tmp_path: Path) -> Path:
    (tmp_path / "archives").mkdir()
    return tmp_path / "archives"


def prepared(source: Archived, archives: Path, **options: Any) -> tuple[dict[str, Any], Any]:
    """Manifest and data, by one thread."""
    folder = archives.parent / "data" / source.source
    manifest = prepare(source, folder, archives, workers=1, **options)
    data = load_dataset(folder)
    assert json.loads((folder / "manifest.json").read_text()) == manifest
    arrays = ("held_out.npy", "labels.npy", "samples.npy")
    assert sorted(path.name for path in folder.iterdir()) == sorted([*arrays, "manifest.json"])
    assert data.shape == source.shape == tuple(manifest["shape"])
    assert len(data.samples) == manifest["count"] == sum(shard["rows"] for shard in manifest["shards"])
    assert len(data.held_out) == manifest["held_out"]
    for name in arrays:
        file = io.BytesIO()
        np.save(file, np.load(folder / name))
        assert file.getvalue() == (folder / name).read_bytes()
    return manifest, data


def refusal(source: Archived, archives: Path, **options: Any) -> str:
    """The message of a refusal: one line, and nothing that could be taken for data."""
    folder = archives.parent / "data" / source.source
    with pytest.raises(GcflowError) as caught:
        prepare(source, folder, archives, workers=1, **options)
    assert not (folder / "manifest.json").exists()
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message


# Archives of each format.


class Written(NamedTuple):
    """What was written to a folder of archives, and what has to come out."""

    source: Archived
    samples: np.ndarray
    labels: list[int]
    archive: Path
    held_out: np.ndarray = np.empty(0)


def images(contents: list[bytes], size: int, filter_: str = "lanczos") -> np.ndarray:
    return np.stack([square(content, size, Image.Resampling[filter_.upper()]) for content in contents])


def cifar(archives: Path, **replaced: bytes) -> Written:
    batches = {name: random_batch(20) for name in [*(f"data_batch_{k}" for k in (4, 2, 1, 3, 5)), "test_batch"]}
    files = {"batches.meta": b"unread", **{name: python2_batch(*batch) for name, batch in batches.items()}, **replaced}
    path = archives / "cifar-10-python.tar.gz"
    write_tar(path, {f"cifar-10-batches-py/{name}": content for name, content in files.items()}, "w:gz")
    md5 = None if replaced else hashlib.md5(path.read_bytes()).hexdigest()
    train = [batches[f"data_batch_{k}"] for k in range(1, 6)]
    # Row k of an image is 1024 red values, then green, then blue, each 32 rows of 32.
    samples = np.concatenate([pixels for pixels, _ in train]).reshape(100, 3, 32, 32)
    labels = [label for _, labels in train for label in labels]
    source = Cifar10(md5=md5, images=100, held_out_images=20)
    return Written(source, samples, labels, path, batches["test_batch"][0].reshape(20, 3, 32, 32))


def class_images() -> dict[str, Files]:
    shapes = [(50, 40), (40, 50), (32, 32), (70, 33)]
    names = ("n02000000", "n01000000", "n03000000")
    return {name: {f"{name}_{k}.JPEG": photograph(*shapes[k]) for k in (2, 0, 3, 1)} for name in names}


def imagenet(archives: Path, filter_: str = "bilinear", unpacked: bool = False) -> Written:
    classes = class_images()
    path = archives / ("train" if unpacked else "ILSVRC2012_img_train.tar")
    if unpacked:
        as_folder(path, {f"{name}/{image}": content for name in classes for image, content in classes[name].items()})
        (path / "n01000000" / "notes.txt").write_text("no image")
    else:
        tars = {name: write_tar(archives.parent / "tar", files).read_bytes() for name, files in classes.items()}
        write_tar(path, {f"{name}.tar": content for name, content in tars.items()})
    contents = [classes[name][image] for name in sorted(classes) for image in sorted(classes[name])]
    labels = [label for label in range(3) for _ in range(4)]
    return Written(Imagenet32(images=12, filter=filter_), images(contents, 32, filter_), labels, path)


def downsampled(archives: Path, numpy_format: bool = True, zipped: bool = True) -> Written:
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
    path = archives / ("Imagenet32_train_npz" if numpy_format else "Imagenet32_train")
    if zipped:
        path = write_zip(path.with_suffix(".zip"), members)
    else:
        as_folder(path, members)
    return Written(Imagenet32Downsampled(images=60), np.concatenate(pixels).reshape(60, 3, 32, 32), labels, path)


def celeba(archives: Path, compression: int = zipfile.ZIP_STORED, without: str = "", listed: str = "") -> Written:
    members = {f"img_align_celeba/{k:06}.jpg": photograph(218, 178) for k in range(1, 10)}
    kept = {name: content for name, content in members.items() if name != without}
    path = write_zip(archives / "img_align_celeba.zip", {"img_align_celeba/": b"", **kept}, compression)
    lines = "".join(f"{k:06}.jpg {0 if k < 6 else 1 if k < 8 else 2}\n" for k in range(1, 10))
    (archives / "list_eval_partition.txt").write_text(listed or lines)
    # Faces of 178x218 become 64x78, of which rows 7 to 71 remain.
    resized = [opened(content).resize((64, 78), Image.Resampling.LANCZOS) for content in members.values()]
    faces = np.stack([np.asarray(image.crop((0, 7, 64, 71))).transpose(2, 0, 1) for image in resized])
    return Written(Celeba64(images=5, held_out_images=2), faces[:5], [0] * 5, path, faces[7:])


def church(archives: Path, zipped: bool = False) -> Written:
    members = {RANDOM.bytes(8).hex().encode(): photograph(40, 60) for _ in range(6)}
    file = io.BytesIO()
    opened(photograph(50, 80)).save(file, "WEBP", lossless=True)
    members[b"00"] = file.getvalue()
    folder = write_lmdb(archives / "church_outdoor_train_lmdb", members)
    path = folder / "data.mdb"
    if zipped:
        name = "church_outdoor_train_lmdb/data.mdb"
        path = write_zip(archives / "church_outdoor_train_lmdb.zip", {name: path.read_bytes()})
        shutil.rmtree(folder)
    return Written(Church64(images=7), images([members[key] for key in sorted(members)], 64), [0] * 7, path)


def as_folder(path: Path, members: Files) -> None:
    for name, content in members.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)


def as_tar(path: Path, members: Files) -> None:
    write_tar(path, {f"./{name}": content for name, content in members.items()})


def as_tar_gz(path: Path, members: Files) -> None:
    write_tar(path, members, "w:gz")


def mine(archives: Path, write: Callable[[Path, Files], Any] = write_zip, **replaced: bytes) -> Written:
    members = {f"{folder}/{k}.jpg": photograph(20 + k, 30) for folder in ("dogs", "cats") for k in range(4)}
    members |= {f"dogs/{name}.jpg": content for name, content in replaced.items()}
    write(archives / "mine", members | {"readme.txt": b"no image", "__MACOSX/dogs/._0.jpg": b"no image"})
    kept = [name for name in sorted(members) if members[name] not in replaced.values()]
    labels = [int(name.startswith("dogs")) for name in kept]
    expected = images([members[name] for name in kept], 16, "box")
    return Written(Folder("mine", 16, filter="box"), expected, labels, archives / "mine")


def sha256_of_listing(folder: Path) -> str:
    """sha256 of what sha256sum prints."""
    files = sorted(
        path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg") and path.name[0] != "."
    )
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(folder)}\n" for path in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


@pytest.mark.parametrize(
    ("write", "options"),
    [
        (cifar, {}),
        (imagenet, {}),
        (imagenet, {"filter_": "lanczos"}),
        (imagenet, {"unpacked": True}),
        (downsampled, {}),
        (downsampled, {"numpy_format": False}),
        (downsampled, {"zipped": False}),
        (downsampled, {"numpy_format": False, "zipped": False}),
        (celeba, {}),
        (celeba, {"compression": zipfile.ZIP_DEFLATED}),
        (church, {}),
        (church, {"zipped": True}),
        (mine, {"write": as_folder}),
        (mine, {"write": as_tar}),
        (mine, {"write": as_tar_gz}),
        (mine, {"write": write_zip}),
    ],
)
def test_each_format_becomes_its_arrays(archives, write, options):
    written = write(archives, **options)
    before = sorted(archives.rglob("*"))
    manifest, data = prepared(written.source, archives)
    assert np.array_equal(data.samples.numpy(), written.samples)
    assert data.labels.tolist() == written.labels
    assert np.array_equal(data.held_out.numpy().ravel(), written.held_out.ravel())
    path, entry = written.archive, manifest["source"][0]
    if (write is mine and options["write"] is as_folder) or path.name == "train":
        assert entry["sha256"] == sha256_of_listing(path)
    elif path.is_file():
        content = path.read_bytes()
        assert entry == {"file": path.name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    assert ("shorter side resized to " in manifest["transform"]) == (write not in (cifar, downsampled))
    assert manifest.get("filter") == getattr(written.source, "filter", None)
    scaled = written.samples / 127.5 - 1
    assert manifest["channel_mean"] == pytest.approx(scaled.mean((0, 2, 3)), abs=1e-6)
    assert manifest["channel_std"] == pytest.approx(scaled.std((0, 2, 3)), abs=1e-6)
    assert manifest["std"] == pytest.approx(scaled.std(), abs=1e-6)
    assert sorted(archives.rglob("*")) == before


def test_all_files_of_a_source_are_in_its_manifest(archives):
    celeba(archives)
    manifest, _ = prepared(Celeba64(images=5, held_out_images=2), archives)
    assert [entry["file"] for entry in manifest["source"]] == ["img_align_celeba.zip", "list_eval_partition.txt"]
    downsampled(archives, zipped=False)
    manifest, _ = prepared(Imagenet32Downsampled(images=60), archives)
    assert len(manifest["source"]) == 10


def test_images_without_folders_have_label_0_and_other_modes_are_counted(archives):
    file = io.BytesIO()
    Image.fromarray(RANDOM.integers(0, 65536, (9, 9), dtype=np.uint16)).save(file, "PNG")
    as_folder(archives / "mine", {"a.jpg": photograph(), "b.png": file.getvalue()})
    manifest, data = prepared(Folder("mine", 8), archives)
    assert data.labels.tolist() == [0, 0]
    assert manifest["converted"] == {"I;16": 1}


@pytest.mark.parametrize("write", [as_folder, write_zip, as_tar_gz])
def test_an_image_that_does_not_decode_is_named_or_skipped_and_listed(archives, write):
    written = mine(archives, write, **{"2": photograph()[:-100]})
    message = refusal(written.source, archives)
    assert message.startswith(f"{archives}/mine: image dogs/2.jpg does not decode (image file is truncated")
    assert "--skip-broken" in message
    manifest, data = prepared(written.source, archives, skip_broken=True)
    assert manifest["skipped"] == ["dogs/2.jpg"]
    assert np.array_equal(data.samples.numpy(), written.samples)
    assert data.labels.tolist() == written.labels == [0] * 4 + [1] * 3


# A user's own images, as cameras, Windows and Kaggle leave them.


def test_images_of_ones_own_are_as_a_viewer_shows_them_and_every_change_is_counted(archives):
    colours = RANDOM.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    image, exif = Image.fromarray(colours), Image.Exif()
    exif[0x0112] = 6  # Its top is at the right: a viewer turns it by a quarter, clockwise.
    clear = Image.fromarray(np.dstack([colours, np.zeros((8, 8), np.uint8)]))
    members = {
        "a.png": encoded(image, "PNG", exif=exif),
        "b.png": encoded(clear, "PNG"),
        "c.png": encoded(image, "PNG", save_all=True, append_images=[clear.convert("RGB")]),
        "d.avif": encoded(Image.new("RGB", (8, 8), (9, 99, 199)), "AVIF", quality=100),
    }
    as_folder(archives / "mine", members)
    manifest, data = prepared(Folder("mine", 8), archives)
    shown = data.samples.numpy().transpose(0, 2, 3, 1)
    assert np.array_equal(shown[0], np.rot90(colours, -1))
    assert (shown[1] == 255).all()
    assert np.array_equal(shown[2], colours)
    assert np.abs(shown[3].astype(int) - (9, 99, 199)).max() <= 2
    assert manifest["converted"] == {
        "RGBA": 1,
        "first of several frames": 1,
        "transparency on white": 1,
        "turned upright": 1,
    }


def test_official_images_stay_as_they_are_stored(archives):
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encoded(opened(photograph(40, 50)), "JPEG", exif=exif)
    as_folder(archives / "train", {"n01/a.JPEG": turned})
    manifest, data = prepared(Imagenet32(images=1), archives)
    assert np.array_equal(data.samples.numpy()[0], square(turned, 32, Image.Resampling.BILINEAR))
    assert manifest["converted"] == {}


def test_a_kind_of_image_that_cannot_be_read_is_refused_by_name(archives):
    as_folder(archives / "mine", {"a.jpg": photograph(), "b.HEIC": b"ftypheic", "c.txt": b"no image"})
    assert "image b.HEIC does not decode" in refusal(Folder("mine", 8), archives)
    manifest, _ = prepared(Folder("mine", 8), archives, skip_broken=True)
    assert (manifest["count"], manifest["skipped"]) == (1, ["b.HEIC"])


def test_folders_behind_links_are_followed_and_loops_refused(archives):
    as_folder(archives / "elsewhere", {"0.jpg": photograph(), "1.jpg": photograph()})
    as_folder(archives / "mine", {"cat/0.jpg": photograph()})
    (archives / "mine" / "dog").symlink_to(archives / "elsewhere")
    assert prepared(Folder("mine", 8), archives)[1].labels.tolist() == [0, 1, 1]
    (archives / "elsewhere" / "loop").symlink_to(archives / "mine")
    message = f"{archives}/mine/dog/loop: a link to a folder that it lies in; remove it"
    shutil.rmtree(archives.parent / "data")
    assert refusal(Folder("mine", 8), archives) == message


def test_a_zip_that_windows_made_has_its_classes(archives):
    write_zip(archives / "mine", {f"faces\\{kind}\\0.jpg": photograph() for kind in ("cat", "dog")})
    assert prepared(Folder("mine", 8), archives)[1].labels.tolist() == [0, 1]


@pytest.mark.parametrize("mode", ["zip", "tar"])
def test_two_images_of_one_name_are_refused(archives, mode):
    path = archives / "mine"
    if mode == "zip":
        write_zip(path, {"a/0.jpg": photograph(), "a\\0.jpg": photograph()})
    else:
        write_tar(path, {"a/0.jpg": photograph(), "./a/0.jpg": photograph()})
    assert refusal(Folder("mine", 8), archives) == f"{path}: holds a/0.jpg twice; pack it again"


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_an_image_that_is_a_link_in_a_tar_is_refused(archives, kind):
    path = write_tar(archives / "mine", {"a/0.jpg": photograph()})
    with tarfile.open(path, "a") as archive:
        link = tarfile.TarInfo("a/1.jpg")
        link.type, link.linkname = kind, "a/0.jpg"
        archive.addfile(link)
    assert refusal(Folder("mine", 8), archives).startswith(f"{path}: a/1.jpg is a link or no file; pack it with")


def test_celeba_as_kaggle_has_it_gives_the_same_arrays(archives):
    written = celeba(archives)
    with zipfile.ZipFile(written.archive) as archive:
        members = {f"img_align_celeba/{name}": archive.read(name) for name in archive.namelist()}
    write_zip(written.archive, members)
    listed = archives / "list_eval_partition.txt"
    lines = listed.read_text().replace(" ", ",")
    (archives / "list_eval_partition.csv").write_bytes(f"\ufeffimage_id,partition\r\n{lines}\r\n".encode())
    listed.unlink()
    manifest, data = prepared(written.source, archives)
    assert manifest["source"][1]["file"] == "list_eval_partition.csv"
    assert np.array_equal(data.samples.numpy(), written.samples)
    assert np.array_equal(data.held_out.numpy(), written.held_out)


# Damage, and archives of something else.


def cut(path: Path, length: int) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:length])


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 255
    path.write_bytes(content)


def batch_with(change: Callable[[np.ndarray, list[int]], bytes]) -> Callable[[Path], Written]:
    return lambda archives: cifar(archives, data_batch_3=change(*random_batch(4)))


def downsampled_with(name: str, content: bytes | None) -> Callable[[Path], Written]:
    def write(archives: Path) -> Written:
        written = downsampled(archives)
        with zipfile.ZipFile(written.archive) as archive:
            members = {member: archive.read(member) for member in archive.namelist()}
        members[name] = members[name][:9000] if content is None else content
        write_zip(written.archive, {member: kept for member, kept in members.items() if kept})
        return written

    return write


def zip_of(name: str, members: Files, source: Archived) -> Callable[[Path], Written]:
    return lambda archives: Written(source, np.empty(0), [], write_zip(archives / name, members))


def tar_of(name: str, members: Files, source: Archived) -> Callable[[Path], Written]:
    return lambda archives: Written(source, np.empty(0), [], write_tar(archives / name, members))


def then(write: Callable[[Path], Written], damage: Callable[[Path], None]) -> Callable[[Path], Written]:
    def damaged(archives: Path) -> Written:
        written = write(archives)
        damage(written.archive)
        return written

    return damaged


def saved(**arrays: Any) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


ONE_IMAGE = {"a.jpg": photograph()}
CELEBA = Celeba64(images=5, held_out_images=2)
DAMAGED = "is truncated, damaged or another archive"


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (batch_with(lambda data, labels: python2_batch(data, labels)[:5000]), DAMAGED),
        (batch_with(lambda data, labels: b""), DAMAGED),
        (batch_with(lambda data, labels: b"\x80\x02](K\x01e."), DAMAGED),
        (batch_with(lambda data, labels: python2_batch(data, labels[:3])), "labels that are not one integer per image"),
        (batch_with(lambda data, labels: python2_batch(data, [0, 1, 2, 10])), "outside the 10 classes"),
        (batch_with(lambda data, labels: python2_batch(data[:, :3000], labels)), "not uint8 of shape [n, 3072]"),
        (batch_with(lambda data, labels: python2_batch(data, labels).replace(b"U\x06labels", b"U\x06labelx")), DAMAGED),
        (lambda archives: cifar(archives)._replace(source=Cifar10()), "expected c58f30108f718f92721af3b95e74349a"),
        (then(cifar, lambda path: cut(path, 20_000)), "it is truncated or of another data set"),
        (tar_of("cifar-10-python.tar.gz", {"cifar-100-python/train": b""}, Cifar10(md5=None)), DAMAGED),
        (then(lambda archives: cifar(archives, readme=b""), lambda path: cut(path, 20_000)), DAMAGED),
        (
            lambda archives: cifar(archives)._replace(source=Cifar10(md5=None, images=99)),
            "holds 100 images, expected 99",
        ),
        (lambda archives: cifar(archives)._replace(source=Cifar10(md5=None, images=101)), "100 images, expected 101"),
        (then(imagenet, lambda path: cut(path, path.stat().st_size // 2)), DAMAGED),
        (then(imagenet, lambda path: cut(path, 600)), DAMAGED),
        (then(imagenet, lambda path: cut(path, 0)), DAMAGED),
        (lambda archives: imagenet(archives)._replace(source=Imagenet32(images=16)), "holds 12 images, expected 16"),
        (tar_of("ILSVRC2012_img_train.tar", ONE_IMAGE, Imagenet32()), "so it is not ImageNet's training set"),
        (downsampled_with("train_data_batch_3.npz", None), f"train_data_batch_3: {DAMAGED}"),
        (downsampled_with("train_data_batch_3.npz", b""), "holds no train_data_batch_3"),
        (
            downsampled_with("train_data_batch_3.npz", saved(data=random_batch(6)[0], labels=np.arange(6))),
            "outside the 1000 classes",
        ),
        (
            downsampled_with("train_data_batch_3.npz", saved(data=np.array([object()]), labels=np.arange(1))),
            "Object arrays cannot be loaded",
        ),
        (zip_of("Imagenet32_train.zip", ONE_IMAGE, Imagenet32Downsampled()), "holds no train_data_batch_1"),
        (then(celeba, lambda path: cut(path, path.stat().st_size - 500)), DAMAGED),
        (
            then(celeba, lambda path: flip(path, path.read_bytes().index(b"000003.jpg") + 2000)),
            "image img_align_celeba/000003.jpg does not decode (Bad CRC-32",
        ),
        (lambda archives: celeba(archives, without="img_align_celeba/000003.jpg"), "lacks img_align_celeba/000003.jpg"),
        (lambda archives: celeba(archives, listed="000001.jpg 0\n000002.jpg\n"), "line 2 is '000002.jpg'"),
        (lambda archives: celeba(archives, listed="000001.jpg 0\n000008.jpg 2\n"), "holds 1 images to train on"),
        (
            lambda archives: celeba(archives)._replace(source=Celeba64(images=5, held_out_images=3)),
            "holds 2 images to hold out, expected 3",
        ),
        *((then(church, lambda path, length=length: cut(path, length)), DAMAGED) for length in (0, 100, 5000, 12000)),
        (lambda archives: church(archives)._replace(source=Church64()), "holds 7 images, expected 126227"),
        (then(lambda archives: church(archives, zipped=True), lambda path: flip(path, 500)), ""),
        (zip_of("church_outdoor_train_lmdb.zip", {"bridge/readme.txt": b""}, Church64()), "holds no LMDB"),
        (
            lambda archives: mine(archives, as_folder)._replace(source=Folder("mine", 8, images=9)),
            "8 images, expected 9",
        ),
        (zip_of("mine", {"readme.txt": b""}, Folder("mine", 8)), "holds 0 images"),
        (zip_of("mine", {"two\nlines.jpg": b"no image"}, Folder("mine", 8)), "image two\\nlines.jpg does not decode"),
        (then(lambda archives: mine(archives, as_tar_gz), lambda path: cut(path, path.stat().st_size // 2)), DAMAGED),
        (then(lambda archives: mine(archives, as_tar_gz), lambda path: cut(path, path.stat().st_size - 20)), DAMAGED),
        (then(mine, lambda path: path.write_text("text")), "is no folder, zip, tar or tar.gz"),
    ],
)
def test_an_archive_that_is_damaged_or_another_is_refused_by_name_each_time(archives, write, said):
    written = write(archives)
    message = refusal(written.source, archives)
    assert message.startswith(f"{archives}/")
    assert said in message
    assert refusal(written.source, archives) == message


def test_images_of_which_none_decodes_are_refused(archives):
    write_zip(archives / "mine", {"a.jpg": b"no image"})
    assert "no image decodes" in refusal(Folder("mine", 8), archives, skip_broken=True)


@pytest.mark.parametrize(
    ("source", "there", "missing"),
    [
        (Cifar10(), (), "cifar-10-python.tar.gz: missing; put https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"),
        (
            Imagenet32(),
            (),
            "ILSVRC2012_img_train.tar: missing; fetch ILSVRC2012_img_train.tar from https://image-net.org",
        ),
        (Imagenet32Downsampled(), (), "Imagenet32_train_npz.zip: missing; fetch it"),
        (CELEBA, (), "img_align_celeba.zip: missing; fetch img_align_celeba.zip (folder Img) from the Google Drive of"),
        (CELEBA, ("img_align_celeba.zip",), "list_eval_partition.txt: missing; fetch list_eval_partition.txt (folder"),
        (Church64(), (), "church_outdoor_train_lmdb.zip: missing; put http://dl.yf.io/lsun/scenes/"),
        (Folder("mine", 32), (), "mine: missing; put a folder, zip, tar or tar.gz of images there"),
    ],
)
def test_a_missing_archive_is_named_with_what_to_fetch(archives, source, there, missing):
    for name in there:
        (archives / name).touch()
    assert refusal(source, archives).startswith(f"{archives}/{missing}")


def test_celeba_cannot_be_downloaded(archives):
    assert "no program can download it" in refusal(CELEBA, archives, download=True)


# Pickles.


def read(content: bytes) -> tuple[np.ndarray, list[int]]:
    items = read_batch(io.BytesIO(content), "batch", False, range(10))
    return np.stack([item.content for item in items]).reshape(len(items), -1), [item.label for item in items]


@pytest.mark.parametrize("protocol", [3, 4])
def test_batches_that_python_3_pickled_are_read_too(protocol):
    data, labels = random_batch(3)
    pixels, found = read(pickle.dumps({"data": data, "labels": labels}, protocol=protocol))
    assert np.array_equal(pixels, data)
    assert found == labels


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
    written = cifar(archives, data_batch_1=python2_batch(*random_batch(2), extra=hostile(tmp_path / "sentinel")))
    message = refusal(written.source, archives)
    assert message.startswith(f"{written.archive}: data_batch_1: ")
    assert "which no batch of images needs; do not trust it" in message
    assert not (tmp_path / "sentinel").exists()


def test_a_stand_in_of_numpy_cannot_be_changed():
    with pytest.raises(GcflowError, match="InertFunction"):
        read(python2_batch(*random_batch(2), extra=b"cnumpy\nndarray\n}U\x08__call__K\x01sb"))
    assert len(read(python2_batch(*random_batch(2)))[1]) == 2


# Without an archive.


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


def test_an_escape_in_the_text_of_a_damaged_batch_is_not_warned_of():
    with warnings.catch_warnings(record=True) as said, pytest.raises(GcflowError, match=r"^a batch: "):
        read_batch(io.BytesIO(b"\x80\x02S'\\\x01'\n."), "a batch", False, range(10))
    assert not said
