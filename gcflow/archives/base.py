"""What sources whose images lie in archives have in common."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from gcflow.errors import GcflowError
from gcflow.register import Source

if TYPE_CHECKING:
    import numpy as np

    from gcflow.archives.array_batches import ArrayBatches
    from gcflow.archives.images import ImageIndex
    from gcflow.archives.locators import Item, Report

Filter = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]
TIMING_IMAGES = 1024


class Splits(NamedTuple):
    """What an archive holds. held_out: None if it has no such split."""

    samples: "ImageIndex | ArrayBatches"
    held_out: "ImageIndex | ArrayBatches | None" = None


class Published(NamedTuple):
    """A file that can be downloaded. name: under which the source looks for it. md5: of its content, if known."""

    url: str
    name: str
    md5: str | None = None


class Archived(Source):
    """A source whose images lie in archives, and are read piece by piece."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one image: [C, H, W]."""
        return (3, 32, 32)

    @property
    def published(self) -> Published | None:
        """What a program can download; None if there is no such thing."""
        return None

    def locate(self, archives: Path) -> tuple[Path, ...]:
        """The files that it is read from.

        Raises:
            GcflowError: one is missing; the message says what to fetch.
        """
        raise NotImplementedError

    def open(self, files: tuple[Path, ...], scratch: Path, report: "Report") -> Splits:
        """What the files hold. scratch: a folder for notes on them.

        Raises:
            GcflowError: they are damaged, or of another data set.
        """
        raise NotImplementedError

    def provenance(self) -> dict[str, str]:
        """Variant and transform, in words."""
        raise NotImplementedError

    def timing_samples(self) -> "np.ndarray":
        """Before the archive is at hand: random pixels, uint8 [1024, C, H, W]."""
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


def index(archive: Path, items: "list[Item]", filter_: Filter, size: int) -> "ImageIndex":
    """Images of an archive, each to become a square of `size`; see `gcflow.archives.images.Transform`."""
    from gcflow.archives.images import ImageIndex, Transform

    return ImageIndex(archive, items, Transform(size, filter_), archive.is_dir())


def made_square(filter_: Filter, size: int) -> dict[str, str]:
    """The part of a provenance that tells what `index` has done to its images."""
    return {"transform": f"shorter side resized to {size}, then the centre cropped", "filter": filter_}


def require_count(archive: Path, found: int, expected: int | None, what: str = "images") -> None:
    """Checks how many images an archive holds: any number > 0 if none is expected.

    Raises:
        GcflowError: fewer or more.
    """
    if found == 0 or (expected is not None and found != expected):
        wanted = "" if expected is None else f", expected {expected}"
        raise GcflowError(f"{archive}: holds {found} {what}{wanted}; it is incomplete or of another data set")
