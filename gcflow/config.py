"""What a run is: typed, frozen, with its ranges checked at construction.

These dataclasses know nothing of files. `gcflow.pipeline.params` builds them from `params.yaml`; a library user
builds them directly. Unknown keys are refused when they come from a file.
"""

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, Literal

from gcflow import register
from gcflow.options import Strict, require
from gcflow.register import Coupling, Network

if TYPE_CHECKING:
    from torch import nn

Weights = Literal["ema", "raw"]
Preconditioning = Literal["consistency", "edm", "vp", "ve"]
# Of the 24 that a float32 has, those that the difference of two noise levels may be short of.
SINGLE_PRECISION_BITS = 20


class ByKind:
    """Makes pydantic tell the members of a union by their `kind`; the core does without pydantic."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        from pydantic import Field

        return handler.generate_schema(Annotated[source, Field(discriminator="kind")])


@dataclass(frozen=True)
class NoiseProcess(Strict):
    """The EDM process x_t = x* + sigma_t z, sigma_t = t, and the scale of the data it noises.

    sigma_min, sigma_max: sigma_0 and sigma_T of the paper. rho: curvature of the noise levels.
    sigma_data: standard deviation of the (centred) data. data_mean: subtracted from data in [-1, 1] before
    noising and added back to samples; the paper uses 0.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0
    sigma_data: float = 0.5
    data_mean: float = 0.0

    def __post_init__(self) -> None:
        require(self.sigma_min > 0, "sigma_min", self.sigma_min, "a number > 0")
        require(self.sigma_max > self.sigma_min, "sigma_max", self.sigma_max, "a number > sigma_min")
        require(self.rho >= 1, "rho", self.rho, "a number >= 1")
        require(self.sigma_data > 0, "sigma_data", self.sigma_data, "a number > 0")


@register.network
@dataclass(frozen=True)
class NetworkConfig(Network):
    """gcflow's own networks (`gcflow.networks`).

    `ddpm++`, `ncsn++`: the two U-Nets of EDM (`gcflow.songunet`), for images. `mlp`: residual MLP on the flat sample.
    blocks, dropout: one value, or one per resolution level (U-Nets only), from the finest.
    multipliers: of `channels`, one per level. attention: sides (in pixels) of the levels whose blocks attend, besides
    the bottleneck. label_dim, augment_dim: sizes of EDM's class and augmentation embeddings; 0 leaves them out.
    """

    architecture: Literal["ddpm++", "ncsn++", "mlp"]
    channels: int
    blocks: int | tuple[int, ...]
    multipliers: tuple[int, ...] = (1,)
    attention: tuple[int, ...] = ()
    dropout: float | tuple[float, ...] = 0.0
    label_dim: int = 0
    augment_dim: int = 0

    def __post_init__(self) -> None:
        require(self.channels >= 1, "channels", self.channels, "an integer >= 1")
        require(
            len(self.multipliers) >= 1 and min(self.multipliers) >= 1,
            "multipliers",
            list(self.multipliers),
            "at least one integer, each >= 1",
        )
        for name in ("blocks", "dropout"):
            value = getattr(self, name)
            if isinstance(value, tuple):
                levels = len(self.multipliers)
                require(self.architecture != "mlp", name, list(value), "one value for an mlp, which has no levels")
                require(len(value) == levels, name, list(value), f"one value, or one per level ({levels} multipliers)")
        require(min(self.blocks_per_level) >= 1, "blocks", self.blocks, "integers >= 1")
        require(all(0 <= rate < 1 for rate in self.dropout_per_level), "dropout", self.dropout, "numbers in [0, 1)")
        require(self.label_dim >= 0, "label_dim", self.label_dim, "an integer >= 0")
        require(self.augment_dim >= 0, "augment_dim", self.augment_dim, "an integer >= 0")
        if self.architecture != "mlp":
            require(self.channels % 4 == 0, "channels", self.channels, "a multiple of 4 for a U-Net")
        else:
            require(not self.attention, "attention", list(self.attention), "no value for an mlp")
            require(self.multipliers == (1,), "multipliers", list(self.multipliers), "no value for an mlp")
            require(self.label_dim == 0, "label_dim", self.label_dim, "0 for an mlp")
            require(self.augment_dim == 0, "augment_dim", self.augment_dim, "0 for an mlp")

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
    if any(option.name == "dropout" for option in dataclasses.fields(network)):  # type: ignore[arg-type]
        return dataclasses.replace(network, dropout=0.0)  # type: ignore[type-var]
    return network


@dataclass(frozen=True)
class IctSchedule(Strict):
    """iCT's curriculum (Song & Dhariwal 2024): N(k) intervals from s0 to s1, chosen with a normal density in ln sigma.

    N(k) depends on the length of training: whatever it is, s0 doubles in equal parts of it until s1.
    """

    s0: int = 10
    s1: int = 1280
    p_mean: float = -1.1
    p_std: float = 2.0
    kind: Literal["ict"] = "ict"

    def __post_init__(self) -> None:
        require(self.s0 >= 1, "s0", self.s0, "an integer >= 1")
        require(self.s1 >= self.s0, "s1", self.s1, "an integer >= s0")
        require(self.p_std > 0, "p_std", self.p_std, "a number > 0")


