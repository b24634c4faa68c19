import copy
import math
from dataclasses import replace
from functools import partial
from itertools import cycle
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import EDM, METHODS, MLP, NCSN, UNET, Loss, batch_of, grains_of, random_images, randomised
from builders import run_config as any_run_config
from safetensors.torch import save_file

from gcflow import training as training_module
from gcflow.config import (
    Cadence,
    EctSchedule,
    IctSchedule,
    MethodConfig,
    NetworkConfig,
    NoiseProcess,
    RunConfig,
    RunReference,
    digest,
    from_dict,
    to_dict,
)
from gcflow.distributed import World
from gcflow.errors import GcflowError, NonFiniteLoss, Preempted
from gcflow.oracles import empirical
from gcflow.precision import tune
from gcflow.preconditioning import to_model_space
from gcflow.randomness import batch_indices
from gcflow.sampling import consistency_sample
from gcflow.training import (
    Helpers,
    Observer,
    gradient_of_batch,
    initial_state,
    make_gradient,
    make_loss,
    objective_context,
    train,
)
from gcflow.weights import (
    ModelSpec,
    load_model,
    load_run_model,
    load_tensors,
    load_weights,
    save_tensors,
    spec_of,
    weights_metadata,
)

SHAPE = (1, 4, 4)
DATA = random_images(20, *SHAPE)
PROCESS = NoiseProcess(data_mean=0.1)
EXACT = empirical(to_model_space(DATA, PROCESS)).denoise
run_config = partial(
    any_run_config, process=PROCESS, steps=12, batch=6, learning_rate=3e-3, snapshot_every=5, ema_decay=0.8
)
OPTIMIZERS = ["lion", "adam", "radam"]
STEPS = 12


class Stop(Observer):
    """Saves to a file whenever it may, and asks for a stop once `at` steps are done."""

    def __init__(self, path, at=None):
        self.path, self.at = path, at
        self.step, self.records = 0, []
        self.checkpoints, self.snapshots = [], []

    def logged(self, record):
        self.step = record["step"]
        self.records.append({k: v for k, v in record.items() if k != "images_per_second"})

    def checkpoint(self, state):
        self.checkpoints.append(state.step)
        save_tensors(self.path, state.tensors(), {"step": state.step})

    def snapshot(self, state):
        self.snapshots.append((state.step, {k: v.clone() for k, v in state.weights().items()}))

    def stop_requested(self):
        return None if self.at is None or self.step < self.at else "enough"


class CountingStop(Stop):
    """Asks for a stop before step `at`, counting the times it is asked, so that it needs no log line at that step."""

    def __init__(self, path, at):
        super().__init__(path, at)
        self.asked = 0

    def stop_requested(self):
        self.asked += 1
        return "enough" if self.asked > self.at else None


def frozen_model(network=MLP):
    model = spec_of(run_config(network=network), SHAPE).build(7).eval().requires_grad_(False)
    return randomised(model)


def helpers(config):
    return Helpers(predictor=frozen_model(config.network), teacher=frozen_model(config.network), exact=EXACT)


def start(config):
    return initial_state(config, SHAPE)


def trained(config, state=None, observer=None, cadence=None):
    return train(config, DATA, state or start(config), observer, cadence, helpers(config))


def restored(config, path):
    tensors, metadata = load_tensors(path)
    state = start(config)
    state.restore(tensors, metadata["step"], path)
    return state


def copied(state):
    return {name: tensor.detach().clone() for name, tensor in state.tensors().items()}


def assert_identical(first, second):
    assert first.keys() == second.keys()
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert different == []


def interrupted(config, path, at, cadence):
    """The end of a run that is stopped before step `at` and continued from its file, and all its log records."""
    before = CountingStop(path, at)
    with pytest.raises(Preempted, match=f"enough; saved at step {at} of {STEPS}"):
        trained(config, None, before, cadence)
    assert before.checkpoints[-1] == at
    state, after = restored(config, path), Stop(path)
    trained(config, state, after, cadence)
    return state, before.records + after.records


@pytest.mark.parametrize(("method", "optimizer"), list(zip(METHODS, cycle(OPTIMIZERS))))
def test_a_run_continued_from_its_file_ends_bit_identical_to_one_that_never_stopped(method, optimizer, tmp_path):
    config = run_config(method, optimizer=optimizer, weight_decay=0.01, gradient_clip=1.0, ema_ramp_up=True)
    cadence = Cadence(log_every=4, checkpoint_every=5)
    straight = Stop(tmp_path / "straight")
    expected = trained(config, None, straight, cadence)
    state, records = interrupted(config, tmp_path / "state", 7, cadence)
    assert state.step == expected.step == STEPS
    assert_identical(state.tensors(), expected.tensors())
    assert records == straight.records
    assert [record["step"] for record in records] == [4, 8, 12]


