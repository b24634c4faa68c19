"""Couplings: which clean endpoint goes with which noise.

A coupling maps a batch of data and of independent noise to the endpoints and noises whose line x + sigma z the
consistency objective is trained on. A new one is a function with the signature of `Coupling` and an entry in
`COUPLINGS`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

EndpointPredictor = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class CouplingContext:
    """What a coupling may look at besides data and noise.

    sigma_low: [B], the lower noise level of each sample's interval.
    take_gc: [B] bool, which samples take the generator-augmented coupling.
    predict: endpoint predictor g(x_t [B', ...], sigma [B']) -> endpoint [B', ...], without gradient.
    """

    sigma_low: Tensor
    take_gc: Tensor
    predict: EndpointPredictor


Coupling = Callable[[Tensor, Tensor, CouplingContext], tuple[Tensor, Tensor]]


def independent(x: Tensor, z: Tensor, context: CouplingContext | None = None) -> tuple[Tensor, Tensor]:
    """IC: data and noise as they were drawn."""
    return x, z


def optimal_transport(x: Tensor, z: Tensor, context: CouplingContext | None = None) -> tuple[Tensor, Tensor]:
    """OT: the noises re-paired inside the batch by the assignment of least sum of ||x - z||^2 (exact).

    x, z: [B, ...]. The returned noises are a permutation of z.
    """
    # Here, because it takes a third of a second that only this coupling needs.
    from scipy.optimize import linear_sum_assignment

    # ||x||^2 + ||z||^2 is the same for every assignment, so only the inner products decide.
    similarity = x.flatten(1).double() @ z.flatten(1).double().T
    _, columns = linear_sum_assignment(similarity.cpu().numpy(), maximize=True)
    return x, z[torch.from_numpy(columns).to(z.device)]


def generator_augmented(x: Tensor, z: Tensor, context: CouplingContext) -> tuple[Tensor, Tensor]:
    """GC(mu): where `take_gc`, the endpoint is the prediction g(x + sigma_low z, sigma_low) (paper, Algorithm 1).

    The prediction is computed only for those samples; the noise z is kept.
    """
    chosen = context.take_gc.nonzero().squeeze(1)
    if len(chosen) == 0:
        return x, z
    sigma = context.sigma_low[chosen]
    noisy = x[chosen] + sigma.reshape(-1, *[1] * (x.ndim - 1)) * z[chosen]
    endpoints = x.clone()
    endpoints[chosen] = context.predict(noisy, sigma)
    return endpoints, z


COUPLINGS: dict[str, Coupling] = {"ic": independent, "ot": optimal_transport, "gc": generator_augmented}
