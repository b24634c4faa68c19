import math
from itertools import pairwise

import pytest
import torch
from pydantic import ValidationError
from scipy import stats

from gcflow.config import NetworkConfig, NoiseProcess
from gcflow.preconditioning import from_model_space
from gcflow.randomness import generator
from gcflow.sampling import Sampler, consistency_sample, generate, heun_sample, image_noise
from gcflow.weights import ModelSpec

PROCESS = NoiseProcess()
SCALE = 0.5
SHAPE = (1, 4, 4)
NETWORKS = {
    "mlp": (NetworkConfig("mlp", channels=16, blocks=1), SHAPE),
    "ddpm++": (NetworkConfig("ddpm++", channels=8, blocks=1, multipliers=(1, 2)), SHAPE),
    "points": (NetworkConfig("mlp", channels=16, blocks=1), (3,)),
}
TWO_STEPS = Sampler("consistency", (0.821,))
SAMPLERS = {
    "one step": Sampler("consistency"),
    "three steps": Sampler("consistency", (5.0, 0.8)),
    "heun": Sampler("heun", heun_steps=4),
}


class Recorder:
    def __init__(self, function):
        self.function = function
        self.calls = []

    def __call__(self, x, sigma):
        self.calls.append((x.clone(), sigma.clone()))
        return self.function(x, sigma)


def gaussian_denoiser(x, sigma):
    return SCALE**2 / (SCALE**2 + sigma[:, None] ** 2) * x


def gaussian_flow(x, sigma):
    return ((SCALE**2 + PROCESS.sigma_min**2) / (SCALE**2 + sigma[:, None] ** 2)).sqrt() * x


def noise(count=6, d=3, dtype=torch.float32):
    return torch.randn(count, d, generator=torch.Generator().manual_seed(0), dtype=dtype)


def fresh(seed, count=6, d=3):
    """Standard normal noise of each step."""
    return lambda step: torch.randn(count, d, generator=torch.Generator().manual_seed(1000 * seed + step))


def preconditioned(network="mlp", preconditioning="consistency", data_mean=0.1):
    config, shape = NETWORKS[network]
    model = ModelSpec(config, preconditioning, NoiseProcess(data_mean=data_mean), shape).build(0)
    for i, parameter in enumerate(model.parameters()):
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i))
    return model.eval().requires_grad_(False)


def images_of(model, sampler, images, seed=0, network="mlp", **options):
    return torch.cat(list(generate(model, sampler, NETWORKS[network][1], images, seed, **options)))


# Consistency sampling.


def test_one_step_is_one_evaluation_at_the_largest_noise_level():
    model = Recorder(lambda x, sigma: x + 1)
    sample = consistency_sample(model, noise(), PROCESS)
    ((x, sigma),) = model.calls
    assert torch.equal(x, 80 * noise())
    assert sigma.tolist() == [80.0] * 6
    assert torch.equal(sample, 80 * noise() + 1)


@pytest.mark.parametrize(("boundary", "lowest"), [(None, 0.002), (0.05, 0.05), (0.0, 0.0)])
def test_few_steps_renoise_each_prediction_to_the_next_level_and_predict_again(boundary, lowest):
    model = Recorder(lambda x, sigma: x / (1 + sigma[:, None]))
    levels = (10.0, 0.8, 0.1)
    sample = consistency_sample(model, noise(), PROCESS, levels, fresh(4), boundary)
    expected_input = 80 * noise()
    assert len(model.calls) == 4
    for step, ((x, sigma), level) in enumerate(zip(model.calls, (80.0, *levels), strict=True)):
        torch.testing.assert_close(x, expected_input)
        torch.testing.assert_close(sigma, torch.full((6,), level))
        prediction = x / (1 + level)
        if step < 3:
            expected_input = prediction + math.sqrt(levels[step] ** 2 - lowest**2) * fresh(4)(step + 1)
    torch.testing.assert_close(sample, prediction)


def test_the_ideal_model_turns_noise_into_the_data_distribution_in_any_number_of_steps():
    z = torch.randn(40_000, 1, generator=torch.Generator().manual_seed(1))
    for levels in [(), (2.0,), (5.0, 0.5, 0.1)]:
        sample = consistency_sample(gaussian_flow, z, PROCESS, levels, fresh(2, 40_000, 1))
        assert stats.kstest(sample[:, 0].numpy(), stats.norm(0, SCALE).cdf).pvalue > 1e-3


@pytest.mark.parametrize("preconditioning", ["edm", "vp", "ve"])
def test_two_steps_of_ect_add_the_whole_of_the_second_noise_level(preconditioning):
    model, z, second = preconditioned("points", preconditioning), noise(), fresh(3)(1)
    sample = Sampler("consistency", (0.821,)).draw(model, z, fresh(3))
    with torch.no_grad():
        prediction = model(80 * z, torch.full((6,), 80.0))
        expected = model(prediction + 0.821 * second, torch.full((6,), 0.821))
    torch.testing.assert_close(sample, expected)


