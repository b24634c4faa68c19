import math

import numpy as np
import pytest
import torch
from builders import double
from builders import gaussian64 as gaussian
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, optimize
from scipy.special import log_ndtr, ndtr, ndtri_exp

from gcflow.oracles import GaussianMixture
from gcflow.theory import trajectories
from gcflow.theory.trajectories import GeneratorAugmentedFlow, crossings, figure_1, pf_ode_trajectories, straightness

SIGMA_MIN = 1e-3


def centred(scale):
    return GaussianMixture(torch.zeros(1, 2, dtype=torch.float64), double([1.0]), scale)


def variance(s, t):
    return s**2 + t**2 + 2 * t * s * t / math.hypot(s, t)


def test_pf_ode_trajectories_of_a_gaussian_are_straight_rays_at_its_standard_deviations():
    x, sigmas = 5 * gaussian(0, 4, 2), [5.0, 2.0, 0.4, 0.05]
    states = pf_ode_trajectories(centred(0.6), x, sigmas)
    factors = double([math.hypot(0.6, sigma) / math.hypot(0.6, 5) for sigma in sigmas])
    assert torch.equal(states[0], x)
    torch.testing.assert_close(states, factors[:, None, None] * x)


def test_each_state_of_a_pf_ode_trajectory_is_the_flow_from_its_start():
    mixture = GaussianMixture(double([[-1.0, 0.0], [1.0, 0.5]]), double([0.3, 0.7]), 0.3)
    x, sigmas = 3 * gaussian(0, 6, 2), torch.logspace(0.5, -1.3, 7, dtype=torch.float64).tolist()
    states = pf_ode_trajectories(mixture, x, sigmas)
    for state, sigma in zip(states, sigmas, strict=True):
        torch.testing.assert_close(state, mixture.flow(x, sigmas[0], sigma, 0.005), rtol=0, atol=1e-4)


@pytest.mark.parametrize("s", [0.5, 1.0])
@pytest.mark.parametrize("t", [0.5, 1.0, 4.0])
def test_the_augmented_endpoint_of_a_gaussian_is_its_linear_regression(s, t):
    flow = GeneratorAugmentedFlow(centred(s), SIGMA_MIN)
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
    predicted = mixture.flow(data + t * z, t, SIGMA_MIN, 0.02)
    points = predicted + t * z
    flow = GeneratorAugmentedFlow(mixture, SIGMA_MIN)
    for centre in double([[0.0, 0.0], [-1.2, 0.3], [1.0, 0.5]]):
        near = ((points - centre).norm(dim=1) < 0.5).nonzero().squeeze(1)[:300]
        assert len(near) == 300
        # By the tower property the residual is orthogonal to every function of the point, the constant first of all.
        expected = flow.endpoint(points[near], t)
        residual = predicted[near] - expected
        for moment in (residual, residual * (points[near] - centre), residual * (points[near] - centre).flip(1)):
            assert (moment.mean(0).abs() < 4 * moment.std(0) / math.sqrt(300)).all()
        assert expected.std(0).min() > 0.05


def test_augmented_trajectories_of_a_gaussian_follow_their_linear_equation_with_second_order():
    s, high, low = 0.8, 5.0, 0.5
    flow = GeneratorAugmentedFlow(centred(s), SIGMA_MIN)
    x = math.sqrt(variance(s, high)) * gaussian(0, 4, 2)
    exponent, _ = integrate.quad(lambda t: (t + s * t / math.hypot(s, t)) / variance(s, t), high, low)
    errors = []
    for intervals in (5, 10, 20):
        sigmas = torch.linspace(math.log(high), math.log(low), intervals + 1).exp().tolist()
        states = flow.trajectories(x, sigmas)
        assert states.shape == (intervals + 1, 4, 2)
        assert torch.equal(states[0], x)
        torch.testing.assert_close(straightness(states), torch.ones(4, dtype=torch.float64), rtol=0, atol=1e-6)
        errors.append((states[-1] / x / math.exp(exponent) - 1).abs().max().item())
    assert errors[2] < 3e-3
    assert errors[0] / errors[1] > 3
    assert errors[1] / errors[2] > 3


@given(
    start=st.tuples(st.floats(-5, 5), st.floats(-5, 5)),
    direction=st.floats(0, 2 * math.pi),
    gaps=st.lists(st.floats(0.01, 3), min_size=1, max_size=8),
)
def test_a_line_walked_forwards_is_straight(start, direction, gaps):
    lengths = torch.cumsum(double([0.0, *gaps]), 0)
    line = double(start) + lengths[:, None] * double([math.cos(direction), math.sin(direction)])
    assert straightness(line[:, None]).tolist() == pytest.approx([1], abs=1e-9)