@dataclass(frozen=True)
class EctSchedule(Strict):
    """ECT's continuous pairs of noise levels r < t (Geng et al. 2024; the paper's Section 5.3).

    ln t ~ N(p_mean, p_std^2), r = max(0, t (1 - q^-(stage + 1) (1 + k sigmoid(-b t)))). stage_every: steps after
    which the stage rises by one; null keeps it at 0. The length of training does not stretch the stages: a shorter
    training ends in an earlier one, a longer one goes on to further ones.
    """

    q: float = 2.0
    k: float = 8.0
    b: float = 1.0
    stage_every: int | None = None
    p_mean: float = -1.1
    p_std: float = 2.0
    kind: Literal["ect"] = "ect"

    def __post_init__(self) -> None:
        require(self.q > 1, "q", self.q, "a number > 1")
        require(self.k >= 0, "k", self.k, "a number >= 0")
        require(self.stage_every is None or self.stage_every >= 1, "stage_every", self.stage_every, "an integer >= 1")
        require(self.p_std > 0, "p_std", self.p_std, "a number > 0")

    def stage(self, step: int) -> int:
        """The stage at `step` (from 0): that of ECT's code, whose first step stands apart, before the first period."""
        return 0 if self.stage_every is None else max(0, step - 1) // self.stage_every


@dataclass(frozen=True)
class EdmSchedule(Strict):
    """Noise levels of a denoiser's training: ln sigma ~ N(p_mean, p_std^2) (Karras et al. 2022, table 1)."""

    p_mean: float = -1.2
    p_std: float = 1.2
    kind: Literal["edm"] = "edm"

    def __post_init__(self) -> None:
        require(self.p_std > 0, "p_std", self.p_std, "a number > 0")


Schedule = IctSchedule | EctSchedule | EdmSchedule
SCHEDULES: dict[str, type[Schedule]] = {"ict": IctSchedule, "ect": EctSchedule, "edm": EdmSchedule}


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
    schedule: Annotated[Schedule, ByKind()] = field(default_factory=IctSchedule)

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


@dataclass(frozen=True)
class MethodConfig(Strict):
    """One entry of the method algebra: objective x coupling x (mu, predictor) or x teacher, and where it starts.

    coupling: the name of one, or one with its options.
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

    objective: Literal["consistency", "distillation", "denoising"]
    coupling: str | Annotated[Coupling, register.coupling] = "ic"
    mu: float | tuple[float, float] | None = None
    mu_from_step: int | None = None
    predictor: Literal["ema", "online"] | FrozenWeights | None = None
    teacher: Literal["exact"] | FrozenWeights | None = None
    init: FrozenWeights | None = None
    preconditioning: Preconditioning | None = None
    sampling_boundary: float | None = None

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
            require(
                all(0 <= m <= 1 for m in self.mu_range), "mu", self.mu, "a number in [0, 1], or [start, end] in [0, 1]"
            )
            begins = self.mu_from_step is None or self.mu_from_step >= 0
            require(begins, "mu_from_step", self.mu_from_step, "an integer >= 0, or null")
        else:
            require(self.mu is None, "mu", self.mu, "no value unless coupling is gc")
            require(self.mu_from_step is None, "mu_from_step", self.mu_from_step, "no value unless coupling is gc")
            require(self.predictor is None, "predictor", self.predictor, "no value unless coupling is gc")
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
            ValueError: there is none of this name, or it cannot do without options.
        """
        if isinstance(self.coupling, Coupling):
            return self.coupling
        try:
            return register.coupling[self.coupling]()
        except register.UnknownName as error:
            raise register.UnknownName(f"coupling{str(error).removeprefix('kind')}") from None
        except TypeError:
            expected = f"{{kind: {self.coupling}, ...}}, because it has options without a default"
            raise ValueError(f"coupling is {self.coupling!r}, expected {expected}") from None

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
        kind, objective = self.training.schedule.kind, self.method.objective
        fitting = (kind == "edm") == (objective == "denoising")
        expected = "edm for a denoiser" if objective == "denoising" else f"ict or ect, because objective is {objective}"
        require(fitting, "training.schedule.kind", kind, expected)
        at_zero = kind != "ect" or self.preconditioning != "consistency"
        require(at_zero, "preconditioning", self.preconditioning, "edm, vp or ve, because ECT's boundary is sigma = 0")

        moved, fits = self.method.sampling_boundary, self.preconditioning == "edm" and objective == "consistency"
        require(moved is None or fits, "sampling_boundary", moved, "no value but for a consistency model of ECT (edm)")
        within = moved is None or 0 <= moved < self.process.sigma_max
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


def run_config_from_dict(document: dict[str, Any]) -> RunConfig:
    """The inverse of `to_dict` for a run's configuration, as weights files carry it.

    Raises:
        UnknownName: its coupling or network is of an extension that was not read.
    """
    schedule = document["training"]["schedule"]
    training = {**document["training"], "schedule": SCHEDULES[schedule["kind"]](**schedule)}
    method = {**document["method"]}
    for role in ("predictor", "teacher", "init"):
        if isinstance(method[role], dict):
            kind = CheckpointFile if "file" in method[role] else RunReference
            method[role] = kind(**method[role])
    if isinstance(method["mu"], list):
        method["mu"] = tuple(method["mu"])
    if isinstance(method["coupling"], dict):
        method["coupling"] = register.coupling.of(method["coupling"])
    return RunConfig(
        dataset=document["dataset"],
        method_name=document["method_name"],
        seed=document["seed"],
        process=NoiseProcess(**document["process"]),
        network=register.network.of(document["network"]),
        training=TrainingConfig(**training),
        method=MethodConfig(**method),
    )
