"""Entropic optimal transport: every sample draws its noise from the plan that Sinkhorn's iterations find."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from gcflow import register
from gcflow.couplings import Coupling


@register.coupling
class Sinkhorn(Coupling):
    """Entropic optimal transport within the batch."""

    epsilon: float = Field(
        gt=0, description="weight of the entropy, in units of the mean cost; small is OT, large is IC"
    )
    iterations: int = Field(default=100, ge=1, description="of Sinkhorn's algorithm")
    kind: Literal["sinkhorn"] = "sinkhorn"

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
