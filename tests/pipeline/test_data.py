import hashlib
import json
import math
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from archive_files import photograph, square, write_zip
from projects import contents, error_line, gcflow, limit_file_size, tiny_params, write_project
from sklearn.datasets import load_digits, load_sample_images

from gcflow import preparation
from gcflow.archives import decoding
from gcflow.archives.layouts import Folder
from gcflow.config import NoiseProcess
from gcflow.data import load_dataset
from gcflow.errors import GcflowError
from gcflow.preconditioning import to_model_space
from gcflow.preparation import prepare
from gcflow.sources import Digits, Mixture2d, Patches32, Synthetic

MEANS = ((1.2, 0.4), (-0.9, 1.1), (-0.6, -1.3))
MIXTURE = Mixture2d(means=MEANS, std=0.35, count=6000, seed=3)
SHIFTED = NoiseProcess(sigma_data=0.7, data_mean=-0.39)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "digits"
    prepare(Digits(), folder)
    return folder


@pytest.fixture
def points(tmp_path: Path) -> Path:
    prepare(MIXTURE, tmp_path / "points")
    return tmp_path / "points"


def test_prepared_digits_are_the_images_of_scikit_learn(digits):
    data, bunch = load_dataset(digits), load_digits()
    grey = torch.round(data.samples.double() * 16 / 255)
    assert data.samples.dtype == torch.uint8
    assert data.samples.shape == (1797, 1, 8, 8)
    assert np.array_equal(grey[:, 0].numpy(), bunch.images)
    assert np.array_equal(data.labels.numpy(), bunch.target)
    assert data.shape == (1, 8, 8)


def test_seventeen_grey_levels_reach_from_black_to_white(digits):
    levels = load_dataset(digits).samples.unique().tolist()
    assert levels == [round(255 * level / 16) for level in range(17)]


def test_the_manifest_of_digits_states_facts_of_the_arrays(digits):
    manifest = json.loads((digits / "manifest.json").read_text())
    raw = np.load(digits / "samples.npy").astype(np.float64)
    scaled = raw / 127.5 - 1
    assert manifest["count"] == 1797
    assert manifest["shape"] == [1, 8, 8]
    assert manifest["dtype"] == "uint8"
    assert manifest["options"] == {"source": "digits"}
    assert "load_digits" in manifest["source"]
    assert manifest["channel_mean"] == pytest.approx([scaled.mean()], abs=1e-6)
    assert manifest["channel_std"] == pytest.approx([scaled.std()], abs=1e-6)
    assert manifest["std"] == pytest.approx(scaled.std(), abs=1e-6)
    assert manifest["sha256"] == {
        name: hashlib.sha256((digits / name).read_bytes()).hexdigest()
        for name in ("samples.npy", "labels.npy", "held_out.npy")
    }
    assert load_dataset(digits).sha256 == manifest["sha256"]["samples.npy"]


def test_the_manifest_of_points_has_the_moments_of_each_coordinate(points):
    manifest = json.loads((points / "manifest.json").read_text())
    samples = np.load(points / "samples.npy").astype(np.float64)
    assert manifest["shape"] == [2]
    assert manifest["dtype"] == "float32"
    assert manifest["channel_mean"] == pytest.approx(samples.mean(0), abs=1e-6)
    assert manifest["channel_std"] == pytest.approx(samples.std(0), abs=1e-6)
    assert manifest["std"] == pytest.approx(samples.std(), abs=1e-6)


def test_points_of_the_mixture_have_its_moments_within_five_standard_errors(points):
    data = load_dataset(points)
    samples, means = data.samples.double(), torch.tensor(MEANS, dtype=torch.float64)
    for component, mean in enumerate(means):
        chosen = samples[data.labels == component]
        share, expected = len(chosen) / len(samples), 1 / len(MEANS)
        assert abs(share - expected) < 5 * math.sqrt(expected * (1 - expected) / len(samples))
        assert (chosen.mean(0) - mean).abs().max() < 5 * MIXTURE.std / math.sqrt(len(chosen))
        assert (chosen.std(0) - MIXTURE.std).abs().max() < 5 * MIXTURE.std / math.sqrt(2 * len(chosen))
    covariance = MIXTURE.std**2 * torch.eye(2) + torch.cov(means.T, correction=0)
    deviations = samples - means.mean(0)
    products = deviations[:, :, None] * deviations[:, None, :]
    errors = products.std(0) / math.sqrt(len(samples))
    assert ((products.mean(0) - covariance).abs() < 5 * errors).all()


