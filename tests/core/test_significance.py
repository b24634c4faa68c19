import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from gcflow.significance import (
    MOST_SEEDS,
    Estimate,
    growth_needed,
    holm,
    paired_comparison,
    seeds_needed,
    welch_comparison,
)

VALUES = st.floats(-100, 100).map(lambda value: round(value, 3))
PAIRS = st.lists(st.tuples(VALUES, VALUES), min_size=2, max_size=20)
P_VALUES = st.lists(st.floats(0, 1), min_size=1, max_size=8)


@given(pairs=PAIRS.filter(lambda pairs: np.std([a - b for a, b in pairs]) > 1e-3), confidence=st.floats(0.5, 0.99))
def test_a_paired_comparison_is_scipys_paired_t_test(pairs, confidence):
    first, second = zip(*pairs, strict=True)
    found, expected = paired_comparison(first, second, confidence), stats.ttest_rel(first, second)
    interval = expected.confidence_interval(confidence)
    assert found.p == pytest.approx(expected.pvalue, rel=1e-6, abs=1e-12)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-6, abs=1e-9)
    assert found.effect == pytest.approx(np.mean(first) - np.mean(second), abs=1e-9)
    assert found.standard_error == pytest.approx(found.std / len(pairs) ** 0.5)
    assert found.count == len(pairs)


@pytest.mark.parametrize(("count", "confidence"), [(2, 0.9), (3, 0.95), (8, 0.8)])
def test_the_interval_covers_the_true_difference_as_often_as_it_says(count, confidence):
    trials, truth = 1000, 0.3
    source = np.random.default_rng(0)
    first = truth + source.normal(0, 2, (trials, count))
    second = source.normal(0, 1, (trials, count))
    found = [paired_comparison(a, b, confidence) for a, b in zip(first, second, strict=True)]
    covered = np.mean([result.low <= truth <= result.high for result in found])
    assert covered == pytest.approx(confidence, abs=4 * math.sqrt(confidence * (1 - confidence) / trials))


def test_a_single_pair_has_an_effect_and_nothing_else():
    found = paired_comparison([3.0], [1.0], 0.95)
    assert (found.effect, found.count, found.p) == (2.0, 1, 1.0)
    assert (found.std, found.standard_error, found.low, found.high) == (None, None, None, None)


@pytest.mark.parametrize(("gap", "p"), [(0.5, 0.0), (0.0, 1.0)])
def test_pairs_whose_differences_are_all_the_same_leave_no_doubt(gap, p):
    found = paired_comparison([1.0 + gap, 2.0 + gap], [1.0, 2.0], 0.95)
    assert (found.effect, found.std, found.low, found.high, found.p) == (gap, 0.0, gap, gap, p)
    exact = welch_comparison([Estimate(gap, 0.0, 2)], 0.95)
    assert (exact.effect, exact.low, exact.high, exact.p) == (gap, gap, gap, p)


def estimate(values):
    return Estimate(float(np.mean(values)), float(stats.sem(values)), len(values))


SAMPLES = st.lists(VALUES, min_size=2, max_size=20).filter(lambda values: np.std(values) > 1e-3)


@given(first=SAMPLES, second=SAMPLES, confidence=st.floats(0.5, 0.99))
def test_a_comparison_of_two_estimates_is_scipys_welch_test_and_of_one_its_t_test(first, second, confidence):
    found = welch_comparison([estimate(first), estimate(second)], confidence)
    sides = [(np.mean(values), np.std(values, ddof=1), len(values)) for values in (first, second)]
    expected = stats.ttest_ind_from_stats(*sides[0], *sides[1], equal_var=False)
    interval = stats.ttest_ind(first, second, equal_var=False).confidence_interval(confidence)
    assert found.effect == pytest.approx(np.mean(first) - np.mean(second), abs=1e-9)
    assert found.p == pytest.approx(expected.pvalue, rel=1e-6, abs=1e-12)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-6, abs=1e-9)
    alone = welch_comparison([estimate(first)], confidence)
    assert alone.p == pytest.approx(stats.ttest_1samp(first, 0.0).pvalue, rel=1e-6, abs=1e-12)


def test_few_replicates_on_one_side_find_what_is_not_there_no_more_often_than_they_may():
    trials, alpha = 600, 0.01
    source = np.random.default_rng(1)
    few, many = source.normal(0, 1, (trials, 8)), source.normal(0, 0.5, (trials, 500))
    found = [welch_comparison([estimate(a), estimate(b)], 0.95).p for a, b in zip(few, many, strict=True)]
    wrong = np.mean(np.less(found, alpha))
    assert wrong == pytest.approx(alpha, abs=4 * math.sqrt(alpha * (1 - alpha) / trials))


@pytest.mark.parametrize(
    "call",
    [
        lambda: paired_comparison([], [], 0.95),
        lambda: paired_comparison([1.0, 2.0], [1.0], 0.95),
        lambda: paired_comparison([1.0, math.nan], [1.0, 2.0], 0.95),
        lambda: paired_comparison([1.0, 2.0], [1.0, 2.0], 1.0),
        lambda: welch_comparison([Estimate(1.0, -0.1, 4)], 0.95),
        lambda: welch_comparison([Estimate(1.0, 0.1, 4), Estimate(1.0, 0.1, 1)], 0.95),
        lambda: welch_comparison([Estimate(math.inf, 0.1, 4)], 0.95),
        lambda: welch_comparison([Estimate(1.0, 0.1, 4)], 0.0),
    ],
)
def test_what_cannot_be_compared_is_refused(call):
    with pytest.raises(ValueError, match=r"pairs|finite|confidence|standard error >= 0 and at least 2"):
        call()


