import copy
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from gcflow import training as training_module
from gcflow.config import (
    Cadence,
    MethodConfig,
    NetworkConfig,
    NoiseProcess,
    RunConfig,
    RunReference,
    ScheduleConfig,
    TrainingConfig,
)
from gcflow.errors import GcflowError, NonFiniteLoss, Preempted
from gcflow.objectives import ConsistencyObjective, DenoisingObjective
from gcflow.oracles import empirical
from gcflow.preconditioning import to_model_space
from gcflow.randomness import batch_indices
from gcflow.sampling import consistency_sample
from gcflow.training import (
    Observer,
    build_model,
    initial_state,
    load_model,
    load_tensors,
    load_weights,
    make_objective,
    model_kind,
    save_tensors,
    train,
    weights_metadata,
)

SHAPE = (1, 4, 4)
DATA = torch.randint(0, 256, (20, *SHAPE), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
PROCESS = NoiseProcess(data_mean=0.1)
EXACT = empirical(to_model_space(DATA, PROCESS)).denoise
MLP = NetworkConfig(architecture="mlp", channels=8, blocks=1, dropout=0.25)
UNET = NetworkConfig(architecture="unet", channels=8, blocks=1, multipliers=(1, 2), dropout=0.25)
METHODS = {
    "ic": MethodConfig(objective="consistency"),
    "ot": MethodConfig(objective="consistency", coupling="ot"),
    "gc-ema": MethodConfig(objective="consistency", coupling="gc", mu=0.5, predictor="ema"),
    "gc-online": MethodConfig(objective="consistency", coupling="gc", mu=(0.2, 0.9), predictor="online"),
    "gc-frozen": MethodConfig(objective="consistency", coupling="gc", mu=0.5, predictor=RunReference("ic", step=3)),
    "cd": MethodConfig(objective="distillation", teacher="exact"),
    "denoiser": MethodConfig(objective="denoising"),
}
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


def run_config(method="ic", network=MLP, seed=0, **changes):
    settings = {
        "steps": STEPS,
        "batch": 6,
        "learning_rate": 3e-3,
        "snapshot_every": 5,
        "ema_decay": 0.8,
        "schedule": ScheduleConfig(s0=3, s1=12),
    }
    return RunConfig(
        dataset="toy",
        method_name=method,
        seed=seed,
        process=PROCESS,
        network=network,
        training=TrainingConfig(**(settings | changes)),
        method=METHODS[method],
    )


def frozen_model(network=MLP):
    model = build_model(run_config(network=network, seed=7), SHAPE).eval().requires_grad_(False)
    for i, parameter in enumerate(model.parameters()):
        parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i)), alpha=0.1)
    return model


def extras(config):
    return {"frozen": frozen_model(config.network), "exact": EXACT}


def start(config):
    return initial_state(config, SHAPE)


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
        train(config, DATA, start(config), before, cadence, **extras(config))
    assert before.checkpoints[-1] == at
    tensors, metadata = load_tensors(path)
    state = start(config)
    state.restore(tensors, metadata["step"])
    after = Stop(path)
    train(config, DATA, state, after, cadence, **extras(config))
    return state, before.records + after.records


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("method", METHODS)
def test_a_run_continued_from_its_file_ends_bit_identical_to_one_that_never_stopped(method, optimizer, tmp_path):
    config = run_config(method, optimizer=optimizer, weight_decay=0.01, gradient_clip=1.0, ema_ramp_up=True)
    cadence = Cadence(log_every=4, checkpoint_every=5)
    straight = Stop(tmp_path / "straight")
    expected = train(config, DATA, start(config), straight, cadence, **extras(config))
    state, records = interrupted(config, tmp_path / "state", 7, cadence)
    assert state.step == expected.step == STEPS
    assert_identical(state.tensors(), expected.tensors())
    assert records == straight.records
    assert [record["step"] for record in records] == [4, 8, 12]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_unet_in_channels_last_layout_continues_to_the_bit(optimizer, tmp_path):
    config = run_config("gc-ema", network=UNET, optimizer=optimizer, weight_decay=0.01)
    expected = train(config, DATA, start(config), **extras(config))
    state, _ = interrupted(config, tmp_path / "state", 5, Cadence())
    assert_identical(state.tensors(), expected.tensors())


@pytest.mark.parametrize("at", range(STEPS))
def test_a_run_can_be_continued_from_any_step(at, tmp_path):
    config = run_config("gc-ema", optimizer="adam", learning_rate_decay="linear")
    expected = train(config, DATA, start(config))
    state, _ = interrupted(config, tmp_path / "state", at, Cadence(log_every=5, checkpoint_every=100))
    assert_identical(state.tensors(), expected.tensors())


