"""Significance of differences: an anytime-valid test of paired values, Welch's of estimates, and Holm's correction.

The paired test may be looked at after every pair, and more pairs may be added for whatever reason: its e-value is a
likelihood ratio of Student's t statistics, with effects ~ N(0, c^2) in standard deviations against none, of mean 1
without an effect after any number of pairs, so that it ever reaches 1/alpha with probability alpha at most (Ville 1939;
Robbins, 1970; Lai, 1976; Wang and Ramdas, Anytime-valid t-tests and confidence sequences, 2024). docs/claims.md.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import t

MOST_SEEDS = 1000


class Estimate(NamedTuple):
    """A mean over independent replicates: its value, its standard error, and how many replicates there are."""

    value: float
    standard_error: float
    replicates: int


@dataclass(frozen=True)
class Paired:
    """Differences of pairs, in the order in which they came, tested after each of them.

    prior_scale: c > 0, the effects in standard deviations that the test is made for.

    Raises:
        ValueError: no differences, or one that is not finite.
    """

    differences: tuple[float, ...]
    prior_scale: float

    def __post_init__(self) -> None:
        if not self.differences:
            raise ValueError("there are no pairs")
        _check_finite(*self.differences)

    @property
    def count(self) -> int:
        """Pairs."""
        return len(self.differences)

    @cached_property
    def _moments(self) -> tuple[Any, Any]:
        """Mean and sum of squared deviations of the first 1, 2, ... differences."""
        values, counts = np.array(self.differences), np.arange(1, self.count + 1)
        # Moved, so that squares of large and equal values cancel exactly.
        moved = values - values[0]
        means = np.cumsum(moved) / counts
        return means + values[0], np.maximum(0.0, np.cumsum(moved**2) - counts * means**2)

    @property
    def means(self) -> Any:
        """The mean of the first 1, 2, ... differences, shape (count,)."""
        return self._moments[0]

    @property
    def effect(self) -> float:
        """The mean difference."""
        return float(self._moments[0][-1])

    @property
    def std(self) -> float | None:
        """Of the differences; None for a single one."""
        return math.sqrt(self._moments[1][-1] / (self.count - 1)) if self.count > 1 else None

    @property
    def standard_error(self) -> float | None:
        """Of the effect; None for a single difference."""
        return None if self.std is None else self.std / math.sqrt(self.count)

    @property
    def log_e_values(self) -> Any:
        """Logarithms of E after 1, 2, ... pairs, shape (count,)."""
        means, squares = self._moments
        return _log_e(np.arange(1, self.count + 1), means, squares, self.prior_scale)

    @property
    def p(self) -> float:
        """1 / the largest E so far: a p value that holds however often one looks; 1 at most."""
        return float(np.exp(-max(0.0, self.log_e_values.max())))

    def course(self, alpha: float) -> Any:
        """The confidence sequence: after 1, 2, ... pairs the effects that no look so far rejects, shape (count, 2).

        With probability 1 - alpha it has the true effect at all times. Infinite where there are too few pairs.
        """
        means, squares = self._moments
        reach = _reach(np.arange(1, self.count + 1), squares, self.prior_scale, alpha)
        low = np.maximum.accumulate(means - reach)
        high = np.minimum.accumulate(means + reach)
        # Looks that exclude each other have probability alpha at most: the later one moves no end beyond the other.
        return np.stack([np.minimum(low, high), high], axis=1)

    def interval(self, alpha: float) -> tuple[float, float]:
        """The confidence sequence now."""
        low, high = self.course(alpha)[-1]
        return float(low), float(high)


@dataclass(frozen=True)
class Welch:
    """The first of two independent estimates against the second, or a single one against 0; looked at once.

    Raises:
        ValueError: a negative standard error, fewer than two replicates, or a value that is not finite.
    """

    estimates: tuple[Estimate, ...]
    count = None
    std = None

    def __post_init__(self) -> None:
        for estimate in self.estimates:
            _check_finite(estimate.value, estimate.standard_error)
            if estimate.standard_error < 0 or estimate.replicates < 2:
                raise ValueError(f"{estimate}, expected a standard error >= 0 and at least 2 replicates")

    @property
    def effect(self) -> float:
        """The difference."""
        return self.estimates[0].value - sum(estimate.value for estimate in self.estimates[1:])

    @property
    def standard_error(self) -> float:
        """Of the effect."""
        return math.hypot(*(estimate.standard_error for estimate in self.estimates))

    @cached_property
    def freedom(self) -> float:
        """Welch and Satterthwaite's degrees of freedom."""
        squares = np.square([estimate.standard_error for estimate in self.estimates])
        # Scaled, since fourth powers of errors leave the range of numbers early.
        shares = squares / squares.sum()
        return float(1 / sum(share**2 / (e.replicates - 1) for share, e in zip(shares, self.estimates, strict=True)))

    @property
    def p(self) -> float:
        """Two-sided."""
        if self.standard_error == 0:
            return 1.0 if self.effect == 0 else 0.0
        return 2 * float(t.sf(abs(self.effect) / self.standard_error, self.freedom))

    def interval(self, alpha: float) -> tuple[float, float]:
        """Two-sided, at 1 - alpha."""
        reach = self._reach(alpha)
        return self.effect - reach, self.effect + reach

    def _reach(self, alpha: float) -> float:
        error = self.standard_error
        return float(t.isf(alpha / 2, self.freedom)) * error if error > 0 else 0.0

    def growth_needed(self, alpha: float, margin: float) -> float:
        """The multiple of the replicates with which the present effect and spread decide: at least 1, perhaps inf.

        margin: differences that are none, see `seeds_needed`.
        """
        gap = max(abs(self.effect), margin - abs(self.effect))
        return max(1.0, (self._reach(alpha) / gap) ** 2) if gap > 0 else math.inf


