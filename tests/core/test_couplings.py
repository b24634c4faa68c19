from functools import partial
from itertools import permutations

import numpy as np
import pytest
import torch
from builders import Loss, batch_of, gaussian, must_not_be_called, randomised
from builders import run_config as any_run_config
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.optimize import linprog
from torch import nn

from gcflow import register
from gcflow.config import (
    EctSchedule,
    IctSchedule,
    MethodConfig,
    NoiseProcess,
)
from gcflow.couplings import CouplingContext, generator_augmented, optimal_assignment, samples_to_predict
from gcflow.model import PreconditionedNetwork
from gcflow.weights import spec_of

SEEDS = st.integers(0, 2**31)
PROCESS = NoiseProcess()
run_config = partial(any_run_config, schedule=IctSchedule(s0=10, s1=20))


class Predictor:
    def __init__(self, shift=100.0):
        self.shift = shift
        self.calls = []

    def __call__(self, x, sigma):
        self.calls.append((x, sigma))
        return 0.5 * x + self.shift


def gc(mu, mu_from_step=None):
    return MethodConfig(objective="consistency", coupling="gc", mu=mu, mu_from_step=mu_from_step, predictor="ema")


IC = MethodConfig(objective="consistency", coupling="ic")


def objective(config, predict, model=None):
    model = model or nn.Identity()
    return Loss(config, model, predict)


def squared_costs(x, z):
    return ((x.double().flatten(1)[:, None] - z.double().flatten(1)[None]) ** 2).sum(-1).numpy()


# Optimal transport.


def test_optimal_transport_assigns_generator_augmentation_predicts_and_the_independent_coupling_does_neither():
    couplings = {name: register.coupling.named(name)() for name in ("ic", "ot", "gc")}
    assert [name for name, coupling in couplings.items() if coupling.assigns] == ["ot"]
    assert [name for name, coupling in couplings.items() if coupling.predicts] == ["gc"]
    transport = couplings["ot"]
    x, z = gaussian(0, 8, 3), gaussian(1, 8, 3)
    assert torch.equal(transport.assignment(x, z, torch.zeros(8).double()), optimal_assignment(x, z))


@given(seed=SEEDS, count=st.integers(1, 6), dimension=st.integers(1, 4))
def test_optimal_transport_is_the_cheapest_of_all_permutations(seed, count, dimension):
    x, z = 0.5 * gaussian(seed, count, dimension) + 1, gaussian(seed + 1, count, dimension)
    chosen = optimal_assignment(x, z)
    assert chosen.dtype == torch.int64
    assert sorted(chosen.tolist()) == list(range(count))
    costs = squared_costs(x, z)
    cheapest = min(costs[range(count), order].sum() for order in permutations(range(count)))
    assert np.trace(squared_costs(x, z[chosen])) == pytest.approx(cheapest, rel=1e-5)


def test_optimal_transport_costs_what_linear_programming_finds():
    count = 14
    x, z = gaussian(0, count, 1, 3, 3).exp(), gaussian(1, count, 1, 3, 3)
    costs = squared_costs(x, z)
    marginals = np.zeros((2 * count, count, count))
    for i in range(count):
        marginals[i, i, :] = marginals[count + i, :, i] = 1
    solution = linprog(costs.ravel(), A_eq=marginals.reshape(2 * count, -1), b_eq=np.ones(2 * count), bounds=(0, 1))
    paired = squared_costs(x, z[optimal_assignment(x, z)])
    assert np.trace(paired) == pytest.approx(solution.fun, rel=1e-5)
    assert np.trace(paired) < np.trace(costs)


# Generator augmentation.


def test_generator_augmentation_without_takers_is_the_independent_coupling_and_predicts_nothing():
    x, z = gaussian(0, 5, 2), gaussian(1, 5, 2)
    takers = torch.zeros(5, dtype=torch.bool)
    for multiple in (1, 4):
        nobody = CouplingContext(torch.ones(5), takers, samples_to_predict(takers, multiple), must_not_be_called)
        assert torch.equal(generator_augmented(x, z, nobody), x)


