import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gcflow.config import TrainingConfig
from gcflow.distances import distance_for, huber_constant, pseudo_huber, squared_l2

SEEDS = st.integers(0, 2**31)


def batch(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def training(**changes):
    return TrainingConfig(steps=1, batch=1, learning_rate=1, snapshot_every=1, **changes)


@given(seed=SEEDS, c=st.floats(1e-3, 10))
def test_distances_agree_with_numpy_sample_by_sample_and_are_symmetric(seed, c):
    x, y = batch(seed, 3, 2, 4, 4), batch(seed + 1, 3, 2, 4, 4)
    norms = np.array([np.linalg.norm((x[i] - y[i]).numpy().ravel()) for i in range(3)])
    np.testing.assert_allclose(squared_l2(x, y).numpy(), norms**2)
    np.testing.assert_allclose(pseudo_huber(x, y, c).numpy(), np.hypot(norms, c) - c)
    assert torch.equal(pseudo_huber(x, y, c), pseudo_huber(y, x, c))
    assert (pseudo_huber(x, x, c).abs() <= 1e-12).all()


def test_the_gradient_is_bounded_by_one_far_away_and_vanishes_at_zero():
    x = torch.stack([torch.zeros(9), torch.full((9,), 1e4)]).requires_grad_()
    pseudo_huber(x, torch.zeros(2, 9), 0.01).sum().backward()
    assert x.grad.norm(dim=1).tolist() == pytest.approx([0, 1])


def test_constant_zero_is_the_norm_with_a_gradient_of_length_one_and_of_zero_where_it_has_none():
    x = torch.cat([batch(0, 3, 2, 4, 4), torch.zeros(1, 2, 4, 4, dtype=torch.float64)]).requires_grad_()
    y = torch.cat([batch(1, 3, 2, 4, 4), torch.zeros(1, 2, 4, 4, dtype=torch.float64)])
    distances = pseudo_huber(x, y, 0.0)
    distances.sum().backward()
    gap = (x - y).detach()
    norms = gap.flatten(1).norm(dim=1)
    torch.testing.assert_close(distances.detach(), norms)
    torch.testing.assert_close(x.grad[:3], gap[:3] / norms[:3].reshape(-1, 1, 1, 1))
    assert torch.equal(x.grad[3], torch.zeros(2, 4, 4, dtype=torch.float64))


@pytest.mark.parametrize("difference", [1e-12, 1e-6, 1e12])
def test_the_norm_and_its_gradient_hold_for_tiny_and_for_enormous_differences(difference):
    x = torch.full((1, 4), difference, requires_grad=True)
    distance = pseudo_huber(x, torch.zeros(1, 4), 0.0)
    distance.backward()
    assert distance.item() == pytest.approx(2 * difference, rel=1e-5)
    assert x.grad[0].tolist() == pytest.approx([0.5] * 4, rel=1e-5)


@pytest.mark.parametrize(("dimension", "constant"), [(1, 0.00054), (100, 0.0054), (3 * 32 * 32, 0.0299298)])
def test_the_constant_grows_with_the_root_of_the_dimension(dimension, constant):
    assert huber_constant(dimension) == pytest.approx(constant, rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "c"), [({}, 0.00054 * 8), ({"huber_c": 0.7}, 0.7), ({"distance": "squared-l2"}, None)]
)
def test_a_run_trains_with_the_distance_it_names(changes, c):
    x, y = batch(0, 5, 1, 8, 8), batch(1, 5, 1, 8, 8)
    norms = (x - y).flatten(1).norm(dim=1)
    config = training(**changes)
    expected = norms**2 if c is None else torch.hypot(norms, torch.tensor(c, dtype=torch.float64)) - c
    torch.testing.assert_close(distance_for(config.distance, config.huber_c)(x, y), expected)
