"""Inception-v3 of 2015 as a feature extractor: clean-fid's protocol on batches of tensors, without image files.

The network is the TorchScript file that StyleGAN2-ADA published and clean-fid downloads, `INCEPTION_URL`. It gives the
features of FID and KID and the class probabilities of the inception score in one pass.
"""

import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args
from zipfile import ZipFile

import torch
from torch import Tensor, nn
from torch.nn import functional

from gcflow.errors import GcflowError
from gcflow.extractors import Extractor, resize_clean
from gcflow.files import atomic_path
from gcflow.preconditioning import clip_pixels
from gcflow.randomness import derived_seed

INCEPTION_URL = "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/inception-2015-12-05.pt"
# As k-diffusion, among others, pins it.
INCEPTION_SHA256 = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"
SIDE = 299
FEATURES, CLASSES = 2048, 1008

Resize = Literal["clean", "legacy-pytorch", "legacy-tensorflow"]


def batch_min_max_pixels(x: Tensor) -> Tensor:
    """Float [n, C, H, W] to uint8: the batch's own minimum is mapped to 0, its maximum to 255, fractions are dropped.

    So the paper's authors scale generated images; torchmetrics, to which they give them, truncates. The result depends
    on which images share the batch. A constant batch becomes 0.
    """
    low, high = x.aminmax()
    scale = (high - low).clamp_min(torch.finfo(x.dtype).tiny)
    return ((x - low) / scale * 255).to(torch.uint8)


def truncated_pixels(x: Tensor) -> Tensor:
    """Float [n, C, H, W] to uint8: clipped to [-1, 1], which is mapped to 0 .. 255; fractions are dropped."""
    return ((x.clamp(-1, 1) + 1) / 2 * 255).to(torch.uint8)


def float_round_trip(images: Tensor) -> Tensor:
    """uint8 to float32 in [-1, 1] and back, as the paper's authors' real images go: 1 .. 63 lose 1, the rest nothing.

    Divided by 255, normalised by mean and deviation 0.5, and then what `truncated_pixels` does.
    """
    return truncated_pixels((images.float() / 255 - 0.5) / 0.5)


# What becomes of a model's output, by a protocol's `pixels`; and of real images, by its `real_pixels`.
PIXELS: dict[str, Callable[[Tensor], Tensor]] = {
    "clip": clip_pixels,
    "clip-truncate": truncated_pixels,
    "batch-min-max": batch_min_max_pixels,
}
REAL_PIXELS: dict[str, Callable[[Tensor], Tensor]] = {"stored": lambda images: images, "round-trip": float_round_trip}


def resize_legacy_pytorch(images: Tensor) -> Tensor:
    """uint8 or float [n, C, H, W] in [0, 255] to float32 [n, C, 299, 299]: bilinear, without antialiasing, clipped."""
    resized = functional.interpolate(images.float(), size=(SIDE, SIDE), mode="bilinear", align_corners=False)
    return resized.clamp_(0, 255)


