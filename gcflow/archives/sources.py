"""Sources whose images lie in archives: those of the paper's data sets, and any folder, zip or tar of images.

Each has `locate`, which finds its files or says what to fetch, and `open`, which lists what they hold; `images` and
`array_batches` beside this module read it piece by piece.
"""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from gcflow import register
from gcflow.archives.base import (
    Archived,
    Filter,
    Published,
    Splits,
    existing,
    index,
    made_square,
    require_count,
)
from gcflow.errors import GcflowError
from gcflow.options import require

if TYPE_CHECKING:
    from gcflow.archives.locators import Item, Locator, Report

UNPACKED_IMAGENET = "train"
CELEBA_FOLDER = "img_align_celeba"
CELEBA_PARTITION = "list_eval_partition.txt"


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
    images: int = Field(default=50000, ge=1, description="in the archive, to train on")
    held_out_images: int = Field(default=10000, ge=1, description="in the archive, held out")
    source: Literal["cifar10"] = "cifar10"

    @property
    def count(self) -> int:
        """Images to train on."""
        return self.images

    @property
    def published(self) -> Published:
        """The archive."""
        return Published(self.url, self.archive, self.md5)

    def locate(self, archives: Path) -> tuple[Path, ...]:
        """The archive.

        Raises:
            GcflowError: it is missing.
        """
        remedy = f"put {self.url} there, or give --download"
        return (existing(archives / self.archive, remedy),)

    def open(self, files: tuple[Path, ...], scratch: Path, report: "Report") -> Splits:
        """The batches of both splits; the archive is read with the first of them."""
        from gcflow.archives.array_batches import ArrayBatches, cifar_batches

        train = tuple(f"data_batch_{number}" for number in range(1, 6))
        return Splits(
            ArrayBatches(files[0], partial(cifar_batches, files[0], train), self.images),
            ArrayBatches(files[0], partial(cifar_batches, files[0], ("test_batch",)), self.held_out_images),
        )

    def provenance(self) -> dict[str, str]:
        """Variant and transform, in words."""
        return {"variant": "CIFAR-10, python version", "transform": "none"}


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
    images: int = Field(default=1281167, ge=1, description="in the archive")
    source: Literal["imagenet32"] = "imagenet32"

    @property
    def count(self) -> int:
        """Images to train on."""
        return self.images

    def locate(self, archives: Path) -> tuple[Path, ...]:
        """The tar, or else the folder.

        Raises:
            GcflowError: both are missing.
        """
        folder = archives / UNPACKED_IMAGENET
        if not (archives / self.archive).exists() and folder.is_dir():
            return (folder,)
        remedy = (
            f"fetch ILSVRC2012_img_train.tar from https://image-net.org (it needs an account), or unpack to {folder}"
        )
        return (existing(archives / self.archive, remedy),)

    def open(self, files: tuple[Path, ...], scratch: Path, report: "Report") -> Splits:
        """The index of the images.

        Raises:
            GcflowError: the archive is truncated, or of another data set.
        """
        from gcflow.archives.index import folder_members, labelled, nested_tar_members

        (path,) = files
        members = folder_members(path) if path.is_dir() else nested_tar_members(path)
        if not any("/" in name for name in members):
            raise GcflowError(
                f"{path}: holds no images in classes (n01440764.tar or n01440764/, ...), so it is not ImageNet's "
                "training set; fetch ILSVRC2012_img_train.tar from https://image-net.org"
            )
        require_count(path, len(members), self.images)
        return Splits(index(path, labelled(members), self.filter, 32))

    def provenance(self) -> dict[str, str]:
        """Variant and transform, in words."""
        return {"variant": "ImageNet-1k training images, resized here", **made_square(self.filter, 32)}


