"""Consistency training in continuous time: no interval between two noise levels, but a derivative at one.

Where the two levels of a pair meet, the gradient of iCT's loss becomes that of f . df/dsigma, with the change df/dsigma
of the model's output along the pair's line x + sigma z held fixed (Song et al. 2023, Theorem 10). Divided by its norm,
which is what the pseudo-Huber distance comes down to, it trains stably (sCT, Lu & Song 2024).
"""

import math
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from gcflow import register
from gcflow.objectives import Batch, Objective, ObjectiveContext
from gcflow.options import require
from gcflow.preconditioning import NoiseProcess, per_sample
from gcflow.schedules import Schedule


@register.objective
class ContinuousConsistency(Objective):
    """Consistency training in continuous time."""

    c: float = Field(
        default=0.1, ge=0, description="added to the norm of the derivative by ln sigma; small ones count less"
    )
    pairs: ClassVar[bool] = False
    passes: ClassVar[int] = 5
    kind: Literal["continuous"] = "continuous"

    def mean_loss(self, batch: Batch, context: ObjectiveContext) -> Tensor:
        """Half the squared distance from where the derivative, normalised, leads."""
        x, z, sigma = context.endpoints(batch), batch.noise, batch.high
        noisy = x + per_sample(sigma, x) * z
        with torch.no_grad():
            # Along the line, in ln sigma: d(x + sigma z) = sigma z and d sigma = sigma.
            _, slope = torch.func.jvp(
                lambda point, level: context.teacher(point, level, batch.dropout),
                (noisy, sigma),
                (per_sample(sigma, x) * z, sigma),
            )
        student = context.student(noisy, sigma, batch.dropout)
        slope = slope / (per_sample(torch.linalg.vector_norm(slope.flatten(1), dim=1), x) + self.c)
        target = student.detach() - slope
        return (student - target).flatten(1).square().sum(1).mean() / 2


@register.schedule
class LogUniform(Schedule):
    """One noise level per sample, of uniform ln sigma between low and high."""

    low: float = Field(gt=0, description="least noise level")
    high: float = Field(description="largest noise level")
    pairs: ClassVar[bool] = False
    kind: Literal["log-uniform"] = "log-uniform"

    def __post_init__(self) -> None:
        require(self.low < self.high, "high", self.high, "a number > low")

    def levels(
        self, step: int, steps: int, process: NoiseProcess, uniform: Tensor, normal: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The inverse of the distribution function."""
        sigma = self.low * (uniform * math.log(self.high / self.low)).exp()
        return sigma, sigma
