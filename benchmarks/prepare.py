"""Times `gcflow prepare` on a zip of JPEGs against bare decoding, resizing and cropping from memory on as many cores.

python benchmarks/prepare.py [IMAGES] [WORKERS]
"""

import io
import multiprocessing
import os
import platform
import resource
import statistics
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL
from PIL import Image

from gcflow.archives.layouts import Folder
from gcflow.preparation import CHUNK, available_cores, prepare

DIFFERENT = 500
ROUNDS = 5
Contents = list[bytes]
contents: Contents = []


def photographs() -> Contents:
    """JPEGs of CelebA's size, smooth as photographs are, of some 8 kB each."""
    draw = np.random.default_rng(0)
    files = []
    for _ in range(DIFFERENT):
        coarse, fine = (draw.integers(0, 256, (side, side, 3), dtype=np.uint8) for side in (6, 60))
        images = [Image.fromarray(part).resize((178, 218), Image.Resampling.BICUBIC) for part in (coarse, fine)]
        file = io.BytesIO()
        Image.blend(images[0], images[1], 0.2).save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    return files


def bare(numbers: range) -> None:
    """Decodes, resizes and crops, and throws the result away."""
    for number in numbers:
        with Image.open(io.BytesIO(contents[number % DIFFERENT])) as image:
            image.resize((64, 78), Image.Resampling.LANCZOS).crop((0, 7, 64, 71))


def pooled(images: int, workers: int) -> None:
    """Bare work on every image, by a pool of processes that need not import anything."""
    with multiprocessing.get_context("fork").Pool(workers) as pool:
        chunks = (range(first, min(first + CHUNK, images)) for first in range(0, images, CHUNK))
        for _ in pool.imap(bare, chunks):
            pass
        pool.close()
        pool.join()


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds of the clock, and of all cores together, that `work` takes, with its processes."""

    def cores() -> float:
        usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        return sum(usage.ru_utime + usage.ru_stime for usage in usages)

    begun, used = time.perf_counter(), cores()
    work()
    return time.perf_counter() - begun, cores() - used


def median_ratio(pairs: list[tuple[float, float]]) -> str:
    """The median of the first over the second, and each."""
    ratios = sorted(first / second for first, second in pairs)
    return f"{ratios[len(ratios) // 2]:.3f} (rounds: {', '.join(f'{ratio:.3f}' for ratio in ratios)})"


def main() -> None:
    """Prints both rates and their ratio, of rounds taken in turn."""
    images = int(sys.argv[1]) if len(sys.argv) > 1 else 20000
    workers = int(sys.argv[2]) if len(sys.argv) > 2 else available_cores()
    contents[:] = photographs()
    plain, ours = [], []
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        with zipfile.ZipFile(root / "faces.zip", "w") as archive:
            for number in range(images):
                archive.writestr(f"faces/{number:06}.jpg", contents[number % DIFFERENT])
        for _ in range(ROUNDS):
            plain.append(timed(lambda: pooled(images, workers)))
            ours.append(timed(lambda: prepare(Folder(path="faces.zip", size=64), root / "data", root, workers)))
    clock = [(bare_seconds, seconds) for (bare_seconds, _), (seconds, _) in zip(plain, ours, strict=True)]
    cores = [(bare_seconds, seconds) for (_, bare_seconds), (_, seconds) in zip(plain, ours, strict=True)]
    rates = [statistics.median(images / seconds for seconds, _ in rounds) for rounds in (plain, ours)]
    lines = [
        f"{platform.machine()}, {os.cpu_count()} cores, {workers} workers, Python {platform.python_version()}, "
        f"Pillow {PIL.__version__}",
        f"{images} JPEGs of 178x218 in a zip, resized to 64x78 (lanczos), cropped to 64x64; median of {ROUNDS} rounds",
        f"bare decoding, resizing and cropping from memory: {rates[0]:.0f} images/s",
        f"gcflow prepare, from the archive to the manifest:  {rates[1]:.0f} images/s",
        f"ratio of the rates:     {median_ratio(clock)}",
        f"ratio by time of cores: {median_ratio(cores)}",
    ]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
