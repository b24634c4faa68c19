import hashlib
import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from archive_files import photograph
from PIL import Image
from projects import alive

from gcflow.archives import images
from gcflow.archives.images import ImageIndex, Transform, decode_chunk, decoded, to_rgb
from gcflow.archives.index import folder_members, labelled
from gcflow.archives.locators import FileBytes, Item, TarBytes
from gcflow.errors import GcflowError

RANDOM = np.random.default_rng(0)
LANCZOS = Transform(16, "lanczos")


def pixels(height: int, width: int, channels: int = 3) -> np.ndarray:
    return RANDOM.integers(0, 256, (height, width, channels), dtype=np.uint8)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def folder_index(folder: Path, transform: Transform = LANCZOS) -> ImageIndex:
    return ImageIndex(folder, labelled(folder_members(folder)), transform, in_files=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """150 images: more than two chunks, none of them full at the end."""
    for k in range(150):
        path = tmp_path / "images" / f"class{k % 3}" / f"{k:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels(20 + k % 7, 20 + k % 5)).save(path)
    return tmp_path / "images"


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
    assert np.array_equal(np.asarray(Transform(size, name)(image)), np.asarray(expected))


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


# Chunks.


def test_a_chunk_has_its_images_labels_modes_broken_ones_and_hashes(tmp_path):
    contents = {
        "a.png": encoded(Image.fromarray(pixels(16, 16))),
        "b.jpg": encoded(Image.fromarray(pixels(20, 30, 1)[..., 0]), "JPEG"),
        "c.jpg": encoded(Image.fromarray(pixels(20, 30)), "JPEG")[:-200],
        "d.png": b"no image",
        "e.jpg": encoded(Image.fromarray(pixels(20, 30, 4), "CMYK"), "JPEG"),
    }
    items = []
    for number, (name, content) in enumerate(contents.items()):
        (tmp_path / name).write_bytes(content)
        items.append(Item(name, number, FileBytes(str(tmp_path / name))))
    block = decode_chunk(items, LANCZOS, hashing=True)
    with Image.open(tmp_path / "a.png") as image:
        assert np.array_equal(block.samples[0].transpose(1, 2, 0), np.asarray(image))
    assert block.samples.shape == (3, 3, 16, 16)
    assert block.labels.tolist() == [0, 1, 4]
    assert block.items == 5
    assert block.converted == {"L": 1, "CMYK": 1}
    assert [name for name, _ in block.broken] == ["c.jpg", "d.png"]
    assert "truncated" in block.broken[0][1]
    assert "0x" not in block.broken[1][1]
    assert block.contents.tobytes() == b"".join(hashlib.sha256(content).digest() for content in contents.values())


def test_two_processes_give_what_one_gives_in_the_same_order(folder):
    serial, parallel = (list(decoded(folder_index(folder), workers)) for workers in (1, 2))
    assert [block.items for block in serial] == [64, 64, 22]
    for one, two in zip(serial, parallel, strict=True):
        assert np.array_equal(one.samples, two.samples)
        assert np.array_equal(one.labels, two.labels)
        assert np.array_equal(one.contents, two.contents)


def test_decoding_goes_on_from_any_image(folder):
    whole = np.concatenate([block.samples for block in decoded(folder_index(folder))])
    rest = np.concatenate([block.samples for block in decoded(folder_index(folder), start=128)])
    assert np.array_equal(rest, whole[128:])
    assert list(decoded(folder_index(folder), start=150)) == []


def test_a_bounded_number_of_images_is_in_memory(folder, monkeypatch):
    monkeypatch.setattr(images, "CHUNK", 5)
    submitted = []
    submit = images.ProcessPoolExecutor.submit
    monkeypatch.setattr(
        images.ProcessPoolExecutor, "submit", lambda pool, *args: (submitted.append(1), submit(pool, *args))[1]
    )
    blocks = decoded(folder_index(folder), 2)
    for taken in range(1, 4):
        next(blocks)
        assert len(submitted) == 2 * images.IN_FLIGHT + taken - 1
    blocks.close()


def test_a_file_that_vanished_is_named(folder):
    index = folder_index(folder)
    (folder / "class0" / "000.png").unlink()
    with pytest.raises(FileNotFoundError) as caught:
        list(decoded(index, 2))
    assert str(caught.value.filename) == str(folder / "class0" / "000.png")


SCRIPT = """
import sys, os, signal, time
from pathlib import Path
from gcflow.archives import images
from gcflow.archives.index import folder_members, labelled

class Spy(images.Transform):
    def __call__(self, image):
        Path(sys.argv[2], str(os.getpid())).write_text(str('torch' in sys.modules))
        if sys.argv[3] == 'die':
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.02)
        return super().__call__(image)

if __name__ == '__main__':
    folder = Path(sys.argv[1])
    index = images.ImageIndex(folder, labelled(folder_members(folder)), Spy(8, 'box'))
    for block in images.decoded(index, 2):
        if sys.argv[3] == 'orphan':
            os.kill(os.getpid(), signal.SIGKILL)
"""


def run_script(tmp_path: Path, folder: Path, what: str) -> "tuple[subprocess.CompletedProcess[str], dict[int, str]]":
    """The script's end, and of each process that decoded whether it had imported torch."""
    seen = tmp_path / "seen"
    seen.mkdir()
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, tmp_path / "script.py", folder, seen, what]
    # The workers of a killed process would keep its pipes open.
    with (tmp_path / "errors").open("w") as errors:
        result = subprocess.run(command, stdout=errors, stderr=errors, text=True, check=False)
    return result, {int(path.name): path.read_text() for path in seen.iterdir()}


def test_workers_import_no_torch(tmp_path, folder):
    result, seen = run_script(tmp_path, folder, "work")
    assert result.returncode == 0
    assert set(seen.values()) == {"False"}
    assert len(seen) == 2


def test_workers_end_with_a_parent_that_is_killed(tmp_path, folder):
    result, seen = run_script(tmp_path, folder, "orphan")
    assert result.returncode == -signal.SIGKILL
    for process in seen:
        for _ in range(500):
            if not alive(process):
                break
            os.sched_yield()
            signal.sigtimedwait([], 0.01)
        assert not alive(process)


def test_a_killed_worker_is_an_error_of_one_line(tmp_path, folder):
    _, seen = run_script(tmp_path, folder, "die")
    assert seen
    last = (tmp_path / "errors").read_text().splitlines()[-1]
    assert last.startswith("gcflow.errors.GcflowError: a process that decodes images was killed")


def test_a_truncated_file_behind_an_index_is_named(tmp_path):
    (tmp_path / "x.tar").write_bytes(b"0" * 100)
    item = Item("a.png", 0, TarBytes(str(tmp_path / "x.tar"), 50, 80))
    with pytest.raises(GcflowError, match=r"x\.tar: ends at byte 100, within an image"):
        decode_chunk([item], LANCZOS, hashing=False)
