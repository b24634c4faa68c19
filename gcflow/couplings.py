"""Couplings: which clean endpoint goes with which noise.

A coupling re-pairs the noises of a batch with its data (`assignment`), replaces endpoints by predictions
(`endpoints`), or does neither. A new one is a function and an entry in `COUPLINGS`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

EndpointPredictor = Callable[[Tensor, Tensor], Tensor]
Assignment = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class CouplingContext:
    """What a coupling may look at besides data and noise.

    sigma_low: [B], the lower noise level of each sample's interval, or a denoiser's only one.
    take_gc: [B] bool on the CPU, which samples take the generator-augmented coupling.
    predict: endpoint predictor g(x_t [B', ...], sigma [B']) -> endpoint [B', ...], without gradient.
    multiple: B' is rounded up to a multiple of this, so that a compiled predictor sees few shapes.
    """

    sigma_low: Tensor
    take_gc: Tensor
    predict: EndpointPredictor
    multiple: int = 1


Endpoints = Callable[[Tensor, Tensor, CouplingContext], Tensor]


class Coupling(NamedTuple):
    """What a coupling does to a batch.

    assignment: (x [B, ...], z [B, ...]) to the index of the noise that each sample takes, int64 [B] on the CPU. It
    depends on data and noise alone, and is computed ahead, beside the steps before.
    endpoints: (x, z, context) to the endpoints in the place of x.
    """

    assignment: Assignment | None = None
    endpoints: Endpoints | None = None


def optimal_assignment(x: Tensor, z: Tensor) -> Tensor:
    """OT: the permutation of the noises of least sum of ||x - z||^2 (exact), int64 [B]."""
    # Here, because it takes a third of a second that only this coupling needs.
    from scipy.optimize import linear_sum_assignment

    # ||x||^2 + ||z||^2 is the same for every assignment, so only the inner products decide.
    similarity = x.flatten(1).double() @ z.flatten(1).double().T
    _, columns = linear_sum_assignment(similarity.cpu().numpy(), maximize=True)
    return torch.from_numpy(columns)


def generator_augmented(x: Tensor, z: Tensor, context: CouplingContext) -> Tensor:
    """GC(mu): where `take_gc`, the endpoint is the prediction g(x + sigma_low z, sigma_low) (paper, Algorithm 1).

    The prediction is computed only for those samples; their noise is kept.
    """
    chosen = context.take_gc.nonzero().squeeze(1)
    if len(chosen) == 0:
        return x
    count = len(chosen)
    chosen = torch.cat([chosen, chosen[-1:].expand(-count % context.multiple)]).to(x.device, non_blocking=True)
    sigma = context.sigma_low[chosen]
    noisy = x[chosen] + sigma.reshape(-1, *[1] * (x.ndim - 1)) * z[chosen]
    endpoints = x.clone()
    endpoints[chosen[:count]] = context.predict(noisy, sigma)[:count]
    return endpoints


COUPLINGS: dict[str, Coupling] = {
    "ic": Coupling(),
    "ot": Coupling(assignment=optimal_assignment),
    "gc": Coupling(endpoints=generator_augmented),
}
