"""Pictures inside the page: as small as they get without loss, and the same bytes on every machine."""

import base64
import re
import struct
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gcflow.errors import GcflowError
from gcflow.pipeline.drawing.image_files import MAGNIFICATION

VIEW_BOX = re.compile(r'viewBox="0 0 ([\d.]+) ([\d.]+)"')
PIXELS_PER_POINT = 4 / 3
STORED_BLOCK = 65535


class Picture(NamedTuple):
    """An image as a data URI. width, height: in CSS pixels. pixelated: pixels are to be shown as squares."""

    uri: str
    width: int
    height: int
    pixelated: bool = False


def _uri(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def stored_png(pixels: np.ndarray) -> bytes:
    """A PNG of uint8 [height, width] or [height, width, 3] whose bytes no version of zlib decides: it is not packed.

    Pixels of generated images hardly compress.
    """
    height, width = pixels.shape[:2]
    lines = np.concatenate([np.zeros((height, 1), np.uint8), pixels.reshape(height, -1)], axis=1).tobytes()
    blocks = [lines[start : start + STORED_BLOCK] for start in range(0, len(lines), STORED_BLOCK)]
    stored = b"".join(
        struct.pack("<BHH", index == len(blocks) - 1, len(block), len(block) ^ 0xFFFF) + block
        for index, block in enumerate(blocks)
    )
    stream = b"\x78\x01" + stored + struct.pack(">I", zlib.adler32(lines))
    colours = 2 if pixels.ndim == 3 else 0
    chunks = {b"IHDR": struct.pack(">IIBBBBB", width, height, 8, colours, 0, 0, 0), b"IDAT": stream, b"IEND": b""}
    parts = (
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks.items()
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def pixel_picture(pixels: np.ndarray, scale: int) -> Picture:
    """uint8 pixels [height, width] or [height, width, 3], shown `scale` times as large."""
    height, width = pixels.shape[:2]
    return Picture(_uri(stored_png(pixels), "png"), width * scale, height * scale, pixelated=True)


def png_picture(path: Path) -> Picture:
    """A PNG file; a grid that was magnified for viewers is stored at its own size, and magnified by the browser.

    Raises:
        GcflowError: it is no picture.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            pixels, size = np.asarray(image), image.size
    except OSError as error:
        raise GcflowError(f"{path}: not a picture ({error}); delete it to make it again") from None
    small = pixels[::MAGNIFICATION, ::MAGNIFICATION]
    magnified = small.repeat(MAGNIFICATION, 0).repeat(MAGNIFICATION, 1)
    plain = pixels.dtype == np.uint8 and (pixels.ndim == 2 or pixels.shape[2] == 3)
    if plain and magnified.shape == pixels.shape and (magnified == pixels).all():
        return pixel_picture(small, MAGNIFICATION)
    return Picture(_uri(path.read_bytes(), "png"), *size)


def svg_picture(path: Path) -> Picture:
    """An SVG file of matplotlib's, which counts in points."""
    content = path.read_bytes()
    found = VIEW_BOX.search(content[:4000].decode("utf-8", "replace"))
    lengths = (float(found[1]), float(found[2])) if found else (480.0, 320.0)
    width, height = (round(length * PIXELS_PER_POINT) for length in lengths)
    return Picture(_uri(content, "svg+xml"), width, height)
