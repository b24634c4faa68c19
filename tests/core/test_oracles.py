import math

import numpy as np
import pytest
import torch
from builders import double
from builders import gaussian64 as gaussian
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.integrate import solve_ivp
from torch import distributions

from gcflow.oracles import GaussianMixture, empirical, velocity


def random_mixture(seed, components, dimension, std):
    weights = gaussian(seed, components).exp()
    return GaussianMixture(gaussian(seed + 1, components, dimension), weights / weights.sum(), std)


def single(scale, dimension=1):
    return GaussianMixture(torch.zeros(1, dimension, dtype=torch.float64), double([1.0]), scale)


def density(mixture, x, sigma=0.0):
    """Of x* + sigma z at x [B, d], by scipy."""
    total = mixture.std**2 + sigma**2
    return sum(
        w.item() * np.atleast_1d(stats.multivariate_normal.pdf(x.numpy(), m.numpy(), total))
        for w, m in zip(mixture.weights, mixture.means, strict=True)
    )


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


# Posteriors, densities and moments.


@pytest.mark.parametrize("sigma", [0.0, 0.4, 30.0])
def test_the_posterior_of_a_component_is_bayes_rule(sigma):
    mixture = random_mixture(4, 4, 2, 0.5)
    x = math.hypot(1, sigma) * gaussian(0, 6, 2)
    total = 0.25 + sigma**2
    joint = np.stack(
        [
            w.item() * stats.multivariate_normal.pdf(x.numpy(), m.numpy(), total)
            for w, m in zip(mixture.weights, mixture.means, strict=True)
        ],
        axis=1,
    )
    expected = joint / joint.sum(1, keepdims=True)
    of_each = mixture.component_posterior(x, torch.full((6,), total, dtype=torch.float64))
    np.testing.assert_allclose(of_each.numpy(), expected, rtol=1e-10)
    assert torch.equal(mixture.component_posterior(x, total), of_each)


@given(seed=st.integers(0, 10**6), components=st.integers(1, 5), dimension=st.integers(1, 4), std=st.floats(0.05, 3))
def test_the_log_density_agrees_with_scipy_in_any_shape(seed, components, dimension, std):
    mixture = random_mixture(seed, components, dimension, std)
    x = mixture.means[0] + 2 * std * gaussian(seed + 2, 2, 3, dimension)
    log_density = mixture.log_density(x)
    assert log_density.shape == (2, 3)
    expected = np.log(density(mixture, x.reshape(6, dimension))).reshape(2, 3)
    np.testing.assert_allclose(log_density.numpy(), expected, rtol=1e-9, atol=1e-9)


def test_far_from_all_components_the_log_density_is_finite():
    far = double([[1e6, 0.0]])
    expected = stats.multivariate_normal.logpdf([1e6, 0.0], [0.0, 0.0], 0.01)
    assert single(0.1, 2).log_density(far).item() == pytest.approx(expected, rel=1e-12)


@given(seed=st.integers(0, 10**6), components=st.integers(1, 5), sigma=st.floats(0.05, 100))
def test_the_mean_of_the_noise_is_the_velocity_and_its_covariance_the_derivative_of_the_denoiser(
    seed, components, sigma
):
    # Cov(x* | x) = t^2 dD/dx, and z = (x - x*) / t.
    mixture = random_mixture(seed, components, 3, 0.3)
    x = math.hypot(1, sigma) * gaussian(seed + 2, 4, 3)
    level = torch.full((4,), sigma, dtype=torch.float64)
    mean, covariance = mixture.noise_moments(x, sigma)
    torch.testing.assert_close(mean, velocity(mixture.denoise, x, level), rtol=1e-7, atol=1e-9)
    for i in range(4):
        one = torch.autograd.functional.jacobian(lambda y: mixture.denoise(y[None], level[:1])[0], x[i])
        torch.testing.assert_close(covariance[i], one, rtol=1e-7, atol=1e-9)


def test_without_noise_its_moments_are_those_before_anything_was_seen():
    mean, covariance = random_mixture(0, 3, 2, 0.4).noise_moments(gaussian(1, 4, 2), 0.0)
    torch.testing.assert_close(mean, torch.zeros(4, 2, dtype=torch.float64))
    torch.testing.assert_close(covariance, torch.eye(2, dtype=torch.float64).expand(4, 2, 2))


# The flow.


def adaptive(mixture, x, start, end):
    """The PF-ODE from `start` to `end` by scipy's adaptive solver, for x [B, ...]."""

    def rate(t, flat):
        points = torch.from_numpy(flat.reshape(x.shape))
        return velocity(mixture.denoise, points, torch.full((len(x),), t, dtype=torch.float64)).numpy().ravel()

    solution = solve_ivp(rate, (start, end), x.numpy().ravel(), method="DOP853", rtol=1e-11, atol=1e-13)
    return torch.from_numpy(solution.y[:, -1].reshape(x.shape))


LEVELS = st.one_of(st.just(0.0), st.floats(0.002, 1e6))


