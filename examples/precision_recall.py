"""Precision and recall of generated samples (Kynkäänniemi et al. 2019, equations 1 and 2)."""

from collections.abc import Iterator
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from gcflow import register
from gcflow.metrics import Metric


@register.metric
class PrecisionRecall(Metric):
    """Precision and recall; the ball around a sample reaches to its k-th nearest neighbour in its own set."""

    neighbours: int = Field(default=3, ge=1, description="k")
    kind: Literal["precision-recall"] = "precision-recall"
    columns: ClassVar[dict[str, str]] = {"precision": "precision ↑", "recall": "recall ↑"}

    def covered(self, points: Tensor, others: Tensor) -> float:
        """Share of points [n, F] in the ball of at least one of the others [m, F], m > k."""

        def distances(to: Tensor) -> Iterator[Tensor]:
            parts = to.split(1000)
            return (torch.cdist(part, others, compute_mode="donot_use_mm_for_euclid_dist") for part in parts)

        # The nearest of its own set is each sample itself.
        radii = torch.cat([part.kthvalue(self.neighbours + 1).values for part in distances(others)])
        return torch.cat([(part <= radii).any(1) for part in distances(points)]).double().mean().item()

    def compare(self, generated: Tensor, real: Tensor) -> dict[str, float]:
        """Precision: of the generated that are like real ones. Recall: of the real that are like generated ones."""
        return {"precision": self.covered(generated, real), "recall": self.covered(real, generated)}
