"""What a run is: typed, frozen, with its ranges checked at construction.

These blocks know nothing of files. `gcflow.pipeline.params` builds them from `params.yaml`; a library user builds them
directly. docs/params.md is written from the descriptions here.
"""

import hashlib
import json
import random
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Discriminator, Field, Tag, field_serializer

from gcflow import register
from gcflow.couplings import Coupling
from gcflow.networks import Network, NetworkConfig, without_dropout
from gcflow.objectives import Objective
from gcflow.options import Count, Line, Many, Options, Seed, adapter, require
from gcflow.preconditioning import NoiseProcess, Preconditioning
from gcflow.randomness import derived_seed
from gcflow.schedules import EctSchedule, EdmSchedule, IctSchedule, Schedule

# All that a run is made of can be had from here.
__all__ = [
    "Cadence",
    "CheckpointFile",
    "EctSchedule",
    "EdmSchedule",
    "FrozenWeights",
    "IctSchedule",
    "MethodConfig",
    "NetworkConfig",
    "NoiseProcess",
    "Preconditioning",
    "RunConfig",
    "RunReference",
    "TrainingConfig",
    "Weights",
    "check_start",
    "differing_keys",
    "digest",
    "from_dict",
    "process_counts",
    "to_dict",
    "without_dropout",
]

T = TypeVar("T")
Weights = Literal["ema", "raw"]
MOST_SNAPSHOTS = 10_000
Share = Annotated[float, Field(ge=0, le=1)]


class TrainingConfig(Options):
    """How long and with what a run is optimised."""

    steps: int = Field(ge=1, le=10**9, description="steps of the optimizer")
    batch: int = Field(ge=1, le=10**6, description="samples per step, over all processes")
    learning_rate: float = Field(gt=0, le=1e30, description="of the optimizer")
    snapshot_every: Many = Field(description="steps between saved weights, from which convergence curves are computed")
    optimizer: Literal["lion", "adam", "radam"] = Field(default="lion", description="Lion as in the paper, or another")
    learning_rate_decay: Literal["none", "linear"] = Field(
        default="none", description="`linear`: to 0 at the end of training"
    )
    weight_decay: float = Field(default=0.0, ge=0, le=1000, description="of the optimizer; Lion's is decoupled")
    gradient_clip: float | None = Field(
        default=None,
        gt=0,
        le=10**9,
        description="largest global norm of a gradient; null means none, as in the paper. One outlier stays in Lion's "
        "momentum for a hundred steps and can undo a run",
    )
    ema_decay: float = Field(
        default=0.9999, ge=0, lt=1, description="of the average that is sampled from and predicts endpoints; the most"
    )
    ema_every: Many = Field(default=1, description="the average moves at steps, from 0, divisible by this")
    ema_start: int = Field(default=0, ge=0, le=10**9, description="until this step each move is a copy of the weights")
    ema_ramp_up: bool = Field(
        default=False,
        description="the decay at step k is min(ema_decay, 1 - (1 + k - ema_start)^(-2/3)), after one more copy at the "
        "first move past ema_start, as ema-pytorch has it; without it, ema_decay from ema_start on",
    )
    distance: Literal["pseudo-huber", "squared-l2"] = Field(
        default="pseudo-huber", description="between the two endpoints; a denoiser has its own"
    )
    huber_c: float | None = Field(
        default=None,
        ge=0,
        le=10**6,
        description="constant of pseudo-Huber; null means 0.00054 sqrt(d), 0 the plain L2 norm",
    )
    grain: Count | None = Field(
        default=None,
        description="samples that pass at once, a divisor of batch: gradients of grains add up in a fixed tree, so "
        "that 1, 2, 4, ... processes, at most one per grain, end with the same bits; null means the whole batch",
    )
    precision: Literal["float32", "tf32", "bfloat16"] = Field(
        default="float32",
        description="of the network's passes: IEEE single; factors of products rounded to 10 bits; autocast. Weights, "
        "loss, optimizer and EMA are float32 always",
    )
    channels_last: bool = Field(default=True, description="memory layout of convolutions")
    compile: Literal["none", "fused", "graph", "default"] = Field(
        default="none",
        description="`fused`: on a GPU a U-Net's norms are Triton kernels, with the sums before and SiLU and dropout "
        "after them; `graph`: all kernels of a grain are one CUDA graph besides; `default`: torch.compile",
    )
    cpu_threads: int = Field(default=1, ge=1, le=1024, description="threads of each process on the CPU")
    schedule: Annotated[Schedule, register.schedule] = Field(
        default_factory=IctSchedule, description="which noise levels are trained on"
    )

    def __post_init__(self) -> None:
        fits = self.grain is None or self.batch % self.grain == 0
        require(fits, "grain", self.grain, f"a divisor of batch, {self.batch}")
        few = self.steps // self.snapshot_every <= MOST_SNAPSHOTS
        require(few, "snapshot_every", self.snapshot_every, f"so many steps that there are at most {MOST_SNAPSHOTS}")

    @property
    def fused(self) -> bool:
        """Whether a U-Net's norms are Triton kernels on a GPU."""
        return self.compile in ("fused", "graph")

    @property
    def grains(self) -> int:
        """Number of grains in a batch."""
        return self.batch // (self.grain or self.batch)

    @property
    def snapshot_steps(self) -> list[int]:
        """Steps at which weights are kept for evaluation; the last step always is one of them."""
        steps = list(range(self.snapshot_every, self.steps + 1, self.snapshot_every))
        return steps if steps and steps[-1] == self.steps else [*steps, self.steps]


