"""The U-Nets against a second implementation: plain functions over the state dict, written from EDM's description."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from gcflow.config import NetworkConfig
from gcflow.dropout import Dropout, dropout_keys

ARCHITECTURES = ["ddpm++", "ncsn++"]
ONE_LEVEL = (NetworkConfig("ddpm++", channels=8, blocks=2), (1, 4, 4))
TWO_LEVELS = (NetworkConfig("ddpm++", channels=8, blocks=1, multipliers=(2, 1), attention=(8,)), (3, 8, 8))
THREE_LEVELS = (
    NetworkConfig(
        "ddpm++",
        channels=12,
        blocks=(2, 1, 3),
        multipliers=(1, 2, 3),
        attention=(8, 2),
        dropout=(0.0, 0.2, 0.4),
        label_dim=5,
        augment_dim=9,
    ),
    (2, 8, 8),
)
WIDE = (NetworkConfig("ddpm++", channels=64, blocks=1, multipliers=(1, 2), attention=(4, 2), label_dim=1), (4, 4, 4))
TO_ONE_PIXEL = (NetworkConfig("ddpm++", channels=8, blocks=1, multipliers=(1, 1, 1), augment_dim=2), (1, 4, 4))
SHAPES = {"one": ONE_LEVEL, "two": TWO_LEVELS, "three": THREE_LEVELS, "wide": WIDE, "pixel": TO_ONE_PIXEL}
CASES = [
    pytest.param(replace(config, architecture=architecture), shape, id=f"{architecture}-{name}")
    for architecture in ARCHITECTURES
    for name, (config, shape) in SHAPES.items()
]
CIFAR = {
    "small": NetworkConfig("ddpm++", channels=128, blocks=3, multipliers=(1, 2, 2)),
    "published": NetworkConfig("ddpm++", channels=128, blocks=4, multipliers=(2, 2, 2), attention=(16,), augment_dim=9),
}


def gaussian(seed, *shape, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def built(config, shape, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return config.build(shape)


def randomised(config, shape, dtype=torch.float64):
    """A network all of whose parameters matter; the initial ones make every residual branch nearly zero."""
    network = built(config, shape).to(dtype)
    for index, (name, parameter) in enumerate(network.named_parameters()):
        noise = gaussian(index, *parameter.shape, dtype=dtype)
        if parameter.ndim > 1:
            parameter.data = noise / math.sqrt(parameter[0].numel())
        else:
            parameter.data = 0.4 * noise + ("norm" in name and name.endswith("weight"))
    return network


def inputs(config, shape, batch, dtype=torch.float64):
    labels = {}
    if config.label_dim:
        labels["class_labels"] = torch.eye(config.label_dim, dtype=dtype)[torch.arange(batch) % config.label_dim]
    if config.augment_dim:
        labels["augment_labels"] = gaussian(2, batch, config.augment_dim, dtype=dtype)
    return gaussian(0, batch, *shape, dtype=dtype), torch.linspace(-1.6, 1.1, batch, dtype=dtype), labels


# The second implementation.


def under(state, name):
    return {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}


def depthwise(x, kernel, padding):
    return functional.conv2d(x, kernel.tile([x.shape[1], 1, 1, 1]), stride=2, groups=x.shape[1], padding=padding)


def depthwise_transposed(x, kernel, padding):
    kernel = 4 * kernel.tile([x.shape[1], 1, 1, 1])
    return functional.conv_transpose2d(x, kernel, stride=2, groups=x.shape[1], padding=padding)


def reference_convolution(state, name, x, resample):
    own = under(state, name)
    if resample is not None:
        kernel = own["resample_filter"]
        resampled = depthwise_transposed if resample == "up" else depthwise
        x = resampled(x, kernel, (kernel.shape[-1] - 1) // 2)
    return functional.conv2d(x, own["weight"], own["bias"], padding=own["weight"].shape[-1] // 2)


def reference_norm(state, name, x):
    groups = min(32, x.shape[1] // 4)
    return functional.group_norm(x, groups, state[f"{name}.weight"], state[f"{name}.bias"], eps=1e-6)


def reference_attention(state, x):
    batch, channels, height, width = x.shape
    qkv = reference_convolution(state, "qkv", reference_norm(state, "norm2", x), None)
    q, k, v = qkv.reshape(batch, channels, 3, height * width).unbind(2)
    logits = torch.einsum("ncq,nck->nqk", q.float(), k.float()) / math.sqrt(channels)
    weights = logits.exp() / logits.exp().sum(2, keepdim=True)
    mixed = torch.einsum("nqk,nck->ncq", weights.to(x.dtype), v).reshape(x.shape)
    return reference_convolution(state, "proj", mixed, None)


def reference_block(state, name, x, embedding, resample=None):
    own = under(state, name)
    h = functional.silu(reference_norm(own, "norm0", x))
    h = reference_convolution(own, "conv0", h, resample)
    h = h + functional.linear(embedding, own["affine.weight"], own["affine.bias"])[..., None, None]
    h = reference_convolution(own, "conv1", functional.silu(reference_norm(own, "norm1", h)), None)
    skip = reference_convolution(own, "skip", x, resample) if "skip.weight" in own else x
    h = (h + skip) / math.sqrt(2)
    return (h + reference_attention(own, h)) / math.sqrt(2) if "qkv.weight" in own else h


def reference_embedding(config, state, condition, labels):
    if config.architecture == "ncsn++":
        angles = 2 * math.pi * torch.outer(condition, state["map_noise.freqs"])
    else:
        half = config.channels // 2
        frequencies = [10_000 ** -(index / (half - 1)) for index in range(half)]
        angles = torch.outer(condition, torch.tensor(frequencies, dtype=condition.dtype))
    embedding = torch.cat([angles.cos(), angles.sin()], 1)
    embedding = embedding.reshape(len(condition), 2, -1).flip(1).reshape(embedding.shape)
    if "class_labels" in labels:
        scaled = labels["class_labels"] * math.sqrt(config.label_dim)
        embedding = embedding + functional.linear(scaled, state["map_label.weight"], state["map_label.bias"])
    if "augment_labels" in labels:
        embedding = embedding + functional.linear(labels["augment_labels"], state["map_augment.weight"])
    for layer in ("map_layer0", "map_layer1"):
        embedding = functional.silu(functional.linear(embedding, state[f"{layer}.weight"], state[f"{layer}.bias"]))
    return embedding


def reference_residual(state, name, auxiliary):
    own = under(state, name)
    kernel = own["resample_filter"]
    convolved = functional.conv2d(auxiliary, own["weight"], padding=1 + (kernel.shape[-1] - 1) // 2)
    return depthwise(convolved, kernel, 0) + own["bias"].reshape(1, -1, 1, 1)


def reference(config, state, x, condition, labels):
    embedding = reference_embedding(config, state, condition, labels)
    names = [f"{x.shape[-1] // 2**level}" for level in range(len(config.multipliers))]
    names = [f"{side}x{side}" for side in names]
    auxiliary, skips = x, []
    for level, name in enumerate(names):
        if level == 0:
            x = reference_convolution(state, f"enc.{name}_conv", x, None)
        else:
            x = reference_block(state, f"enc.{name}_down", x, embedding, "down")
            if config.architecture == "ncsn++":
                x = (x + reference_residual(state, f"enc.{name}_aux_residual", auxiliary)) / math.sqrt(2)
                auxiliary = x
        skips.append(x)
        for index in range(config.blocks_per_level[level]):
            x = reference_block(state, f"enc.{name}_block{index}", x, embedding)
            skips.append(x)
    for level, name in reversed(list(enumerate(names))):
        if level == len(names) - 1:
            x = reference_block(state, f"dec.{name}_in0", x, embedding)
            x = reference_block(state, f"dec.{name}_in1", x, embedding)
        else:
            x = reference_block(state, f"dec.{name}_up", x, embedding, "up")
        for index in range(config.blocks_per_level[level] + 1):
            x = reference_block(state, f"dec.{name}_block{index}", torch.cat([x, skips.pop()], 1), embedding)
    assert not skips
    x = functional.silu(reference_norm(state, f"dec.{names[0]}_aux_norm", x))
    return reference_convolution(state, f"dec.{names[0]}_aux_conv", x, None)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(("config", "shape"), CASES)
def test_the_output_is_that_of_a_second_implementation(config, shape, batch):
    network = randomised(config, shape)
    x, condition, labels = inputs(config, shape, batch)
    with torch.no_grad():
        output = network(x, condition, None, **labels)
        expected = reference(config, network.state_dict(), x, condition, labels)
    assert 0.1 < expected.std() < 10
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_large_noise_conditions_are_embedded_as_in_the_second_implementation(architecture):
    config, shape = replace(TWO_LEVELS[0], architecture=architecture), TWO_LEVELS[1]
    network = randomised(config, shape)
    x, condition = gaussian(0, 4, *shape), torch.tensor([0.0, 1.0, 40.0, 999.0], dtype=torch.float64)
    with torch.no_grad():
        expected = reference(config, network.state_dict(), x, condition, {})
        torch.testing.assert_close(network(x, condition), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_single_precision_and_the_memory_layout_do_not_change_the_function(architecture, memory_format):
    config, shape = replace(THREE_LEVELS[0], architecture=architecture), THREE_LEVELS[1]
    network = randomised(config, shape, torch.float32)
    x, condition, labels = inputs(config, shape, 3, torch.float32)
    doubled = {name: tensor.double() for name, tensor in network.state_dict().items()}
    labels64 = {name: tensor.double() for name, tensor in labels.items()}
    network.to(memory_format=memory_format)
    with torch.no_grad():
        output = network(x.to(memory_format=memory_format), condition, None, **labels)
        expected = reference(config, doubled, x.double(), condition.double(), labels64)
    assert output.dtype == torch.float32
    torch.testing.assert_close(output.double(), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_no_label_means_all_labels_zero(architecture):
    config, shape = replace(THREE_LEVELS[0], architecture=architecture), THREE_LEVELS[1]
    network = randomised(config, shape)
    x, condition, labels = inputs(config, shape, 3)
    zeros = {name: torch.zeros_like(tensor) for name, tensor in labels.items()}
    with torch.no_grad():
        plain = network(x, condition)
        torch.testing.assert_close(plain, network(x, condition, None, **zeros))
        for name, tensor in labels.items():
            assert (network(x, condition, None, **{name: tensor}) - plain).abs().max() > 1e-3


# Names and shapes, derived by rule.


def norm_shapes(name, channels):
    return {f"{name}.weight": (channels,), f"{name}.bias": (channels,)}


def convolution_shapes(name, inputs, outputs, kernel, taps=0):
    shapes = {f"{name}.weight": (outputs, inputs, kernel, kernel), f"{name}.bias": (outputs,)}
    return shapes | ({f"{name}.resample_filter": (1, 1, taps, taps)} if taps else {})


def linear_shapes(name, inputs, outputs):
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def block_shapes(name, inputs, outputs, embedding, attention=False, taps=0):
    shapes = norm_shapes(f"{name}.norm0", inputs) | convolution_shapes(f"{name}.conv0", inputs, outputs, 3, taps)
    shapes |= linear_shapes(f"{name}.affine", embedding, outputs) | norm_shapes(f"{name}.norm1", outputs)
    shapes |= convolution_shapes(f"{name}.conv1", outputs, outputs, 3)
    if inputs != outputs or taps:
        shapes |= convolution_shapes(f"{name}.skip", inputs, outputs, 1, taps)
    if attention:
        shapes |= norm_shapes(f"{name}.norm2", outputs)
        shapes |= convolution_shapes(f"{name}.qkv", outputs, 3 * outputs, 1)
        shapes |= convolution_shapes(f"{name}.proj", outputs, outputs, 1)
    return shapes


def expected_shapes(config, shape):
    residual = config.architecture == "ncsn++"
    taps, noise = (4, 2 * config.channels) if residual else (2, config.channels)
    embedding = 4 * config.channels
    shapes = linear_shapes("map_layer0", noise, embedding) | linear_shapes("map_layer1", embedding, embedding)
    if residual:
        shapes["map_noise.freqs"] = (noise // 2,)
    if config.label_dim:
        shapes |= linear_shapes("map_label", config.label_dim, noise)
    if config.augment_dim:
        shapes["map_augment.weight"] = (noise, config.augment_dim)
    sides = [shape[1] // 2**level for level in range(len(config.multipliers))]
    widths = [config.channels * multiplier for multiplier in config.multipliers]
    skips, x, auxiliary = [], config.channels, shape[0]
    for level, side in enumerate(sides):
        name = f"enc.{side}x{side}"
        if level == 0:
            shapes |= convolution_shapes(f"{name}_conv", shape[0], x, 3)
        else:
            shapes |= block_shapes(f"{name}_down", x, x, embedding, taps=taps)
            if residual:
                shapes |= convolution_shapes(f"{name}_aux_residual", auxiliary, x, 3, taps)
                auxiliary = x
        skips.append(x)
        for index in range(config.blocks_per_level[level]):
            shapes |= block_shapes(f"{name}_block{index}", x, widths[level], embedding, side in config.attention)
            x = widths[level]
            skips.append(x)
    for level in range(len(sides) - 1, -1, -1):
        side, last = sides[level], config.blocks_per_level[level]
        name = f"dec.{side}x{side}"
        if level == len(sides) - 1:
            shapes |= block_shapes(f"{name}_in0", x, x, embedding, attention=True)
            shapes |= block_shapes(f"{name}_in1", x, x, embedding)
        else:
            shapes |= block_shapes(f"{name}_up", x, x, embedding, taps=taps)
        for index in range(last + 1):
            attends = index == last and side in config.attention
            shapes |= block_shapes(f"{name}_block{index}", x + skips.pop(), widths[level], embedding, attends)
            x = widths[level]
    shapes |= norm_shapes(f"dec.{sides[0]}x{sides[0]}_aux_norm", x)
    return shapes | convolution_shapes(f"dec.{sides[0]}x{sides[0]}_aux_conv", x, shape[0], 3)


@pytest.mark.parametrize(("config", "shape"), CASES)
def test_names_and_shapes_of_the_state_follow_the_rule(config, shape):
    state = built(config, shape).state_dict()
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == expected_shapes(config, shape)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(("name", "ddpm_count"), [("small", 34_711_811), ("published", 55_733_891)])
def test_sizes_on_cifar_are_the_published_ones(name, ddpm_count, architecture):
    config = replace(CIFAR[name], architecture=architecture)
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in config.build((3, 32, 32)).parameters())
    no_parameters = ("resample_filter", "freqs")
    shapes = expected_shapes(config, (3, 32, 32))
    assert count == sum(math.prod(s) for key, s in shapes.items() if not key.endswith(no_parameters))
    assert (count == ddpm_count) == (architecture == "ddpm++")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_resampling_filters_are_products_of_binomials_and_sum_to_one(architecture):
    config, shape = replace(THREE_LEVELS[0], architecture=architecture), THREE_LEVELS[1]
    filters = [buffer for name, buffer in built(config, shape).named_buffers() if name.endswith("resample_filter")]
    # Two resampling blocks each way with a skip beside the convolution, and the residual encoder's two.
    assert len(filters) == {"ddpm++": 8, "ncsn++": 10}[architecture]
    taps = torch.tensor({"ddpm++": [1.0, 1.0], "ncsn++": [1.0, 3.0, 3.0, 1.0]}[architecture])
    for kernel in filters:
        assert kernel.shape == (1, 1, len(taps), len(taps))
        assert kernel.sum() == 1
        torch.testing.assert_close(kernel[0, 0], torch.outer(taps, taps) / taps.sum() ** 2)


def test_ddpm_halves_by_means_of_four_pixels_and_doubles_by_copies():
    network = randomised(NetworkConfig("ddpm++", channels=8, blocks=1, multipliers=(1, 1)), (3, 8, 8), torch.float32)
    x = gaussian(0, 2, 8, 8, 8, dtype=torch.float32)
    down, up = network.enc["4x4_down"].skip, network.dec["8x8_up"].skip
    for convolution in (down, up):
        convolution.weight.data = torch.eye(*convolution.weight.shape[:2])[..., None, None]
        convolution.bias.data.zero_()
    torch.testing.assert_close(down(x), x.reshape(2, 8, 4, 2, 4, 2).mean((3, 5)))
    torch.testing.assert_close(up(x), x.repeat_interleave(2, 2).repeat_interleave(2, 3))


# Initial weights.


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_initial_weights_are_xavier_uniform_with_gains_and_biases_zero(architecture):
    config = NetworkConfig(
        architecture, channels=32, blocks=1, multipliers=(1, 2), attention=(8,), label_dim=10, augment_dim=9
    )
    seen = set()
    for name, parameter in built(config, (3, 8, 8)).named_parameters():
        *_, layer, kind = name.split(".")
        if "norm" in layer:
            assert torch.equal(parameter, torch.full_like(parameter, kind == "weight"))
        elif kind == "bias":
            assert torch.equal(parameter, torch.zeros_like(parameter))
        else:
            outputs, inputs = parameter.shape[:2]
            area = math.prod(parameter.shape[2:])
            gain = 1.0
            if layer in ("conv1", "proj") or layer.endswith("aux_conv"):
                gain = 1e-5
            elif layer == "qkv":
                gain = math.sqrt(0.2)
            bound = gain * math.sqrt(6 / (inputs * area + outputs * area))
            assert parameter.abs().max() <= bound * (1 + 1e-6)
            # The sample variance of n uniform values has a relative standard deviation of sqrt(0.8 / n).
            variance = parameter.double().square().mean().item()
            assert variance / (bound**2 / 3) == pytest.approx(1, abs=5 * math.sqrt(0.8 / parameter.numel()))
            seen.add(layer.split("_", 1)[-1])
    layers = {"layer0", "layer1", "label", "augment", "conv", "conv0", "conv1", "affine", "skip", "qkv", "proj"}
    assert seen == layers | {"aux_conv"} | ({"aux_residual"} if architecture == "ncsn++" else set())


def test_fourier_frequencies_are_gaussian_of_scale_sixteen_and_depend_on_the_seed():
    config = NetworkConfig("ncsn++", channels=512, blocks=1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        first = config.build((1, 1, 1)).map_noise.freqs.double()
        second = config.build((1, 1, 1)).map_noise.freqs.double()
    assert not torch.equal(first, second)
    both = torch.cat([first, second]) / 16
    assert abs(both.mean()) < 5 / math.sqrt(1024)
    assert both.square().mean() == pytest.approx(1, abs=5 * math.sqrt(2 / 1024))
    assert both.pow(4).mean() == pytest.approx(3, abs=5 * math.sqrt(96 / 1024))


# Gradients, compilation, dropout.


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_gradient_reaches_every_parameter(architecture):
    config, shape = replace(THREE_LEVELS[0], architecture=architecture), THREE_LEVELS[1]
    network = randomised(config, shape)
    x, condition, labels = inputs(config, shape, 3)
    output = network(x, condition, dropout_keys(0, 0, 3), **labels)
    (output * gaussian(9, *output.shape)).sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 1e-6, name


def test_the_gradient_is_that_of_a_second_implementation():
    config, shape = replace(THREE_LEVELS[0], architecture="ncsn++"), THREE_LEVELS[1]
    network = randomised(config, shape)
    x, condition, labels = inputs(config, shape, 2)
    weight = gaussian(9, 2, *shape)
    (network(x, condition, None, **labels) * weight).sum().backward()
    state = {name: tensor.detach().clone().requires_grad_() for name, tensor in network.state_dict().items()}
    (reference(config, state, x, condition, labels) * weight).sum().backward()
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(parameter.grad, state[name].grad, rtol=1e-4, atol=1e-4, msg=name)


@pytest.mark.slow
def test_a_compiled_network_is_the_same_function():
    config = NetworkConfig("ncsn++", channels=8, blocks=1, multipliers=(1, 2), dropout=0.3)
    network = randomised(config, (1, 4, 4), torch.float32)
    x, condition, _ = inputs(config, (1, 4, 4), 2, torch.float32)
    keys = dropout_keys(0, 0, 2)
    torch._dynamo.reset()
    compiled = torch.compile(network, backend="aot_eager")
    gradients = []
    for function in (network, compiled):
        output = function(x, condition, keys)
        gradients.append(torch.autograd.grad(output.square().sum(), list(network.parameters())))
        torch.testing.assert_close(output, network(x, condition, keys))
    for expected, gradient in zip(*gradients, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-4)
    torch._dynamo.reset()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_each_level_drops_at_its_own_rate_and_a_level_without_rate_is_unaffected(architecture):
    rates = {"8": 0.0, "4": 0.2, "2": 0.5}
    config = NetworkConfig(
        architecture, channels=16, blocks=(2, 1, 1), multipliers=(1, 1, 2), dropout=tuple(rates.values())
    )
    network = randomised(config, (1, 8, 8), torch.float32)
    x, condition, _ = inputs(config, (1, 8, 8), 64, torch.float32)
    seen = {}
    for name, module in network.named_modules():
        if isinstance(module, Dropout):
            module.register_forward_hook(lambda _, given, output, name=name: seen.update({name: (given[0], output)}))
    with torch.no_grad():
        network(x, condition, dropout_keys(0, 0, 64))
    # Blocks of the encoder and of the decoder, and resampling, which belongs to the level that it leads to.
    expected = {f"enc.8x8_block{i}" for i in range(2)} | {f"dec.8x8_block{i}" for i in range(3)} | {"dec.8x8_up"}
    expected |= {"enc.4x4_down", "enc.4x4_block0", "dec.4x4_up", "dec.4x4_block0", "dec.4x4_block1"}
    expected |= {f"{part}.2x2_{name}" for part, name in [("enc", "down"), ("enc", "block0"), ("dec", "in0")]}
    expected |= {f"dec.2x2_{name}" for name in ("in1", "block0", "block1")}
    assert {name.removesuffix(".dropout") for name in seen} == expected
    for name, (before, after) in seen.items():
        rate = rates[name.split(".")[1].split("x")[0]]
        if rate == 0:
            assert torch.equal(before, after)
        else:
            dropped = (after == 0) & (before != 0)
            sigma = math.sqrt(rate * (1 - rate) / before.numel())
            assert abs(dropped.double().mean().item() - rate) < 5 * sigma
            torch.testing.assert_close(after[~dropped], before[~dropped] / (1 - rate))


# Configurations that cannot be.


@pytest.mark.parametrize(
    ("changes", "shape", "text"),
    [
        ({"channels": 130, "blocks": 1}, (3, 8, 8), "channels"),
        ({"channels": 11}, (3, 8, 8), "channels"),
        ({"multipliers": (1, 2, 2)}, (3, 6, 6), "side 6 of the images can be divided by 4"),
        ({"multipliers": (1, 1, 1, 1)}, (3, 4, 4), "side 4 of the images can be divided by 8"),
        ({}, (3, 8, 4), r"square images instead of \[3, 8, 4\]"),
        ({}, (3, 4, 8), r"square images instead of \[3, 4, 8\]"),
        ({}, (8, 8), r"square images instead of \[8, 8\]"),
        ({"attention": (16,)}, (3, 8, 8), r"attention\n.*sides of the levels: \[8, 4\]"),
        ({"attention": (8, 2)}, (3, 8, 8), r"attention\n.*sides of the levels: \[8, 4\]"),
        ({"blocks": (1, 1, 1)}, (3, 8, 8), "blocks"),
        ({"blocks": (1, 0)}, (3, 8, 8), "blocks"),
        ({"blocks": 0}, (3, 8, 8), "blocks"),
        ({"dropout": (0.1,)}, (3, 8, 8), "dropout"),
        ({"dropout": (0.1, 1.0)}, (3, 8, 8), "dropout"),
        ({"dropout": (-0.1, 0.1)}, (3, 8, 8), "dropout"),
        ({"multipliers": ()}, (3, 8, 8), "multipliers"),
        ({"multipliers": (1, 0)}, (3, 8, 8), "multipliers"),
        ({"label_dim": -1}, (3, 8, 8), "label_dim"),
        ({"augment_dim": -1}, (3, 8, 8), "augment_dim"),
    ],
)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_configuration_that_cannot_be_is_refused_by_the_name_of_its_key(architecture, changes, shape, text):
    good = {"channels": 8, "blocks": 1, "multipliers": (1, 2)}
    NetworkConfig(architecture, **good).build((3, 8, 8))
    with pytest.raises(ValueError, match=text):
        NetworkConfig(architecture, **good | changes).build(shape)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_number_of_channels_is_refused_when_the_network_is_built_or_not_at_all(architecture):
    runs, refusals = set(), []
    for channels in range(1, 25):
        try:
            network = NetworkConfig(architecture, channels=channels, blocks=1).build((1, 2, 2))
        except ValueError as error:
            refusals.append(str(error))
            continue
        assert network(torch.zeros(1, 1, 2, 2), torch.zeros(1)).shape == (1, 1, 2, 2)
        runs.add(channels)
    assert runs >= {4, 8, 12, 16, 20, 24}
    assert all("channels" in refusal for refusal in refusals)
