"""Sources whose images lie in archives: those of the paper's data sets, and any folder, zip or tar of images.

Each has `locate`, which finds its files or says what to fetch, and `open`, which lists what they hold.
"""

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

from pydantic import Field

from gcflow import register
from gcflow.archives.formats import (
    Filter,
    Item,
    Members,
    Report,
    Split,
    folder_members,
    labelled,
    lmdb_members,
    members_of,
    shown,
    tar_members,
    unpacked_lmdb,
    zip_members,
)
from gcflow.errors import GcflowError
from gcflow.options import Many, require
from gcflow.sources import Source, Terms

if TYPE_CHECKING:
    import numpy as np

UNPACKED_IMAGENET = "train"
CELEBA_FOLDER = "img_align_celeba"
CELEBA_LISTS = ("list_eval_partition.txt", "list_eval_partition.csv")
TIMING_IMAGES = 1024
Splits = tuple[Split, Split | None]
"""Images to train on, and what is held out or None if an archive has no such split."""


class Published(NamedTuple):
    """A file that can be downloaded. name: under which the source looks for it. md5: of its content, if known."""

    url: str
    name: str
    md5: str | None = None


IMAGENET = Terms(
    "non-commercial research and education only", "https://www.image-net.org/download.php", handed_on=False
)


class Archived(Source):
    """A source whose images lie in archives, and are read piece by piece.

    variant: of the data set, in words. side: of its images, in pixels.
    """

    variant: ClassVar[str]
    side: ClassVar[int] = 32
    if TYPE_CHECKING:

        @property
        def images(self) -> int | None:
            """Images to train on, or None if that is not known before they are read."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one image: [C, H, W]."""
        return (3, self.side, self.side)

    @property
    def count(self) -> int | None:
        """Images to train on."""
        return self.images

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

    def open(self, files: tuple[Path, ...], scratch: Path, report: Report) -> Splits:
        """What the files hold. scratch: a folder for what has to be unpacked.

        Raises:
            GcflowError: they are damaged, or of another data set.
        """
        raise NotImplementedError

    def provenance(self) -> dict[str, str]:
        """Variant and transform, in words."""
        if not hasattr(self, "filter"):
            return {"variant": self.variant, "transform": "none"}
        transform = f"shorter side resized to {self.shape[-1]}, then the centre cropped"
        return {"variant": self.variant, "transform": transform, "filter": self.filter}

    def timing_samples(self) -> "np.ndarray":
        """Before the archive is at hand: random pixels, uint8 [1024, C, H, W]."""
        import numpy as np

        return np.random.default_rng(0).integers(0, 256, (TIMING_IMAGES, *self.shape), dtype=np.uint8)


def _existing(path: Path, remedy: str) -> Path:
    if not path.exists():
        raise GcflowError(f"{path}: missing; {remedy}")
    return path


def _require_count(archive: Path, found: int, expected: int | None, what: str = "images") -> None:
    """Checks how many images an archive holds: any number > 0 if none is expected."""
    if found == 0 or (expected is not None and found != expected):
        wanted = "" if expected is None else f", expected {expected}"
        raise GcflowError(f"{archive}: holds {found} {what}{wanted}; it is incomplete or of another data set")


def _split(archive: Path, items: list[Item], expected: int | None, filter_: Filter) -> Split:
    _require_count(archive, len(items), expected)
    return Split(archive, items, len(items), filter_)


@register.source
class Cifar10(Archived):
    """CIFAR-10: 32x32 photographs of 10 classes; its test batch is held out."""

    archive: str = Field(default="cifar-10-python.tar.gz", description="file in the archives' folder")
    url: str = Field(
        default="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz", description="where it can be had"
    )
    md5: str | None = Field(
        default="c58f30108f718f92721af3b95e74349a", description="of the archive as published; null checks none"
    )
    images: Many = Field(default=50000, description="in the archive, to train on")
    held_out_images: Many = Field(default=10000, description="in the archive, held out")
    source: Literal["cifar10"] = "cifar10"
    variant: ClassVar[str] = "CIFAR-10, python version"
    terms: ClassVar[Terms] = Terms("none stated; cite Krizhevsky 2009", "https://www.cs.toronto.edu/~kriz/cifar.html")

    @property
    def published(self) -> Published:
        """The archive."""
        return Published(self.url, self.archive, self.md5)

    def locate(self, archives: Path) -> tuple[Path, ...]:
        """The archive."""
        remedy = f"put {self.url} there, or give --download"
        return (_existing(archives / self.archive, remedy),)

    def open(self, files: tuple[Path, ...], scratch: Path, report: Report) -> Splits:
        """The batches of both splits."""
        from gcflow.archives.array_batches import cifar_images

        (path,) = files
        train = tuple(f"data_batch_{number}" for number in range(1, 6))
        return (
            Split(path, cifar_images(path, train), self.images),
            Split(path, cifar_images(path, ("test_batch",)), self.held_out_images),
        )


