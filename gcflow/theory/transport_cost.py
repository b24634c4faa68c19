"""Lemma 1 and its corollaries: the derivative of the transport cost c(t) = E||f(x_t, t) - z||^2.

c'(t) = -2 E<(df/dx)(x_t, t) w_t, w_t>, w_t = z - E[z | x_t] (sigma_t = t). Hence c decreases near 0 always, and for
large t where f scales like a function of x / t.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from gcflow.oracles import GaussianMixture
from gcflow.theory.check import Check
from gcflow.theory.endpoints import Level, endpoint_grid, standard_deviation, sweep

STATEMENT = "Lemma 1"
# Sixth-order central differences.
STENCIL = {-3: -1 / 60, -2: 9 / 60, -1: -45 / 60, 1: 45 / 60, 2: -9 / 60, 3: 1 / 60}
FOURTH_ORDER = {-2: 1 / 12, -1: -8 / 12, 1: 8 / 12, 2: -1 / 12}
SPACING = 0.03
SMALL = (0.01, 0.02)


@dataclass(frozen=True)
class Resolution:
    """nodes: of the endpoint grid, per axis. largest_step: of the flow."""

    nodes: int
    largest_step: float


COARSE, FINE = Resolution(56, 0.06), Resolution(80, 0.03)


def cost(mixture: GaussianMixture, level: Level) -> float:
    """c(t) = E||f||^2 - 2 E<f, E[z | x_t]> + d."""
    noise, _ = mixture.noise_moments(level.point, level.sigma)
    inner = level.endpoint.square().sum(1) - 2 * (level.endpoint * noise).sum(1)
    return float((level.mass * inner).sum()) + level.endpoint.shape[1]


def right_side(mixture: GaussianMixture, level: Level) -> float:
    """-2 E tr(df/dx Cov(z | x_t)): the right side of Lemma 1, with sigma_t = t."""
    _, covariance = mixture.noise_moments(level.point, level.sigma)
    return -2 * float((level.mass * torch.einsum("bij,bji->b", level.jacobian, covariance)).sum())


def _curves(mixture: GaussianMixture, sigmas: list[float], resolution: Resolution) -> dict[float, tuple[float, float]]:
    grid = endpoint_grid(mixture, resolution.nodes, reach=8.5, least=1e-16)
    wanted = sorted({sigma * (1 + offset * SPACING) for sigma in sigmas for offset in (0, *STENCIL)})
    levels = sweep(mixture, *grid, wanted, resolution.largest_step)
    return {level.sigma: (cost(mixture, level), right_side(mixture, level)) for level in levels}


def _difference(curves: dict[float, tuple[float, float]], sigma: float, stencil: dict[int, float]) -> float:
    return sum(w * curves[sigma * (1 + offset * SPACING)][0] for offset, w in stencil.items()) / (SPACING * sigma)


def lemma_1(mixture: GaussianMixture, sigmas: list[float]) -> tuple[list[Check], dict[str, Any]]:
    """Checks of Lemma 1 at ascending noise levels and of its corollaries, and the curves they are taken from."""
    levels = sorted({*SMALL, *sigmas})
    coarse, fine = (_curves(mixture, levels, resolution) for resolution in (COARSE, FINE))
    checks: list[Check] = []
    derivatives = {}
    for sigma in levels:
        measured, expected = _difference(fine, sigma, STENCIL), fine[sigma][1]
        derivatives[sigma] = measured
        if sigma not in sigmas:
            continue
        error = (
            abs(measured - _difference(coarse, sigma, STENCIL))
            + abs(expected - coarse[sigma][1])
            + abs(measured - _difference(fine, sigma, FOURTH_ORDER))
        )
        reason = "change from a coarser grid and flow, and from fourth- to sixth-order differences, relative"
        checks.append(
            Check(
                STATEMENT,
                f"c′(t) / (−2 E⟨∂f/∂x w, w⟩) at t = {sigma:g}",
                measured / expected,
                1.0,
                error / abs(expected),
                reason,
            )
        )
    checks += _corollaries(mixture, {sigma: fine[sigma][1] for sigma in levels}, {s: coarse[s][1] for s in levels})
    if standard_deviation(mixture) is not None:
        checks += [_closed_form(mixture, sigma, fine[sigma][0], coarse[sigma][0]) for sigma in sigmas]
    return checks, {
        "sigmas": levels,
        "cost": [fine[sigma][0] for sigma in levels],
        "derivative": [derivatives[sigma] for sigma in levels],
        "right_side": [fine[sigma][1] for sigma in levels],
    }


def exponent(first: float, second: float, ratio: float) -> float:
    """The exponent p of a power law t^p through two values whose arguments lie `ratio` apart."""
    return math.log(second / first) / math.log(ratio)


def _corollaries(mixture: GaussianMixture, slope: dict[float, float], coarse: dict[float, float]) -> list[Check]:
    near, next_to_it = SMALL
    # The right side is even in t, so two levels at ratio 2 extrapolate it to t = 0.
    at_zero = (4 * slope[near] - slope[next_to_it]) / 3
    dimension = mixture.means.shape[1]
    steepest = max(slope, key=lambda sigma: slope[sigma])
    ends = list(slope)[-2:]
    rate = exponent(slope[ends[0]], slope[ends[1]], ends[1] / ends[0])
    return [
        Check(
            STATEMENT,
            "corollary, t → 0: c′(0) = −2d, so c decreases",
            at_zero,
            -2.0 * dimension,
            abs(at_zero - slope[near]),
            f"size of the extrapolation from t = {near:g} and {next_to_it:g}",
        ),
        Check(
            STATEMENT,
            f"corollary, large t: the largest c′ of all levels, at t = {steepest:g}, is negative",
            slope[steepest],
            0.0,
            abs(slope[steepest] - coarse[steepest]),
            "change from a coarser grid and flow",
            "<",
        ),
        Check(
            STATEMENT,
            f"corollary, large t: f scales like h(x / t), so c′ falls as t^−3 from t = {ends[0]:g} to {ends[1]:g}",
            rate,
            -3.0,
            mixture.means.var(0, correction=0).sum().item() / ends[0] + mixture.std / ends[0],
            "first correction to the scaling, of the order of the data's scale over t",
        ),
    ]


def gaussian_costs(gaussian: GaussianMixture, sigmas: Sequence[float]) -> dict[str, Any]:
    """Closed forms for N(m, s^2 I): c(t) = |m|^2 + d (s^2 + 1 - 2 s t / sqrt(s^2 + t^2)), and its limit.

    Derived by us. The limit |m|^2 + d (1 - s)^2 is the squared Wasserstein distance to the noise: nothing costs less.
    """
    std, dimension, offset = gaussian.std, gaussian.means.shape[1], float(gaussian.means.square().sum())
    shrunk = [std * sigma / math.hypot(std, sigma) for sigma in sigmas]
    return {
        "independent": offset + dimension * (std**2 + 1),
        "generator_augmented": [offset + dimension * (std**2 + 1 - 2 * a) for a in shrunk],
        "wasserstein": offset + dimension * (1 - std) ** 2,
    }


def _closed_form(mixture: GaussianMixture, sigma: float, fine: float, coarse: float) -> Check:
    (expected,) = gaussian_costs(mixture, [sigma])["generator_augmented"]
    return Check(
        STATEMENT,
        f"c(t) = |m|² + d (s² + 1 − 2 s t / √(s² + t²)) at t = {sigma:g}",
        fine,
        expected,
        abs(fine - coarse) + 1e-12,
        "change from a coarser grid and flow, and rounding",
    )
