"""`gcflow sample`: what it writes, that an image is the same however it is asked for, and what it refuses."""

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import cycle, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import Outcome, refused
from PIL import Image
from projects import Fork, prepare_data, run_folder, tiny_params, train_here, write_project
from safetensors.torch import save_file

from gcflow.config import NetworkConfig, NoiseProcess, from_dict
from gcflow.files import read_json
from gcflow.preconditioning import from_model_space
from gcflow.sampling import Sampler, generate, heun_sample, image_noise
from gcflow.weights import ModelSpec, load_model, load_tensors, save_tensors

IC, ECT, DENOISER, POINTS = "digits/ic/0", "digits/ect/0", "digits/denoiser/0", "mixture2d/ic/0"
SHAPE = (1, 8, 8)
STEPS = 120
MAGNIFICATION = 4


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a consistency model of each boundary, a denoiser, and a model of points."""
    params = tiny_params()
    # Enough that no two images are alike.
    params["datasets"]["digits"]["training"] |= {"steps": STEPS, "learning_rate": 1.0e-2}
    root = prepare_data(write_project(tmp_path_factory.mktemp("sample") / "project", params), "digits", "mixture2d")
    for run in (IC, DENOISER, ECT, POINTS):
        train_here(root, run)
    return root


def weights_of(root: Path, run: str) -> Path:
    return run_folder(root, run) / "weights.safetensors"


@pytest.fixture
def sample(here: Callable[..., Outcome], tmp_path: Path) -> Callable[..., Outcome]:
    """`gcflow sample` in an empty folder."""
    return partial(here, tmp_path, "sample")


@pytest.fixture
def array(sample: Callable[..., Outcome], tmp_path: Path) -> Callable[..., np.ndarray]:
    """The samples that a call writes to a .npy file."""

    def call(weights: Path, *args: str | int) -> np.ndarray:
        outcome = sample(weights, *args, "--out", "array.npy")
        assert outcome.code == 0, outcome.errors
        return np.load(tmp_path / "array.npy")

    return call


def files(folder: Path) -> set[str]:
    """Everything below a folder, hidden files too."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image)


