"""The training loop, and the state that makes it resumable to the bit."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gcflow.batches import Batches
from gcflow.config import Cadence, RunConfig, TrainingConfig
from gcflow.cuda_graphs import Gradient, Replayed, cuda_graph
from gcflow.distances import distance_for
from gcflow.distributed import World, halves
from gcflow.errors import GcflowError, NonFiniteLoss, Preempted
from gcflow.flat import FlatParameters
from gcflow.model import PreconditionedNetwork
from gcflow.objectives import Batch, ObjectiveContext, in_words
from gcflow.optimizers import ema_decay, learning_rate, make_optimizer, update_ema
from gcflow.oracles import Denoiser
from gcflow.precision import set_precision, tune
from gcflow.weights import content_hash, load_weights, spec_of

Loss = Callable[[Batch], Tensor]
# Of an image, at most.
CHANNELS = 4


@dataclass
class TrainingState:
    """All that a bit-exact continuation needs; random draws need nothing, they are functions of the step.

    step: number of completed steps. flat, flat_ema: their weights, each as one tensor. loss_sums [grains],
    loss_count: of the current logging window.
    """

    step: int
    model: PreconditionedNetwork
    ema: PreconditionedNetwork
    flat: FlatParameters
    flat_ema: FlatParameters
    optimizer: torch.optim.Optimizer
    loss_sums: Tensor
    loss_count: int

    def mean_loss(self) -> float:
        """Mean loss of the current logging window; 0 when it is empty."""
        return (self.loss_sums.sum() / max(1, self.loss_count)).item()

    def weights(self) -> dict[str, Tensor]:
        """`raw.*` and `ema.*` tensors."""
        raw = {f"raw.{name}": tensor for name, tensor in self.model.network.state_dict().items()}
        return raw | {f"ema.{name}": tensor for name, tensor in self.ema.network.state_dict().items()}

    def tensors(self) -> dict[str, Tensor]:
        """Everything, as flat named tensors."""
        slots = self.optimizer.state_dict()["state"].get(0, {})
        count = len(self.flat.parameters)
        moments = {
            f"optimizer.{i}.{name}": part
            for name, tensor in slots.items()
            for i, part in enumerate(self.flat.parts(tensor) if tensor.ndim else tensor.repeat(count))
        }
        window = {"window.loss_sums": self.loss_sums, "window.loss_count": torch.tensor(self.loss_count)}
        return self.weights() | moments | window

    def sha256(self) -> str:
        """Hash of weights, average and optimizer; how often a run speaks decides only its window of losses."""
        named = self.tensors().items()
        return content_hash({name: tensor for name, tensor in named if not name.startswith("window.")})

    def restore(self, tensors: dict[str, Tensor], step: int, path: Path) -> None:
        """Puts back what `tensors` gave at `step`; `path` is where they were read, for messages."""
        load_weights(self.model, tensors, "raw", path)
        load_weights(self.ema, tensors, "ema", path)
        slots: dict[str, Tensor] = {}
        for slot in {name.split(".")[2] for name in tensors if name.startswith("optimizer.")}:
            parts = [tensors[f"optimizer.{i}.{slot}"] for i in range(len(self.flat.parameters))]
            slots[slot] = self.flat.gather(parts) if parts[0].ndim else parts[0].clone()
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": {0: slots} if slots else {}})
        self.loss_sums = tensors["window.loss_sums"].to(self.loss_sums.device, copy=True)
        self.loss_count = int(tensors["window.loss_count"])
        self.step = step


class Observer:
    """The listener to the loop's progress and questions. The base class ignores everything."""

    def logged(self, record: dict[str, Any]) -> None:
        """A line of metrics.

        record: step, loss (mean since the last line), learning_rate, the schedule's quantities, mu, gradient_norm (of
        this step, before clipping), images_per_second (since the last line).
        """

    def checkpoint(self, state: TrainingState) -> None:
        """The state may be saved now (every `checkpoint_every` steps, and before a stop)."""

    def snapshot(self, state: TrainingState) -> None:
        """A snapshot step was reached."""

    def stop_requested(self) -> str | None:
        """A reason to save and stop now, or None."""
        return None


