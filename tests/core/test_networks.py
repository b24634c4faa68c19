from dataclasses import replace

import pytest
import torch
from builders import gaussian

from gcflow.config import NetworkConfig, NoiseProcess
from gcflow.dropout import dropout_keys
from gcflow.preconditioning import COEFFICIENTS
from gcflow.weights import ModelSpec

MLP = NetworkConfig(architecture="mlp", channels=16, blocks=2, dropout=0.3)
DDPM = NetworkConfig(architecture="ddpm++", channels=8, blocks=1, multipliers=(1, 2), dropout=0.3)
NCSN = replace(DDPM, architecture="ncsn++")
CASES = [
    (MLP, (2,)),
    (MLP, (1, 8, 8)),
    (DDPM, (1, 8, 8)),
    (replace(DDPM, attention=(4,)), (3, 4, 4)),
    (replace(DDPM, multipliers=(1,)), (1, 5, 5)),
    (NCSN, (1, 8, 8)),
    (replace(NCSN, multipliers=(2, 1, 2), blocks=(1, 2, 1), dropout=(0.0, 0.3, 0.1)), (2, 4, 4)),
]
EACH = [(MLP, (2,)), (DDPM, (1, 4, 4)), (NCSN, (1, 4, 4))]


def perturbed(config, shape):
    """A network whose (nearly) zero-initialised layers are no longer so."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = config.build(shape)
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


@pytest.mark.parametrize(("config", "shape"), EACH)
@pytest.mark.parametrize("preconditioning", COEFFICIENTS)
def test_an_untrained_model_is_its_skip_connection(config, shape, preconditioning):
    model = ModelSpec(config, preconditioning, NoiseProcess(), shape).build()
    x, sigma = gaussian(0, 3, *shape), torch.tensor([0.002, 0.7, 5.0])
    skip = COEFFICIENTS[preconditioning](sigma, NoiseProcess()).skip.reshape(-1, *[1] * len(shape)) * x
    output = model(x, sigma)
    if config.architecture == "mlp":
        assert torch.equal(output, skip)
    else:
        # The last convolution starts with weights of the order of 1e-5.
        assert 0 < (output - skip).abs().max() < 1e-3


@pytest.mark.parametrize(("config", "shape"), CASES)
def test_samples_of_a_batch_do_not_influence_each_other(config, shape):
    network = perturbed(config, shape)
    x, condition = inputs(shape, 4)
    keys = dropout_keys(0, 0, 4)
    for dropout in (None, keys):
        together = network(x, condition, dropout)
        each = [None if dropout is None else dropout[i : i + 1] for i in range(4)]
        alone = torch.cat([network(x[i : i + 1], condition[i : i + 1], each[i]) for i in range(4)])
        torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("config", "shape"), CASES)
def test_the_noise_level_changes_the_output(config, shape):
    network = perturbed(config, shape)
    x = gaussian(0, 1, *shape)
    outputs = [network(x, torch.tensor([c]), None) for c in (-1.5, -1.45, 1.1)]
    assert not torch.allclose(outputs[0], outputs[1], rtol=1e-4)
    assert not torch.allclose(outputs[1], outputs[2], rtol=1e-2)


@pytest.mark.parametrize(("config", "shape"), EACH)
@pytest.mark.parametrize("mode", [True, False])
def test_dropout_needs_keys_and_equal_keys_give_equal_masks(config, shape, mode):
    network = perturbed(config, shape).train(mode)
    x, condition = inputs(shape)
    plain = network(x, condition, None)
    assert torch.equal(plain, network(x, condition, None))
    first, again, other = (network(x, condition, dropout_keys(0, step, 3)) for step in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first, plain)


@pytest.mark.parametrize(("config", "shape"), EACH)
def test_initial_weights_depend_on_the_seed_alone_and_leave_the_global_random_state(config, shape):
    def built(seed, preconditioning="consistency"):
        return ModelSpec(config, preconditioning, NoiseProcess(), shape).build(seed).state_dict()

    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = built(0)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    again, other, denoiser = built(0), built(1), built(0, "edm")
    assert first.keys() == again.keys() == denoiser.keys()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert all(torch.equal(first[name], denoiser[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize(("config", "shape"), EACH)
def test_dropout_is_no_part_of_the_initial_weights(config, shape):
    plain, dropped = (
        ModelSpec(replace(config, dropout=rate), "edm", NoiseProcess(), shape).build(0).state_dict()
        for rate in (0.0, 0.5)
    )
    assert plain.keys() == dropped.keys()
    assert all(torch.equal(plain[name], dropped[name]) for name in plain)


@pytest.mark.parametrize("channels", [1, 3, 4, 7, 20])
def test_an_mlp_can_have_any_width(channels):
    network = replace(MLP, channels=channels).build((2, 3))
    assert network(torch.zeros(2, 2, 3), torch.zeros(2), None).shape == (2, 2, 3)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("blocks", (1,)),
        ("dropout", (0.1,)),
        ("multipliers", (1, 2)),
        ("attention", (4,)),
        ("label_dim", 10),
        ("augment_dim", 9),
    ],
)
def test_an_mlp_has_no_levels_and_no_labels(key, value):
    with pytest.raises(ValueError, match=rf"\n{key}\n.* mlp"):
        replace(MLP, **{key: value})