@pytest.mark.parametrize(
    ("network", "optimizer", "channels_last"),
    [(UNET, "lion", True), (UNET, "adam", True), (UNET, "radam", True), (UNET, "adam", False), (NCSN, "adam", True)],
)
def test_a_unet_in_any_memory_layout_continues_to_the_bit(network, optimizer, channels_last, tmp_path):
    config = run_config(
        "gc", network=network, optimizer=optimizer, weight_decay=0.01, channels_last=channels_last, grain=3
    )
    expected = trained(config)
    state, _ = interrupted(config, tmp_path / "state", 5, Cadence())
    assert_identical(state.tensors(), expected.tensors())


def test_a_run_stopped_after_every_single_step_ends_the_same(tmp_path):
    config, path = run_config("gc-online", optimizer="adam", learning_rate_decay="linear"), tmp_path / "state"
    expected = train(config, DATA, start(config))
    state = start(config)
    for step in range(1, STEPS):
        with pytest.raises(Preempted):
            train(config, DATA, state, CountingStop(path, 1))
        state = restored(config, path)
        assert state.step == step
    train(config, DATA, state)
    assert_identical(state.tensors(), expected.tensors())


@pytest.mark.parametrize(("method", "case"), list(zip(["ic", "ot", "gc", "cd", "ect-gc"], cycle(range(3)))))
def test_a_run_stopped_at_several_random_steps_ends_the_same(method, case, tmp_path):
    draws = np.random.default_rng([case, len(method)])
    config = run_config(
        method,
        network=replace(MLP, dropout=0.5),
        optimizer=OPTIMIZERS[case],
        grain=[None, 3, 1][case],
        learning_rate_decay="linear",
        ema_ramp_up=True,
    )
    expected = trained(config)
    state, path, stops = start(config), tmp_path / "state", 0
    while state.step < STEPS:
        at = state.step + int(draws.integers(1, 6))
        try:
            trained(config, state, CountingStop(path, at - state.step), Cadence(log_every=int(draws.integers(1, 9))))
        except Preempted:
            stops += 1
            state = restored(config, path)
            assert state.step == at
    assert stops >= 1
    # How often a run speaks decides its last window of losses, and nothing else.
    first, second = state.tensors(), expected.tensors()
    for tensors in (first, second):
        del tensors["window.loss_sums"], tensors["window.loss_count"]
    assert_identical(first, second)


def test_one_loaded_checkpoint_can_be_restored_more_than_once(tmp_path):
    config = run_config(optimizer="adam")
    with pytest.raises(Preempted):
        train(config, DATA, start(config), CountingStop(tmp_path / "state", 4), Cadence(log_every=100))
    tensors, _ = load_tensors(tmp_path / "state")
    kept = {name: tensor.clone() for name, tensor in tensors.items()}
    state = start(config)
    state.restore(tensors, 4, tmp_path / "state")
    train(config, DATA, state)
    assert_identical(tensors, kept)


def test_restoring_into_a_trained_state_forgets_what_it_was(tmp_path):
    config = run_config(optimizer="adam")
    with pytest.raises(Preempted):
        train(config, DATA, start(config), CountingStop(tmp_path / "state", 4), Cadence(log_every=100))
    tensors, _ = load_tensors(tmp_path / "state")
    other = train(run_config(optimizer="adam", seed=3), DATA, start(run_config(optimizer="adam", seed=3)))
    other.restore(tensors, 4, tmp_path / "state")
    assert_identical(other.tensors(), tensors)
    assert other.step == 4


def test_a_run_repeats_itself_and_another_seed_gives_another():
    first, again, other = (
        train(run_config("gc", seed=seed), DATA, start(run_config("gc", seed=seed))).tensors() for seed in (0, 0, 1)
    )
    assert_identical(first, again)
    assert all(not torch.equal(first[name], other[name]) for name in first if name.startswith("raw.output."))


def test_training_neither_reads_nor_changes_the_global_random_state():
    results = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        results.append(train(run_config("gc"), DATA, start(run_config("gc"))).tensors())
        assert torch.equal(torch.get_rng_state(), before)
    assert_identical(*results)


def test_how_often_a_run_speaks_and_saves_does_not_touch_its_weights(tmp_path):
    config = run_config("gc")
    silent = train(config, DATA, start(config))
    for cadence in (Cadence(1, 1), Cadence(5, 3)):
        spoken = train(config, DATA, start(config), Stop(tmp_path / "state"), cadence)
        assert_identical(silent.weights(), spoken.weights())


def test_a_finished_state_is_returned_unchanged(tmp_path):
    config = run_config()
    state = train(config, DATA, start(config))
    before = copied(state)
    observer = Stop(tmp_path / "state", at=0)
    assert train(config, DATA, state, observer) is state
    assert_identical(state.tensors(), before)
    assert observer.checkpoints == observer.snapshots == observer.records == []


