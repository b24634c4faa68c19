"""What tests of the core are made of: draws, a run's configuration, its batches, its loss, one line of refusal."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from projects import write_project
from torch import Tensor

from gcflow.batches import Batches
from gcflow.config import (
    EctSchedule,
    EdmSchedule,
    IctSchedule,
    MethodConfig,
    NetworkConfig,
    NoiseProcess,
    RunConfig,
    RunReference,
    TrainingConfig,
)
from gcflow.dinov2 import VisionTransformer
from gcflow.distances import distance_for
from gcflow.distributed import World
from gcflow.errors import GcflowError
from gcflow.objectives import Batch, ObjectiveContext
from gcflow.pipeline.params import Params

ICT, ECT, EDM = IctSchedule(s0=3, s1=12), EctSchedule(stage_every=5), EdmSchedule()
MLP = NetworkConfig("mlp", channels=8, blocks=1, dropout=0.25)
UNET = NetworkConfig("ddpm++", channels=8, blocks=1, multipliers=(1, 2), dropout=0.25)
NCSN = NetworkConfig("ncsn++", channels=8, blocks=1, multipliers=(1, 2), dropout=0.25)
METHODS = {
    "ic": MethodConfig("consistency"),
    "ot": MethodConfig("consistency", "ot"),
    "gc": MethodConfig("consistency", "gc", mu=0.5, predictor="ema"),
    "gc-online": MethodConfig("consistency", "gc", mu=(0.2, 0.9), predictor="online"),
    "gc-frozen": MethodConfig("consistency", "gc", mu=0.5, predictor=RunReference("ic", step=3)),
    "cd": MethodConfig("distillation", teacher="exact"),
    "cd-ot": MethodConfig("distillation", "ot", teacher="exact"),
    "ect": MethodConfig("consistency"),
    "ect-gc": MethodConfig("consistency", "gc", mu=0.3, predictor="ema"),
    "denoiser": MethodConfig("denoising"),
    "denoiser-ot": MethodConfig("denoising", "ot"),
    "denoiser-gc": MethodConfig("denoising", "gc", mu=0.5, predictor=RunReference("ic")),
}


def gaussian(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def gaussian64(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def double(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def random_images(*shape: int, seed: int = 0) -> Tensor:
    """uint8."""
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def load(folder: Path, document: dict[str, Any]) -> Params:
    """The grid of a project that is written for it."""
    return Params(write_project(folder, document) / "params.yaml")


def randomised(model: Any) -> Any:
    """The model, with weights at which every gradient counts."""
    for i, parameter in enumerate(model.parameters()):
        parameter.data += 0.1 * gaussian(i, *parameter.shape)
    return model


def dinov2_weights(path: Path, width: int = 64, depth: int = 2, grid: int = 3) -> Path:
    """Writes random weights as files of DINOv2's torch hub name them, of a network of this size."""
    state = randomised(VisionTransformer(width, depth, grid)).state_dict()
    torch.save(state | {"mask_token": torch.zeros(1, width)}, path)
    return path


def run_config(
    method: str | MethodConfig = "ic",
    schedule: Any = None,
    process: NoiseProcess = NoiseProcess(),  # noqa: B008
    network: NetworkConfig = MLP,
    seed: int = 0,
    **training: Any,
) -> RunConfig:
    """Of a method, or of one of METHODS by its name; by default with the schedule of that name or objective."""
    name = method if isinstance(method, str) else "method"
    how = METHODS[method] if isinstance(method, str) else method
    usual = EDM if how.objective.denoises else ECT if name.startswith("ect") else ICT
    settings = {"steps": 100, "batch": 64, "learning_rate": 1e-3} | training
    settings = {"snapshot_every": settings["steps"], "schedule": schedule or usual} | settings
    if usual is ECT:
        settings.setdefault("huber_c", 0.0)
    return RunConfig("toy", name, seed, process, network, TrainingConfig(**settings), how)


def grains_of(config: RunConfig, data: Tensor, step: int = 0) -> list[Batch]:
    """A step's grains of a run on the CPU."""
    with Batches(config, data, torch.device("cpu"), World()) as batches:
        return batches[step]


def joined(grains: Iterable[Batch]) -> Batch:
    """Several grains end to end; `to_predict` counts in each from 0."""
    return Batch(*(torch.cat(parts) for parts in zip(*grains, strict=True)))


def batch_of(config: RunConfig, data: Tensor, step: int = 0) -> Batch:
    """A step's whole batch of a run on the CPU."""
    (batch,) = grains_of(replace(config, training=replace(config.training, grain=None)), data, step)
    return batch


def must_not_be_called(x: Tensor, sigma: Tensor) -> Tensor:
    raise AssertionError("no sample takes the generator-augmented coupling")


class Loss:
    """The objective of `config`; called with a batch, it gives its mean loss. teacher: by default the student."""

    def __init__(
        self,
        config: RunConfig,
        student: Any,
        predict: Any = must_not_be_called,
        denoiser: Any = None,
        teacher: Any = None,
    ) -> None:
        self.objective = config.method.objective
        self.context = ObjectiveContext(
            student=student,
            teacher=teacher or student,
            coupling=config.method.coupling,
            predict=predict,
            distance=distance_for(config.training.distance, config.training.huber_c),
            process=config.process,
            denoiser=denoiser,
            predictor_drops=config.method.predictor == "online",
        )

    def __call__(self, batch: Batch) -> Tensor:
        return self.objective.mean_loss(batch, self.context)

    def points(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """x_low and x_high: what teacher and student are given."""
        seen: dict[str, Tensor] = {}

        def recorded(name: str) -> Any:
            return lambda x, sigma, keys: seen.setdefault(name, x)

        self.objective.mean_loss(batch, replace(self.context, student=recorded("student"), teacher=recorded("teacher")))
        return seen["teacher"], seen["student"]


def refusal(call: Callable[..., Any], *args: Any, **options: Any) -> str:
    """The one line with which a call is refused."""
    with pytest.raises(GcflowError) as caught:
        call(*args, **options)
    (line,) = str(caught.value).splitlines()
    return line


class Outcome(NamedTuple):
    """Of a call of the command line."""

    code: int
    output: str
    errors: str


def refused(outcome: Outcome, *named: str, code: int = 2) -> str:
    """Checks that a call ended in one line of error that names what is wrong; returns it."""
    assert "Traceback" not in outcome.errors
    (line,) = outcome.errors.splitlines()
    assert (outcome.code, outcome.output) == (code, "")
    assert line.startswith("gcflow: error: ")
    for name in named:
        assert name in line
    return line


def refusal_of(params: dict[str, Any], folder: Path, file: str = "params.yaml") -> str:
    """The one line with which a project in `folder` is refused for a file of it, without the file's name."""
    line = refusal(Params, write_project(folder, params) / "params.yaml")
    assert line.startswith(f"{folder / file}: ")
    return line.removeprefix(f"{folder / file}: ")
