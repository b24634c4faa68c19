import hashlib
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gcflow.randomness import batch_indices, derived_seed, generator

PURPOSES = st.lists(st.one_of(st.integers(0, 10**6), st.sampled_from(["noise", "interval", "dropout"])), max_size=3)


@given(seed=st.integers(0, 2**40), purpose=PURPOSES)
def test_a_derived_seed_is_the_top_of_a_hash_so_old_runs_replay_on_any_machine(seed, purpose):
    text = "/".join(map(str, [seed, *purpose]))
    bits = "".join(f"{byte:08b}" for byte in hashlib.blake2b(text.encode(), digest_size=8).digest())
    assert derived_seed(seed, *purpose) == int(bits[:63], 2)


def test_derived_seeds_differ_between_seeds_steps_and_purposes():
    seeds = [derived_seed(*parts) for parts in product(range(10), range(10), ["noise", "interval", "dropout"])]
    assert len(set(seeds)) == 300
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_generator_is_fresh_every_time_it_is_asked_for():
    first, again = (torch.randn(8, generator=generator(1, 5, "noise")) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, torch.randn(8, generator=generator(1, 6, "noise")))
    assert not torch.equal(first, torch.randn(8, generator=generator(1, 5, "dropout")))


def test_different_purposes_give_uncorrelated_noise():
    a, b = (torch.randn(20_000, generator=generator(0, 0, name)) for name in ("noise", "dropout"))
    assert abs(torch.corrcoef(torch.stack([a, b]))[0, 1]) < 4 / 20_000**0.5


@given(seed=st.integers(0, 100), batch=st.integers(1, 23), count=st.integers(1, 17))
def test_every_epoch_shows_each_sample_once_whatever_the_batch(seed, batch, count):
    epochs = 4
    steps = -(-epochs * count // batch)
    seen = torch.cat([batch_indices(seed, step, batch, count) for step in range(steps)])
    assert seen.dtype == torch.int64
    for epoch in range(epochs):
        assert seen[epoch * count : (epoch + 1) * count].sort().values.tolist() == list(range(count))


@given(seed=st.integers(0, 100), batch=st.integers(1, 9), count=st.integers(1, 9), data=st.data())
def test_the_batch_of_a_step_depends_on_no_earlier_call(seed, batch, count, data):
    in_order = [batch_indices(seed, step, batch, count).tolist() for step in range(12)]
    for step in data.draw(st.permutations(range(12))):
        batch_indices(seed + 1, step, batch, count)
        assert batch_indices(seed, step, batch, count).tolist() == in_order[step]


def test_changing_a_returned_batch_does_not_change_the_next_one():
    first = batch_indices(0, 0, 5, 5)
    kept = first.tolist()
    first.zero_()
    assert batch_indices(0, 0, 5, 5).tolist() == kept


def test_epochs_and_seeds_are_shuffled_differently():
    orders = [tuple(batch_indices(seed, epoch, 50, 50).tolist()) for seed in range(3) for epoch in range(3)]
    assert len(set(orders)) == 9
    assert tuple(range(50)) not in orders


def test_the_order_of_an_epoch_is_uniform_over_permutations():
    firsts = [tuple(batch_indices(seed, 0, 3, 3).tolist()) for seed in range(1200)]
    counts = [firsts.count(order) for order in set(firsts)]
    assert len(counts) == 6
    assert sum((count - 200) ** 2 / 200 for count in counts) < 20.5  # chi-square, 5 degrees of freedom, p = 0.001


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_the_global_random_state_is_neither_read_nor_changed(batch):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = batch_indices(2, 3, batch, 10)
    draw = torch.randn(4, generator=generator(2, "x"))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    assert torch.equal(batch_indices(2, 3, batch, 10), first)
    assert torch.equal(torch.randn(4, generator=generator(2, "x")), draw)
