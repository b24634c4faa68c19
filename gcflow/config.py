"""What a run is: typed, frozen, with its ranges checked at construction.

These dataclasses know nothing of files. `gcflow.pipeline.params` builds them from `params.yaml`; a library user
builds them directly. Unknown keys are refused when they come from a file.
"""

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Any, Literal

from gcflow import register
from gcflow.couplings import Coupling
from gcflow.networks import Network, NetworkConfig, without_dropout
from gcflow.objectives import Objective
from gcflow.options import Strict, require
from gcflow.preconditioning import NoiseProcess, Preconditioning
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
    "kind_of",
    "run_config_from_dict",
    "to_dict",
    "without_dropout",
]

Weights = Literal["ema", "raw"]


@dataclass(frozen=True)
class TrainingConfig(Strict):
    """How long and with what a run is optimised. `batch` is the global batch size.

    snapshot_every: steps between saved weights (convergence curves are computed from them).
    gradient_clip: largest global norm of a gradient; null means none, as in the paper. One outlier of the rare large
    gradients stays in Lion's momentum for a hundred steps and can undo a run.
    ema_every: the average moves at the steps, from 0, that are divisible by it.
    ema_start: until this step each move is a copy of the weights.
    ema_ramp_up: the decay at step k is min(ema_decay, 1 - (1 + k - ema_start)^(-2/3)), after one more copy at the first
    move past ema_start, as ema-pytorch has it; without it the decay is ema_decay from ema_start on.
    huber_c: constant of the pseudo-Huber distance; null means 0.00054 sqrt(d), 0 the plain L2 norm.
    assignment: with several processes, whether optimal transport re-pairs the `global` batch or each `rank`'s share.
    micro_batch: most samples that pass through the network at once on each device; null means the whole share.
    precision: of the network's passes. `float32` is IEEE single, `tf32` lets tensor cores round the factors of
    products to 10 bits, `bfloat16` is autocast; weights, losses, optimizer and EMA are float32 always.
    compile: mode of torch.compile for the network, or `none`. `reduce-overhead` uses CUDA graphs.
    """

    steps: int
    batch: int
    learning_rate: float
    snapshot_every: int
    optimizer: Literal["lion", "adam", "radam"] = "lion"
    learning_rate_decay: Literal["none", "linear"] = "none"
    weight_decay: float = 0.0
    gradient_clip: float | None = None
    ema_decay: float = 0.9999
    ema_every: int = 1
    ema_start: int = 0
    ema_ramp_up: bool = False
    distance: Literal["pseudo-huber", "squared-l2"] = "pseudo-huber"
    huber_c: float | None = None
    assignment: Literal["global", "rank"] = "global"
    micro_batch: int | None = None
    precision: Literal["float32", "tf32", "bfloat16"] = "float32"
    channels_last: bool = True
    compile: Literal["none", "default", "reduce-overhead", "max-autotune"] = "none"
    cpu_threads: int = 1
    schedule: Annotated[Schedule, register.schedule] = field(default_factory=IctSchedule)

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "snapshot_every", "ema_every", "cpu_threads"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "an integer >= 1")
        require(self.learning_rate > 0, "learning_rate", self.learning_rate, "a number > 0")
        require(self.weight_decay >= 0, "weight_decay", self.weight_decay, "a number >= 0")
        clip = self.gradient_clip
        require(clip is None or clip > 0, "gradient_clip", clip, "a number > 0, or null")
        require(0 <= self.ema_decay < 1, "ema_decay", self.ema_decay, "a number in [0, 1)")
        require(self.ema_start >= 0, "ema_start", self.ema_start, "an integer >= 0")
        require(self.huber_c is None or self.huber_c >= 0, "huber_c", self.huber_c, "a number >= 0, or null")
        require(
            self.micro_batch is None or self.micro_batch >= 1,
            "micro_batch",
            self.micro_batch,
            "an integer >= 1, or null",
        )

    @property
    def snapshot_steps(self) -> list[int]:
        """Steps at which weights are kept for evaluation; the last step always is one of them."""
        steps = list(range(self.snapshot_every, self.steps + 1, self.snapshot_every))
        return steps if steps and steps[-1] == self.steps else [*steps, self.steps]


