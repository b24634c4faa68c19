"""One image: read, decoded, converted to 8-bit RGB and made square."""

from io import BytesIO
from typing import NamedTuple

import numpy as np
from PIL import Image

from gcflow.archives.formats import Filter, Item, damage

SIXTEEN_BIT = ("I;16", "I;16B", "I;16L", "I;16N", "I")

# A thread that needs one of Pillow's rarer formats while another loads them would not find it.
Image.init()


class Decoded(NamedTuple):
    """pixels: uint8 [3, H, W], or None with the `problem`. mode: Pillow's, of the file."""

    pixels: np.ndarray | None
    mode: str = "RGB"
    problem: str = ""


def square(image: Image.Image, size: int, filter_: Filter) -> Image.Image:
    """The centre of an image whose shorter side is resized to `size`, as by torchvision's Resize and CenterCrop."""
    width, height = (int(size * length / min(image.size)) for length in image.size)
    left, top = (round((length - size) / 2) for length in (width, height))
    resized = image.resize((width, height), Image.Resampling[filter_.upper()])
    return resized.crop((left, top, left + size, top + size))


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


def decode(item: Item, size: int, filter_: Filter) -> Decoded:
    """The pixels of an image, made a square of `size` if it comes as a file.

    Raises:
        OSError: its file cannot be read.
    """
    if isinstance(item.content, np.ndarray):
        return Decoded(item.content)
    try:
        with Image.open(BytesIO(item.content())) as image:
            mode = image.mode
            return Decoded(np.asarray(square(to_rgb(image), size, filter_)).transpose(2, 0, 1), mode)
    except Exception as error:  # A damaged file lets its readers raise almost anything.
        return Decoded(None, problem=damage(error))
