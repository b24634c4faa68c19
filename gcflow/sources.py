"""Where samples come from.

A new data set is a frozen dataclass with `load` and `exact_mixture`, and its place in `DataSource`; everything else
follows from its prepared arrays. The fields are its keys in params.yaml. numpy and torch are imported when samples are
made, so that the grid can be read in an instant.
"""

from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Literal, NamedTuple

from gcflow.config import NoiseProcess, Strict, require

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from gcflow.oracles import GaussianMixture


class RawData(NamedTuple):
    """samples: uint8 [n, C, H, W] or float32 [n, d]. labels: int64 [n]. provenance: source and transform, in words."""

    samples: "np.ndarray"
    labels: "np.ndarray"
    provenance: dict[str, str]


class _FiniteImages(Strict):
    """A source whose images are all there is of its distribution."""

    def exact_mixture(self, data: "Tensor", process: NoiseProcess) -> "GaussianMixture":
        """The empirical distribution of the prepared images, in model space."""
        from gcflow.oracles import empirical
        from gcflow.preconditioning import to_model_space

        return empirical(to_model_space(data, process))


@dataclass(frozen=True)
class Digits(_FiniteImages):
    """scikit-learn's digits: 1797 real images of handwritten digits, 8x8, 17 grey levels (UCI, Alpaydin & Kaynak)."""

    source: Literal["digits"] = "digits"

    def load(self) -> RawData:
        """Reads the images from the installed package; nothing is downloaded."""
        import numpy as np
        from sklearn.datasets import load_digits

        bunch = load_digits()
        samples = np.round(bunch.images * (255 / 16)).astype(np.uint8)[:, None]
        provenance = {
            "source": f"scikit-learn {version('scikit-learn')}, sklearn.datasets.load_digits",
            "transform": "grey levels 0..16 scaled to 0..255 and rounded",
        }
        return RawData(samples, bunch.target.astype(np.int64), provenance)


@dataclass(frozen=True)
class Mixture2d(Strict):
    """Points of a two-dimensional Gaussian mixture with equal weights, whose velocity is known in closed form.

    means: the components' centres. std: their standard deviation. count: points to draw. seed: of the draw.
    """

    means: tuple[tuple[float, float], ...]
    std: float
    count: int
    seed: int
    source: Literal["mixture2d"] = "mixture2d"

    def __post_init__(self) -> None:
        require(len(self.means) >= 1, "means", list(self.means), "at least one [x, y]")
        require(self.std > 0, "std", self.std, "a number > 0")
        require(self.count >= 1, "count", self.count, "an integer >= 1")

    def mixture(self) -> "GaussianMixture":
        """The distribution itself, float64."""
        import torch

        from gcflow.oracles import GaussianMixture

        means = torch.tensor(self.means, dtype=torch.float64)
        return GaussianMixture(means, torch.full((len(means),), 1 / len(means), dtype=torch.float64), self.std)

    def load(self) -> RawData:
        """Draws the points."""
        from gcflow.randomness import generator

        points, components = self.mixture().sample(self.count, generator(self.seed, "mixture2d"))
        provenance = {"source": "Gaussian mixture of params.yaml", "transform": "none"}
        return RawData(points.float().numpy(), components.numpy(), provenance)

    def exact_mixture(self, data: "Tensor", process: NoiseProcess) -> "GaussianMixture":
        """The mixture itself, shifted to model space."""
        from gcflow.oracles import GaussianMixture

        exact = self.mixture()
        means, weights = (part.to(data.device).float() for part in (exact.means - process.data_mean, exact.weights))
        return GaussianMixture(means, weights, self.std)


@dataclass(frozen=True)
class Synthetic(_FiniteImages):
    """Uniformly random images, to time a recipe before its data are at hand. Nothing can be learned from them.

    shape: [C, H, W]. count: images. seed: of the draw.
    """

    shape: tuple[int, int, int]
    count: int
    seed: int
    source: Literal["synthetic"] = "synthetic"

    def __post_init__(self) -> None:
        require(min(self.shape) >= 1, "shape", list(self.shape), "[channels, height, width], each >= 1")
        require(self.count >= 1, "count", self.count, "an integer >= 1")

    def load(self) -> RawData:
        """Draws the images; their labels are all 0."""
        import numpy as np

        draw = np.random.default_rng(self.seed)
        samples = draw.integers(0, 256, (self.count, *self.shape), dtype=np.uint8)
        provenance = {"source": "random pixels", "transform": "none"}
        return RawData(samples, np.zeros(self.count, dtype=np.int64), provenance)


DataSource = Digits | Mixture2d | Synthetic
