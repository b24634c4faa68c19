import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.integrate import solve_ivp
from torch import distributions

from gcflow.metrics import transport_cost
from gcflow.oracles import GaussianMixture, empirical, solve_ode, velocity
from gcflow.trajectories import ideal_endpoint


def double(values):
    return torch.tensor(values, dtype=torch.float64)


def gaussian(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random_mixture(seed, components, dimension, std):
    weights = gaussian(seed, components).exp()
    return GaussianMixture(gaussian(seed + 1, components, dimension), weights / weights.sum(), std)


def single(scale, dimension=1):
    return GaussianMixture(torch.zeros(1, dimension, dtype=torch.float64), double([1.0]), scale)


@pytest.mark.parametrize("sigma", [0.05, 0.5, 3.0])
def test_the_denoiser_of_a_mixture_on_the_line_is_the_posterior_mean_by_quadrature(sigma):
    mixture = GaussianMixture(double([[-1.0], [0.3], [2.0]]), double([0.2, 0.5, 0.3]), 0.25)
    x = torch.linspace(-3, 4, 15, dtype=torch.float64)[:, None]
    grid = np.linspace(-8, 9, 200_001)
    prior = sum(w * stats.norm.pdf(grid, m, 0.25) for w, m in [(0.2, -1.0), (0.5, 0.3), (0.3, 2.0)])
    expected = []
    for point in x[:, 0].numpy():
        posterior = prior * stats.norm.pdf(point, grid, sigma)
        expected.append(np.trapezoid(posterior * grid, grid) / np.trapezoid(posterior, grid))
    denoised = mixture.denoise(x, torch.full((15,), sigma, dtype=torch.float64))
    np.testing.assert_allclose(denoised[:, 0].numpy(), expected, rtol=1e-7, atol=1e-9)


def test_the_denoiser_of_a_plane_mixture_is_the_posterior_mean_by_quadrature():
    mixture = random_mixture(0, 3, 2, 0.4)
    axis = np.linspace(-6, 6, 401)
    grid = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1)
    prior = sum(
        w.item() * stats.multivariate_normal.pdf(grid, m.numpy(), 0.16)
        for w, m in zip(mixture.weights, mixture.means, strict=True)
    )
    x, sigma = gaussian(5, 6, 2), torch.linspace(0.3, 1.5, 6, dtype=torch.float64)
    for i, denoised in enumerate(mixture.denoise(x, sigma)):
        posterior = prior * stats.multivariate_normal.pdf(grid, x[i].numpy(), sigma[i].item() ** 2)
        expected = (posterior[..., None] * grid).sum((0, 1)) / posterior.sum()
        np.testing.assert_allclose(denoised.numpy(), expected, rtol=1e-6, atol=1e-8)