@register.source
class Imagenet32Downsampled(Archived):
    """Downsampled ImageNet at 32x32 (Chrabaszcz et al. 2017), whose authors squeezed each image with a box filter.

    Its ten batches lie in Imagenet32_train_npz.zip or Imagenet32_train.zip, or in a folder of one of these names.
    Labels 1..1000 become 0..999.
    """

    images: int = Field(default=1281167, ge=1, description="in all batches")
    source: Literal["imagenet32-downsampled"] = "imagenet32-downsampled"

    @property
    def count(self) -> int:
        """Images to train on."""
        return self.images

    def locate(self, archives: Path) -> tuple[Path, ...]:
        """The zip, or else the batches in a folder.

        Raises:
            GcflowError: there is neither.
        """
        names = ("Imagenet32_train_npz", "Imagenet32_train")
        for path in (archives / f"{name}{ending}" for ending in (".zip", "") for name in names):
            if path.is_dir():
                batches = tuple(sorted(path.glob("train_data_batch_*")))
                require_count(path, len(batches), 10, "batches (train_data_batch_1 to 10)")
                return batches
            if path.exists():
                return (path,)
        remedy = "fetch it, or Imagenet32_train.zip, from https://image-net.org (it needs an account)"
        raise GcflowError(f"{archives / names[0]}.zip: missing; {remedy}")

    def open(self, files: tuple[Path, ...], scratch: Path, report: "Report") -> Splits:
        """The batches."""
        from gcflow.archives.array_batches import ArrayBatches, downsampled_batches

        archive = files[0] if len(files) == 1 else files[0].parent
        return Splits(ArrayBatches(archive, partial(downsampled_batches, files), self.images))

    def provenance(self) -> dict[str, str]:
        """Variant and transform, in words."""
        return {
            "variant": "downsampled ImageNet 32x32, as published: other pixels than ImageNet resized here",
            "transform": "none",
        }


