"""How sure a difference is: tests of paired and of Monte-Carlo differences, Holm's correction, and seeds needed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import nct, norm, t

MOST_SEEDS = 1000


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


def monte_carlo_comparison(
    first: float, first_error: float, confidence: float, second: float = 0.0, second_error: float = 0.0
) -> Comparison:
    """A z test of the difference of two independent estimates with standard errors; by default of one and 0.

    Raises:
        ValueError: a negative standard error, a value that is not finite, or a confidence outside (0, 1).
    """
    _check_confidence(confidence)
    if min(first_error, second_error) < 0:
        raise ValueError(f"standard errors are {first_error:g} and {second_error:g}, expected numbers >= 0")
    _check_finite(first, first_error, second, second_error)
    effect, error = first - second, math.hypot(first_error, second_error)
    reach = float(norm.ppf((1 + confidence) / 2)) * error
    p = 2 * float(norm.sf(abs(effect) / error)) if error > 0 else _p_without_spread(effect)
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
    critical, shift = t.ppf(1 - alpha / 2, counts - 1), abs(effect) / std * np.sqrt(counts)
    # Where scipy cannot compute the tail on the wrong side, it is far smaller than what would change a count.
    wrong_side = np.nan_to_num(nct.cdf(-critical, counts - 1, shift))
    enough = np.flatnonzero(nct.sf(critical, counts - 1, shift) + wrong_side >= power)
    return int(counts[enough[0]]) if len(enough) else None


def growth_needed(effect: float, standard_error: float, alpha: float, power: float) -> float:
    """How many times the replicates a two-sided z test at `alpha` needs to find such an effect with `power`.

    `standard_error` is that of the present number of replicates. Infinite without an effect.
    """
    if effect == 0:
        return math.inf
    needed = float(norm.ppf(1 - alpha / 2) + norm.ppf(power))
    return (needed * standard_error / effect) ** 2


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}, expected a number in (0, 1)")


def _check_finite(*values: float) -> None:
    if not all(map(math.isfinite, values)):
        raise ValueError(f"values are {list(values)}, expected finite numbers")


def _p_without_spread(effect: float) -> float:
    return 1.0 if effect == 0 else 0.0
