"""The form of params.yaml: every block, its keys and their ranges."""

from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Literal

from pydantic import Field

from gcflow.config import (
    Cadence,
    MethodConfig,
    NetworkConfig,
    NoiseProcess,
    RunReference,
    Strict,
    TrainingConfig,
    require,
)
from gcflow.sources import DataSource


@dataclass(frozen=True)
class MethodEntry(MethodConfig):
    """A method as it stands in params.yaml: its algebra, and what it overrides.

    network, training: keys that replace the data set's own, for this method only.
    """

    network: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)

    def algebra(self) -> MethodConfig:
        """The part that decides weights."""
        return MethodConfig(**{f.name: getattr(self, f.name) for f in fields(MethodConfig)})


@dataclass(frozen=True)
class Replicates(Strict):
    """The runs of a method. label: its name in tables and figures. seeds: one run each."""

    label: str
    seeds: tuple[int, ...]

    def __post_init__(self) -> None:
        different = len(set(self.seeds)) == len(self.seeds) > 0
        require(different and min(self.seeds) >= 0, "seeds", list(self.seeds), "different integers >= 0, at least one")


@dataclass(frozen=True)
class Classifier(Strict):
    """Features are the penultimate layer (64 values) of a small classifier trained on the labelled data.

    held_out: share of the data kept for its accuracy. minimum_accuracy: below it the stage fails.
    """

    epochs: int
    batch: int
    learning_rate: float
    held_out: float
    minimum_accuracy: float
    seed: int
    kind: Literal["classifier"] = "classifier"

    def __post_init__(self) -> None:
        require(self.epochs >= 1, "epochs", self.epochs, "an integer >= 1")
        require(self.batch >= 2, "batch", self.batch, "an integer >= 2")
        require(self.learning_rate > 0, "learning_rate", self.learning_rate, "a number > 0")
        require(0 < self.held_out < 1, "held_out", self.held_out, "a number in (0, 1)")
        require(0 <= self.minimum_accuracy <= 1, "minimum_accuracy", self.minimum_accuracy, "a number in [0, 1]")


@dataclass(frozen=True)
class Identity(Strict):
    """Features are the values themselves: for low-dimensional points."""

    kind: Literal["identity"] = "identity"


@dataclass(frozen=True)
class Evaluation(Strict):
    """The evaluation protocol.

    samples: generated per evaluation. generation_seeds: at the last step each is used; at snapshots only the first.
    intermediate_sigmas: noise levels of the few-step sampler, descending. heun_steps: of the sampler of denoisers.
    grid: images per row and column of the sample grid.
    """

    samples: int
    generation_seeds: tuple[int, ...]
    intermediate_sigmas: tuple[float, ...]
    heun_steps: int
    grid: int

    def __post_init__(self) -> None:
        require(self.samples >= 2, "samples", self.samples, "an integer >= 2")
        require(len(self.generation_seeds) >= 1, "generation_seeds", [], "at least one seed")
        descending = list(self.intermediate_sigmas) == sorted(self.intermediate_sigmas, reverse=True)
        require(descending, "intermediate_sigmas", list(self.intermediate_sigmas), "descending noise levels")
        require(self.heun_steps >= 2, "heun_steps", self.heun_steps, "an integer >= 2")
        require(self.grid >= 1, "grid", self.grid, "an integer >= 1")


@dataclass(frozen=True)
class Transport(Strict):
    """Transport cost: of IC, of OT in batches, and of GC at each noise level.

    predictor: the run whose EMA predicts endpoints. samples: pairs per estimate; a multiple of every batch size.
    """

    predictor: RunReference
    samples: int
    batch_sizes: tuple[int, ...]
    sigmas: tuple[float, ...]
    seed: int

    def __post_init__(self) -> None:
        require(self.samples >= 2, "samples", self.samples, "an integer >= 2")
        for size in self.batch_sizes:
            two = size >= 1 and self.samples % size == 0 and self.samples > size
            require(two, "batch_sizes", size, "a divisor of samples that gives at least two batches")
        require(
            len(self.sigmas) > 0 and min(self.sigmas) > 0, "sigmas", list(self.sigmas), "at least one number, each > 0"
        )


@dataclass(frozen=True)
class Table(Strict):
    """A table of final metrics. paper: which of the paper's data sets this is, for its numbers beside ours."""

    title: str
    methods: tuple[str, ...]
    paper: str | None = None


@dataclass(frozen=True)
class Figure(Strict):
    """A figure. kind: how it is drawn. title: which figure of the paper it answers. methods: whose runs it shows."""

    kind: Literal["convergence", "samples", "transport", "trajectories"]
    title: str
    methods: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        needs = self.kind in ("convergence", "samples")
        require(
            needs == bool(self.methods), "methods", list(self.methods), f"{'some' if needs else 'none'} for {self.kind}"
        )


@dataclass(frozen=True)
class DatasetEntry(Strict):
    """Everything about one data set: where it comes from, what is trained on it, and how that is measured and shown."""

    data: Annotated[DataSource, Field(discriminator="source")]
    process: NoiseProcess
    network: NetworkConfig
    training: TrainingConfig
    methods: dict[str, MethodEntry]
    runs: dict[str, Replicates]
    features: Annotated[Classifier | Identity, Field(discriminator="kind")]
    evaluation: Evaluation
    cadence: Cadence = field(default_factory=Cadence)
    transport: Transport | None = None
    tables: dict[str, Table] = field(default_factory=dict)
    figures: dict[str, Figure] = field(default_factory=dict)


@dataclass(frozen=True)
class Tracking(Strict):
    """MLflow. experiment: its name there. The server is MLFLOW_TRACKING_URI, or else SQLite in the project folder."""

    experiment: str


@dataclass(frozen=True)
class Document(Strict):
    """The whole file."""

    tracking: Tracking
    datasets: dict[str, DatasetEntry]
