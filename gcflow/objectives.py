"""The training objectives: consistency training (the paper's Algorithm 1), consistency distillation and denoising.

An objective maps a batch, in which everything random has been drawn (`gcflow.batches`), to its mean loss.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

from gcflow import register
from gcflow.couplings import Coupling, CouplingContext, EndpointPredictor
from gcflow.distances import Distance, squared_l2
from gcflow.errors import GcflowError
from gcflow.lazy_torch import torch
from gcflow.options import Options
from gcflow.oracles import Denoiser, velocity
from gcflow.preconditioning import NoiseProcess, per_sample

if TYPE_CHECKING:
    from torch import Tensor

Model = Callable[..., "Tensor"]


class Batch(NamedTuple):
    """Samples of one grain of a step and all that was drawn for them, on the device.

    data: [B, ...], in model space. noise: z [B, ...], already paired with the data by the coupling's assignment.
    low, high: noise levels of the two points, [B]. take_gc: [B] bool, whether the endpoint is predicted.
    dropout: keys of student and teacher, int32 [B]. predictor_dropout: those of the online endpoint predictor, which is
    in training as in the paper's authors' code; the EMA and frozen weights predict without dropout.
    to_predict: int64 [B'], of which samples an endpoint is predicted; see `gcflow.couplings.samples_to_predict`.
    """

    data: Tensor
    noise: Tensor
    low: Tensor
    high: Tensor
    take_gc: Tensor
    dropout: Tensor
    predictor_dropout: Tensor
    to_predict: Tensor


def in_words(found: object) -> str:
    """Type and shape of what a coupling or a network gave."""
    if not isinstance(found, torch.Tensor):
        return type(found).__name__
    return f"{str(found.dtype).removeprefix('torch.')} {list(found.shape)} on {found.device}"


@dataclass(frozen=True)
class ObjectiveContext:
    """The models of a run, and the choices of its method that an objective needs.

    student: the model in training, (x [B, ...], sigma [B], dropout keys) to endpoints; its pass has a gradient.
    teacher: the same model, for passes without; to be called under `torch.no_grad`.
    coupling, predict: see `gcflow.couplings.CouplingContext`.
    predictor_drops: whether `predict` takes dropout keys.
    denoiser: the teacher of a distillation, D(x [B, ...], sigma [B]); otherwise None.
    distance: D(x, y) per sample, [B, ...] and [B, ...] to [B].
    process: of the noise.
    """

    student: Model
    teacher: Model
    coupling: Coupling
    predict: EndpointPredictor
    distance: Distance
    process: NoiseProcess
    denoiser: Denoiser | None = None
    predictor_drops: bool = False

    def endpoints(self, batch: Batch) -> Tensor:
        """The clean endpoints, [B, ...], without gradient: the data, or what the coupling puts in their place.

        The coupling's noise level is the lower one of each sample.

        Raises:
            GcflowError: the coupling's endpoints are no tensor like the data.
        """
        if not self.coupling.predicts:
            return batch.data
        with torch.no_grad():
            keys = batch.predictor_dropout if self.predictor_drops else None
            context = CouplingContext(batch.low, batch.take_gc, batch.to_predict, self.predict, keys)
            found: object = self.coupling.endpoints(batch.data, batch.noise, context)
        if not isinstance(found, torch.Tensor) or (found.shape, found.dtype) != (batch.data.shape, batch.data.dtype):
            problem = f"endpoints gives {in_words(found)}; expected {in_words(batch.data)}"
            raise GcflowError(f"coupling {self.coupling.kind}: {problem}")
        return found


@register.objective.contract
class Objective(Options):
    """A quantity that training minimises. Its name is its field `kind`.

    pairs: whether it takes two noise levels per sample, or a single one twice: which schedules fit it.
    denoises: whether it trains a denoiser, sampled along its PF-ODE, or a consistency model, sampled in one step.
    distils: whether it needs a teacher.
    passes: of the model per sample in a step, a backward pass counted as two; what plans reckon with.
    """

    pairs: ClassVar[bool] = True
    denoises: ClassVar[bool] = False
    distils: ClassVar[bool] = False
    passes: ClassVar[int] = 4

    if TYPE_CHECKING:

        @property
        def kind(self) -> str:
            """Its name."""

    def mean_loss(self, batch: Batch, context: ObjectiveContext) -> Tensor:
        """The mean loss of a batch, a scalar; it must be a function of its arguments alone."""
        raise NotImplementedError


@register.objective
class ConsistencyTraining(Objective):
    """CT: D(sg f(x_low, sigma_low), f(x_high, sigma_high)) / (sigma_high - sigma_low) on a coupled pair (Eq. 6)."""

    kind: Literal["consistency"] = "consistency"

    def mean_loss(self, batch: Batch, context: ObjectiveContext) -> Tensor:
        """A step of Algorithm 1."""
        # Pair: the batch's noises are those that the coupling's assignment gave to its data (IC, OT).
        z, low, high = batch.noise, batch.low, batch.high
        # Predict the endpoints of the samples that take GC, each with probability mu (Eqs. 13 to 15, 21).
        x = context.endpoints(batch)
        # Noise the endpoint twice with the same z.
        x_high = x + per_sample(high, x) * z
        x_low = self.lower_point(x, x_high, batch, context)
        # Student above, teacher below: the same weights and dropout mask, no gradient through the teacher.
        student = context.student(x_high, high, batch.dropout)
        with torch.no_grad():
            teacher = context.teacher(x_low, low, batch.dropout)
        # Distance, weighted by lambda.
        return (context.distance(teacher, student) / (high - low)).mean()

    def lower_point(self, x: Tensor, x_high: Tensor, batch: Batch, context: ObjectiveContext) -> Tensor:
        """x_low [B, ...], for endpoints x and upper points x_high, [B, ...] each."""
        return x + per_sample(batch.low, x) * batch.noise


@register.objective
class ConsistencyDistillation(ConsistencyTraining):
    """CD (Eq. 4): the same, but that the lower point is an Euler step along a denoiser's velocity (Eq. 5)."""

    distils: ClassVar[bool] = True
    kind: Literal["distillation"] = "distillation"  # type: ignore[assignment]

    def lower_point(self, x: Tensor, x_high: Tensor, batch: Batch, context: ObjectiveContext) -> Tensor:
        """x_high + (sigma_low - sigma_high) v(x_high, sigma_high)."""
        assert context.denoiser is not None
        with torch.no_grad():
            return x_high + per_sample(batch.low - batch.high, x) * velocity(context.denoiser, x_high, batch.high)


@register.objective
class Denoising(Objective):
    """EDM's weighted denoising error, per dimension (Karras et al. 2022, section 5), towards the coupling's endpoints.

    With the generator-augmented coupling the model learns E[x_hat | x_hat + sigma z], x_hat = g(x* + sigma z, sigma).
    """

    pairs: ClassVar[bool] = False
    denoises: ClassVar[bool] = True
    passes: ClassVar[int] = 3
    kind: Literal["denoising"] = "denoising"

    def mean_loss(self, batch: Batch, context: ObjectiveContext) -> Tensor:
        """The mean loss of a batch."""
        x, sigma, data = context.endpoints(batch), batch.high, context.process.sigma_data
        weight = (sigma**2 + data**2) / (sigma * data) ** 2
        denoised = context.student(x + per_sample(sigma, x) * batch.noise, sigma, batch.dropout)
        return (weight * squared_l2(denoised, x)).mean() / x[0].numel()
