import math
from itertools import pairwise

import pytest
import torch
from scipy import stats

from gcflow.config import NoiseProcess
from gcflow.sampling import consistency_sample, heun_sample

PROCESS = NoiseProcess()
SCALE = 0.5


class Recorder:
    def __init__(self, function):
        self.function = function
        self.calls = []

    def __call__(self, x, sigma):
        self.calls.append((x.clone(), sigma.clone()))
        return self.function(x, sigma)


def gaussian_denoiser(x, sigma):
    return SCALE**2 / (SCALE**2 + sigma[:, None] ** 2) * x


def gaussian_flow(x, sigma):
    return ((SCALE**2 + PROCESS.sigma_min**2) / (SCALE**2 + sigma[:, None] ** 2)).sqrt() * x


def noise(count=6, d=3, dtype=torch.float32):
    return torch.randn(count, d, generator=torch.Generator().manual_seed(0), dtype=dtype)


def test_one_step_is_one_evaluation_at_the_largest_noise_level():
    model = Recorder(lambda x, sigma: x + 1)
    sample = consistency_sample(model, noise(), PROCESS)
    ((x, sigma),) = model.calls
    assert torch.equal(x, 80 * noise())
    assert sigma.tolist() == [80.0] * 6
    assert torch.equal(sample, 80 * noise() + 1)


def test_few_steps_renoise_each_prediction_to_the_next_level_and_predict_again():
    model = Recorder(lambda x, sigma: x / (1 + sigma[:, None]))
    levels = (10.0, 0.8, 0.1)
    sample = consistency_sample(model, noise(), PROCESS, levels, torch.Generator().manual_seed(4))
    draws = torch.Generator().manual_seed(4)
    expected_input = 80 * noise()
    assert len(model.calls) == 4
    for (x, sigma), level, following in zip(model.calls, (80.0, *levels), (*levels, None), strict=True):
        torch.testing.assert_close(x, expected_input)
        torch.testing.assert_close(sigma, torch.full((6,), level))
        prediction = x / (1 + level)
        if following is not None:
            added = math.sqrt(following**2 - 0.002**2) * torch.randn(6, 3, generator=draws)
            expected_input = prediction + added
    torch.testing.assert_close(sample, prediction)


def test_renoised_samples_have_the_variance_of_their_level():
    process = NoiseProcess(sigma_min=0.3)
    model = Recorder(lambda x, sigma: torch.zeros_like(x))
    consistency_sample(model, torch.zeros(40_000, 1), process, (0.5,), torch.Generator().manual_seed(0))
    seen = model.calls[1][0][:, 0].numpy()
    assert stats.kstest(seen, stats.norm(0, 0.4).cdf).pvalue > 1e-3


def test_the_ideal_model_turns_noise_into_the_data_distribution_in_any_number_of_steps():
    z = torch.randn(40_000, 1, generator=torch.Generator().manual_seed(1))
    for levels in [(), (2.0,), (5.0, 0.5, 0.1)]:
        sample = consistency_sample(gaussian_flow, z, PROCESS, levels, torch.Generator().manual_seed(2))
        assert stats.kstest(sample[:, 0].numpy(), stats.norm(0, SCALE).cdf).pvalue > 1e-3


def test_equal_generators_give_equal_few_step_samples():
    first, again, other = (
        consistency_sample(gaussian_flow, noise(), PROCESS, (1.0,), torch.Generator().manual_seed(s)) for s in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("steps", [1, 2, 3, 18])
def test_heun_evaluates_the_denoiser_twice_per_step_but_once_in_the_last(steps):
    denoiser = Recorder(gaussian_denoiser)
    heun_sample(denoiser, noise(), PROCESS, steps)
    assert len(denoiser.calls) == 2 * steps - 1
    sigmas = [sigma[0].item() for _, sigma in denoiser.calls]
    assert sigmas[0] == 80
    assert all(sigma > 0 for sigma in sigmas)
    if steps > 1:
        assert sigmas[-1] == pytest.approx(0.002)


def test_two_heun_steps_by_hand():
    process = NoiseProcess(sigma_min=1.0, sigma_max=3.0)
    z = 2.0
    x = 3 * z

    def slope(value, sigma):
        return value * sigma / (SCALE**2 + sigma**2)

    first = slope(x, 3.0)
    guess = x - 2 * first
    x -= 2 * (first + slope(guess, 1.0)) / 2
    x -= slope(x, 1.0)
    sample = heun_sample(gaussian_denoiser, torch.tensor([[z]], dtype=torch.float64), process, 2)
    assert sample.item() == pytest.approx(x, rel=1e-9)


def test_one_heun_step_is_the_denoiser_at_the_largest_level():
    sample = heun_sample(gaussian_denoiser, noise(), PROCESS, 1)
    torch.testing.assert_close(
        sample, gaussian_denoiser(80 * noise(), torch.full((6,), 80.0)), rtol=1e-3, atol=80 * 2**-22
    )


def test_heun_reaches_the_closed_form_flow_of_a_gaussian_with_second_order():
    z = noise(dtype=torch.float64)
    exact = SCALE / math.hypot(SCALE, 80) * 80 * z
    errors = [
        ((heun_sample(gaussian_denoiser, z, PROCESS, steps) - exact).norm() / exact.norm()).item()
        for steps in (40, 80, 160)
    ]
    assert errors[-1] < 1e-3
    for coarse, fine in pairwise(errors):
        assert 3 < coarse / fine < 5.5


def test_samplers_build_no_graph():
    weight = torch.ones((), requires_grad=True)

    def model(x, sigma):
        return weight * gaussian_denoiser(x, sigma)

    samples = (
        consistency_sample(model, noise(), PROCESS, (1.0,), torch.Generator().manual_seed(0)),
        heun_sample(model, noise(), PROCESS, 3),
    )
    assert not any(sample.requires_grad for sample in samples)


def test_samplers_leave_their_noise_as_it_was():
    z = noise()
    consistency_sample(gaussian_flow, z, PROCESS, (1.0,), torch.Generator().manual_seed(0))
    heun_sample(gaussian_denoiser, z, PROCESS, 3)
    assert torch.equal(z, noise())
