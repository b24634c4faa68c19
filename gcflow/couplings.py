"""Couplings: which clean endpoint goes with which noise.

A coupling re-pairs the noises of a batch with its data (`assignment`), replaces endpoints by predictions
(`endpoints`), or does neither.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from gcflow import register
from gcflow.lazy_torch import torch
from gcflow.options import Options
from gcflow.preconditioning import per_sample

if TYPE_CHECKING:
    from torch import Tensor

EndpointPredictor = Callable[..., "Tensor"]


@dataclass(frozen=True)
class CouplingContext:
    """A coupling's view of a run, besides data and noise, when it predicts endpoints.

    sigma_low: [B], the lower noise level of each sample's interval, or a denoiser's only one.
    take_gc: [B] bool, which samples take a predicted endpoint: each with probability mu.
    to_predict: int64 [B'], of which samples an endpoint is to be predicted; see `samples_to_predict`.
    predict: endpoint predictor g(x_t [B', ...], sigma [B']) -> endpoint [B', ...], without gradient.
    dropout: int32 [B], keys of a predictor in training, whose third argument are those of its samples; else None.
    """

    sigma_low: Tensor
    take_gc: Tensor
    to_predict: Tensor
    predict: EndpointPredictor
    dropout: Tensor | None = None


def samples_to_predict(take_gc: Tensor, multiple: int = 1) -> Tensor:
    """The samples that take a predicted endpoint, then others up to a multiple of them.

    So a compiled or captured predictor sees few shapes.

    Args:
        take_gc: bool [B], on the CPU, so that their number is known without a wait for the device.
        multiple: at least 1.

    Returns:
        int64 [B'], B' <= B, all different.
    """
    count = -(-int(take_gc.sum()) // multiple) * multiple
    return take_gc.argsort(descending=True, stable=True)[:count]


@register.coupling.contract
class Coupling(Options):
    """A choice of the clean endpoint that goes with each noise: overrides `assignment`, or `endpoints`, or neither.

    Its name is its field `kind`. One that predicts endpoints takes the keys `mu` and `predictor` of a method, as `gc`
    does.
    """

    if TYPE_CHECKING:

        @property
        def kind(self) -> str:
            """Its name."""

    def assignment(self, x: Tensor, z: Tensor, uniform: Tensor) -> Tensor:
        """The index of the noise that each sample takes, int64 [B] on the CPU; noises may repeat.

        Computed ahead in a thread, beside the steps before. It must be a function of its arguments alone.

        Args:
            x: data in model space, [B, ...], on the device. B is the global batch, whatever the number of processes.
            z: standard normal noise, [B, ...].
            uniform: float64 [B] on the CPU, in [0, 1): each a function of seed, step and the sample's place in the
                global batch alone. The only randomness that a coupling has.
        """
        raise NotImplementedError

    def endpoints(self, x: Tensor, z: Tensor, context: CouplingContext) -> Tensor:
        """The endpoints in the place of x, [B, ...], without gradient; called for each grain of a batch."""
        raise NotImplementedError

    @property
    def assigns(self) -> bool:
        """True if it re-pairs the noises."""
        return type(self).assignment is not Coupling.assignment

    @property
    def predicts(self) -> bool:
        """True if it replaces endpoints."""
        return type(self).endpoints is not Coupling.endpoints


def optimal_assignment(x: Tensor, z: Tensor) -> Tensor:
    """OT: the permutation of the noises of least sum of ||x - z||^2 (exact), int64 [B]."""
    # Here, because it takes a third of a second that only this coupling needs.
    from scipy.optimize import linear_sum_assignment

    # ||x||^2 + ||z||^2 is the same for every assignment, so only the inner products decide.
    similarity = x.flatten(1).double() @ z.flatten(1).double().T
    _, columns = linear_sum_assignment(similarity.cpu().numpy(), maximize=True)
    return torch.from_numpy(columns)


def generator_augmented(x: Tensor, z: Tensor, context: CouplingContext) -> Tensor:
    """GC(mu): where `take_gc`, the endpoint is the prediction g(x + sigma_low z, sigma_low).

    The prediction (the paper's Eqs. 13 to 15; mixed with independent pairs Eq. 21, Algorithm 1) is computed only for
    the samples `to_predict`; their noise is kept.
    """
    chosen = context.to_predict
    if len(chosen) == 0:
        return x
    data, sigma = x[chosen], context.sigma_low[chosen]
    noisy = data + per_sample(sigma, x) * z[chosen]
    keys = () if context.dropout is None else (context.dropout[chosen],)
    predicted = context.predict(noisy, sigma, *keys)
    endpoints = x.clone()
    endpoints[chosen] = torch.where(per_sample(context.take_gc[chosen], x), predicted, data)
    return endpoints


@register.coupling
class Independent(Coupling):
    """IC: every pair as it was drawn."""

    kind: Literal["ic"] = "ic"


@register.coupling
class OptimalTransport(Coupling):
    """OT within the batch."""

    kind: Literal["ot"] = "ot"

    def assignment(self, x: Tensor, z: Tensor, uniform: Tensor) -> Tensor:
        """See `optimal_assignment`."""
        return optimal_assignment(x, z)


@register.coupling
class GeneratorAugmented(Coupling):
    """GC(mu)."""

    kind: Literal["gc"] = "gc"

    def endpoints(self, x: Tensor, z: Tensor, context: CouplingContext) -> Tensor:
        """See `generator_augmented`."""
        return generator_augmented(x, z, context)