def grid_of(images: np.ndarray, columns: int) -> np.ndarray:
    """The magnified grid of grey images, written with plain loops."""
    rows = -(-len(images) // columns)
    grid = np.full((rows * 9 + 1, columns * 9 + 1), 96, dtype=np.uint8)
    for number, image in enumerate(images):
        top, left = number // columns * 9 + 1, number % columns * 9 + 1
        grid[top : top + 8, left : left + 8] = image[0]
    return np.kron(grid, np.ones((MAGNIFICATION, MAGNIFICATION), dtype=np.uint8))


# What is written.


@pytest.mark.parametrize(("count", "columns", "size"), [(9, 3, (112, 112)), (7, 2, (76, 148)), (1, 1, (40, 40))])
def test_a_png_is_a_magnified_grid_of_the_images_in_their_order(root, sample, array, tmp_path, count, columns, size):
    images = array(weights_of(root, IC), "--count", count)
    assert sample(weights_of(root, IC), "--count", count, "--out", "grid.png").code == 0
    with Image.open(tmp_path / "grid.png") as grid:
        assert (grid.format, grid.mode, grid.size) == ("PNG", "L", size)
    assert np.array_equal(pixels(tmp_path / "grid.png"), grid_of(images, columns))


def test_without_options_64_images_are_drawn_into_samples_png(root, sample, tmp_path):
    path = weights_of(root, IC)
    outcome = sample(path)
    assert (outcome.code, outcome.output) == (0, "")
    assert outcome.errors.splitlines()[-1] == f"64 samples from {path} (ema weights, 1 network passes): samples.png"
    assert files(tmp_path) == {"samples.png"}
    assert pixels(tmp_path / "samples.png").shape == (292, 292)


def test_weights_of_ect_are_sampled_with_the_boundary_of_their_method(root, sample, tmp_path):
    tensors, header = load_tensors(weights_of(root, ECT))
    found = {}
    for boundary in (None, 0.4):
        method = {**header["config"]["method"], "sampling_boundary": boundary}
        save_tensors(
            tmp_path / "ect.safetensors", tensors, {**header, "config": {**header["config"], "method": method}}
        )
        assert sample(tmp_path / "ect.safetensors", "--count", 4, "--sigma", 0.8, "--out", "ect.npz").code == 0
        with np.load(tmp_path / "ect.npz") as written:
            found[boundary] = written["samples"]
            assert written["boundary"] == (boundary or 0.0)
        model, spec, _ = load_model(tmp_path / "ect.safetensors")
        sampler = Sampler("consistency", (0.8,), boundary=boundary)
        (expected,) = generate(model, sampler, spec.shape, range(4), 0)
        assert np.array_equal(found[boundary], expected)
    assert not np.array_equal(found[None], found[0.4])


@pytest.mark.parametrize("first", [0, 5])
def test_a_folder_has_one_png_per_image_named_by_its_number(root, sample, array, tmp_path, first):
    options = ("--count", 7, "--first", first, "--batch", 3)
    images = array(weights_of(root, IC), *options)
    assert sample(weights_of(root, IC), *options, "--out", "deep/folder").code == 0
    folder = tmp_path / "deep" / "folder"
    assert files(folder) == {f"{number:06d}.png" for number in range(first, first + 7)}
    for number, image in enumerate(images, start=first):
        assert np.array_equal(pixels(folder / f"{number:06d}.png"), image[0])


def test_an_npy_file_is_the_bare_array(root, array):
    images = array(weights_of(root, IC), "--count", 5)
    assert (images.dtype, images.shape) == (np.uint8, (5, *SHAPE))
    assert len(np.unique(images)) > 50
    assert len({image.tobytes() for image in images}) == 5


def test_an_npz_file_has_the_samples_and_where_they_are_from(root, sample, array, tmp_path):
    path, options = weights_of(root, IC), ("--count", 5, "--first", 3, "--seed", 4, "--raw")
    sigmas = ("--sigma", 2.5, "--sigma", 0.5)
    assert sample(path, *options, *sigmas, "--out", "some.npz").code == 0
    with np.load(tmp_path / "some.npz") as found:
        samples, numbers = found["samples"], found["numbers"]
        record = {key: found[key].tolist() for key in set(found) - {"samples", "numbers"}}
    assert np.array_equal(samples, array(path, *options, *sigmas))
    assert numbers.tolist() == [3, 4, 5, 6, 7]
    assert record == {
        "seed": 4,
        "weights": "raw",
        "sampler": "consistency",
        "network_evaluations": 3,
        "intermediate_sigmas": [2.5, 0.5],
        "boundary": 0.002,
        "step": STEPS,
        "config_hash": read_json(run_folder(root, IC) / "config.json")["config_hash"],
    }


def test_a_file_that_is_there_is_replaced(root, sample, tmp_path):
    for name in ("samples.png", "samples.npy", "samples.npz"):
        (tmp_path / name).write_bytes(b"old")
        assert sample(weights_of(root, IC), "--count", 4, "--out", name).code == 0
        assert not (tmp_path / name).read_bytes().startswith(b"old")
    assert files(tmp_path) == {"samples.png", "samples.npy", "samples.npz"}


def test_weights_that_were_imported_are_sampled_in_colour_and_without_a_run(sample, array, tmp_path):
    spec = ModelSpec(NetworkConfig("mlp", 16, 1), "edm", NoiseProcess(), (3, 8, 8))
    tensors = {f"ema.{name}": tensor for name, tensor in spec.build(1).network.state_dict().items()}
    path = tmp_path / "imported.safetensors"
    save_tensors(path, tensors, {"model": spec.header()})
    options = ("--count", 3, "--heun-steps", 3)
    images = array(path, *options)
    assert images.shape == (3, 3, 8, 8)
    for out in ("folder", "grid.png", "some.npz"):
        assert sample(path, *options, "--out", out).code == 0
    assert np.array_equal(pixels(tmp_path / "folder" / "000002.png"), images[2].transpose(1, 2, 0))
    assert pixels(tmp_path / "grid.png").shape == (112, 40, 3)
    with np.load(tmp_path / "some.npz") as found:
        assert (found["sampler"], found["step"], found["config_hash"]) == ("heun", -1, "")
    lacking = refused(sample(path, "--raw", "--out", "raw.png"), "imported.safetensors: raw weights")
    assert "lacks" in lacking


# The same image however it is asked for.


@pytest.mark.parametrize(("run", "options"), [(IC, ("--sigma", 5, "--sigma", 0.5)), (DENOISER, ("--heun-steps", 4))])
def test_an_image_is_the_same_in_batches_of_any_size_and_from_any_first(root, array, run, options):
    path = weights_of(root, run)
    whole = array(path, "--count", 10, "--batch", 500, *options).astype(int)
    for first, count, batch in ((0, 10, 3), (0, 10, 1), (4, 5, 500), (4, 6, 2), (9, 1, 500)):
        part = array(path, "--count", count, "--first", first, "--batch", batch, *options)
        assert np.abs(part - whole[first : first + count]).max() <= 1
    assert np.abs(np.diff(whole, axis=0)).max(axis=(1, 2, 3)).min() > 3


def test_a_point_is_the_same_in_batches_of_any_size_and_from_any_first(root, array):
    path = weights_of(root, POINTS)
    whole = array(path, "--count", 10)
    assert (whole.dtype, whole.shape) == (np.float32, (10, 2))
    np.testing.assert_allclose(array(path, "--count", 10, "--batch", 3), whole, atol=1e-4)
    np.testing.assert_allclose(array(path, "--count", 5, "--first", 4), whole[4:9], atol=1e-4)


# Which weights, which sampler.


def test_ema_and_raw_weights_give_the_images_of_their_own_model(root, array):
    path = weights_of(root, IC)
    found = {}
    for kind, options in (("ema", ()), ("raw", ("--raw",))):
        model, spec, _ = load_model(path, kind)
        noise = image_noise(0, range(6), spec.shape)
        expected = from_model_space(model(80.0 * noise, torch.full((6,), 80.0)), spec.process, torch.uint8)
        found[kind] = array(path, "--count", 6, *options).astype(int)
        assert np.abs(found[kind] - expected.numpy()).max() <= 1
    assert np.abs(found["ema"] - found["raw"]).max() > 1


@pytest.mark.parametrize(("run", "lowest"), [(IC, 0.002), (ECT, 0.0)])
def test_each_sigma_is_one_further_step_at_that_noise_level(root, array, run, lowest):
    path = weights_of(root, run)
    model, spec, _ = load_model(path)
    noise = [image_noise(3, range(6), spec.shape, step) for step in range(3)]
    x = model(80.0 * noise[0], torch.full((6,), 80.0))
    steps = [x]
    for step, sigma in enumerate((5.0, 0.5), start=1):
        x = model(x + (sigma**2 - lowest**2) ** 0.5 * noise[step], torch.full((6,), sigma))
        steps.append(x)
    found = []
    for expected, sigmas in zip(steps, ((), (5,), (5, 0.5)), strict=True):
        options = [part for sigma in sigmas for part in ("--sigma", sigma)]
        found.append(array(path, "--count", 6, "--seed", 3, *options).astype(int))
        assert np.abs(found[-1] - from_model_space(expected, spec.process, torch.uint8).numpy()).max() <= 1
    assert all(np.abs(a - b).max() > 10 for a, b in pairwise(found))


@pytest.mark.parametrize(("options", "steps"), [((), 18), (("--heun-steps", 3), 3)])
def test_a_denoiser_is_sampled_with_heun(root, sample, tmp_path, options, steps):
    path = weights_of(root, DENOISER)
    outcome = sample(path, "--count", 4, *options, "--out", "some.npz")
    assert f"(ema weights, {2 * steps - 1} network passes)" in outcome.errors
    model, spec, _ = load_model(path)
    expected = heun_sample(model, image_noise(0, range(4), spec.shape), spec.process, steps)
    with np.load(tmp_path / "some.npz") as found:
        assert (found["sampler"], found["network_evaluations"]) == ("heun", 2 * steps - 1)
        difference = found["samples"].astype(int) - from_model_space(expected, spec.process, torch.uint8).numpy()
    assert np.abs(difference).max() <= 1


def test_a_denoiser_refuses_noise_levels_of_steps_it_does_not_make(root, sample, tmp_path):
    outcome = sample(weights_of(root, DENOISER), "--sigma", 0.8)
    refused(outcome, "--sigma 0.8: the weights are a denoiser's", "--heun-steps")
    assert files(tmp_path) == set()


@pytest.mark.parametrize(
    "sigmas",
    [(0.5, 0.8), (0.8, 0.8), (5, 0.5, 2), (80,), (100,), (0.002,), (0.001,), (0,), (-1,), ("nan",), ("inf",)],
    ids=str,
)
def test_noise_levels_that_do_not_descend_within_the_range_are_refused(root, sample, tmp_path, sigmas):
    options = [part for sigma in sigmas for part in ("--sigma", sigma)]
    outcome = sample(weights_of(root, IC), *options)
    given = " ".join(f"--sigma {sigma}" for sigma in sigmas)
    refused(outcome, f"{given}: expected descending noise levels between 80 and 0.002")
    assert files(tmp_path) == set()


# Points.


def test_points_are_no_images_for_a_folder(root, sample, tmp_path):
    refused(sample(weights_of(root, POINTS), "--out", "folder"), "folder: the samples are points", ".png (a scatter)")
    assert files(tmp_path) == set()


def test_a_png_of_points_is_a_scatter(root, sample, tmp_path):
    path = weights_of(root, POINTS)
    for count in (1, 200):
        assert sample(path, "--count", count, "--out", f"{count}.png").code == 0
    one, many = (pixels(tmp_path / f"{count}.png")[..., :3].astype(int) for count in (1, 200))
    assert one.shape == many.shape == (990, 990, 3)
    # Dots in the first colour of the palette.
    dots = [(np.abs(picture - (0x00, 0x72, 0xB2)).max(axis=2) < 8).sum() for picture in (one, many)]
    assert 0 < 10 * dots[0] < dots[1]


# What is refused.


@pytest.mark.parametrize("name", ["samples.jpg", "samples.safetensors", "samples.tar.gz", "deep/samples.PNG"])
def test_another_ending_is_refused_before_the_weights_are_read(sample, tmp_path, name):
    refused(sample(tmp_path / "missing.safetensors", "--out", name), f"{name}: expected .npz, .npy, .png (a grid)")
    assert files(tmp_path) == set()


def missing(path: Path) -> str:
    path.unlink()
    return "no such file"


def a_folder(path: Path) -> str:
    path.unlink()
    path.mkdir()
    return "not a readable safetensors file"


def truncated(path: Path) -> str:
    os.truncate(path, path.stat().st_size - 100)
    return "not a readable safetensors file"


def empty(path: Path) -> str:
    path.write_bytes(b"")
    return "not a readable safetensors file"


def garbage(path: Path) -> str:
    path.write_bytes(b"garbage" * 100)
    return "not a readable safetensors file"


def without_metadata(path: Path) -> str:
    save_file(load_tensors(path)[0], path)
    return "has no gcflow header"


def of_another_program(path: Path) -> str:
    save_file(load_tensors(path)[0], path, {"format": "pt"})
    return "has no gcflow header"


def without_a_weight(path: Path) -> str:
    tensors, header = load_tensors(path)
    del tensors[next(name for name in tensors if name.startswith("ema."))]
    save_tensors(path, tensors, header)
    return "ema weights do not fit the network of its header"


def of_another_version(path: Path) -> str:
    tensors, header = load_tensors(path)
    header["model"]["network"]["width"] = 3
    save_tensors(path, tensors, header)
    return "its header is of another version of gcflow"


def with_nan(path: Path) -> str:
    tensors, header = load_tensors(path)
    next(tensor for name, tensor in tensors.items() if name.startswith("ema."))[0] = torch.nan
    save_tensors(path, tensors, header)
    return "which is not finite"


def header_with(change: Callable[[dict[str, Any]], object], said: str) -> Callable[[Path], str]:
    def damage(path: Path) -> str:
        tensors, header = load_tensors(path)
        change(header)
        save_tensors(path, tensors, header)
        return said

    return damage


DEEP = {"architecture": "ddpm++", "channels": 8, "blocks": 1, "multipliers": [1, 1, 1, 1, 1]}
DAMAGES = (
    with_nan,
    header_with(lambda header: header["model"].update(network=DEEP), "its header is of another version of gcflow"),
    header_with(lambda header: header["model"].update(shape=[1, 0, 8]), "its header is of another version of gcflow"),
    header_with(lambda header: header["model"]["network"].update(channels=10**6), "no network can be as its header"),
    header_with(lambda header: header.update(config=[]), "not what gcflow train writes"),
    header_with(lambda header: header["config"].pop("method"), "not what gcflow train writes"),
    missing,
    a_folder,
    truncated,
    empty,
    garbage,
    without_metadata,
    of_another_program,
    without_a_weight,
    of_another_version,
)


@pytest.mark.parametrize(("damage", "out"), list(zip(DAMAGES, cycle(("samples.png", "folder")))))
def test_weights_that_cannot_be_used_are_refused_by_name_and_nothing_is_written(root, sample, tmp_path, damage, out):
    path = tmp_path / "copy.safetensors"
    shutil.copyfile(weights_of(root, IC), path)
    reason = damage(path)
    before = files(tmp_path)
    line = refused(sample("copy.safetensors", "--out", out), reason)
    assert line.startswith("gcflow: error: copy.safetensors: ")
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--count", 10**12, "there is no image 999999999999; the last one is 999999"),
        ("--first", 10**6, "there is no image 1000063; the last one is 999999"),
        ("--device", "meta", "--device meta: "),
    ],
)
def test_options_that_no_machine_can_serve_are_refused_in_one_line(root, sample, tmp_path, option, value, said):
    refused(sample(weights_of(root, IC), option, value), said)
    assert files(tmp_path) == set()


