import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from builders import Loss, batch_of, gaussian, must_not_be_called, randomised
from builders import run_config as any_run_config
from scipy import integrate, stats
from torch import nn

from gcflow.config import (
    EctSchedule,
    EdmSchedule,
    IctSchedule,
    MethodConfig,
    NetworkConfig,
    NoiseProcess,
    RunReference,
)
from gcflow.couplings import samples_to_predict
from gcflow.dropout import Dropout, dropout_keys
from gcflow.model import PreconditionedNetwork
from gcflow.weights import spec_of

IC = MethodConfig(objective="consistency")
CD = MethodConfig(objective="distillation", teacher="exact")
GC = MethodConfig(objective="consistency", coupling="gc", mu=0.5, predictor="ema")
DENOISING = MethodConfig(objective="denoising")
GENTLE = NoiseProcess(sigma_min=0.1, sigma_max=3.0, rho=3.0)
SCHEDULE = IctSchedule(s0=5, s1=5, p_mean=-0.5, p_std=1.0)
ECT = EctSchedule(q=4, k=2.0, p_mean=-0.5, p_std=1.0)
SCALE = 0.7
run_config = partial(
    any_run_config, process=GENTLE, schedule=SCHEDULE, steps=10, network=NetworkConfig("mlp", 16, 2, dropout=0.4)
)


def drawn(config, x, step=0):
    """The batch of a step in which every sample of x is seen once."""
    return batch_of(replace(config, training=replace(config.training, batch=len(x))), x, step)


class LinearModel(nn.Module):
    def __init__(self, gain):
        super().__init__()
        self.gain = gain
        self.factor = nn.Parameter(torch.ones(()))
        self.calls = []

    def forward(self, x, sigma, dropout=None):
        self.calls.append((x, sigma))
        return self.factor * self.gain(sigma).reshape(-1, *[1] * (x.ndim - 1)) * x