def test_the_initial_state_is_an_untrained_model_with_an_equal_average():
    state = start(run_config())
    weights = state.weights()
    assert state.step == 0
    for name in weights:
        if name.startswith("raw."):
            assert torch.equal(weights[name], weights[name.replace("raw.", "ema.", 1)])
    assert all(p.requires_grad for p in state.model.parameters())
    assert not any(p.requires_grad for p in state.ema.parameters())
    pointers = [{p.data_ptr() for p in model.parameters()} for model in (state.model, state.ema)]
    assert pointers[0].isdisjoint(pointers[1])


@pytest.mark.parametrize(
    ("steps", "every", "expected"), [(12, 5, [5, 10, 12]), (12, 4, [4, 8, 12]), (12, 50, [12]), (3, 1, [1, 2, 3])]
)
def test_snapshots_are_taken_at_their_steps_and_at_the_end(steps, every, expected, tmp_path):
    config = run_config(steps=steps, snapshot_every=every)
    observer = Stop(tmp_path / "state")
    state = train(config, DATA, start(config), observer, Cadence(7, 7))
    assert [step for step, _ in observer.snapshots] == expected
    assert_identical(observer.snapshots[-1][1], state.weights())


def test_a_snapshot_holds_the_weights_of_its_step(tmp_path):
    config = run_config(steps=10)
    observer = Stop(tmp_path / "state")
    train(config, DATA, start(config), observer)
    with pytest.raises(Preempted):
        train(config, DATA, start(config), CountingStop(tmp_path / "at5", 5))
    stopped, _ = load_tensors(tmp_path / "at5")
    step, weights = observer.snapshots[0]
    assert step == 5
    assert_identical(weights, {name: stopped[name] for name in weights})


def test_checkpoints_come_at_their_cadence_and_at_the_end(tmp_path):
    observer = Stop(tmp_path / "state")
    train(run_config(), DATA, start(run_config()), observer, Cadence(log_every=1, checkpoint_every=5))
    assert observer.checkpoints == [5, 10, 12]
    assert [record["step"] for record in observer.records] == list(range(1, 13))


class Weights(Observer):
    def __init__(self):
        self.history = []

    def checkpoint(self, state):
        self.history.append({k: v.clone() for k, v in state.weights().items()})


def test_a_log_line_carries_the_mean_loss_since_the_last_one_and_the_curriculum(tmp_path):
    config = run_config(learning_rate_decay="linear")
    weights, observer = Weights(), Stop(tmp_path / "state")
    train(config, DATA, start(config), weights, Cadence(checkpoint_every=1))
    train(config, DATA, start(config), observer, Cadence(log_every=5))
    state, losses = start(config), []
    for step in range(STEPS):
        if step:
            load_weights(state.model, weights.history[step - 1], "raw", tmp_path)
        with torch.no_grad():
            losses.append(make_loss(config, state, Helpers())(batch_of(config, DATA, step)).item())
    means = [sum(losses[:5]) / 5, sum(losses[5:10]) / 5, sum(losses[10:]) / 2]
    assert [record["loss"] for record in observer.records] == pytest.approx(means, rel=1e-6)
    assert [record["intervals"] for record in observer.records] == [6, 12, 12]
    assert [record["learning_rate"] for record in observer.records] == pytest.approx(
        [3e-3 * (1 - k / 12) for k in (4, 9, 11)]
    )


def test_ect_logs_its_stage_and_a_denoiser_neither_intervals_nor_stage(tmp_path):
    records = {}
    for method in ("ect", "denoiser"):
        observer = Stop(tmp_path / method)
        trained(run_config(method), None, observer, Cadence(log_every=4))
        records[method] = observer.records
    assert [record["stage"] for record in records["ect"]] == [0, 1, 2]
    assert set(records["denoiser"][-1]) == {"step", "loss", "learning_rate", "gradient_norm"}


def test_the_log_tells_the_share_of_augmented_pairs_of_the_step_before(tmp_path):
    for method, shares in (("gc-online", [0.2 + 0.7 * step / 12 for step in (3, 7, 11)]), ("denoiser-gc", [0.5] * 3)):
        observer = Stop(tmp_path / method)
        trained(run_config(method), None, observer, Cadence(log_every=4))
        assert [record["mu"] for record in observer.records] == pytest.approx(shares)


@pytest.mark.parametrize("method", ["gc", "denoiser-gc"])
def test_a_run_whose_mu_begins_late_is_one_of_independent_coupling_until_then_to_the_bit(method, tmp_path):
    augmented = run_config(method)
    late = replace(augmented, method=replace(augmented.method, mu_from_step=5))
    plain = run_config("denoiser" if method == "denoiser-gc" else "ic")
    seen = []
    for config in (late, plain, augmented):
        observer = Stop(tmp_path / "state")
        trained(config, None, observer)
        seen.append(dict(observer.snapshots))
    assert [sorted(snapshots) for snapshots in seen] == [[5, 10, 12]] * 3
    late, plain, augmented = seen
    assert_identical(late[5], plain[5])
    for other, step in ((plain, 10), (augmented, 5), (augmented, 10)):
        assert any(not torch.equal(late[step][name], other[step][name]) for name in late[step])