def test_a_run_stopped_after_every_single_step_ends_the_same(tmp_path):
    config, path = run_config("gc-online"), tmp_path / "state"
    expected = train(config, DATA, start(config))
    state = start(config)
    for step in range(1, STEPS):
        with pytest.raises(Preempted):
            train(config, DATA, state, CountingStop(path, 1))
        state = start(config)
        tensors, metadata = load_tensors(path)
        assert metadata["step"] == step
        state.restore(tensors, step)
    train(config, DATA, state)
    assert_identical(state.tensors(), expected.tensors())


def test_one_loaded_checkpoint_can_be_restored_more_than_once(tmp_path):
    config = run_config(optimizer="adam")
    with pytest.raises(Preempted):
        train(config, DATA, start(config), CountingStop(tmp_path / "state", 4), Cadence(log_every=100))
    tensors, _ = load_tensors(tmp_path / "state")
    kept = {name: tensor.clone() for name, tensor in tensors.items()}
    state = start(config)
    state.restore(tensors, 4)
    train(config, DATA, state)
    assert_identical(tensors, kept)


def test_restoring_into_a_trained_state_forgets_what_it_was(tmp_path):
    config = run_config(optimizer="adam")
    with pytest.raises(Preempted):
        train(config, DATA, start(config), CountingStop(tmp_path / "state", 4), Cadence(log_every=100))
    tensors, _ = load_tensors(tmp_path / "state")
    other = train(run_config(optimizer="adam", seed=3), DATA, start(run_config(optimizer="adam", seed=3)))
    other.restore(tensors, 4)
    assert_identical(other.tensors(), tensors)
    assert other.step == 4


def test_a_run_repeats_itself_and_another_seed_gives_another():
    first, again, other = (
        train(run_config("gc-ema", seed=seed), DATA, start(run_config("gc-ema", seed=seed))).tensors()
        for seed in (0, 0, 1)
    )
    assert_identical(first, again)
    assert all(not torch.equal(first[name], other[name]) for name in first if name.startswith("raw.output."))


def test_training_neither_reads_nor_changes_the_global_random_state():
    results = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        results.append(train(run_config("gc-ema"), DATA, start(run_config("gc-ema"))).tensors())
        assert torch.equal(torch.get_rng_state(), before)
    assert_identical(*results)


def test_how_often_a_run_speaks_and_saves_does_not_touch_its_weights(tmp_path):
    config = run_config("gc-ema")
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
            load_weights(state.model, weights.history[step - 1], "raw")
        batch = to_model_space(DATA[batch_indices(0, step, 6, 20)], PROCESS)
        with torch.no_grad():
            losses.append(ConsistencyObjective(config, state.model, state.model)(batch, step).item())
    means = [sum(losses[:5]) / 5, sum(losses[5:10]) / 5, sum(losses[10:]) / 2]
    assert [record["loss"] for record in observer.records] == pytest.approx(means, rel=1e-6)
    assert [record["intervals"] for record in observer.records] == [6, 12, 12]
    assert [record["learning_rate"] for record in observer.records] == pytest.approx(
        [3e-3 * (1 - k / 12) for k in (4, 9, 11)]
    )


def test_a_denoiser_logs_no_intervals(tmp_path):
    observer = Stop(tmp_path / "state")
    train(run_config("denoiser"), DATA, start(run_config("denoiser")), observer)
    assert "intervals" not in observer.records[-1]


def test_every_step_sees_the_batch_of_its_step_in_model_space(monkeypatch):
    seen = []

    def spying(config, state, frozen, exact):
        def objective(x, step):
            seen.append((x, step))
            return sum(p.sum() for p in state.model.parameters())

        return objective

    monkeypatch.setattr(training_module, "make_objective", spying)
    train(run_config(), DATA, start(run_config()))
    assert [step for _, step in seen] == list(range(STEPS))
    images = torch.cat([x for x, _ in seen])
    levels = (images + 1.1) * 127.5
    torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-3)
    for epoch in range(3):
        rows = levels[20 * epoch : 20 * (epoch + 1)].round().int().flatten(1).tolist()
        assert sorted(rows) == sorted(DATA.int().flatten(1).tolist())


@pytest.mark.parametrize("ramp_up", [False, True])
def test_the_average_is_the_exponential_mean_of_the_raw_weights_of_every_step(ramp_up):
    config, weights = run_config(ema_ramp_up=ramp_up, learning_rate=0.05), Weights()
    average = {k: v.double() for k, v in start(config).weights().items() if k.startswith("raw.")}
    train(config, DATA, start(config), weights, Cadence(checkpoint_every=1))
    assert len(weights.history) == STEPS
    for k, now in enumerate(weights.history):
        decay = min(0.8, 1 - (1 + k) ** (-2 / 3)) if ramp_up else 0.8
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


def first_gradient(config, scale=1.0):
    state = start(config)
    norms = []
    original = state.optimizer.step

    def recording():
        norms.append([p.grad.clone() for p in state.model.parameters()])
        return original()

    state.optimizer.step = recording
    train(config, DATA, state)
    assert len(norms) == STEPS
    return [torch.cat([g.flatten() for g in gradient]) for gradient in norms]


