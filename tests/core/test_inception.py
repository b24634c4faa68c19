import importlib.util
import io
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import random_images
from projects import ROOT
from torch import nn

from gcflow import inception
from gcflow.config import NoiseProcess
from gcflow.errors import GcflowError
from gcflow.files import sha256_of
from gcflow.inception import (
    INCEPTION_SHA256,
    INCEPTION_URL,
    PIXELS,
    REAL_PIXELS,
    Inception,
    float_round_trip,
    resize_clean,
    resize_legacy_pytorch,
    write_surrogate,
)
from gcflow.metrics import FeatureStatistics, frechet_distance, kernel_inception_distance
from gcflow.preconditioning import from_model_space
from gcflow.randomness import generator

# What clean-fid calls of torch and scipy.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit.load` is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The `disp` argument is deprecated:DeprecationWarning"),
]
RESIZES = ["clean", "legacy-pytorch", "legacy-tensorflow"]
SIDES = [32, 64, 320]
SHRUNK_OR_GROWN = [32, 320]


def load_benchmark():
    path = ROOT / "benchmarks" / "inception.py"
    spec = importlib.util.spec_from_file_location("inception_benchmark", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def benchmark():
    return load_benchmark()


@pytest.fixture(scope="module")
def fid(benchmark):
    return benchmark.clean_fid()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, benchmark):
    """Network files where clean-fid looks for its own, and folders of natural images."""
    folder = tmp_path_factory.mktemp("inception")
    write_surrogate(folder / benchmark.WEIGHTS_NAME, seed=0)
    for side in SIDES:
        (folder / str(side)).mkdir()
        benchmark.write_images(natural(benchmark, side), folder / str(side))
    return folder


def natural(benchmark, side):
    return benchmark.natural_patches(2 if side > 299 else 6, side, seed=side)


@pytest.fixture(scope="module")
def network(folder, benchmark):
    return Inception.load(folder / benchmark.WEIGHTS_NAME)


@pytest.mark.parametrize("side", SHRUNK_OR_GROWN)
@pytest.mark.parametrize("mode", ["clean", "legacy_pytorch"])
def test_resized_pixels_are_clean_fids(side, mode, folder, benchmark, fid):
    from cleanfid.utils import ResizeDataset

    theirs = ResizeDataset(sorted(map(str, (folder / str(side)).glob("*.png"))), mode=mode)
    resize = {"clean": resize_clean, "legacy_pytorch": resize_legacy_pytorch}[mode]
    pixels = resize(natural(benchmark, side))
    assert pixels.dtype == torch.float32
    for index, ours in enumerate(pixels):
        assert (ours - theirs[index]).abs().max() <= 1e-4


@pytest.mark.parametrize("shape", [(28, 28), (33, 47), (299, 299), (299, 300), (411, 350), (1, 1), (1, 640)])
def test_clean_resizing_is_clean_fids_for_any_sides(shape, fid):
    from cleanfid.resize import build_resizer

    images = random_images(2, 3, *shape)
    theirs = np.stack([build_resizer("clean")(image) for image in images.permute(0, 2, 3, 1).numpy()])
    np.testing.assert_allclose(resize_clean(images).permute(0, 2, 3, 1), theirs, atol=1e-4)


def test_clean_resizing_keeps_constants_clips_overshoots_and_does_not_round():
    edge = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    edge[..., 4:] = 255
    pixels = resize_clean(edge)
    assert pixels.min() == 0
    assert pixels.max() == 255
    assert (pixels != pixels.round()).any()
    torch.testing.assert_close(resize_clean(torch.full((1, 1, 7, 9), 77)), torch.full((1, 1, 299, 299), 77.0))


@pytest.mark.parametrize("side", SHRUNK_OR_GROWN)
@pytest.mark.parametrize("resize", RESIZES)
def test_features_are_clean_fids_from_a_folder_of_the_same_images(side, resize, folder, benchmark, fid, network):
    from cleanfid.inception_torchscript import InceptionV3W

    model = InceptionV3W(str(folder), download=False, resize_inside=resize == "legacy-tensorflow")
    mode = resize.replace("-", "_")
    theirs = fid.get_folder_features(
        str(folder / str(side)), model, num_workers=0, batch_size=5, device="cpu", mode=mode, verbose=False
    )
    ours, _ = network(natural(benchmark, side), resize)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert np.abs(theirs).max() > 1


