"""Density and coverage of generated samples (Naeem et al. 2020, equations 4 and 5)."""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from gcflow import register
from gcflow.metrics import Metric


@register.metric
class DensityCoverage(Metric):
    """Density and coverage; the ball around a real sample reaches to its k-th nearest neighbour among the real ones."""

    neighbours: int = Field(default=5, ge=1, description="k")
    kind: Literal["density-coverage"] = "density-coverage"
    columns: ClassVar[dict[str, str]] = {"density": "density ↑", "coverage": "coverage ↑"}

    def compare(self, generated: Tensor, real: Tensor) -> dict[str, float]:
        """Density: real balls around a generated sample, over k. Coverage: share of balls with a generated sample."""
        counts = []
        for part in real.split(1000):
            # The nearest of its own set is each sample itself.
            radii = self.distances(part, real).kthvalue(self.neighbours + 1, keepdim=True).values
            counts.append((self.distances(part, generated) <= radii).sum(1))
        inside = torch.cat(counts)
        density = inside.sum().item() / (self.neighbours * len(generated))
        return {"density": density, "coverage": (inside > 0).double().mean().item()}

    def distances(self, points: Tensor, others: Tensor) -> Tensor:
        """Of each of [n, F] to each of [m, F]: [n, m]."""
        return torch.cdist(points, others, compute_mode="donot_use_mm_for_euclid_dist")
