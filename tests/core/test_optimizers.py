import copy
import math

import numpy as np
import pytest
import torch
from builders import gaussian
from ema_pytorch import EMA
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from gcflow.config import TrainingConfig
from gcflow.flat import FlatParameters
from gcflow.optimizers import Lion, ema_decay, learning_rate, make_optimizer, update_ema


def training(**changes):
    return TrainingConfig(**({"steps": 100, "batch": 1, "learning_rate": 0.1, "snapshot_every": 1} | changes))


def lion_by_hand(weights, gradients, lr, beta1, beta2, decay):
    momentum = [0.0] * len(weights)
    for gradient in gradients:
        for i, g in enumerate(gradient):
            direction = beta1 * momentum[i] + (1 - beta1) * g
            sign = (direction > 0) - (direction < 0)
            weights[i] = weights[i] * (1 - lr * decay) - lr * sign
            momentum[i] = beta2 * momentum[i] + (1 - beta2) * g
    return weights


@given(
    seed=st.integers(0, 10**6),
    lr=st.floats(1e-4, 0.5),
    betas=st.tuples(st.floats(0, 0.95), st.floats(0, 0.99)),
    decay=st.sampled_from([0.0, 0.01, 0.5]),
)
def test_lion_follows_its_formula_element_by_element(seed, lr, betas, decay):
    first, second = (nn.Parameter(gaussian(seed + i, *shape).double()) for i, shape in enumerate([(2, 3), (4,)]))
    start = torch.cat([first.detach().flatten(), second.detach()]).tolist()
    gradients = [gaussian(seed + 2 + k, 10).double() for k in range(7)]
    optimizer = Lion([first, second], lr=lr, betas=betas, weight_decay=decay)
    for gradient in gradients:
        first.grad, second.grad = gradient[:6].reshape(2, 3).clone(), gradient[6:].clone()
        optimizer.step()
    expected = lion_by_hand(start, [g.tolist() for g in gradients], lr, *betas, decay)
    np.testing.assert_allclose(torch.cat([first.flatten(), second]).detach().numpy(), expected, rtol=1e-9, atol=1e-12)


def test_lion_leaves_parameters_without_gradient_alone_and_returns_the_loss_of_its_closure():
    used, unused = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = Lion([used, unused], lr=0.1, weight_decay=0.5)

    def closure():
        loss = used.sum()
        loss.backward()
        return loss.item()

    assert optimizer.step(closure) == 2.0
    assert used.tolist() == pytest.approx([0.85, 0.85])
    assert unused.tolist() == [1, 1]
    assert Lion([nn.Parameter(torch.ones(1))], lr=0.1).step() is None


@pytest.mark.parametrize("name", ["lion", "adam", "radam"])
def test_a_reloaded_optimizer_continues_to_the_bit(name):
    config = training(optimizer=name, weight_decay=0.02, learning_rate=0.01)

    def advance(weights, optimizer, first, last):
        for k in range(first, last):
            for i, w in enumerate(weights):
                w.grad = gaussian(10 * k + i, *w.shape)
            optimizer.step()

    def fresh():
        weights = [nn.Parameter(gaussian(100, 4, 3)), nn.Parameter(gaussian(101, 5))]
        return weights, make_optimizer(weights, config)

    straight, optimizer = fresh()
    advance(straight, optimizer, 0, 9)

    stopped, optimizer = fresh()
    advance(stopped, optimizer, 0, 4)
    saved = optimizer.state_dict()
    resumed, again = fresh()
    for new, old in zip(resumed, stopped, strict=True):
        new.data.copy_(old.data)
    again.load_state_dict(saved)
    advance(resumed, again, 4, 9)
    assert all(torch.equal(a, b) for a, b in zip(straight, resumed, strict=True))


def test_each_name_makes_its_optimizer_with_the_configured_rate_and_decay():
    for name, kind in [("lion", Lion), ("adam", torch.optim.Adam), ("radam", torch.optim.RAdam)]:
        optimizer = make_optimizer([nn.Parameter(torch.ones(1))], training(optimizer=name, weight_decay=0.3))
        assert type(optimizer) is kind
        (group,) = optimizer.param_groups
        assert (group["lr"], group["weight_decay"]) == (0.1, 0.3)
    assert make_optimizer([nn.Parameter(torch.ones(1))], training()).param_groups[0]["betas"] == (0.9, 0.99)


def test_a_constant_learning_rate_stays_and_a_linear_one_falls_to_zero_after_the_last_step():
    assert {learning_rate(k, training()) for k in (0, 50, 99)} == {0.1}
    linear = training(learning_rate_decay="linear")
    assert [learning_rate(k, linear) for k in (0, 25, 50, 99)] == pytest.approx([0.1, 0.075, 0.05, 0.001])
    assert learning_rate(100, linear) == 0


