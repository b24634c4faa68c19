"""Theorem 1: the gap between consistency training and distillation as the number of intervals grows.

With t_i = iT/N, i uniform and phi(r) ~ C r^alpha, the theorem says N^alpha (L_CT - L_CD) -> C T^(alpha - 1) R(theta),
R(theta) = int_0^T E[||d_CT f||^alpha - ||d_CD f||^alpha] dt (weight 1), where d_CT f = df/dsigma + (df/dx) z and
d_CD f is the same with the velocity v(x_t) for z. The scaled gradients N^(alpha - 1) grad L converge too; their limits
agree for alpha = 2 alone.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from scipy.integrate import quad
from torch import Tensor, nn

from gcflow.oracles import GaussianMixture, velocity
from gcflow.randomness import derived_seed, generator
from gcflow.theory.check import Check

STATEMENT = "Theorem 1"
HUBER_C = 1.0
CHUNK = 8192


class Power(NamedTuple):
    """A distance phi(r) ~ C r^alpha at 0. of: norms r [B] to phi(r)."""

    name: str
    alpha: float
    constant: float
    of: Callable[[Tensor], Tensor]


def _pseudo_huber(r: Tensor) -> Tensor:
    # In this form nothing cancels where r is far below c.
    return r**2 / ((r**2 + HUBER_C**2).sqrt() + HUBER_C)


DISTANCES = (
    Power("the norm, α = 1", 1.0, 1.0, lambda r: r),
    Power("norm to the power 1.5, α = 1.5", 1.5, 1.0, lambda r: r**1.5),
    Power("squared norm, α = 2", 2.0, 1.0, torch.square),
    Power("pseudo-Huber, c = 1, α = 2", 2.0, 1 / (2 * HUBER_C), _pseudo_huber),
)


class SmoothNetwork(nn.Module):
    """A fixed smooth network in the consistency parametrisation with sigma_0 = 0: f(x, 0) = x. Float64.

    The noise level enters as ln(1 + sigma), which unlike ln sigma is smooth at 0, where the first interval begins.
    """

    def __init__(self, dimension: int, hidden: int, sigma_data: float, seed: int) -> None:
        super().__init__()
        source = generator(seed, "smooth-network")
        self.sigma_data = sigma_data

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=source, dtype=torch.float64)

        self.first = nn.Parameter(draw(dimension + 1, hidden))
        self.bias = nn.Parameter(draw(hidden))
        self.second = nn.Parameter(draw(hidden, dimension) / math.sqrt(hidden))

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """f(x, sigma) for x [B, d] and sigma [B]."""
        level, scale = sigma[:, None], self.sigma_data
        root = (scale**2 + level**2).sqrt()
        hidden = torch.tanh(torch.cat([x / root, torch.log1p(level)], dim=1) @ self.first + self.bias)
        return scale**2 / root**2 * x + scale * level / root * (hidden @ self.second)


@dataclass(frozen=True)
class Points:
    """Quasi-random draws of everything in the losses. uniform: [B] in [0, 1), the time. data, noise: [B, d]."""

    uniform: Tensor
    data: Tensor
    noise: Tensor

    def chunks(self) -> Iterator["Points"]:
        """The points in parts."""
        parts = (torch.split(tensor, CHUNK) for tensor in (self.uniform, self.data, self.noise))
        return (Points(*part) for part in zip(*parts, strict=True))


def quasi_random_points(mixture: GaussianMixture, count: int, seed: int) -> Points:
    """A scrambled Sobol sequence, through the quantiles of time, component, data and noise."""
    size = mixture.means.shape[1]
    engine = torch.quasirandom.SobolEngine(2 + 2 * size, scramble=True, seed=seed)
    uniform = engine.draw(count, dtype=torch.float64).clamp(1e-15, 1 - 1e-15)
    normal = math.sqrt(2) * torch.erfinv(2 * uniform[:, 2:] - 1)
    component = torch.searchsorted(mixture.weights.cumsum(0), uniform[:, 1].contiguous())
    component = component.clamp(max=len(mixture.means) - 1)
    return Points(uniform[:, 0], mixture.means[component] + mixture.std * normal[:, :size], normal[:, size:])


class Increments(NamedTuple):
    """Change of the function along a pair of points per unit of time, [B, d]: in consistency training and distillation.

    student: f at the upper point, [B, d], with its gradient.
    """

    training: Tensor
    distillation: Tensor
    student: Callable[[], Tensor]


def finite_increments(
    network: SmoothNetwork, mixture: GaussianMixture, points: Points, horizon: float, intervals: int
) -> Increments:
    """N (f(high) - sg f(low)) / T, which in the limit are the two total derivatives."""
    index = (points.uniform * intervals).floor()
    low, high = index * horizon / intervals, (index + 1) * horizon / intervals
    x_high = points.data + high[:, None] * points.noise
    x_training = points.data + low[:, None] * points.noise
    x_distillation = x_high + (low - high)[:, None] * velocity(mixture.denoise, x_high, high)
    with torch.no_grad():
        student = network(x_high, high)
        training, distillation = (
            (student - network(x, low)) * (intervals / horizon) for x in (x_training, x_distillation)
        )
    return Increments(training, distillation, lambda: network(x_high, high))


def total_derivatives(network: SmoothNetwork, mixture: GaussianMixture, points: Points, horizon: float) -> Increments:
    """d_CT f and d_CD f."""
    sigma = points.uniform * horizon
    x = points.data + sigma[:, None] * points.noise
    one = torch.ones_like(sigma)
    directions = (points.noise, velocity(mixture.denoise, x, sigma))
    with torch.no_grad():
        training, distillation = (torch.func.jvp(network, (x, sigma), (way, one))[1] for way in directions)
    return Increments(training, distillation, lambda: network(x, sigma))


@dataclass(frozen=True)
class Estimates:
    """By distance, scaled. gap: of the losses. gradients: (training, distillation), flat."""

    gap: list[float]
    gradients: list[tuple[Tensor, Tensor]]


def _estimate(
    network: SmoothNetwork,
    points: Points,
    horizon: float,
    intervals: int | None,
    increments: Callable[[Points], Increments],
) -> Estimates:
    """The losses' gap and gradients, scaled by powers of N; for `intervals` None their limits."""
    parameters = list(network.parameters())
    gap = [0.0] * len(DISTANCES)
    gradients = [[torch.zeros(()), torch.zeros(())] for _ in DISTANCES]
    count = len(points.uniform)
    for part in points.chunks():
        training, distillation, student = increments(part)
        both = (training, distillation)
        norms = [way.norm(dim=1) for way in both]
        for number, distance in enumerate(DISTANCES):
            alpha = distance.alpha
            if intervals is None:
                values = [distance.constant * horizon**alpha * r**alpha for r in norms]
                slopes = [distance.constant * alpha * horizon ** (alpha - 1) * r ** (alpha - 2) for r in norms]
            else:
                # Per unit of T / N, so that the two cases share what follows.
                lengths = [(r * horizon / intervals).requires_grad_() for r in norms]
                values = [intervals**alpha * distance.of(length) for length in lengths]
                slopes = [
                    torch.autograd.grad(value.sum(), length)[0] / (intervals * r)
                    for value, length, r in zip(values, lengths, norms, strict=True)
                ]
            gap[number] += float((values[0] - values[1]).detach().sum()) / count
            for side, (way, slope) in enumerate(zip(both, slopes, strict=True)):
                weight = (slope[:, None] * way).detach() / count
                parts = torch.autograd.grad((weight * student()).sum(), parameters)
                gradients[number][side] = gradients[number][side] + torch.cat([p.flatten() for p in parts])
    return Estimates(gap, [(training, distillation) for training, distillation in gradients])


