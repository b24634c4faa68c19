"""Trains a consistency model on a tensor of images; prints the loss as it falls, and saves the weights.

python examples/train_on_tensor.py weights.safetensors
"""

import sys
from pathlib import Path

import torch
from torch import Tensor

import gcflow
from gcflow.config import Cadence, MethodConfig, NetworkConfig, NoiseProcess, RunConfig, TrainingConfig
from gcflow.couplings import GeneratorAugmented
from gcflow.objectives import ConsistencyTraining


class Log(gcflow.training.Observer):
    """Prints every line of metrics."""

    def logged(self, record: dict[str, float]) -> None:
        """A line of metrics."""
        print(f"step {record['step']} loss {record['loss']:.4f}")


def train(images: Tensor, out: Path) -> None:
    """Trains on uint8 images [n, C, H, W] with generator-augmented pairs, and writes the weights to `out`."""
    in_model_space = gcflow.preconditioning.to_model_space(images, NoiseProcess())
    config = RunConfig(
        dataset="mine",
        method_name="gc",
        seed=0,
        process=NoiseProcess(sigma_data=in_model_space.std().item(), data_mean=in_model_space.mean().item()),
        network=NetworkConfig("mlp", channels=64, blocks=2),
        training=TrainingConfig(400, 64, 1e-3, snapshot_every=400, optimizer="adam", ema_decay=0.98),
        method=MethodConfig(ConsistencyTraining(), coupling=GeneratorAugmented(), mu=0.5, predictor="ema"),
    )
    state = gcflow.training.initial_state(config, tuple(images.shape[1:]))
    gcflow.training.train(config, images, state, Log(), Cadence(log_every=100))
    header = gcflow.weights.weights_metadata(config, state.step, tuple(images.shape[1:]))
    gcflow.weights.save_tensors(out, state.weights(), header)


if __name__ == "__main__":
    # Stripes, each image shifted by some pixels.
    shifts = torch.randint(8, (500, 1, 1, 1), generator=torch.Generator().manual_seed(0))
    train(((torch.arange(8) + shifts) % 8 < 4).mul(255).byte().expand(-1, 1, 8, 8).contiguous(), Path(sys.argv[1]))
