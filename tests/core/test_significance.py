import math
from itertools import permutations

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from scipy import stats
from scipy.integrate import quad

from gcflow.significance import MOST_SEEDS, Estimate, Paired, Welch, holm, seeds_needed

VALUES = st.floats(-100, 100).map(lambda value: round(value, 3))
SPREAD = st.lists(VALUES, min_size=2, max_size=20).filter(lambda values: np.std(values) > 1e-2)
P_VALUES = st.lists(st.floats(0, 1), min_size=1, max_size=8)


@pytest.mark.parametrize("values", [[0.3, 1.1], [2.0, 1.5, 3.1, 2.2], [-1.0, 0.2, -0.4, 0.1, -2.0, 0.6]])
@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_an_e_value_is_the_likelihood_of_students_t_averaged_over_normal_effects_against_no_effect(values, scale):
    count, found = len(values), stats.ttest_1samp(values, 0.0)
    mixture, _ = quad(
        lambda effect: (
            stats.nct.pdf(found.statistic, count - 1, effect * math.sqrt(count)) * stats.norm.pdf(effect, scale=scale)
        ),
        *(-12 * scale, 12 * scale),
        limit=200,
    )
    expected = mixture / stats.t.pdf(found.statistic, count - 1)
    assert math.exp(Paired(tuple(values), scale).log_e_values[-1]) == pytest.approx(expected, rel=1e-5)


def test_without_an_effect_e_values_have_mean_1_after_any_number_of_pairs_and_rarely_ever_reach_20():
    source, trials, looks = np.random.default_rng(0), 4000, 60
    courses = np.exp([Paired(tuple(row), 1.0).log_e_values for row in source.normal(0, 3.0, (trials, looks))])
    assert np.all(courses[:, 0] == 1)
    for count in (2, 4):
        error = courses[:, count - 1].std() / math.sqrt(trials)
        assert courses[:, count - 1].mean() == pytest.approx(1, abs=4 * error)
    reached = (courses.max(axis=1) >= 20).mean()
    # 2.7 % in the long run of such simulations, 5 % by the theorem.
    assert 0.015 < reached < 0.04


@pytest.mark.parametrize(("effect", "median"), [(1.0, 23), (1.5, 14), (2.0, 11), (3.0, 9)])
def test_standardised_effects_are_found_after_as_many_seeds_in_the_median(effect, median):
    values = np.random.default_rng(1).normal(effect, 1.0, (800, 80))
    first = [np.argmax(Paired(tuple(row), 1.0).log_e_values >= math.log(26 / 0.05)) + 1 for row in values]
    assert np.median(first) == pytest.approx(median, abs=1)


@pytest.mark.parametrize("count", [1, 3, 7, 8])
def test_few_pairs_cannot_decide_however_clear_they_are(count):
    found = Paired((-2.5,) * count, 1.0)
    most = (1 + count) ** ((count - 1) / 2)
    assert found.p == pytest.approx(1 / most)
    assert (found.effect, found.std) == (-2.5, 0.0 if count > 1 else None)
    assert found.interval(0.99 / most) == (-math.inf, math.inf)
    assert count == 1 or found.interval(1.01 / most) == (-2.5, -2.5)
    assert Paired((0.0,) * count, 1.0).p == 1


@given(values=SPREAD, alpha=st.floats(0.01, 0.5), scale=st.floats(0.3, 3))
def test_the_confidence_sequence_is_the_effects_that_no_look_rejects(values, alpha, scale):
    found = Paired(tuple(values), scale)
    (low, high), last = found.interval(alpha), found.course(alpha)
    assert np.all(last[1:, 1] <= last[:-1, 1])
    assume(low < high)
    for end in (low, high):
        if math.isfinite(end):
            assert Paired(tuple(value - end for value in values), scale).p == pytest.approx(alpha, rel=1e-4)
    assume(abs(found.p - alpha) > 1e-9)
    assert (low > 0 or high < 0) == (found.p < alpha)


@given(values=SPREAD, alpha=st.floats(0.01, 0.5))
def test_swapping_the_sides_turns_the_effect_and_its_interval_over_and_keeps_p(values, alpha):
    one, other = Paired(tuple(values), 1.0), Paired(tuple(-value for value in values), 1.0)
    assert other.interval(alpha) == pytest.approx(tuple(-end for end in reversed(one.interval(alpha))))
    assert (other.effect, other.p, other.std) == pytest.approx((-one.effect, one.p, one.std))
    assert one.std == pytest.approx(np.std(values, ddof=1))
    assert one.standard_error == pytest.approx(stats.sem(values))


@pytest.mark.parametrize(("gap", "p"), [(0.5, 0.0), (0.0, 1.0)])
def test_an_estimate_without_an_error_leaves_no_doubt(gap, p):
    exact = Welch((Estimate(gap, 0.0, 2),))
    assert (exact.effect, exact.interval(0.05), exact.p) == (gap, (gap, gap), p)


def estimate(values):
    return Estimate(float(np.mean(values)), float(stats.sem(values)), len(values))


SAMPLES = st.lists(VALUES, min_size=2, max_size=20).filter(lambda values: np.std(values) > 1e-3)


@given(first=SAMPLES, second=SAMPLES, confidence=st.floats(0.5, 0.99))
def test_a_comparison_of_two_estimates_is_scipys_welch_test_and_of_one_its_t_test(first, second, confidence):
    found = Welch((estimate(first), estimate(second)))
    sides = [(np.mean(values), np.std(values, ddof=1), len(values)) for values in (first, second)]
    expected = stats.ttest_ind_from_stats(*sides[0], *sides[1], equal_var=False)
    interval = stats.ttest_ind(first, second, equal_var=False).confidence_interval(confidence)
    assert found.effect == pytest.approx(np.mean(first) - np.mean(second), abs=1e-9)
    assert found.p == pytest.approx(expected.pvalue, rel=1e-6, abs=1e-12)
    assert found.interval(1 - confidence) == pytest.approx((interval.low, interval.high), rel=1e-6, abs=1e-9)
    alone = Welch((estimate(first),))
    assert alone.p == pytest.approx(stats.ttest_1samp(first, 0.0).pvalue, rel=1e-6, abs=1e-12)