def process_counts(grains: int) -> list[int]:
    """How many processes can share a batch of so many grains: subtrees of their sum."""
    return [1 << power for power in range(grains.bit_length())]


class Cadence(Options):
    """How often a run speaks and saves; no part of its identity, since it does not touch the weights."""

    log_every: Many = Field(default=50, description="steps between lines of metrics.jsonl")
    checkpoint_every: Many = Field(default=500, description="steps between checkpoints that a stopped run goes on from")
    keep_states: int = Field(
        default=1, ge=0, le=1000, description="checkpoints, drawn from the seed, that stay for `gcflow verify --replay`"
    )

    def kept_steps(self, seed: int, steps: int) -> list[int]:
        """At which steps before the last the state of a run is kept, in order."""
        possible = range(self.checkpoint_every, steps, self.checkpoint_every)
        drawn = random.Random(derived_seed(seed, "kept states")).sample(possible, min(self.keep_states, len(possible)))
        return sorted(drawn)


class RunReference(Options):
    """Weights of another run of the same data set: its EMA."""

    method: str = Field(description="the other run's method")
    step: Many | None = Field(default=None, description="of one of its snapshots; null means the last")
    seed: Seed | None = Field(default=None, description="its seed; null means that of the run that refers to it")


class CheckpointFile(Options):
    """Weights in a file."""

    file: Line = Field(description="of `gcflow import-edm` or `gcflow train`, relative to the project's root")


def _form(value: Any) -> str:
    file = isinstance(value, CheckpointFile) or (isinstance(value, dict) and "file" in value)
    return "a file" if file else "a run"


FrozenWeights = Annotated[
    Annotated[RunReference, Tag("a run")] | Annotated[CheckpointFile, Tag("a file")], Discriminator(_form)
]


