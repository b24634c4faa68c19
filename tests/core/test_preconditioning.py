import math

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import nn

from gcflow.config import NetworkConfig, NoiseProcess
from gcflow.dropout import dropout_keys
from gcflow.model import PreconditionedNetwork
from gcflow.preconditioning import (
    COEFFICIENTS,
    consistency_coefficients,
    edm_coefficients,
    from_model_space,
    to_model_space,
    vp_coefficients,
)

SIGMAS = [0.002, 0.01, 0.3, 0.5, 1.0, 7.5, 80.0]


class Recorder(nn.Module):
    def __init__(self, output):
        super().__init__()
        self.output = output
        self.calls = []

    def forward(self, x, condition, dropout, **labels):
        self.calls.append((x, condition, dropout, labels))
        return self.output


def double(*values):
    return torch.tensor(values, dtype=torch.float64)


@given(
    sigma_min=st.floats(1e-4, 0.9),
    sigma_data=st.floats(0.05, 5),
    values=st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=6),
    answer=st.floats(-(2.0**100), 2.0**100, width=32),
)
@example(sigma_min=0.002, sigma_data=2.75, values=[1.0], answer=0.0)
def test_a_consistency_model_is_exactly_the_identity_at_sigma_min(sigma_min, sigma_data, values, answer):
    process = NoiseProcess(sigma_min=sigma_min, sigma_data=sigma_data)
    x = torch.tensor([values])
    model = PreconditionedNetwork(Recorder(torch.full_like(x, answer)), "consistency", process)
    assert model.boundary == sigma_min
    assert torch.equal(model(x, torch.tensor([model.boundary])), x)


@given(
    kind=st.sampled_from(["edm", "vp", "ve"]),
    sigma_data=st.floats(0.05, 5),
    values=st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=6),
    answer=st.floats(-(2.0**100), 2.0**100, width=32),
)
@example(kind="edm", sigma_data=0.3, values=[1.0, -3.7], answer=0.0)
@example(kind="edm", sigma_data=2.75, values=[1.0, -3.7], answer=1e30)
def test_a_denoiser_is_exactly_the_identity_without_noise(kind, sigma_data, values, answer):
    x = torch.tensor([values])
    network = Recorder(torch.full_like(x, answer))
    model = PreconditionedNetwork(network, kind, NoiseProcess(sigma_data=sigma_data))
    assert model.boundary == 0
    assert torch.equal(model(x, torch.tensor([0.0])), x)
    ((seen, condition, _, _),) = network.calls
    assert seen.isfinite().all()
    assert condition.isfinite().all()


@pytest.mark.parametrize("kind", COEFFICIENTS)
def test_coefficients_are_continuous_and_monotone_from_the_boundary_on(kind):
    process = NoiseProcess()
    boundary = process.sigma_min if kind == "consistency" else 0.0
    sigma = boundary + torch.cat([double(0), torch.logspace(-6, 2, 1000, dtype=torch.float64)])
    c = COEFFICIENTS[kind](sigma, process)
    assert all(values.isfinite().all() and values.shape == sigma.shape for values in c)
    assert (c.noise.diff() > 0).all()
    assert (c.out.abs().diff() > 0).all()
    assert (c.skip.diff() <= 0).all()
    assert (c.input.diff() <= 0).all()
    assert (c.skip[0].item(), c.out[0].item()) == (1, 0)


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


@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize("data", [0.5, 0.75])
def test_edm_coefficients_give_the_network_unit_variance_in_and_out(sigma, data):
    c = edm_coefficients(torch.tensor([sigma], dtype=torch.float64), NoiseProcess(sigma_data=data))
    skip, out, scale = c.skip.item(), c.out.item(), c.input.item()
    assert scale**2 * (data**2 + sigma**2) == pytest.approx(1)
    # The target of F is (x* - c_skip (x* + sigma z)) / c_out.
    assert ((1 - skip) ** 2 * data**2 + (skip * sigma) ** 2) / out**2 == pytest.approx(1)
    # c_skip minimises that numerator (Karras et al. 2022, appendix B.6).
    for other in (skip - 1e-3, skip + 1e-3):
        assert (1 - other) ** 2 * data**2 + (other * sigma) ** 2 > out**2
    assert c.noise.item() == pytest.approx(math.log(sigma) / 4)


@pytest.mark.parametrize("boundary", [0.0, 0.003, 0.4])
def test_a_model_of_edm_preconditioning_is_the_identity_at_the_boundary_of_the_pass(boundary):
    x, inner = torch.ones(4, 3), torch.full((4, 3), 10.0)
    model = PreconditionedNetwork(Recorder(inner), "edm", NoiseProcess())
    assert torch.equal(model(x, torch.full((4,), boundary), boundary=boundary), x)
    assert torch.equal(model(x, torch.full((4,), 0.8), boundary=0.0), model(x, torch.full((4,), 0.8)))
    # By hand, after Geng et al.'s code in evaluation mode; the network sees the same.
    sigma = 0.8
    skip, out = 0.25 / ((sigma - boundary) ** 2 + 0.25), (sigma - boundary) * 0.5 / math.sqrt(sigma**2 + 0.25)
    torch.testing.assert_close(model(x, torch.full((4,), sigma), boundary=boundary), skip * x + out * inner)
    plain, moved = (edm_coefficients(double(sigma), NoiseProcess(), b) for b in (0.0, boundary))
    assert (plain.input, plain.noise) == (moved.input, moved.noise)


def vp_sigma(time):
    """Noise level of the variance-preserving SDE (Karras et al. 2022, table 1)."""
    return (0.5 * 19.9 * time**2 + 0.1 * time).expm1().sqrt()


