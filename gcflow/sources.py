"""Sources of samples.

A data set is a block of options; everything else follows from its prepared arrays. One that is small has `load`. One
that lies in archives (`gcflow.archives`) has `locate` and `open`, and is read piece by piece.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

import numpy as np
from pydantic import Field

from gcflow import register
from gcflow.lazy_torch import torch
from gcflow.options import Count, Many, Options, Real, Seed
from gcflow.oracles import GaussianMixture, empirical
from gcflow.preconditioning import NoiseProcess, to_model_space
from gcflow.randomness import generator

if TYPE_CHECKING:
    from torch import Tensor


class RawData(NamedTuple):
    """samples: uint8 [n, C, H, W] or float32 [n, d]. labels: int64 [n]. provenance: source and transform, in words.

    held_out: what is kept from training, as samples are, or None if the source has no such split.
    """

    samples: np.ndarray
    labels: np.ndarray
    provenance: dict[str, str]
    held_out: np.ndarray | None = None


class Terms(NamedTuple):
    """Under which a data set may be used. licence: SPDX's name, or in words. url: where it stands, empty if nowhere.

    handed_on: whether they let what was made of the data, such as a model's weights, be handed on.
    """

    licence: str
    url: str = ""
    handed_on: bool = True


@register.source.contract
class Source(Options):
    """A source of samples. Its name is its field `source`.

    terms: of the data. No option, so they change neither a configuration nor what was prepared.

    shape: of one sample: [C, H, W] of an image, whose values are stored as uint8, or [d] of a point, as float32.
    count: samples to train on; None if that is not known before they are read. Both are fields or properties.
    """

    terms: ClassVar[Terms] = Terms("not known to gcflow")

    if TYPE_CHECKING:

        @property
        def source(self) -> str:
            """Its name."""

        @property
        def shape(self) -> tuple[int, ...]:
            """See above."""

        @property
        def count(self) -> int | None:
            """See above."""

    def timing_samples(self) -> np.ndarray:
        """Samples to time a recipe on, at any time."""
        raise NotImplementedError

    def exact_mixture(self, data: Tensor, process: NoiseProcess) -> GaussianMixture:
        """The distribution in model space, by default the empirical one of the prepared data."""
        return empirical(to_model_space(data, process))


SYNTHETIC = Terms("CC0-1.0, computed here")


class SmallSource(Source):
    """A source that is at hand at any time, and as a whole."""

    def load(self) -> RawData:
        """All of it; the same at every call."""
        raise NotImplementedError

    def timing_samples(self) -> np.ndarray:
        """Its own, as `load` gives them."""
        return self.load().samples


@register.source
class Digits(SmallSource):
    """scikit-learn's digits: 1797 real images of handwritten digits, 8x8, 17 grey levels (UCI, Alpaydin & Kaynak)."""

    source: Literal["digits"] = "digits"
    terms: ClassVar[Terms] = Terms("CC-BY-4.0", "https://archive.ics.uci.edu/dataset/80")

    @property
    def shape(self) -> tuple[int, ...]:
        """[C, H, W] of one image."""
        return (1, 8, 8)

    @property
    def count(self) -> int:
        """Images."""
        return 1797

    def load(self) -> RawData:
        """Reads the images from the installed package; nothing is downloaded."""
        from sklearn.datasets import load_digits

        bunch = load_digits()
        samples = np.round(bunch.images * (255 / 16)).astype(np.uint8)[:, None]
        provenance = {
            "source": f"scikit-learn {version('scikit-learn')}, sklearn.datasets.load_digits",
            "transform": "grey levels 0..16 scaled to 0..255 and rounded",
        }
        return RawData(samples, bunch.target.astype(np.int64), provenance)


