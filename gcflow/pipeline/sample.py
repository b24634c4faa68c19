"""`gcflow sample`: samples from a weights file, as images, as one array or as a grid."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gcflow.config import NoiseProcess, Weights
from gcflow.errors import GcflowError
from gcflow.files import atomic_path
from gcflow.pipeline.drawing.image_files import save_image, save_samples
from gcflow.pipeline.progress import Progress, say
from gcflow.sampling import Sampler, generate
from gcflow.weights import ModelSpec, is_denoiser, load_model

ENDINGS = (".npz", ".npy", ".png", "")
# Their files are named by six digits.
MOST_IMAGES = 10**6


def choose_sampler(spec: ModelSpec, metadata: dict[str, Any], sigmas: tuple[float, ...], heun_steps: int) -> Sampler:
    """The sampler that fits a weights file: few-step for a consistency model, Heun's for a denoiser.

    Raises:
        GcflowError: noise levels that do not descend, or that are given to a denoiser.
    """
    given = " ".join(f"--sigma {sigma:g}" for sigma in sigmas)
    if is_denoiser(metadata):
        if sigmas:
            raise GcflowError(f"{given}: the weights are a denoiser's; its steps are set by --heun-steps")
        return Sampler("heun", heun_steps=heun_steps)
    process: NoiseProcess = spec.process
    if not all(high > low for high, low in pairwise([process.sigma_max, *sigmas, process.sigma_min])):
        bounds = f"between {process.sigma_max:g} and {process.sigma_min:g}"
        raise GcflowError(f"{given}: expected descending noise levels {bounds}")
    method = metadata["config"]["method"] if "config" in metadata else {}
    return Sampler("consistency", sigmas, boundary=method.get("sampling_boundary"))


def sample_to_file(
    weights_file: Path,
    images: range,
    seed: int,
    sigmas: tuple[float, ...],
    weights: Weights,
    out: Path,
    device: str = "cpu",
    batch: int = 500,
    heun_steps: int = 18,
) -> None:
    """Draws samples and writes them: a folder of PNGs (no ending), .npz with provenance, .npy, or a grid (.png).

    Image n of a seed is the same whatever `images`, `batch` and the output's form.

    Args:
        weights_file: of `gcflow train` or `gcflow import-edm`.
        images: numbers of the images to draw.
        seed: of the noise.
        sigmas: intermediate noise levels of a consistency model, descending.
        weights: EMA or raw.
        out: where to write.
        device: torch device.
        batch: images drawn at once.
        heun_steps: levels of noise for a denoiser.

    Raises:
        GcflowError: the weights are missing or damaged, `out` has another ending, there are too many images, or data
            that are no images are to be written as images.
    """
    if images.stop > MOST_IMAGES:
        raise GcflowError(
            f"--first and --count: there is no image {images.stop - 1}; the last one is {MOST_IMAGES - 1}"
        )
    if out.suffix not in ENDINGS:
        raise GcflowError(f"{out}: expected .npz, .npy, .png (a grid), or no ending (a folder of PNGs)")
    model, spec, metadata = load_model(weights_file, weights, device)
    sampler = choose_sampler(spec, metadata, sigmas, heun_steps)
    pictures = len(spec.shape) == 3
    if not pictures and out.suffix == "":
        raise GcflowError(f"{out}: the samples are points, not images; write them to .npz, .npy or .png (a scatter)")
    dtype = torch.uint8 if pictures else torch.float32
    name = metadata.get("config", {}).get("dataset", weights_file.name)
    parts: list[np.ndarray] = []
    done = 0
    with Progress(f"{name} samples", len(images), unit="sample") as progress:
        for part in generate(model, sampler, spec.shape, images, seed, batch, dtype):
            if out.suffix == "":
                for number, image in enumerate(part.cpu().numpy(), start=images.start + done):
                    with atomic_path(out / f"{number:06d}.png") as temporary:
                        save_image(image, temporary)
            else:
                parts.append(part.cpu().numpy())
            done += len(part)
            progress.update(done)
    if out.suffix:
        record = {"seed": seed, "weights": weights, "boundary": sampler.boundary_of(model)}
        _write(out, np.concatenate(parts), images, {**record, **_provenance(sampler, metadata)})
    say(f"{len(images)} samples from {weights_file} ({weights} weights, {sampler.evaluations} network passes): {out}")


def _provenance(sampler: Sampler, metadata: dict[str, Any]) -> dict[str, Any]:
    return {
        "sampler": sampler.name,
        "network_evaluations": sampler.evaluations,
        "intermediate_sigmas": list(sampler.sigmas),
        "step": metadata.get("step", -1),
        "config_hash": metadata.get("config_hash", ""),
    }


def _write(out: Path, samples: np.ndarray, images: range, record: dict[str, Any]) -> None:
    with atomic_path(out) as temporary:
        if out.suffix == ".png":
            save_samples(samples, max(1, int(len(samples) ** 0.5)), temporary)
        elif out.suffix == ".npy":
            np.save(temporary, samples)
        else:
            np.savez(temporary, samples=samples, numbers=np.arange(images.start, images.stop), **record)