def test_the_fid_of_two_folders_is_clean_fids(folder, benchmark, fid, network):
    from cleanfid.inception_torchscript import InceptionV3W

    model = InceptionV3W(str(folder), download=False)
    theirs = [
        fid.get_folder_features(str(folder / side), model, num_workers=0, device="cpu", verbose=False)
        for side in ("32", "64")
    ]
    # Fewer features than images: clean-fid's root of a singular product is inaccurate, and takes half a minute.
    columns = theirs[0].var(0).argsort()[-4:].copy()
    ours = [FeatureStatistics(), FeatureStatistics()]
    for statistics, side in zip(ours, (32, 64), strict=True):
        statistics.update(network(natural(benchmark, side), "clean")[0][:, columns])
    expected = fid.fid_from_feats(theirs[0][:, columns], theirs[1][:, columns])
    assert expected > 0.1
    assert frechet_distance(*ours) == pytest.approx(expected, abs=1e-4)
    for statistics, features in zip(ours, theirs, strict=True):
        assert frechet_distance(statistics, torch.from_numpy(features[:, columns])) == pytest.approx(0, abs=1e-4)


def test_the_frechet_distance_is_clean_fids(fid):
    draw = torch.Generator().manual_seed(0)
    mixing = torch.randn(96, 96, generator=draw, dtype=torch.float64)
    a = torch.rand(500, 96, generator=draw, dtype=torch.float64) @ mixing
    b = torch.rand(400, 96, generator=draw, dtype=torch.float64) ** 2 @ mixing
    assert frechet_distance(a, b) == pytest.approx(fid.fid_from_feats(a.numpy(), b.numpy()), rel=1e-9)


@pytest.mark.parametrize(("counts", "size"), [((60, 50), 20), ((30, 90), 1000)])
def test_kid_is_clean_fids_on_the_same_subsets(counts, size, fid, monkeypatch):
    draw = torch.Generator().manual_seed(0)
    a, b = torch.rand(counts[0], 16, generator=draw), torch.rand(counts[1], 16, generator=draw) + 0.1
    chosen = []
    for index in range(7):
        subsets = generator(3, index, "kid-subset")
        first, second = (torch.randperm(count, generator=subsets)[: min(*counts, size)].numpy() for count in counts)
        chosen += [second, first]
    monkeypatch.setattr(np.random, "choice", lambda count, m, replace: chosen.pop(0))
    theirs = fid.kernel_distance(a.double().numpy(), b.double().numpy(), num_subsets=7, max_subset_size=size)
    mean, deviation = kernel_inception_distance(a, b, subsets=7, subset_size=size, seed=3)
    assert not chosen
    assert mean == pytest.approx(theirs, rel=1e-9)
    assert deviation > 0


def test_probabilities_are_those_of_the_logits_without_bias(folder, benchmark):
    network = Inception.load(folder / benchmark.WEIGHTS_NAME)
    images = random_images(3, 3, 299, 299)
    network.network.output.bias.uniform_(-1, 1)
    features, probabilities = network(images, "legacy-tensorflow")
    assert features.shape == (3, network.features) == (3, 2048)
    assert probabilities.shape == (3, network.classes) == (3, 1008)
    assert features.dtype == probabilities.dtype == torch.float32
    torch.testing.assert_close(probabilities.sum(1), torch.ones(3))
    torch.testing.assert_close(probabilities, network.network(images.float(), no_output_bias=True))
    assert (probabilities - network.network(images.float())).abs().max() > 1e-5


@pytest.mark.parametrize("resize", RESIZES)
def test_the_batch_does_not_matter(resize, network, monkeypatch):
    images = random_images(3, 3, 20, 24)
    features, probabilities = network(images, resize)
    for batch in (1, 2):
        monkeypatch.setattr(network, "batch", batch)
        again = network(images, resize)
        torch.testing.assert_close(again[0], features, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(again[1], probabilities, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("resize", RESIZES)
def test_grey_images_are_images_of_three_equal_channels(resize, network):
    grey = random_images(1, 1, 28, 28)
    ours, expected = network(grey, resize), network(grey.repeat(1, 3, 1, 1), resize)
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(2, 3, 8, 8),
        torch.zeros(2, 3, 8, 8, dtype=torch.int64),
        torch.zeros(3, 8, 8, dtype=torch.uint8),
        torch.zeros(2, 4, 8, 8, dtype=torch.uint8),
    ],
)
def test_images_of_another_type_or_shape_are_refused(images, network):
    with pytest.raises(ValueError, match="expected uint8"):
        network(images, "clean")