def initial_state(
    config: RunConfig, shape: tuple[int, ...], device: str = "cpu", start: PreconditionedNetwork | None = None
) -> TrainingState:
    """Untrained weights, or those of `start`; an EMA equal to them, and an empty optimizer."""
    model = spec_of(config, shape).build(config.seed)
    if start is not None:
        model.network.load_state_dict(start.network.state_dict())
    model = tune(model.to(device).train(), config.training)
    ema = spec_of(config, shape).build(config.seed)
    ema.network.load_state_dict(model.network.state_dict())
    ema = tune(ema.to(device).eval().requires_grad_(False), config.training)
    flat, flat_ema = FlatParameters(model), FlatParameters(ema)
    optimizer = make_optimizer([flat.tensor], config.training)
    loss_sums = torch.zeros(config.training.grains, dtype=torch.float64, device=device)
    return TrainingState(0, model, ema, flat, flat_ema, optimizer, loss_sums, 0)


@dataclass(frozen=True)
class Helpers:
    """The models that a method needs besides its own.

    predictor, teacher: the frozen weights that it refers to. exact: the data set's closed-form denoiser, if its teacher
    is `exact`.
    """

    predictor: PreconditionedNetwork | None = None
    teacher: PreconditionedNetwork | None = None
    exact: Denoiser | None = None


def objective_context(config: RunConfig, state: TrainingState, helpers: Helpers) -> ObjectiveContext:
    """The models and choices of a run, for its objective; see `make_loss`."""
    method, training = config.method, config.training
    predictors = {"ema": state.ema, "online": state.model}
    named = method.predictor if isinstance(method.predictor, str) else ""
    predictor = predictors.get(named, helpers.predictor)

    def predict(x: Tensor, sigma: Tensor, *dropout: Tensor) -> Tensor:
        assert predictor is not None
        return predictor(x, sigma, *dropout)

    denoiser = None
    if method.objective.distils:
        denoiser = helpers.exact if method.teacher == "exact" else helpers.teacher
        if denoiser is None:
            raise GcflowError(f"{config.name}: its teacher is not among the helpers: Helpers(teacher=...) or exact")
    return ObjectiveContext(
        student=state.model,
        teacher=state.model,
        coupling=method.coupling,
        predict=predict,
        distance=distance_for(training.distance, training.huber_c),
        process=config.process,
        denoiser=denoiser,
        predictor_drops=named == "online",
    )


def make_loss(config: RunConfig, state: TrainingState, helpers: Helpers) -> Loss:
    """The mean loss of a batch, as the run's objective has it.

    Args:
        config: the run.
        state: whose model is trained and whose EMA may predict endpoints.
        helpers: what the method needs besides.
    """
    objective, context = config.method.objective, objective_context(config, state, helpers)

    def loss(batch: Batch) -> Tensor:
        found: object = objective.mean_loss(batch, context)
        if not isinstance(found, Tensor) or found.ndim:
            problem = f"mean_loss gives {in_words(found)}; expected a scalar"
            raise GcflowError(f"objective {objective.kind}: {problem}")
        return found

    return loss


def describe(config: RunConfig, step: int) -> dict[str, Any]:
    """A run's state at `step`, for the log: its schedule's, and mu of generator augmentation."""
    record = config.training.schedule.describe(step, config.training.steps)
    return record | {"mu": config.mu_at(step)} if config.method.coupling.predicts else record