def _norm(vectors: Tensor) -> float:
    return float(vectors.mean(0).norm())


def _noise(vectors: Tensor) -> float:
    """Standard error of the mean of replicates [R, P], as a norm."""
    return float((vectors.var(0) / len(vectors)).sum().sqrt())


@dataclass(frozen=True)
class Convergence:
    """The scaled gap and gradients of one distance for each N, and for None their limits.

    gaps: [R], one per replicate. gradients: of training and of distillation, [R, P] each.
    """

    name: str
    alpha: float
    gaps: dict[int | None, Tensor]
    gradients: dict[int | None, tuple[Tensor, ...]]

    @property
    def intervals(self) -> list[int]:
        """Every finite N, ascending."""
        return [count for count in self.gaps if count is not None]

    @property
    def last(self) -> tuple[int, int, float]:
        """The two largest N, and how many errors of the larger one their difference is, if errors fall as 1/N."""
        coarse, fine = self.intervals[-2:]
        return coarse, fine, fine / coarse - 1

    def ratio(self, count: int) -> tuple[float, float]:
        """Gap at N over its limit, and the standard error."""
        ratio = self.gaps[count] / self.gaps[None]
        return float(ratio.mean()), float(ratio.std()) / len(ratio) ** 0.5

    def difference(self, count: int) -> Tensor:
        """Gradient of training minus gradient of distillation, [R, P]."""
        training, distillation = self.gradients[count]
        return training - distillation

    def loss_checks(self) -> list[Check]:
        """The gap against its limit, which is positive."""
        coarse, fine, share = self.last
        (earlier, _), (measured, error) = self.ratio(coarse), self.ratio(fine)
        limit = self.gaps[None]
        return [
            Check(
                STATEMENT,
                f"{self.name}: N^α (L_CT − L_CD) / (C T^(α−1) R) at N = {fine}",
                measured,
                1.0,
                2 * abs(measured - earlier) / share + 3 * error,
                f"twice the 1/N error seen from N = {coarse}, and 3 standard errors over {len(limit)} scramblings",
            ),
            Check(
                STATEMENT,
                f"{self.name}: R(θ) C T^(α−1)",
                float(limit.mean()),
                0.0,
                3 * float(limit.std()) / len(limit) ** 0.5,
                "3 standard errors",
                ">",
            ),
        ]

    def gradient_checks(self) -> list[Check]:
        """Each gradient against its limit, and the two against each other."""
        coarse, fine, share = self.last
        checks = []
        for side, objective in enumerate(("CT", "CD")):
            at_coarse, at_fine, limit = (self.gradients[count][side] for count in (coarse, fine, None))
            size, gap = _norm(limit), at_fine - limit
            checks.append(
                Check(
                    STATEMENT,
                    f"{self.name}: N^(α−1) ∇L_{objective} from its limit, relative, at N = {fine}",
                    _norm(gap) / size,
                    0.0,
                    (2 * _norm(at_fine - at_coarse) / share + 3 * _noise(gap)) / size,
                    f"twice the 1/N error seen from N = {coarse}, and 3 standard errors",
                )
            )
        between, size = self.difference(fine), _norm(self.gradients[fine][1])
        drift = _norm(between - self.difference(coarse))
        checks.append(
            Check(
                STATEMENT,
                f"{self.name}: ∇L_CT from ∇L_CD, relative, at N = {fine}",
                _norm(between) / size,
                0.0,
                (2 * drift / share + 3 * _noise(between)) / size,
                "twice the 1/N error, and 3 standard errors; the limits agree for α = 2 alone",
                "=" if self.alpha == 2 else ">",
            )
        )
        return checks

    def curves(self) -> dict[str, Any]:
        """The curves that figures draw against N."""
        ratios = [self.ratio(count) for count in self.intervals]
        return {
            "alpha": self.alpha,
            "ratio": [ratio for ratio, _ in ratios],
            "standard_error": [error for _, error in ratios],
            "gradient_difference": [_norm(self.difference(n)) / _norm(self.gradients[n][1]) for n in self.intervals],
        }