def test_an_empty_path_is_not_the_folder_where_one_is(root, sample, tmp_path):
    outcome = sample(weights_of(root, IC), "--out", "")
    assert (outcome.code, outcome.output) == (2, "")
    assert "'--out': the path is empty" in outcome.errors
    assert files(tmp_path) == set()


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory\nframe")])
def test_more_memory_than_there_is_ends_in_one_line(root, sample, tmp_path, monkeypatch, error):
    def fails(*arguments: Any) -> Any:
        raise error

    monkeypatch.setattr("gcflow.pipeline.sample.generate", fails)
    refused(sample(weights_of(root, IC)), "out of memory (")
    assert files(tmp_path) == set()


# Nothing half-written.


@pytest.mark.parametrize("name", ["out.png", "out.npy", "out.npz", "points.png"])
def test_a_full_disk_ends_in_one_line_and_keeps_the_file_that_was_there(root, tmp_path, name):
    (tmp_path / name).write_bytes(b"good")
    path = weights_of(root, POINTS if name == "points.png" else IC)
    process = Fork(tmp_path, "sample", path, "--count", 64, "--out", name, file_size=400)
    assert process.wait() == 2
    # Progress comes before.
    assert "Traceback" not in process.output
    assert process.output.splitlines()[-1].startswith(f"gcflow: error: {name}: ")
    assert files(tmp_path) == {name}
    assert (tmp_path / name).read_bytes() == b"good"


