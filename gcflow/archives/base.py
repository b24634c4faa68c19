"""What sources whose images lie in archives have in common."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from gcflow.config import NoiseProcess, Strict, require
from gcflow.errors import GcflowError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from gcflow.archives.array_batches import ArrayBatches
    from gcflow.archives.images import ImageIndex
    from gcflow.archives.locators import Item
    from gcflow.oracles import GaussianMixture

Filter = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]
TIMING_IMAGES = 1024


class FiniteImages(Strict):
    """A source whose images are all there is of its distribution."""

    def exact_mixture(self, data: "Tensor", process: NoiseProcess) -> "GaussianMixture":
        """The empirical distribution of the prepared images, in model space."""
        from gcflow.oracles import empirical
        from gcflow.preconditioning import to_model_space

        return empirical(to_model_space(data, process))


class Splits(NamedTuple):
    """What an archive holds. held_out: None if it has no such split."""

    samples: "ImageIndex | ArrayBatches"
    held_out: "ImageIndex | ArrayBatches | None" = None


class Published(NamedTuple):
    """A file that can be downloaded. name: under which the source looks for it. md5: of its content, if known."""

    url: str
    name: str
    md5: str | None = None


class Archived(FiniteImages):
    """A source whose images lie in archives."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one image: [C, H, W]."""
        return (3, 32, 32)

    @property
    def published(self) -> Published | None:
        """What a program can download; None if there is no such thing."""
        return None

    def timing_samples(self) -> "np.ndarray":
        """Samples to time a recipe on before the archive is at hand: random pixels, uint8 [1024, C, H, W]."""
        import numpy as np

        return np.random.default_rng(0).integers(0, 256, (TIMING_IMAGES, *self.shape), dtype=np.uint8)


def existing(path: Path, remedy: str) -> Path:
    """A path that exists.

    Raises:
        GcflowError: it does not; the message ends with what to do.
    """
    if not path.exists():
        raise GcflowError(f"{path}: missing; {remedy}")
    return path


def require_images(images: int | None) -> None:
    """Checks the key `images`."""
    require(images is None or images >= 1, "images", images, "an integer >= 1")


def index(archive: Path, items: "list[Item]", filter_: Filter, size: int, crop_first: bool = True) -> "ImageIndex":
    """Images of an archive, each to become a square of `size`; see `gcflow.archives.images.Transform`."""
    from gcflow.archives.images import ImageIndex, Transform

    return ImageIndex(archive, items, Transform(size, filter_, crop_first), archive.is_dir())


def require_count(archive: Path, found: int, expected: int | None, what: str = "images") -> None:
    """Checks how many images an archive holds: any number > 0 if none is expected.

    Raises:
        GcflowError: fewer or more.
    """
    if found == 0 or (expected is not None and found != expected):
        wanted = "" if expected is None else f", expected {expected}"
        raise GcflowError(f"{archive}: holds {found} {what}{wanted}; it is incomplete or of another data set")
