"""What a run is: typed, frozen, with its ranges checked at construction.

These blocks know nothing of files. `gcflow.pipeline.params` builds them from `params.yaml`; a library user builds them
directly. docs/params.md is written from the descriptions here.
"""

import dataclasses
import hashlib
import json
import math
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import Discriminator, Field, Tag

from gcflow import register
from gcflow.options import Count, Options, adapter, require
from gcflow.register import Coupling, Network

if TYPE_CHECKING:
    from torch import nn

T = TypeVar("T")
Weights = Literal["ema", "raw"]
Preconditioning = Literal["consistency", "edm", "vp", "ve"]
Share = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(ge=0, lt=1)]
# Of the 24 that a float32 has, those that the difference of two noise levels may be short of.
SINGLE_PRECISION_BITS = 20


class NoiseProcess(Options):
    """The EDM process x_t = x* + sigma_t z, sigma_t = t, and the scale of the data it noises."""

    sigma_min: float = Field(default=0.002, gt=0, description="sigma_0 of the paper: the least noise level")
    sigma_max: float = Field(default=80.0, gt=0, description="sigma_T of the paper: the largest; above sigma_min")
    rho: float = Field(default=7.0, ge=1, description="curvature of the noise levels between them")
    sigma_data: float = Field(default=0.5, gt=0, description="standard deviation of the (centred) data in [-1, 1]")
    data_mean: float = Field(
        default=0.0, description="subtracted from data in [-1, 1] before noising, added back to samples; 0 in the paper"
    )

    def __post_init__(self) -> None:
        require(self.sigma_max > self.sigma_min, "sigma_max", self.sigma_max, "a number > sigma_min")


@register.network
class NetworkConfig(Network):
    """gcflow's own networks (`gcflow.networks`): two U-Nets of EDM, for images, and an MLP on the flat sample."""

    architecture: Literal["ddpm++", "ncsn++", "mlp"] = Field(
        description="`ddpm++`, `ncsn++`: EDM's U-Nets, for images; `mlp`: residual MLP, for any sample"
    )
    channels: int = Field(
        ge=1, description="width: of the finest level of a U-Net (a multiple of 4), of an MLP's layers"
    )
    blocks: Count | tuple[Count, ...] = Field(
        description="residual blocks: one number, or one per level of a U-Net, from the finest"
    )
    multipliers: tuple[Count, ...] = Field(
        default=(1,), min_length=1, description="of `channels`, one per level of a U-Net, from the finest"
    )
    attention: tuple[int, ...] = Field(
        default=(), description="sides (pixels) of the levels whose blocks attend, besides the bottleneck of a U-Net"
    )
    dropout: Rate | tuple[Rate, ...] = Field(
        default=0.0, description="dropout rate: one number, or one per level of a U-Net, from the finest"
    )
    label_dim: int = Field(default=0, ge=0, description="size of EDM's class embedding; 0 leaves it out")
    augment_dim: int = Field(default=0, ge=0, description="size of EDM's augmentation embedding; 0 leaves it out")

    def __post_init__(self) -> None:
        levels = len(self.multipliers)
        for name in ("blocks", "dropout"):
            value = getattr(self, name)
            if isinstance(value, tuple):
                require(self.architecture != "mlp", name, list(value), "one value for an mlp, which has no levels")
                require(len(value) == levels, name, list(value), f"one value, or one per level ({levels} multipliers)")
        if self.architecture != "mlp":
            require(self.channels % 4 == 0, "channels", self.channels, "a multiple of 4 for a U-Net")
            return
        unused: dict[str, Any] = {"attention": (), "multipliers": (1,), "label_dim": 0, "augment_dim": 0}
        for name, default in unused.items():
            value = getattr(self, name)
            require(value == default, name, list(value) if isinstance(value, tuple) else value, "no value for an mlp")

    @property
    def blocks_per_level(self) -> tuple[int, ...]:
        """Residual blocks of each level."""
        return self.blocks if isinstance(self.blocks, tuple) else (self.blocks,) * len(self.multipliers)

    @property
    def dropout_per_level(self) -> tuple[float, ...]:
        """Dropout rate of each level."""
        return self.dropout if isinstance(self.dropout, tuple) else (self.dropout,) * len(self.multipliers)

    def build(self, shape: tuple[int, ...]) -> "nn.Module":
        """The network for images [C, H, W] or points [d].

        Raises:
            ValueError: a U-Net for data that are not images, or whose size its levels cannot halve.
        """
        from gcflow.networks import build_network

        return build_network(self, shape)


