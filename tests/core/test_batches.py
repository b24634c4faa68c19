import math
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from builders import batch_of, grains_of, joined, random_images
from builders import run_config as any_run_config
from scipy import stats

from gcflow.batches import STEPS_AHEAD, Batches, Prefetcher, device_memory, draw_levels, resident
from gcflow.config import (
    NoiseProcess,
)
from gcflow.couplings import OptimalTransport, optimal_assignment
from gcflow.distributed import World, halves
from gcflow.dropout import dropout_keys
from gcflow.errors import GcflowError
from gcflow.objectives import Batch
from gcflow.preconditioning import to_model_space
from gcflow.randomness import batch_indices
from gcflow.training import initial_state, train

CPU = torch.device("cpu")
IMAGES = random_images(50, 1, 3, 3)
POINTS = torch.randn(50, 3, generator=torch.Generator().manual_seed(1))
PROCESS = NoiseProcess(data_mean=0.1)
STEPS = 9
METHODS = ("ic", "ot", "gc-online", "ect-gc", "cd-ot", "denoiser", "denoiser-ot", "denoiser-gc")
PAIRED = ("ot", "cd-ot", "denoiser-ot")
run_config = partial(any_run_config, process=PROCESS, batch=16, grain=2, steps=STEPS)


def batches_of(config, data=IMAGES, steps=range(STEPS), world=None, streamed=False):
    with Batches(config, data, CPU, world or World()) as batches:
        if streamed:
            assert batches.streamed is None
            batches.streamed = Prefetcher(batches._read, config.training.steps)
        return [joined(batches[step]) for step in steps]


def assert_equal(first, second):
    for name in Batch._fields:
        assert torch.equal(getattr(first, name), getattr(second, name)), name


def ahead_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]


def cost(x, z):
    return (x.double() - z.double()).flatten(1).square().sum().item()


# What a step sees.


@pytest.mark.parametrize("data", [IMAGES, POINTS])
@pytest.mark.parametrize("method", METHODS)
def test_a_batch_holds_the_samples_levels_and_keys_of_its_step(method, data):
    config = run_config(method)
    for step, batch in enumerate(batches_of(config, data)):
        samples = data[batch_indices(0, step, 16, 50)]
        assert torch.equal(batch.data, to_model_space(samples, PROCESS))
        low, high, _ = draw_levels(config, step)
        assert torch.equal(batch.low, low)
        assert torch.equal(batch.high, high)
        assert torch.equal(batch.dropout, dropout_keys(0, step, 16))
        assert torch.equal(batch.predictor_dropout, dropout_keys(0, step, 16, "predictor-dropout"))
        assert batch.noise.shape == batch.data.shape
        assert batch.noise.dtype == batch.data.dtype == torch.float32
        assert batch.take_gc.dtype == torch.bool


@pytest.mark.parametrize("method", METHODS)
def test_every_tensor_is_a_function_of_seed_and_step_wherever_a_run_is_taken_up(method):
    config, state = run_config(method), torch.get_rng_state()
    expected = batches_of(config)
    for start in (0, 1, 4, STEPS - 1):
        for first, second in zip(batches_of(config, steps=range(start, STEPS)), expected[start:], strict=True):
            assert_equal(first, second)
    for first, second in zip(batches_of(config, steps=[1, 5, 8]), (expected[1], expected[5], expected[8]), strict=True):
        assert_equal(first, second)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("method", METHODS)
def test_steps_and_seeds_have_their_own_draws(method):
    (first, later), (other,) = (
        batches_of(run_config(method), steps=[4, 5]),
        batches_of(run_config(method, seed=1), steps=[4]),
    )
    fields = set(Batch._fields) - (set() if "gc" in method else {"take_gc", "to_predict"})
    for name in fields:
        assert not torch.equal(getattr(first, name), getattr(later, name))
        assert not torch.equal(getattr(first, name), getattr(other, name))


def test_noise_is_standard_normal_and_tells_nothing_of_data_levels_and_takers():
    count = 5000
    data = torch.randn(count, 2, generator=torch.Generator().manual_seed(3))
    (batch,) = batches_of(run_config("gc-online", batch=count), data, steps=[4])
    assert stats.kstest(batch.noise.flatten().numpy(), "norm").pvalue > 1e-3
    for part in (batch.data[:, 0], batch.high, batch.take_gc.float(), batch.noise[:, 1], batch.dropout.float()):
        correlation = stats.spearmanr(batch.noise[:, 0].numpy(), part.numpy()).statistic
        assert abs(correlation) < 4 / math.sqrt(count)