class MethodConfig(Options):
    """One entry of the method algebra: objective x coupling x (mu, predictor) or x teacher, and where it starts."""

    objective: Annotated[Objective, register.objective] = Field(
        description="`consistency` CT (Eq. 6), `distillation` CD (Eq. 4, with the Euler step of Eq. 5), `denoising` a "
        "diffusion model (EDM), or an extension's: its name, or {kind: name, ...} with its options"
    )
    coupling: Annotated[Coupling, register.coupling] = Field(  # type: ignore[assignment]
        default="ic",
        description="`ic` independent, `ot` minibatch optimal transport, `gc` generator-augmented, or an extension's: "
        "its name, or {kind: name, ...} with its options (Section 4.1, Eqs. 13 to 15)",
    )
    mu: Share | tuple[Share, Share] | None = Field(
        default=None,
        description="for `gc`: share of generator-augmented pairs; [start, end] changes linearly over training "
        "(Section 5.2, Eq. 21, Figure 5)",
    )
    mu_from_step: int | None = Field(
        default=None,
        ge=0,
        le=10**9,
        description="for `gc`: before this training step every pair is independent; null means none",
    )
    predictor: Literal["ema", "online"] | FrozenWeights | None = Field(
        default=None,
        description="for `gc`: what predicts endpoints: the model's EMA, the model itself (`online`, which drops by a "
        "mask of its own) or frozen weights, which a denoiser needs (Table 3; Section 5.1, Figure 4)",
    )
    teacher: Literal["exact"] | FrozenWeights | None = Field(
        default=None,
        description="for `distillation`: a trained denoiser, or `exact`, the closed-form denoiser of the data set (its "
        "empirical distribution, or its mixture) (Eqs. 4 and 5)",
    )
    init: FrozenWeights | None = Field(
        default=None, description="weights to start from; null means untrained ones (Section 5.3, Table 2)"
    )
    preconditioning: Preconditioning | None = Field(
        default=None,
        description="null means `edm` for denoisers and for ECT (whose boundary is sigma = 0), else `consistency`",
    )
    sampling_boundary: float | None = Field(
        default=None,
        ge=0,
        le=10**6,
        description="where a consistency model of `edm` preconditioning is taken to be the identity when it is "
        "sampled; null means 0, as in training. ECT's code takes 0.003",
    )

    def __post_init__(self) -> None:
        objective, coupling = self.objective, self.coupling
        if coupling.predicts:
            fits = not objective.distils
            require(fits, "coupling", coupling.kind, f"ic or ot, because objective is {objective.kind}")
            expected = f"a number in [0, 1], or [start, end], because coupling is {coupling.kind}"
            require(self.mu is not None, "mu", None, expected)
            if objective.denoises:
                expected = "a consistency run or a file, because a denoiser predicts no endpoints"
                require("predictor" in self.frozen, "predictor", self.predictor, expected)
            else:
                expected = f"ema, online or a run, because coupling is {coupling.kind}"
                require(self.predictor is not None, "predictor", None, expected)
        else:
            for name in ("mu", "mu_from_step", "predictor"):
                value = getattr(self, name)
                require(value is None, name, value, "no value unless coupling is gc")
        if objective.distils:
            require(self.teacher is not None, "teacher", None, "exact or a denoiser run, because it distils")
        else:
            require(self.teacher is None, "teacher", self.teacher, "no value unless objective is distillation")
        if objective.denoises:
            other = self.preconditioning != "consistency"
            require(other, "preconditioning", self.preconditioning, "edm, vp or ve for a denoiser")

    @field_serializer("objective", "coupling")
    def _by_name(self, part: Objective | Coupling) -> Any:
        """A part without options of its own is written as its name."""
        options = {name: field.default for name, field in part.__pydantic_fields__.items() if name != "kind"}
        plain = all(getattr(part, name) == default for name, default in options.items())
        return part.kind if plain else to_dict(part)

    @property
    def mu_range(self) -> tuple[float, float]:
        """(start, end) of the share of generator-augmented samples; (0, 0) without that coupling."""
        if self.mu is None:
            return (0.0, 0.0)
        return self.mu if isinstance(self.mu, tuple) else (self.mu, self.mu)

    @property
    def frozen(self) -> "dict[str, RunReference | CheckpointFile]":
        """Role (`predictor`, `teacher`, `init`) to the weights from elsewhere that this method needs in it."""
        roles = {role: getattr(self, role) for role in ("predictor", "teacher", "init")}
        return {role: value for role, value in roles.items() if isinstance(value, RunReference | CheckpointFile)}


