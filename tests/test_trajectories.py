import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate

from gcflow.oracles import GaussianMixture
from gcflow.trajectories import GeneratorAugmentedFlow, crossings, ideal_endpoint, straightness

SIGMA_MIN = 1e-3


def double(values):
    return torch.tensor(values, dtype=torch.float64)


def gaussian(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def centred(scale):
    return GaussianMixture(torch.zeros(1, 2, dtype=torch.float64), double([1.0]), scale)


def variance(s, t):
    return s**2 + t**2 + 2 * t * s * t / math.hypot(s, t)


@pytest.mark.parametrize(("t", "tolerance"), [(0.05, 1e-6), (1.0, 1e-4), (80.0, 5e-3)])
def test_the_ideal_endpoint_of_a_gaussian_has_its_closed_form(t, tolerance):
    x = math.hypot(0.6, t) * gaussian(0, 5, 2)
    expected = math.hypot(0.6, SIGMA_MIN) / math.hypot(0.6, t) * x
    torch.testing.assert_close(ideal_endpoint(centred(0.6), x, t, SIGMA_MIN), expected, rtol=tolerance, atol=0)


def test_the_ideal_endpoint_at_the_end_is_the_point_itself():
    x = gaussian(0, 5, 2)
    torch.testing.assert_close(ideal_endpoint(centred(0.6), x, SIGMA_MIN, SIGMA_MIN), x)


def test_far_endpoints_of_a_mixture_lie_near_its_components():
    mixture = GaussianMixture(double([[-2.0, 0.0], [2.0, 0.0]]), double([0.5, 0.5]), 0.1)
    ends = ideal_endpoint(mixture, 5 * gaussian(0, 40, 2), 5.0, SIGMA_MIN)
    distance = torch.cdist(ends, mixture.means).min(1).values
    assert distance.max() < 0.6
    assert {-1.0, 1.0} == set(ends[:, 0].sign().tolist())


@pytest.mark.parametrize("s", [0.5, 1.0])
@pytest.mark.parametrize("t", [0.5, 1.0, 4.0])
def test_the_augmented_endpoint_of_a_gaussian_is_its_linear_regression(s, t):
    flow = GeneratorAugmentedFlow(centred(s), SIGMA_MIN, 81)
    x = math.sqrt(variance(s, t)) * gaussian(1, 8, 2)
    a = s * t / math.hypot(s, t)
    slope = (s**2 + t * a) / (s**2 + t**2 + 2 * t * a)
    torch.testing.assert_close(flow.endpoint(x, t), slope * x, rtol=2e-3, atol=1e-4)
    torch.testing.assert_close(flow(x, t), (1 - slope) / t * x, rtol=5e-3, atol=2e-4)


def test_the_augmented_endpoint_of_a_mixture_is_a_conditional_mean_by_monte_carlo():
    mixture = GaussianMixture(double([[-1.0, 0.0], [1.0, 0.5]]), double([0.3, 0.7]), 0.3)
    t, count = 0.8, 40_000
    data, _ = mixture.sample(count, torch.Generator().manual_seed(0))
    z = gaussian(1, count, 2)
    predicted = ideal_endpoint(mixture, data + t * z, t, SIGMA_MIN)
    points = predicted + t * z
    flow = GeneratorAugmentedFlow(mixture, SIGMA_MIN, 51)
    for centre in double([[0.0, 0.0], [-1.2, 0.3], [1.0, 0.5]]):
        near = ((points - centre).norm(dim=1) < 0.5).nonzero().squeeze(1)[:1000]
        assert len(near) == 1000
        # By the tower property the residual is orthogonal to every function of the point, the constant first of all.
        expected = flow.endpoint(points[near], t)
        residual = predicted[near] - expected
        for moment in (residual, residual * (points[near] - centre), residual * (points[near] - centre).flip(1)):
            assert (moment.mean(0).abs() < 4 * moment.std(0) / math.sqrt(1000)).all()
        assert expected.std(0).min() > 0.05


def test_augmented_trajectories_of_a_gaussian_follow_their_linear_equation_with_second_order():
    s, high, low = 0.8, 5.0, 0.5
    flow = GeneratorAugmentedFlow(centred(s), SIGMA_MIN, 61)
    x = math.sqrt(variance(s, high)) * gaussian(0, 4, 2)
    exponent, _ = integrate.quad(lambda t: (t + s * t / math.hypot(s, t)) / variance(s, t), high, low)
    errors = []
    for intervals in (5, 10, 20):
        sigmas = torch.linspace(math.log(high), math.log(low), intervals + 1).exp().tolist()
        states = flow.trajectories(x, sigmas)
        assert states.shape == (intervals + 1, 4, 2)
        assert torch.equal(states[0], x)
        assert straightness(states) == pytest.approx(1, abs=1e-6)
        errors.append((states[-1] / x / math.exp(exponent) - 1).abs().max().item())
    assert errors[2] < 3e-3
    assert errors[0] / errors[1] > 3
    assert errors[1] / errors[2] > 3


@given(
    start=st.tuples(st.floats(-5, 5), st.floats(-5, 5)),
    direction=st.floats(0, 2 * math.pi),
    gaps=st.lists(st.floats(0.01, 3), min_size=1, max_size=8),
)
@settings(deadline=None, max_examples=50)
def test_a_line_walked_forwards_is_straight(start, direction, gaps):
    lengths = torch.cumsum(double([0.0, *gaps]), 0)
    line = double(start) + lengths[:, None] * double([math.cos(direction), math.sin(direction)])
    assert straightness(line[:, None]) == pytest.approx(1, abs=1e-9)


def test_straightness_is_the_chord_over_the_arc_averaged_over_trajectories():
    corner = double([[0.0, 0.0], [3.0, 0.0], [3.0, 4.0]])
    line = double([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]])
    there_and_back = double([[0.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    assert straightness(corner[:, None]) == pytest.approx(5 / 7)
    assert straightness(there_and_back[:, None]) == 0
    assert straightness(torch.stack([corner, line, there_and_back], dim=1)) == pytest.approx((5 / 7 + 1) / 3)
    angles = torch.linspace(0, math.pi, 1001, dtype=torch.float64)
    half_circle = torch.stack([angles.cos(), angles.sin()], dim=1)
    assert straightness(half_circle[:, None]) == pytest.approx(2 / math.pi, rel=1e-5)


def paths(*trajectories):
    return torch.stack([double(points) for points in trajectories], dim=1)


def test_two_diagonals_cross_and_two_parallels_do_not():
    rising, falling = [[0.0, 0.0], [2.0, 2.0]], [[0.0, 2.0], [2.0, 0.0]]
    assert crossings(paths(rising, falling)) == 1
    assert crossings(paths(rising, [[0.0, 1.0], [2.0, 3.0]])) == 0
    assert crossings(paths(rising)) == 0


def test_segments_whose_lines_meet_outside_of_them_do_not_cross():
    assert crossings(paths([[0.0, 0.0], [1.0, 1.0]], [[4.0, 0.0], [3.0, 1.0]])) == 0
    assert crossings(paths([[0.0, 0.0], [4.0, 0.0]], [[1.0, 1.0], [1.0, 3.0]])) == 0
    assert crossings(paths([[1.0, 1.0], [1.0, 3.0]], [[0.0, 0.0], [4.0, 0.0]])) == 0


def test_every_crossing_pair_counts_once_however_often_it_crosses():
    zigzag = [[0.0, -1.0], [1.0, 1.0], [2.0, -1.0], [3.0, 1.0]]
    axis = [[0.0, 0.0], [1.0, 0.0], [2.0, 0.0], [4.0, 0.0]]
    assert crossings(paths(zigzag, axis)) == 1
    star = [[[math.cos(a), math.sin(a)], [-math.cos(a), -math.sin(a)]] for a in (0.1, 0.9, 1.7, 2.5)]
    assert crossings(paths(*star)) == 6


def test_paths_that_cross_at_different_times_count_as_crossing():
    early = [[0.0, 0.0], [2.0, 0.0], [3.0, 0.0]]
    late = [[1.0, 3.0], [1.0, 1.0], [1.0, -1.0]]
    assert crossings(paths(early, late)) == 1


@given(seed=st.integers(0, 10**6), angle=st.floats(0, 6.2))
@settings(deadline=None, max_examples=20)
def test_crossings_and_straightness_do_not_change_under_rotation_and_order(seed, angle):
    states = gaussian(seed, 4, 5, 2).cumsum(0)
    rotation = double([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    assert crossings(states @ rotation) == crossings(states) == crossings(states.flip(1)) == crossings(states.flip(0))
    assert straightness(states @ rotation) == pytest.approx(straightness(states))
