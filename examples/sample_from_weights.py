"""Draws samples from a weights file of `gcflow train`, `gcflow import-edm` or train_on_tensor.py.

python examples/sample_from_weights.py weights.safetensors samples.npy
"""

import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import gcflow


def sample(weights: Path, count: int, seed: int = 0) -> Tensor:
    """Images, uint8 [count, C, H, W], each a function of the seed and its number; one step, or 35 of a denoiser."""
    model, spec, header = gcflow.weights.load_model(weights)
    sampler = gcflow.sampling.Sampler("heun" if gcflow.weights.is_denoiser(header) else "consistency")
    return torch.cat(list(gcflow.sampling.generate(model, sampler, spec.shape, range(count), seed)))


if __name__ == "__main__":
    np.save(sys.argv[2], sample(Path(sys.argv[1]), 16).numpy())