class RunConfig(Options):
    """Everything that decides the weights of one run, besides the bytes of its inputs."""

    dataset: str
    method_name: str
    seed: Seed
    process: NoiseProcess
    network: Annotated[Network, register.network]
    training: TrainingConfig
    method: MethodConfig

    def __post_init__(self) -> None:
        schedule, objective = self.training.schedule, self.method.objective
        fitting = [name for name, cls in register.schedule.classes.items() if cls.pairs == objective.pairs]
        expected = f"{' or '.join(fitting)}, because objective is {objective.kind}"
        require(schedule.pairs == objective.pairs, "training.schedule.kind", schedule.kind, expected)
        at_zero = not (schedule.reaches_zero and self.preconditioning == "consistency")
        expected = f"edm, vp or ve, because the boundary of {schedule.kind} is sigma = 0"
        require(at_zero, "preconditioning", self.preconditioning, expected)

        moved = self.method.sampling_boundary
        fits = self.preconditioning == "edm" and not (objective.denoises or objective.distils)
        require(moved is None or fits, "sampling_boundary", moved, "no value but for a consistency model of ECT (edm)")
        within = moved is None or moved < self.process.sigma_max
        require(within, "sampling_boundary", moved, "a noise level >= 0 and below sigma_max, or null")

        begin, steps = self.method.mu_from_step, self.training.steps
        expected = f"less than training.steps, {steps}, or mu would be 0 throughout"
        require(begin is None or begin < steps, "mu_from_step", begin, expected)
        schedule.check(steps)

    @property
    def preconditioning(self) -> Preconditioning:
        """The preconditioning of this run's model."""
        if self.method.preconditioning is not None:
            return self.method.preconditioning
        schedule = self.training.schedule
        return "consistency" if schedule.pairs and not schedule.reaches_zero else "edm"

    def mu_at(self, step: int) -> float:
        """Share of generator-augmented samples at `step`: 0 before `mu_from_step`, else linear from start to end."""
        start, end = self.method.mu_range
        if self.method.mu_from_step is not None and step < self.method.mu_from_step:
            return 0.0
        return start + (end - start) * step / self.training.steps

    @property
    def parts(self) -> tuple[Network, Coupling, Objective, Schedule]:
        """What of this run an extension may have brought."""
        return self.network, self.method.coupling, self.method.objective, self.training.schedule

    @property
    def name(self) -> str:
        """`data set/method/seed`, the run's name everywhere."""
        return f"{self.dataset}/{self.method_name}/{self.seed}"


def check_start(network: Network, preconditioning: Preconditioning, process: NoiseProcess, config: RunConfig) -> None:
    """Whether weights of such a model can start the run `config`.

    The consistency and the EDM preconditioning differ by the boundary alone (sigma_min or 0) and count as equal.

    Raises:
        ValueError: they cannot; the message says why, and what to set.
    """
    if without_dropout(network) != without_dropout(config.network):
        raise ValueError("whose network has another shape; give both the same network (dropout may differ)")
    same = {"consistency": "edm"}
    if same.get(preconditioning, preconditioning) != same.get(config.preconditioning, config.preconditioning):
        raise ValueError(f"whose preconditioning is {preconditioning}; set preconditioning: {preconditioning}")
    # VP and VE do without sigma_data.
    for key in ("data_mean",) if preconditioning in ("vp", "ve") else ("sigma_data", "data_mean"):
        theirs = getattr(process, key)
        if theirs != getattr(config.process, key):
            raise ValueError(f"which was made for process.{key} = {theirs:g}, not {getattr(config.process, key):g}")


def differing_keys(one: Any, other: Any) -> list[str]:
    """The dotted keys whose values differ between two JSON documents."""
    first, second = _flat(one), _flat(other)
    return sorted(key for key in first.keys() | second.keys() if first.get(key) != second.get(key))


def _flat(document: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(document, dict):
        return {prefix.removesuffix("."): document}
    return {k: v for key, value in document.items() for k, v in _flat(value, f"{prefix}{key}.").items()}


def to_dict(config: Any) -> dict[str, Any]:
    """A config dataclass as plain JSON values."""
    block: Any = type(config)
    plain: dict[str, Any] = adapter(block).dump_python(config, mode="json")
    return plain


def digest(document: Any) -> str:
    """sha256 (hex) of a JSON document in canonical form."""
    return hashlib.sha256(json.dumps(document, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def from_dict(kind: type[T], document: Any) -> T:
    """The inverse of `to_dict`.

    Raises:
        ValidationError: the document is no such block. Of a coupling or a network of an extension that was not read
            an error has the type `unknown_name`.
    """
    # Through JSON, in which a tuple is a list, and a text no number.
    block: Any = kind
    read: T = adapter(block).validate_json(json.dumps(document))
    return read