@pytest.fixture
def tf32_allowed():
    backends = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [backend.allow_tf32 for backend in backends]
    for backend in backends:
        backend.allow_tf32 = True
    yield
    for backend, allowed in zip(backends, before, strict=True):
        backend.allow_tf32 = allowed


def test_products_are_full_inside_and_what_they_were_afterwards(network, tf32_allowed, monkeypatch):
    seen = []

    def spy(images):
        seen.append((torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32))
        raise InterruptedError

    monkeypatch.setattr(inception, "resize_clean", spy)
    with pytest.raises(InterruptedError):
        network(random_images(1, 3, 8, 8), "clean")
    assert seen == [(False, False)]
    assert torch.backends.cuda.matmul.allow_tf32
    assert torch.backends.cudnn.allow_tf32


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("resize", RESIZES)
def test_a_gpu_gives_the_cpus_features(resize, network, folder, benchmark):
    on_gpu = Inception.load(folder / benchmark.WEIGHTS_NAME, "cuda")
    images = random_images(5, 3, 32, 32)
    for ours, expected in zip(on_gpu(images, resize), network(images, resize), strict=True):
        torch.testing.assert_close(ours.cpu(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_surrogates_bytes_are_a_function_of_its_seed_whatever_the_file_is_called(tmp_path):
    random = torch.get_rng_state()
    for name, seed in (("a.pt", 5), ("other name.pt", 5), ("c.pt", 6)):
        write_surrogate(tmp_path / name, seed)
    first, again, other = (sha256_of(tmp_path / name) for name in ("a.pt", "other name.pt", "c.pt"))
    assert first == again != other
    assert str(Path(inception.__file__).parent).encode() not in (tmp_path / "a.pt").read_bytes()
    torch.testing.assert_close(torch.get_rng_state(), random, rtol=0, atol=0)


def test_a_surrogates_features_differ_between_images(network, benchmark):
    features, probabilities = network(benchmark.natural_patches(24, 32, seed=1), "clean")
    spectrum = torch.linalg.eigvalsh(torch.cov(features.double().T)).flip(0)
    assert 0.1 < features.mean() < 1
    assert 0.1 < features.std(0).mean() < 1
    assert spectrum[16] > 1e-5 * spectrum[0]
    assert probabilities.max() < 0.5


def test_loading_takes_the_hash_and_warns_of_nothing(folder, benchmark):
    path = folder / benchmark.WEIGHTS_NAME
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        network = Inception.load(path, sha256=sha256_of(path))
    assert network.sha256 == sha256_of(path)
    assert network.device == torch.device("cpu")


def test_another_version_is_refused_with_both_hashes(folder, benchmark):
    path = folder / benchmark.WEIGHTS_NAME
    with pytest.raises(GcflowError) as error:
        Inception.load(path, sha256=INCEPTION_SHA256)
    message = str(error.value)
    assert str(path) in message
    assert sha256_of(path) in message
    assert INCEPTION_SHA256 in message


def test_a_missing_file_is_named_with_where_to_get_it(tmp_path):
    with pytest.raises(GcflowError, match="no such file") as error:
        Inception.load(tmp_path / "absent.pt")
    assert INCEPTION_URL in str(error.value)
    with pytest.raises(GcflowError, match="not readable"):
        Inception.load(tmp_path)


def torch_save(module):
    buffer = io.BytesIO()
    torch.save(module.state_dict(), buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [b"", b"<html>404</html>", b"PK\x05\x06" + bytes(18), torch_save(nn.Linear(2, 2))],
    ids=["empty", "text", "an empty archive", "weights alone"],
)
def test_a_file_that_is_no_torchscript_is_refused(content, tmp_path):
    path = tmp_path / "broken.pt"
    path.write_bytes(content)
    with pytest.raises(GcflowError, match="not a readable TorchScript file") as error:
        Inception.load(path)
    assert "\n" not in str(error.value)


def test_a_truncated_file_is_refused(tmp_path, folder, benchmark):
    whole = (folder / benchmark.WEIGHTS_NAME).read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(GcflowError, match="not a readable TorchScript file"):
        Inception.load(tmp_path / "cut.pt")


class NoOutput(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Flatten()

    def forward(self, x: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        return self.layers(x)


class OtherArguments(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.output = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.output(self.layers(x))


class OtherFeatures(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.output = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        return self.layers(x)


@pytest.mark.parametrize("module", [NoOutput, OtherArguments, OtherFeatures])
def test_another_network_is_refused(module, tmp_path):
    path = tmp_path / "other.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.script(module()), path)
    with pytest.raises(GcflowError, match="not Inception with `layers` and `output`") as error:
        Inception.load(path)
    assert "\n" not in str(error.value)


def model_output(seed):
    return 1.5 * torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def test_clipped_pixels_are_those_that_samples_are_stored_in():
    process = NoiseProcess(sigma_min=0.002, sigma_max=80.0, rho=7.0, sigma_data=0.5)
    x = model_output(0)
    pixels = PIXELS["clip"](x)
    assert torch.equal(pixels, from_model_space(x, process, torch.uint8))
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(PIXELS["clip"](levels.float() / 127.5 - 1), levels)
    assert PIXELS["clip"](torch.tensor([-7.0, 7.0])).tolist() == [0, 255]


def test_batch_min_max_maps_the_batchs_range_to_all_levels_and_drops_fractions():
    x = torch.tensor([[-3.0, -1.0], [0.0, 1.0]])
    assert PIXELS["batch-min-max"](x).tolist() == [[0, 127], [191, 255]]
    pixels = PIXELS["batch-min-max"](model_output(1))
    assert (pixels.min(), pixels.max()) == (0, 255)
    assert torch.equal(PIXELS["batch-min-max"](5 * x - 2), PIXELS["batch-min-max"](x))
    assert not torch.equal(PIXELS["batch-min-max"](x)[1:], PIXELS["batch-min-max"](x[1:]))
    assert PIXELS["batch-min-max"](torch.full((2, 2), 0.3)).tolist() == [[0, 0], [0, 0]]


def test_truncated_pixels_are_clipped_and_drop_fractions():
    assert PIXELS["clip-truncate"](torch.tensor([-7.0, -1.0, 0.0, 0.999, 1.0, 7.0])).tolist() == [
        0,
        0,
        127,
        254,
        255,
        255,
    ]
    x = model_output(2)
    lost = PIXELS["clip"](x).int() - PIXELS["clip-truncate"](x).int()
    assert set(lost.unique().tolist()) == {0, 1}
    # On images whose extremes are those of the range, scaling by them is no other map.
    x = torch.cat([x.clamp(-1, 1), torch.tensor([-1.0, 1.0]).reshape(2, 1, 1, 1).expand(2, 3, 8, 8)])
    assert (PIXELS["clip-truncate"](x).int() - PIXELS["batch-min-max"](x).int()).abs().max() <= 1


def test_of_the_256_values_of_a_real_pixel_63_lose_1_on_the_way_through_float32():
    values = torch.arange(256, dtype=torch.uint8)
    lost = values.int() - float_round_trip(values).int()
    assert lost.nonzero().flatten().tolist() == list(range(1, 64))
    assert int(lost.sum()) == 63
    # The same in numpy's float32: what torchvision's ToTensor and Normalize give, and torchmetrics takes.
    given = (np.arange(256, dtype=np.float32) / np.float32(255) - np.float32(0.5)) / np.float32(0.5)
    taken = ((given + np.float32(1)) / np.float32(2) * np.float32(255)).astype(np.uint8)
    assert float_round_trip(values).tolist() == taken.tolist()
    images = random_images(4, 3, 8, 8)
    assert torch.equal(float_round_trip(images), float_round_trip(values)[images.long()])
    assert torch.equal(REAL_PIXELS["stored"](images), images)


@pytest.mark.slow
def test_the_benchmark_measures_both_ways(benchmark, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["inception.py", "--images", "3", "--rounds", "1"])
    benchmark.main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines[2:6]] == [
        "features, gcflow",
        "features, clean-fid",
        "resize alone, gcflow",
        "resize alone, clean-fid",
    ]
    assert float(lines[-1].rsplit(" ", 1)[1]) < 1e-5
