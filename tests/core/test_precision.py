import copy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from builders import NCSN, batch_of, grains_of, random_images, randomised
from builders import run_config as any_run_config

from gcflow.config import (
    Cadence,
    MethodConfig,
    NetworkConfig,
    NoiseProcess,
)
from gcflow.couplings import CouplingContext, generator_augmented, samples_to_predict
from gcflow.distributed import World
from gcflow.dropout import dropout_keys
from gcflow.errors import Preempted
from gcflow.precision import COMPILED_SHAPES, set_precision, share_multiple, tune
from gcflow.training import (
    Helpers,
    Observer,
    TrainingState,
    gradient_of_batch,
    initial_state,
    make_gradient,
    make_loss,
    train,
)
from gcflow.weights import spec_of

SHAPE = (1, 4, 4)
IMAGES = random_images(20, *SHAPE)
MLP = NetworkConfig("mlp", channels=16, blocks=1, dropout=0.25)
UNET = NetworkConfig("ddpm++", channels=8, blocks=1, multipliers=(1, 2), attention=(2,), dropout=0.25)
METHODS = ["ic", "gc-online", "ect", "denoiser"]
ALL_GC = MethodConfig("consistency", "gc", mu=1.0, predictor="online")
run_config = partial(
    any_run_config, process=NoiseProcess(data_mean=0.1), network=MLP, steps=6, batch=8, optimizer="adam", ema_decay=0.8
)


@pytest.fixture(autouse=True)
def global_switches():
    flags = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic
    yield
    matmul, convolution, deterministic = flags
    torch.backends.cuda.matmul.allow_tf32 = matmul
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic = convolution, deterministic


def random_state(config):
    """An initial state with weights at which every gradient counts."""
    state = initial_state(config, SHAPE)
    randomised(state.model)
    state.ema.network.load_state_dict(state.model.network.state_dict())
    return state


def loss_and_gradients(config, state):
    gradient_of = make_gradient(make_loss(config, state, Helpers()), config.training, state.flat)
    gradient, losses = gradient_of_batch(gradient_of, grains_of(config, IMAGES, 3), config.training, World())
    return losses.sum().item(), state.flat.parts(gradient)


def flat(tensors):
    return torch.cat([tensor.flatten() for tensor in tensors])


def inputs(count=8, seed=0):
    x = torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(seed))
    return x, torch.logspace(-2, 1, count), dropout_keys(seed, 0, count)


# Settings of the process.


@pytest.mark.parametrize(("precision", "tf32"), [("float32", False), ("tf32", True), ("bfloat16", False)])
def test_products_are_rounded_to_tf32_only_where_it_is_asked_for_and_convolutions_repeat(precision, tf32):
    for before in (True, False):
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = before
        torch.backends.cudnn.deterministic = False
        set_precision(run_config(precision=precision).training)
        assert torch.backends.cuda.matmul.allow_tf32 is tf32
        assert torch.backends.cudnn.allow_tf32 is tf32
        assert torch.backends.cudnn.deterministic


def test_a_model_is_tuned_in_place():
    config = run_config(precision="bfloat16")
    model = spec_of(config, SHAPE).build(0)
    assert model.autocast is None
    assert tune(model, config.training) is model
    assert model.autocast is torch.bfloat16
    assert tune(spec_of(config, SHAPE).build(0), run_config().training).autocast is None


# bfloat16.


class StopAt(Observer):
    """Keeps the state before a step, and stops there."""

    def __init__(self, step):
        self.left, self.kept = step, None

    def checkpoint(self, state):
        self.kept = {name: tensor.clone() for name, tensor in state.tensors().items()}

    def stop_requested(self):
        self.left -= 1
        return "enough" if self.left < 0 else None