def test_points_are_reproducible_by_their_seed(points, tmp_path):
    prepare(MIXTURE, tmp_path / "again")
    prepare(Mixture2d(means=MEANS, std=0.35, count=6000, seed=4), tmp_path / "other")
    assert contents(tmp_path / "again") == contents(points)
    assert load_dataset(tmp_path / "other").sha256 != load_dataset(points).sha256


def test_preparing_again_replaces_what_was_damaged(points):
    before = contents(points)
    (points / "samples.npy").write_bytes(b"damaged")
    prepare(MIXTURE, points)
    assert contents(points) == before


@pytest.mark.parametrize("written", [0, 1, 2])
def test_an_interrupted_preparation_leaves_the_old_data_or_data_that_are_refused(points, monkeypatch, written):
    old, write, calls = load_dataset(points), preparation.write_array, []

    def failing(*args: object) -> None:
        if len(calls) == written:
            raise KeyboardInterrupt
        calls.append(args)
        write(*args)

    monkeypatch.setattr(preparation, "write_array", failing)
    with pytest.raises(KeyboardInterrupt):
        prepare(Mixture2d(means=MEANS, std=0.5, count=10, seed=0), points)
    monkeypatch.undo()
    if written:
        with pytest.raises(GcflowError, match=r"samples.npy: sha256 differs"):
            load_dataset(points)
    else:
        assert load_dataset(points).sha256 == old.sha256


def truncated(folder: Path) -> str:
    content = (folder / "samples.npy").read_bytes()
    (folder / "samples.npy").write_bytes(content[:-100])
    return "samples.npy: sha256 differs"


def one_bit_changed(folder: Path) -> str:
    content = bytearray((folder / "labels.npy").read_bytes())
    content[-1] ^= 1
    (folder / "labels.npy").write_bytes(content)
    return "labels.npy: sha256 differs"


def array_missing(folder: Path) -> str:
    (folder / "labels.npy").unlink()
    return "labels.npy: missing"


def manifest_missing(folder: Path) -> str:
    (folder / "manifest.json").unlink()
    return "manifest.json: missing"


def manifest_not_json(folder: Path) -> str:
    (folder / "manifest.json").write_text('{"count": 60')
    return "manifest.json: not valid JSON"


def manifest_of_another_kind(folder: Path) -> str:
    (folder / "manifest.json").write_text("[1, 2]")
    return "manifest.json: lacks"


def _edit(folder: Path, key: str, value: object) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {key: value}))


def count_wrong(folder: Path) -> str:
    _edit(folder, "count", 6001)
    return "samples.npy: shape"


def hashes_of_a_wrong_type(folder: Path) -> str:
    _edit(folder, "sha256", "0123")
    return "manifest.json: "


def held_out_missing(folder: Path) -> str:
    (folder / "held_out.npy").unlink()
    return "held_out.npy: missing"