def test_few_replicates_on_one_side_find_what_is_not_there_no_more_often_than_they_may():
    trials, alpha = 2000, 0.01
    source = np.random.default_rng(1)
    few, many = source.normal(0, 1, (trials, 8)), source.normal(0, 0.5, (trials, 500))
    found = [Welch((estimate(a), estimate(b))).p for a, b in zip(few, many, strict=True)]
    wrong = np.mean(np.less(found, alpha))
    assert wrong == pytest.approx(alpha, abs=4 * math.sqrt(alpha * (1 - alpha) / trials))


@pytest.mark.parametrize(
    "call",
    [
        lambda: Paired((), 1.0),
        lambda: Paired((1.0, math.nan), 1.0),
        lambda: Welch((Estimate(1.0, -0.1, 4),)),
        lambda: Welch((Estimate(1.0, 0.1, 4), Estimate(1.0, 0.1, 1))),
        lambda: Welch((Estimate(math.inf, 0.1, 4),)),
    ],
)
def test_what_cannot_be_compared_is_refused(call):
    with pytest.raises(ValueError, match=r"pairs|finite|standard error >= 0 and at least 2"):
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
# All of them, of which Bonferroni's would reject the first alone.
@example(p_values=[0.01, 0.04, 0.02], alpha=0.05)
def test_holms_adjusted_p_values_reject_what_the_procedure_rejects(p_values, alpha):
    adjusted = [p for p, _ in holm(p_values)]
    assume(min(abs(p - alpha) for p in adjusted) > 1e-12)
    rejected = {i for i, p in enumerate(adjusted) if p <= alpha}
    assert rejected == rejected_step_by_step(p_values, alpha)
    # An interval at each step's own level excludes 0 where its test is rejected.
    assert all(p_values[i] <= alpha / holm(p_values)[i][1] for i in rejected)


@given(p_values=P_VALUES)
def test_holms_adjusted_p_values_keep_order_and_lie_between_the_raw_ones_and_bonferronis(p_values):
    adjusted = [p for p, _ in holm(p_values)]
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
    wrong = np.mean([min(holm(list(2 * stats.norm.sf(np.abs(row)))))[0] <= alpha for row in scores])
    assert wrong <= alpha + 4 * math.sqrt(alpha * (1 - alpha) / trials)


@pytest.mark.parametrize(("effect", "std", "alpha"), [(1.0, 1.0, 0.05), (-0.5, 0.8, 0.05), (2.0, 1.0, 0.002)])
def test_the_seeds_needed_are_the_fewest_after_which_such_values_decide(effect, std, alpha):
    needed = seeds_needed(effect, std, 1.0, alpha)

    def last_e_value(count):
        values = np.arange(count) - (count - 1) / 2
        return Paired(tuple(effect + std * values / values.std(ddof=1)), 1.0).log_e_values[-1]

    assert last_e_value(needed) > -math.log(alpha) >= last_e_value(needed - 1)
    assert seeds_needed(-effect, std, 1.0, alpha) == needed


@given(effect=st.floats(0.01, 10), std=st.floats(0.01, 10), alpha=st.floats(0.0005, 0.2), more=st.floats(1.05, 3))
def test_less_effect_more_spread_and_more_tests_never_need_fewer_seeds(effect, std, alpha, more):
    def needed(*arguments):
        return seeds_needed(*arguments) or MOST_SEEDS + 1

    base = needed(effect, std, 1.0, alpha)
    assert base >= 2
    assert needed(effect / more, std, 1.0, alpha) >= base
    assert needed(effect, std * more, 1.0, alpha) >= base
    assert needed(effect, std, 1.0, alpha / more) >= base
    assert needed(effect, std, 1.0, alpha, more * effect) <= base


def test_no_effect_needs_no_number_of_seeds_but_to_show_that_it_is_within_a_margin():
    assert seeds_needed(0.0, 1.0, 1.0, 0.05) is None
    assert seeds_needed(1e-6, 1.0, 1.0, 0.05) is None
    within = seeds_needed(0.0, 1.0, 1.0, 0.05, margin=1.0)
    assert within == seeds_needed(1.0, 1.0, 1.0, 0.05)
    assert seeds_needed(1.0, 0.0, 1.0, 0.05 / 26) == seeds_needed(1e9, 1.0, 1.0, 0.05 / 26) == 8


def test_the_growth_needed_is_where_the_interval_excludes_0_or_lies_within_the_margin():
    alpha = 0.05
    for found, margin in ((Welch((Estimate(0.3, 0.5, 400),)), 0.0), (Welch((Estimate(0.1, 0.5, 400),)), 0.5)):
        growth = found.growth_needed(alpha, margin)
        enough = Welch(
            tuple(e._replace(standard_error=e.standard_error / math.sqrt(1.001 * growth)) for e in found.estimates)
        )
        low, high = enough.interval(alpha)
        assert growth > 1
        assert low > 0 or (-margin < low and high < margin)
    assert Welch((Estimate(0.0, 0.3, 9),)).growth_needed(alpha, 0.0) == math.inf
    assert Welch((Estimate(9.0, 0.3, 9),)).growth_needed(alpha, 0.0) == 1.0
    assert Welch((Estimate(9.0, 0.0, 9),)).growth_needed(alpha, 0.0) == 1.0