@dataclass(frozen=True)
class Cadence(Strict):
    """How often a run speaks and saves, in steps; no part of its identity, since it does not touch the weights."""

    log_every: int = 50
    checkpoint_every: int = 500

    def __post_init__(self) -> None:
        for name in ("log_every", "checkpoint_every"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "an integer >= 1")


@dataclass(frozen=True)
class RunReference(Strict):
    """Weights of another run of the same data set: its EMA at `step` (null: at the end).

    seed: null means the seed of the run that refers to it.
    """

    method: str
    step: int | None = None
    seed: int | None = None


@dataclass(frozen=True)
class CheckpointFile(Strict):
    """Weights in a file of `gcflow import-edm` or `gcflow train`; `file` is relative to the project's root."""

    file: str


class ByForm:
    """Makes pydantic take a mapping with `file` for a `CheckpointFile` and any other for a `RunReference`."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        from pydantic import Discriminator, Tag

        def form(value: Any) -> str:
            return "a file" if isinstance(value, dict) and "file" in value else "a run"

        run, file = Annotated[RunReference, Tag("a run")], Annotated[CheckpointFile, Tag("a file")]
        return handler.generate_schema(Annotated[run | file, Discriminator(form)])


FrozenWeights = Annotated[RunReference | CheckpointFile, ByForm()]


def _name(part: Any) -> str:
    return part if isinstance(part, str) else kind_of(part)


def _by_name(table: register.Table, key: str, name: str) -> Any:
    try:
        return table[name]()
    except register.UnknownName as error:
        raise register.UnknownName(f"{key}{str(error).removeprefix(table.key)}") from None
    except TypeError:
        expected = f"{{kind: {name}, ...}}, because it has options without a default"
        raise ValueError(f"{key} is {name!r}, expected {expected}") from None


@dataclass(frozen=True)
class MethodConfig(Strict):
    """One entry of the method algebra: objective x coupling x (mu, predictor) or x teacher, and where it starts.

    objective, coupling: the name of one, or one with its options.
    mu: probability that a sample takes the generator-augmented coupling; [start, end] changes linearly over training.
    mu_from_step: before this training step every pair is independent, from it on `mu` holds; null means from the start.
    predictor: what predicts the endpoint for `gc`: the model's EMA, the model itself (`online`) or frozen weights. A
    denoiser, which predicts no endpoints, takes frozen weights only.
    teacher: what gives the velocity for `distillation`: a trained denoiser, or `exact`, the closed-form denoiser
    of the data set (its empirical distribution, or its mixture).
    init: weights to start from; null means untrained ones.
    preconditioning: null means `edm` for denoisers and for ECT (whose boundary is sigma = 0), else `consistency`.
    sampling_boundary: where a consistency model of `edm` preconditioning is taken to be the identity when it is
    sampled; null means 0, as in training. ECT's code takes 0.003.
    """

    objective: str | Annotated[Objective, register.objective]
    coupling: str | Annotated[Coupling, register.coupling] = "ic"
    mu: float | tuple[float, float] | None = None
    mu_from_step: int | None = None
    predictor: Literal["ema", "online"] | FrozenWeights | None = None
    teacher: Literal["exact"] | FrozenWeights | None = None
    init: FrozenWeights | None = None
    preconditioning: Preconditioning | None = None
    sampling_boundary: float | None = None

    def __post_init__(self) -> None:
        criterion, objective, coupling = self.criterion, _name(self.objective), _name(self.coupling)
        if self.pairing.predicts:
            fits = not criterion.distils
            require(fits, "coupling", coupling, f"ic or ot, because objective is {objective}")
            expected = f"a number in [0, 1], or [start, end], because coupling is {coupling}"
            require(self.mu is not None, "mu", None, expected)
            if criterion.denoises:
                expected = "a consistency run or a file, because a denoiser predicts no endpoints"
                require("predictor" in self.frozen, "predictor", self.predictor, expected)
            else:
                expected = f"ema, online or a run, because coupling is {coupling}"
                require(self.predictor is not None, "predictor", None, expected)
            require(
                all(0 <= m <= 1 for m in self.mu_range), "mu", self.mu, "a number in [0, 1], or [start, end] in [0, 1]"
            )
            begins = self.mu_from_step is None or self.mu_from_step >= 0
            require(begins, "mu_from_step", self.mu_from_step, "an integer >= 0, or null")
        else:
            require(self.mu is None, "mu", self.mu, "no value unless coupling is gc")
            require(self.mu_from_step is None, "mu_from_step", self.mu_from_step, "no value unless coupling is gc")
            require(self.predictor is None, "predictor", self.predictor, "no value unless coupling is gc")
        if criterion.distils:
            require(self.teacher is not None, "teacher", None, "exact or a denoiser run, because it distils")
        else:
            require(self.teacher is None, "teacher", self.teacher, "no value unless objective is distillation")
        if criterion.denoises:
            other = self.preconditioning != "consistency"
            require(other, "preconditioning", self.preconditioning, "edm, vp or ve for a denoiser")

    @cached_property
    def criterion(self) -> Objective:
        """The objective itself.

        Raises:
            ValueError: there is none of this name, or it cannot do without options.
        """
        if isinstance(self.objective, Objective):
            return self.objective
        return _by_name(register.objective, "objective", self.objective)

    @cached_property
    def pairing(self) -> Coupling:
        """The coupling itself.

        Raises:
            ValueError: there is none of this name, or it cannot do without options.
        """
        if isinstance(self.coupling, Coupling):
            return self.coupling
        return _by_name(register.coupling, "coupling", self.coupling)

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


@dataclass(frozen=True)
class RunConfig(Strict):
    """Everything that decides the weights of one run, besides the bytes of its inputs."""

    dataset: str
    method_name: str
    seed: int
    process: NoiseProcess
    network: Network
    training: TrainingConfig
    method: MethodConfig

    def __post_init__(self) -> None:
        schedule, criterion = self.training.schedule, self.method.criterion
        fitting = [name for name, cls in register.schedule.classes.items() if cls.pairs == criterion.pairs]
        expected = f"{' or '.join(fitting)}, because objective is {criterion.kind}"
        require(schedule.pairs == criterion.pairs, "training.schedule.kind", schedule.kind, expected)
        at_zero = not (schedule.reaches_zero and self.preconditioning == "consistency")
        expected = f"edm, vp or ve, because the boundary of {schedule.kind} is sigma = 0"
        require(at_zero, "preconditioning", self.preconditioning, expected)

        moved = self.method.sampling_boundary
        fits = self.preconditioning == "edm" and not (criterion.denoises or criterion.distils)
        require(moved is None or fits, "sampling_boundary", moved, "no value but for a consistency model of ECT (edm)")
        within = moved is None or 0 <= moved < self.process.sigma_max
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
        return self.network, self.method.pairing, self.method.criterion, self.training.schedule

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
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    return plain


def kind_of(part: Any) -> str:
    """The word for a coupling, a metric or another config dataclass in params.yaml."""
    return str(to_dict(part)["kind"])


def digest(document: Any) -> str:
    """sha256 (hex) of a JSON document in canonical form."""
    return hashlib.sha256(json.dumps(document, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def run_config_from_dict(document: dict[str, Any]) -> RunConfig:
    """The inverse of `to_dict` for a run's configuration, as weights files carry it.

    Raises:
        UnknownName: its coupling, objective, schedule or network is of an extension that was not read.
    """
    training = {**document["training"], "schedule": register.schedule.of(document["training"]["schedule"])}
    method = {**document["method"]}
    for role in ("predictor", "teacher", "init"):
        if isinstance(method[role], dict):
            kind = CheckpointFile if "file" in method[role] else RunReference
            method[role] = kind(**method[role])
    if isinstance(method["mu"], list):
        method["mu"] = tuple(method["mu"])
    for key, table in (("coupling", register.coupling), ("objective", register.objective)):
        if isinstance(method[key], dict):
            method[key] = table.of(method[key])
    return RunConfig(
        dataset=document["dataset"],
        method_name=document["method_name"],
        seed=document["seed"],
        process=NoiseProcess(**document["process"]),
        network=register.network.of(document["network"]),
        training=TrainingConfig(**training),
        method=MethodConfig(**method),
    )
