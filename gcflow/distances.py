"""Distances D(x, y) = phi(||x - y||) between the outputs of student and teacher."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from gcflow.lazy_torch import torch

if TYPE_CHECKING:
    from torch import Tensor

Distance = Callable[["Tensor", "Tensor"], "Tensor"]


def squared_l2(x: Tensor, y: Tensor) -> Tensor:
    """||x - y||^2 per sample: [B, ...] and [B, ...] to [B]."""
    return (x - y).flatten(1).square().sum(1)


def pseudo_huber(x: Tensor, y: Tensor, c: float) -> Tensor:
    """sqrt(||x - y||^2 + c^2) - c per sample, on the norm and not per element: [B, ...] and [B, ...] to [B].

    c = 0 gives the L2 norm, whose gradient is taken as 0 where x = y.
    """
    if c == 0:
        return torch.linalg.vector_norm((x - y).flatten(1), dim=1)
    return (squared_l2(x, y) + c**2).sqrt() - c


def huber_constant(dimension: int) -> float:
    """C = 0.00054 sqrt(d) (Song & Dhariwal 2024)."""
    return 0.00054 * dimension**0.5


def distance_for(name: str, c: float | None) -> Distance:
    """The distance of this name in params.yaml. c: constant of pseudo-Huber; None means that of `huber_constant`."""
    if name == "squared-l2":
        return squared_l2
    return lambda x, y: pseudo_huber(x, y, huber_constant(x[0].numel()) if c is None else c)