@pytest.mark.parametrize("network", [MLP, UNET])
@pytest.mark.parametrize("method", METHODS)
def test_under_bfloat16_weights_average_moments_and_losses_are_in_single_precision(method, network):
    config = run_config(method, network=network, precision="bfloat16", gradient_clip=10.0)
    state, passes = initial_state(config, SHAPE), []
    for model in (state.model, state.ema):
        model.network.register_forward_hook(lambda module, args, output: passes.append(output.dtype))
    train(config, IMAGES, state)
    assert set(passes) == {torch.bfloat16}
    tensors = state.tensors()
    assert any(name.startswith("optimizer.") for name in tensors)
    for name, tensor in tensors.items():
        assert tensor.dtype == torch.float32 or name.startswith("window."), name
    assert tensors["window.loss_sums"].dtype == torch.float64
    loss = make_loss(config, state, Helpers())(batch_of(config, IMAGES, 3))
    assert loss.dtype == torch.float32
    loss.backward()
    assert all(parameter.grad.dtype == torch.float32 for parameter in state.model.parameters())


@pytest.mark.parametrize("network", [MLP, UNET, NCSN])
@pytest.mark.parametrize("method", METHODS)
def test_losses_and_gradients_under_bfloat16_are_near_those_in_single_precision(method, network):
    """Also where a pass without gradient (a prediction, the teacher's) came before the student's or after it."""
    exact, rounded = run_config(method, network=network), run_config(method, network=network, precision="bfloat16")
    loss, gradients = loss_and_gradients(exact, random_state(exact))
    near, others = loss_and_gradients(rounded, random_state(rounded))
    assert near == pytest.approx(loss, rel=5e-3)
    assert near != loss
    assert all((gradient != 0).any() for gradient in others)
    total, difference = flat(gradients), flat(others) - flat(gradients)
    assert 1e-4 < difference.norm() / total.norm() < 0.1


@pytest.mark.parametrize(("preconditioning", "boundary"), [("consistency", 0.002), ("edm", 0.0)])
def test_under_bfloat16_a_model_is_still_exactly_the_identity_at_its_boundary(preconditioning, boundary):
    config = run_config(precision="bfloat16")
    config = replace(config, method=replace(config.method, preconditioning=preconditioning))
    model = random_state(config).model
    x, _, keys = inputs()
    with torch.no_grad():
        answer = model(x, torch.full((8,), boundary), keys)
    assert answer.dtype == torch.float32
    assert torch.equal(answer, x)


def test_a_run_under_bfloat16_continues_to_the_bit():
    config = run_config("gc-online", network=UNET, steps=3, precision="bfloat16", batch=6, grain=3)
    expected = train(config, IMAGES, initial_state(config, SHAPE))
    observer, state = StopAt(2), initial_state(config, SHAPE)
    with pytest.raises(Preempted):
        train(config, IMAGES, initial_state(config, SHAPE), observer)
    state.restore(observer.kept, 2, Path("kept"))
    train(config, IMAGES, state)
    for name, tensor in expected.tensors().items():
        assert torch.equal(state.tensors()[name], tensor), name


# Memory layout.


@pytest.mark.parametrize("network", [UNET, NCSN])
def test_the_memory_layout_is_that_of_channels_last_only_where_it_is_asked_for(network):
    last, first = (
        initial_state(run_config(network=network, channels_last=flag), SHAPE).model.network for flag in (True, False)
    )
    kernels = [
        name for name, parameter in first.named_parameters() if parameter.ndim == 4 and parameter[0, 0].numel() > 1
    ]
    assert kernels
    for name in kernels:
        assert last.get_parameter(name).is_contiguous(memory_format=torch.channels_last)
        assert first.get_parameter(name).is_contiguous()


@pytest.mark.parametrize("network", [MLP, UNET, NCSN])
@pytest.mark.parametrize("method", METHODS)
def test_the_memory_layout_changes_losses_and_gradients_by_no_more_than_rounding(method, network):
    first, last = (run_config(method, network=network, channels_last=flag) for flag in (False, True))
    loss, gradients = loss_and_gradients(first, random_state(first))
    near, others = loss_and_gradients(last, random_state(last))
    assert near == pytest.approx(loss, rel=1e-5)
    assert (flat(others) - flat(gradients)).norm() < 1e-5 * flat(gradients).norm()


@pytest.mark.parametrize("network", [UNET, NCSN])
def test_a_tuned_model_gives_the_answers_of_the_plain_one(network):
    config = run_config(network=network)
    plain = spec_of(config, SHAPE).build(0)
    for i, parameter in enumerate(plain.parameters()):
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i))
    tuned = tune(copy.deepcopy(plain), config.training)
    x, sigma, keys = inputs()
    with torch.no_grad():
        for arguments in [(x, sigma), (x, sigma, keys)]:
            torch.testing.assert_close(tuned(*arguments), plain(*arguments), rtol=1e-5, atol=1e-5)