def without_dropout(network: Network) -> Network:
    """The same network as far as its speed and its weights go."""
    without: Any = {"dropout": 0.0} if "dropout" in type(network).__pydantic_fields__ else {}
    return dataclasses.replace(network, **without)


class IctSchedule(Options):
    """iCT's curriculum (Song & Dhariwal 2024): N(k) intervals from s0 to s1, chosen with a normal density in ln sigma.

    N(k) depends on the length of training: whatever it is, s0 doubles in equal parts of it until s1.
    """

    s0: int = Field(default=10, ge=1, description="intervals at first")
    s1: int = Field(default=1280, ge=1, description="most intervals; at least s0")
    p_mean: float = Field(default=-1.1, description="mean of ln sigma")
    p_std: float = Field(default=2.0, gt=0, description="standard deviation of ln sigma")
    kind: Literal["ict"] = "ict"

    def __post_init__(self) -> None:
        require(self.s1 >= self.s0, "s1", self.s1, "an integer >= s0")


class EctSchedule(Options):
    """ECT's continuous pairs of noise levels r < t (Geng et al. 2024; the paper's Section 5.3).

    ln t ~ N(p_mean, p_std^2), r = max(0, t (1 - q^-(stage + 1) (1 + k sigmoid(-b t)))). The length of training does not
    stretch the stages: a shorter training ends in an earlier one, a longer one goes on to further ones.
    """

    q: float = Field(default=2.0, gt=1, description="base of the gap between r and t, see above")
    k: float = Field(default=8.0, ge=0, description="how much wider the gap is at small t")
    b: float = Field(default=1.0, description="how fast that ends as t grows")
    stage_every: int | None = Field(
        default=None, ge=1, description="steps after which the stage rises by one; null keeps it at 0"
    )
    p_mean: float = Field(default=-1.1, description="mean of ln t")
    p_std: float = Field(default=2.0, gt=0, description="standard deviation of ln t")
    kind: Literal["ect"] = "ect"

    def stage(self, step: int) -> int:
        """The stage at `step` (from 0): that of ECT's code, whose first step stands apart, before the first period."""
        return 0 if self.stage_every is None else max(0, step - 1) // self.stage_every


class EdmSchedule(Options):
    """Noise levels of a denoiser's training: ln sigma ~ N(p_mean, p_std^2) (Karras et al. 2022, table 1)."""

    p_mean: float = Field(default=-1.2, description="mean of ln sigma")
    p_std: float = Field(default=1.2, gt=0, description="standard deviation of ln sigma")
    kind: Literal["edm"] = "edm"


Schedule = IctSchedule | EctSchedule | EdmSchedule


