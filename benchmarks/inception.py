"""Images per second of Inception's features: tensors in batches, against clean-fid on a folder of the same images.

python benchmarks/inception.py --images 256
python benchmarks/inception.py --images 50000 --device cuda --weights inception-2015-12-05.pt
"""

import argparse
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor

from gcflow.inception import Inception, resize_clean, write_surrogate

WEIGHTS_NAME = "inception-2015-12-05.pt"
# Operators are declared for as long as their library lives.
TORCHVISION = torch.library.Library("torchvision", "FRAGMENT")


def clean_fid() -> ModuleType:
    """clean-fid's `fid`, also where torchvision's compiled part does not match torch: it needs only its Python part."""
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError):
        for operator in ("nms", "qnms"):
            TORCHVISION.define(f"{operator}(Tensor dets, Tensor scores, float threshold) -> Tensor")
    from cleanfid import fid

    return fid


def natural_patches(count: int, side: int, seed: int) -> Tensor:
    """uint8 [count, 3, side, side]: random crops of scikit-learn's two photographs, side <= 427."""
    draw = np.random.default_rng(seed)
    photographs = load_sample_images().images
    crops = []
    for index in range(count):
        photograph = photographs[index % len(photographs)]
        top, left = (int(draw.integers(0, length - side + 1)) for length in photograph.shape[:2])
        crops.append(photograph[top : top + side, left : left + side])
    return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).contiguous()


def write_images(images: Tensor, folder: Path) -> None:
    """Writes uint8 [n, 3, H, W] as PNG files, in order."""
    for index, image in enumerate(images.permute(0, 2, 3, 1).numpy()):
        Image.fromarray(image).save(folder / f"{index:06d}.png", compress_level=1)


def seconds(work: Callable[[], object], rounds: int) -> float:
    """Shortest of several times, the first call not counted."""
    work()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> None:
    """Measures, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--side", type=int, default=32, help="of the images, at most 427")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--weights", type=Path, help="Inception's TorchScript file; without it, a small surrogate")
    parser.add_argument("--workers", type=int, default=0, help="clean-fid's processes that read and resize")
    parser.add_argument("--batch", type=int, default=32, help="clean-fid's")
    parser.add_argument("--rounds", type=int, default=3)
    settings = parser.parse_args()

    fid = clean_fid()
    from cleanfid.inception_torchscript import InceptionV3W
    from cleanfid.resize import build_resizer

    count = settings.images
    images = natural_patches(count, settings.side, seed=0)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "images"
        folder.mkdir()
        write_images(images, folder)
        if settings.weights is None:
            write_surrogate(Path(temporary) / WEIGHTS_NAME, seed=0)
        else:
            (Path(temporary) / WEIGHTS_NAME).symlink_to(settings.weights.absolute())
        network = Inception.load(Path(temporary) / WEIGHTS_NAME, settings.device)
        theirs = InceptionV3W(temporary, download=False).to(settings.device)
        resizer, arrays = build_resizer("clean"), images.permute(0, 2, 3, 1).numpy()
        on_device = images.to(settings.device)

        def their_features() -> np.ndarray:
            return fid.get_folder_features(
                str(folder),
                theirs,
                num_workers=settings.workers,
                batch_size=settings.batch,
                device=torch.device(settings.device),
                mode="clean",
                verbose=False,
            )

        rows = {
            "features, gcflow": lambda: network(images, "clean"),
            "features, clean-fid": their_features,
            "resize alone, gcflow": lambda: [resize_clean(part) for part in torch.split(on_device, network.batch)],
            "resize alone, clean-fid": lambda: [resizer(array) for array in arrays],
        }
        rates = {name: count / seconds(work, settings.rounds) for name, work in rows.items()}
        difference = np.abs(network(images, "clean")[0].cpu().numpy() - their_features()).max()
    machine = torch.cuda.get_device_name() if network.device.type == "cuda" else platform.machine()
    lines = [
        f"{count} images of {settings.side} x {settings.side}, weights: "
        + ("the surrogate" if settings.weights is None else f"sha256 {network.sha256}"),
        f"{settings.device} ({machine}, {torch.get_num_threads()} threads), clean-fid's workers: {settings.workers}",
        *(f"{name:24} {rate:9.1f} images/s" for name, rate in rates.items()),
        f"largest difference between the features: {difference:.2g}",
    ]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