def test_a_full_disk_leaves_whole_images_alone_in_a_folder(root, sample, array, tmp_path, monkeypatch):
    from gcflow.pipeline import sample as verb

    save_image = verb.save_image

    def fails(image: np.ndarray, path: Path) -> None:
        if "000002" in path.name:
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        save_image(image, path)

    monkeypatch.setattr(verb, "save_image", fails)
    outcome = sample(weights_of(root, IC), "--count", 5, "--out", "folder")
    refused(outcome, "folder/000002.png: No space left on device")
    assert files(tmp_path / "folder") == {"000000.png", "000001.png"}
    images = array(weights_of(root, IC), "--count", 5)
    for number in range(2):
        assert np.array_equal(pixels(tmp_path / "folder" / f"{number:06d}.png"), images[number, 0])


def test_a_place_that_cannot_be_written_is_named(root, sample, tmp_path):
    (tmp_path / "file").write_bytes(b"good")
    (tmp_path / "folder.png").mkdir()
    for out, named in (("file", "file"), ("file/grid.png", "file"), ("folder.png", "folder.png: ")):
        outcome = sample(weights_of(root, IC), "--count", 2, "--out", out)
        line = refused(outcome._replace(errors=outcome.errors.splitlines()[-1]), f"error: {named}")
        assert line.endswith("; nothing was overwritten")
    assert files(tmp_path) == {"file", "folder.png"}
    assert (tmp_path / "file").read_bytes() == b"good"


def test_a_model_whose_process_has_another_range_is_asked_for_levels_in_its_own(root, sample, array, tmp_path):
    tensors, header = load_tensors(weights_of(root, IC))
    spec = from_dict(ModelSpec, header["model"])
    spec = replace(spec, process=replace(spec.process, sigma_max=20.0, sigma_min=0.01))
    path = tmp_path / "narrow.safetensors"
    save_tensors(path, tensors, header | {"model": spec.header()})
    for sigma in (20, 30, 0.01, 0.005):
        refused(sample(path, "--sigma", sigma), f"--sigma {sigma}: expected", "between 20 and 0.01")
    assert len(array(path, "--count", 2, "--sigma", 10)) == 2