class TrainingConfig(Options):
    """How long and with what a run is optimised."""

    steps: int = Field(ge=1, description="steps of the optimizer")
    batch: int = Field(ge=1, description="samples per step, over all processes")
    learning_rate: float = Field(gt=0, description="of the optimizer")
    snapshot_every: int = Field(
        ge=1, description="steps between saved weights, from which convergence curves are computed"
    )
    optimizer: Literal["lion", "adam", "radam"] = Field(default="lion", description="Lion as in the paper, or another")
    learning_rate_decay: Literal["none", "linear"] = Field(
        default="none", description="`linear`: to 0 at the end of training"
    )
    weight_decay: float = Field(default=0.0, ge=0, description="of the optimizer; Lion's is decoupled")
    gradient_clip: float | None = Field(
        default=None,
        gt=0,
        description="largest global norm of a gradient; null means none, as in the paper. One outlier stays in Lion's "
        "momentum for a hundred steps and can undo a run",
    )
    ema_decay: float = Field(
        default=0.9999, ge=0, lt=1, description="of the average that is sampled from and predicts endpoints; the most"
    )
    ema_every: int = Field(default=1, ge=1, description="the average moves at steps, from 0, divisible by this")
    ema_start: int = Field(default=0, ge=0, description="until this step each move is a copy of the weights")
    ema_ramp_up: bool = Field(
        default=False,
        description="the decay at step k is min(ema_decay, 1 - (1 + k - ema_start)^(-2/3)), after one more copy at the "
        "first move past ema_start, as ema-pytorch has it; without it, ema_decay from ema_start on",
    )
    distance: Literal["pseudo-huber", "squared-l2"] = Field(
        default="pseudo-huber", description="between the two endpoints; a denoiser has its own"
    )
    huber_c: float | None = Field(
        default=None, ge=0, description="constant of pseudo-Huber; null means 0.00054 sqrt(d), 0 the plain L2 norm"
    )
    assignment: Literal["global", "rank"] = Field(
        default="global",
        description="with several processes: transport re-pairs the global batch, or each process its own share",
    )
    micro_batch: int | None = Field(
        default=None,
        ge=1,
        description="most samples that pass at once on each device: gradients are accumulated; null means all of them",
    )
    precision: Literal["float32", "tf32", "bfloat16"] = Field(
        default="float32",
        description="of the network's passes: IEEE single; factors of products rounded to 10 bits; autocast. Weights, "
        "loss, optimizer and EMA are float32 always",
    )
    channels_last: bool = Field(default=True, description="memory layout of convolutions")
    compile: Literal["none", "default", "reduce-overhead", "max-autotune"] = Field(
        default="none", description="mode of torch.compile; `reduce-overhead` uses CUDA graphs"
    )
    cpu_threads: int = Field(default=1, ge=1, description="threads of each process on the CPU")
    schedule: Annotated[Schedule, Field(discriminator="kind")] = Field(
        default_factory=IctSchedule, description="which noise levels are trained on"
    )

    @property
    def snapshot_steps(self) -> list[int]:
        """Steps at which weights are kept for evaluation; the last step always is one of them."""
        steps = list(range(self.snapshot_every, self.steps + 1, self.snapshot_every))
        return steps if steps and steps[-1] == self.steps else [*steps, self.steps]


class Cadence(Options):
    """How often a run speaks and saves; no part of its identity, since it does not touch the weights."""

    log_every: int = Field(default=50, ge=1, description="steps between lines of metrics.jsonl")
    checkpoint_every: int = Field(
        default=500, ge=1, description="steps between checkpoints that a stopped run goes on from"
    )


class RunReference(Options):
    """Weights of another run of the same data set: its EMA."""

    method: str = Field(description="the other run's method")
    step: int | None = Field(default=None, description="of one of its snapshots; null means the last")
    seed: int | None = Field(default=None, description="its seed; null means that of the run that refers to it")


class CheckpointFile(Options):
    """Weights in a file."""

    file: str = Field(description="of `gcflow import-edm` or `gcflow train`, relative to the project's root")


def _form(value: Any) -> str:
    file = isinstance(value, CheckpointFile) or (isinstance(value, dict) and "file" in value)
    return "a file" if file else "a run"


FrozenWeights = Annotated[
    Annotated[RunReference, Tag("a run")] | Annotated[CheckpointFile, Tag("a file")], Discriminator(_form)
]


