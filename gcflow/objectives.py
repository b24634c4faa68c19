"""The three training objectives: consistency training, consistency distillation and denoising.

An objective maps a batch, in which everything random has been drawn, to its mean loss.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from gcflow.config import RunConfig, kind_of
from gcflow.couplings import EndpointPredictor
from gcflow.distances import distance_for, squared_l2
from gcflow.errors import GcflowError
from gcflow.oracles import Denoiser, velocity
from gcflow.preconditioning import per_sample
from gcflow.register import CouplingContext


class Batch(NamedTuple):
    """Samples of one step and all that was drawn for them.

    data: [B, ...], in model space. noise: z [B, ...], already paired with the data by the coupling's assignment.
    low, high: noise levels of the two points, [B]. take_gc: [B] bool on the CPU, whether the endpoint is predicted.
    dropout: keys of student and teacher, int32 [B]. predictor_dropout: those of the online endpoint predictor, which is
    in training as in the paper's authors' code; the EMA and frozen weights predict without dropout.
    """

    data: Tensor
    noise: Tensor
    low: Tensor
    high: Tensor
    take_gc: Tensor
    dropout: Tensor
    predictor_dropout: Tensor

    def split(self, size: int | None) -> list["Batch"]:
        """Micro-batches of at most `size` samples; the batch itself for None."""
        if size is None or size >= len(self.data):
            return [self]
        return [Batch(*parts) for parts in zip(*(torch.split(tensor, size) for tensor in self), strict=True)]


Objective = Callable[[Batch], Tensor]
Model = Callable[..., Tensor]


def mu_at(step: int, config: RunConfig) -> float:
    """Share of generator-augmented samples at `step`: 0 before `mu_from_step`, linear from start to end of training."""
    start, end = config.method.mu_range
    if config.method.mu_from_step is not None and step < config.method.mu_from_step:
        return 0.0
    return start + (end - start) * step / config.training.steps


def coupled_endpoints(batch: Batch, config: RunConfig, predict: EndpointPredictor, multiple: int) -> Tensor:
    """The clean endpoints, [B, ...], without gradient: the data, or what the coupling puts in their place.

    predict, multiple: see `CouplingContext`. Its noise level is the lower one of each sample.

    Raises:
        GcflowError: the coupling's endpoints are no tensor like the data.
    """
    coupling = config.method.pairing
    if not coupling.predicts:
        return batch.data
    with torch.no_grad():
        dropout = batch.predictor_dropout if config.method.predictor == "online" else None
        context = CouplingContext(batch.low, batch.take_gc, predict, multiple, dropout)
        found: object = coupling.endpoints(batch.data, batch.noise, context)
    if not isinstance(found, Tensor) or (found.shape, found.dtype) != (batch.data.shape, batch.data.dtype):
        expected = f"expected {in_words(batch.data)}"
        raise GcflowError(f"coupling {kind_of(coupling)}: endpoints gives {in_words(found)}; {expected}")
    return found


def in_words(found: object) -> str:
    """Type and shape of what a coupling or a network gave."""
    if not isinstance(found, Tensor):
        return type(found).__name__
    return f"{str(found.dtype).removeprefix('torch.')} {list(found.shape)} on {found.device}"


class ConsistencyObjective:
    """D(sg f(x_low, sigma_low), f(x_high, sigma_high)) / (sigma_high - sigma_low) (the paper's Eqs. 4 and 6).

    Both points lie on the line of a coupled pair (training: Eq. 6, with predicted endpoints Eqs. 13 to 15, both mixed
    Eq. 21), or the lower one is an Euler step along a denoiser's velocity (distillation: Eqs. 4 and 5). Student and
    teacher share weights and dropout mask.

    Args:
        config: the run.
        student: the consistency model in training, (x, sigma, dropout keys) to endpoints; its pass has a gradient.
        teacher: the same model, for passes without.
        predict: endpoint predictor of the generator-augmented coupling.
        denoiser: for distillation, D(x [B, ...], sigma [B]); otherwise None.
        multiple: see `CouplingContext`.
    """

    def __init__(
        self,
        config: RunConfig,
        student: Model,
        teacher: Model,
        predict: EndpointPredictor,
        denoiser: Denoiser | None = None,
        multiple: int = 1,
    ) -> None:
        self.config = config
        self.student, self.teacher = student, teacher
        self.predict, self.denoiser = predict, denoiser
        self.multiple = multiple

    def points(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """x_low and x_high, each [B, ...]."""
        x = coupled_endpoints(batch, self.config, self.predict, self.multiple)
        z, low, high = batch.noise, batch.low, batch.high
        x_high = x + per_sample(high, x) * z
        if self.denoiser is None:
            return x + per_sample(low, x) * z, x_high
        with torch.no_grad():
            return x_high + per_sample(low - high, x) * velocity(self.denoiser, x_high, high), x_high

    def __call__(self, batch: Batch) -> Tensor:
        """The mean loss of a batch."""
        x_low, x_high = self.points(batch)
        student = self.student(x_high, batch.high, batch.dropout)
        with torch.no_grad():
            teacher = self.teacher(x_low, batch.low, batch.dropout)
        distance = distance_for(self.config.training, x_high[0].numel())
        return (distance(teacher, student) / (batch.high - batch.low)).mean()


class DenoisingObjective:
    """EDM's weighted denoising error, per dimension (Karras et al. 2022, section 5), towards the coupling's endpoints.

    With the generator-augmented coupling the model learns E[x_hat | x_hat + sigma z], x_hat = g(x* + sigma z, sigma).

    Args:
        config: the run.
        model: the denoiser in training, (x, sigma, dropout keys) to denoised x; its pass has a gradient.
        predict: endpoint predictor g of the generator-augmented coupling, a frozen consistency model.
        multiple: see `CouplingContext`.
    """

    def __init__(self, config: RunConfig, model: Model, predict: EndpointPredictor, multiple: int = 1) -> None:
        self.config = config
        self.model = model
        self.predict = predict
        self.multiple = multiple

    def __call__(self, batch: Batch) -> Tensor:
        """The mean loss of a batch."""
        x = coupled_endpoints(batch, self.config, self.predict, self.multiple)
        sigma, data = batch.high, self.config.process.sigma_data
        weight = (sigma**2 + data**2) / (sigma * data) ** 2
        denoised = self.model(x + per_sample(sigma, x) * batch.noise, sigma, batch.dropout)
        return (weight * squared_l2(denoised, x)).mean() / x[0].numel()
