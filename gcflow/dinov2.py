"""DINOv2 (Oquab et al. 2023) as a feature extractor: what FD-DINOv2 is measured in (Stein et al. 2023, `dgm-eval`).

A vision transformer (Dosovitskiy et al. 2021) on patches of 14 x 14 pixels with LayerScale (Touvron et al. 2021); its
features are the class token after the last norm. Weights are files of the original torch hub, sizes S, B and L without
registers. Names of layers are those of the files.
"""

import pickle
from math import isqrt
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from gcflow.errors import GcflowError
from gcflow.extractors import Extractor, resize_clean, resize_pillow

DINOV2_URL = "https://dl.fbaipublicfiles.com/dinov2/dinov2_{0}/dinov2_{0}_pretrain.pth"
PATCH, HEAD, SIDE = 14, 64, 224
# The hub's network stretches its positions by so many patches more than there are: by 16.1 / 37 to 224 pixels.
OFFSET = 0.1
RESIZES = {"pillow": resize_pillow, "clean": resize_clean}
# ImageNet's, of pixels in [0, 1].
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Published(NamedTuple):
    """A published size. width: F, the number of features. depth: blocks. sha256: of its file, as others pin it."""

    width: int
    depth: int
    sha256: str


PUBLISHED = {
    "vits14": Published(384, 12, "b938bf1bc15cd2ec0feacfe3a1bb553fe8ea9ca46a7e1d8d00217f29aef60cd9"),
    "vitb14": Published(768, 12, "0b8b82f85de91b424aded121c7e1dcc2b7bc6d0adeea651bf73a13307fad8c73"),
    "vitl14": Published(1024, 24, "d5383ea8f4877b2472eb973e0fd72d557c7da5d3611bd527ceeb1d7162cbf428"),
}


class _Block(nn.Module):
    """Attention and an MLP, each after a norm, scaled and added to what came in."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)})
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)})
        self.ls1, self.ls2 = (nn.ParameterDict({"gamma": torch.ones(width)}) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """Tokens [n, 1 + patches, width] to as many."""
        heads = self.attn["qkv"](self.norm1(x)).unflatten(-1, (3, -1, HEAD)).permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
        x = x + self.ls1["gamma"] * self.attn["proj"](attended)
        return x + self.ls2["gamma"] * self.mlp["fc2"](functional.gelu(self.mlp["fc1"](self.norm2(x))))


class VisionTransformer(nn.Module):
    """The network. width: of tokens, a multiple of 64. depth: blocks. grid: patches per side that positions are for."""

    def __init__(self, width: int, depth: int, grid: int = 37) -> None:
        super().__init__()
        self.grid = grid
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + grid**2, width))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, PATCH, PATCH)})
        self.blocks = nn.ModuleList(_Block(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def positions(self, rows: int, columns: int) -> Tensor:
        """[1, 1 + rows * columns, width]: those of the grid, bicubically interpolated where there is another."""
        if rows == columns == self.grid:
            return self.pos_embed
        grid = self.pos_embed[:, 1:].mT.unflatten(2, (self.grid, self.grid))
        scale = ((rows + OFFSET) / self.grid, (columns + OFFSET) / self.grid)
        moved = functional.interpolate(grid, scale_factor=scale, mode="bicubic")
        return torch.cat([self.pos_embed[:, :1], moved.flatten(2).mT], 1)

    def forward(self, images: Tensor) -> Tensor:
        """Class token [n, width] of normalised images [n, 3, H, W], H and W multiples of 14."""
        patches = self.patch_embed["proj"](images)
        x = torch.cat([self.cls_token.expand(len(images), -1, -1), patches.flatten(2).mT], 1)
        x = x + self.positions(*patches.shape[-2:])
        for block in self.blocks:
            x = block(x)
        return self.norm(x[:, 0])


class Dinov2(Extractor):
    """The network, ready for images; see `Dinov2.load`.

    Images are resized to 224 x 224 by Pillow's bicubic, whatever their aspect, and normalised by ImageNet's mean and
    deviation: `pillow` rounds to 8 bits, as `dgm-eval` does by default, `clean` does not (its `--clean_resize`).
    """

    name, url = "DINOv2", DINOV2_URL.format("vitl14")

    def __init__(self, network: VisionTransformer, sha256: str, device: torch.device | str) -> None:
        super().__init__(network.to(device), sha256, device)
        self.features = network.norm.weight.numel()
        self.description = {"network": f"class token of {len(network.blocks)} blocks of width {self.features}, float32"}

    @classmethod
    def load(cls, path: Path, device: torch.device | str = "cpu", sha256: str | None = None) -> "Dinov2":
        """Loads the network, of the size that the file has, without running code of it, and moves it to a device.

        Args:
            path: a file of the torch hub, `dinov2_vitl14_pretrain.pth`.
            device: where to run.
            sha256: what the file must have, one of `PUBLISHED` for a true one; None for any.

        Raises:
            GcflowError: the file is missing, has another sha256, is not one of torch's, or not of such a network.
        """
        file_sha256 = cls.checked(path, sha256)
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except (RuntimeError, ValueError, EOFError, pickle.UnpicklingError):
            raise GcflowError(f"{path}: not a readable file of torch's weights; {cls.name}'s is at {cls.url}") from None
        values = {k: v for k, v in state.items() if isinstance(v, Tensor)} if isinstance(state, dict) else {}
        # Of training alone.
        values.pop("mask_token", None)
        shapes = {name: tuple(value.shape) for name, value in values.items()}
        _, positions, width = shapes["pos_embed"] if len(shapes.get("pos_embed", ())) == 3 else (1, 1, 0)
        depth = len({name.split(".")[1] for name in values if name.startswith("blocks.")})
        with torch.device("meta"):
            network = VisionTransformer(max(HEAD, width // HEAD * HEAD), depth, isqrt(positions - 1))
        expected = {name: tuple(value.shape) for name, value in network.state_dict().items()}
        for name in [*expected, *shapes]:
            given, wanted = (list(found[name]) if name in found else "missing" for found in (shapes, expected))
            if given != wanted:
                raise GcflowError(f"{path}: not DINOv2 as its torch hub has it ({name}: {given}, expected {wanted})")
        network.load_state_dict({name: value.float() for name, value in values.items()}, assign=True)
        return cls(network, file_sha256, device)

    def features_of(self, images: Tensor, resize: str) -> Tensor:
        """Features [n, F]."""
        mean, deviation = (torch.tensor(values, device=self.device)[:, None, None] for values in (MEAN, DEVIATION))
        return self.network(RESIZES[resize](images, SIDE).div_(255).sub(mean).div_(deviation))