class MethodConfig(Options):
    """One entry of the method algebra: objective x coupling x (mu, predictor) or x teacher, and where it starts."""

    objective: Literal["consistency", "distillation", "denoising"] = Field(
        description="CT (Eq. 6), CD (Eq. 4, with the Euler step of Eq. 5), or a diffusion model (EDM)"
    )
    coupling: str | Annotated[Coupling, register.coupling] = Field(
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
        default=None, ge=0, description="for `gc`: before this training step every pair is independent; null means none"
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
        description="where a consistency model of `edm` preconditioning is taken to be the identity when it is "
        "sampled; null means 0, as in training. ECT's code takes 0.003",
    )

    def __post_init__(self) -> None:
        if self.pairing.predicts:
            named = self.coupling if isinstance(self.coupling, str) else kind_of(self.coupling)
            require(self.objective != "distillation", "coupling", named, "ic or ot, because objective is distillation")
            expected = f"a number in [0, 1], or [start, end], because coupling is {named}"
            require(self.mu is not None, "mu", None, expected)
            if self.objective == "denoising":
                expected = "a consistency run or a file, because a denoiser predicts no endpoints"
                require("predictor" in self.frozen, "predictor", self.predictor, expected)
            else:
                expected = f"ema, online or a run, because coupling is {named}"
                require(self.predictor is not None, "predictor", None, expected)
        else:
            for name in ("mu", "mu_from_step", "predictor"):
                value = getattr(self, name)
                require(value is None, name, value, "no value unless coupling is gc")
        if self.objective == "distillation":
            require(self.teacher is not None, "teacher", None, "exact or a denoiser run, because it distils")
        else:
            require(self.teacher is None, "teacher", self.teacher, "no value unless objective is distillation")
        if self.objective == "denoising":
            other = self.preconditioning != "consistency"
            require(other, "preconditioning", self.preconditioning, "edm, vp or ve for a denoiser")

    @cached_property
    def pairing(self) -> Coupling:
        """The coupling itself.

        Raises:
            ValidationError: there is none of this name, or it cannot do without options.
        """
        if isinstance(self.coupling, Coupling):
            return self.coupling
        cls = register.coupling.named(self.coupling, "coupling")
        needed = [name for name, field in cls.__pydantic_fields__.items() if field.is_required()]
        expected = f"{{kind: {self.coupling}, ...}}, because it has options without a default: {', '.join(needed)}"
        require(not needed, "coupling", self.coupling, expected)
        return cls()

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
    seed: int
    process: NoiseProcess
    network: Annotated[Network, register.network]
    training: TrainingConfig
    method: MethodConfig

    def __post_init__(self) -> None:
        kind, objective = self.training.schedule.kind, self.method.objective
        fitting = (kind == "edm") == (objective == "denoising")
        expected = "edm for a denoiser" if objective == "denoising" else f"ict or ect, because objective is {objective}"
        require(fitting, "training.schedule.kind", kind, expected)
        at_zero = kind != "ect" or self.preconditioning != "consistency"
        require(at_zero, "preconditioning", self.preconditioning, "edm, vp or ve, because ECT's boundary is sigma = 0")

        moved, fits = self.method.sampling_boundary, self.preconditioning == "edm" and objective == "consistency"
        require(moved is None or fits, "sampling_boundary", moved, "no value but for a consistency model of ECT (edm)")
        within = moved is None or moved < self.process.sigma_max
        require(within, "sampling_boundary", moved, "a noise level >= 0 and below sigma_max, or null")

        begin, steps = self.method.mu_from_step, self.training.steps
        expected = f"less than training.steps, {steps}, or mu would be 0 throughout"
        require(begin is None or begin < steps, "mu_from_step", begin, expected)

        schedule = self.training.schedule
        if isinstance(schedule, EctSchedule) and schedule.stage_every is not None:
            stage = schedule.stage(self.training.steps - 1)
            apart = (stage + 1) * math.log2(schedule.q) <= SINGLE_PRECISION_BITS
            expected = f"so many that q^(stage + 1), now {schedule.q:g}^{stage + 1} at the end, stays below 2^20: "
            require(
                apart, "training.schedule.stage_every", schedule.stage_every, expected + "beyond, r and t are too close"
            )

    @property
    def preconditioning(self) -> Preconditioning:
        """The preconditioning of this run's model."""
        if self.method.preconditioning is not None:
            return self.method.preconditioning
        return "consistency" if self.training.schedule.kind == "ict" else "edm"

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
