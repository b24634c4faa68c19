import itertools
import math
import shutil

import numpy as np
import pytest
import torch
from builders import gaussian
from scipy.stats import chi2
from torch import nn

from gcflow.config import NetworkConfig
from gcflow.dropout import Dropout, dropout_keys, keep_mask, number_layers

RATES = [0.1, 0.13, 0.3, 0.5, 0.9]
NETWORKS = [
    (NetworkConfig("mlp", channels=16, blocks=3, dropout=0.3), (2,)),
    (NetworkConfig("ddpm++", channels=8, blocks=1, multipliers=(1, 2), dropout=0.3), (1, 4, 4)),
    (NetworkConfig("ncsn++", channels=8, blocks=(1, 2), multipliers=(1, 2), dropout=(0.0, 0.3)), (3, 4, 4)),
]


def layer(rate, number=0):
    dropout = Dropout(rate)
    dropout.layer = number
    return dropout


def sixteenths(keys, number, size):
    """Which sixteenth of [0, 1) the uniform number behind each value lies in, from masks of fifteen rates."""
    return sum((~keep_mask(keys, number, size, k / 16)).int() for k in range(1, 16))


def assert_independent_and_uniform(a, b):
    """Pearson's test of pairs of sixteenths against the uniform law on all 256; p-value above 1e-6."""
    counts = torch.bincount((16 * a + b).flatten(), minlength=256).double()
    expected = counts.sum() / 256
    assert ((counts - expected) ** 2 / expected).sum() < chi2.isf(1e-6, 255)


# One mask.


@pytest.mark.parametrize("rate", RATES)
def test_the_rate_is_the_share_of_zeros_and_the_rest_is_scaled_to_keep_the_mean(rate):
    x = torch.full((50, 3000), 3.0)
    dropped = layer(rate)(x, dropout_keys(0, 0, 50))
    zeros = dropped == 0
    assert abs(zeros.double().mean().item() - rate) < 5 * math.sqrt(rate * (1 - rate) / x.numel())
    torch.testing.assert_close(dropped[~zeros], x[~zeros] / (1 - rate), rtol=1e-6, atol=0)


@pytest.mark.parametrize("rate", RATES)
def test_every_sample_and_every_position_drops_at_the_rate(rate):
    zeros = ~keep_mask(dropout_keys(1, 0, 1000), 4, 800, rate)
    # Largest of a thousand: six sigma.
    for axis, count in ((0, 1000), (1, 800)):
        deviation = (zeros.double().mean(axis) - rate).abs().max()
        assert deviation < 6 * math.sqrt(rate * (1 - rate) / count)


def test_a_value_dropped_at_a_rate_is_dropped_at_every_higher_rate():
    keys = dropout_keys(0, 0, 20)
    masks = [keep_mask(keys, 0, 500, rate) for rate in sorted(RATES)]
    for low, high in itertools.pairwise(masks):
        assert not (high & ~low).any()


def test_the_mean_over_keys_is_the_input():
    x = gaussian(0, 1, 12)
    dropped = layer(0.3)(x.expand(40_000, -1), dropout_keys(3, 0, 40_000))
    sigma = x.abs() * math.sqrt(0.3 / 0.7 / 40_000)
    assert ((dropped.double().mean(0) - x[0]).abs() < 5 * sigma[0]).all()


def test_no_keys_and_rate_zero_are_the_identity():
    keys = dropout_keys(0, 0, 4)
    for x in (gaussian(0, 4, 5), gaussian(0, 4, 2, 3, 3)):
        assert layer(0.4)(x, None) is x
        assert torch.equal(layer(0.0)(x, keys), x)
        assert torch.equal(layer(0.4).eval()(x, None), x)


@pytest.mark.parametrize("shape", [(1,), (3,), (7,), (1, 1, 1), (3, 5, 7), (1, 3, 3), (4, 2, 1)])
def test_any_number_of_values_can_be_dropped(shape):
    x = torch.ones(400, *shape)
    dropped = layer(0.25, 2)(x, dropout_keys(0, 1, 400))
    assert dropped.shape == x.shape
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], torch.full_like(dropped[kept], 4 / 3))
    share = 1 - kept.double().mean().item()
    assert abs(share - 0.25) < 5 * math.sqrt(0.25 * 0.75 / x.numel())


@pytest.mark.parametrize("rate", [1 - 2**-16, 1 - 2**-20])
def test_a_rate_close_to_one_drops_nearly_everything(rate):
    assert keep_mask(dropout_keys(0, 0, 10), 0, 10_000, rate).double().mean() < 1e-3


