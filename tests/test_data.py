import hashlib
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from projects import contents
from sklearn.datasets import load_digits

from gcflow.config import NoiseProcess
from gcflow.data import load_dataset, prepare
from gcflow.errors import GcflowError
from gcflow.preconditioning import to_model_space
from gcflow.sources import Digits, Mixture2d

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
        name: hashlib.sha256((digits / name).read_bytes()).hexdigest() for name in ("samples.npy", "labels.npy")
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


@pytest.mark.parametrize("written", [0, 1])
def test_an_interrupted_preparation_leaves_the_old_data_or_data_that_are_refused(points, monkeypatch, written):
    old, save, calls = load_dataset(points), np.save, []

    def failing(*args: object) -> None:
        if len(calls) == written:
            raise KeyboardInterrupt
        calls.append(args)
        save(*args)

    monkeypatch.setattr(np, "save", failing)
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


def hashes_of_no_file(folder: Path) -> str:
    _edit(folder, "sha256", {})
    return "manifest.json: "


@pytest.mark.parametrize(
    "damage",
    [
        truncated,
        one_bit_changed,
        array_missing,
        manifest_missing,
        manifest_not_json,
        manifest_of_another_kind,
        count_wrong,
        hashes_of_a_wrong_type,
        hashes_of_no_file,
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
    with pytest.raises(ValueError, match=rf"^{field} is "):
        Mixture2d(**options)