def test_straightness_is_the_chord_over_the_arc_of_each_trajectory():
    corner = double([[0.0, 0.0], [3.0, 0.0], [3.0, 4.0]])
    line = double([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]])
    there_and_back = double([[0.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    assert straightness(torch.stack([corner, line, there_and_back], dim=1)).tolist() == pytest.approx([5 / 7, 1, 0])
    angles = torch.linspace(0, math.pi, 1001, dtype=torch.float64)
    half_circle = torch.stack([angles.cos(), angles.sin()], dim=1)
    assert straightness(half_circle[:, None]).item() == pytest.approx(2 / math.pi, rel=1e-5)


def counts(*trajectories):
    """How many others each of these paths intersects."""
    found = crossings(torch.stack([double(points) for points in trajectories], dim=1))
    assert found.dtype == torch.int64
    return found.tolist()


def test_two_diagonals_cross_and_two_parallels_do_not():
    rising, falling = [[0.0, 0.0], [2.0, 2.0]], [[0.0, 2.0], [2.0, 0.0]]
    assert counts(rising, falling) == [1, 1]
    assert counts(rising, [[0.0, 1.0], [2.0, 3.0]]) == [0, 0]
    assert counts(rising) == [0]


def test_segments_whose_lines_meet_outside_of_them_do_not_cross():
    assert counts([[0.0, 0.0], [1.0, 1.0]], [[4.0, 0.0], [3.0, 1.0]]) == [0, 0]
    assert counts([[0.0, 0.0], [4.0, 0.0]], [[1.0, 1.0], [1.0, 3.0]]) == [0, 0]
    assert counts([[1.0, 1.0], [1.0, 3.0]], [[0.0, 0.0], [4.0, 0.0]]) == [0, 0]


def test_every_crossing_pair_counts_once_however_often_it_crosses():
    zigzag = [[0.0, -1.0], [1.0, 1.0], [2.0, -1.0], [3.0, 1.0]]
    axis = [[0.0, 0.0], [1.0, 0.0], [2.0, 0.0], [4.0, 0.0]]
    assert counts(zigzag, axis) == [1, 1]
    star = [[[math.cos(a), math.sin(a)], [-math.cos(a), -math.sin(a)]] for a in (0.1, 0.9, 1.7, 2.5)]
    assert counts(*star) == [3, 3, 3, 3]


def test_each_path_has_the_number_of_its_own_crossings():
    bar, aside = [[0.0, 0.0], [3.0, 0.0]], [[5.0, 5.0], [6.0, 5.0]]
    posts = [[[x, -1.0], [x, 1.0]] for x in (1.0, 2.0)]
    assert counts(bar, aside, *posts) == [2, 0, 1, 1]


def test_a_path_that_crosses_itself_crosses_no_other():
    loop = [[0.0, 0.0], [2.0, 0.0], [1.0, 1.0], [1.0, -1.0]]
    assert counts(loop, [[0.0, 3.0], [1.0, 3.0], [2.0, 3.0], [3.0, 3.0]]) == [0, 0]


def test_paths_that_cross_at_different_times_count_as_crossing():
    early = [[0.0, 0.0], [2.0, 0.0], [3.0, 0.0]]
    late = [[1.0, 3.0], [1.0, 1.0], [1.0, -1.0]]
    assert counts(early, late) == [1, 1]


@given(seed=st.integers(0, 10**6), angle=st.floats(0, 6.2))
def test_crossings_and_straightness_do_not_change_under_rotation_and_order(seed, angle):
    states = gaussian(seed, 4, 5, 2).cumsum(0)
    rotation = double([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    for other in (states @ rotation, states.flip(0)):
        assert torch.equal(crossings(other), crossings(states))
        torch.testing.assert_close(straightness(other), straightness(states))
    assert torch.equal(crossings(states.flip(1)), crossings(states).flip(0))
    torch.testing.assert_close(straightness(states.flip(1)), straightness(states).flip(0))


# Figure 1.


@pytest.fixture
def coarse(monkeypatch):
    monkeypatch.setattr(trajectories, "SPACING", 0.7)
    monkeypatch.setattr(trajectories, "LEVELS", 9)


COARSE = (3.0, 0.3)
FOUR = GaussianMixture(double([[1.2, 0.4], [-0.9, 1.1], [-0.6, -1.3], [0.9, -0.8]]), double([0.25] * 4), 0.35)


@pytest.mark.usefixtures("coarse")
def test_figure_1_holds_on_the_mixture_and_shows_what_it_says():
    checks, curves = figure_1(FOUR, SIGMA_MIN, COARSE, 128, 0)
    assert [check.relation for check in checks] == [">", "<"]
    assert all(check.holds for check in checks)
    assert curves["sigmas"] == pytest.approx([3 * 0.1 ** (k / 8) for k in range(9)])
    assert list(curves["paths"]) == ["independent pairs", "PF-ODE", "GC flow"]
    states = {name: double(content["states"]) for name, content in curves["paths"].items()}
    for name, content in curves["paths"].items():
        assert states[name].shape == (9, 128, 2)
        assert torch.equal(states[name][0], states["PF-ODE"][0])
        assert content["straightness"] == pytest.approx(straightness(states[name]).mean().item())
        assert content["crossing_pairs"] == crossings(states[name]).sum().item() / 2
    assert curves["paths"]["independent pairs"]["straightness"] == pytest.approx(1)
    torch.testing.assert_close(states["PF-ODE"][-1], FOUR.flow(states["PF-ODE"][0], 3.0, 0.3, 0.01), rtol=0, atol=1e-4)
    straighter = straightness(states["GC flow"]) - straightness(states["PF-ODE"])
    assert checks[0].measured == pytest.approx(straighter.mean().item())
    assert checks[0].tolerance == pytest.approx(3 * straighter.std().item() / math.sqrt(128))
    fewer = (crossings(states["GC flow"]) - crossings(states["PF-ODE"])).double()
    assert checks[1].measured == pytest.approx(fewer.mean().item())


@pytest.mark.usefixtures("coarse")
def test_figure_1_does_not_hold_where_both_flows_are_the_same(monkeypatch):
    same = staticmethod(lambda x, sigmas: pf_ode_trajectories(FOUR, x, sigmas))
    monkeypatch.setattr(GeneratorAugmentedFlow, "trajectories", same)
    checks, _ = figure_1(FOUR, SIGMA_MIN, COARSE, 16, 0)
    assert [check.holds for check in checks] == [False, False]


@pytest.mark.usefixtures("coarse")
def test_figure_1_does_not_hold_for_a_gaussian_whose_pf_ode_is_straight_and_crosses_nothing():
    checks, curves = figure_1(centred(0.5), SIGMA_MIN, COARSE, 16, 0)
    assert curves["paths"]["PF-ODE"]["straightness"] == pytest.approx(1)
    assert curves["paths"]["PF-ODE"]["crossing_pairs"] == 0
    assert [check.holds for check in checks] == [False, False]


@pytest.mark.usefixtures("coarse")
def test_figure_1_follows_its_seed():
    first, again, other = (figure_1(FOUR, SIGMA_MIN, COARSE, 4, seed)[1] for seed in (0, 0, 1))
    assert first == again
    assert first != other


@pytest.mark.usefixtures("coarse")
def test_pairs_of_a_trained_predictor_are_lines_from_its_endpoints_along_the_same_noises():
    asked = []

    def predict(x, sigma):
        asked.append((x, sigma))
        return 0.1 * x

    checks, curves = figure_1(FOUR, SIGMA_MIN, COARSE, 8, 0, predict)
    assert list(curves["paths"]) == ["independent pairs", "trained GC pairs", "PF-ODE", "GC flow"]
    independent, trained, *_ = (double(content["states"]) for content in curves["paths"].values())
    ((x, sigma),) = asked
    assert (x.tolist(), sigma) == (independent[0].tolist(), 3.0)
    noise = (independent[0] - independent[-1]) / (3 - 0.3)
    torch.testing.assert_close(trained, 0.1 * x + double(curves["sigmas"])[:, None, None] * noise)
    # They change nothing else.
    del curves["paths"]["trained GC pairs"]
    assert (checks, curves) == figure_1(FOUR, SIGMA_MIN, COARSE, 8, 0)


# The authors' example: two narrow Gaussians, where coordinates are independent and f is the transport of quantiles.

HALF, NARROW = 0.5, 0.01
# From the line between the two, within a few deviations of which f jumps and the quadrature loses digits.
APART = 0.1
TWO = GaussianMixture(double([[0.0, HALF], [0.0, -HALF]]), double([0.5, 0.5]), NARROW)


def distribution(x, t):
    """The distribution function of the second coordinate of x_t."""
    scale = math.hypot(NARROW, t)
    return (ndtr((x - HALF) / scale) + ndtr((x + HALF) / scale)) / 2


def second_endpoint(x, t):
    """F of the second coordinate, float64 array, by the quantiles of one mode: the other is 50 deviations away."""
    scale = math.hypot(NARROW, t)
    above = np.logaddexp(log_ndtr((HALF - abs(x)) / scale), log_ndtr((-HALF - abs(x)) / scale))
    return np.sign(x) * (HALF - math.hypot(NARROW, SIGMA_MIN) * ndtri_exp(above))


@pytest.mark.parametrize("end", [0.3, 0.1, 0.02])
def test_the_pf_ode_between_two_narrow_gaussians_transports_quantiles(end):
    x = TWO.sample(200, torch.Generator().manual_seed(0))[0] + gaussian(1, 200, 2)
    final = pf_ode_trajectories(TWO, x, torch.logspace(0, math.log10(end), 31, dtype=torch.float64).tolist())[-1]
    factor = math.hypot(NARROW, end) / math.hypot(NARROW, 1)
    torch.testing.assert_close(final[:, 0], factor * x[:, 0], rtol=1e-12, atol=0)
    levels = distribution(x[:, 1].numpy(), 1.0)
    expected = [optimize.brentq(lambda y, f=f: distribution(y, end) - f, -3, 3, xtol=1e-14) for f in levels]
    torch.testing.assert_close(final[:, 1], double(expected), rtol=0, atol=1e-4)


@pytest.mark.parametrize("t", [0.02, 0.1, 0.3, 1.0, 5.0])
def test_the_augmented_endpoint_of_two_narrow_gaussians_is_that_of_each_coordinate(t):
    x = TWO.sample(40, torch.Generator().manual_seed(0))[0] + t * gaussian(1, 40, 2)
    found = GeneratorAugmentedFlow(TWO, SIGMA_MIN).endpoint(x, t)
    # f of the Gaussian coordinate is linear, and so is the regression on x~ = f + t z.
    a = math.hypot(NARROW, SIGMA_MIN) / math.hypot(NARROW, t)
    spread = a**2 * (NARROW**2 + t**2) + 2 * a * t**2 + t**2
    slope = (a**2 * (NARROW**2 + t**2) + a * t**2) / spread
    torch.testing.assert_close(found[:, 0], slope * x[:, 0], rtol=0, atol=5e-5)

    difference = np.linspace(-1, 1, 3)[:, None] + np.linspace(-0.15, 0.15, 4801)
    expected = []
    for value in x[:, 1].tolist():
        y = value + difference
        f = second_endpoint(y, t)
        data, noise = f + difference, (value - f) / t
        weight = np.exp(-((abs(data) - HALF) ** 2) / (2 * NARROW**2) - noise**2 / 2)
        expected.append((weight * f).sum() / weight.sum())
    error = (found[:, 1] - double(expected)).abs()
    assert error.median() < 1e-5
    assert error[x[:, 1].abs() > APART].max() < 3e-3


def test_the_augmented_flow_of_two_narrow_gaussians_goes_straight_to_the_mode_of_its_half_plane():
    # f(y) is the mode of y's half plane, and x~ = f(y) + y - x* is y, or y moved away from 0: in that half too.
    x = TWO.sample(60, torch.Generator().manual_seed(0))[0] + gaussian(1, 60, 2)
    x = x[x[:, 1].abs() > APART]
    sigmas = torch.logspace(0, math.log10(0.02), 11, dtype=torch.float64).tolist()
    states = GeneratorAugmentedFlow(TWO, SIGMA_MIN).trajectories(x, sigmas)
    mode = HALF * x.sign() * double([0.0, 1.0])
    line = torch.stack([mode + (x - mode) * sigma for sigma in sigmas])
    assert (states - line).norm(dim=-1).max() < 5 * NARROW
    assert straightness(states).min() > 0.999


@pytest.mark.parametrize(("mixture", "levels", "atol"), [(FOUR, (3.0, 0.05), 5e-3), (TWO, (1.0, 0.02), 2e-3)])
def test_the_augmented_flow_is_integrated_as_accurately_as_it_is_drawn(monkeypatch, mixture, levels, atol):
    x = mixture.sample(4, torch.Generator().manual_seed(0))[0] + levels[0] * gaussian(1, 4, 2)
    x = x[x[:, 1].abs() > APART]

    def states(count):
        sigmas = torch.logspace(*map(math.log10, levels), count, dtype=torch.float64).tolist()
        return GeneratorAugmentedFlow(mixture, SIGMA_MIN).trajectories(x, sigmas)

    found = states(trajectories.LEVELS)
    monkeypatch.setattr(trajectories, "SPACING", 0.28)
    monkeypatch.setattr(trajectories, "LARGEST_ENDPOINT_STEP", 0.1)
    torch.testing.assert_close(found, states(2 * trajectories.LEVELS - 1)[::2], rtol=0, atol=atol)