# Compilation.


def test_without_compilation_the_number_of_predictions_is_not_rounded():
    assert {share_multiple(run_config(batch=samples).training) for samples in (1, 8, 512)} == {1}


@pytest.mark.parametrize("mode", ["default", "graph"])
@pytest.mark.parametrize("samples", [1, 5, 16, 17, 100, 128, 500, 512])
def test_with_compilation_a_pass_has_one_of_few_numbers_of_predictions(samples, mode):
    multiple = share_multiple(run_config(compile=mode, batch=samples).training)
    rounded = {-(-takers // multiple) * multiple for takers in range(1, samples + 1)}
    # Up to twice as many, where a batch is small and its share of one in sixteen is rounded down.
    assert len(rounded) < 2 * COMPILED_SHAPES
    assert max(rounded) < samples + multiple


class Losses(Observer):
    def __init__(self):
        self.values = []

    def logged(self, record):
        self.values.append(record["loss"])


class Finished(NamedTuple):
    state: TrainingState
    losses: list[float]
    graphs: int


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run of one tiny network with and without compilation; compiling takes longer than all else here."""
    torch.set_num_threads(1)
    finished = {}
    limit = torch._dynamo.config.recompile_limit
    with pytest.MonkeyPatch.context() as patch, torch._dynamo.config.patch(recompile_limit=limit):
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.mktemp("inductor")))
        torch._dynamo.reset()
        for mode in ("none", "default"):
            config, observer = run_config(ALL_GC, steps=3, compile=mode), Losses()
            torch._dynamo.utils.counters.clear()
            state = train(config, IMAGES, random_state(config), observer, Cadence(log_every=1))
            finished[mode] = Finished(state, observer.values, torch._dynamo.utils.counters["stats"]["unique_graphs"])
        yield finished
        torch._dynamo.reset()


@pytest.fixture
def models(runs):
    """The plain and the compiled model of the runs, with the same weights."""
    plain, compiled = runs["none"].state.model, runs["default"].state.model
    compiled.network.load_state_dict(plain.network.state_dict())
    return plain, compiled


@pytest.mark.slow
def test_a_compiled_run_has_the_losses_and_weights_of_the_plain_one(runs):
    plain, compiled = runs["none"], runs["default"]
    assert len(plain.losses) == 3
    assert min(plain.losses) > 0.5
    assert compiled.losses == pytest.approx(plain.losses, rel=1e-5)
    expected, found = plain.state.tensors(), compiled.state.tensors()
    assert list(found) == list(expected)
    for name, tensor in plain.state.weights().items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_student_teacher_and_predictor_are_compiled_once_for_all_steps(runs):
    assert runs["none"].graphs == 0
    assert runs["default"].graphs == 2


@pytest.mark.slow
def test_compiled_student_teacher_and_predictor_drop_what_the_plain_ones_drop(models):
    plain, compiled = models
    x, sigma, keys = inputs()
    student = compiled(x, sigma, keys)
    assert student.requires_grad
    with torch.no_grad():
        teacher, predictor = compiled(x, sigma, keys), compiled(x, sigma)
        expected, undropped, other = plain(x, sigma, keys), plain(x, sigma), plain(x, sigma, keys.flip(0))
    torch.testing.assert_close(student.detach(), teacher, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(teacher, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(predictor, undropped, rtol=1e-5, atol=1e-5)
    for different in (undropped, other):
        assert (different - expected).abs().amax() > 1e-3


@pytest.mark.slow
def test_a_compiled_predictor_of_a_rounded_number_of_samples_gives_the_same_endpoints(models):
    plain, compiled = models
    x, sigma, _ = inputs()
    noise, takers = torch.ones_like(x), torch.tensor([1, 0, 1, 1, 0, 1, 0, 1], dtype=torch.bool)
    with torch.no_grad():
        expected, endpoints = (
            generator_augmented(x, noise, CouplingContext(sigma, takers, samples_to_predict(takers, multiple), model))
            for multiple, model in ((1, plain), (8, compiled))
        )
    torch.testing.assert_close(endpoints, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(endpoints[~takers], x[~takers])
