from dataclasses import replace

import pytest
import torch
from torch import nn

from gcflow.config import MethodConfig, NetworkConfig, NoiseProcess, RunConfig, TrainingConfig
from gcflow.networks import build_network, dropout, zero_initialised
from gcflow.preconditioning import consistency_coefficients, denoising_coefficients
from gcflow.training import build_model

MLP = NetworkConfig(architecture="mlp", channels=16, blocks=2, dropout=0.3)
UNET = NetworkConfig(architecture="unet", channels=8, blocks=1, multipliers=(1, 2), dropout=0.3)
CASES = [
    (MLP, (2,)),
    (MLP, (1, 8, 8)),
    (UNET, (1, 8, 8)),
    (UNET, (3, 4, 6)),
    (replace(UNET, multipliers=(1,)), (1, 5, 7)),
]
CONSISTENCY = MethodConfig(objective="consistency")
DENOISING = MethodConfig(objective="denoising")


def run_config(network, seed=0, method=CONSISTENCY):
    return RunConfig(
        dataset="toy",
        method_name="method",
        seed=seed,
        process=NoiseProcess(),
        network=network,
        training=TrainingConfig(steps=1, batch=1, learning_rate=1.0, snapshot_every=1),
        method=method,
    )


def gaussian(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def perturbed(config, shape):
    """A network whose zero-initialised layers are no longer zero."""
    network = build_network(config, shape)
    for i, parameter in enumerate(network.parameters()):
        parameter.data += 0.2 * gaussian(i, *parameter.shape)
    return network


def inputs(shape, count=3):
    return gaussian(0, count, *shape), torch.linspace(-1.5, 1.1, count)


@pytest.mark.parametrize(("config", "shape"), CASES)
def test_the_output_has_the_shape_of_the_input_and_every_parameter_matters(config, shape):
    network = perturbed(config, shape)
    x, condition = inputs(shape)
    output = network(x, condition, None)
    assert output.shape == x.shape
    (output * gaussian(1, *output.shape)).sum().backward()
    assert all(p.grad.abs().max() > 0 for p in network.parameters())


@pytest.mark.parametrize(("config", "shape"), CASES)
@pytest.mark.parametrize(
    ("method", "coefficients"), [(CONSISTENCY, consistency_coefficients), (DENOISING, denoising_coefficients)]
)
def test_an_untrained_model_is_its_skip_connection(config, shape, method, coefficients):
    model = build_model(run_config(config, method=method), shape)
    x, sigma = gaussian(0, 3, *shape), torch.tensor([0.002, 0.7, 80.0])
    skip = coefficients(sigma, NoiseProcess()).skip
    assert torch.equal(model(x, sigma), skip.reshape(-1, *[1] * len(shape)) * x)


@pytest.mark.parametrize(("config", "shape"), CASES)
def test_samples_of_a_batch_do_not_influence_each_other(config, shape):
    network = perturbed(config, shape)
    x, condition = inputs(shape, 4)
    together = network(x, condition, None)
    alone = torch.cat([network(x[i : i + 1], condition[i : i + 1], None) for i in range(4)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("config", "shape"), CASES)
def test_the_noise_level_changes_the_output(config, shape):
    network = perturbed(config, shape)
    x = gaussian(0, 1, *shape)
    outputs = [network(x, torch.tensor([c]), None) for c in (-1.5, -1.45, 1.1)]
    assert not torch.allclose(outputs[0], outputs[1], rtol=1e-4)
    assert not torch.allclose(outputs[1], outputs[2], rtol=1e-2)


@pytest.mark.parametrize(("config", "shape"), CASES)
@pytest.mark.parametrize("mode", [True, False])
def test_dropout_needs_a_generator_and_equal_generators_give_equal_masks(config, shape, mode):
    network = perturbed(config, shape).train(mode)
    x, condition = inputs(shape)
    plain = network(x, condition, None)
    assert torch.equal(plain, network(x, condition, None))
    first, again, other = (network(x, condition, torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first, plain)


@pytest.mark.parametrize(("config", "shape"), [(MLP, (2,)), (UNET, (1, 4, 4))])
def test_a_generator_changes_nothing_at_rate_zero(config, shape):
    network = perturbed(replace(config, dropout=0.0), shape)
    x, condition = inputs(shape)
    assert torch.equal(network(x, condition, torch.Generator().manual_seed(0)), network(x, condition, None))


def test_dropout_zeroes_a_share_of_the_units_and_keeps_the_mean():
    x = torch.full((200, 500), 3.0)
    dropped = dropout(x, 0.2, torch.Generator().manual_seed(0))
    assert dropped.unique().tolist() == pytest.approx([0, 3.75])
    zeros = (dropped == 0).double().mean().item()
    assert abs(zeros - 0.2) < 4 * (0.2 * 0.8 / x.numel()) ** 0.5
    assert dropout(x, 0.2, None) is x


def test_dropout_blocks_the_gradient_where_it_drops():
    x = torch.ones(1000, requires_grad=True)
    dropped = dropout(x, 0.5, torch.Generator().manual_seed(0))
    dropped.sum().backward()
    assert torch.equal(x.grad, dropped.detach())


@pytest.mark.parametrize("shape", [(1, 6, 8), (1, 8, 6), (3, 9, 9)])
def test_a_unet_refuses_sides_that_its_levels_cannot_halve(shape):
    deep = replace(UNET, multipliers=(1, 2, 2))
    with pytest.raises(ValueError, match=r"sides divisible by 4"):
        build_network(deep, shape)
    assert build_network(deep, (1, 8, 12))(torch.zeros(1, 1, 8, 12), torch.zeros(1), None).shape == (1, 1, 8, 12)


@pytest.mark.parametrize("shape", [(2,), (8, 8)])
def test_a_unet_refuses_data_that_are_no_images(shape):
    with pytest.raises(ValueError, match="needs images"):
        build_network(UNET, shape)


@pytest.mark.parametrize(("config", "shape"), [(MLP, (2,)), (UNET, (1, 4, 4))])
def test_initial_weights_depend_on_the_seed_alone_and_leave_the_global_random_state(config, shape):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = build_model(run_config(config), shape).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    again = build_model(run_config(config), shape).state_dict()
    other = build_model(run_config(config, seed=1), shape).state_dict()
    method = build_model(run_config(config, method=DENOISING), shape).state_dict()
    assert first.keys() == again.keys()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert all(torch.equal(first[name], method[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("channels", [1, 3, 4, 6, 8, 12, 20])
def test_a_unet_can_be_as_wide_as_its_configuration_allows(channels):
    network = build_network(replace(UNET, channels=channels, multipliers=(1, 2)), (1, 4, 4))
    assert network(torch.zeros(2, 1, 4, 4), torch.zeros(2), None).shape == (2, 1, 4, 4)


def test_a_deeper_unet_has_one_stack_per_level_and_halves_the_resolution_between_them():
    network = build_network(replace(UNET, multipliers=(1, 2, 4), blocks=2), (1, 8, 8))
    sizes = []
    for blocks in [*network.down, *network.up]:
        assert len(blocks) == 2
        blocks[-1].register_forward_hook(lambda _, __, output: sizes.append(tuple(output.shape[1:])))
    network(torch.zeros(1, 1, 8, 8), torch.zeros(1), None)
    assert sizes == [(8, 8, 8), (16, 4, 4), (32, 2, 2), (16, 4, 4), (8, 8, 8)]


def test_levels_are_joined_by_means_of_four_pixels_down_and_by_copies_beside_the_skip_up():
    network = perturbed(UNET, (1, 4, 4))
    seen = {}
    network.down[0].register_forward_hook(lambda _, __, output: seen.update(top=output))
    network.down[1].register_forward_pre_hook(lambda _, inputs: seen.update(pooled=inputs[0]))
    network.down[1].register_forward_hook(lambda _, __, output: seen.update(bottom=output))
    network.up[0].register_forward_pre_hook(lambda _, inputs: seen.update(joined=inputs[0]))
    network(*inputs((1, 4, 4)), None)
    blocks = seen["top"].reshape(3, 8, 2, 2, 2, 2)
    torch.testing.assert_close(seen["pooled"], blocks.mean((3, 5)))
    copies = seen["bottom"].repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    assert torch.equal(seen["joined"], torch.cat([copies, seen["top"]], dim=1))


def test_zero_initialised_layers_answer_zero_with_or_without_bias():
    x = gaussian(0, 2, 3)
    for bias in (True, False):
        assert torch.equal(zero_initialised(nn.Linear(3, 4, bias=bias))(x), torch.zeros(2, 4))