@register.source
class Imagenet32(Archived):
    """ImageNet-1k's training images at 32x32: the shorter side resized, then the centre cropped.

    Labels number the sorted class names.
    """

    archive: str = Field(
        default="ILSVRC2012_img_train.tar",
        description="the tar of class tars; where it is missing, a folder `train` beside it, with a folder of images "
        "per class, is taken",
    )
    filter: Filter = Field(default="bilinear", description="of the resize")
    images: Many = Field(default=1281167, description="in the archive")
    source: Literal["imagenet32"] = "imagenet32"
    variant: ClassVar[str] = "ImageNet-1k training images, resized here"
    terms: ClassVar[Terms] = IMAGENET

    def locate(self, archives: Path) -> tuple[Path, ...]:
        """The tar, or else the folder."""
        folder = archives / UNPACKED_IMAGENET
        if not (archives / self.archive).exists() and folder.is_dir():
            return (folder,)
        remedy = (
            f"fetch ILSVRC2012_img_train.tar from https://image-net.org (it needs an account), or unpack to {folder}"
        )
        return (_existing(archives / self.archive, remedy),)

    def open(self, files: tuple[Path, ...], scratch: Path, report: Report) -> Splits:
        """The images of all classes."""
        (path,) = files
        members = folder_members(path) if path.is_dir() else tar_members(path, nested=True)
        if not any("/" in name for name in members):
            raise GcflowError(
                f"{path}: holds no images in classes (n01440764.tar or n01440764/, ...), so it is not ImageNet's "
                "training set; fetch ILSVRC2012_img_train.tar from https://image-net.org"
            )
        return _split(path, labelled(members), self.images, self.filter), None


@register.source
class Imagenet32Downsampled(Archived):
    """Downsampled ImageNet at 32x32 (Chrabaszcz et al. 2017), whose authors squeezed each image with a box filter.

    Its ten batches lie in Imagenet32_train_npz.zip or Imagenet32_train.zip, or in a folder of one of these names.
    Labels 1..1000 become 0..999.
    """

    images: Many = Field(default=1281167, description="in all batches")
    source: Literal["imagenet32-downsampled"] = "imagenet32-downsampled"
    variant: ClassVar[str] = "downsampled ImageNet 32x32, as published: other pixels than ImageNet resized here"
    terms: ClassVar[Terms] = IMAGENET

    def locate(self, archives: Path) -> tuple[Path, ...]:
        """The zip, or else the batches in a folder."""
        names = ("Imagenet32_train_npz", "Imagenet32_train")
        for path in (archives / f"{name}{ending}" for ending in (".zip", "") for name in names):
            if path.is_dir():
                batches = tuple(sorted(path.glob("train_data_batch_*")))
                _require_count(path, len(batches), 10, "batches (train_data_batch_1 to 10)")
                return batches
            if path.exists():
                return (path,)
        remedy = "fetch it, or Imagenet32_train.zip, from https://image-net.org (it needs an account)"
        raise GcflowError(f"{archives / names[0]}.zip: missing; {remedy}")

    def open(self, files: tuple[Path, ...], scratch: Path, report: Report) -> Splits:
        """The batches."""
        from gcflow.archives.array_batches import downsampled_images

        archive = files[0] if len(files) == 1 else files[0].parent
        return Split(archive, downsampled_images(files), self.images), None


@register.source
class Celeba64(Archived):
    """CelebA's aligned faces at 64x64: the shorter side resized, then the centre cropped.

    Faces of 178x218 become 64x78, of which 64x64 remain. The test split of its list is held out. Kaggle's zip and list
    (.csv) are taken too.
    """

    archive: str = Field(default="img_align_celeba.zip", description="file in the archives' folder")
    filter: Filter = Field(default="lanczos", description="of the resize")
    images: Many = Field(default=162770, description="in the training split")
    held_out_images: int = Field(default=19962, ge=0, le=10**9, description="in the test split")
    source: Literal["celeba64"] = "celeba64"
    variant: ClassVar[str] = "CelebA, aligned and cropped"
    terms: ClassVar[Terms] = Terms(
        "non-commercial research only; neither images nor what is derived of them may be handed on",
        "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html",
        handed_on=False,
    )
    side: ClassVar[int] = 64

    def locate(self, archives: Path) -> tuple[Path, ...]:
        """The zip and its list of splits."""
        page = "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html"
        place = f"from the Google Drive of {page} and put it there; no program can download it"
        listed = next((name for name in CELEBA_LISTS if (archives / name).exists()), CELEBA_LISTS[0])
        folders = {self.archive: "Img", listed: "Eval"}
        return tuple(
            _existing(archives / name, f"fetch {name} (folder {folder}) {place}") for name, folder in folders.items()
        )

    def open(self, files: tuple[Path, ...], scratch: Path, report: Report) -> Splits:
        """The images of both splits."""
        archive, partition = files
        # Kaggle's zip has the folder within one of the same name.
        members = {name.rpartition(f"{CELEBA_FOLDER}/")[2]: read for name, read in zip_members(archive).items()}
        train, test = (self._listed(archive, partition, members, split) for split in ("0", "2"))
        _require_count(partition, len(train), self.images, "images to train on")
        if test or self.held_out_images:
            _require_count(partition, len(test), self.held_out_images, "images to hold out")
        return (
            Split(archive, train, len(train), self.filter),
            Split(archive, test, len(test), self.filter) if test else None,
        )

    def _listed(self, archive: Path, partition: Path, members: Members, split: str) -> list[Item]:
        items = []
        for number, line in enumerate(partition.read_text("utf-8-sig", "replace").splitlines(), 1):
            words = line.replace(",", " ").split()
            if not words or words[0] == "image_id":
                continue
            if len(words) != 2 or words[1] not in ("0", "1", "2"):
                raise GcflowError(f"{partition}: line {number} is {shown(line)!r}, expected e.g. '000001.jpg 0'")
            name = f"{CELEBA_FOLDER}/{words[0]}"
            if words[1] == split:
                if words[0] not in members:
                    problem = f"lacks {shown(name)}, which {partition.name} lists"
                    raise GcflowError(f"{archive}: {problem}; it is incomplete, or one of the two of another data set")
                items.append(Item(name, 0, members[words[0]]))
        return items


