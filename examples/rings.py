"""A data set made by a function: blurred, grainy rings of four radii, near the centre of a small image."""

from typing import Literal

import numpy as np
from pydantic import Field

from gcflow import register
from gcflow.sources import RawData, SmallSource


@register.source
class Rings(SmallSource):
    """Rings; labels number the radii."""

    count: int = Field(default=1000, ge=1, description="images")
    side: int = Field(default=8, ge=4, description="in pixels")
    seed: int = Field(default=0, description="of places and radii")
    source: Literal["rings"] = "rings"

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one image: [C, H, W]."""
        return (1, self.side, self.side)

    def load(self) -> RawData:
        """Draws the images."""
        draw = np.random.default_rng(self.seed)
        labels = draw.integers(0, 4, self.count)
        centre = self.side * draw.uniform(0.4, 0.6, (self.count, 2, 1, 1))
        from_centre = np.linalg.norm(np.indices((self.side, self.side)) + 0.5 - centre, axis=1)
        radius = self.side * (0.1 + 0.1 * labels[:, None, None])
        images = np.exp(-(((from_centre - radius) / (0.1 * self.side)) ** 2))
        grainy = np.clip(0.8 * images + draw.normal(0.1, 0.1, images.shape), 0, 1)
        pixels = np.round(255 * grainy).astype(np.uint8)[:, None]
        return RawData(pixels, labels, {"source": "blurred rings", "transform": "none"})