def holm(p_values: Sequence[float]) -> list[tuple[float, int]]:
    """Holm's (1979) adjusted p values, in the given order, each with the number of tests that its step counts.

    Those below alpha are rejected, and the chance that any true hypothesis is among them is at most alpha, however the
    tests depend on each other. An interval at alpha over that number of tests excludes 0 where a p value is rejected.
    """
    count = len(p_values)
    adjusted, largest = [(0.0, 0)] * count, 0.0
    for place, index in enumerate(sorted(range(count), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (count - place) * p_values[index]))
        adjusted[index] = largest, count - place
    return adjusted


def seeds_needed(effect: float, std: float, prior_scale: float, alpha: float, margin: float = 0.0) -> int | None:
    """Fewest pairs with which `Paired`, of this mean and standard deviation, excludes 0 or lies inside +-margin.

    Args:
        effect: the true mean difference.
        std: of the differences.
        prior_scale: of the test.
        alpha: its level, in (0, 1).
        margin: differences up to it are none.

    Returns:
        At least 2; None if more than MOST_SEEDS would be needed.
    """
    counts = np.arange(2, MOST_SEEDS + 1)
    reach = _reach(counts, std**2 * (counts - 1), prior_scale, alpha)
    enough = np.flatnonzero(reach < max(abs(effect), margin - abs(effect)))
    return int(counts[enough[0]]) if len(enough) else None


def _log_e(counts: Any, means: Any, squares: Any, prior_scale: float) -> Any:
    """Logarithms of E of the means of so many differences. squares: sums of squared deviations."""
    growth = 1 + counts * prior_scale**2
    with np.errstate(divide="ignore", invalid="ignore"):
        # t^2 / (n - 1); in the limit of no spread at all E is finite.
        ratio = counts * means**2 / squares
        shape = np.where(means == 0, 0.0, np.log1p(ratio) - np.log1p(ratio / growth))
    shape = np.where((squares == 0) & (means != 0), np.log(growth), shape)
    return np.where(counts > 1, counts / 2 * shape - np.log(growth) / 2, 0.0)


def _reach(counts: Any, squares: Any, prior_scale: float, alpha: float) -> Any:
    """How far from the mean E is below 1 / alpha; infinite where it cannot reach that."""
    growth = 1 + counts * prior_scale**2
    bound = np.exp((np.log(growth) / 2 - math.log(alpha)) * 2 / counts)
    with np.errstate(divide="ignore", invalid="ignore"):
        reach = np.sqrt(squares / counts * (bound - 1) / (1 - bound / growth))
    return np.where((counts > 1) & (bound < growth), reach, np.inf)


def _check_finite(*values: float) -> None:
    if not all(map(math.isfinite, values)):
        raise ValueError(f"values are {list(values)}, expected finite numbers")