def require_finite(config: RunConfig, state: TrainingState) -> None:
    """Refuses a state that must not be saved.

    Raises:
        NonFiniteLoss: the mean loss since the last line, or a weight, is NaN or infinite.
    """
    loss = state.mean_loss()
    # Every NaN and infinity shows in the largest absolute value.
    sound = bool(state.flat.tensor.abs().max().isfinite())
    if not math.isfinite(loss) or not sound:
        found = f"loss is {loss}" if not math.isfinite(loss) else "a weight is not finite"
        raise NonFiniteLoss(
            f"{config.name}: {found} by step {state.step}; that state was not saved; "
            f"lower training.learning_rate ({config.training.learning_rate:g})"
        )


def require_samples(config: RunConfig, data: object) -> None:
    """Refuses what is no data set, or one that would be taken for another.

    Raises:
        GcflowError: it is no tensor, empty, or neither images with their channels first nor points.
    """
    images = isinstance(data, Tensor) and data.ndim == 4
    remedy = ""
    if isinstance(data, Tensor) and len(data):
        if images and data.is_floating_point():
            remedy = ": of values in [0, 1] it is (255 * data).round().to(torch.uint8)"
        elif images and data.shape[1] > CHANNELS >= data.shape[3]:
            remedy = ": with the channels last it is data.permute(0, 3, 1, 2)"
        elif (images and data.dtype == torch.uint8) or (data.ndim == 2 and data.dtype == torch.float32):
            return
    expected = "a tensor of images, uint8 [n, C, H, W], or points, float32 [n, d]"
    raise GcflowError(f"{config.name}: data are {in_words(data)}; expected {expected}{remedy}")


def add_up(gradient_of: Callable[[int], Tensor], grains: range) -> Tensor:
    """The sum of the gradients of `grains` along their tree; at most log2(grains) + 1 of its sums are in memory."""
    if len(grains) == 1:
        return gradient_of(grains.start)
    first, second = (add_up(gradient_of, half) for half in halves(grains))
    return first.add_(second)


def make_gradient(loss_of: Loss, training: TrainingConfig, flat: FlatParameters) -> Callable[[Batch], Gradient]:
    """A grain's part of the batch's mean loss, and its gradient in the layout of `flat`, as a function of the grain.

    Args:
        loss_of: the mean loss of a grain.
        training: which says how large the batch is.
        flat: the model's weights.
    """

    def gradient_of(grain: Batch) -> Gradient:
        loss = loss_of(grain) * (len(grain.data) / training.batch)
        return Gradient(loss.detach(), flat.gather(torch.autograd.grad(loss, flat.parameters, materialize_grads=True)))

    return gradient_of


def gradient_of_batch(
    gradient_of: Callable[[Batch], Gradient], grains: list[Batch], training: TrainingConfig, world: World
) -> tuple[Tensor, Tensor]:
    """The gradient of the global batch's mean loss, the same bits in every process.

    Args:
        gradient_of: see `make_gradient`.
        grains: those of this process.
        training: which says how many there are in all.
        world: this process's place.

    Returns:
        The gradient, and this process's grains' parts of the mean loss, float64 [grains].
    """
    own = world.share(training.grains)
    losses = torch.zeros(len(own), dtype=torch.float64, device=grains[0].data.device)

    def gradient_of_grain(grain: int) -> Tensor:
        place = grain - own.start
        losses[place], gradient = gradient_of(grains[place])
        return gradient

    gradient = add_up(gradient_of_grain, own)
    world.add_up_(gradient)
    return gradient, losses


class Update(NamedTuple):
    """A step of the optimizer. gradient_norm: before clipping, on the device; None if not asked for."""

    learning_rate: float
    gradient_norm: Tensor | None


def update(state: TrainingState, training: TrainingConfig, gradient: Tensor, measure_norm: bool) -> Update:
    """One step of the optimizer with a gradient in the layout of the weights, and of the EMA."""
    weights, norm = state.flat.tensor, None
    weights.grad = gradient
    if training.gradient_clip is not None or measure_norm:
        norm = nn.utils.get_total_norm(state.flat.parts(gradient))
    if training.gradient_clip is not None and norm is not None:
        nn.utils.clip_grads_with_norm_(weights, training.gradient_clip, norm)
    rate = learning_rate(state.step, training)
    for group in state.optimizer.param_groups:
        group["lr"] = rate
    state.optimizer.step()
    weights.grad = None
    decay = ema_decay(state.step, training)
    if decay is not None:
        update_ema(state.flat_ema.tensor, weights, decay)
    state.step += 1
    return Update(rate, norm)