def test_the_ema_decay_ramps_up_as_one_minus_a_power_and_is_capped():
    ramped = training(ema_decay=0.95, ema_ramp_up=True)
    steps = [0, 1, 7, 26, 63, 88, 89, 10**6]
    expected = [0, 0, 0.75, 8 / 9, 15 / 16, 1 - 89 ** (-2 / 3), 1 - 90 ** (-2 / 3), 0.95]
    assert [ema_decay(k, ramped) for k in steps] == pytest.approx([min(e, 0.95) for e in expected])
    assert ema_decay(88, ramped) < 0.95 == ema_decay(89, ramped)
    assert {ema_decay(k, training(ema_decay=0.95)) for k in steps} == {0.95}


def test_an_ema_without_ramp_up_copies_until_its_start_and_moves_at_multiples_of_its_interval():
    config = training(ema_decay=0.75, ema_every=3, ema_start=7)
    decays = [ema_decay(k, config) for k in range(13)]
    assert decays == [0.0, None, None, 0.0, None, None, 0.0, None, None, 0.75, None, None, 0.75]


def walk(steps):
    """Weights that take a random step at every step of training."""
    position = nn.Linear(3, 2)
    for step in range(steps):
        for parameter in position.parameters():
            parameter.data.add_(gaussian(step, *parameter.shape), alpha=0.1)
        yield position


@pytest.mark.parametrize("every", [1, 5, 7])
@pytest.mark.parametrize("start", [0, 100])
def test_the_ema_is_that_of_ema_pytorch(start, every):
    config = training(ema_decay=0.96, ema_every=every, ema_start=start, ema_ramp_up=True)
    theirs, ours = None, []
    for step, model in enumerate(walk(300)):
        if theirs is None:
            theirs = EMA(model, beta=0.96, update_after_step=start, update_every=every)
            ours = FlatParameters(copy.deepcopy(theirs.ema_model))
        theirs.update()
        decay = ema_decay(step, config)
        if decay is not None:
            update_ema(ours.tensor, FlatParameters(model).tensor, decay)
        for one, other in zip(ours.parameters, theirs.ema_model.parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


def shares(config, steps):
    """What the weights after each step (index from 1; 0 the initial ones) contribute to the average after `steps`."""
    share, remaining = np.zeros(steps + 1), 1.0
    for step in reversed(range(steps)):
        decay = ema_decay(step, config)
        if decay is not None:
            share[step + 1] = remaining * (1 - decay)
            remaining *= decay
    share[0] = remaining
    return share


@pytest.mark.parametrize(
    ("start", "ages"),
    [(0, {1_000: 360, 10_000: 1989, 100_000: 10_025}), (10_000, {1_000: 4, 10_000: 4, 20_000: 1989})],
)
def test_the_authors_average_is_as_old_as_published_code_makes_it(start, ages):
    config = training(ema_decay=0.9999, ema_every=5, ema_start=start, ema_ramp_up=True)
    for steps, age in ages.items():
        share = shares(config, steps)
        assert share.sum() == pytest.approx(1)
        assert steps - share @ np.arange(steps + 1) == pytest.approx(age, rel=0.01)
        assert share[0] == 0


def test_of_the_authors_average_at_step_1000_the_weights_after_step_6_are_less_than_a_hundredth():
    share = shares(training(ema_decay=0.9999, ema_every=5, ema_ramp_up=True), 1000)
    assert share[6] == pytest.approx(0.0075, abs=5e-5)
    assert share[:6].sum() == 0
    assert shares(training(ema_decay=0.9999), 1000)[0] == pytest.approx(0.905, abs=5e-4)


@pytest.mark.parametrize("ramp_up", [False, True])
def test_the_ema_is_the_weighted_mean_of_all_weights_so_far(ramp_up):
    config = training(ema_decay=0.8, ema_ramp_up=ramp_up)
    history = [gaussian(k, 4).double() for k in range(31)]
    average = history[0].clone()
    decays = [min(0.8, 1 - (1 + k) ** (-2 / 3) if k > 1 else 0) if ramp_up else 0.8 for k in range(30)]
    for k, weights in enumerate(history[1:]):
        update_ema(average, weights, ema_decay(k, config))
    shares = [math.prod(decays)] + [(1 - decays[k]) * math.prod(decays[k + 1 :]) for k in range(30)]
    assert sum(shares) == pytest.approx(1)
    torch.testing.assert_close(average, sum(s * w for s, w in zip(shares, history, strict=True)))


def test_the_ema_is_updated_in_place_and_leaves_the_weights():
    average, weights = torch.zeros(3), torch.full((3,), 4.0)
    update_ema(average, weights, 0.75)
    assert average.tolist() == [1.0] * 3
    assert weights.tolist() == [4.0] * 3