def rejected_step_by_step(p_values, alpha):
    """Holm's procedure as its paper has it: from the least p value on, until one is not small enough."""
    rejected = set()
    for place, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        if p_values[index] > alpha / (len(p_values) - place):
            break
        rejected.add(index)
    return rejected


@given(p_values=P_VALUES, alpha=st.floats(0.001, 0.5))
def test_holms_adjusted_p_values_reject_what_the_procedure_rejects(p_values, alpha):
    adjusted = holm(p_values)
    assume(min(abs(p - alpha) for p in adjusted) > 1e-12)
    assert {i for i, p in enumerate(adjusted) if p <= alpha} == rejected_step_by_step(p_values, alpha)


def test_holms_method_bounds_the_chance_of_any_wrong_rejection_also_for_dependent_tests():
    source, alpha, trials = np.random.default_rng(2), 0.1, 3000
    shared = source.normal(0, 1, (trials, 1))
    scores = 0.7 * shared + math.sqrt(1 - 0.7**2) * source.normal(0, 1, (trials, 6))
    wrong = np.mean([min(holm(list(2 * stats.norm.sf(np.abs(row))))) <= alpha for row in scores])
    assert wrong <= alpha + 4 * math.sqrt(alpha * (1 - alpha) / trials)


@pytest.mark.parametrize(("effect", "std", "alpha"), [(1.0, 1.0, 0.05), (-0.5, 0.8, 0.05), (2.0, 1.0, 0.01)])
def test_the_seeds_needed_are_the_fewest_whose_simulated_power_suffices(effect, std, alpha):
    source, trials, power = np.random.default_rng(3), 20000, 0.8
    needed = seeds_needed(effect, std, alpha, power)

    def simulated(count):
        values = source.normal(effect, std, (trials, count))
        return np.mean(stats.ttest_1samp(values, 0.0, axis=1).pvalue < alpha)

    slack = 4 * math.sqrt(power * (1 - power) / trials)
    assert simulated(needed) >= power - slack
    assert simulated(needed - 1) <= power + slack


@given(
    effect=st.floats(0.01, 10),
    std=st.floats(0.01, 10),
    alpha=st.floats(0.0005, 0.2),
    power=st.floats(0.5, 0.95),
    more=st.floats(1.05, 3),
)
def test_less_effect_more_spread_more_tests_and_more_power_never_need_fewer_seeds(effect, std, alpha, power, more):
    def needed(*arguments):
        return seeds_needed(*arguments) or MOST_SEEDS + 1

    base = needed(effect, std, alpha, power)
    assert base >= 2
    assert needed(-effect, std, alpha, power) == base
    assert needed(effect / more, std, alpha, power) >= base
    assert needed(effect, std * more, alpha, power) >= base
    assert needed(effect, std, alpha / more, power) >= base
    assert needed(effect, std, alpha, 1 - (1 - power) / more) >= base


def test_an_effect_that_no_affordable_number_of_seeds_shows_is_none():
    assert seeds_needed(0.0, 1.0, 0.05, 0.8) is None
    assert seeds_needed(1e-6, 1.0, 0.05, 0.8) is None
    assert seeds_needed(1.0, 0.0, 0.05, 0.8) == seeds_needed(1e9, 1.0, 0.05, 0.8) == 2


def test_the_growth_needed_is_where_the_simulated_power_suffices():
    alpha, power, trials = 0.05, 0.8, 20000
    few, many = Estimate(0.9, 0.5, 4), Estimate(0.0, 0.1, 50)
    growth = growth_needed([few, many], alpha, power)
    source = np.random.default_rng(4)

    def simulated(times):
        sides = [
            source.normal(side.value, side.standard_error * math.sqrt(side.replicates), (trials, count))
            for side in (few, many)
            if (count := round(times * side.replicates))
        ]
        return np.mean(stats.ttest_ind(*sides, axis=1, equal_var=False).pvalue < alpha)

    assert 2 < growth < 6
    slack = 4 * math.sqrt(power * (1 - power) / trials)
    assert simulated(math.floor(4 * growth) / 4) <= power + slack
    assert simulated(math.ceil(4 * growth) / 4) >= power - slack


def test_without_an_effect_no_growth_suffices_and_a_clear_one_needs_none():
    assert growth_needed([Estimate(0.0, 0.3, 9)], 0.05, 0.8) == math.inf
    assert growth_needed([Estimate(1e-12, 0.3, 9)], 0.05, 0.8) == math.inf
    assert growth_needed([Estimate(1e-6, 0.3, 9)], 0.05, 0.8) == pytest.approx(2.8016**2 * 9e10, rel=1e-4)
    assert growth_needed([Estimate(9.0, 0.3, 9)], 0.05, 0.8) == 1.0
    assert growth_needed([Estimate(9.0, 0.0, 9)], 0.05, 0.8) == 1.0