@pytest.mark.parametrize("grain", [None, 3])
def test_every_step_sees_the_batch_of_its_step_in_model_space(grain, monkeypatch):
    seen = []

    def spying(config, state, helpers):
        def objective(batch):
            seen.append(batch)
            return sum(p.sum() for p in state.model.parameters())

        return objective

    monkeypatch.setattr(training_module, "make_loss", spying)
    config = run_config(grain=grain)
    train(config, DATA, start(config))
    assert [len(batch.data) for batch in seen] == ([6] if grain is None else [3, 3]) * STEPS
    images = torch.cat([batch.data for batch in seen])
    expected = torch.cat([DATA[batch_indices(0, step, 6, 20)] for step in range(STEPS)])
    assert torch.equal(images, to_model_space(expected, PROCESS))
    levels = (images + 1.1) * 127.5
    torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-3)
    for epoch in range(3):
        rows = levels[20 * epoch : 20 * (epoch + 1)].round().int().flatten(1).tolist()
        assert sorted(rows) == sorted(DATA.int().flatten(1).tolist())
    drawn = torch.cat([batch_of(config, DATA, step).dropout for step in range(STEPS)])
    assert torch.equal(torch.cat([batch.dropout for batch in seen]), drawn)


@pytest.mark.parametrize("ramp_up", [False, True])
def test_the_average_is_the_exponential_mean_of_the_raw_weights_of_every_step(ramp_up):
    config, weights = run_config(ema_ramp_up=ramp_up, learning_rate=0.05), Weights()
    average = {k: v.double() for k, v in start(config).weights().items() if k.startswith("raw.")}
    train(config, DATA, start(config), weights, Cadence(checkpoint_every=1))
    assert len(weights.history) == STEPS
    for k, now in enumerate(weights.history):
        decay = min(0.8, 1 - (1 + k) ** (-2 / 3) if k > 1 else 0) if ramp_up else 0.8
        for name, value in average.items():
            value.mul_(decay).add_(now[name], alpha=1 - decay)
            stored = now[name.replace("raw.", "ema.", 1)].double()
            torch.testing.assert_close(stored, value, rtol=1e-5, atol=1e-6)


def test_lion_moves_every_weight_by_the_learning_rate_of_its_step():
    config, weights = run_config(learning_rate=0.125, learning_rate_decay="linear", snapshot_every=50), Weights()
    name = "raw.output.bias"
    before = start(config).weights()[name].clone()
    train(config, DATA, start(config), weights, Cadence(checkpoint_every=1))
    for k, now in enumerate(weights.history):
        moves = (now[name] - before).abs()
        torch.testing.assert_close(moves, torch.full_like(moves, 0.125 * (1 - k / STEPS)))
        before = now[name]


def poison(model):
    with torch.no_grad():
        next(model.parameters()).fill_(math.nan)


@pytest.mark.parametrize("cadence", [Cadence(1, 1), Cadence(4, 6), Cadence(100, 4), Cadence(100, 100)])
def test_a_loss_that_is_no_number_stops_the_run_before_anything_of_it_is_saved(cadence, tmp_path):
    class Poisoned(Stop):
        def stop_requested(self):
            if state.step == 2:
                poison(state.model)

    config, observer = run_config(), Poisoned(tmp_path / "state")
    state = start(config)
    with pytest.raises(NonFiniteLoss, match=r"toy/ic/0: loss is nan .*learning_rate \(0\.003\)"):
        train(config, DATA, state, observer, cadence)
    assert all(step <= 2 for step in observer.checkpoints)
    assert all(record["step"] <= 2 for record in observer.records)
    assert observer.snapshots == []


def test_an_enormous_learning_rate_ends_in_a_non_finite_loss_and_a_finite_checkpoint(tmp_path):
    config, observer = run_config(learning_rate=1e20, optimizer="adam"), Stop(tmp_path / "state")
    with pytest.raises(NonFiniteLoss) as caught:
        train(config, DATA, start(config), observer, Cadence(1, 1))
    assert caught.value.exit_code == 3
    assert 0 < len(observer.checkpoints) < STEPS
    tensors, _ = load_tensors(tmp_path / "state")
    assert all(tensor.isfinite().all() for tensor in tensors.values())


def test_a_run_asked_to_stop_after_its_loss_went_bad_saves_nothing(tmp_path):
    class Poisoned(CountingStop):
        def stop_requested(self):
            if state.step == 2:
                poison(state.model)
            return super().stop_requested()

    config, observer = run_config(), Poisoned(tmp_path / "state", 4)
    state = start(config)
    with pytest.raises(NonFiniteLoss):
        train(config, DATA, state, observer, Cadence(100, 100))
    assert observer.checkpoints == []


