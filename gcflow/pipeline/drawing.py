"""Pictures of samples, and the style that every figure shares."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's palette, readable with any colour vision; each colour goes with a marker of its own.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000", "#F0E442")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
MAGNIFICATION = 4
GAP = 96


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure, size in inches, that needs no display."""
    from matplotlib import rcParams
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rcParams.update(
        {
            "axes.grid": True,
            "axes.spines.right": False,
            "axes.spines.top": False,
            "figure.dpi": 150,
            "font.size": 9,
            "grid.alpha": 0.3,
            "legend.frameon": False,
            "svg.fonttype": "none",
            "svg.hashsalt": "gcflow",
        }
    )
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def tile(images: np.ndarray, columns: int) -> np.ndarray:
    """uint8 images [n, C, H, W] in rows of `columns`, a grey line apart: [height, width] or [height, width, 3]."""
    count, channels, height, width = images.shape
    rows, height, width = -(-count // columns), height + 1, width + 1
    padded = np.full((rows * columns, channels, height, width), GAP, dtype=np.uint8)
    padded[:count, :, 1:, 1:] = images
    grid = padded.reshape(rows, columns, channels, height, width).transpose(0, 3, 1, 4, 2)
    picture = grid.reshape(rows * height, columns * width, channels)
    return picture.squeeze(-1) if channels == 1 else picture


def save_image(image: np.ndarray, path: Path) -> None:
    """A PNG of one uint8 image [C, H, W], pixel for pixel."""
    from PIL import Image

    pixels = image[0] if image.shape[0] == 1 else image.transpose(1, 2, 0)
    Image.fromarray(pixels).save(path, format="PNG")


def save_samples(samples: np.ndarray, columns: int, path: Path) -> None:
    """A PNG of samples: a magnified grid of images [n, C, H, W], or a scatter of points [n, 2]."""
    if samples.ndim == 4:
        from PIL import Image

        image = Image.fromarray(tile(samples, columns))
        image = image.resize((image.width * MAGNIFICATION, image.height * MAGNIFICATION), Image.Resampling.NEAREST)
        image.save(path, format="PNG")
        return
    figure = new_figure(3, 3)
    axes = figure.add_subplot(aspect="equal")
    axes.scatter(samples[:, 0], samples[:, 1], s=4, color=COLOURS[0])
    figure.savefig(path, format="png")