def make_step(
    config: RunConfig, batches: Batches, state: TrainingState, helpers: Helpers, world: World
) -> Callable[[bool], Update]:
    """A step of training as a function that moves `state` by one; see `update`."""
    training, own = config.training, world.share(config.training.grains)
    gradient_of = make_gradient(make_loss(config, state, helpers), training, state.flat)
    if training.compile == "graph" and batches.device.type == "cuda":
        gradient_of = Replayed(gradient_of, partial(cuda_graph, batches.device, torch.cuda.graph_pool_handle()))

    def step(measure_norm: bool) -> Update:
        gradient, losses = gradient_of_batch(gradient_of, batches[state.step], training, world)
        state.loss_sums[own.start : own.stop] += losses
        state.loss_count += 1
        return update(state, training, gradient, measure_norm)

    return step


def train(
    config: RunConfig,
    data: Tensor,
    state: TrainingState,
    observer: Observer | None = None,
    cadence: Cadence | None = None,
    helpers: Helpers | None = None,
    world: World | None = None,
) -> TrainingState:
    """Trains from `state` to the last step of the configuration.

    Args:
        config: the run.
        data: the whole data set, from `gcflow.batches.resident`: uint8 images [n, C, H, W] or float32 points [n, d].
        state: from `initial_state`, or restored; its device is the device of training.
        observer: is told of progress and decides what is saved.
        cadence: how often it is told.
        helpers: see `make_loss`.
        world: this process's place among those of the run. Each is given the same state and data.

    Raises:
        GcflowError: the data are no tensor, or empty; a model that the method needs is not among the helpers.
        NonFiniteLoss: before anything of that step is saved.
        Preempted: the observer asked to stop; its `checkpoint` was called with the state.
    """
    require_samples(config, data)
    observer, cadence, world = observer or Observer(), cadence or Cadence(), world or World()
    training = config.training
    set_precision(training)
    device, own = state.loss_sums.device, world.share(training.grains)
    snapshots = set(training.snapshot_steps)
    window_start, window_images = time.perf_counter(), 0

    with Batches(config, data, device, world) as batches:
        take_step = make_step(config, batches, state, helpers or Helpers(), world)
        while state.step < training.steps:
            reason = observer.stop_requested()
            if world.any(reason is not None):
                world.complete_(state.loss_sums, own)
                require_finite(config, state)
                observer.checkpoint(state)
                reason = reason or "another of its processes was asked to stop"
                raise Preempted(f"{config.name}: {reason}; saved at step {state.step} of {training.steps}")

            step = state.step
            last = step + 1 == training.steps
            logging = (step + 1) % cadence.log_every == 0 or last
            rate, gradient_norm = take_step(logging)
            window_images += training.batch
            checkpointing = state.step % cadence.checkpoint_every == 0 or last
            if logging or checkpointing or state.step in snapshots:
                world.complete_(state.loss_sums, own)
                require_finite(config, state)
            if logging:
                now = time.perf_counter()
                record = {"step": state.step, "loss": state.mean_loss(), "learning_rate": rate}
                record |= describe(config, step)
                if gradient_norm is not None:
                    record["gradient_norm"] = float(gradient_norm)
                record["images_per_second"] = window_images / (now - window_start)
                observer.logged(record)
                state.loss_sums.zero_()
                state.loss_count = 0
                window_start, window_images = now, 0
            if state.step in snapshots:
                observer.snapshot(state)
            if checkpointing:
                observer.checkpoint(state)
    return state