def test_the_vp_condition_is_999_times_the_time_of_the_noise_level():
    time = torch.linspace(0, 1, 201, dtype=torch.float64)
    noise = vp_coefficients(vp_sigma(time), NoiseProcess()).noise
    torch.testing.assert_close(noise / 999, time, rtol=1e-9, atol=1e-9)


def test_the_vp_condition_is_the_step_of_ddpm():
    # Betas from 1e-4 to 0.02 in 1000 steps (Ho et al. 2020), numbered from 0.
    kept = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    sigma = torch.from_numpy(np.sqrt((1 - kept) / kept))
    noise = vp_coefficients(sigma, NoiseProcess()).noise.numpy()
    # The squares of the betas, which continuous time neglects, shift the last steps by a third of a percent.
    assert np.abs(noise - np.arange(1000)).max() < 4


@pytest.mark.parametrize(("kind", "sign"), [("vp", 1), ("ve", -1)])
@pytest.mark.parametrize("sigma", SIGMAS)
def test_a_vp_network_predicts_the_noise_and_a_ve_network_its_opposite(kind, sign, sigma):
    source = torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, 5, 3, generator=source, dtype=torch.float64)
    model = PreconditionedNetwork(Recorder(sign * noise), kind, NoiseProcess())
    torch.testing.assert_close(model(clean + sigma * noise, double(sigma).expand(5)), clean)


@pytest.mark.parametrize("kind", COEFFICIENTS)
def test_the_network_sees_scaled_input_its_condition_the_dropout_keys_and_labels(kind):
    x = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    sigma = torch.tensor([0.002, 1.0, 80.0])
    answer, keys, labels = torch.randn_like(x), dropout_keys(0, 0, 3), torch.eye(3)
    network = Recorder(answer)
    output = PreconditionedNetwork(network, kind, NoiseProcess())(x, sigma, keys, class_labels=labels)
    ((seen, condition, dropout, others),) = network.calls
    s = sigma.double().numpy()
    low = 0.002 if kind == "consistency" else 0.0
    around_data = (1 / np.sqrt(0.25 + s**2), np.log(s) / 4, 0.25 / (0.25 + (s - low) ** 2))
    scale, noise, skip, out = {
        "consistency": (*around_data, 0.5 * (s - low) / np.sqrt(0.25 + s**2)),
        "edm": (*around_data, 0.5 * s / np.sqrt(0.25 + s**2)),
        "vp": (
            1 / np.sqrt(1 + s**2),
            999 * (np.sqrt(0.01 + 39.8 * np.log1p(s**2)) - 0.1) / 19.9,
            np.ones(3),
            -s,
        ),
        "ve": (np.ones(3), np.log(s / 2), np.ones(3), s),
    }[kind]
    scale, skip, out = (values[:, None, None, None] for values in (scale, skip, out))
    np.testing.assert_allclose(seen.numpy(), x.numpy() * scale, rtol=1e-5)
    np.testing.assert_allclose(condition.numpy(), noise, rtol=1e-5, atol=2e-3)
    assert dropout is keys
    assert others == {"class_labels": labels}
    np.testing.assert_allclose(output.numpy(), skip * x.numpy() + out * answer.numpy(), rtol=1e-4, atol=1e-6)


# Autocast.


def image_model(kind, architecture="ddpm++"):
    config = NetworkConfig(architecture, channels=16, blocks=1, dropout=0.2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = config.build((3, 4, 4))
        for parameter in network.parameters():
            if parameter.ndim > 1:
                parameter.data = torch.randn_like(parameter) / math.sqrt(parameter[0].numel())
    x = torch.randn(4, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    return PreconditionedNetwork(network, kind, NoiseProcess()), x, torch.tensor([0.01, 0.3, 1.0, 5.0])


@pytest.mark.parametrize("kind", COEFFICIENTS)
@pytest.mark.parametrize("architecture", ["ddpm++", "ncsn++", "mlp"])
@pytest.mark.parametrize("keys", [None, dropout_keys(0, 0, 4)], ids=["plain", "dropout"])
def test_a_pass_in_bfloat16_is_near_the_one_in_float32_and_answers_in_float32(kind, architecture, keys):
    model, x, sigma = image_model(kind, architecture)
    with torch.no_grad():
        exact = model(x, sigma, keys)
        model.autocast = torch.bfloat16
        rounded = model(x, sigma, keys)
        model.autocast = None
        assert torch.equal(model(x, sigma, keys), exact)
    assert exact.dtype == rounded.dtype == torch.float32
    error = (rounded - exact).flatten(1).norm(dim=1)
    size = (exact - COEFFICIENTS[kind](sigma, NoiseProcess()).skip[:, None, None, None] * x).flatten(1).norm(dim=1)
    # bfloat16 has 8 bits: a few parts in a thousand per operation, of the network's share of the output.
    assert (error > 0).all()
    assert (error < 0.05 * size).all()


def test_the_weights_have_a_gradient_in_a_pass_right_after_one_without():
    model, x, sigma = image_model("edm")
    exact = torch.autograd.grad(model(x, sigma).square().sum(), list(model.parameters()))
    model.autocast = torch.bfloat16
    with torch.no_grad():
        model(x, sigma)
    model(x, sigma).square().sum().backward()
    for parameter, expected in zip(model.parameters(), exact, strict=True):
        assert parameter.grad.dtype == torch.float32
        assert (parameter.grad - expected).norm() < 0.1 * expected.norm()


def test_only_the_network_is_cast():
    model, x, sigma = image_model("edm")
    model.autocast = torch.bfloat16
    seen = []
    model.network.register_forward_pre_hook(lambda _, given: seen.extend(given[:2]))
    model(x, sigma)
    assert [tensor.dtype for tensor in seen] == [torch.float32, torch.float32]
    assert not torch.is_autocast_enabled("cpu")


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