def theorem_1(
    mixture: GaussianMixture,
    sigma_data: float,
    horizon: float,
    intervals: tuple[int, ...],
    points: int,
    replicates: int,
    seed: int,
) -> tuple[list[Check], dict[str, Any]]:
    """Checks of Theorem 1 on a mixture for T = `horizon`, and the curves over N that they are taken from.

    Finite N and limit are estimated from the same points, so that the points' error nearly cancels in their ratio.

    Args:
        mixture: float64.
        sigma_data: of the network's parametrisation.
        horizon: T.
        intervals: ascending N, the last two a factor 4 apart.
        points: quasi-random points per replicate, a power of two.
        replicates: independent scramblings, at least 2; they give the standard errors.
        seed: of network and scramblings.
    """
    network = SmoothNetwork(mixture.means.shape[1], 32, sigma_data, seed)
    all_estimates: dict[int | None, list[Estimates]] = {count: [] for count in (*intervals, None)}
    for replicate in range(replicates):
        drawn = quasi_random_points(mixture, points, derived_seed(seed, "theorem-1", replicate))
        for count, estimates in all_estimates.items():
            if count is None:
                increments = partial(total_derivatives, network, mixture, horizon=horizon)
            else:
                increments = partial(finite_increments, network, mixture, horizon=horizon, intervals=count)
            estimates.append(_estimate(network, drawn, horizon, count, increments))

    checks: list[Check] = []
    curves: dict[str, Any] = {"horizon": horizon, "intervals": list(intervals), "points": points * replicates}
    for number, distance in enumerate(DISTANCES):
        found = Convergence(
            f"T = {horizon:g}, {distance.name}",
            distance.alpha,
            gaps={
                n: torch.tensor([e.gap[number] for e in estimates], dtype=torch.float64)
                for n, estimates in all_estimates.items()
            },
            gradients={
                n: tuple(torch.stack(side) for side in zip(*(e.gradients[number] for e in estimates), strict=True))
                for n, estimates in all_estimates.items()
            },
        )
        checks += [*found.loss_checks(), *found.gradient_checks()]
        curves[distance.name] = found.curves()
    return checks, curves


