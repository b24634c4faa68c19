"""The training loop, and the state that makes it resumable to the bit."""

import copy
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor

from gcflow.config import Cadence, MethodConfig, RunConfig, Weights, digest, run_config_from_dict, to_dict
from gcflow.errors import GcflowError, NonFiniteLoss, Preempted
from gcflow.files import atomic_path, opened_tensors, tensors_metadata
from gcflow.networks import build_network
from gcflow.objectives import ConsistencyObjective, DenoisingObjective, Objective
from gcflow.optimizers import ema_decay, learning_rate, make_optimizer, update_ema
from gcflow.oracles import Denoiser
from gcflow.preconditioning import PreconditionedNetwork, to_model_space
from gcflow.randomness import batch_indices, derived_seed
from gcflow.schedules import number_of_intervals


def model_kind(method: MethodConfig) -> Literal["consistency", "denoising"]:
    """Which preconditioning a method's model has: `denoising` or `consistency`."""
    return "denoising" if method.objective == "denoising" else "consistency"


def build_model(config: RunConfig, shape: tuple[int, ...]) -> PreconditionedNetwork:
    """The untrained model of a run for samples of `shape`; its initial weights depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(config.seed, "weights"))
        network = build_network(config.network, shape)
    return PreconditionedNetwork(network, model_kind(config.method), config.process)


@dataclass
class TrainingState:
    """All that a bit-exact continuation needs; random draws need nothing, they are functions of the step.

    step: number of completed steps. loss_sum, loss_count: the running mean of the current logging window.
    """

    step: int
    model: PreconditionedNetwork
    ema: PreconditionedNetwork
    optimizer: torch.optim.Optimizer
    loss_sum: Tensor
    loss_count: int

    def mean_loss(self) -> float:
        """Mean loss of the current logging window; 0 when it is empty."""
        return (self.loss_sum / max(1, self.loss_count)).item()

    def weights(self) -> dict[str, Tensor]:
        """`raw.*` and `ema.*` tensors."""
        raw = {f"raw.{name}": tensor for name, tensor in self.model.network.state_dict().items()}
        return raw | {f"ema.{name}": tensor for name, tensor in self.ema.network.state_dict().items()}

    def tensors(self) -> dict[str, Tensor]:
        """Everything, as flat named tensors."""
        slots = self.optimizer.state_dict()["state"]
        moments = {f"optimizer.{i}.{name}": tensor for i, slot in slots.items() for name, tensor in slot.items()}
        window = {"window.loss_sum": self.loss_sum, "window.loss_count": torch.tensor(self.loss_count)}
        return self.weights() | moments | window

    def restore(self, tensors: dict[str, Tensor], step: int) -> None:
        """Puts back what `tensors` gave at `step`."""
        load_weights(self.model, tensors, "raw")
        load_weights(self.ema, tensors, "ema")
        parameters = list(self.model.parameters())
        slots: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith("optimizer."):
                _, index, slot = name.split(".")
                # In the parameter's memory layout, which fused optimizers take for granted and files do not keep.
                like = parameters[int(index)] if tensor.ndim else tensor
                slots.setdefault(int(index), {})[slot] = torch.empty_like(like, dtype=tensor.dtype).copy_(tensor)
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": slots})
        self.loss_sum = tensors["window.loss_sum"].to(self.loss_sum.device, copy=True)
        self.loss_count = int(tensors["window.loss_count"])
        self.step = step


def load_weights(model: PreconditionedNetwork, tensors: dict[str, Tensor], weights: Weights) -> None:
    """Loads the `ema.*` or `raw.*` tensors into a model's network."""
    prefix = f"{weights}."
    model.network.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    """Writes a safetensors file in one atomic, synced step. Equal content gives equal bytes.

    Raises:
        GcflowError: it could not be written (a full disk, say); a file that was at `path` is still there.
    """
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        with atomic_path(path) as temporary:
            # One key, because safetensors writes several in an order that differs between processes.
            temporary.write_bytes(save(contiguous, {"gcflow": json.dumps(metadata)}))
    except (OSError, SafetensorError) as error:
        raise GcflowError(f"{path}: cannot be written ({error}); nothing was overwritten") from None


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads what `save_tensors` wrote, on the CPU.

    Raises:
        GcflowError: the file is missing, damaged or not ours.
    """
    with opened_tensors(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, tensors_metadata(file)  # noqa: SIM118


def weights_metadata(config: RunConfig, step: int, shape: tuple[int, ...]) -> dict[str, Any]:
    """The header of every weights file: what is needed to rebuild the model, and what it is."""
    document = to_dict(config)
    return {"config": document, "config_hash": digest(document), "step": step, "shape": list(shape)}


def load_model(path: Path, weights: Weights = "ema", device: str = "cpu") -> tuple[PreconditionedNetwork, RunConfig]:
    """The model stored in a weights or snapshot file, in evaluation mode, and its run's configuration.

    Raises:
        GcflowError: the file is missing or damaged, or is not a weights file.
    """
    tensors, metadata = load_tensors(path)
    if "config" not in metadata or "shape" not in metadata:
        raise GcflowError(f"{path}: has no gcflow header; expected weights written by `gcflow train`")
    try:
        config = run_config_from_dict(metadata["config"])
    except (KeyError, TypeError, ValueError) as error:
        raise GcflowError(f"{path}: its header is of another version of gcflow ({error}); train it again") from None
    model = build_model(config, tuple(metadata["shape"]))
    try:
        load_weights(model, tensors, weights)
    except RuntimeError:
        raise GcflowError(f"{path}: lacks {weights} weights of the network that its header describes") from None
    return model.to(device).eval().requires_grad_(False), config


class Observer:
    """What the loop tells about its progress, and asks. The base class ignores everything."""

    def logged(self, record: dict[str, Any]) -> None:
        """A line of metrics: step, loss (mean since the last line), images_per_second, learning_rate, intervals."""

    def checkpoint(self, state: TrainingState) -> None:
        """The state may be saved now (every `checkpoint_every` steps, and before a stop)."""

    def snapshot(self, state: TrainingState) -> None:
        """A snapshot step was reached."""

    def stop_requested(self) -> str | None:
        """A reason to save and stop now, or None."""
        return None


def initial_state(config: RunConfig, shape: tuple[int, ...], device: str = "cpu") -> TrainingState:
    """Untrained weights, an EMA equal to them, and an empty optimizer."""
    model = build_model(config, shape).to(device).train()
    ema = copy.deepcopy(model).eval().requires_grad_(False)
    optimizer = make_optimizer(model.parameters(), config.training)
    return TrainingState(0, model, ema, optimizer, torch.zeros((), dtype=torch.float64, device=device), 0)


def make_objective(
    config: RunConfig, state: TrainingState, frozen: PreconditionedNetwork | None, exact: Denoiser | None
) -> Objective:
    """The objective of a run.

    Args:
        config: the run.
        state: whose model is trained and whose EMA may predict endpoints.
        frozen: the model of the run that the method refers to, if it does.
        exact: the data set's closed-form denoiser, if the method's teacher is `exact`.
    """
    if config.method.objective == "denoising":
        return DenoisingObjective(config, state.model)
    predictors = {"ema": state.ema, "online": state.model}
    predictor = predictors.get(config.method.predictor, frozen) if isinstance(config.method.predictor, str) else frozen

    @torch.no_grad()
    def predict(x: Tensor, sigma: Tensor) -> Tensor:
        assert predictor is not None
        return predictor(x, sigma)

    denoiser = None
    if config.method.objective == "distillation":
        denoiser = exact if config.method.teacher == "exact" else frozen
    return ConsistencyObjective(config, state.model, predict, denoiser)


def require_finite(config: RunConfig, state: TrainingState) -> None:
    """Refuses a state that must not be saved.

    Raises:
        NonFiniteLoss: the mean loss since the last line, or a weight, is NaN or infinite.
    """
    loss = state.mean_loss()
    sound = all(bool(torch.isfinite(parameter).all()) for parameter in state.model.parameters())
    if not math.isfinite(loss) or not sound:
        found = f"loss is {loss}" if not math.isfinite(loss) else "a weight is not finite"
        raise NonFiniteLoss(
            f"{config.name}: {found} by step {state.step}; the checkpoint before it was kept; "
            f"lower training.learning_rate ({config.training.learning_rate:g})"
        )


def train(
    config: RunConfig,
    data: Tensor,
    state: TrainingState,
    observer: Observer | None = None,
    cadence: Cadence | None = None,
    frozen: PreconditionedNetwork | None = None,
    exact: Denoiser | None = None,
) -> TrainingState:
    """Trains from `state` to the last step of the configuration.

    Args:
        config: the run.
        data: the whole data set on the device of training: uint8 images [n, C, H, W] or float32 points [n, d].
        state: from `initial_state`, or restored.
        observer: is told of progress and decides what is saved.
        cadence: how often it is told.
        frozen: see `make_objective`.
        exact: see `make_objective`.

    Raises:
        NonFiniteLoss: before anything of that step is saved.
        Preempted: the observer asked to stop; its `checkpoint` was called with the state.
    """
    observer, cadence = observer or Observer(), cadence or Cadence()
    training = config.training
    objective = make_objective(config, state, frozen, exact)
    model_parameters = list(state.model.parameters())
    ema_parameters = list(state.ema.parameters())
    snapshots = set(training.snapshot_steps)
    window_start, window_images = time.perf_counter(), 0

    while state.step < training.steps:
        if (reason := observer.stop_requested()) is not None:
            require_finite(config, state)
            observer.checkpoint(state)
            raise Preempted(f"{config.name}: {reason}; saved at step {state.step} of {training.steps}")

        step = state.step
        indices = batch_indices(config.seed, step, training.batch, len(data)).to(data.device)
        loss = objective(to_model_space(data[indices], config.process), step)
        state.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if training.gradient_clip is not None:
            torch.nn.utils.clip_grad_norm_(model_parameters, training.gradient_clip)
        rate = learning_rate(step, training)
        for group in state.optimizer.param_groups:
            group["lr"] = rate
        state.optimizer.step()
        update_ema(ema_parameters, model_parameters, ema_decay(step, training))

        state.step += 1
        state.loss_sum += loss.detach()
        state.loss_count += 1
        window_images += training.batch
        last = state.step == training.steps
        logging = state.step % cadence.log_every == 0 or last
        checkpointing = state.step % cadence.checkpoint_every == 0 or last
        if logging or checkpointing or state.step in snapshots:
            require_finite(config, state)
        if logging:
            now = time.perf_counter()
            record = {"step": state.step, "loss": state.mean_loss(), "learning_rate": rate}
            if config.method.objective != "denoising":
                record["intervals"] = number_of_intervals(step, training.steps, training.schedule)
            record["images_per_second"] = window_images / (now - window_start)
            observer.logged(record)
            state.loss_sum.zero_()
            state.loss_count = 0
            window_start, window_images = now, 0
        if state.step in snapshots:
            observer.snapshot(state)
        if checkpointing:
            observer.checkpoint(state)
    return state