@register.source
class Celeba64(Archived):
    """CelebA's aligned faces at 64x64: the shorter side resized, then the centre cropped.

    Faces of 178x218 become 64x78, of which 64x64 remain. The test split of its list is held out.
    """

    archive: str = Field(default="img_align_celeba.zip", description="file in the archives' folder")
    filter: Filter = Field(default="lanczos", description="of the resize")
    images: int = Field(default=162770, ge=1, description="in the training split")
    held_out_images: int = Field(default=19962, ge=0, description="in the test split")
    source: Literal["celeba64"] = "celeba64"

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one image: [C, H, W]."""
        return (3, 64, 64)

    @property
    def count(self) -> int:
        """Images to train on."""
        return self.images

    def locate(self, archives: Path) -> tuple[Path, ...]:
        """The zip and its list of splits.

        Raises:
            GcflowError: one is missing.
        """
        page = "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html"
        place = f"from the Google Drive of {page} and put it there; no program can download it"
        folders = {self.archive: "Img", CELEBA_PARTITION: "Eval"}
        return tuple(
            existing(archives / name, f"fetch {name} (folder {folder}) {place}") for name, folder in folders.items()
        )

    def open(self, files: tuple[Path, ...], scratch: Path, report: "Report") -> Splits:
        """The index of the images of both splits.

        Raises:
            GcflowError: the zip is truncated or of another data set, or the list is.
        """
        from gcflow.archives.index import zip_members

        archive, partition = files
        members = zip_members(archive)
        if not any(name.startswith(f"{CELEBA_FOLDER}/") for name in members):
            raise GcflowError(f"{archive}: holds no {CELEBA_FOLDER}/, so it is not CelebA's; fetch the right archive")
        splits = [self._split(archive, partition, members, split) for split in ("0", "2")]
        for items, expected in zip(splits, (self.images, self.held_out_images), strict=True):
            if items or expected:
                require_count(partition, len(items), expected, "images of a split")
        train, test = (index(archive, items, self.filter, 64) for items in splits)
        return Splits(train, test if test.items else None)

    def _split(self, archive: Path, partition: Path, members: "dict[str, Locator]", split: str) -> "list[Item]":
        from gcflow.archives.locators import Item, shown

        items = []
        for number, line in enumerate(partition.read_text(errors="replace").splitlines(), 1):
            words = line.split()
            if len(words) != 2 or words[1] not in ("0", "1", "2"):
                raise GcflowError(f"{partition}: line {number} is {shown(line)!r}, expected e.g. '000001.jpg 0'")
            name = f"{CELEBA_FOLDER}/{words[0]}"
            if words[1] == split:
                if name not in members:
                    raise GcflowError(f"{archive}: lacks {shown(name)}, which {partition.name} lists; fetch it again")
                items.append(Item(name, 0, members[name]))
        return items

    def provenance(self) -> dict[str, str]:
        """Variant and transform, in words."""
        return {"variant": "CelebA, aligned and cropped", **made_square(self.filter, 64)}


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
    images: int = Field(default=126227, ge=1, description="in the LMDB")
    source: Literal["church64"] = "church64"

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one image: [C, H, W]."""
        return (3, 64, 64)

    @property
    def count(self) -> int:
        """Images to train on."""
        return self.images

    @property
    def published(self) -> Published:
        """The zip."""
        return Published(self.url, f"{self.archive}.zip")

    def locate(self, archives: Path) -> tuple[Path, ...]:
        """The file of the LMDB, or else the zip.

        Raises:
            GcflowError: both are missing.
        """
        folder = archives / self.archive
        if folder.is_dir():
            return (existing(folder / "data.mdb", "unpack the whole zip, or remove this folder and leave the zip"),)
        remedy = f"put {self.url} there, or give --download"
        return (existing(archives / f"{self.archive}.zip", remedy),)

    def open(self, files: tuple[Path, ...], scratch: Path, report: "Report") -> Splits:
        """The index of the images.

        Raises:
            GcflowError: the archive is truncated, or of another data set.
        """
        from gcflow.archives.index import lmdb_members, unpacked_lmdb
        from gcflow.archives.locators import Item

        (path,) = files
        members = lmdb_members(unpacked_lmdb(path, scratch, report) if path.suffix == ".zip" else path.parent)
        require_count(path, len(members), self.images)
        return Splits(index(path, [Item(name, 0, members[name]) for name in members], self.filter, 64))

    def provenance(self) -> dict[str, str]:
        """Variant and transform, in words."""
        return {"variant": "LSUN church_outdoor, training split", **made_square(self.filter, 64)}


@register.source
class Folder(Archived):
    """Any folder, zip, tar or tar.gz of images: the shorter side of each resized, then the centre cropped.

    Labels number the sorted folders that images lie in.
    """

    path: str = Field(description="in the folder of archives, or absolute")
    size: int = Field(ge=4, description="side in pixels, a power of two")
    filter: Filter = Field(default="lanczos", description="of the resize")
    images: int | None = Field(default=None, ge=1, description="how many are expected; null takes what there is")
    source: Literal["folder"] = "folder"

    def __post_init__(self) -> None:
        require(self.size & (self.size - 1) == 0, "size", self.size, "a power of two, >= 4")

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one image: [C, H, W]."""
        return (3, self.size, self.size)

    @property
    def count(self) -> int | None:
        """Images to train on."""
        return self.images

    def locate(self, archives: Path) -> tuple[Path, ...]:
        """The folder or file.

        Raises:
            GcflowError: it is missing.
        """
        return (existing(archives / self.path, "put a folder, zip, tar or tar.gz of images there"),)

    def open(self, files: tuple[Path, ...], scratch: Path, report: "Report") -> Splits:
        """The index of the images.

        Raises:
            GcflowError: the archive is truncated, of another kind, or holds no images or too few.
        """
        from gcflow.archives.index import labelled, members_of

        (path,) = files
        members = members_of(path, scratch, report)
        require_count(path, len(members), self.images)
        return Splits(index(path, labelled(members), self.filter, self.size))

    def provenance(self) -> dict[str, str]:
        """Variant and transform, in words."""
        return {"variant": "images of the user's own", **made_square(self.filter, self.size)}