@register.source
class Church64(Archived):
    """LSUN's outdoor churches at 64x64: the shorter side resized, then the centre cropped."""

    archive: str = Field(
        default="church_outdoor_train_lmdb",
        description="the folder of the LMDB; where it is missing, the zip of this name that holds it, which is "
        "unpacked while it is read",
    )
    url: str = Field(
        default="http://dl.yf.io/lsun/scenes/church_outdoor_train_lmdb.zip", description="where the zip can be had"
    )
    filter: Filter = Field(default="lanczos", description="of the resize")
    images: Many = Field(default=126227, description="in the LMDB")
    source: Literal["church64"] = "church64"
    variant: ClassVar[str] = "LSUN church_outdoor, training split"
    terms: ClassVar[Terms] = Terms("none stated; cite Yu et al. 2015", "https://github.com/fyu/lsun")
    side: ClassVar[int] = 64

    @property
    def published(self) -> Published:
        """The zip."""
        return Published(self.url, f"{self.archive}.zip")

    def locate(self, archives: Path) -> tuple[Path, ...]:
        """The file of the LMDB, or else the zip."""
        folder = archives / self.archive
        if folder.is_dir():
            return (_existing(folder / "data.mdb", "unpack the whole zip, or remove this folder and leave the zip"),)
        remedy = f"put {self.url} there, or give --download"
        return (_existing(archives / f"{self.archive}.zip", remedy),)

    def open(self, files: tuple[Path, ...], scratch: Path, report: Report) -> Splits:
        """The images, in the order of their keys."""
        (path,) = files
        members = lmdb_members(unpacked_lmdb(path, scratch, report) if path.suffix == ".zip" else path.parent)
        items = [Item(name, 0, read) for name, read in members.items()]
        return _split(path, items, self.images, self.filter), None


@register.source
class Folder(Archived):
    """Any folder, zip, tar or tar.gz of images: the shorter side of each resized, then the centre cropped.

    Each is taken as a viewer shows it: turned upright, transparent parts white, of several frames the first. Labels
    number the sorted folders that images lie in.
    """

    path: str = Field(description="in the folder of archives, or absolute")
    size: int = Field(ge=4, le=10**4, description="side in pixels, a power of two")
    filter: Filter = Field(default="lanczos", description="of the resize")
    images: Many | None = Field(default=None, description="how many are expected; null takes what there is")
    source: Literal["folder"] = "folder"
    variant: ClassVar[str] = "images of the user's own"
    terms: ClassVar[Terms] = Terms("the user's to know")

    def __post_init__(self) -> None:
        require(self.size & (self.size - 1) == 0, "size", self.size, "a power of two, >= 4")

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one image: [C, H, W]."""
        return (3, self.size, self.size)

    def locate(self, archives: Path) -> tuple[Path, ...]:
        """The folder or file."""
        return (_existing(archives / self.path, "put a folder, zip, tar or tar.gz of images there"),)

    def open(self, files: tuple[Path, ...], scratch: Path, report: Report) -> Splits:
        """The images, sorted by name."""
        (path,) = files
        found = _split(path, labelled(members_of(path, scratch, report)), self.images, self.filter)
        return found._replace(as_seen=True), None

    def provenance(self) -> dict[str, str]:
        """Variant and transform, in words."""
        found = super().provenance()
        seen = "turned upright by EXIF, transparent parts white, of several frames the first"
        return found | {"transform": f"{seen}; {found['transform']}"}
