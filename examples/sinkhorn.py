"""Entropic optimal transport: every sample draws its noise from the plan that Sinkhorn's iterations find."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gcflow import register
from gcflow.couplings import Coupling
from gcflow.options import require


@register.coupling
@dataclass(frozen=True)
class Sinkhorn(Coupling):
    """epsilon: weight of the entropy, in units of the mean cost; small is OT, large is IC."""

    epsilon: float
    iterations: int = 100
    kind: Literal["sinkhorn"] = "sinkhorn"

    def __post_init__(self) -> None:
        require(self.epsilon > 0, "epsilon", self.epsilon, "a number > 0")
        require(self.iterations >= 1, "iterations", self.iterations, "an integer >= 1")

    def plan(self, x: Tensor, z: Tensor) -> Tensor:
        """Chance of each noise for each sample, [B, B]; rows sum to 1, and so do columns when it has converged."""
        cost = torch.cdist(x.flatten(1).double(), z.flatten(1).double()).square()
        logits = -cost / (self.epsilon * cost.mean())
        for _ in range(self.iterations):
            logits = logits - logits.logsumexp(0)
            logits = logits - logits.logsumexp(1, keepdim=True)
        return logits.exp()

    def assignment(self, x: Tensor, z: Tensor, uniform: Tensor) -> Tensor:
        """Inverts the distribution function of each sample's row."""
        cumulative = self.plan(x, z).cumsum(1).cpu()
        return torch.searchsorted(cumulative, uniform[:, None] * cumulative[:, -1:]).squeeze(1)