@contextmanager
def _torchscript() -> Iterator[None]:
    """No warnings that TorchScript is deprecated: the network exists in no other form."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


class Inception(Extractor):
    """The network, ready for images; see `Inception.load`.

    Images are resized to 299 x 299: `clean` or `legacy-pytorch`, as clean-fid names them; `legacy-tensorflow` is that
    inside the network. All three use this network, whereas clean-fid's `legacy_pytorch` uses another.

    Attributes:
        features: F, the number of features: 2048.
        classes: K, the number of classes: 1008.
    """

    name, url = "Inception", INCEPTION_URL

    def __init__(self, network: Any, sha256: str, device: torch.device | str) -> None:
        super().__init__(network, sha256, device)
        self.classes, self.features = network.output.weight.shape

    @classmethod
    def load(cls, path: Path, device: torch.device | str = "cpu", sha256: str | None = None) -> "Inception":
        """Loads the network, moves it to a device, and passes an image through it there.

        Args:
            path: the file of `INCEPTION_URL`, or of `write_surrogate`.
            device: where to run.
            sha256: what the file must have, `INCEPTION_SHA256` for the true one; None for any.

        Raises:
            GcflowError: the file is missing, has another sha256, is no TorchScript file, or not such a network.
        """
        found = cls.checked(path, sha256)
        try:
            with _torchscript():
                network = torch.jit.load(path, map_location="cpu")
        except (RuntimeError, ValueError):
            raise GcflowError(f"{path}: not a readable TorchScript file; Inception's is at {INCEPTION_URL}") from None
        network.to(device)
        try:
            loaded = cls(network, found, device)
            for resize in get_args(Resize):
                loaded(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), resize)
        except (AttributeError, RuntimeError, TypeError, ValueError) as error:
            reason = str(error).strip().splitlines()[-1]
            raise GcflowError(f"{path}: not Inception with `layers` and `output` ({reason})") from None
        return loaded

    def features_of(self, images: Tensor, resize: str) -> Tensor:
        """Features [n, 2048]."""
        if resize == "legacy-tensorflow":
            return self.network(images.float().expand(-1, 3, -1, -1), return_features=True).flatten(1)
        resized = resize_clean(images) if resize == "clean" else resize_legacy_pytorch(images)
        return self.network.layers(resized.sub_(128).div_(128).expand(-1, 3, -1, -1)).flatten(1)

    def probabilities(self, features: Tensor) -> Tensor:
        """Softmax of the logits without their bias, as in the original inception score."""
        return (features @ self.network.output.weight.T.float()).softmax(1)


class _Weights(nn.Module):
    """Weight and bias of one layer: torch's own layers are saved with their constants in an order that varies."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(nn.init.kaiming_normal_(torch.empty(shape), nonlinearity="relu"))
        self.bias = nn.Parameter(torch.zeros(shape[0]))


class _SurrogateLayers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = _Weights(32, 3, 8, 8)
        self.second = _Weights(64, 32, 3, 3)
        self.third = _Weights(FEATURES, 64, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images [n, 3, 299, 299] to features [n, 2048]."""
        x = functional.conv2d(x, self.first.weight, self.first.bias, stride=8).relu()
        x = functional.conv2d(x, self.second.weight, self.second.bias, stride=3).relu()
        x = functional.conv2d(x, self.third.weight, self.third.bias, stride=3).relu()
        return x.mean([2, 3])


class _Surrogate(nn.Module):
    """A small network of random weights with Inception's interface."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = _SurrogateLayers()
        self.output = _Weights(CLASSES, FEATURES)

    def forward(
        self, img: Tensor, return_features: bool = False, use_fp16: bool = False, no_output_bias: bool = False
    ) -> Tensor:
        """Float [n, 3, H, W] in [0, 255] to features [n, 2048], or probabilities [n, 1008].

        Resized inside as TensorFlow 1 did, corners not aligned: pixel i is sampled at i * length / 299.
        """
        height, width = img.shape[2], img.shape[3]
        theta = torch.eye(2, 3, device=img.device)
        theta[0, 2] += 1 / width - 1 / 299
        theta[1, 2] += 1 / height - 1 / 299
        grid = functional.affine_grid(theta.expand(len(img), 2, 3), [len(img), 3, 299, 299], align_corners=False)
        resized = functional.grid_sample(img, grid, mode="bilinear", padding_mode="border", align_corners=False)
        features = self.layers((resized - 128) / 128)
        if return_features:
            return features
        logits = features @ self.output.weight.t()
        if not no_output_bias:
            logits = logits + self.output.bias
        return logits.softmax(1)


def write_surrogate(path: Path, seed: int) -> None:
    """Writes a small random network with Inception's interface, for where the true weights are not at hand.

    What is measured in its features is no FID. Weights and bytes of the file are a function of the seed, with one
    version of torch.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(seed, "surrogate-inception"))
        network = _Surrogate().eval().requires_grad_(False)
    buffer = io.BytesIO()
    with _torchscript():
        torch.jit.save(torch.jit.script(network), buffer)
    with atomic_path(path) as temporary, ZipFile(buffer) as saved, ZipFile(temporary, "w") as written:
        for entry in saved.infolist():
            # They hold where on this machine the source lies, and a hash of that.
            if not entry.filename.endswith((".debug_pkl", "serialization_id")):
                written.writestr(entry, saved.read(entry))