@register.source
class Mixture2d(SmallSource):
    """Points of a two-dimensional Gaussian mixture with equal weights, whose velocity is known in closed form."""

    means: tuple[tuple[Real, Real], ...] = Field(min_length=1, description="the components' centres, each [x, y]")
    std: float = Field(gt=0, le=10**6, description="their standard deviation")
    count: Many = Field(description="points to draw")
    seed: Seed = Field(description="of the draw")
    source: Literal["mixture2d"] = "mixture2d"
    terms: ClassVar[Terms] = SYNTHETIC

    @property
    def shape(self) -> tuple[int, ...]:
        """[d] of one point."""
        return (2,)

    def mixture(self) -> GaussianMixture:
        """The distribution itself, float64."""
        means = torch.tensor(self.means, dtype=torch.float64)
        return GaussianMixture(means, torch.full((len(means),), 1 / len(means), dtype=torch.float64), self.std)

    def load(self) -> RawData:
        """Draws the points."""
        points, components = self.mixture().sample(self.count, generator(self.seed, "mixture2d"))
        provenance = {"source": "Gaussian mixture of params.yaml", "transform": "none"}
        return RawData(points.float().numpy(), components.numpy(), provenance)

    def exact_mixture(self, data: Tensor, process: NoiseProcess) -> GaussianMixture:
        """The mixture itself, shifted to model space."""
        exact = self.mixture()
        means, weights = (part.to(data.device).float() for part in (exact.means - process.data_mean, exact.weights))
        return GaussianMixture(means, weights, self.std)


@register.source
class Synthetic(SmallSource):
    """Uniformly random images, to time a recipe before its data are at hand. Nothing can be learned from them."""

    shape: tuple[Count, Count, Count] = Field(description="[channels, height, width]")
    count: Many = Field(description="images")
    seed: Seed = Field(description="of the draw")
    source: Literal["synthetic"] = "synthetic"
    terms: ClassVar[Terms] = SYNTHETIC

    def load(self) -> RawData:
        """Draws the images; their labels are all 0."""
        draw = np.random.default_rng(self.seed)
        samples = draw.integers(0, 256, (self.count, *self.shape), dtype=np.uint8)
        provenance = {"source": "random pixels", "transform": "none"}
        return RawData(samples, np.zeros(self.count, dtype=np.int64), provenance)


@register.source
class Patches32(SmallSource):
    """32x32 patches of the two photographs that ship with scikit-learn, china.jpg and flower.jpg; no download.

    The patches of the right quarter of each photograph are held out; no pixel is in a patch of either kind. Labels
    number the photographs.
    """

    stride: int = Field(default=3, ge=1, le=32, description="pixels between neighbouring patches, across and down")
    source: Literal["patches32"] = "patches32"
    terms: ClassVar[Terms] = Terms("CC-BY-2.0", "https://scikit-learn.org/stable/datasets/loading_other_datasets.html")

    @property
    def shape(self) -> tuple[int, ...]:
        """[C, H, W] of one image."""
        return (3, 32, 32)

    @property
    def count(self) -> int:
        """Patches to train on, of two photographs of 427 x 640 pixels."""
        down, across = ((length - 32) // self.stride + 1 for length in (427, 480))
        return 2 * down * across

    def _patches(self, photographs: list[np.ndarray]) -> np.ndarray:
        # Of shape [down, across, C, 32, 32] each.
        windows = [np.lib.stride_tricks.sliding_window_view(photograph, (32, 32), (0, 1)) for photograph in photographs]
        step = self.stride
        return np.concatenate([view[::step, ::step].reshape(-1, 3, 32, 32) for view in windows])

    def load(self) -> RawData:
        """Cuts the patches out of the photographs in the installed package."""
        from sklearn.datasets import load_sample_images

        photographs = load_sample_images().images
        border = photographs[0].shape[1] * 3 // 4
        samples = self._patches([photograph[:, :border] for photograph in photographs])
        held_out = self._patches([photograph[:, border:] for photograph in photographs])
        labels = np.repeat(np.arange(2), len(samples) // 2)
        provenance = {
            "source": f"scikit-learn {version('scikit-learn')}, sklearn.datasets.load_sample_images",
            "transform": f"32x32 patches every {self.stride} pixels; the right quarter of each photograph held out",
        }
        return RawData(samples, labels.astype(np.int64), provenance, held_out)