@given(scale=st.floats(0.2, 3), centre=st.floats(-5, 5), start=LEVELS, end=LEVELS, step=st.floats(0.05, 100))
def test_the_flow_of_one_gaussian_is_its_closed_form_in_steps_of_any_size(scale, centre, start, end, step):
    middle = double([centre, -2.0])
    mixture = GaussianMixture(middle[None], double([1.0]), scale)
    deviation = math.hypot(scale, start) * gaussian(0, 3, 2)
    factor = math.hypot(scale, end) / math.hypot(scale, start)
    flowed, jacobian = mixture.flow_with_jacobian(middle + deviation, start, end, step)
    # Ten digits of what stands there at the larger of the two levels.
    size = 1e-10 * (abs(centre) + 2) * max(1.0, factor)
    torch.testing.assert_close(flowed, middle + factor * deviation, rtol=1e-10, atol=size)
    torch.testing.assert_close(mixture.flow(middle + deviation, start, end, step), flowed, rtol=0, atol=0)
    expected = factor * torch.eye(2, dtype=torch.float64).expand(3, 2, 2)
    torch.testing.assert_close(jacobian, expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize(("start", "end"), [(3.0, 0.05), (0.05, 3.0), (1e6, 0.01), (80.0, 1.0)])
def test_the_flow_of_a_mixture_agrees_with_an_adaptive_solver(start, end):
    mixture = random_mixture(7, 3, 2, 0.4)
    x = math.hypot(1, start) * gaussian(0, 4, 2)
    flowed, expected = mixture.flow(x, start, end, 0.02), adaptive(mixture, x, start, end)
    torch.testing.assert_close(flowed, expected, rtol=1e-6, atol=1e-6)


def test_the_flow_of_the_empirical_distribution_of_images_agrees_with_an_adaptive_solver():
    data = gaussian(0, 12, 1, 3, 3)
    x = 2 * gaussian(1, 3, 1, 3, 3)
    flowed = empirical(data).flow(x, 2.0, 0.05, 0.01)
    assert flowed.shape == x.shape
    torch.testing.assert_close(flowed, adaptive(empirical(data), x, 2.0, 0.05), rtol=0, atol=1e-5)


def test_the_flow_converges_with_fourth_order():
    mixture = random_mixture(7, 3, 2, 0.4)
    x = 5 * gaussian(0, 6, 2)
    exact = adaptive(mixture, x, 5.0, 0.1)
    errors = [(mixture.flow(x, 5.0, 0.1, step) - exact).abs().max().item() for step in (0.08, 0.04, 0.02)]
    assert 11 < errors[0] / errors[1] < 21
    assert 11 < errors[1] / errors[2] < 21


@pytest.mark.parametrize(("high", "low"), [(2.0, 0.1), (80.0, 0.0), (1e6, 0.5)])
def test_the_flow_and_its_jacobian_can_be_reversed(high, low):
    mixture, x = random_mixture(2, 3, 2, 0.5), math.hypot(1, high) * gaussian(0, 5, 2)
    down, shrunk = mixture.flow_with_jacobian(x, high, low, 0.01)
    up, grown = mixture.flow_with_jacobian(down, low, high, 0.01)
    torch.testing.assert_close(up, x, rtol=1e-6, atol=0)
    identity = torch.eye(2, dtype=torch.float64).expand(5, 2, 2)
    torch.testing.assert_close(grown @ shrunk, identity, rtol=0, atol=1e-5)
    torch.testing.assert_close(torch.linalg.det(grown) * torch.linalg.det(shrunk), torch.ones(5, dtype=torch.float64))


@pytest.mark.parametrize(("start", "end"), [(3.0, 0.0), (0.2, 10.0)])
@pytest.mark.parametrize("step", [0.05, 1.0])
def test_the_jacobian_is_the_derivative_of_the_flow_at_any_step(start, end, step):
    # Of the discrete flow itself, so even a coarse one has its own derivative to all digits.
    mixture = random_mixture(7, 3, 3, 0.4)
    x = math.hypot(1, start) * gaussian(0, 4, 3)
    flowed, jacobian = mixture.flow_with_jacobian(x, start, end, step)
    torch.testing.assert_close(flowed, mixture.flow(x, start, end, step), rtol=1e-12, atol=1e-12)
    shift = 1e-5 * math.hypot(1, start)
    for axis, unit in enumerate(torch.eye(3, dtype=torch.float64)):
        ahead, behind = (mixture.flow(x + way * shift * unit, start, end, step) for way in (1, -1))
        torch.testing.assert_close(jacobian[:, :, axis], (ahead - behind) / (2 * shift), rtol=1e-6, atol=1e-8)
    for i in range(4):
        exact = torch.autograd.functional.jacobian(lambda y: mixture.flow(y[None], start, end, step)[0], x[i])
        torch.testing.assert_close(jacobian[i], exact, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("sigma", [0.1, 1.0, 50.0])
def test_the_flow_carries_the_density_of_the_noised_data_to_that_of_the_data(sigma):
    # p_t(x) = p*(f(x)) |det df/dx|.
    mixture = random_mixture(3, 3, 2, 0.5)
    x = math.hypot(1, sigma) * gaussian(0, 6, 2)
    end, jacobian = mixture.flow_with_jacobian(x, sigma, 0.0, 0.005)
    carried = mixture.log_density(end) + torch.linalg.slogdet(jacobian).logabsdet
    np.testing.assert_allclose(carried.numpy(), np.log(density(mixture, x, sigma)), rtol=0, atol=1e-6)


@pytest.mark.parametrize("start", [2.0, 80.0, 1e6])
def test_the_float32_flow_of_images_stays_accurate_at_all_noise_levels(start):
    data = 0.7 * gaussian(0, 8, 1, 4, 4).sign()
    x = 0.7 + start * gaussian(1, 10, 1, 4, 4)
    exact = GaussianMixture(data.flatten(1), torch.full((8,), 1 / 8, dtype=torch.float64), 0.2)
    coarse = GaussianMixture(exact.means.float(), exact.weights.float(), 0.2)
    for end in (0.002, 1.0):
        flowed = coarse.flow(x.float(), start, end, 0.05)
        assert flowed.dtype == torch.float32
        assert flowed.shape == x.shape
        torch.testing.assert_close(flowed.double(), exact.flow(x, start, end, 0.05), rtol=0, atol=1e-3)