class MaskRecorder(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.masks = Dropout(0.5), []

    def forward(self, x, condition, keys):
        self.masks.append(self.layer(torch.ones_like(x), keys))
        return self.masks[-1]


def consistency(config, model, predict=None, denoiser=None):
    return Loss(config, model, predict or gaussian_denoiser, denoiser)


def gain(sigma):
    return 1 / (1 + sigma)


def gaussian_denoiser(x, sigma):
    return SCALE**2 / (SCALE**2 + sigma[:, None] ** 2) * x


def double(*tensors):
    return tuple(tensor.double().numpy() for tensor in tensors)


# Consistency training.


def test_the_loss_weighs_each_distance_by_the_inverse_width_of_its_interval():
    config = run_config(IC, huber_c=0.2)
    batch, model = drawn(config, gaussian(0, 40, 3), 3), LinearModel(gain)
    x, z, low, high = double(*batch[:4])
    points = [(x + level[:, None] * z) / (1 + level[:, None]) for level in (low, high)]
    distances = np.hypot(np.linalg.norm(points[0] - points[1], axis=1), 0.2) - 0.2
    loss = consistency(config, model)(batch)
    assert loss.item() == pytest.approx((distances / (high - low)).mean(), rel=1e-4)


def test_the_student_sees_the_upper_point_and_the_teacher_the_lower_at_their_own_levels():
    config, student, teacher = run_config(IC), LinearModel(gain), LinearModel(gain)
    batch = drawn(config, gaussian(0, 40, 2, 3, 3), 3)
    Loss(config, student, gaussian_denoiser, teacher=teacher)(batch)
    for model, level in [(student, batch.high), (teacher, batch.low)]:
        ((x, sigma),) = model.calls
        assert torch.equal(sigma, level)
        torch.testing.assert_close(x, batch.data + level.reshape(-1, 1, 1, 1) * batch.noise)


def test_student_and_teacher_share_their_dropout_mask_and_steps_and_seeds_do_not():
    masks = {}
    for seed, step in [(0, 0), (0, 1), (1, 0)]:
        network, config = MaskRecorder(), run_config(IC, seed=seed)
        model = PreconditionedNetwork(network, "consistency", GENTLE)
        consistency(config, model)(drawn(config, gaussian(0, 8, 16), step))
        student, teacher = network.masks
        assert torch.equal(student, teacher)
        assert set(student.unique().tolist()) == {0.0, 2.0}
        masks[seed, step] = student
    assert not torch.equal(masks[0, 0], masks[0, 1])
    assert not torch.equal(masks[0, 0], masks[1, 0])


@pytest.mark.parametrize("method", [GC, CD])
def test_a_coupling_prediction_and_a_trained_teacher_drop_nothing_and_leave_the_shared_mask(method):
    network, config = MaskRecorder(), run_config(method)
    model = PreconditionedNetwork(network, "consistency", GENTLE)
    consistency(config, model, model, model if method is CD else None)(drawn(config, gaussian(0, 8, 16)))
    helper, student, teacher = network.masks
    assert torch.equal(student, teacher)
    assert set(student.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(helper, torch.ones_like(helper))


@pytest.mark.parametrize(
    ("network", "shape", "layer"),
    [
        (NetworkConfig("mlp", channels=16, blocks=2, dropout=0.4), (6,), "linear1"),
        (NetworkConfig("ddpm++", channels=8, blocks=1, multipliers=(1, 2), dropout=0.4), (1, 4, 4), "conv1"),
        (NetworkConfig("ncsn++", channels=8, blocks=1, multipliers=(1, 2), dropout=0.4), (1, 4, 4), "conv1"),
    ],
)
def test_every_layer_of_a_real_network_drops_the_same_units_in_student_and_teacher(network, shape, layer):
    config = replace(run_config(IC), network=network)
    model = spec_of(config, shape).build(0)
    dropped = {}
    for name, module in model.named_modules():
        if name.endswith(layer):
            module.register_forward_pre_hook(
                lambda _, inputs, key=name: dropped.setdefault(key, []).append(inputs[0] == 0)
            )
    consistency(config, model)(drawn(config, gaussian(0, 8, *shape)))
    assert len(dropped) >= 2
    for student, teacher in dropped.values():
        assert torch.equal(student, teacher)
        assert 0.2 < student.float().mean() < 0.6


@pytest.mark.parametrize("schedule", [SCHEDULE, ECT])
@pytest.mark.parametrize("method", [IC, CD])
def test_the_gradient_flows_through_the_student_alone(method, schedule):
    config = run_config(method, distance="squared-l2", schedule=schedule)
    batch, model = drawn(config, gaussian(0, 30, 3)), LinearModel(gain)
    objective = consistency(config, model, denoiser=gaussian_denoiser if method is CD else None)
    x_low, x_high, low, high = double(*objective.points(batch), batch.low, batch.high)
    objective(batch).backward()
    student, teacher = x_high / (1 + high[:, None]), x_low / (1 + low[:, None])
    with_stop = (2 * (student - teacher) * student).sum(1) / (high - low)
    without_stop = (2 * (student - teacher) ** 2).sum(1) / (high - low)
    assert model.factor.grad.item() == pytest.approx(with_stop.mean(), rel=1e-3)
    assert abs(with_stop.mean() - without_stop.mean()) > 0.1 * abs(with_stop.mean())


# ECT.


@pytest.mark.parametrize(
    ("schedule", "step", "from_data"),
    [
        (EctSchedule(), 0, True),
        (EctSchedule(), 5, True),
        (EctSchedule(stage_every=5), 6, True),
        (EctSchedule(stage_every=1), 5, False),
        (EctSchedule(q=256), 5, False),
    ],
)
def test_the_loss_of_ect_is_the_norm_over_the_distance_of_the_levels(schedule, step, from_data):
    config = run_config(IC, schedule=schedule, huber_c=0.0)
    batch, model = drawn(config, gaussian(0, 200, 5), step), LinearModel(gain)
    x, z, low, high = double(*batch[:4])
    assert ((low == 0).sum() > 20) == from_data
    # f = x / (1 + sigma), so that f(x*, 0) = x*.
    target = np.where(low[:, None] == 0, x, (x + low[:, None] * z) / (1 + low[:, None]))
    norms = np.linalg.norm(target - (x + high[:, None] * z) / (1 + high[:, None]), axis=1)
    loss = consistency(config, model)(batch).item()
    assert loss == pytest.approx((norms / (high - low)).mean(), rel=1e-4)


@pytest.mark.parametrize("method", [IC, GC, CD])
@pytest.mark.parametrize("preconditioning", ["edm", "vp", "ve"])
def test_the_target_of_ect_is_the_data_itself_where_the_lower_level_is_zero(preconditioning, method):
    config = run_config(replace(method, preconditioning=preconditioning), schedule=EctSchedule(), huber_c=0.0)
    model, targets = randomised(spec_of(config, (5,)).build(0)), []
    assert model.boundary == 0

    def teacher(x, sigma, keys):
        targets.append(model(x, sigma, keys))
        return targets[-1]

    batch = drawn(config, gaussian(0, 200, 5))
    # A denoiser that knows the data, so that distillation too ends in them.
    denoiser = (lambda x, sigma: batch.data) if method is CD else None
    objective = Loss(config, model, model, denoiser, teacher)
    objective(batch).backward()
    (target,) = targets
    at_zero = batch.low == 0
    assert 20 < at_zero.sum() < 190
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if method is CD else {"rtol": 0, "atol": 0}
    torch.testing.assert_close(target[at_zero], batch.data[at_zero], **tolerance)
    assert not torch.isclose(target[~at_zero], batch.data[~at_zero]).all(1).any()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    assert any((p.grad != 0).any() for p in model.parameters())


def test_samples_that_meet_their_target_do_not_spoil_the_gradient_of_the_others():
    config, model = run_config(IC, schedule=EctSchedule(), huber_c=0.0), LinearModel(torch.ones_like)
    batch = drawn(config, gaussian(0, 40, 5))
    heard = torch.arange(40) % 2 == 0
    batch = batch._replace(noise=batch.noise * heard[:, None])
    x, z, low, high = double(*batch[:4])
    consistency(config, model)(batch).backward()
    # The gap is (high - low) z, and the gradient of its norm by the factor is <z, x_high> / |z|.
    slopes = (z * (x + high[:, None] * z)).sum(1)[heard] / np.linalg.norm(z[heard], axis=1)
    expected = (slopes / (high - low)[heard]).sum() / 40
    assert model.factor.grad.item() == pytest.approx(expected, rel=1e-4)


# Distillation.


@pytest.mark.parametrize("schedule", [SCHEDULE, ECT])
def test_distillation_steps_along_the_velocity_of_its_denoiser(schedule):
    config = run_config(CD, schedule=schedule)
    batch = drawn(config, SCALE * gaussian(0, 300, 2))
    x_low, x_high = consistency(config, LinearModel(gain), denoiser=gaussian_denoiser).points(batch)
    shrink = 1 + (batch.low - batch.high) * batch.high / (SCALE**2 + batch.high**2)
    torch.testing.assert_close(x_low, shrink[:, None] * x_high, rtol=1e-5, atol=1e-5)
    same_noise = consistency(run_config(IC), LinearModel(gain)).points(batch)
    assert torch.equal(x_high, same_noise[1])
    assert not torch.allclose(x_low, same_noise[0], atol=0.05)


def test_distillation_evaluates_its_denoiser_at_the_upper_point_and_level_without_gradient():
    calls = []

    def denoiser(x, sigma):
        calls.append((x, sigma, torch.is_grad_enabled()))
        return x

    config = run_config(CD)
    batch = drawn(config, gaussian(0, 7, 2))
    x_low, x_high = consistency(config, LinearModel(gain), denoiser=denoiser).points(batch)
    ((seen, sigma, graded),) = calls
    assert torch.equal(seen, x_high)
    assert torch.equal(sigma, batch.high)
    assert not graded
    assert torch.equal(x_low, x_high)


@pytest.mark.parametrize("method", [IC, CD])
def test_losses_of_a_linear_model_on_gaussian_data_have_their_closed_form(method):
    count, d = 200_000, 2
    config = run_config(method, distance="squared-l2")
    objective = consistency(config, LinearModel(gain), denoiser=gaussian_denoiser if method is CD else None)
    batch = drawn(config, SCALE * gaussian(5, count, d))
    low, high = batch.low, batch.high
    x_low, x_high = objective.points(batch)
    squares = (gain(low)[:, None] * x_low - gain(high)[:, None] * x_high).double().square().sum(1)

    weighted, shares = [], []
    levels = low.unique()
    assert len(levels) == 5
    for level in levels:
        member = low == level
        t0, t1 = level.item(), high[member][0].item()
        g0, g1 = 1 / (1 + t0), 1 / (1 + t1)
        if method is CD:
            m = 1 + (t0 - t1) * t1 / (SCALE**2 + t1**2)
            expected = d * (g0 * m - g1) ** 2 * (SCALE**2 + t1**2)
        else:
            expected = d * ((g0 - g1) ** 2 * SCALE**2 + (g0 * t0 - g1 * t1) ** 2)
        sample = squares[member]
        error = sample.std().item() / math.sqrt(len(sample))
        assert abs(sample.mean().item() - expected) < 4 * error
        assert error < 0.05 * expected
        weighted.append(expected / (t1 - t0))
        shares.append(stats.norm.cdf(math.log(t1), -0.5, 1) - stats.norm.cdf(math.log(t0), -0.5, 1))
    total = np.average(weighted, weights=shares)
    spread = (squares / (high - low)).std().item() / math.sqrt(count)
    assert abs(objective(batch).item() - total) < 4 * spread


# Denoising.


def denoising(model, x, process):
    config = run_config(DENOISING, process=process, schedule=EdmSchedule())
    return Loss(config, model, must_not_be_called)(drawn(config, x)).item()


def test_denoising_levels_are_log_normal_and_one_per_sample():
    model = LinearModel(gain)
    denoising(model, torch.zeros(20_000, 1), NoiseProcess())
    ((x, sigma),) = model.calls
    assert stats.kstest(sigma.log().numpy(), stats.norm(-1.2, 1.2).cdf).pvalue > 1e-3
    assert stats.kstest((x[:, 0] / sigma).numpy(), "norm").pvalue > 1e-3
    assert abs(np.corrcoef(sigma.log().numpy(), (x[:, 0] / sigma).numpy())[0, 1]) < 4 / math.sqrt(20_000)


def test_denoising_errors_are_weighted_as_in_edm():
    model, process = LinearModel(gain), NoiseProcess(sigma_data=0.6)
    config = run_config(DENOISING, process=process, schedule=EdmSchedule())
    batch = drawn(config, gaussian(0, 50, 1, 2, 3))
    loss = Loss(config, model, must_not_be_called)(batch).item()
    ((noisy, sigma),) = model.calls
    assert torch.equal(sigma, batch.high)
    torch.testing.assert_close(noisy, batch.data + sigma.reshape(-1, 1, 1, 1) * batch.noise)
    x, noisy, s = double(batch.data, noisy, sigma)
    errors = (noisy / (1 + s[:, None, None, None]) - x) ** 2
    expected = ((s**2 + 0.36) / (s * 0.6) ** 2 * errors.reshape(50, 6).mean(1)).mean()
    assert loss == pytest.approx(expected, rel=1e-4)


def test_an_untrained_denoiser_has_loss_one_on_gaussian_data_of_the_assumed_scale():
    process, count = NoiseProcess(sigma_data=0.6), 50_000
    model = spec_of(run_config(DENOISING, process=process, schedule=EdmSchedule()), (4,)).build(0)
    with torch.no_grad():
        loss = denoising(model, 0.6 * gaussian(0, count, 4), process)
    assert abs(loss - 1) < 4 * math.sqrt(2 / (4 * count))


def test_the_optimal_denoiser_reaches_the_least_possible_loss_and_no_perturbed_one_does():
    process, count = NoiseProcess(sigma_data=0.5), 100_000
    x = SCALE * gaussian(1, count, 2)

    def loss_at(u):
        sigma = math.exp(u)
        error = SCALE**2 * sigma**2 / (SCALE**2 + sigma**2)
        return stats.norm.pdf(u, -1.2, 1.2) * (sigma**2 + 0.25) / (0.5 * sigma) ** 2 * error

    least, _ = integrate.quad(loss_at, -12, 10)
    losses = {
        factor: denoising(LinearModel(lambda s, f=factor: f * SCALE**2 / (SCALE**2 + s**2)), x, process)
        for factor in (0.9, 1.0, 1.1)
    }
    assert losses[1.0] == pytest.approx(least, rel=0.02)
    assert losses[0.9] > 1.01 * losses[1.0]
    assert losses[1.1] > 1.01 * losses[1.0]


def test_a_denoiser_is_trained_with_the_dropout_of_its_batch():
    network, config = MaskRecorder(), run_config(DENOISING, schedule=EdmSchedule())
    batch = drawn(config, gaussian(0, 8, 16), 3)
    Loss(config, PreconditionedNetwork(network, "edm", GENTLE), must_not_be_called)(batch)
    (mask,) = network.masks
    assert torch.equal(mask, network.layer(torch.ones(8, 16), dropout_keys(0, 3, 8)))


@pytest.mark.parametrize("predictor", ["online", "ema"])
def test_the_online_predictor_drops_by_a_mask_of_its_own_and_the_ema_not_at_all(predictor):
    network, config = MaskRecorder(), run_config(replace(GC, mu=1.0, predictor=predictor))
    batch = drawn(config, gaussian(0, 8, 16), 3)
    model = PreconditionedNetwork(network, "consistency", GENTLE)
    Loss(config, model, model)(batch)
    predicting, student, teacher = network.masks
    own = network.layer(torch.ones(8, 16), dropout_keys(0, 3, 8, "predictor-dropout"))
    assert torch.equal(predicting, own if predictor == "online" else torch.ones(8, 16))
    assert torch.equal(student, network.layer(torch.ones(8, 16), dropout_keys(0, 3, 8)))
    assert torch.equal(student, teacher)
    assert not torch.equal(student, own)


# Denoising of predicted endpoints.


def augmented(mu=0.5, **training):
    method = replace(DENOISING, coupling="gc", mu=mu, predictor=RunReference("ic"))
    return run_config(method, process=NoiseProcess(sigma_data=0.6), schedule=EdmSchedule(), **training)


def gaussian_flow(x, sigma):
    """Where the probability flow of N(0, SCALE^2) ends: a consistency model without error."""
    return (SCALE / (SCALE**2 + sigma**2).sqrt()).reshape(-1, *[1] * (x.ndim - 1)) * x


def test_a_denoiser_learns_the_predicted_endpoint_from_that_endpoint_and_the_same_noise():
    config, model, calls = augmented(), LinearModel(gain), []
    batch = drawn(config, gaussian(0, 60, 1, 2, 3), 3)
    assert 15 < batch.take_gc.sum() < 45

    def predict(x, sigma):
        calls.append((x, sigma))
        return torch.tanh(x) + sigma.reshape(-1, 1, 1, 1)

    loss = Loss(config, model, predict)(batch)
    ((asked, asked_at),), ((noisy, sigma),) = calls, model.calls
    assert torch.equal(sigma, batch.high)
    assert torch.equal(asked_at, batch.high[batch.take_gc])
    assert len(asked) == batch.take_gc.sum()
    plain = batch.data + batch.high.reshape(-1, 1, 1, 1) * batch.noise
    assert torch.equal(noisy[~batch.take_gc], plain[~batch.take_gc])

    x, z, s = double(batch.data, batch.noise, batch.high)
    s = s.reshape(-1, 1, 1, 1)
    x_hat = np.where(batch.take_gc.numpy().reshape(-1, 1, 1, 1), np.tanh(x + s * z) + s, x)
    np.testing.assert_allclose(noisy.double().numpy(), x_hat + s * z, rtol=1e-5, atol=1e-5)
    errors = ((x_hat + s * z) / (1 + s) - x_hat) ** 2
    expected = ((s**2 + 0.36) / (s * 0.6) ** 2 * errors).mean()
    assert loss.item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("step", [0, 7])
def test_at_share_zero_a_denoiser_has_the_loss_and_gradient_of_independent_pairs_to_the_bit(step):
    results = []
    for config, predict in [(augmented(0.0), must_not_be_called), (replace(augmented(), method=DENOISING), None)]:
        model = randomised(spec_of(config, (5,)).build(0))
        loss = Loss(config, model, predict)(drawn(config, gaussian(0, 30, 5), step))
        loss.backward()
        results.append([loss.detach(), *(parameter.grad for parameter in model.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert results[0][0] > 0


def test_the_gradient_of_a_denoiser_does_not_flow_through_its_predictor():
    config, model, predictor = augmented(1.0), LinearModel(gain), LinearModel(gain)
    batch = drawn(config, gaussian(0, 30, 3))
    Loss(config, model, predictor)(batch).backward()
    assert predictor.factor.grad is None
    assert not model.calls[0][0].requires_grad
    x, z, s = double(batch.data, batch.noise, batch.high[:, None])
    x_hat = (x + s * z) / (1 + s)
    denoised = (x_hat + s * z) / (1 + s)
    slope = (s**2 + 0.36) / (s * 0.6) ** 2 * 2 * (denoised - x_hat) * denoised
    assert model.factor.grad.item() == pytest.approx(slope.mean(), rel=1e-4)


def test_the_best_denoiser_of_predicted_endpoints_is_that_of_their_joint_gaussian_law():
    """x_hat and x_hat + sigma z share z: their covariance is not that of data with independent noise."""
    count = 100_000
    config, x = augmented(1.0), SCALE * gaussian(1, count, 2)

    def moments(s):
        # x_hat = a (x + s z), y = x_hat + s z, with a from `gaussian_flow`, so that x_hat has the law of the data.
        a = SCALE / (SCALE**2 + s**2) ** 0.5
        return SCALE**2 + a * s**2, SCALE**2 + 2 * a * s**2 + s**2

    def loss_at(u):
        s = math.exp(u)
        covariance, variance = moments(s)
        weight = (s**2 + 0.36) / (0.6 * s) ** 2
        return stats.norm.pdf(u, -1.2, 1.2) * weight * (SCALE**2 - covariance**2 / variance)

    def best(s):
        covariance, variance = moments(s)
        return covariance / variance

    least, _ = integrate.quad(loss_at, -12, 10)
    batch = drawn(config, x)
    losses = {
        name: Loss(config, LinearModel(model), gaussian_flow)(batch).item()
        for name, model in {
            "best": best,
            "less": lambda s: 0.9 * best(s),
            "more": lambda s: 1.1 * best(s),
            "independent": lambda s: SCALE**2 / (SCALE**2 + s**2),
        }.items()
    }
    assert losses["best"] == pytest.approx(least, rel=0.02)
    for name in ("less", "more", "independent"):
        assert losses[name] > 1.01 * losses["best"]


def test_a_predictor_of_a_denoiser_is_asked_for_a_multiple_of_samples_without_change_of_the_loss():
    config, asked = augmented(0.3), []
    batch = drawn(config, gaussian(0, 50, 3))

    def predict(x, sigma):
        asked.append(len(x))
        return gaussian_flow(x, sigma)

    batches = [batch._replace(to_predict=samples_to_predict(batch.take_gc, multiple)) for multiple in (1, 8)]
    losses = [Loss(config, LinearModel(gain), predict)(batch).item() for batch in batches]
    assert asked == [batch.take_gc.sum(), -(-batch.take_gc.sum() // 8) * 8]
    assert losses[0] == losses[1]
