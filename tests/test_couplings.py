from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.optimize import linprog
from torch import nn

from gcflow.config import MethodConfig, NetworkConfig, NoiseProcess, RunConfig, ScheduleConfig, TrainingConfig
from gcflow.couplings import CouplingContext, generator_augmented, independent, optimal_transport
from gcflow.objectives import ConsistencyObjective, mu_at
from gcflow.preconditioning import PreconditionedNetwork
from gcflow.randomness import generator
from gcflow.training import build_model

SEEDS = st.integers(0, 2**31)
PROCESS = NoiseProcess()


class Predictor:
    def __init__(self, shift=100.0):
        self.shift = shift
        self.calls = []

    def __call__(self, x, sigma):
        self.calls.append((x, sigma))
        return 0.5 * x + self.shift


def must_not_be_called(x, sigma):
    raise AssertionError("no sample takes the generator-augmented coupling")


def gaussian(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def run_config(method, batch=64, seed=0, steps=100, dropout=0.0, **training):
    return RunConfig(
        dataset="toy",
        method_name="method",
        seed=seed,
        process=PROCESS,
        network=NetworkConfig(architecture="mlp", channels=16, blocks=1, dropout=dropout),
        training=TrainingConfig(
            steps=steps,
            batch=batch,
            learning_rate=1e-3,
            snapshot_every=steps,
            schedule=ScheduleConfig(s0=10, s1=20),
            **training,
        ),
        method=method,
    )


def gc(mu):
    return MethodConfig(objective="consistency", coupling="gc", mu=mu, predictor="ema")


IC = MethodConfig(objective="consistency", coupling="ic")


def squared_costs(x, z):
    return ((x.double().flatten(1)[:, None] - z.double().flatten(1)[None]) ** 2).sum(-1).numpy()


def test_the_independent_coupling_changes_nothing():
    x, z = gaussian(0, 4, 3), gaussian(1, 4, 3)
    endpoint, noise = independent(x, z)
    assert endpoint is x
    assert noise is z


@given(seed=SEEDS, count=st.integers(1, 6), dimension=st.integers(1, 4))
@settings(deadline=None, max_examples=40)
def test_optimal_transport_is_the_cheapest_of_all_permutations(seed, count, dimension):
    x, z = 0.5 * gaussian(seed, count, dimension) + 1, gaussian(seed + 1, count, dimension)
    endpoint, noise = optimal_transport(x, z)
    assert endpoint is x
    assert sorted(noise.tolist()) == sorted(z.tolist())
    costs = squared_costs(x, z)
    cheapest = min(costs[range(count), order].sum() for order in permutations(range(count)))
    assert np.trace(squared_costs(x, noise)) == pytest.approx(cheapest, rel=1e-5)


def test_optimal_transport_costs_what_linear_programming_finds():
    count = 14
    x, z = gaussian(0, count, 1, 3, 3).exp(), gaussian(1, count, 1, 3, 3)
    costs = squared_costs(x, z)
    marginals = np.zeros((2 * count, count, count))
    for i in range(count):
        marginals[i, i, :] = marginals[count + i, :, i] = 1
    solution = linprog(costs.ravel(), A_eq=marginals.reshape(2 * count, -1), b_eq=np.ones(2 * count), bounds=(0, 1))
    _, noise = optimal_transport(x, z)
    assert noise.shape == z.shape
    assert np.trace(squared_costs(x, noise)) == pytest.approx(solution.fun, rel=1e-5)
    assert np.trace(squared_costs(x, noise)) < np.trace(costs)


def test_optimal_transport_on_the_line_pairs_sorted_points():
    x, z = gaussian(0, 200, 1).double(), gaussian(1, 200, 1).double()
    _, noise = optimal_transport(x, z)
    order = x[:, 0].argsort()
    assert torch.equal(noise[order], z.sort(dim=0).values)


def test_optimal_transport_undoes_a_shuffle():
    x = 3 * gaussian(0, 32, 8)
    noise = x + 0.01 * gaussian(1, 32, 8)
    shuffled = noise[torch.randperm(32, generator=torch.Generator().manual_seed(2))]
    assert torch.equal(optimal_transport(x, shuffled)[1], noise)


def test_generator_augmentation_without_takers_is_the_independent_coupling_and_predicts_nothing():
    x, z = gaussian(0, 5, 2), gaussian(1, 5, 2)
    nobody = CouplingContext(torch.ones(5), torch.zeros(5, dtype=torch.bool), must_not_be_called)
    endpoint, noise = generator_augmented(x, z, nobody)
    assert torch.equal(endpoint, x)
    assert torch.equal(noise, z)


@given(takers=st.lists(st.booleans(), min_size=1, max_size=9))
@settings(deadline=None, max_examples=40)
def test_only_takers_are_predicted_from_their_own_noisy_point_at_the_lower_level(takers):
    count = len(takers)
    x, z = gaussian(0, count, 1, 2, 2), gaussian(1, count, 1, 2, 2)
    before = x.clone()
    low = torch.arange(1.0, count + 1)
    predictor = Predictor()
    endpoint, noise = generator_augmented(x, z, CouplingContext(low, torch.tensor(takers), predictor))
    assert torch.equal(noise, z)
    assert torch.equal(x, before)
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


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("step", [0, 60])
def test_mu_zero_gives_the_loss_and_gradient_of_independent_coupling_to_the_bit(seed, step):
    results = []
    for method in (IC, gc(0.0)):
        config = run_config(method, seed=seed, dropout=0.3)
        model = build_model(config, (6,))
        for i, parameter in enumerate(model.parameters()):
            parameter.data += 0.1 * gaussian(i, *parameter.shape)
        loss = ConsistencyObjective(config, model, must_not_be_called)(gaussian(9, 64, 6), step)
        loss.backward()
        results.append([loss.detach(), *(p.grad for p in model.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert results[0][0] > 0


@pytest.mark.parametrize("mu", [0.0, 0.4, 1.0])
def test_both_points_of_a_pair_lie_on_one_line_from_the_endpoint_along_the_noise(mu):
    config = run_config(gc(mu), batch=200)
    x, predictor = gaussian(3, 200, 4), Predictor()
    objective = ConsistencyObjective(config, PreconditionedNetwork(nn.Identity(), "consistency", PROCESS), predictor)
    x_low, low, x_high, high = (part.double() for part in objective.pair(x, 7))
    z = torch.randn(200, 4, generator=generator(0, 7, "noise")).double()
    assert (high > low).all()
    tolerance = 1e-6 * (high[:, None] * z.abs() + 101)
    assert ((x_high - x_low - (high - low)[:, None] * z).abs() <= tolerance).all()
    endpoint_low, endpoint_high = x_low - low[:, None] * z, x_high - high[:, None] * z
    assert ((endpoint_low - endpoint_high).abs() <= tolerance).all()
    augmented = (endpoint_low.mean(1) > 20).numpy()
    predicted = 0.5 * (x.double() + low[:, None] * z) + 100
    expected = torch.where(torch.from_numpy(augmented)[:, None], predicted, x.double())
    assert ((endpoint_low - expected).abs() <= tolerance).all()
    rows = sum(len(seen) for seen, _ in predictor.calls)
    assert augmented.sum() == rows
    assert (rows == 0) == (mu == 0)
    assert (rows == 200) == (mu == 1)


@pytest.mark.parametrize("mu", [0.3, 0.5, 0.7])
def test_the_share_of_augmented_samples_is_mu(mu):
    count = 8000
    config, predictor = run_config(gc(mu), batch=count), Predictor()
    objective = ConsistencyObjective(config, nn.Identity(), predictor)
    objective.pair(torch.zeros(count, 1), 0)
    rows = len(predictor.calls[0][0])
    assert stats.binomtest(rows, count, mu).pvalue > 1e-3


def test_which_samples_are_augmented_does_not_depend_on_their_interval():
    count = 20_000
    config, predictor = run_config(gc(0.5), batch=count), Predictor()
    _, low, _, _ = ConsistencyObjective(config, nn.Identity(), predictor).pair(torch.zeros(count, 1), 0)
    everyone = low.unique(return_counts=True)[1].double().numpy()
    takers = np.array([(predictor.calls[0][1] == level).sum() for level in low.unique()])
    table = np.stack([takers, everyone - takers])
    assert stats.chi2_contingency(table).pvalue > 1e-3


def test_mu_changes_linearly_from_its_start_to_its_end():
    rising = run_config(gc((0.2, 0.8)), steps=300)
    assert [mu_at(step, rising) for step in (0, 100, 150, 300)] == pytest.approx([0.2, 0.4, 0.5, 0.8])
    constant = run_config(gc(0.3), steps=300)
    assert {mu_at(step, constant) for step in (0, 150, 299)} == {0.3}
    assert mu_at(50, run_config(IC)) == 0


def test_the_share_of_augmented_samples_follows_the_change_of_mu():
    count = 4000
    config = run_config(gc((1.0, 0.0)), batch=count, steps=4)
    shares = []
    for step in range(4):
        predictor = Predictor()
        ConsistencyObjective(config, nn.Identity(), predictor).pair(torch.zeros(count, 1), step)
        shares.append(len(predictor.calls[0][0]) / count)
    assert shares == pytest.approx([1, 0.75, 0.5, 0.25], abs=4 * 0.5 / count**0.5)


def test_every_step_draws_its_own_noise_intervals_and_takers():
    config = run_config(gc(0.5), batch=100)
    x = gaussian(0, 100, 3)
    first, again, other = (ConsistencyObjective(config, nn.Identity(), Predictor()).pair(x, step) for step in (4, 4, 5))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))