def test_a_moved_boundary_changes_the_passes_and_not_the_noise_between_them():
    model, z, second = preconditioned("points", "edm", data_mean=0.0), noise(), fresh(3)(1)

    def evaluated(x, sigma):
        """f(x, sigma) as ECT's code has it in evaluation mode, around the same network."""
        inner = model.network(x / math.hypot(0.5, sigma), torch.full((6,), math.log(sigma) / 4))
        out = (sigma - 0.003) * 0.5 / math.hypot(0.5, sigma)
        return 0.25 / ((sigma - 0.003) ** 2 + 0.25) * x + out * inner

    one = Sampler("consistency", boundary=0.003).draw(model, z, fresh(3))
    two = Sampler("consistency", (0.821,), boundary=0.003).draw(model, z, fresh(3))
    with torch.no_grad():
        first = evaluated(80 * z, 80.0)
        torch.testing.assert_close(one, first, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(two, evaluated(first + 0.821 * second, 0.821), rtol=1e-5, atol=1e-6)
    for sampler, moved, least, most in ((Sampler("consistency"), one, 1e-6, 1e-4), (TWO_STEPS, two, 3e-4, 1e-2)):
        difference = (moved - sampler.draw(model, z, fresh(3))).square().mean().sqrt()
        assert least < difference < most
    assert Sampler("consistency", boundary=0.003).boundary_of(model) == 0.003
    assert Sampler("consistency").boundary_of(model) == 0.0
    assert Sampler("consistency").boundary_of(preconditioned("points")) == 0.002


# Heun.


@pytest.mark.parametrize("steps", [1, 2, 3, 18])
def test_heun_evaluates_the_denoiser_twice_per_step_but_once_in_the_last(steps):
    denoiser = Recorder(gaussian_denoiser)
    heun_sample(denoiser, noise(), PROCESS, steps)
    assert len(denoiser.calls) == 2 * steps - 1
    sigmas = [sigma[0].item() for _, sigma in denoiser.calls]
    assert sigmas[0] == 80
    assert all(sigma > 0 for sigma in sigmas)
    if steps > 1:
        assert sigmas[-1] == pytest.approx(0.002)


def test_two_heun_steps_by_hand():
    process = NoiseProcess(sigma_min=1.0, sigma_max=3.0)
    z = 2.0
    x = 3 * z

    def slope(value, sigma):
        return value * sigma / (SCALE**2 + sigma**2)

    first = slope(x, 3.0)
    guess = x - 2 * first
    x -= 2 * (first + slope(guess, 1.0)) / 2
    x -= slope(x, 1.0)
    sample = heun_sample(gaussian_denoiser, torch.tensor([[z]], dtype=torch.float64), process, 2)
    assert sample.item() == pytest.approx(x, rel=1e-9)


def test_heun_reaches_the_closed_form_flow_of_a_gaussian_with_second_order():
    z = noise(dtype=torch.float64)
    exact = SCALE / math.hypot(SCALE, 80) * 80 * z
    errors = [
        ((heun_sample(gaussian_denoiser, z, PROCESS, steps) - exact).norm() / exact.norm()).item()
        for steps in (40, 80, 160)
    ]
    assert errors[-1] < 1e-3
    for coarse, fine in pairwise(errors):
        assert 3 < coarse / fine < 5.5


# Both.


def test_samplers_build_no_graph():
    weight = torch.ones((), requires_grad=True)

    def model(x, sigma):
        return weight * gaussian_denoiser(x, sigma)

    samples = (
        consistency_sample(model, noise(), PROCESS, (1.0,), fresh(0)),
        heun_sample(model, noise(), PROCESS, 3),
    )
    assert not any(sample.requires_grad for sample in samples)


def test_samplers_leave_their_noise_as_it_was():
    z = noise()
    consistency_sample(gaussian_flow, z, PROCESS, (1.0,), fresh(0))
    heun_sample(gaussian_denoiser, z, PROCESS, 3)
    assert torch.equal(z, noise())


@pytest.mark.parametrize(
    ("sampler", "evaluations"),
    [
        (Sampler("consistency"), 1),
        (Sampler("consistency", (0.821,)), 2),
        (Sampler("consistency", (5.0, 0.8, 0.2)), 4),
        (Sampler("heun"), 35),
        (Sampler("heun", heun_steps=1), 1),
        (Sampler("heun", heun_steps=5), 9),
    ],
)
def test_a_sampler_passes_each_sample_through_the_network_as_often_as_it_says(sampler, evaluations):
    model, passes = preconditioned("points"), []
    model.network.register_forward_hook(lambda *_: passes.append(1))
    sampler.draw(model, noise(), fresh(0))
    assert len(passes) == sampler.evaluations == evaluations


def test_levels_that_do_not_descend_are_refused():
    with pytest.raises(ValidationError, match="descending noise levels"):
        Sampler("consistency", (0.8, 5.0))


def test_the_named_sampler_is_drawn():
    model = preconditioned("points", "edm")
    expected = heun_sample(model, noise(), model.process, 4)
    assert torch.equal(Sampler("heun", (0.8,), 4).draw(model, noise(), fresh(0)), expected)
    expected = consistency_sample(model, noise(), model.process, (0.8,), fresh(0), 0.0)
    assert torch.equal(Sampler("consistency", (0.8,), 4).draw(model, noise(), fresh(0)), expected)


# Per image.


def test_the_noise_of_an_image_is_the_same_in_any_range_to_the_bit():
    together = image_noise(3, range(40), SHAPE)
    assert together.shape == (40, *SHAPE)
    assert together.dtype == torch.float32
    assert torch.equal(together[7:19], image_noise(3, range(7, 19), SHAPE))
    assert torch.equal(torch.cat([image_noise(3, range(n, n + 1), SHAPE) for n in range(40)]), together)


@pytest.mark.parametrize("shape", [(3,), SHAPE, (3, 8, 8)])
def test_the_noise_of_an_image_is_what_a_generator_of_its_own_draws_first(shape):
    noise = image_noise(5, range(10, 20), shape, step=2)
    for number, image in zip(range(10, 20), noise, strict=True):
        assert torch.equal(image, torch.randn(shape, generator=generator(5, "image", number, 2)))


def test_noise_differs_between_images_steps_and_seeds():
    parts = [image_noise(seed, range(50), SHAPE, step) for seed, step in [(0, 0), (0, 1), (0, 2), (1, 0)]]
    rows = torch.cat(parts).flatten(1)
    assert len(rows.unique(dim=0)) == 200


def test_noise_of_many_images_is_standard_normal_and_uncorrelated():
    z = image_noise(0, range(2000), (4,)).double()
    assert stats.kstest(z.flatten().numpy(), "norm").pvalue > 1e-3
    for a, b in [(z[:-1], z[1:]), (z, image_noise(0, range(2000), (4,), 1).double())]:
        assert abs((a * b).mean()) < 4 / math.sqrt(a.numel())


@pytest.mark.parametrize("network", ["mlp", "ddpm++"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_an_image_is_the_same_whatever_the_batch_and_the_range_it_is_made_in(sampler, network):
    model, sampler = preconditioned(network, "edm"), SAMPLERS[sampler]
    expected = images_of(model, sampler, range(23), network=network)
    assert expected.dtype == torch.uint8
    assert expected.shape == (23, *SHAPE)
    assert expected.float().std() > 20
    for images, batch in [(range(23), 1), (range(23), 7), (range(5, 20), 4), (range(22, 23), 500)]:
        made = images_of(model, sampler, images, network=network, batch=batch)
        difference = made.int() - expected[images.start : images.stop].int()
        assert difference.abs().max() <= 1


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_generated_images_are_the_samples_of_their_own_noise_in_stored_form(sampler):
    model, sampler = preconditioned(), SAMPLERS[sampler]
    samples = sampler.draw(
        model, image_noise(9, range(4, 12), SHAPE), lambda step: image_noise(9, range(4, 12), SHAPE, step)
    )
    expected = from_model_space(samples, model.process, torch.uint8)
    assert torch.equal(images_of(model, sampler, range(4, 12), seed=9), expected)


def test_batches_come_in_order_and_the_last_may_be_smaller():
    parts = list(generate(preconditioned(), Sampler("consistency"), SHAPE, range(3, 24), 0, batch=8))
    assert [len(part) for part in parts] == [8, 8, 5]
    assert list(generate(preconditioned(), Sampler("consistency"), SHAPE, range(3, 3), 0)) == []


def test_generated_points_are_float_and_carry_the_mean_of_their_data():
    points, centred = (
        images_of(model, SAMPLERS["three steps"], range(30), network="points", dtype=torch.float32)
        for model in (preconditioned("points", data_mean=0.1), preconditioned("points", data_mean=0.0))
    )
    assert points.dtype == torch.float32
    assert points.shape == (30, 3)
    torch.testing.assert_close(points - centred, torch.full((30, 3), 0.1), rtol=0, atol=1e-4)


def test_generating_neither_reads_nor_changes_the_global_random_state():
    model, results = preconditioned(), []
    for seed in (0, 1):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        results.append(images_of(model, SAMPLERS["three steps"], range(5)))
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(*results)
