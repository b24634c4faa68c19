"""What a run is: typed, frozen, with its ranges checked at construction.

These dataclasses know nothing of files. `gcflow.pipeline.params` builds them from `params.yaml`; a library user
builds them directly. Unknown keys are refused when they come from a file.
"""

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

Weights = Literal["ema", "raw"]


def require(condition: bool, key: str, value: object, expected: str) -> None:
    """Raises ValueError("key is value, expected ...") unless `condition` holds."""
    if not condition:
        raise ValueError(f"{key} is {value!r}, expected {expected}")


class Strict:
    """Makes pydantic refuse unknown keys and silent type conversions."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "strict": True, "allow_inf_nan": False}


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


@dataclass(frozen=True)
class NetworkConfig(Strict):
    """`unet`: residual convolutions for images, one level per multiplier. `mlp`: residual MLP for flat data."""

    architecture: Literal["unet", "mlp"]
    channels: int
    blocks: int
    multipliers: tuple[int, ...] = (1,)
    dropout: float = 0.0

    def __post_init__(self) -> None:
        require(self.channels >= 1, "channels", self.channels, "an integer >= 1")
        require(self.blocks >= 1, "blocks", self.blocks, "an integer >= 1")
        require(
            len(self.multipliers) >= 1 and min(self.multipliers) >= 1,
            "multipliers",
            list(self.multipliers),
            "at least one integer, each >= 1",
        )
        require(0 <= self.dropout < 1, "dropout", self.dropout, "a number in [0, 1)")


@dataclass(frozen=True)
class ScheduleConfig(Strict):
    """iCT's curriculum of noise levels (paper, section 2): N(k) intervals from s0 to s1, log-normal interval choice."""

    s0: int = 10
    s1: int = 1280
    p_mean: float = -1.1
    p_std: float = 2.0

    def __post_init__(self) -> None:
        require(self.s0 >= 1, "s0", self.s0, "an integer >= 1")
        require(self.s1 >= self.s0, "s1", self.s1, "an integer >= s0")
        require(self.p_std > 0, "p_std", self.p_std, "a number > 0")


@dataclass(frozen=True)
class TrainingConfig(Strict):
    """How long and with what a run is optimised. `batch` is the global batch size.

    snapshot_every: steps between saved weights (convergence curves are computed from them).
    gradient_clip: largest global norm of a gradient; null means none, as in the paper. One outlier of the rare large
    gradients stays in Lion's momentum for a hundred steps and can undo a run.
    ema_ramp_up: effective decay min(ema_decay, 1 - (1 + k)^(-2/3)) at step k.
    huber_c: constant of the pseudo-Huber distance; null means 0.00054 sqrt(d).
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
    ema_ramp_up: bool = False
    distance: Literal["pseudo-huber", "squared-l2"] = "pseudo-huber"
    huber_c: float | None = None
    cpu_threads: int = 1
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "snapshot_every", "cpu_threads"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "an integer >= 1")
        require(self.learning_rate > 0, "learning_rate", self.learning_rate, "a number > 0")
        require(self.weight_decay >= 0, "weight_decay", self.weight_decay, "a number >= 0")
        clip = self.gradient_clip
        require(clip is None or clip > 0, "gradient_clip", clip, "a number > 0, or null")
        require(0 <= self.ema_decay < 1, "ema_decay", self.ema_decay, "a number in [0, 1)")
        require(self.huber_c is None or self.huber_c > 0, "huber_c", self.huber_c, "a number > 0, or null")

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
class MethodConfig(Strict):
    """One entry of the method algebra: objective x coupling x (mu, predictor) or x teacher.

    mu: probability that a sample takes the generator-augmented coupling; [start, end] changes linearly over training.
    predictor: what predicts the endpoint for `gc`: the model's EMA, the model itself (`online`) or a frozen run.
    teacher: what gives the velocity for `distillation`: a trained denoiser run, or `exact`, the closed-form denoiser
    of the data set (its empirical distribution, or its mixture).
    """

    objective: Literal["consistency", "distillation", "denoising"]
    coupling: Literal["ic", "ot", "gc"] = "ic"
    mu: float | tuple[float, float] | None = None
    predictor: Literal["ema", "online"] | RunReference | None = None
    teacher: Literal["exact"] | RunReference | None = None

    def __post_init__(self) -> None:
        if self.coupling == "gc":
            require(self.objective == "consistency", "coupling", "gc", "ic or ot unless objective is consistency")
            require(self.mu is not None, "mu", None, "a number in [0, 1], or [start, end], because coupling is gc")
            require(self.predictor is not None, "predictor", None, "ema, online or a run, because coupling is gc")
            require(
                all(0 <= m <= 1 for m in self.mu_range), "mu", self.mu, "a number in [0, 1], or [start, end] in [0, 1]"
            )
        else:
            require(self.mu is None, "mu", self.mu, "no value unless coupling is gc")
            require(self.predictor is None, "predictor", self.predictor, "no value unless coupling is gc")
        if self.objective == "distillation":
            require(self.teacher is not None, "teacher", None, "exact or a denoiser run, because it distils")
        else:
            require(self.teacher is None, "teacher", self.teacher, "no value unless objective is distillation")

    @property
    def mu_range(self) -> tuple[float, float]:
        """(start, end) of the share of generator-augmented samples; (0, 0) without that coupling."""
        if self.mu is None:
            return (0.0, 0.0)
        return self.mu if isinstance(self.mu, tuple) else (self.mu, self.mu)

    @property
    def reference(self) -> RunReference | None:
        """The run whose weights this method needs, if any."""
        for role in (self.predictor, self.teacher):
            if isinstance(role, RunReference):
                return role
        return None


@dataclass(frozen=True)
class RunConfig(Strict):
    """Everything that decides the weights of one run, besides the bytes of its inputs."""

    dataset: str
    method_name: str
    seed: int
    process: NoiseProcess
    network: NetworkConfig
    training: TrainingConfig
    method: MethodConfig

    @property
    def name(self) -> str:
        """`data set/method/seed`, the run's name everywhere."""
        return f"{self.dataset}/{self.method_name}/{self.seed}"


def to_dict(config: Any) -> dict[str, Any]:
    """A config dataclass as plain JSON values."""
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    return plain


def digest(document: Any) -> str:
    """sha256 (hex) of a JSON document in canonical form."""
    return hashlib.sha256(json.dumps(document, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def run_config_from_dict(document: dict[str, Any]) -> RunConfig:
    """The inverse of `to_dict` for a run's configuration, as weights files carry it."""
    training = {**document["training"], "schedule": ScheduleConfig(**document["training"]["schedule"])}
    method = {**document["method"]}
    for role in ("predictor", "teacher"):
        if isinstance(method[role], dict):
            method[role] = RunReference(**method[role])
    if isinstance(method["mu"], list):
        method["mu"] = tuple(method["mu"])
    network = {**document["network"], "multipliers": tuple(document["network"]["multipliers"])}
    return RunConfig(
        dataset=document["dataset"],
        method_name=document["method_name"],
        seed=document["seed"],
        process=NoiseProcess(**document["process"]),
        network=NetworkConfig(**network),
        training=TrainingConfig(**training),
        method=MethodConfig(**method),
    )
