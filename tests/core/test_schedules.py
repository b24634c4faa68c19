import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from builders import run_config as any_run_config
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from gcflow.batches import draw_levels
from gcflow.config import (
    EctSchedule,
    EdmSchedule,
    IctSchedule,
    MethodConfig,
    NoiseProcess,
)
from gcflow.randomness import generator
from gcflow.schedules import (
    ect_lower,
    interval_probabilities,
    noise_levels,
    number_of_intervals,
    sample_intervals,
)
from gcflow.training import describe

PROCESS = NoiseProcess()
SCHEDULE = IctSchedule()
LARGEST_BELOW_ONE = math.nextafter(1, 0)
CONSISTENCY = MethodConfig(objective="consistency")
DENOISING = MethodConfig(objective="denoising")
# ECT's short and long setting.
ECT_SHORT, ECT_LONG = EctSchedule(q=256), EctSchedule(q=2, stage_every=25_000)
ANY_SCHEDULE = [
    (SCHEDULE, CONSISTENCY),
    (ECT_SHORT, CONSISTENCY),
    (ECT_LONG, CONSISTENCY),
    (EdmSchedule(), DENOISING),
]


def run_config(schedule, method=CONSISTENCY, **settings):
    return any_run_config(method, schedule, **settings)


# iCT: the curriculum.


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
    assert number_of_intervals(step, 1000, IctSchedule(s0=10, s1=40)) == intervals


@given(s0=st.integers(1, 20), doublings=st.integers(0, 9), extra=st.integers(1, 3000))
def test_the_curriculum_starts_at_s0_only_doubles_and_ends_at_s1(s0, doublings, extra):
    steps = doublings + extra
    schedule = IctSchedule(s0=s0, s1=s0 * 2**doublings)
    counts = [number_of_intervals(step, steps, schedule) for step in range(steps)]
    assert counts[0] == s0
    assert counts[-1] == schedule.s1
    assert all(b in {a, 2 * a} for a, b in pairwise(counts))


# iCT: the levels and which interval.


@given(
    intervals=st.integers(1, 1500),
    sigma_min=st.floats(1e-3, 0.5),
    ratio=st.floats(10, 1e5),
    rho=st.floats(1, 10),
)
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
def test_inversion_returns_the_interval_whose_cumulative_range_holds_the_uniform(mass, uniform):
    probabilities = torch.tensor(mass, dtype=torch.float64) / sum(mass)
    index = sample_intervals(probabilities, torch.tensor(uniform, dtype=torch.float64)).numpy()
    edges = np.concatenate([[0], np.cumsum(probabilities.numpy())])
    u = np.array(uniform)
    assert (edges[index] <= u + 1e-12).all()
    assert (u < edges[index + 1] + 1e-12).all()


def test_each_pair_spans_neighbouring_levels_of_the_current_curriculum():
    process = NoiseProcess(sigma_min=0.1, sigma_max=3.0, rho=3.0)
    config = run_config(IctSchedule(s0=2, s1=8), steps=30, batch=500, process=process)
    roots = process.sigma_min ** (1 / 3), process.sigma_max ** (1 / 3)
    for step, intervals in [(0, 2), (9, 2), (10, 4), (20, 8), (29, 8), (5, 2)]:
        low, high, _ = draw_levels(config, step)
        levels = np.linspace(*roots, intervals + 1) ** 3
        index = np.abs(levels[:, None] - low.numpy()).argmin(0)
        np.testing.assert_allclose(low.numpy(), levels[index], rtol=1e-5)
        np.testing.assert_allclose(high.numpy(), levels[index + 1], rtol=1e-5)
        assert set(index) == set(range(intervals))


def test_drawn_intervals_have_the_frequencies_of_their_probabilities():
    count = 50_000
    low, _, _ = draw_levels(run_config(IctSchedule(s0=12, s1=12), batch=count), 3)
    levels, observed = low.unique(return_counts=True)
    expected = interval_probabilities(noise_levels(12, PROCESS), SCHEDULE).double().numpy()
    assert len(levels) == 12
    assert stats.chisquare(observed.numpy(), count * expected / expected.sum()).pvalue > 1e-3


# ECT.