def gradients_of_steps(config, scale=1.0):
    state = start(config)
    norms = []
    original = state.optimizer.step

    def recording():
        norms.append(state.flat.tensor.grad.clone())
        return original()

    state.optimizer.step = recording
    train(config, DATA, state)
    assert len(norms) == STEPS
    return norms


def test_clipping_bounds_the_global_norm_and_keeps_the_direction():
    free = gradients_of_steps(run_config())
    bound = free[0].norm().item() / 3
    clipped = gradients_of_steps(run_config(gradient_clip=bound))
    torch.testing.assert_close(clipped[0], free[0] / 3, rtol=1e-4, atol=1e-9)
    assert all(gradient.norm() <= bound * (1 + 1e-5) for gradient in clipped)


def loss_on(config, model, data, step=1000):
    """The loss on many draws that the run has not seen, with independent coupling and without distillation."""
    method = config.method if config.method.objective.kind == "denoising" else METHODS["ic"]
    config = replace(config, method=method, training=replace(config.training, batch=400))
    with torch.no_grad():
        return Loss(config, model, model)(batch_of(config, data, step)).item()


@pytest.mark.parametrize("method", ["ic", "gc", "cd", "denoiser"])
def test_training_lowers_the_loss_on_the_same_draws(method):
    config = run_config(
        method,
        network=replace(MLP, channels=32, dropout=0.0),
        steps=150,
        batch=20,
        optimizer="adam",
        learning_rate=3e-3,
        schedule=EDM if method == "denoiser" else IctSchedule(s0=8, s1=8),
    )
    two = DATA[:2]
    state = start(config)
    before = copy.deepcopy(state.model)
    train(config, two, state, helpers=Helpers(exact=empirical(to_model_space(two, PROCESS)).denoise))
    assert loss_on(config, state.model, two) < 0.85 * loss_on(config, before, two)


def test_a_model_of_a_single_point_learns_to_map_noise_to_it():
    point = torch.tensor([[0.6, -0.4]])
    config = replace(
        run_config(steps=400, batch=64, optimizer="adam", learning_rate=5e-3, schedule=IctSchedule(s0=8, s1=16)),
        process=NoiseProcess(sigma_max=10.0),
        network=NetworkConfig(architecture="mlp", channels=32, blocks=1),
    )
    state = train(config, point, initial_state(config, (2,)))
    noise = torch.randn(300, 2, generator=torch.Generator().manual_seed(0))
    errors = (consistency_sample(state.ema, noise, config.process) - point).norm(dim=1)
    untrained = (consistency_sample(initial_state(config, (2,)).ema, noise, config.process) - point).norm(dim=1)
    assert errors.mean() < 0.25
    assert errors.mean() < 0.4 * untrained.mean()


def random_inputs():
    generator = torch.Generator().manual_seed(5)
    return torch.randn(4, *SHAPE, generator=generator), torch.tensor([0.01, 0.5, 3.0, 80.0])


def test_each_predictor_name_selects_its_model():
    x, sigma = random_inputs()
    for method, selected in {
        "gc": "ema",
        "gc-online": "model",
        "gc-frozen": "frozen",
        "denoiser-gc": "frozen",
    }.items():
        config = run_config(method, learning_rate=0.05)
        state, frozen = trained(config), frozen_model()
        outputs = {
            name: model(x, sigma) for name, model in [("ema", state.ema), ("model", state.model), ("frozen", frozen)]
        }
        predicted = objective_context(config, state, Helpers(predictor=frozen)).predict(x, sigma)
        assert [name for name, output in outputs.items() if torch.equal(output, predicted)] == [selected]


@pytest.mark.parametrize("method", ["gc", "gc-online", "gc-frozen", "denoiser-gc"])
def test_predictors_get_no_gradient_and_never_change_but_by_the_average(method):
    config = run_config(method, learning_rate=0.05)
    state, given = start(config), helpers(config)
    before = copy.deepcopy(given.predictor.state_dict())
    train(config, DATA, state, helpers=given)
    assert_identical(given.predictor.state_dict(), before)
    assert all(p.grad is None for model in (given.predictor, state.ema) for p in model.parameters())


def test_distillation_takes_the_exact_or_the_trained_teacher_that_it_names():
    teacher = frozen_model()
    given = Helpers(predictor=frozen_model(), teacher=teacher, exact=EXACT)
    state = start(run_config("cd"))
    assert objective_context(run_config("cd"), state, given).denoiser is EXACT
    by_run = replace(run_config("cd"), method=MethodConfig(objective="distillation", teacher=RunReference("denoiser")))
    assert objective_context(by_run, state, given).denoiser is teacher
    assert objective_context(run_config("ic"), state, given).denoiser is None


# Grains.


def gradients(config, grain):
    """Loss and gradients of a batch at random weights."""
    state = start(config)
    randomised(state.model)
    config = replace(config, training=replace(config.training, grain=grain))
    gradient_of = make_gradient(make_loss(config, state, helpers(config)), config.training, state.flat)
    gradient, losses = gradient_of_batch(gradient_of, grains_of(config, DATA, 7), config.training, World())
    return losses.sum(), state.flat.parts(gradient)


