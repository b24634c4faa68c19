import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from gcflow.config import NoiseProcess
from gcflow.preconditioning import (
    PreconditionedNetwork,
    consistency_coefficients,
    denoising_coefficients,
    from_model_space,
    per_sample,
    to_model_space,
)

SIGMAS = [0.002, 0.01, 0.3, 0.5, 1.0, 7.5, 80.0]


class Recorder(nn.Module):
    def __init__(self, output):
        super().__init__()
        self.output = output
        self.calls = []

    def forward(self, x, condition, dropout):
        self.calls.append((x, condition, dropout))
        return self.output


@given(
    sigma_min=st.floats(1e-4, 0.9),
    sigma_data=st.floats(0.05, 5),
    values=st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=6),
    answer=st.floats(-(2.0**100), 2.0**100, width=32),
)
@example(sigma_min=0.002, sigma_data=2.75, values=[1.0], answer=0.0)
@settings(deadline=None, max_examples=100)
def test_a_consistency_model_is_exactly_the_identity_at_sigma_min(sigma_min, sigma_data, values, answer):
    process = NoiseProcess(sigma_min=sigma_min, sigma_data=sigma_data)
    x = torch.tensor([values])
    model = PreconditionedNetwork(Recorder(torch.full_like(x, answer)), "consistency", process)
    assert torch.equal(model(x, torch.tensor([sigma_min])), x)


@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize(("low", "data"), [(0.002, 0.5), (0.001, 0.75)])
def test_consistency_coefficients_are_those_of_the_paper(sigma, low, data):
    c = consistency_coefficients(
        torch.tensor([sigma], dtype=torch.float64), NoiseProcess(sigma_min=low, sigma_data=data)
    )
    assert c.skip.item() == pytest.approx(data**2 / (data**2 + (sigma - low) ** 2))
    assert c.out.item() == pytest.approx(data * (sigma - low) / math.hypot(data, sigma))
    assert c.input.item() == pytest.approx(1 / math.hypot(data, sigma))
    assert c.noise.item() == pytest.approx(np.log(sigma) / 4)


def test_consistency_coefficients_at_one_half_by_hand():
    process = NoiseProcess(sigma_min=0.25, sigma_data=0.5)
    c = consistency_coefficients(torch.tensor([0.5]), process)
    assert c.skip.item() == pytest.approx(0.8)
    assert c.out.item() == pytest.approx(0.125 * math.sqrt(2))
    assert c.input.item() == pytest.approx(math.sqrt(2))
    assert c.noise.item() == pytest.approx(-math.log(2) / 4)


@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize("data", [0.5, 0.75])
def test_denoising_coefficients_give_the_network_unit_variance_in_and_out(sigma, data):
    c = denoising_coefficients(torch.tensor([sigma], dtype=torch.float64), NoiseProcess(sigma_data=data))
    skip, out, scale = c.skip.item(), c.out.item(), c.input.item()
    assert scale**2 * (data**2 + sigma**2) == pytest.approx(1)
    # The target of F is (x* - c_skip (x* + sigma z)) / c_out.
    assert ((1 - skip) ** 2 * data**2 + (skip * sigma) ** 2) / out**2 == pytest.approx(1)
    # c_skip minimises that numerator (Karras et al. 2022, appendix B.6).
    for other in (skip - 1e-3, skip + 1e-3):
        assert (1 - other) ** 2 * data**2 + (other * sigma) ** 2 > out**2
    assert c.noise.item() == pytest.approx(math.log(sigma) / 4)


def test_denoising_coefficients_at_equal_scales_by_hand():
    c = denoising_coefficients(torch.tensor([0.5]), NoiseProcess(sigma_data=0.5))
    assert c.skip.item() == pytest.approx(0.5)
    assert c.out.item() == pytest.approx(0.5 / math.sqrt(2))


def test_the_denoising_model_is_not_tied_to_sigma_min():
    x = torch.ones(1, 3)
    model = PreconditionedNetwork(Recorder(torch.full_like(x, 10.0)), "denoising", NoiseProcess())
    assert not torch.equal(model(x, torch.tensor([0.002])), x)


@pytest.mark.parametrize("kind", ["consistency", "denoising"])
def test_the_network_sees_scaled_input_its_condition_and_the_dropout_generator(kind):
    x = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    sigma = torch.tensor([0.002, 1.0, 80.0])
    answer, dropout = torch.randn_like(x), torch.Generator()
    network = Recorder(answer)
    output = PreconditionedNetwork(network, kind, NoiseProcess())(x, sigma, dropout)
    ((seen, condition, generator),) = network.calls
    s = sigma.numpy()[:, None, None, None]
    np.testing.assert_allclose(seen.numpy(), x.numpy() / np.sqrt(0.25 + s**2), rtol=1e-5)
    np.testing.assert_allclose(condition.numpy(), np.log(sigma.numpy()) / 4, rtol=1e-5)
    assert generator is dropout
    low = 0.002 if kind == "consistency" else 0.0
    skip, out = 0.25 / (0.25 + (s - low) ** 2), 0.5 * (s - low) / np.sqrt(0.25 + s**2)
    np.testing.assert_allclose(output.numpy(), skip * x.numpy() + out * answer.numpy(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("mean", [0.0, -0.39, 0.2])
def test_every_grey_level_survives_the_way_to_model_space_and_back(mean):
    process = NoiseProcess(data_mean=mean)
    levels = torch.arange(256, dtype=torch.uint8).reshape(16, 1, 4, 4)
    x = to_model_space(levels, process)
    assert x.dtype == torch.float32
    assert torch.equal(from_model_space(x, process, torch.uint8), levels)


def test_grey_levels_span_minus_one_to_one_and_the_mean_is_subtracted():
    ends = torch.tensor([[0, 255]], dtype=torch.uint8)
    assert to_model_space(ends, NoiseProcess()).tolist() == [[-1, 1]]
    assert to_model_space(ends, NoiseProcess(data_mean=-0.5)).tolist() == [[-0.5, 1.5]]


@given(st.floats(-1e6, 1e6, width=32))
@settings(deadline=None, max_examples=100)
def test_samples_become_the_nearest_grey_level_and_are_clipped_to_the_range(value):
    level = from_model_space(torch.tensor([value]), NoiseProcess(), torch.uint8).item()
    if value <= -1:
        assert level == 0
    elif value >= 1:
        assert level == 255
    else:
        assert abs(level - (value + 1) * 127.5) <= 0.5 + 1e-4


def test_the_mean_is_added_back_before_clipping():
    process = NoiseProcess(data_mean=0.5)
    assert from_model_space(torch.tensor([0.5, 0.6, -1.5]), process, torch.uint8).tolist() == [255, 255, 0]


def test_points_are_only_shifted_and_never_clipped():
    process = NoiseProcess(data_mean=0.25)
    points = torch.tensor([[3.5, -2.0]])
    assert to_model_space(points, process).tolist() == [[3.25, -2.25]]
    assert torch.equal(from_model_space(to_model_space(points, process), process, torch.float32), points)


def test_per_sample_values_broadcast_along_the_batch():
    like = torch.ones(2, 3, 4, 4)
    values = per_sample(torch.tensor([2.0, 5.0]), like)
    assert values.shape == (2, 1, 1, 1)
    assert (values * like).mean((1, 2, 3)).tolist() == [2, 5]
