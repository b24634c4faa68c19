"""How fast each network of a data set samples, with the settings of `gcflow evaluate`."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from gcflow.config import RunConfig, TrainingConfig, to_dict, without_dropout
from gcflow.pipeline.evaluate import samplers
from gcflow.pipeline.params import Params
from gcflow.pipeline.planning.work import pass_operations
from gcflow.precision import set_precision
from gcflow.register import Network
from gcflow.sampling import Sampler, generate
from gcflow.weights import spec_of

SAMPLES = 512
# Seconds that a sampler is timed for, and what one batch may take at most.
PATIENCE, LONGEST_SAMPLING = 2.0, 20.0


def synchronise(device: str) -> None:
    """Waits until a GPU has done what it was given."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def seconds(work: Callable[[], object], device: str) -> float:
    """Wall time of `work`."""
    synchronise(device)
    begun = time.perf_counter()
    work()
    synchronise(device)
    return time.perf_counter() - begun


@contextmanager
def as_evaluated(training: TrainingConfig) -> Iterator[None]:
    """The settings of torch with which `gcflow evaluate` samples a run; what was set before, afterwards."""
    backends: tuple[Any, ...] = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [backend.allow_tf32 for backend in backends], torch.backends.cudnn.deterministic
    set_precision(training)
    try:
        yield
    finally:
        for backend, allowed in zip(backends, before[0], strict=True):
            backend.allow_tf32 = allowed
        torch.backends.cudnn.deterministic = before[1]


def bench_sampling(config: RunConfig, params: Params, shape: tuple[int, ...], device: str) -> dict[str, float]:
    """Images per second of each sampler of the evaluation protocol, noise included; none that takes very long."""
    model = spec_of(config, shape).build().to(device).eval().requires_grad_(False)
    settings = params.dataset(config.dataset).evaluation
    results: dict[str, float] = {}
    for sampler in samplers(config, settings):

        def draw(images: int, batch: int, sampler: Sampler = sampler) -> None:
            for _ in generate(model, sampler, shape, range(images), 0, batch, torch.float32):
                pass

        batch = min(config.training.batch, settings.batch)
        x = torch.zeros(batch, *shape, device=device)
        passes = partial(model, x, torch.ones(batch, device=device))
        passes()
        taken = seconds(passes, device) * sampler.evaluations
        if taken > LONGEST_SAMPLING:
            continue
        # A larger batch, as in the evaluation, where that does not take long.
        batch = settings.batch if taken * settings.batch / batch < PATIENCE else batch
        draw(batch, batch)
        taken = seconds(partial(draw, batch, batch), device)
        count = max(1, min(int(PATIENCE / taken), -(-SAMPLES // batch))) * batch
        results[f"{sampler.name}-{sampler.evaluations}"] = count / seconds(partial(draw, count, batch), device)
    return results


def bench_networks(
    params: Params, configs: list[RunConfig], shape: tuple[int, ...], device: str
) -> list[dict[str, Any]]:
    """Sampling with each distinct network of these runs: by a consistency model of it, and by a denoiser."""
    distinct: dict[Network, dict[str, RunConfig]] = {}
    for config in configs:
        kind = "denoiser" if config.method.objective == "denoising" else "consistency"
        distinct.setdefault(without_dropout(config.network), {}).setdefault(kind, config)
    rows = []
    for network, examples in distinct.items():
        rates: dict[str, float] = {}
        for config in examples.values():
            with as_evaluated(config.training):
                rates |= bench_sampling(config, params, shape, device)
        operations = pass_operations(next(iter(examples.values())), shape)
        rows.append({"network": to_dict(network), "operations_per_pass": operations, "images_per_second": rates})
    return rows