@given(seed=st.integers(0, 10**6), components=st.integers(1, 5), sigma=st.floats(0.05, 50))
@settings(deadline=None, max_examples=30)
def test_the_denoiser_obeys_tweedies_formula(seed, components, sigma):
    mixture = random_mixture(seed, components, 3, 0.3)
    x = (math.hypot(1, sigma) * gaussian(seed + 2, 4, 3)).requires_grad_()
    scale = math.hypot(0.3, sigma)
    density = distributions.MixtureSameFamily(
        distributions.Categorical(mixture.weights),
        distributions.Independent(distributions.Normal(mixture.means, torch.full_like(mixture.means, scale)), 1),
    )
    (score,) = torch.autograd.grad(density.log_prob(x).sum(), x)
    denoised = mixture.denoise(x.detach(), torch.full((4,), sigma, dtype=torch.float64))
    torch.testing.assert_close(denoised, x.detach() + sigma**2 * score, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("std", [0.0, 0.6])
def test_the_denoiser_of_two_opposite_points_is_a_hyperbolic_tangent(std):
    mixture = GaussianMixture(double([[-1.0], [1.0]]), double([0.5, 0.5]), std)
    x, sigma = torch.linspace(-3, 3, 13, dtype=torch.float64), torch.linspace(0.2, 4, 13, dtype=torch.float64)
    total = std**2 + sigma**2
    expected = sigma**2 / total * torch.tanh(x / total) + std**2 / total * x
    torch.testing.assert_close(mixture.denoise(x[:, None], sigma)[:, 0], expected)


@pytest.mark.parametrize("sigma", [0.02, 0.3, 2.0, 80.0])
def test_the_empirical_denoiser_is_a_softmax_average_of_the_data(sigma):
    data = gaussian(0, 20, 1, 3, 3)
    x = data[:6] + sigma * gaussian(1, 6, 1, 3, 3)
    denoised = empirical(data).denoise(x, torch.full((6,), sigma, dtype=torch.float64))
    assert denoised.shape == x.shape
    for i in range(6):
        logits = np.array([-((x[i] - point) ** 2).sum().item() / (2 * sigma**2) for point in data])
        weights = np.exp(logits - logits.max())
        expected = np.tensordot(weights / weights.sum(), data.numpy(), axes=1)
        np.testing.assert_allclose(denoised[i].numpy(), expected, rtol=1e-7, atol=1e-10)


def test_the_empirical_denoiser_snaps_to_the_nearest_point_and_falls_back_to_the_mean():
    data = gaussian(0, 9, 4).float()
    exact = empirical(data)
    near = exact.denoise(data + 1e-3, torch.full((9,), 0.01))
    torch.testing.assert_close(near, data)
    far = exact.denoise(data, torch.full((9,), 1e5))
    torch.testing.assert_close(far, data.mean(0).expand(9, 4), rtol=0, atol=1e-5)


def test_the_float32_denoiser_stays_accurate_over_all_noise_levels_of_training():
    data = gaussian(0, 100, 64).sign() * 0.7
    for sigma in (0.002, 0.05, 1.0, 80.0):
        x = data[:20] + sigma * gaussian(1, 20, 64)
        expected = empirical(data).denoise(x, torch.full((20,), sigma, dtype=torch.float64))
        single_precision = empirical(data.float()).denoise(x.float(), torch.full((20,), sigma))
        assert single_precision.dtype == torch.float32
        torch.testing.assert_close(single_precision.double(), expected, rtol=0, atol=1e-3)


def test_each_sample_is_denoised_at_its_own_level():
    mixture = random_mixture(3, 4, 2, 0.2)
    x, sigma = gaussian(0, 5, 2), torch.linspace(0.1, 5, 5, dtype=torch.float64)
    together = mixture.denoise(x, sigma)
    for i in range(5):
        torch.testing.assert_close(mixture.denoise(x[i : i + 1], sigma[i : i + 1])[0], together[i])


def test_samples_of_a_mixture_have_its_components_shares_and_moments():
    mixture, count = random_mixture(1, 3, 2, 0.3), 30_000
    points, component = mixture.sample(count, torch.Generator().manual_seed(0))
    assert points.dtype == torch.float64
    observed = np.bincount(component.numpy(), minlength=3)
    assert stats.chisquare(observed, count * mixture.weights.numpy()).pvalue > 1e-3
    residual = (points - mixture.means[component]).flatten().numpy()
    assert stats.kstest(residual, stats.norm(0, 0.3).cdf).pvalue > 1e-3
    again, _ = mixture.sample(count, torch.Generator().manual_seed(0))
    assert torch.equal(points, again)


def test_the_velocity_of_a_gaussian_is_linear_with_its_closed_form_slope():
    x, sigma = gaussian(0, 4, 1, 2, 2), double([0.1, 0.5, 2.0, 80.0])

    def denoise(y, level):
        return 0.49 / (0.49 + level[:, None, None, None] ** 2) * y

    slope = sigma / (0.49 + sigma**2)
    torch.testing.assert_close(velocity(denoise, x, sigma), slope[:, None, None, None] * x)


def field_of(mixture):
    return lambda x, sigma: velocity(mixture.denoise, x, sigma)


@given(scale=st.floats(0.2, 3), start=st.floats(1, 80), end=st.floats(0.002, 0.5))
@settings(deadline=None, max_examples=20)
def test_the_flow_of_a_gaussian_has_its_closed_form(scale, start, end):
    x = start * gaussian(0, 3, 2)
    states = solve_ode(field_of(single(scale, 2)), x, start, end, 60)
    sigmas = np.exp(np.linspace(math.log(start), math.log(end), 61))
    factors = double(np.sqrt((scale**2 + sigmas**2) / (scale**2 + start**2)).tolist())
    assert torch.equal(states[0], x)
    torch.testing.assert_close(states, factors[:, None, None] * x, rtol=1e-4, atol=1e-12)


def test_the_flow_converges_with_fourth_order():
    x = 5 * gaussian(0, 3, 1)
    exact = math.sqrt((0.25 + 0.01) / (0.25 + 25)) * x
    errors = [(solve_ode(field_of(single(0.5)), x, 5.0, 0.1, n)[-1] - exact).abs().max().item() for n in (16, 32, 64)]
    assert 12 < errors[0] / errors[1] < 20
    assert 12 < errors[1] / errors[2] < 20


def test_the_flow_of_a_mixture_agrees_with_an_adaptive_solver():
    mixture = random_mixture(7, 3, 2, 0.4)
    x = 3 * gaussian(0, 4, 2)

    def rate(t, flat):
        points = torch.from_numpy(flat.reshape(4, 2))
        return field_of(mixture)(points, torch.full((4,), t, dtype=torch.float64)).numpy().ravel()

    reference = solve_ivp(rate, (3.0, 0.05), x.numpy().ravel(), rtol=1e-10, atol=1e-12).y[:, -1].reshape(4, 2)
    np.testing.assert_allclose(solve_ode(field_of(mixture), x, 3.0, 0.05, 100)[-1].numpy(), reference, atol=1e-6)


def test_the_flow_can_be_reversed():
    field, x = field_of(random_mixture(2, 3, 2, 0.5)), 2 * gaussian(0, 5, 2)
    down = solve_ode(field, x, 2.0, 0.1, 80)
    up = solve_ode(field, down[-1], 0.1, 2.0, 80)
    torch.testing.assert_close(up[-1], x, rtol=0, atol=1e-6)
    torch.testing.assert_close(up.flip(0), down, rtol=0, atol=1e-5)


@pytest.mark.parametrize("t", [0.05, 0.5, 2.0, 20.0])
def test_the_transport_cost_of_ideal_endpoints_of_a_gaussian_has_its_closed_form(t):
    s, d, count = 0.6, 2, 20_000
    x, z = s * gaussian(0, count, d), gaussian(1, count, d)
    costs = transport_cost(ideal_endpoint(single(s, d), x + t * z, t, 1e-3), z)
    a = s * t / math.hypot(s, t)
    error = costs.std().item() / math.sqrt(count)
    assert abs(costs.mean().item() - d * (s**2 + 1 - 2 * a)) < 4 * error + 1e-3


def test_the_proxy_of_the_independent_coupling_of_a_gaussian_has_its_closed_form():
    s, d, count = 0.6, 3, 20_000
    x, z = s * gaussian(0, count, d), gaussian(1, count, d)
    for t in (0.1, 1.0, 10.0):
        v = velocity(single(s, d).denoise, x + t * z, torch.full((count,), t, dtype=torch.float64))
        gaps = (z - v).square().sum(1)
        expected = d * s**2 / (s**2 + t**2)
        assert abs(gaps.mean().item() - expected) < 4 * gaps.std().item() / math.sqrt(count)
