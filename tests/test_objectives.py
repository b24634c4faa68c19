import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import nn

from gcflow.config import MethodConfig, NetworkConfig, NoiseProcess, RunConfig, ScheduleConfig, TrainingConfig
from gcflow.networks import dropout
from gcflow.objectives import ConsistencyObjective, DenoisingObjective
from gcflow.preconditioning import PreconditionedNetwork
from gcflow.training import build_model

IC = MethodConfig(objective="consistency")
CD = MethodConfig(objective="distillation", teacher="exact")
DENOISING = MethodConfig(objective="denoising")
GENTLE = NoiseProcess(sigma_min=0.1, sigma_max=3.0, rho=3.0)
SCALE = 0.7


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
        self.masks = []

    def forward(self, x, condition, generator):
        self.masks.append(dropout(torch.ones_like(x), 0.5, generator))
        return self.masks[-1]


def run_config(method, process=GENTLE, seed=0, **training):
    schedule = training.pop("schedule", ScheduleConfig(s0=5, s1=5, p_mean=-0.5, p_std=1.0))
    settings = {"steps": 10, "batch": 1, "learning_rate": 1.0, "snapshot_every": 1} | training
    return RunConfig(
        dataset="toy",
        method_name="method",
        seed=seed,
        process=process,
        network=NetworkConfig(architecture="mlp", channels=16, blocks=2, dropout=0.4),
        training=TrainingConfig(schedule=schedule, **settings),
        method=method,
    )