def linear_gap(std: float, dimension: int, horizon: float, intervals: int) -> float:
    """N^2 (L_CT - L_CD) in closed form: data N(0, std^2 I), f(x, t) = g(t) x with g = 1 / (1 + t^2), squared L2.

    Exact sums over the intervals (derived from the definitions; no sampling).
    """
    t = torch.linspace(0, horizon, intervals + 1, dtype=torch.float64)
    g = 1 / (1 + t**2)
    low, high, g_low, g_high = t[:-1], t[1:], g[:-1], g[1:]
    shrink = 1 + (low - high) * high / (std**2 + high**2)
    training = (g_low - g_high) ** 2 * std**2 + (g_low * low - g_high * high) ** 2
    distillation = (g_low * shrink - g_high) ** 2 * (std**2 + high**2)
    return float(dimension * (training - distillation).mean() * intervals**2)


def linear_remainder(std: float, dimension: int, horizon: float) -> float:
    """T R(theta) of the same data and function: R = int_0^T d g^2 std^2 / (std^2 + t^2) dt, by adaptive quadrature."""

    def integrand(t: float) -> float:
        return std**2 / ((1 + t**2) ** 2 * (std**2 + t**2))

    value, _ = quad(integrand, 0, horizon, epsabs=0, epsrel=1e-12, limit=200)
    return horizon * dimension * value


def theorem_1_closed_form(std: float, dimension: int, horizon: float, intervals: int) -> Check:
    """Theorem 1 for a Gaussian and a linear function, where both sides are exact; extrapolated from N / 2 and N."""
    limit = linear_remainder(std, dimension, horizon)
    quarter, half, fine = (linear_gap(std, dimension, horizon, intervals // part) / limit for part in (4, 2, 1))
    extrapolated, coarser = 2 * fine - half, 2 * half - quarter
    return Check(
        STATEMENT,
        f"T = {horizon:g}, linear f, α = 2: N² (L_CT − L_CD) / (T R), extrapolated to N = ∞ from {intervals}",
        extrapolated,
        1.0,
        abs(extrapolated - coarser),
        "the change of the extrapolation from half as many intervals",
    )
