import io
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from archive_files import encoded, photograph
from PIL import Image

from gcflow import preparation
from gcflow.archives.decoding import decode, square, to_rgb
from gcflow.archives.formats import Item, Split, silent
from gcflow.preparation import Shards

RANDOM = np.random.default_rng(0)


def pixels(height: int, width: int, channels: int = 3) -> np.ndarray:
    return RANDOM.integers(0, 256, (height, width, channels), dtype=np.uint8)


# Geometry.


# Photographs of CelebA, of LSUN (shorter side 256) and of ImageNet, a square, and images that are enlarged.
@pytest.mark.parametrize(
    ("size", "width", "height", "resized", "left", "top"),
    [
        (64, 178, 218, (64, 78), 0, 7),
        (64, 218, 178, (78, 64), 7, 0),
        (64, 341, 256, (85, 64), 10, 0),
        (64, 349, 256, (87, 64), 12, 0),
        (64, 256, 384, (64, 96), 0, 16),
        (64, 256, 256, (64, 64), 0, 0),
        (64, 64, 64, (64, 64), 0, 0),
        (64, 30, 20, (96, 64), 16, 0),
        (64, 5, 9, (64, 115), 0, 26),
        (32, 500, 375, (42, 32), 5, 0),
        (32, 375, 500, (32, 42), 0, 5),
        (32, 400, 333, (38, 32), 3, 0),
        (32, 330, 300, (35, 32), 2, 0),
        (32, 340, 300, (36, 32), 2, 0),
    ],
)
@pytest.mark.parametrize("name", ["lanczos", "bilinear", "box"])
def test_the_shorter_side_is_resized_and_then_the_centre_cropped(size, width, height, resized, left, top, name):
    image = Image.open(io.BytesIO(photograph(height, width)))
    expected = image.resize(resized, Image.Resampling[name.upper()]).crop((left, top, left + size, top + size))
    assert np.array_equal(np.asarray(square(image, size, name)), np.asarray(expected))


# Modes.


def test_sixteen_bit_grey_is_scaled_not_clipped():
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    with Image.open(io.BytesIO(encoded(Image.fromarray(values)))) as image:
        assert image.mode == "I;16"
        found = np.asarray(to_rgb(image))
    expected = np.round(values / 257).astype(np.uint8)
    assert (found == expected[..., None]).all()
    assert found.min() == 0
    assert found.max() == 255


def test_alpha_is_dropped_and_hides_nothing():
    values = pixels(9, 9, 4)
    assert np.array_equal(np.asarray(to_rgb(Image.fromarray(values, "RGBA"))), values[..., :3])
    grey = Image.fromarray(values[..., 0]).convert("LA")
    assert (np.asarray(to_rgb(grey)) == values[..., :1]).all()


@pytest.mark.parametrize("transparent", [False, True])
def test_a_palette_is_looked_up(transparent):
    numbers = RANDOM.integers(0, 4, (9, 9), dtype=np.uint8)
    colours = np.array([[255, 0, 0], [0, 200, 0], [1, 2, 3], [90, 91, 92]], np.uint8)
    image = Image.fromarray(numbers, "P")
    image.putpalette(colours.tobytes())
    options = {"transparency": 2} if transparent else {}
    with Image.open(io.BytesIO(encoded(image, **options))) as read:
        assert read.mode == "P"
        assert np.array_equal(np.asarray(to_rgb(read)), colours[numbers])


def test_grey_cmyk_and_two_level_images_become_rgb():
    grey = pixels(9, 9, 1)[..., 0]
    assert (np.asarray(to_rgb(Image.fromarray(grey))) == grey[..., None]).all()
    ink = pixels(9, 9, 4)
    expected = np.round((255 - ink[..., :3].astype(float)) * (255 - ink[..., 3:]) / 255)
    assert np.abs(np.asarray(to_rgb(Image.fromarray(ink, "CMYK"))) - expected).max() <= 1
    black_and_white = Image.fromarray(grey).convert("1")
    assert set(np.asarray(to_rgb(black_and_white)).flatten()) == {0, 255}


@pytest.mark.parametrize("values", [np.full((4, 4), 0.5, np.float32), np.full((4, 4), 1 << 20, np.int32)])
def test_values_without_a_known_range_are_refused(values):
    with pytest.raises(ValueError, match="no known range"):
        to_rgb(Image.fromarray(values))


# Files.


def test_an_image_is_its_pixels_and_mode_or_why_it_does_not_decode():
    image = Image.fromarray(pixels(16, 16))
    decoded = decode(Item("a.png", 0, lambda: encoded(image)), 16, "lanczos")
    assert np.array_equal(decoded.pixels.transpose(1, 2, 0), np.asarray(image))
    assert (decoded.changes, decoded.problem) == ((), "")
    for other in (Image.fromarray(pixels(20, 30, 1)[..., 0]), Image.fromarray(pixels(20, 30, 4), "CMYK")):
        decoded = decode(Item("b.jpg", 0, lambda other=other: encoded(other, "JPEG")), 16, "lanczos")
        assert decoded.pixels.shape == (3, 16, 16)
        assert decoded.changes == (other.mode,)
    truncated = decode(Item("c.jpg", 0, lambda: encoded(Image.fromarray(pixels(20, 30)), "JPEG")[:-200]), 16, "box")
    assert truncated.pixels is None
    assert "truncated" in truncated.problem
    other = decode(Item("d.png", 0, lambda: b"no image"), 16, "box")
    assert other.pixels is None
    assert "cannot identify" in other.problem
    assert "0x" not in other.problem


def test_an_array_is_taken_as_it_is():
    array = pixels(3, 32, 32)
    assert decode(Item("", 0, array), 32, "lanczos").pixels is array


def test_a_file_that_vanished_is_an_error_of_the_disk(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.png"):
        decode(Item("gone.png", 0, (tmp_path / "gone.png").read_bytes), 16, "lanczos")


def shards(folder: Path, items: list[Item], workers: int) -> Shards:
    made = Shards(folder, "samples", Split(folder, items, len(items), "box"), 8, workers, silent)
    folder.mkdir(exist_ok=True)
    made.write(skip_broken=False)
    return made


def test_threads_give_what_one_gives_in_the_same_order(tmp_path):
    files = [encoded(Image.fromarray(pixels(20 + k % 7, 20 + k % 5))) for k in range(100)]
    first = threading.Barrier(3)

    def read(k: int) -> bytes:
        if k in (0, 16, 32):
            first.wait(timeout=30)
        return files[k]

    several = shards(tmp_path / "several", [Item(f"{k}", k, partial(read, k)) for k in range(100)], 3)
    one = shards(tmp_path / "one", [Item(f"{k}", k, partial(files.__getitem__, k)) for k in range(100)], 1)
    assert b"".join(several.contents()) == b"".join(one.contents())
    assert several.notes == one.notes
    assert one.notes[0]["labels"] == list(range(100))


def test_a_bounded_number_of_images_is_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(preparation, "CHUNK", 5)
    read, told = [], []
    content = encoded(Image.fromarray(pixels(9, 9)))
    items = [Item("", 0, lambda: (read.append(1), content)[1]) for _ in range(200)]

    def report(done: int, total: int, phase: str) -> None:
        told.append(len(read) - done)

    Shards(tmp_path, "samples", Split(tmp_path, items, 200), 8, 2, report).write(skip_broken=False)
    assert len(told) == 40
    assert max(told) <= 2 * preparation.IN_FLIGHT * 5
