import math
from itertools import permutations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from gcflow.significance import (
    MOST_SEEDS,
    growth_needed,
    holm,
    monte_carlo_comparison,
    paired_comparison,
    seeds_needed,
)

VALUES = st.floats(-100, 100).map(lambda value: round(value, 3))
PAIRS = st.lists(st.tuples(VALUES, VALUES), min_size=2, max_size=20)
P_VALUES = st.lists(st.floats(0, 1), min_size=1, max_size=8)


@settings(deadline=None)
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


@settings(deadline=None)
@given(pairs=PAIRS)
def test_swapping_the_sides_turns_the_effect_and_its_interval_over_and_keeps_p(pairs):
    first, second = zip(*pairs, strict=True)
    one, other = paired_comparison(first, second, 0.9), paired_comparison(second, first, 0.9)
    assert (other.effect, other.low, other.high) == pytest.approx((-one.effect, -one.high, -one.low))
    assert other.p == pytest.approx(one.p)


@settings(deadline=None)
@given(pairs=PAIRS.filter(lambda pairs: np.std([a - b for a, b in pairs]) > 1e-3), confidence=st.floats(0.5, 0.99))
def test_the_interval_excludes_zero_exactly_when_p_is_below_its_level(pairs, confidence):
    found = paired_comparison(*zip(*pairs, strict=True), confidence)
    if abs(found.p - (1 - confidence)) > 1e-9:
        assert (found.low > 0 or found.high < 0) == (found.p < 1 - confidence)


@pytest.mark.parametrize(("count", "confidence"), [(2, 0.9), (3, 0.95), (8, 0.8)])
def test_the_interval_covers_the_true_difference_as_often_as_it_says(count, confidence):
    trials, truth = 4000, 0.3
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
    exact = monte_carlo_comparison(gap, 0.0, 0.95)
    assert (exact.effect, exact.low, exact.high, exact.p) == (gap, gap, gap, p)


def test_a_monte_carlo_comparison_of_two_means_is_a_z_test_that_simulation_confirms():
    trials, confidence = 4000, 0.9
    source = np.random.default_rng(1)
    first, second = source.normal(1.0, 0.3, trials), source.normal(0.4, 0.4, trials)
    found = [monte_carlo_comparison(a, 0.3, confidence, b, 0.4) for a, b in zip(first, second, strict=True)]
    covered = np.mean([result.low <= 0.6 <= result.high for result in found])
    assert covered == pytest.approx(confidence, abs=4 * math.sqrt(confidence * (1 - confidence) / trials))
    assert found[0].standard_error == pytest.approx(0.5)
    assert found[0].p == pytest.approx(math.erfc(abs(found[0].effect) / 0.5 / math.sqrt(2)))
    alone = monte_carlo_comparison(-0.7, 0.3, confidence)
    assert alone.p == pytest.approx(math.erfc(0.7 / 0.3 / math.sqrt(2)))


@pytest.mark.parametrize(
    "call",
    [
        lambda: paired_comparison([], [], 0.95),
        lambda: paired_comparison([1.0, 2.0], [1.0], 0.95),
        lambda: paired_comparison([1.0, math.nan], [1.0, 2.0], 0.95),
        lambda: paired_comparison([1.0, 2.0], [1.0, 2.0], 1.0),
        lambda: monte_carlo_comparison(1.0, -0.1, 0.95),
        lambda: monte_carlo_comparison(math.inf, 0.1, 0.95),
        lambda: monte_carlo_comparison(1.0, 0.1, 0.0),
    ],
)
def test_what_cannot_be_compared_is_refused(call):
    with pytest.raises(ValueError, match=r"pairs|finite|confidence|standard errors"):
        call()


def rejected_step_by_step(p_values, alpha):
    """Holm's procedure as its paper has it: from the least p value on, until one is not small enough."""
    rejected = set()
    for place, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        if p_values[index] > alpha / (len(p_values) - place):
            break
        rejected.add(index)
    return rejected


@settings(deadline=None, max_examples=300)
@given(p_values=P_VALUES, alpha=st.floats(0.001, 0.5))
def test_holms_adjusted_p_values_reject_what_the_procedure_rejects(p_values, alpha):
    adjusted = holm(p_values)
    assume(min(abs(p - alpha) for p in adjusted) > 1e-12)
    assert {i for i, p in enumerate(adjusted) if p <= alpha} == rejected_step_by_step(p_values, alpha)


@settings(deadline=None)
@given(p_values=P_VALUES)
def test_holms_adjusted_p_values_keep_order_and_lie_between_the_raw_ones_and_bonferronis(p_values):
    adjusted = holm(p_values)
    for raw, after in zip(p_values, adjusted, strict=True):
        assert raw <= after <= min(1.0, len(p_values) * raw) or after == pytest.approx(raw)
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    assert [adjusted[i] for i in order] == sorted(adjusted)


@pytest.mark.parametrize("order", list(permutations([0.001, 0.02, 0.03, 0.5])))
def test_holms_method_does_not_depend_on_the_order(order):
    expected = dict(zip([0.001, 0.02, 0.03, 0.5], holm([0.001, 0.02, 0.03, 0.5]), strict=True))
    assert dict(zip(order, holm(order), strict=True)) == expected
    assert holm([]) == []


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


@settings(deadline=None)
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


def test_the_growth_needed_gives_a_z_test_its_power():
    alpha, power = 0.01, 0.9
    growth = growth_needed(-0.2, 0.3, alpha, power)
    shift, critical = 0.2 / (0.3 / math.sqrt(growth)), stats.norm.ppf(1 - alpha / 2)
    assert stats.norm.sf(critical - shift) == pytest.approx(power)
    assert growth_needed(0.0, 0.3, alpha, power) == math.inf
