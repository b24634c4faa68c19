"""Samples as image files, and as one image of many."""

from pathlib import Path

import numpy as np

from gcflow.pipeline.drawing.canvas import PLANE, new_figure
from gcflow.pipeline.drawing.looks import BLUE

MAGNIFICATION = 4
GAP = 96


def tile(images: np.ndarray, columns: int) -> np.ndarray:
    """uint8 images [n, C, H, W] in rows of `columns`, grey lines around all: [height, width] or [height, width, 3]."""
    count, channels, height, width = images.shape
    rows, height, width = -(-count // columns), height + 1, width + 1
    padded = np.full((rows * columns, channels, height, width), GAP, dtype=np.uint8)
    padded[:count, :, 1:, 1:] = images
    grid = padded.reshape(rows, columns, channels, height, width).transpose(0, 3, 1, 4, 2)
    picture = grid.reshape(rows * height, columns * width, channels)
    picture = np.pad(picture, ((0, 1), (0, 1), (0, 0)), constant_values=GAP)
    return picture.squeeze(-1) if channels == 1 else picture


def save_image(image: np.ndarray, path: Path) -> None:
    """A PNG of one uint8 image [C, H, W], pixel for pixel."""
    from PIL import Image

    pixels = image[0] if image.shape[0] == 1 else image.transpose(1, 2, 0)
    Image.fromarray(pixels).save(path, format="PNG")


def save_samples(samples: np.ndarray, columns: int, path: Path) -> None:
    """A PNG of samples: a magnified grid of images [n, C, H, W], or points [n, 2] in data units around 0."""
    if samples.ndim == 4:
        from PIL import Image

        image = Image.fromarray(tile(samples, columns))
        image = image.resize((image.width * MAGNIFICATION, image.height * MAGNIFICATION), Image.Resampling.NEAREST)
        image.save(path, format="PNG")
        return
    reach = 1.1 * float(np.abs(samples).max())
    figure = new_figure(3.3, 3.3)
    axes = figure.add_subplot(aspect="equal", xlim=(-reach, reach), ylim=(-reach, reach), **PLANE)
    axes.scatter(samples[:, 0], samples[:, 1], s=4, color=BLUE)
    figure.savefig(path, format="png")