def held_out_unlisted(folder: Path) -> str:
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["sha256"]["held_out.npy"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return "manifest.json: sha256 lacks held_out.npy; run gcflow prepare points"


def hashes_of_no_file(folder: Path) -> str:
    _edit(folder, "sha256", {})
    return "manifest.json: "


def vouched_for(name: str, change: Callable[[np.ndarray], Any], said: str) -> Callable[[Path], str]:
    """Another array, whose hash the manifest has."""

    def damage(folder: Path) -> str:
        path = folder / name
        changed = change(np.load(path))
        path.write_bytes(changed) if isinstance(changed, bytes) else np.save(path, changed)
        hashes = json.loads((folder / "manifest.json").read_text())["sha256"]
        _edit(folder, "sha256", hashes | {name: hashlib.sha256(path.read_bytes()).hexdigest()})
        return f"{name}: {said}"

    return damage


@pytest.mark.parametrize(
    "damage",
    [
        vouched_for("samples.npy", lambda points: np.where(points > 1, np.nan, points), "does not hold uint8 images"),
        vouched_for("samples.npy", lambda points: points.astype(np.float64), "does not hold uint8 images"),
        vouched_for("samples.npy", lambda points: points.astype(object), "no array of numbers"),
        vouched_for("samples.npy", lambda points: b"PK", "no array of numbers"),
        vouched_for("labels.npy", lambda labels: labels.astype(np.int32), "does not hold an int64 >= 0 for each"),
        vouched_for("labels.npy", lambda labels: labels[1:], "does not hold an int64 >= 0 for each"),
        vouched_for("labels.npy", lambda labels: labels - 1, "does not hold an int64 >= 0 for each"),
        vouched_for("held_out.npy", lambda points: np.zeros((3, 4), np.float32), "does not hold what samples.npy has"),
        truncated,
        one_bit_changed,
        array_missing,
        manifest_missing,
        manifest_not_json,
        manifest_of_another_kind,
        count_wrong,
        hashes_of_a_wrong_type,
        hashes_of_no_file,
        held_out_missing,
        held_out_unlisted,
    ],
)
def test_damaged_data_are_refused_in_one_line_that_names_the_file(points, damage):
    expected = damage(points)
    with pytest.raises(GcflowError) as caught:
        load_dataset(points)
    message = str(caught.value)
    assert message.startswith(f"{points}/{expected}")
    assert len(message.splitlines()) == 1


def test_the_exact_distribution_of_digits_is_their_images_in_model_space(digits):
    data = load_dataset(digits)
    exact = Digits().exact_mixture(data.samples, SHIFTED)
    images = data.samples.flatten(1).double() / 127.5 - 1 + 0.39
    assert exact.std == 0
    assert exact.means.shape == (1797, 64)
    assert torch.allclose(exact.means.double(), images, atol=1e-6)
    assert exact.weights.sum().item() == pytest.approx(1)


def test_the_exact_denoiser_of_digits_finds_each_image_and_their_mean(digits):
    data = load_dataset(digits)
    exact = Digits().exact_mixture(data.samples, SHIFTED)
    images = to_model_space(data.samples, SHIFTED)
    some = images[:50]
    assert torch.allclose(exact.denoise(some + 1e-3, torch.full((50,), 0.01)), some, atol=1e-4)
    far = exact.denoise(torch.zeros_like(some), torch.full((50,), 1e4))
    assert torch.allclose(far, images.mean(0).expand_as(far), atol=1e-4)


def test_the_exact_distribution_of_points_is_the_mixture_shifted_to_model_space(points):
    data = load_dataset(points)
    exact = MIXTURE.exact_mixture(data.samples, SHIFTED)
    assert torch.allclose(exact.means, torch.tensor(MEANS) + 0.39)
    assert exact.std == MIXTURE.std
    assert exact.weights.tolist() == pytest.approx([1 / 3] * 3)
    seen = to_model_space(data.samples, SHIFTED)
    mean = (exact.weights[:, None] * exact.means).sum(0)
    error = seen.std(0) / math.sqrt(len(seen))
    assert ((seen.mean(0) - mean).abs() < 5 * error).all()


def test_the_exact_denoiser_of_points_is_the_conditional_mean(points):
    data = load_dataset(points)
    exact = MIXTURE.exact_mixture(data.samples, SHIFTED)
    seen, sigma = to_model_space(data.samples, SHIFTED), 0.8
    noisy = seen + sigma * torch.randn(seen.shape, generator=torch.Generator().manual_seed(0))
    error = seen - exact.denoise(noisy, torch.full((len(seen),), sigma))
    # The residual of a conditional mean is orthogonal to every function of what it is conditioned on.
    for weight in (torch.ones(len(seen)), noisy[:, 0], noisy[:, 1], noisy.norm(dim=1), noisy.prod(1)):
        product = weight[:, None] * error
        assert (product.mean(0).abs() < 5 * product.std(0) / math.sqrt(len(seen))).all()


@pytest.mark.parametrize(
    ("field", "value"), [("std", 0.0), ("std", -1.0), ("count", 0), ("means", ()), ("std", math.nan)]
)
def test_an_impossible_mixture_is_refused_by_key(field, value):
    options = {"means": MEANS, "std": 0.35, "count": 10, "seed": 0} | {field: value}
    with pytest.raises(ValueError, match=rf"\n{field}\b"):
        Mixture2d(**options)


# Small sources.


@pytest.mark.parametrize(
    "source", [Digits(), MIXTURE, Synthetic(shape=(3, 8, 8), count=10, seed=0), Patches32(stride=16)]
)
def test_shape_and_count_of_a_small_source_are_known_and_its_samples_are_what_is_timed(source):
    raw = source.load()
    assert tuple(source.shape) == raw.samples.shape[1:]
    assert source.count == len(raw.samples) == len(raw.labels)
    assert np.array_equal(source.timing_samples(), raw.samples)


def test_sources_without_a_test_split_hold_nothing_out(digits, points):
    assert load_dataset(digits).held_out.shape == (0, 1, 8, 8)
    assert load_dataset(points).held_out.shape == (0, 2)
    assert load_dataset(digits).held_out.dtype == torch.uint8


@pytest.mark.parametrize("stride", [3, 16, 32])
def test_patches_lie_in_their_photographs_and_no_pixel_is_in_both_splits(stride):
    raw = Patches32(stride=stride).load()
    photographs = load_sample_images().images
    down, across = (range(0, length - 31, stride) for length in (427, 480))
    expected = [photograph[y : y + 32, x : x + 32] for photograph in photographs for y in down for x in across]
    assert np.array_equal(raw.samples, np.stack(expected).transpose(0, 3, 1, 2))
    held_out = range(480, 640 - 31, stride)
    assert max(across) + 32 <= min(held_out)
    expected = [photograph[y : y + 32, x : x + 32] for photograph in photographs for y in down for x in held_out]
    assert np.array_equal(raw.held_out, np.stack(expected).transpose(0, 3, 1, 2))
    half = len(raw.labels) // 2
    assert raw.labels.tolist() == [0] * half + [1] * half


def test_patches_are_prepared_with_what_is_held_out(tmp_path):
    manifest = prepare(Patches32(stride=16), tmp_path / "patches")
    data = load_dataset(tmp_path / "patches")
    assert manifest["held_out"] == len(data.held_out) == 2 * 25 * 9
    assert data.shape == (3, 32, 32)
    scaled = data.samples.double() / 127.5 - 1
    assert manifest["channel_mean"] == pytest.approx(scaled.mean((0, 2, 3)).tolist(), abs=1e-6)
    assert manifest["channel_std"] == pytest.approx(scaled.std((0, 2, 3), correction=0).tolist(), abs=1e-6)
    assert manifest["std"] == pytest.approx(scaled.std(correction=0).item(), abs=1e-6)


def test_an_impossible_stride_is_refused_by_key():
    with pytest.raises(ValueError, match=r"\nstride\n"):
        Patches32(stride=0)


# What is cut short goes on.


class Cut(BaseException):
    """Stands for the end of the process."""


MINE = Folder("mine", 8)
MEMBERS = {f"class{k % 2}/{k:02}.jpg": photograph(20, 20 + k) for k in range(30)}


@pytest.fixture
def archives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """30 images, in shards of 8."""
    monkeypatch.setattr(preparation, "CHUNK", 4)
    monkeypatch.setattr(preparation, "SHARD", 8)
    (tmp_path / "archives").mkdir()
    write_zip(tmp_path / "archives" / "mine", MEMBERS)
    return tmp_path / "archives"


@pytest.fixture
def uncut(archives: Path, tmp_path: Path) -> dict[str, str]:
    prepare(MINE, tmp_path / "uncut", archives, workers=1)
    return contents(tmp_path / "uncut")


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of images that were decoded."""
    decoded: list[str] = []
    decode = decoding.decode

    def count(item: Any, *rest: Any) -> decoding.Decoded:
        decoded.append(item.name)
        return decode(item, *rest)

    monkeypatch.setattr(decoding, "decode", count)
    return decoded


def cut_at(count: int) -> Callable[[int, int, str], None]:
    def report(done: int, total: int, phase: str) -> None:
        if phase == "images" and done >= count:
            raise Cut

    return report


def cut_short(folder: Path, archives: Path, done: int = 20) -> None:
    with pytest.raises(Cut):
        prepare(MINE, folder, archives, workers=1, report=cut_at(done))


@pytest.mark.parametrize("done", [4, 8, 12, 20, 28])
def test_a_preparation_that_was_cut_goes_on_after_its_last_shard_and_ends_with_the_same_bytes(
    archives, tmp_path, uncut, counted, done
):
    folder = tmp_path / "data"
    cut_short(folder, archives, done)
    with pytest.raises(GcflowError, match=r"manifest\.json: missing"):
        load_dataset(folder)
    counted.clear()
    prepare(MINE, folder, archives, workers=1)
    assert contents(folder) == uncut
    # A shard counts when its notes are written, which is after its last image was told of.
    assert len(counted) == 30 - (done - 1) // 8 * 8


@pytest.mark.parametrize("written", range(4))
def test_a_preparation_that_was_cut_while_it_wrote_its_arrays_decodes_nothing_again(
    archives, tmp_path, uncut, counted, monkeypatch, written
):
    folder, replace = tmp_path / "data", Path.replace
    prepare(Folder("mine", 8, filter="box"), folder, archives, workers=1)
    old, done = contents(folder), []

    def cut(path: Path, target: Path) -> Path:
        if target.parent == folder:
            if len(done) == written:
                raise Cut
            done.append(target)
        return replace(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", cut)
        with pytest.raises(Cut):
            prepare(MINE, folder, archives, workers=1)
    if written == 0:
        assert {name: content for name, content in contents(folder).items() if name in old} == old
        load_dataset(folder)
    else:
        with pytest.raises(GcflowError, match="sha256 differs"):
            load_dataset(folder)
    counted.clear()
    prepare(MINE, folder, archives, workers=1)
    assert contents(folder) == uncut
    # Held-out images come after the samples are written.
    assert counted == []


@pytest.mark.parametrize(
    ("name", "again"), [("samples-00001.json", 22 - 8), ("source.json", 30), ("samples-00001.u8", 22 - 8)]
)
def test_a_shard_that_vanished_is_made_again_and_no_other(archives, tmp_path, uncut, counted, name, again):
    cut_short(tmp_path / "data", archives, 20)
    (tmp_path / "data" / ".preparing" / name).unlink()
    counted.clear()
    prepare(MINE, tmp_path / "data", archives, workers=1)
    assert contents(tmp_path / "data") == uncut
    assert len(counted) == again + 8 * (name != "source.json")


@pytest.mark.parametrize("change", ["archive", "options", "transform"])
def test_nothing_made_from_another_archive_or_in_another_way_is_kept(archives, tmp_path, counted, monkeypatch, change):
    folder = tmp_path / "data"
    cut_short(folder, archives)
    source = MINE
    if change == "archive":
        write_zip(archives / "mine", {name: photograph() for name in MEMBERS})
    elif change == "options":
        source = Folder("mine", 8, filter="box")
    else:
        monkeypatch.setattr(Folder, "provenance", lambda source: {"transform": "of another version"})
    counted.clear()
    prepare(source, folder, archives, workers=1)
    assert len(counted) == 30
    prepare(source, tmp_path / "whole", archives, workers=1)
    assert contents(folder) == contents(tmp_path / "whole")


def test_after_a_broken_image_skip_broken_goes_on_and_its_absence_does_not_keep_what_was_skipped(
    archives, tmp_path, counted
):
    members = {f"{k:02}.jpg": photograph() for k in range(30)} | {"18.jpg": b"no image"}
    write_zip(archives / "mine", members)
    folder = tmp_path / "data"
    with pytest.raises(GcflowError, match=r"image 18\.jpg does not decode"):
        prepare(MINE, folder, archives, workers=1)
    counted.clear()
    with pytest.raises(Cut):
        prepare(MINE, folder, archives, workers=1, skip_broken=True, report=cut_at(28))
    assert counted[0] == "16.jpg"
    counted.clear()
    with pytest.raises(GcflowError, match=r"image 18\.jpg does not decode"):
        prepare(MINE, folder, archives, workers=1)
    prepare(MINE, folder, archives, workers=1, skip_broken=True)
    data, manifest = load_dataset(folder), json.loads((folder / "manifest.json").read_text())
    assert manifest["skipped"] == ["18.jpg"]
    assert [shard["rows"] for shard in manifest["shards"]] == [8, 8, 7, 6]
    whole = [square(content, 8) for name, content in members.items() if name != "18.jpg"]
    assert np.array_equal(data.samples.numpy(), np.stack(whole))


def test_the_manifest_has_the_hash_of_each_shard(archives, tmp_path, uncut):
    manifest = json.loads((tmp_path / "uncut" / "manifest.json").read_text())
    samples, first = np.load(tmp_path / "uncut" / "samples.npy"), 0
    assert [shard["rows"] for shard in manifest["shards"]] == [8, 8, 8, 6]
    for shard in manifest["shards"]:
        rows = samples[first : first + shard["rows"]]
        assert hashlib.sha256(rows.tobytes()).hexdigest() == shard["sha256"]
        first += len(rows)


def test_a_second_process_is_refused_while_one_prepares(archives, tmp_path):
    refused = []

    def report(done: int, total: int, phase: str) -> None:
        if phase == "images" and not refused:
            with pytest.raises(GcflowError, match="another process prepares this data set"):
                prepare(MINE, tmp_path / "data", archives, workers=1)
            refused.append(1)

    prepare(MINE, tmp_path / "data", archives, workers=1, report=report)
    assert refused == [1]


KILLED = """
import os, signal, sys
from pathlib import Path
from gcflow import preparation
from gcflow.archives.layouts import Folder
preparation.CHUNK, preparation.SHARD = 4, 8

def report(done, total, phase):
    if phase == 'images' and done >= 20:
        os.kill(os.getpid(), signal.SIGKILL)

preparation.prepare(Folder('mine', 8), Path(sys.argv[1]), Path(sys.argv[2]), workers=2, report=report)
"""


def test_a_process_that_is_killed_half_way_is_gone_on_with(archives, tmp_path, uncut, counted):
    command = [sys.executable, "-c", KILLED, tmp_path / "data", archives]
    assert subprocess.run(command, check=False, stderr=subprocess.DEVNULL).returncode == -signal.SIGKILL
    prepare(MINE, tmp_path / "data", archives, workers=1)
    assert contents(tmp_path / "data") == uncut
    assert len(counted) == 30 - 16


# The command line.


@pytest.fixture
def project(tmp_path: Path) -> Path:
    params = tiny_params()
    params["datasets"]["digits"]["data"] = {"source": "folder", "path": "mine", "size": 32}
    del params["datasets"]["digits"]["tables"]
    root = write_project(tmp_path / "project", params)
    (root / "archives").mkdir()
    write_zip(root / "archives" / "mine", {f"class{k % 2}/{k:02}.jpg": photograph() for k in range(100)})
    return root


def test_the_command_line_prepares_from_the_archives_of_the_project_or_of_a_folder_named(project, tmp_path):
    gcflow(project, "prepare", "digits", "--workers", "2")
    first = contents(project / "data")
    (project / "archives").rename(tmp_path / "elsewhere")
    error = error_line(gcflow(project, "prepare", "digits", check=False).stderr)
    assert "archives/mine: missing; put a folder, zip, tar or tar.gz of images there" in error
    result = gcflow(project, "prepare", "digits", "--archives", tmp_path / "elsewhere")
    assert "digits: 100 samples of shape [3, 32, 32]" in result.stderr
    assert contents(project / "data") == first


def test_a_full_disk_is_one_line_and_the_next_call_ends_with_the_same_bytes(project):
    gcflow(project, "prepare", "digits", "--workers", "1")
    whole = contents(project / "data")
    shutil.rmtree(project / "data")
    result = gcflow(
        project, "prepare", "digits", "--workers", "1", check=False, preexec=lambda: limit_file_size(200_000)
    )
    assert result.returncode == 2
    error = error_line(result.stderr)
    assert "data/digits/.preparing/samples-00000.u8: File too large" in error
    assert not (project / "data" / "digits" / "manifest.json").exists()
    gcflow(project, "prepare", "digits", "--workers", "1")
    assert contents(project / "data") == whole


def test_a_broken_image_is_one_line_and_can_be_skipped(project):
    images = {"one/a.jpg": photograph(), "two/b.jpg": b"no image", "two/c.jpg": photograph()}
    write_zip(project / "archives" / "mine", images)
    assert "image two/b.jpg does not decode" in error_line(gcflow(project, "prepare", "digits", check=False).stderr)
    result = gcflow(project, "prepare", "digits", "--skip-broken")
    assert "1 images do not decode and were left out" in result.stderr


def test_one_class_too_few_images_and_another_scale_are_said_before_anything_is_trained(project):
    archive, params = project / "archives" / "mine", project / "params.yaml"
    write_zip(archive, {f"{k:02}.jpg": photograph() for k in range(40)})
    for verb in ("prepare", "features"):
        result = gcflow(project, verb, "digits", check=False)
        assert result.returncode == 2
        said = "datasets.digits.features.kind is classifier, but the data have one class; "
        assert f"{said}sort the images into a folder per class, or take kind: inception" in error_line(result.stderr)
    write_zip(archive, {f"class{k % 2}/{k:02}.jpg": photograph() for k in range(40)})
    params.write_text(params.read_text().replace("sigma_data: 0.75", "sigma_data: 5.0"))
    said = gcflow(project, "prepare", "digits").stderr
    assert "datasets.digits: 40 samples have no covariance of full rank in 64 classifier features" in said
    found = json.loads((project / "data/digits/manifest.json").read_text())["std"]
    assert f"sigma_data: 5, data_mean: -0.39; of these data they are {found:.2g} and " in said