@pytest.mark.parametrize(("method", "grain"), list(zip(METHODS, cycle([1, 2, 5]))))
def test_the_gradients_of_grains_add_up_to_those_of_the_batch(method, grain):
    config = run_config(method, network=replace(MLP, channels=16, dropout=0.4), batch=10)
    loss, expected = gradients(config, None)
    total, summed = gradients(config, grain)
    assert not total.requires_grad
    assert total.item() == pytest.approx(loss.item(), rel=1e-5)
    scale = max(gradient.abs().max().item() for gradient in expected)
    for a, b in zip(summed, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * scale)


@pytest.mark.parametrize("network", [UNET, NCSN])
def test_the_gradients_of_grains_of_images_add_up_too(network):
    config = run_config("gc", network=network)
    loss, expected = gradients(config, None)
    total, summed = gradients(config, 3)
    assert total.item() == pytest.approx(loss.item(), rel=1e-5)
    scale = max(gradient.abs().max().item() for gradient in expected)
    for a, b in zip(summed, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * scale)


@pytest.mark.parametrize("method", ["ic", "gc", "ect-gc", "denoiser"])
def test_a_grain_as_large_as_the_batch_changes_no_bit(method):
    assert_identical(trained(run_config(method, grain=6)).tensors(), trained(run_config(method)).tensors())


def test_no_pass_holds_more_samples_than_a_grain():
    config = run_config("gc-online", grain=3)
    state, sizes = start(config), []
    state.model.network.register_forward_hook(lambda module, inputs, output: sizes.append(len(output)))
    train(config, DATA, state)
    assert max(sizes) == 3
    assert len(sizes) >= 2 * 2 * STEPS


# From other weights.


@pytest.mark.parametrize("network", [MLP, UNET])
def test_a_run_can_start_from_the_weights_of_a_denoiser(network):
    denoiser = trained(run_config("denoiser", network=network)).ema
    for method in ("ic", "ect"):
        config = run_config(method, network=network, seed=3, optimizer="adam")
        state = initial_state(config, SHAPE, start=denoiser)
        assert_identical(state.model.network.state_dict(), denoiser.network.state_dict())
        assert_identical(state.ema.network.state_dict(), denoiser.network.state_dict())
        assert all(p.requires_grad for p in state.model.parameters())
        assert not any(p.requires_grad for p in state.ema.parameters())
        before = {name: tensor.clone() for name, tensor in denoiser.network.state_dict().items()}
        train(config, DATA, state)
        assert_identical(denoiser.network.state_dict(), before)
        assert not any(torch.equal(p, before[name]) for name, p in state.model.network.named_parameters())


def test_ect_that_starts_from_a_denoiser_lowers_its_loss_and_continues_to_the_bit(tmp_path):
    network, two, path = replace(MLP, channels=32, dropout=0.1), DATA[:2], tmp_path / "state"
    common = {"network": network, "batch": 20, "optimizer": "radam", "learning_rate": 3e-3}
    denoising = run_config("denoiser", steps=150, **common)
    denoiser = train(denoising, two, start(denoising)).ema
    config = run_config("ect", steps=120, schedule=EctSchedule(q=2, stage_every=40), **common)

    state = initial_state(config, SHAPE, start=denoiser)
    expected = train(config, two, state)
    # A denoiser is the better start, and ECT makes it a better consistency model.
    models = {"untrained": start(config).model, "denoiser": denoiser, "ect": expected.model}
    losses = {name: loss_on(config, model, two, config.training.steps - 1) for name, model in models.items()}
    assert losses["ect"] < 0.95 * losses["denoiser"]
    assert losses["denoiser"] < 0.95 * losses["untrained"]
    noise, points = torch.randn(200, *SHAPE, generator=torch.Generator().manual_seed(0)), to_model_space(two, PROCESS)
    samples = {name: consistency_sample(model, noise, PROCESS, boundary=0.0) for name, model in models.items()}
    errors = {name: torch.cdist(x.flatten(1), points.flatten(1)).amin(1).mean() for name, x in samples.items()}
    assert errors["ect"] < 0.7 * errors["denoiser"] < 0.7 * errors["untrained"]

    with pytest.raises(Preempted):
        train(config, two, initial_state(config, SHAPE, start=denoiser), CountingStop(path, 77), Cadence(100, 100))
    again = restored(config, path)
    assert again.step == 77
    assert_identical(train(config, two, again).weights(), expected.weights())


# Files.


TENSORS = {
    "weights": torch.arange(6.0).reshape(2, 3),
    "transposed": torch.arange(6.0).reshape(2, 3).T,
    "scalar": torch.tensor(7, dtype=torch.int64),
    "double": torch.tensor([math.pi], dtype=torch.float64),
    "empty": torch.zeros(0, 3),
}