@pytest.mark.parametrize("t", [1e-3, 0.05, 0.4, 1.0, 1.95, 3.0, 12.0, 80.0, 1500.0])
@pytest.mark.parametrize(
    ("stage", "schedule"),
    [
        (0, EctSchedule()),
        (1, EctSchedule()),
        (3, EctSchedule()),
        (7, EctSchedule()),
        (0, EctSchedule(q=256)),
        (1, EctSchedule(q=256)),
        (2, EctSchedule(q=4, k=0.0)),
        (0, EctSchedule(q=1.5, k=3.0, b=0.25)),
        (2, EctSchedule(q=1.5, k=3.0, b=4.0)),
    ],
)
def test_the_lower_level_of_ect_is_its_closed_form(t, stage, schedule):
    sigmoid = 1 / (1 + math.exp(schedule.b * t)) if schedule.b * t < 700 else 0.0
    expected = max(0.0, t * (1 - schedule.q ** -(stage + 1) * (1 + schedule.k * sigmoid)))
    lower = ect_lower(torch.tensor([t], dtype=torch.float64), stage, schedule).item()
    assert lower == pytest.approx(expected, rel=1e-12, abs=1e-15)


@given(
    t=st.floats(1e-5, 1e4),
    stage=st.integers(0, 20),
    q=st.floats(1.05, 300),
    k=st.floats(0, 20),
    b=st.floats(0.05, 5),
)
def test_the_lower_level_of_ect_is_not_negative_and_below_the_upper(t, stage, q, k, b):
    stage = min(stage, math.floor(10 / math.log10(q)) - 1)
    lower = ect_lower(torch.tensor([t], dtype=torch.float64), stage, EctSchedule(q=q, k=k, b=b)).item()
    assert 0 <= lower < t


def test_the_short_setting_of_ect_keeps_the_gap_of_its_first_stage_throughout():
    config = run_config(ECT_SHORT, batch=5000, steps=8000)
    for step in (0, 4000, 7999):
        low, high = (level.double() for level in draw_levels(config, step)[:2])
        gap = (1 + 8 / (1 + high.exp())) / 256
        # Both levels are rounded to float32.
        np.testing.assert_allclose(((high - low) / high).numpy(), gap.numpy(), rtol=256 * 2**-23)
        assert (low > 0).all()


def ticked_stages(steps):
    """Stages by the book-keeping of ECT's code (training_loop, batch 128, --tick 12.8, --double 250).

    A tick ends when its 12,800 images have passed, the first of all after a single batch; the stage is looked up at the
    ends of ticks.
    """
    images = ticks = began = stage = 0
    for _ in range(steps):
        yield stage
        images += 128
        if ticks == 0 or images >= began + 12_800:
            ticks, began = ticks + 1, images
            stage = (ticks - 1) // 250


def test_the_stages_of_ect_are_those_of_its_code_at_every_step_of_its_default_length():
    assert [ECT_LONG.stage(step) for step in range(200_000)] == list(ticked_stages(200_000))


@pytest.mark.parametrize(
    ("step", "stage"),
    [(0, 0), (24_999, 0), (25_000, 0), (25_001, 1), (50_000, 1), (50_001, 2), (400_000, 15), (400_001, 16)],
)
def test_the_long_setting_of_ect_raises_its_stage_after_every_25k_steps(step, stage):
    config = run_config(ECT_LONG, batch=2000, steps=500_000)
    assert ECT_LONG.stage(step) == stage
    low, high, _ = draw_levels(config, step)
    expected = ect_lower(high.double(), stage, ECT_LONG)
    torch.testing.assert_close(low.double(), expected, rtol=2**-22, atol=1e-6)
    assert ((low >= 0) & (low < high)).all()


@pytest.mark.parametrize(("q", "every", "steps"), [(256, 1, 4), (2, 1, 40), (2, 25_000, 1_000_000)])
def test_the_two_levels_of_ect_never_meet_in_single_precision(q, every, steps):
    try:
        config = run_config(EctSchedule(q=q, stage_every=every), batch=2000, steps=steps)
    except ValueError as error:
        assert "stage_every" in str(error)  # noqa: PT017
        return
    low, high, _ = draw_levels(config, steps - 1)
    assert (low < high).all()