def test_clipping_bounds_the_global_norm_and_keeps_the_direction():
    free = first_gradient(run_config())
    bound = free[0].norm().item() / 3
    clipped = first_gradient(run_config(gradient_clip=bound))
    torch.testing.assert_close(clipped[0], free[0] / 3, rtol=1e-4, atol=1e-9)
    assert all(gradient.norm() <= bound * (1 + 1e-5) for gradient in clipped)


def test_a_bound_above_every_norm_changes_nothing():
    largest = max(gradient.norm().item() for gradient in first_gradient(run_config()))
    config = run_config(gradient_clip=2 * largest)
    assert_identical(
        train(config, DATA, start(config)).weights(), train(run_config(), DATA, start(run_config())).weights()
    )


@pytest.mark.parametrize("method", ["ic", "gc-ema", "cd", "denoiser"])
def test_training_lowers_the_loss_on_the_same_draws(method):
    config = run_config(
        method,
        network=replace(MLP, channels=32, dropout=0.0),
        steps=150,
        batch=20,
        optimizer="adam",
        learning_rate=3e-3,
        schedule=ScheduleConfig(s0=8, s1=8),
    )
    two = DATA[:2]
    state = start(config)
    before = copy.deepcopy(state.model)
    train(config, two, state, exact=empirical(to_model_space(two, PROCESS)).denoise)
    x = to_model_space(two, PROCESS).repeat(200, 1, 1, 1)

    def loss(model):
        with torch.no_grad():
            if method == "denoiser":
                return DenoisingObjective(config, model)(x, 1000).item()
            return ConsistencyObjective(replace(config, method=METHODS["ic"]), model, model)(x, 1000).item()

    assert loss(state.model) < 0.85 * loss(before)


def test_a_model_of_a_single_point_learns_to_map_noise_to_it():
    point = torch.tensor([[0.6, -0.4]])
    config = replace(
        run_config(steps=400, batch=64, optimizer="adam", learning_rate=5e-3, schedule=ScheduleConfig(s0=8, s1=16)),
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


def test_each_predictor_name_selects_its_model_and_predicts_without_gradient():
    x, sigma = random_inputs()
    for method in ("gc-ema", "gc-online", "gc-frozen"):
        config = run_config(method, learning_rate=0.05)
        state, frozen = train(config, DATA, start(config), frozen=frozen_model()), frozen_model()
        outputs = {
            name: model(x, sigma)
            for name, model in [("gc-ema", state.ema), ("gc-online", state.model), ("gc-frozen", frozen)]
        }
        predicted = make_objective(config, state, frozen, None).predict(x, sigma)
        assert not predicted.requires_grad
        assert [name for name, output in outputs.items() if torch.equal(output, predicted)] == [method]


def test_distillation_takes_the_exact_or_the_trained_teacher_that_it_names():
    frozen = frozen_model()
    state = start(run_config("cd"))
    assert make_objective(run_config("cd"), state, frozen, EXACT).denoiser is EXACT
    trained = replace(run_config("cd"), method=MethodConfig(objective="distillation", teacher=RunReference("denoiser")))
    assert make_objective(trained, state, frozen, EXACT).denoiser is frozen
    assert make_objective(run_config("ic"), state, frozen, EXACT).denoiser is None


def test_only_a_denoising_method_has_a_denoiser_for_its_model():
    kinds = {name: model_kind(method) for name, method in METHODS.items()}
    assert kinds.pop("denoiser") == "denoising"
    assert set(kinds.values()) == {"consistency"}


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


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("network", [MLP, UNET])
def test_a_saved_run_loads_as_the_same_models_with_the_same_configuration(method, network, tmp_path):
    config = run_config(method, network=network, huber_c=0.03, gradient_clip=2.0, learning_rate=0.02)
    state = train(config, DATA, start(config), **extras(config))
    path = tmp_path / "weights.safetensors"
    save_tensors(path, state.weights(), weights_metadata(config, state.step, SHAPE))
    x, sigma = random_inputs()
    for weights, original in [("ema", state.ema), ("raw", state.model)]:
        model, found = load_model(path, weights)
        assert found == config
        assert torch.equal(model(x, sigma), original(x, sigma))
        assert not model.training
        assert not any(p.requires_grad for p in model.parameters())
    assert not torch.equal(state.ema(x, sigma), state.model(x, sigma))


def test_the_header_of_a_weights_file_tells_step_shape_and_the_hash_of_its_configuration():
    first, again, other = (weights_metadata(run_config(seed=seed), 5, SHAPE) for seed in (0, 0, 1))
    assert first["step"] == 5
    assert first["shape"] == [1, 4, 4]
    assert first["config_hash"] == again["config_hash"] != other["config_hash"]


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
    with pytest.raises(GcflowError, match=r"weights\.safetensors"):
        load_model(weights_file, "ema")


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