def test_tensors_and_metadata_survive_the_way_to_disk_and_back(tmp_path):
    metadata = {"step": 3, "config": {"mu": [0.1, None], "name": "gc µ"}, "shape": [1, 8, 8]}
    save_tensors(tmp_path / "deep" / "file.safetensors", TENSORS, metadata)
    tensors, found = load_tensors(tmp_path / "deep" / "file.safetensors")
    assert_identical(tensors, TENSORS)
    assert all(tensors[name].dtype == TENSORS[name].dtype for name in TENSORS)
    assert found == metadata
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["file.safetensors"]


@pytest.mark.parametrize(
    ("method", "network"), [*((method, MLP) for method in METHODS), ("gc", UNET), ("denoiser", NCSN)]
)
def test_a_saved_run_loads_as_the_same_models_with_the_same_configuration(method, network, tmp_path):
    config = run_config(method, network=network, huber_c=0.03, gradient_clip=2.0, learning_rate=0.02)
    state = trained(config)
    path = tmp_path / "weights.safetensors"
    save_tensors(path, state.weights(), weights_metadata(config, state.step, SHAPE))
    x, sigma = random_inputs()
    for weights, original in [("ema", state.ema), ("raw", state.model)]:
        model, spec, metadata = load_model(path, weights)
        assert spec == spec_of(config, SHAPE)
        assert from_dict(RunConfig, metadata["config"]) == config
        assert metadata["step"] == STEPS
        assert_identical(model.network.state_dict(), original.network.state_dict())
        for found in (model, load_run_model(path, config, weights)):
            torch.testing.assert_close(found(x, sigma), original(x, sigma), rtol=1e-5, atol=1e-5)
            # In the memory layout of the run, to the bit.
            tune(found, config.training)
            assert torch.equal(found(x, sigma), original(x, sigma))
            assert found.preconditioning == original.preconditioning
            assert found.process == PROCESS
            assert not found.training
            assert not any(p.requires_grad for p in found.parameters())
    assert not torch.equal(state.ema(x, sigma), state.model(x, sigma))


def test_the_header_of_a_weights_file_tells_step_model_and_the_hash_of_its_configuration():
    first, again, other = (weights_metadata(run_config(seed=seed), 5, SHAPE) for seed in (0, 0, 1))
    assert first["step"] == 5
    assert first["model"]["shape"] == [1, 4, 4]
    assert first["model"]["preconditioning"] == "consistency"
    assert first["config"] == to_dict(run_config())
    assert first["config_hash"] == again["config_hash"] == digest(first["config"])
    assert first["config_hash"] != other["config_hash"]


@pytest.mark.parametrize("preconditioning", ["consistency", "edm", "vp", "ve"])
@pytest.mark.parametrize("network", [MLP, UNET, replace(NCSN, attention=(2,), blocks=(1, 2), dropout=(0.0, 0.1))])
def test_a_model_can_be_rebuilt_from_the_json_of_its_header(network, preconditioning):
    spec = ModelSpec(network, preconditioning, NoiseProcess(sigma_data=0.7, data_mean=-0.2), SHAPE)
    assert from_dict(ModelSpec, spec.header()) == spec


@pytest.mark.parametrize(
    "other",
    [
        run_config(seed=1),
        run_config("ot"),
        run_config(learning_rate=4e-3),
        run_config(schedule=IctSchedule(s0=3, s1=24)),
        replace(run_config(), process=replace(PROCESS, sigma_max=70.0)),
    ],
)
def test_weights_of_another_configuration_are_not_taken_for_those_of_a_run(other, weights_file):
    load_run_model(weights_file, run_config())
    with pytest.raises(
        GcflowError, match=r"weights\.safetensors: weights of another configuration; run gcflow train toy/"
    ):
        load_run_model(weights_file, other)


@pytest.fixture
def weights_file(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_tensors(path, start(run_config()).weights(), weights_metadata(run_config(), 0, SHAPE))
    return path


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:5],
        lambda content: content[:200],
        lambda content: content[:-1],
        lambda content: content + b"x",
        lambda content: b"\xff" * 64 + content[64:],
        lambda content: b"not a model at all\n" * 20,
    ],
)
@pytest.mark.parametrize("load", [load_tensors, load_model])
def test_a_damaged_file_is_refused_by_its_path(damage, load, weights_file):
    weights_file.write_bytes(damage(weights_file.read_bytes()))
    with pytest.raises(GcflowError) as caught:
        load(weights_file)
    assert str(weights_file) in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("load", [load_tensors, load_model])
def test_a_missing_file_and_a_folder_are_refused_by_their_path(load, tmp_path):
    (tmp_path / "folder.safetensors").mkdir()
    for name in ("missing.safetensors", "folder.safetensors"):
        with pytest.raises(GcflowError, match=name):
            load(tmp_path / name)