@given(takers=st.lists(st.booleans(), min_size=1, max_size=9))
def test_only_takers_are_predicted_from_their_own_noisy_point_at_the_lower_level(takers):
    count = len(takers)
    x, z = gaussian(0, count, 1, 2, 2), gaussian(1, count, 1, 2, 2)
    before = x.clone(), z.clone()
    low = torch.arange(1.0, count + 1)
    predictor = Predictor()
    taking = torch.tensor(takers)
    endpoint = generator_augmented(x, z, CouplingContext(low, taking, samples_to_predict(taking), predictor))
    assert torch.equal(x, before[0])
    assert torch.equal(z, before[1])
    chosen = [i for i, taken in enumerate(takers) if taken]
    assert len(predictor.calls) == (1 if chosen else 0)
    if chosen:
        ((seen, sigma),) = predictor.calls
        assert sigma.tolist() == [i + 1 for i in chosen]
        for row, i in enumerate(chosen):
            torch.testing.assert_close(seen[row], x[i] + (i + 1) * z[i])
            torch.testing.assert_close(endpoint[i], 0.5 * (x[i] + (i + 1) * z[i]) + 100)
    for i, taken in enumerate(takers):
        if not taken:
            assert torch.equal(endpoint[i], x[i])


@given(takers=st.lists(st.booleans(), min_size=1, max_size=13), multiple=st.integers(2, 8))
def test_rounding_up_the_number_of_predictions_changes_no_endpoint(takers, multiple):
    count, taking = len(takers), torch.tensor(takers)
    x, z, low = gaussian(0, count, 3), gaussian(1, count, 3), torch.arange(1.0, count + 1)
    exact, rounded = Predictor(), Predictor()
    expected = generator_augmented(x, z, CouplingContext(low, taking, samples_to_predict(taking), exact))
    endpoint = generator_augmented(x, z, CouplingContext(low, taking, samples_to_predict(taking, multiple), rounded))
    assert torch.equal(endpoint, expected)
    if any(takers):
        ((seen, sigma),) = rounded.calls
        assert len(seen) == len(sigma) == min(-(-sum(takers) // multiple) * multiple, count)
        torch.testing.assert_close(seen[: sum(takers)], exact.calls[0][0])


def test_a_taker_has_the_endpoint_of_its_own_prediction_however_many_are_added_after_it():
    """Samples added to fill up a pass are predicted too; theirs must not become an endpoint."""

    def numbered(x, sigma):
        return torch.arange(float(len(x)))[:, None].expand_as(x)

    for takers in range(1, 9):
        taking = torch.arange(10) < takers
        context = CouplingContext(torch.ones(10), taking, samples_to_predict(taking, 8), numbered)
        endpoints = generator_augmented(torch.full((10, 2), -1.0), torch.zeros(10, 2), context)
        assert endpoints[:, 0].tolist() == [*range(takers), *[-1] * (10 - takers)]


@pytest.mark.parametrize("schedule", [IctSchedule(s0=10, s1=20), EctSchedule()])
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("step", [0, 60])
def test_mu_zero_gives_the_loss_and_gradient_of_independent_coupling_to_the_bit(schedule, seed, step):
    results = []
    for method in (IC, gc(0.0)):
        config = run_config(method, seed=seed, schedule=schedule)
        model = randomised(spec_of(config, (6,)).build(config.seed))
        loss = objective(config, must_not_be_called, model)(batch_of(config, gaussian(9, 64, 6), step))
        loss.backward()
        results.append([loss.detach(), *(p.grad for p in model.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert results[0][0] > 0


@pytest.mark.parametrize("schedule", [IctSchedule(s0=10, s1=20), EctSchedule(q=4)])
@pytest.mark.parametrize("mu", [0.0, 0.4, 1.0])
def test_both_points_of_a_pair_lie_on_one_line_from_the_endpoint_along_the_noise(mu, schedule):
    config = run_config(gc(mu), batch=200, schedule=schedule)
    predictor = Predictor()
    batch = batch_of(config, gaussian(3, 200, 4), 7)
    model = PreconditionedNetwork(nn.Identity(), "consistency", PROCESS)
    x_low, x_high = (part.double() for part in objective(config, predictor, model).points(batch))
    x, z, low, high = (part.double() for part in batch[:4])
    assert (high > low).all()
    tolerance = 1e-6 * (high[:, None] * z.abs() + 101)
    assert ((x_high - x_low - (high - low)[:, None] * z).abs() <= tolerance).all()
    endpoint_low, endpoint_high = x_low - low[:, None] * z, x_high - high[:, None] * z
    assert ((endpoint_low - endpoint_high).abs() <= 2 * tolerance).all()
    augmented = endpoint_low.mean(1) > 20
    assert torch.equal(augmented, batch.take_gc)
    predicted = 0.5 * (x + low[:, None] * z) + 100
    expected = torch.where(augmented[:, None], predicted, x)
    assert ((endpoint_low - expected).abs() <= tolerance).all()
    rows = sum(len(seen) for seen, _ in predictor.calls)
    assert augmented.sum() == rows
    assert (rows == 0) == (mu == 0)
    assert (rows == 200) == (mu == 1)


@pytest.mark.parametrize("preconditioning", ["edm", "vp", "ve"])
def test_in_ect_the_predicted_endpoint_is_the_data_itself_where_the_lower_level_is_zero(preconditioning):
    method = MethodConfig(
        objective="consistency", coupling="gc", mu=1.0, predictor="ema", preconditioning=preconditioning
    )
    config = run_config(method, batch=300, schedule=EctSchedule())
    model = spec_of(config, (4,)).build(0)
    seen = []

    def predict(x, sigma):
        seen.append(sigma)
        return model(x, sigma)

    batch = batch_of(config, gaussian(3, 300, 4), 0)
    at_zero = batch.low == 0
    assert 30 < at_zero.sum() < 290
    x_low, x_high = objective(config, predict, model).points(batch)
    assert torch.equal(seen[0], batch.low)
    assert torch.equal(x_low[at_zero], batch.data[at_zero])
    torch.testing.assert_close(x_high[at_zero], (batch.data + batch.high[:, None] * batch.noise)[at_zero])
    with torch.no_grad():
        endpoints = model(batch.data + batch.low[:, None] * batch.noise, batch.low)
    torch.testing.assert_close(x_low[~at_zero], (endpoints + batch.low[:, None] * batch.noise)[~at_zero])
    torch.testing.assert_close(x_high[~at_zero], (endpoints + batch.high[:, None] * batch.noise)[~at_zero])
    assert not torch.isclose(endpoints, batch.data)[~at_zero].all(1).any()


# How many take it.


def test_which_samples_are_augmented_does_not_depend_on_their_interval():
    count = 20_000
    batch = batch_of(run_config(gc(0.5), batch=count), torch.zeros(count, 1), 0)
    levels, everyone = batch.low.unique(return_counts=True)
    takers = np.array([batch.take_gc[batch.low == level].sum() for level in levels])
    table = np.stack([takers, everyone.numpy() - takers])
    assert stats.chi2_contingency(table).pvalue > 1e-3


def test_mu_changes_linearly_from_its_start_to_its_end():
    rising = run_config(gc((0.2, 0.8)), steps=300)
    assert [rising.mu_at(step) for step in (0, 100, 150, 300)] == pytest.approx([0.2, 0.4, 0.5, 0.8])
    constant = run_config(gc(0.3), steps=300)
    assert {constant.mu_at(step) for step in (0, 150, 299)} == {0.3}
    assert run_config(IC).mu_at(50) == 0
    up, down = (run_config(gc(mu), steps=8) for mu in ((0.0, 1.0), (1.0, 0.0)))
    assert [up.mu_at(step) for step in range(8)] == [step / 8 for step in range(8)]
    assert [down.mu_at(step) for step in range(8)] == [1 - step / 8 for step in range(8)]


@pytest.mark.parametrize("mu", [0.3, (0.0, 1.0), (1.0, 0.0)])
@pytest.mark.parametrize("begin", [0, 1, 60, 99])
def test_mu_is_zero_before_its_step_and_from_it_on_as_if_it_had_always_been_on(begin, mu):
    late, always = run_config(gc(mu, begin)), run_config(gc(mu))
    for step in range(100):
        assert late.mu_at(step) == (0 if step < begin else always.mu_at(step))


@pytest.mark.parametrize("step", [0, 59, 60, 99])
def test_batches_are_those_of_independent_coupling_before_mu_begins_and_of_mu_afterwards(step):
    late = batch_of(run_config(gc((0.2, 0.8), 60)), gaussian(0, 64, 2), step)
    other = batch_of(run_config(IC if step < 60 else gc((0.2, 0.8))), gaussian(0, 64, 2), step)
    assert all(torch.equal(a, b) for a, b in zip(late, other, strict=True))
    assert late.take_gc.any() == (step >= 60)
    if step < 60:
        objective(run_config(gc((0.2, 0.8), 60)), must_not_be_called).points(late)


def test_the_share_of_augmented_samples_follows_the_change_of_mu():
    count = 4000
    config = run_config(gc((1.0, 0.0)), batch=count, steps=4)
    shares = [batch_of(config, torch.zeros(count, 1), step).take_gc.double().mean().item() for step in range(4)]
    assert shares == pytest.approx([1, 0.75, 0.5, 0.25], abs=4 * 0.5 / count**0.5)


def test_a_sample_that_is_augmented_at_a_share_is_augmented_at_every_higher_share():
    low, high = (batch_of(run_config(gc(mu), batch=500), torch.zeros(500, 1), 3).take_gc for mu in (0.3, 0.6))
    assert (high | ~low).all()