@pytest.mark.parametrize("grain", [1, 2, 4, 8, None])
def test_grains_are_the_batch_cut_in_order_and_choose_their_own_samples(grain):
    config = run_config("gc-online", grain=grain)
    whole, grains = batch_of(config, IMAGES, 3), grains_of(config, IMAGES, 3)
    assert [len(part.data) for part in grains] == [grain or 16] * (16 // (grain or 16))
    for name in Batch._fields[:-1]:
        assert torch.equal(torch.cat([getattr(part, name) for part in grains]), getattr(whole, name))
    for part in grains:
        assert part.to_predict.tolist() == [i for i, takes in enumerate(part.take_gc) if takes]


# Optimal transport.


@pytest.mark.parametrize("method", PAIRED)
def test_optimal_transport_pairs_the_noise_of_the_independent_coupling_at_least_cost(method):
    independent = {"ot": "ic", "cd-ot": "ic", "denoiser-ot": "denoiser"}[method]
    for paired, plain in zip(batches_of(run_config(method)), batches_of(run_config(independent)), strict=True):
        chosen = optimal_assignment(plain.data, plain.noise)
        assert chosen.tolist() != list(range(16))
        assert_equal(paired, plain._replace(noise=plain.noise[chosen]))
        assert cost(paired.data, paired.noise) < cost(plain.data, plain.noise)


# Several processes.


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("method", METHODS)
def test_the_shares_of_several_processes_make_up_the_batch_of_one_to_the_bit(method, size):
    whole = batches_of(run_config(method))
    shares = [batches_of(run_config(method), world=World(rank, size)) for rank in range(size)]
    for step in range(STEPS):
        assert all(len(share[step].data) == 16 // size for share in shares)
        assert_equal(joined(share[step] for share in shares), whole[step])


@pytest.mark.parametrize(("grains", "size", "possible"), [(16, 3, "1, 2, 4, 8, 16"), (6, 8, "1, 2, 4"), (1, 2, "1")])
def test_a_number_of_processes_that_cannot_share_the_grains_is_refused_with_those_that_can(grains, size, possible):
    expected = rf"^{size} processes cannot share a batch of {grains} grains .*; possible here: {possible}$"
    for rank in range(size):
        with pytest.raises(GcflowError, match=expected):
            World(rank, size).share(grains)


@pytest.mark.parametrize("grains", [1, 2, 3, 6, 8, 13, 16])
def test_processes_have_all_grains_below_a_node_of_the_tree_in_the_order_of_their_ranks(grains):
    for size in (1 << power for power in range(grains.bit_length())):
        shares = [World(rank, size).share(grains) for rank in range(size)]
        assert [grain for share in shares for grain in share] == list(range(grains))
        nodes, leaves = [], [range(grains)]
        while leaves:
            nodes += leaves
            leaves = [half for node in leaves if len(node) > 1 for half in halves(node)]
        assert all(share in nodes for share in shares)
        assert [World(rank, size).first for rank in range(size)] == [True] + [False] * (size - 1)


# Where the data lie.


class Elsewhere(torch.Tensor):
    """A tensor on the CPU that says it is on another device."""

    device = torch.device("meta")


@pytest.mark.parametrize("data", [IMAGES, POINTS])
def test_data_on_another_device_are_streamed_and_make_the_same_batches(data):
    config = run_config("gc-online")
    elsewhere = data.clone().as_subclass(Elsewhere)
    with Batches(config, elsewhere, CPU, World()) as batches:
        assert batches.streamed is not None
        for step, expected in enumerate(batches_of(config, data)):
            assert_equal(joined(batches[step]), expected)


@pytest.mark.parametrize("world", [World(), World(1, 2)])
@pytest.mark.parametrize("method", METHODS)
def test_streamed_data_make_the_batches_of_resident_data(method, world):
    config = run_config(method)
    streamed = batches_of(config, steps=range(2, STEPS), world=world, streamed=True)
    for first, second in zip(streamed, batches_of(config, steps=range(2, STEPS), world=world), strict=True):
        assert_equal(first, second)


def test_data_move_to_the_device_only_if_they_take_at_most_their_share_of_its_memory():
    data = torch.zeros(1000, 3)
    share = 12_000 / device_memory("cpu")
    kept, moved = resident(data, "cpu", 0.99 * share), resident(data, "cpu", 1.01 * share)
    assert kept is data
    assert moved.data_ptr() != data.data_ptr()
    assert torch.equal(moved, data)


def test_resident_data_do_not_depend_on_the_file_they_were_mapped_from(tmp_path):
    path = tmp_path / "data"
    path.write_bytes(bytes(range(8)))
    mapped = torch.from_file(str(path), shared=True, size=8, dtype=torch.uint8)
    moved, streamed = resident(mapped, "cpu", 0.5), resident(mapped, "cpu", 0.0)
    mapped.fill_(7)
    assert moved.tolist() == list(range(8))
    assert streamed.tolist() == [7] * 8


def test_this_machine_has_the_memory_that_its_kernel_reports():
    lines = Path("/proc/meminfo").read_text().splitlines()
    kilobytes = next(int(line.split()[1]) for line in lines if line.startswith("MemTotal"))
    assert device_memory("cpu") == 1024 * kilobytes


# Prefetcher.


class Work:
    """Counts what was computed, and tells how far beyond a step the thread went once it has nothing left to do."""

    def __init__(self):
        self.done = []

    def __call__(self, step):
        self.done.append(step)
        return step**2

    def furthest(self, ahead):
        for future in list(ahead.pending.values()):
            future.result(timeout=60)
        time.sleep(0.01)
        return max(self.done)


def test_values_come_in_order_and_each_is_computed_once():
    work = Work()
    ahead = Prefetcher(work, 20)
    assert [ahead[step] for step in range(20)] == [step**2 for step in range(20)]
    assert work.done == list(range(20))
    ahead.close()


def test_no_more_than_a_few_steps_are_computed_ahead_and_none_beyond_the_last():
    work = Work()
    ahead = Prefetcher(work, 8)
    for step in range(8):
        assert ahead[step] == step**2
        assert work.furthest(ahead) == min(step + STEPS_AHEAD, 7)
        assert len(ahead.pending) <= STEPS_AHEAD
    ahead.close()
    assert work.done == list(range(8))


def test_a_run_taken_up_late_computes_nothing_of_the_steps_before():
    work = Work()
    ahead = Prefetcher(work, 100)
    assert [ahead[step] for step in (50, 51)] == [2500, 2601]
    ahead.close()
    assert min(work.done) == 50


def test_work_is_done_in_one_other_thread_that_ends_when_it_is_closed():
    before = ahead_threads()
    names = set()
    ahead = Prefetcher(lambda step: names.add(threading.current_thread().name), 50)
    for step in range(10):
        _ = ahead[step]
    assert len(names) == 1
    assert threading.current_thread().name not in names
    assert len(ahead_threads()) == len(before) + 1
    ahead.close()
    assert ahead_threads() == before


def test_closing_does_not_compute_what_nobody_waits_for():
    started, go = threading.Event(), threading.Event()
    done = []

    def slow(step):
        started.set()
        go.wait(10)
        done.append(step)

    ahead = Prefetcher(slow, 50)
    asking = threading.Thread(target=lambda: ahead[0])
    asking.start()
    assert started.wait(10)
    while STEPS_AHEAD not in ahead.pending:
        time.sleep(0.001)
    threading.Timer(0.1, go.set).start()
    ahead.close()
    asking.join(10)
    assert done == [0]


def test_the_thread_leaves_the_main_one_its_cores():
    torch.set_num_threads(2)
    batches_of(run_config("ot"))
    assert torch.get_num_threads() == 2


# Errors.


def test_an_error_in_the_thread_reaches_the_caller_at_its_step_and_the_thread_ends():
    before = ahead_threads()
    order = torch.cat([batch_indices(0, step, 16, 160) for step in range(STEPS)])
    data = torch.randn(160, 3, generator=torch.Generator().manual_seed(0))
    data[order[16 * 4 + 5]] = math.nan
    with Batches(run_config("ot"), data, CPU, World()) as batches:
        for step in range(4):
            assert joined(batches[step]).noise.isfinite().all()
        with pytest.raises(ValueError, match="invalid numeric"):
            _ = batches[4]
    assert ahead_threads() == before


@pytest.mark.parametrize("error", [RuntimeError("no memory"), OSError(5, "Input/output error"), KeyboardInterrupt()])
def test_an_error_of_the_assignment_ends_the_training_and_its_thread(error, monkeypatch):
    before, calls = ahead_threads(), []

    def failing(self, x, z, uniform):
        calls.append(len(x))
        if len(calls) == 6:
            raise error
        return optimal_assignment(x, z)

    monkeypatch.setattr(OptimalTransport, "assignment", failing)
    config = run_config("ot")
    state = initial_state(config, (1, 3, 3))
    with pytest.raises(type(error)) as caught:
        train(config, IMAGES, state)
    assert caught.value is error
    assert state.step == 5
    assert ahead_threads() == before


def test_leaving_on_an_error_of_the_caller_ends_the_thread():
    before = ahead_threads()
    with pytest.raises(ZeroDivisionError), Batches(run_config("ot"), IMAGES, CPU, World()) as batches:
        _ = batches[0], 1 / 0
    assert ahead_threads() == before


def test_a_finished_training_leaves_no_thread():
    before = ahead_threads()
    for method in ("ot", "denoiser-ot"):
        train(run_config(method), IMAGES, initial_state(run_config(method), (1, 3, 3)))
    assert ahead_threads() == before


def test_a_batch_larger_than_the_data_set_sees_it_more_than_once():
    (batch,) = batches_of(replace(run_config("ot"), training=replace(run_config("ot").training, batch=100)), steps=[0])
    rows, counts = batch.data.flatten(1).unique(dim=0, return_counts=True)
    assert len(rows) == 50
    assert counts.tolist() == [2] * 50