def gaussian(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def gain(sigma):
    return 1 / (1 + sigma)


def gaussian_denoiser(x, sigma):
    return SCALE**2 / (SCALE**2 + sigma[:, None] ** 2) * x


def test_the_loss_weighs_each_distance_by_the_inverse_width_of_its_interval():
    config = run_config(IC, huber_c=0.2)
    x, model = gaussian(0, 40, 3), LinearModel(gain)
    objective = ConsistencyObjective(config, model, gaussian_denoiser)
    x_low, low, x_high, high = (part.double().numpy() for part in objective.pair(x, 3))
    gap = x_low / (1 + low[:, None]) - x_high / (1 + high[:, None])
    distances = np.hypot(np.linalg.norm(gap, axis=1), 0.2) - 0.2
    assert objective(x, 3).item() == pytest.approx((distances / (high - low)).mean(), rel=1e-4)


def test_each_pair_spans_neighbouring_levels_of_the_current_curriculum():
    schedule = ScheduleConfig(s0=2, s1=8)
    objective = ConsistencyObjective(run_config(IC, steps=30, schedule=schedule), nn.Identity(), gaussian_denoiser)
    roots = GENTLE.sigma_min ** (1 / 3), GENTLE.sigma_max ** (1 / 3)
    for step, intervals in [(0, 2), (9, 2), (10, 4), (20, 8), (29, 8), (5, 2)]:
        _, low, _, high = objective.pair(torch.zeros(500, 1), step)
        levels = np.linspace(*roots, intervals + 1) ** 3
        index = np.abs(levels[:, None] - low.numpy()).argmin(0)
        np.testing.assert_allclose(low.numpy(), levels[index], rtol=1e-5)
        np.testing.assert_allclose(high.numpy(), levels[index + 1], rtol=1e-5)
        assert set(index) == set(range(intervals))


def test_student_and_teacher_share_their_dropout_mask_and_steps_and_seeds_do_not():
    masks = {}
    for seed, step in [(0, 0), (0, 1), (1, 0)]:
        network = MaskRecorder()
        model = PreconditionedNetwork(network, "consistency", GENTLE)
        ConsistencyObjective(run_config(IC, seed=seed), model, gaussian_denoiser)(gaussian(0, 8, 16), step)
        student, teacher = network.masks
        assert torch.equal(student, teacher)
        assert set(student.unique().tolist()) == {0.0, 2.0}
        masks[seed, step] = student
    assert not torch.equal(masks[0, 0], masks[0, 1])
    assert not torch.equal(masks[0, 0], masks[1, 0])


def test_a_coupling_prediction_does_not_disturb_the_shared_mask():
    method = MethodConfig(objective="consistency", coupling="gc", mu=0.5, predictor="online")
    network = MaskRecorder()
    model = PreconditionedNetwork(network, "consistency", GENTLE)
    ConsistencyObjective(run_config(method), model, model)(gaussian(0, 8, 16), 0)
    prediction, student, teacher = network.masks
    assert torch.equal(student, teacher)
    assert torch.equal(prediction, torch.ones_like(prediction))


@pytest.mark.parametrize(
    ("network", "shape", "layer"),
    [
        (NetworkConfig(architecture="mlp", channels=16, blocks=2, dropout=0.4), (6,), "linear1"),
        (NetworkConfig(architecture="unet", channels=8, blocks=1, multipliers=(1, 2), dropout=0.4), (1, 4, 4), "conv1"),
    ],
)
def test_every_layer_of_a_real_network_drops_the_same_units_in_student_and_teacher(network, shape, layer):
    config = replace(run_config(IC), network=network)
    model = build_model(config, shape)
    dropped = {}
    for name, module in model.named_modules():
        if name.endswith(layer):
            module.register_forward_pre_hook(
                lambda _, inputs, key=name: dropped.setdefault(key, []).append(inputs[0] == 0)
            )
    ConsistencyObjective(config, model, gaussian_denoiser)(gaussian(0, 8, *shape), 0)
    assert len(dropped) >= 2
    for student, teacher in dropped.values():
        assert torch.equal(student, teacher)
        assert 0.2 < student.float().mean() < 0.6


@pytest.mark.parametrize("method", [IC, CD])
def test_the_gradient_flows_through_the_student_alone(method):
    config = run_config(method, distance="squared-l2")
    x, model = gaussian(0, 30, 3), LinearModel(gain)
    denoiser = gaussian_denoiser if method is CD else None
    objective = ConsistencyObjective(config, model, gaussian_denoiser, denoiser)
    x_low, low, x_high, high = (part.double().numpy() for part in objective.pair(x, 0))
    objective(x, 0).backward()
    student, teacher = x_high / (1 + high[:, None]), x_low / (1 + low[:, None])
    with_stop = (2 * (student - teacher) * student).sum(1) / (high - low)
    without_stop = (2 * (student - teacher) ** 2).sum(1) / (high - low)
    assert model.factor.grad.item() == pytest.approx(with_stop.mean(), rel=1e-3)
    assert abs(with_stop.mean() - without_stop.mean()) > 0.1 * abs(with_stop.mean())


def test_the_endpoint_prediction_carries_no_gradient_to_the_weights_when_given_without():
    method = MethodConfig(objective="consistency", coupling="gc", mu=1.0, predictor="ema")
    model = LinearModel(gain)
    frozen = LinearModel(gain).requires_grad_(False)
    x_low, _, x_high, _ = ConsistencyObjective(run_config(method), model, frozen).pair(gaussian(0, 9, 2), 0)
    assert not x_low.requires_grad
    assert not x_high.requires_grad


def test_distillation_steps_along_the_velocity_of_its_denoiser():
    objective = ConsistencyObjective(run_config(CD), LinearModel(gain), gaussian_denoiser, gaussian_denoiser)
    x = SCALE * gaussian(0, 300, 2)
    x_low, low, x_high, high = objective.pair(x, 0)
    shrink = 1 + (low - high) * high / (SCALE**2 + high**2)
    torch.testing.assert_close(x_low, shrink[:, None] * x_high)
    same_noise = ConsistencyObjective(run_config(IC), LinearModel(gain), gaussian_denoiser).pair(x, 0)
    assert torch.equal(x_high, same_noise[2])
    assert not torch.allclose(x_low, same_noise[0], atol=0.05)


def test_distillation_evaluates_its_denoiser_at_the_upper_point_and_level_without_gradient():
    calls = []

    def denoiser(x, sigma):
        calls.append((x, sigma, torch.is_grad_enabled()))
        return x

    objective = ConsistencyObjective(run_config(CD), LinearModel(gain), gaussian_denoiser, denoiser)
    x_low, _, x_high, high = objective.pair(gaussian(0, 7, 2), 0)
    ((seen, sigma, graded),) = calls
    assert torch.equal(seen, x_high)
    assert torch.equal(sigma, high)
    assert not graded
    assert torch.equal(x_low, x_high)


@pytest.mark.parametrize("method", [IC, CD])
def test_losses_of_a_linear_model_on_gaussian_data_have_their_closed_form(method):
    count, d = 200_000, 2
    config = run_config(method, distance="squared-l2")
    denoiser = gaussian_denoiser if method is CD else None
    model = LinearModel(gain)
    objective = ConsistencyObjective(config, model, gaussian_denoiser, denoiser)
    x = SCALE * gaussian(5, count, d)
    x_low, low, x_high, high = objective.pair(x, 0)
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
    assert abs(objective(x, 0).item() - total) < 4 * spread


def test_consistency_training_costs_more_than_distillation_on_the_same_pairs():
    x = SCALE * gaussian(5, 20_000, 2)
    training, distillation = (
        ConsistencyObjective(run_config(method, distance="squared-l2"), LinearModel(gain), gaussian_denoiser, denoiser)(
            x, 0
        )
        for method, denoiser in [(IC, None), (CD, gaussian_denoiser)]
    )
    assert training > 1.2 * distillation


EDM = ScheduleConfig(p_mean=-1.2, p_std=1.2)


def denoising(model, x, process, step=0):
    return DenoisingObjective(run_config(DENOISING, process=process, schedule=EDM), model)(x, step).item()


def test_denoising_levels_are_log_normal_and_one_per_sample():
    model = LinearModel(gain)
    denoising(model, torch.zeros(20_000, 1), NoiseProcess())
    ((x, sigma),) = model.calls
    assert stats.kstest(sigma.log().numpy(), stats.norm(-1.2, 1.2).cdf).pvalue > 1e-3
    assert stats.kstest((x[:, 0] / sigma).numpy(), "norm").pvalue > 1e-3
    assert abs(np.corrcoef(sigma.log().numpy(), (x[:, 0] / sigma).numpy())[0, 1]) < 4 / math.sqrt(20_000)


def test_denoising_errors_are_weighted_as_in_edm():
    model, process = LinearModel(gain), NoiseProcess(sigma_data=0.6)
    x = gaussian(0, 50, 1, 2, 3)
    loss = denoising(model, x, process)
    ((noisy, sigma),) = model.calls
    s = sigma.double().numpy()
    errors = (noisy.double().numpy() / (1 + s[:, None, None, None]) - x.double().numpy()) ** 2
    expected = ((s**2 + 0.36) / (s * 0.6) ** 2 * errors.reshape(50, 6).mean(1)).mean()
    assert loss == pytest.approx(expected, rel=1e-4)


def test_an_untrained_denoiser_has_loss_one_on_gaussian_data_of_the_assumed_scale():
    process = NoiseProcess(sigma_data=0.6)
    config = run_config(DENOISING, process=process, schedule=EDM)
    model = build_model(config, (4,))
    count = 50_000
    with torch.no_grad():
        loss = DenoisingObjective(config, model)(0.6 * gaussian(0, count, 4), 0).item()
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


def test_a_denoiser_can_be_trained_on_noise_paired_by_optimal_transport():
    method = MethodConfig(objective="denoising", coupling="ot")
    config = run_config(method, process=NoiseProcess(), schedule=EDM)
    x, model = gaussian(0, 60, 1), LinearModel(gain)
    DenoisingObjective(config, model)(x, 0)
    ((noisy, sigma),) = model.calls
    z = (noisy - x)[:, 0] / sigma
    assert (z[x[:, 0].argsort()].diff() > 0).all()