def test_a_safetensors_file_of_another_program_is_not_taken_for_a_model(tmp_path):
    path = tmp_path / "foreign.safetensors"
    save_file({"weight": torch.ones(2)}, path)
    with pytest.raises(GcflowError, match=r"foreign\.safetensors.*no gcflow header"):
        load_model(path)
    save_file({"weight": torch.ones(2)}, path, {"format": "pt"})
    with pytest.raises(GcflowError, match=r"foreign\.safetensors"):
        load_model(path)


def test_a_weights_file_that_lacks_tensors_is_refused_by_its_path(weights_file):
    tensors, metadata = load_tensors(weights_file)
    save_tensors(weights_file, {k: v for k, v in tensors.items() if k.startswith("raw.")}, metadata)
    with pytest.raises(GcflowError, match=r"weights\.safetensors: ema weights do not fit.*lacks "):
        load_model(weights_file, "ema")
    load_model(weights_file, "raw")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("ema.output.bias"), r"it lacks output\.bias$"),
        (lambda tensors: tensors.update({"ema.extra": torch.ones(1)}), "it has extra, which the network has not$"),
        (lambda tensors: tensors.update({"ema.output.bias": torch.ones(3)}), r"of shape \[3\], not \[16\]$"),
        (lambda tensors: [tensors.pop(f"ema.output.{name}") for name in ("bias", "weight")], "and 1 more differences$"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_what_is_wrong(change, message, weights_file):
    tensors, metadata = load_tensors(weights_file)
    change(tensors)
    save_tensors(weights_file, tensors, metadata)
    with pytest.raises(GcflowError, match=message):
        load_model(weights_file)


def test_a_checkpoint_that_does_not_fit_is_refused_by_its_path(tmp_path):
    path = tmp_path / "state.safetensors"
    with pytest.raises(Preempted):
        train(run_config(), DATA, start(run_config()), CountingStop(path, 4))
    tensors, _ = load_tensors(path)
    other = start(run_config(network=replace(MLP, channels=12)))
    with pytest.raises(GcflowError, match=r"state\.safetensors: raw weights do not fit"):
        other.restore(tensors, 4, path)


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.pop("preconditioning"),
        lambda model: model["network"].update(normalisation="group"),
        lambda model: model["process"].update(sigma_min=-1.0),
        lambda model: model["network"].update(architecture="unet", blocks=0),
        lambda model: model.update(shape=4),
    ],
)
def test_a_header_of_another_version_is_refused_by_the_path_of_its_file(change, weights_file):
    tensors, metadata = load_tensors(weights_file)
    change(metadata["model"])
    save_tensors(weights_file, tensors, metadata)
    with pytest.raises(
        GcflowError, match=r"weights\.safetensors: its (header is of another|network\.architecture is 'unet', ex)"
    ):
        load_model(weights_file)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_write_leaves_the_old_file_and_no_other(error, weights_file, monkeypatch):
    before = weights_file.read_bytes()

    def failing(path, content):
        path.write_text("half of it")
        raise error

    monkeypatch.setattr(Path, "write_bytes", failing)
    with pytest.raises(GcflowError if isinstance(error, OSError) else KeyboardInterrupt) as caught:
        save_tensors(weights_file, TENSORS, {})
    if isinstance(error, OSError):
        assert f"{weights_file}: cannot be written" in str(caught.value)
    assert weights_file.read_bytes() == before
    assert list(weights_file.parent.iterdir()) == [weights_file]


@pytest.mark.parametrize("data", [np.zeros((8, 2), np.float32), torch.zeros(0, 2), None])
def test_data_that_are_no_samples_are_refused_in_one_line(data):
    config = any_run_config()
    with pytest.raises(GcflowError, match="expected a tensor of images"):
        train(config, data, initial_state(config, (2,)))


@pytest.mark.parametrize(
    ("data", "remedy"),
    [
        (torch.zeros(8, 1, 4, 4), "(255 * data).round().to(torch.uint8)"),
        (torch.zeros(8, 16, 16, 3, dtype=torch.uint8), "data.permute(0, 3, 1, 2)"),
        (torch.zeros(8, 2, dtype=torch.float64), "float32 [n, d]"),
        (torch.zeros(8, 2, dtype=torch.uint8), "float32 [n, d]"),
        (torch.zeros(8, 1, 4, 4, dtype=torch.int64), "float32 [n, d]"),
    ],
)
def test_data_that_would_be_taken_for_others_are_refused_with_the_remedy(data, remedy):
    config = any_run_config()
    with pytest.raises(GcflowError, match="expected a tensor of images") as caught:
        train(config, data, initial_state(config, (2,)))
    assert str(caught.value).endswith(remedy)


def test_a_teacher_that_was_not_given_is_named():
    config = any_run_config(MethodConfig("distillation", teacher="exact"))
    with pytest.raises(GcflowError, match="its teacher is not among the helpers"):
        train(config, torch.zeros(64, 2), initial_state(config, (2,)))
