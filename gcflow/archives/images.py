"""Images: read, decoded, converted to 8-bit RGB, cropped and resized, by processes that import no torch."""

import hashlib
import multiprocessing
import os
import signal
import threading
from collections import Counter, deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from gcflow.archives.locators import DamagedMember, Item, OpenFiles
from gcflow.errors import GcflowError

CHUNK = 64
IN_FLIGHT = 4
SIXTEEN_BIT = ("I;16", "I;16B", "I;16L", "I;16N", "I")


class Transform(NamedTuple):
    """How an image becomes a square one: its shorter side is resized, then its centre is cropped.

    As torchvision's Resize and CenterCrop do, to the pixel. size: its side. filter: of Pillow's resampling, in lower
    case.
    """

    size: int
    filter: str

    def __call__(self, image: Image.Image) -> Image.Image:
        """The square image."""
        size, short = self.size, min(image.size)
        width, height = (int(size * length / short) for length in image.size)
        left, top = (round((length - size) / 2) for length in (width, height))
        resized = image.resize((width, height), Image.Resampling[self.filter.upper()])
        return resized.crop((left, top, left + size, top + size))


class ImageIndex(NamedTuple):
    """Images of one split in their order. archive: named in errors. in_files: whether each is a file of its own."""

    archive: Path
    items: list[Item]
    transform: Transform
    in_files: bool = False


class Block(NamedTuple):
    """Consecutive images. samples: uint8 [k, 3, H, W]. labels: int64 [k]. items: k and those left out.

    converted: images per Pillow mode other than RGB. broken: name and reason of images left out.
    contents: uint8 [items, 32], sha256 of each image file, or None where they lie in an archive with a hash.
    """

    samples: np.ndarray
    labels: np.ndarray
    items: int
    converted: dict[str, int]
    broken: list[tuple[str, str]]
    contents: np.ndarray | None


def to_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode as 8-bit RGB: 16-bit grey scaled by 1/257, palettes looked up, alpha dropped.

    Raises:
        ValueError: its values have no known range.
    """
    if image.mode == "RGB":
        return image
    if image.mode in SIXTEEN_BIT:
        grey = np.asarray(image).astype(np.int64)
        if grey.min() < 0 or grey.max() > 65535:
            raise ValueError("32-bit values have no known range")
        return Image.fromarray(((grey + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("32-bit values have no known range")
    if image.mode in ("P", "PA", "La", "RGBa"):
        return image.convert("RGBA").convert("RGB")
    return image.convert("RGB")


def decode_chunk(items: Sequence[Item], transform: Transform, hashing: bool) -> Block:
    """Reads and transforms some images. hashing: whether to take the sha256 of each."""
    samples = np.empty((len(items), 3, transform.size, transform.size), np.uint8)
    labels: list[int] = []
    converted: Counter[str] = Counter()
    broken: list[tuple[str, str]] = []
    hashes: list[bytes] = []
    with OpenFiles() as files:
        for item in items:
            try:
                content = item.locator.read(files)
            except DamagedMember as error:
                broken.append((item.name, str(error)))
                continue
            if hashing:
                hashes.append(hashlib.sha256(content).digest())
            try:
                with Image.open(BytesIO(content)) as image:
                    mode = image.mode
                    square = transform(to_rgb(image))
            except Exception as error:  # Pillow lets a damaged file raise almost anything.
                # Its message ends with an address in memory, different each time.
                reason = str(error).partition(" <_io")[0].splitlines()
                broken.append((item.name, reason[0] if reason else type(error).__name__))
                continue
            samples[len(labels)] = np.asarray(square).transpose(2, 0, 1)
            labels.append(item.label)
            if mode != "RGB":
                converted[mode] += 1
    contents = np.frombuffer(b"".join(hashes), np.uint8).reshape(-1, 32) if hashing else None
    return Block(samples[: len(labels)], np.array(labels, np.int64), len(items), dict(converted), broken, contents)


def _begin() -> None:
    """Makes a worker leave the keyboard to its parent, and end with it, however the parent ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def decoded(index: ImageIndex, workers: int = 1, start: int = 0) -> Generator[Block]:
    """The images from number `start` on, in order, by `workers` processes; a bounded number of them is in memory.

    One worker is this process itself.

    Raises:
        GcflowError: an archive ends too early, or a worker was killed.
    """
    items, transform, hashing = index.items, index.transform, index.in_files
    chunks = [items[first : first + CHUNK] for first in range(start, len(items), CHUNK)]
    workers = min(workers, len(chunks))
    if workers <= 1:
        for chunk in chunks:
            yield decode_chunk(chunk, transform, hashing)
        return
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _begin)
    pending: deque[Future[Block]] = deque()
    try:
        for chunk in chunks:
            pending.append(pool.submit(decode_chunk, chunk, transform, hashing))
            if len(pending) >= IN_FLIGHT * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except BrokenProcessPool:
        raise GcflowError(
            "a process that decodes images was killed, maybe for lack of memory; run it again to go on, with fewer "
            "--workers"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def available_cores() -> int:
    """CPU cores that this process may use, which a scheduler may have limited."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