def test_without_a_period_ect_stays_in_its_first_stage():
    assert {EctSchedule().stage(step) for step in (0, 1, 10_000, 10**7)} == {0}


@pytest.mark.parametrize(
    ("steps", "last"), [(4000, 0), (25_001, 0), (25_002, 1), (100_000, 3), (200_000, 7), (400_000, 15)]
)
def test_another_length_moves_the_end_of_ect_to_another_stage_and_that_of_ict_nowhere(steps, last):
    assert describe(run_config(ECT_LONG, steps=steps), steps - 1) == {"stage": last}
    assert describe(run_config(SCHEDULE, steps=steps), steps - 1) == {"intervals": 1280}


def test_in_its_first_stage_ect_with_q_2_starts_from_the_data_below_ln_7():
    low, high, _ = draw_levels(run_config(EctSchedule(q=2), batch=20_000), 0)
    assert torch.equal(low == 0, high < math.log(7))
    assert 0.7 < (low == 0).float().mean() < 0.95


@pytest.mark.parametrize(
    ("schedule", "method", "mean", "std"),
    [
        (ECT_SHORT, CONSISTENCY, -1.1, 2.0),
        (ECT_LONG, CONSISTENCY, -1.1, 2.0),
        (EctSchedule(p_mean=0.4, p_std=0.7), CONSISTENCY, 0.4, 0.7),
        (EdmSchedule(), DENOISING, -1.2, 1.2),
        (EdmSchedule(p_mean=0.3, p_std=0.5), DENOISING, 0.3, 0.5),
    ],
)
def test_upper_levels_of_ect_and_of_a_denoiser_are_log_normal(schedule, method, mean, std):
    count = 20_000
    _, high, _ = draw_levels(run_config(schedule, method, batch=count), 5)
    logs = high.log().numpy()
    assert stats.kstest(logs, stats.norm(mean, std).cdf).pvalue > 1e-3
    assert abs(logs.mean() - mean) < 4 * std / math.sqrt(count)
    assert abs(logs.std() - std) < 4 * std / math.sqrt(2 * count)


def test_a_denoiser_has_one_level_per_sample():
    low, high, _ = draw_levels(run_config(EdmSchedule(), DENOISING), 0)
    assert torch.equal(low, high)
    assert len(high.unique()) == 64


# Any schedule.


@pytest.mark.parametrize(("schedule", "method"), ANY_SCHEDULE)
def test_levels_are_a_function_of_seed_and_step_for_the_whole_batch(schedule, method):
    before = torch.get_rng_state()
    first, again, later, other = (
        draw_levels(run_config(schedule, method, seed=seed), step) for seed, step in [(0, 4), (0, 4), (0, 5), (1, 4)]
    )
    assert torch.equal(torch.get_rng_state(), before)
    for part in range(2):
        assert first[part].shape == (64,)
        assert first[part].dtype == torch.float32
        assert first[part].isfinite().all()
        assert torch.equal(first[part], again[part])
        assert not torch.equal(first[part], later[part])
        assert not torch.equal(first[part], other[part])


@pytest.mark.parametrize(("schedule", "method"), ANY_SCHEDULE)
def test_levels_tell_nothing_of_who_takes_the_augmented_coupling(schedule, method):
    config = run_config(schedule, method, batch=20_000)
    high = draw_levels(config, 2)[1]
    share = torch.rand(20_000, 2, generator=generator(config.seed, 2, "interval"))[:, 1]
    assert stats.kstest(share.numpy(), "uniform").pvalue > 1e-3
    assert abs(stats.spearmanr(high.numpy(), share.numpy()).statistic) < 4 / math.sqrt(20_000)


def test_the_log_describes_where_each_schedule_is():
    ict, ect = run_config(IctSchedule(s0=10, s1=40), steps=1000), run_config(EctSchedule(stage_every=10), steps=100)
    assert [describe(ict, step) for step in (0, 333, 999)] == [{"intervals": n} for n in (10, 20, 40)]
    assert [describe(ect, step) for step in (10, 11, 99)] == [{"stage": n} for n in (0, 1, 9)]
    assert describe(run_config(EdmSchedule(), DENOISING), 50) == {}
