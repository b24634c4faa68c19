"""What the networks that images are compared in have in common: files that are pinned, exact resizing, batches."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from gcflow.errors import GcflowError
from gcflow.files import sha256_of

# Images in one pass: on the CPU so few that their activations do not outgrow the caches by far.
CPU_BATCH, GPU_BATCH = 16, 128
# Pillow's weights for 8-bit images are multiples of its inverse.
PILLOW_UNIT = 2**22


@lru_cache(maxsize=8)
def _bicubic(length: int, side: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Pillow's bicubic resampling of `length` pixels to `side`, antialiased when it shrinks, as [side, length]."""
    scale = length / side
    centres = (torch.arange(side, dtype=torch.float64) + 0.5) * scale
    pixels = torch.arange(length, dtype=torch.float64) + 0.5
    distance = (pixels - centres[:, None]).abs() / max(scale, 1)
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((2.5 - 0.5 * distance) * distance - 4) * distance + 2
    weights = torch.where(distance < 1, near, torch.where(distance < 2, far, 0))
    return (weights / weights.sum(1, keepdim=True)).to(device, dtype)


def resize_clean(images: Tensor, side: int = 299) -> Tensor:
    """uint8 or float [n, C, H, W] in [0, 255] to float32 [n, C, side, side] in [0, 255], not rounded.

    clean-fid's `clean` (Parmar et al. 2022): Pillow's antialiased bicubic in floating point, clipped.
    """
    rows, columns = (_bicubic(length, side, torch.float32, images.device) for length in images.shape[-2:])
    return (rows @ (images.float() @ columns.T)).clamp_(0, 255)


def resize_pillow(images: Tensor, side: int) -> Tensor:
    """uint8 [n, C, H, W] to float32 [n, C, side, side] of whole numbers: Pillow's bicubic of 8-bit images, to the bit.

    It resizes rows, rounds, and then columns. Sums of whole numbers are exact here, on any device.
    """
    pixels = images.double()
    for length in (images.shape[-1], images.shape[-2]):
        weights = (_bicubic(length, side, torch.float64, images.device) * PILLOW_UNIT).round()
        pixels = (pixels @ weights.T / PILLOW_UNIT + 0.5).floor_().clamp_(0, 255).mT
    return pixels.float()


@contextmanager
def _ieee_products() -> Iterator[None]:
    """Full float32 products and convolutions inside; what was set before, afterwards."""
    backends: tuple[Any, ...] = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [backend.allow_tf32 for backend in backends]
    try:
        for backend in backends:
            backend.allow_tf32 = False
        yield
    finally:
        for backend, allowed in zip(backends, before, strict=True):
            backend.allow_tf32 = allowed


class Extractor:
    """A network that images are compared in, ready for them; its kinds have `load`.

    Attributes:
        name: of the network, for messages.
        url: where its file is published.
        sha256: of the file it was loaded from.
        features: F, the number of features.
        description: what a protocol record says of it besides the file's sha256.
        device: where its weights are.
        batch: images in one pass; what it gives does not depend on it beyond rounding.
    """

    name: ClassVar[str]
    url: ClassVar[str]
    features: int

    def __init__(self, network: Any, sha256: str, device: torch.device | str) -> None:
        self.network, self.device = network.eval(), torch.device(device)
        self.sha256 = sha256
        self.description: dict[str, str] = {}
        self.batch = CPU_BATCH if self.device.type == "cpu" else GPU_BATCH

    @classmethod
    def checked(cls, path: Path, sha256: str | None) -> str:
        """The sha256 of a network's file. sha256: what it must be, None for any.

        Raises:
            GcflowError: the file is missing or not readable, or has another.
        """
        try:
            found = sha256_of(path)
        except FileNotFoundError:
            raise GcflowError(f"{path}: no such file; {cls.name}'s is at {cls.url}") from None
        except OSError as error:
            raise GcflowError(f"{path}: not readable ({error.strerror})") from None
        if sha256 not in (None, found):
            raise GcflowError(f"{path}: another version of {cls.name}: its sha256 is {found}, expected {sha256}")
        return found

    def features_of(self, images: Tensor, resize: str) -> Tensor:
        """Features [n, F] of uint8 images [n, 3 or 1, H, W] on the network's device, of which one pass takes all."""
        raise NotImplementedError

    def probabilities(self, features: Tensor) -> Tensor | None:
        """Class probabilities [n, K] of features [n, F]; None where a network has no classes."""
        return None

    @torch.no_grad()
    def __call__(self, images: Tensor, resize: str) -> tuple[Tensor, Tensor | None]:
        """Features and class probabilities from one pass, on the network's device, in IEEE float32 (without TF32).

        Args:
            images: uint8 [n, 3, H, W], or [n, 1, H, W] for grey; n >= 1, on any device.
            resize: one of those of the kind.

        Returns:
            Features float32 [n, F], and probabilities float32 [n, K] where there are classes.

        Raises:
            ValueError: the images are of another type or shape.
        """
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
            raise ValueError(f"images are {images.dtype} {list(images.shape)}, expected uint8 [n, 3 or 1, H, W]")
        with _ieee_products():
            parts = [self.features_of(part.to(self.device), resize) for part in torch.split(images, self.batch)]
            features = torch.cat(parts).float()
            return features, self.probabilities(features)