@pytest.mark.parametrize("shape", [(2000,), (8, 10, 25)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_every_precision_has_the_same_mask_and_keeps_its_type(shape, dtype):
    keys = dropout_keys(0, 0, 3)
    x = gaussian(0, 3, *shape).abs() + 0.1
    dropped = layer(0.3)(x.to(dtype), keys)
    assert dropped.dtype == dtype
    expected = layer(0.3)(x, keys)
    assert torch.equal(dropped == 0, expected == 0)
    torch.testing.assert_close(dropped.float(), expected, rtol=2**-7 if dtype == torch.bfloat16 else 1e-6, atol=0)


@pytest.mark.parametrize("shape", [(100,), (4, 5, 6)])
def test_the_gradient_is_the_scaled_mask(shape):
    keys = dropout_keys(0, 0, 3)
    x = gaussian(0, 3, *shape).requires_grad_()
    upstream = gaussian(1, 3, *shape)
    (layer(0.3)(x, keys) * upstream).sum().backward()
    mask = layer(0.3)(torch.ones(3, *shape), keys)
    torch.testing.assert_close(x.grad, mask * upstream)
    assert 0 < (mask == 0).sum() < mask.numel()


# What the mask depends on, and what it does not.


def test_equal_keys_give_equal_masks_and_leave_the_global_random_state():
    keys, x = dropout_keys(0, 0, 5), gaussian(0, 5, 64)
    before = torch.get_rng_state()
    torch.manual_seed(1)
    first = layer(0.5)(x, keys)
    torch.manual_seed(2)
    assert torch.equal(first, layer(0.5)(x, keys.clone()))
    torch.set_rng_state(before)
    layer(0.5)(x, keys)
    dropout_keys(0, 0, 5)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("shape", [(31,), (3, 4, 5)])
def test_the_mask_of_a_sample_does_not_depend_on_its_place_nor_on_the_size_of_the_batch(shape):
    keys, x = dropout_keys(0, 0, 12), gaussian(0, 12, *shape)
    dropout = layer(0.4, 1)
    whole = dropout(x, keys)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    assert torch.equal(dropout(x[order], keys[order]), whole[order])
    for size in (1, 5, 7):
        parts = [dropout(x[i : i + size], keys[i : i + size]) for i in range(0, 12, size)]
        assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize("shape", [(1, 3, 5), (6, 4, 4), (5, 7, 3)])
def test_the_memory_layout_does_not_change_the_mask(shape):
    keys, x = dropout_keys(0, 0, 6), gaussian(0, 6, *shape)
    plain = layer(0.4)(x, keys)
    last = layer(0.4)(x.contiguous(memory_format=torch.channels_last), keys)
    assert torch.equal(plain, last)
    assert last.is_contiguous(memory_format=torch.channels_last)


def test_values_of_an_image_are_counted_with_the_channel_innermost():
    keys, x = dropout_keys(0, 0, 6), gaussian(0, 6, 3, 4, 5)
    flat = layer(0.4)(x.permute(0, 2, 3, 1).reshape(6, 60), keys)
    assert torch.equal(layer(0.4)(x, keys), flat.reshape(6, 4, 5, 3).permute(0, 3, 1, 2))


# Independence.


@pytest.mark.parametrize("distance", [1, 2, 3, 16, 64, 1024])
@pytest.mark.parametrize("parity", [0, 1])
def test_positions_are_independent_in_each_sample(distance, parity):
    # Even and odd neighbours are the two halves of one hash.
    bins = sixteenths(dropout_keys(0, 0, 100), 0, 4096)
    first = torch.arange(parity, 4096 - distance, 2)
    assert_independent_and_uniform(bins[:, first], bins[:, first + distance])


@pytest.mark.parametrize(("one", "other"), [(0, 1), (1, 2), (0, 7), (3, 64)])
def test_layers_are_independent_at_each_position_and_at_neighbours(one, other):
    keys = dropout_keys(0, 0, 100)
    a, b = sixteenths(keys, one, 4096), sixteenths(keys, other, 4096)
    assert_independent_and_uniform(a, b)
    assert_independent_and_uniform(a[:, 1:], b[:, :-1])
    assert_independent_and_uniform(a[:, :-1], b[:, 1:])


def test_samples_are_independent_at_each_position():
    bins = sixteenths(dropout_keys(0, 0, 101), 0, 4096)
    assert_independent_and_uniform(bins[1:], bins[:-1])


@pytest.mark.parametrize("step", [1, -1, 2, 1 << 16])
def test_keys_that_follow_each_other_give_independent_masks(step):
    keys = dropout_keys(0, 0, 100)
    assert_independent_and_uniform(sixteenths(keys, 0, 4096), sixteenths(keys + step, 0, 4096))


def test_no_three_values_are_tied_by_their_parity():
    # Pairs can be independent where triples are not: the product of centred masks of three neighbours.
    centred = keep_mask(dropout_keys(0, 0, 200), 0, 3001, 0.5).double() * 2 - 1
    for a, b in [(1, 2), (1, 3), (2, 4), (2, 3)]:
        product = centred[:, :-4] * centred[:, a : a - 4] * centred[:, b : b - 4 or None]
        assert abs(product.mean().item()) < 5 / math.sqrt(product.numel())


def correlations(a, b):
    """Circular cross-correlation coefficient of two sequences of +-1 at every lag."""
    return np.fft.irfft(np.fft.rfft(a) * np.fft.rfft(b).conj(), len(a)) / len(a)


@pytest.mark.parametrize("size", [1 << 16, 1 << 18])
def test_masks_of_layers_and_samples_are_uncorrelated_at_every_distance(size):
    # A level of 256 channels and 32 x 32 pixels has 2^18 values.
    first, second = dropout_keys(0, 0, 2)[:, None]
    masks = [(first, 0), (first, 1), (first, 2), (second, 0)]
    signs = [keep_mask(key, number, size, 0.5)[0].double().numpy() * 2 - 1 for key, number in masks]
    for (i, a), (j, b) in itertools.combinations_with_replacement(enumerate(signs), 2):
        largest = np.abs(correlations(a, b)[int(i == j) :]).max()
        # 10 pairs of 2^18 lags: 5e-9 of a normal tail of six sigma and a half.
        assert largest < 6.5 / math.sqrt(size), (masks[i][1], masks[j][1])


# Keys.


def test_keys_are_a_function_of_seed_step_and_purpose():
    keys = dropout_keys(3, 5, 1000)
    assert keys.dtype == torch.int32
    assert keys.shape == (1000,)
    assert keys.device.type == "cpu"
    assert torch.equal(keys, dropout_keys(3, 5, 1000))
    for other in (
        *(dropout_keys(*place, 1000) for place in ((4, 5), (3, 6), (5, 3))),
        dropout_keys(3, 5, 1000, "other"),
    ):
        # 1000 random pairs out of 2^32 meet with probability 2e-7.
        assert not (keys == other).any()


def test_keys_are_uniform_over_all_32_bits():
    keys = dropout_keys(0, 0, 20_000).long()
    bits = (keys[:, None] >> torch.arange(32)) & 1
    assert ((bits.double().mean(0) - 0.5).abs() < 5 * 0.5 / math.sqrt(20_000)).all()
    # 20000^2 / 2^33 coinciding pairs are 0.05 on average.
    assert len(keys.unique()) >= 19_998


# In a network.


@pytest.mark.parametrize(("config", "shape"), NETWORKS)
def test_every_dropout_layer_of_a_network_has_a_number_of_its_own(config, shape):
    numbers = [module.layer for module in config.build(shape).modules() if isinstance(module, Dropout)]
    assert len(numbers) >= 3
    assert len(set(numbers)) == len(numbers)


def test_layers_are_numbered_in_any_module():
    network = nn.Sequential(Dropout(0.5), nn.Linear(2, 2), nn.Sequential(Dropout(0.5), Dropout(0.5)))
    number_layers(network)
    assert len({module.layer for module in network.modules() if isinstance(module, Dropout)}) == 3


@pytest.mark.parametrize(("config", "shape"), NETWORKS)
def test_two_passes_with_the_same_keys_agree_to_the_bit_and_other_keys_differ(config, shape):
    student, teacher = config.build(shape), config.build(shape)
    for index, parameter in enumerate(student.parameters()):
        parameter.data = gaussian(index, *parameter.shape) / math.sqrt(parameter[0].numel())
    teacher.load_state_dict(student.state_dict())
    x, condition, keys = gaussian(0, 3, *shape), torch.tensor([-1.0, 0.0, 1.0]), dropout_keys(0, 0, 3)
    first = student(x, condition, keys)
    with torch.no_grad():
        assert torch.equal(first, student(x, condition, keys))
        assert torch.equal(first, teacher.eval()(x, condition, keys))
        for other in (dropout_keys(0, 1, 3), None):
            assert not torch.isclose(first, student(x, condition, other)).flatten(1).all(1).any()


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.slow
def test_a_compiled_layer_has_the_mask_of_the_plain_one(tmp_path, monkeypatch):
    # The machine's own cache is shared with whatever else compiles at the same time.
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch._dynamo.reset()
    dropout, keys, x = layer(0.3, 3), dropout_keys(0, 0, 4), gaussian(0, 4, 5, 3, 7)
    # Scalar code: plain C++, where an integer that overflows may do anything; vector instructions wrap around.
    compiled = torch.compile(dropout, backend="inductor", options={"cpp.simdlen": 1})
    assert torch.equal(compiled(x, keys), dropout(x, keys))
    torch._dynamo.reset()
