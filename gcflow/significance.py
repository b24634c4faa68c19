"""Significance of differences: tests of paired values and of estimates, Holm's correction, and replicates needed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import brentq
from scipy.stats import nct, t

MOST_SEEDS = 1000
# In standard errors.
NO_EFFECT = 1e-9


class Estimate(NamedTuple):
    """A mean over independent replicates: its value, its standard error, and how many replicates there are."""

    value: float
    standard_error: float
    replicates: int


@dataclass(frozen=True)
class Comparison:
    """A difference, first minus second, and how sure it is.

    count: pairs that it is a mean of; None for estimates that bring their own standard errors.
    std: of the paired differences. low, high: two-sided confidence interval. Where there is one pair, std and interval
    are None and p, which is two-sided, is 1.
    """

    effect: float
    count: int | None
    std: float | None
    standard_error: float | None
    low: float | None
    high: float | None
    p: float


def paired_comparison(first: Sequence[float], second: Sequence[float], confidence: float) -> Comparison:
    """Student's paired t test of `first` against `second`, which pair up by place.

    Raises:
        ValueError: no pairs, lists of two lengths, a value that is not finite, or a confidence outside (0, 1).
    """
    _check_confidence(confidence)
    if not 0 < len(first) == len(second):
        raise ValueError(f"{len(first)} and {len(second)} values do not make pairs")
    _check_finite(*first, *second)
    differences = np.subtract(first, second, dtype=np.float64)
    effect, count = float(differences.mean()), len(differences)
    if count == 1:
        return Comparison(effect, 1, None, None, None, None, 1.0)
    std = float(differences.std(ddof=1))
    error = std / math.sqrt(count)
    reach = float(t.ppf((1 + confidence) / 2, count - 1)) * error
    p = 2 * float(t.sf(abs(effect) / error, count - 1)) if error > 0 else _p_without_spread(effect)
    return Comparison(effect, count, std, error, effect - reach, effect + reach, p)


def welch_comparison(estimates: Sequence[Estimate], confidence: float) -> Comparison:
    """Welch's t test of the first of two independent estimates against the second; Student's of a single one against 0.

    Raises:
        ValueError: a negative standard error, fewer than two replicates, a value that is not finite, or a confidence
            outside (0, 1).
    """
    _check_confidence(confidence)
    for estimate in estimates:
        _check_finite(estimate.value, estimate.standard_error)
        if estimate.standard_error < 0 or estimate.replicates < 2:
            raise ValueError(f"{estimate}, expected a standard error >= 0 and at least 2 replicates")
    effect = estimates[0].value - sum(estimate.value for estimate in estimates[1:])
    error = math.hypot(*(estimate.standard_error for estimate in estimates))
    if error == 0:
        return Comparison(effect, None, None, 0.0, effect, effect, _p_without_spread(effect))
    freedom = _degrees_of_freedom(estimates)
    reach = float(t.ppf((1 + confidence) / 2, freedom)) * error
    p = 2 * float(t.sf(abs(effect) / error, freedom))
    return Comparison(effect, None, None, error, effect - reach, effect + reach, p)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's (1979) adjusted p values, in the given order.

    Those below alpha are rejected, and the chance that any true hypothesis is among them is at most alpha, however the
    tests depend on each other.
    """
    count = len(p_values)
    adjusted, largest = [0.0] * count, 0.0
    for place, index in enumerate(sorted(range(count), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (count - place) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def seeds_needed(effect: float, std: float, alpha: float, power: float) -> int | None:
    """Fewest pairs with which a two-sided paired t test at `alpha` finds such an effect with probability `power`.

    Args:
        effect: the true mean difference.
        std: of the differences.
        alpha: level of the test, in (0, 1).
        power: in (0, 1).

    Returns:
        At least 2; None if more than MOST_SEEDS would be needed.
    """
    if effect == 0:
        return None
    if std == 0:
        return 2
    counts = np.arange(2, MOST_SEEDS + 1)
    enough = np.flatnonzero(_power(abs(effect) / std * np.sqrt(counts), counts - 1, alpha) >= power)
    return int(counts[enough[0]]) if len(enough) else None


def growth_needed(estimates: Sequence[Estimate], alpha: float, power: float) -> float:
    """The multiple of the replicates that `welch_comparison` at `alpha` needs to find the present effect with `power`.

    At least 1. Infinite without an effect to speak of.
    """
    effect = estimates[0].value - sum(estimate.value for estimate in estimates[1:])
    error = math.hypot(*(estimate.standard_error for estimate in estimates))
    if abs(effect) <= NO_EFFECT * error:
        return math.inf
    if error == 0:
        return 1.0

    def lacking(log_growth: float) -> float:
        growth = math.exp(log_growth)
        freedom = _degrees_of_freedom(estimates, growth)
        return power - float(_power(abs(effect) / error * math.sqrt(growth), freedom, alpha))

    if lacking(0.0) <= 0:
        return 1.0
    most = 1.0
    while lacking(most) > 0:
        most += 1.0
    return math.exp(brentq(lacking, most - 1.0, most))


def _degrees_of_freedom(estimates: Sequence[Estimate], growth: float = 1.0) -> float:
    """Welch and Satterthwaite's, with `growth` times the replicates."""
    squares = np.square([estimate.standard_error for estimate in estimates])
    # Scaled, since fourth powers of errors leave the range of numbers early.
    shares = squares / squares.sum()
    return float(1 / sum(s**2 / (growth * e.replicates - 1) for s, e in zip(shares, estimates, strict=True)))


def _power(shift: Any, freedom: Any, alpha: float) -> Any:
    """The power of a two-sided t test at `alpha`, where effect over standard error is `shift`."""
    critical = t.ppf(1 - alpha / 2, freedom)
    # Where scipy cannot compute the tail on the wrong side, it is far smaller than what would change a result.
    return nct.sf(critical, freedom, shift) + np.nan_to_num(nct.cdf(-critical, freedom, shift))


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}, expected a number in (0, 1)")


def _check_finite(*values: float) -> None:
    if not all(map(math.isfinite, values)):
        raise ValueError(f"values are {list(values)}, expected finite numbers")


def _p_without_spread(effect: float) -> float:
    return 1.0 if effect == 0 else 0.0
