"""How much work a run is, counted without a clock: operations of a pass, passes of a training step."""

from dataclasses import replace
from functools import lru_cache

import torch
from torch.utils.flop_counter import FlopCounterMode

from gcflow.config import RunConfig, without_dropout
from gcflow.objectives import mu_at
from gcflow.weights import ModelSpec, spec_of


@lru_cache(maxsize=64)
def _operations(spec: ModelSpec) -> int:
    model = spec.build()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, *spec.shape), torch.ones(1))
    operations: int = counter.get_total_flops()
    return operations


def pass_operations(config: RunConfig, shape: tuple[int, ...]) -> int:
    """Floating-point operations of one pass of the network for one sample: products and sums of its layers."""
    spec = spec_of(config, shape)
    return _operations(replace(spec, network=without_dropout(spec.network)))


def helper_passes_per_sample(config: RunConfig) -> float:
    """Forward passes of the endpoint predictor or of a trained teacher in a training step, per sample."""
    distils = config.method.objective == "distillation" and config.method.teacher != "exact"
    return 1.0 if distils else mu_at(config.training.steps // 2, config)


def passes_per_sample(config: RunConfig) -> float:
    """Forward passes that a training step costs per sample, a backward pass counted as two."""
    own = 3.0 if config.method.objective == "denoising" else 4.0
    return own + helper_passes_per_sample(config)


def mean_passes_per_sample(config: RunConfig) -> float:
    """`passes_per_sample` on average over a training whose share of generator-augmented pairs changes."""
    steps = config.training.steps
    looked_at = range(0, steps, max(1, steps // 200))
    mean = sum(mu_at(step, config) for step in looked_at) / len(looked_at)
    return passes_per_sample(config) - mu_at(steps // 2, config) + mean
