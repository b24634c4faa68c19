"""One image: read, decoded, converted to 8-bit RGB and made square; of a user's own, first made what a viewer shows."""

from io import BytesIO
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageOps

from gcflow.archives.formats import Filter, Item, damage

SIXTEEN_BIT = ("I;16", "I;16B", "I;16L", "I;16N", "I")

# A thread that needs one of Pillow's rarer formats while another loads them would not find it.
Image.init()


class Decoded(NamedTuple):
    """pixels: uint8 [3, H, W], or None with the `problem`. changes: its mode if not RGB, and those of `as_seen`."""

    pixels: np.ndarray | None
    changes: tuple[str, ...] = ()
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


def as_seen(image: Image.Image) -> tuple[Image.Image, tuple[str, ...]]:
    """An image upright, its transparent parts white, of several frames the first; and which of these it took."""
    changes = ("first of several frames",) if getattr(image, "n_frames", 1) > 1 else ()
    if image.getexif().get(ExifTags.Base.Orientation, 1) in range(2, 9):
        image, changes = ImageOps.exif_transpose(image), (*changes, "turned upright")
    if image.has_transparency_data and image.mode not in SIXTEEN_BIT:
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image.convert("RGBA"))
        image, changes = white.convert("RGB"), (*changes, "transparency on white")
    return image, changes


def decode(item: Item, size: int, filter_: Filter, seen: bool = False) -> Decoded:
    """The pixels of an image, made a square of `size` if it comes as a file. seen: make it first what a viewer shows.

    Raises:
        OSError: its file cannot be read.
    """
    if isinstance(item.content, np.ndarray):
        return Decoded(item.content)
    try:
        with Image.open(BytesIO(item.content())) as image:
            modes = () if image.mode == "RGB" else (image.mode,)
            upright, changes = as_seen(image) if seen else (image, ())
            pixels = np.asarray(square(to_rgb(upright), size, filter_)).transpose(2, 0, 1)
            return Decoded(pixels, (*modes, *changes))
    except Exception as error:  # A damaged file lets its readers raise almost anything.
        return Decoded(None, problem=damage(error))
