"""Couplings: which clean endpoint goes with which noise.

A coupling re-pairs the noises of a batch with its data (`assignment`), replaces endpoints by predictions
(`endpoints`), or does neither. `gcflow.register` has the contract. torch is imported when batches are made, so that
the grid can be read in an instant.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from gcflow import register
from gcflow.register import Coupling, CouplingContext

if TYPE_CHECKING:
    from torch import Tensor

EndpointPredictor = Callable[..., "Tensor"]


def optimal_assignment(x: "Tensor", z: "Tensor") -> "Tensor":
    """OT: the permutation of the noises of least sum of ||x - z||^2 (exact), int64 [B]."""
    import torch

    # Here, because it takes a third of a second that only this coupling needs.
    from scipy.optimize import linear_sum_assignment

    # ||x||^2 + ||z||^2 is the same for every assignment, so only the inner products decide.
    similarity = x.flatten(1).double() @ z.flatten(1).double().T
    _, columns = linear_sum_assignment(similarity.cpu().numpy(), maximize=True)
    return torch.from_numpy(columns)


def generator_augmented(x: "Tensor", z: "Tensor", context: CouplingContext) -> "Tensor":
    """GC(mu): where `take_gc`, the endpoint is the prediction g(x + sigma_low z, sigma_low).

    The prediction (the paper's Eqs. 13 to 15; mixed with independent pairs Eq. 21, Algorithm 1) is computed only for
    those samples; their noise is kept.
    """
    import torch

    chosen = context.take_gc.nonzero().squeeze(1)
    if len(chosen) == 0:
        return x
    count = len(chosen)
    chosen = torch.cat([chosen, chosen[-1:].expand(-count % context.multiple)]).to(x.device, non_blocking=True)
    sigma = context.sigma_low[chosen]
    noisy = x[chosen] + sigma.reshape(-1, *[1] * (x.ndim - 1)) * z[chosen]
    endpoints = x.clone()
    keys = () if context.dropout is None else (context.dropout[chosen],)
    endpoints[chosen[:count]] = context.predict(noisy, sigma, *keys)[:count]
    return endpoints


@register.coupling
class Independent(Coupling):
    """IC: every pair as it was drawn."""

    kind: Literal["ic"] = "ic"


@register.coupling
class OptimalTransport(Coupling):
    """OT within the batch."""

    kind: Literal["ot"] = "ot"

    def assignment(self, x: "Tensor", z: "Tensor", uniform: "Tensor") -> "Tensor":
        """See `optimal_assignment`."""
        return optimal_assignment(x, z)


@register.coupling
class GeneratorAugmented(Coupling):
    """GC(mu)."""

    kind: Literal["gc"] = "gc"

    def endpoints(self, x: "Tensor", z: "Tensor", context: CouplingContext) -> "Tensor":
        """See `generator_augmented`."""
        return generator_augmented(x, z, context)
