import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from gcflow.config import NoiseProcess, ScheduleConfig
from gcflow.schedules import interval_probabilities, noise_levels, number_of_intervals, sample_intervals

PROCESS = NoiseProcess()
SCHEDULE = ScheduleConfig()
LARGEST_BELOW_ONE = math.nextafter(1, 0)


@pytest.mark.parametrize(
    ("step", "intervals"),
    [
        (0, 10),
        (12_499, 10),
        (12_500, 20),
        (24_999, 20),
        (25_000, 40),
        (37_500, 80),
        (50_000, 160),
        (62_500, 320),
        (75_000, 640),
        (87_499, 640),
        (87_500, 1280),
        (99_999, 1280),
    ],
)
def test_the_paper_curriculum_doubles_every_eighth_of_training(step, intervals):
    assert number_of_intervals(step, 100_000, SCHEDULE) == intervals


@pytest.mark.parametrize(("step", "intervals"), [(332, 10), (333, 20), (665, 20), (666, 40), (999, 40)])
def test_the_doubling_period_is_rounded_down_and_the_last_level_is_capped(step, intervals):
    assert number_of_intervals(step, 1000, ScheduleConfig(s0=10, s1=40)) == intervals


@given(s0=st.integers(1, 20), doublings=st.integers(0, 9), extra=st.integers(1, 3000))
@settings(deadline=None, max_examples=50)
def test_the_curriculum_starts_at_s0_only_doubles_and_ends_at_s1(s0, doublings, extra):
    steps = doublings + extra
    schedule = ScheduleConfig(s0=s0, s1=s0 * 2**doublings)
    counts = [number_of_intervals(step, steps, schedule) for step in range(steps)]
    assert counts[0] == s0
    assert counts[-1] == schedule.s1
    assert all(b in {a, 2 * a} for a, b in pairwise(counts))


def test_equal_s0_and_s1_give_a_constant_curriculum():
    assert {number_of_intervals(k, 7, ScheduleConfig(s0=18, s1=18)) for k in range(7)} == {18}


@given(
    intervals=st.integers(1, 1500),
    sigma_min=st.floats(1e-3, 0.5),
    ratio=st.floats(10, 1e5),
    rho=st.floats(1, 10),
)
@settings(deadline=None, max_examples=50)
def test_levels_ascend_between_exact_ends_and_their_roots_are_equally_spaced(intervals, sigma_min, ratio, rho):
    process = NoiseProcess(sigma_min=sigma_min, sigma_max=sigma_min * ratio, rho=rho)
    levels = noise_levels(intervals, process)
    assert levels.shape == (intervals + 1,)
    assert levels.dtype == torch.float32
    assert levels[0].item() == np.float32(process.sigma_min)
    assert levels[-1].item() == np.float32(process.sigma_max)
    assert (levels.diff() > 0).all()
    gaps = np.diff(levels.double().numpy() ** (1 / rho))
    np.testing.assert_allclose(gaps, gaps.mean(), rtol=1e-3, atol=1e-6 * sigma_min ** (1 / rho) * ratio ** (1 / rho))


def test_the_middle_of_two_intervals_is_the_power_mean_of_the_ends():
    assert noise_levels(2, PROCESS)[1].item() == pytest.approx(2.5152, abs=1e-4)
    assert noise_levels(2, NoiseProcess(sigma_min=1, sigma_max=9, rho=2))[1].item() == 4.0


def test_rho_one_gives_equally_spaced_levels():
    levels = noise_levels(4, NoiseProcess(sigma_min=1, sigma_max=9, rho=1))
    assert levels.tolist() == [1, 3, 5, 7, 9]


def test_no_interval_gives_the_largest_level_alone():
    assert noise_levels(0, PROCESS).tolist() == [80.0]


@pytest.mark.parametrize("intervals", [1, 10, 160, 1280])
def test_interval_probabilities_are_normal_integrals_in_log_sigma(intervals):
    levels = noise_levels(intervals, PROCESS)
    edges = np.log(levels.double().numpy())
    normal = stats.norm(SCHEDULE.p_mean, SCHEDULE.p_std)
    mass = np.diff(normal.cdf(edges))
    expected = mass / (normal.cdf(edges[-1]) - normal.cdf(edges[0]))
    probabilities = interval_probabilities(levels, SCHEDULE)
    np.testing.assert_allclose(probabilities.numpy(), expected, rtol=2e-6)
    assert probabilities.double().sum().item() == pytest.approx(1, abs=1e-6)


@given(p_mean=st.floats(-3, 2), p_std=st.floats(0.3, 4))
@settings(deadline=None, max_examples=30)
def test_interval_probabilities_follow_the_density_they_integrate(p_mean, p_std):
    levels = noise_levels(20, PROCESS)
    probabilities = interval_probabilities(levels, ScheduleConfig(p_mean=p_mean, p_std=p_std)).double().numpy()
    logs = np.log(levels.double().numpy())
    fine = np.linspace(logs[:-1], logs[1:], 201)
    mass = np.trapezoid(stats.norm.pdf(fine, p_mean, p_std), fine, axis=0)
    np.testing.assert_allclose(probabilities, mass / mass.sum(), atol=1e-5)


def test_sampled_intervals_have_the_frequencies_of_their_probabilities():
    probabilities = interval_probabilities(noise_levels(12, PROCESS), SCHEDULE)
    count = 50_000
    uniform = torch.rand(count, generator=torch.Generator().manual_seed(3))
    observed = np.bincount(sample_intervals(probabilities, uniform).numpy(), minlength=12)
    expected = probabilities.double().numpy()
    assert stats.chisquare(observed, count * expected / expected.sum()).pvalue > 1e-3


def test_the_smallest_and_the_largest_uniform_give_the_first_and_the_last_interval():
    probabilities = interval_probabilities(noise_levels(1280, PROCESS), SCHEDULE)
    single = torch.tensor([0.0, np.nextafter(np.float32(1), np.float32(0))])
    double = torch.tensor([0.0, LARGEST_BELOW_ONE], dtype=torch.float64)
    assert sample_intervals(probabilities, double).tolist() == [0, 1279]
    first, last = sample_intervals(probabilities, single).tolist()
    assert first == 0
    assert probabilities[last:].sum() <= probabilities[-1] + 2**-23


def test_an_interval_without_mass_is_never_sampled():
    probabilities = torch.tensor([0.0, 0.5, 0.0, 0.5, 0.0])
    uniform = torch.tensor([0.0, 0.25, 0.5, 0.75, LARGEST_BELOW_ONE], dtype=torch.float64)
    assert sample_intervals(probabilities, uniform).tolist() == [1, 1, 3, 3, 3]


@given(
    mass=st.lists(st.floats(0.01, 1), min_size=1, max_size=12),
    uniform=st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=8),
)
@settings(deadline=None, max_examples=100)
def test_inversion_returns_the_interval_whose_cumulative_range_holds_the_uniform(mass, uniform):
    probabilities = torch.tensor(mass, dtype=torch.float64) / sum(mass)
    index = sample_intervals(probabilities, torch.tensor(uniform, dtype=torch.float64)).numpy()
    edges = np.concatenate([[0], np.cumsum(probabilities.numpy())])
    u = np.array(uniform)
    assert (edges[index] <= u + 1e-12).all()
    assert (u < edges[index + 1] + 1e-12).all()
