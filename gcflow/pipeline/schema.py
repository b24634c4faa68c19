"""The form of params.yaml: every block, its keys and their ranges."""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from gcflow import register
from gcflow.config import (
    Cadence,
    MethodConfig,
    NoiseProcess,
    RunReference,
    TrainingConfig,
    Weights,
)
from gcflow.errors import GcflowError
from gcflow.options import Strict, require
from gcflow.pipeline import figures
from gcflow.register import Metric, Network, Source

Scale = Literal["embedded", "rehearsal", "paper"]
SCALES: tuple[Scale, ...] = ("embedded", "rehearsal", "paper")
if TYPE_CHECKING:
    FigureKindName = str
else:
    FigureKindName = Literal[figures.KINDS]
Reproduces = Annotated[str, Field(pattern="^(table|figure)[0-9]+$")]


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

    @property
    def protocols(self) -> dict[str, None]:
        """The one way to compare, without settings."""
        return {self.kind: None}


@dataclass(frozen=True)
class Identity(Strict):
    """Features are the values themselves: for low-dimensional points."""

    kind: Literal["identity"] = "identity"

    @property
    def protocols(self) -> dict[str, None]:
        """The one way to compare, without settings."""
        return {self.kind: None}


# One half of the real images is compared with the other, and a covariance takes two.
FEWEST_REAL = 4


@dataclass(frozen=True)
class Protocol(Strict):
    """One way to compare images in Inception's features, and which number of a run it reports.

    resize: `clean` is clean-fid's; `legacy-pytorch` is bilinear without antialiasing; `legacy-tensorflow` happens
    inside the network. pixels: how model output becomes 8-bit: `clip` to [-1, 1] and round, `clip-truncate`, or
    `batch-min-max`, which scales each batch of the run's training batch size by its own extremes and truncates.
    real_pixels: real images as they are `stored`, or after a `round-trip` through float32 that truncates.
    split: which real images. reference_images: so many of them, null for all; they are drawn, in a random order, with
    reference_seed. select: report the run's `last` step, or the `best` by FID of all snapshots.
    kid_subsets, kid_subset_size, kid_seed: of KID. score_splits: parts that the inception score is averaged over.
    """

    resize: Literal["clean", "legacy-pytorch", "legacy-tensorflow"] = "clean"
    pixels: Literal["clip", "clip-truncate", "batch-min-max"] = "clip"
    real_pixels: Literal["stored", "round-trip"] = "stored"
    split: Literal["train", "held-out"] = "train"
    reference_images: int | None = None
    reference_seed: int = 0
    select: Literal["last", "best"] = "last"
    kid_subsets: int = 100
    kid_subset_size: int = 1000
    kid_seed: int = 0
    score_splits: int = 10

    def __post_init__(self) -> None:
        images = self.reference_images
        expected = f"an integer >= {FEWEST_REAL}, or null"
        require(images is None or images >= FEWEST_REAL, "reference_images", images, expected)
        for name in ("kid_subsets", "score_splits"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "an integer >= 1")
        require(self.kid_subset_size >= 2, "kid_subset_size", self.kid_subset_size, "an integer >= 2")

    @property
    def reference_settings(self) -> dict[str, Any]:
        """The part that decides the reference."""
        keys = ("resize", "real_pixels", "split", "reference_images", "reference_seed")
        return {key: getattr(self, key) for key in keys}

    def check_reference(self, path: Path, recorded: dict[str, Any], again: str) -> None:
        """Refuses a reference that was made with other settings.

        Raises:
            GcflowError: names the file, the key, both values and the command that makes it `again`.
        """
        for key, value in self.reference_settings.items():
            if recorded.get(key) != value:
                raise GcflowError(f"{path}: made for {key} {recorded.get(key)}, not {value}; run {again}")


@dataclass(frozen=True)
class InceptionNetwork(Strict):
    """Features are those of clean-fid's TorchScript Inception: the metrics are FID, KID and IS.

    weights: file in the archives' folder. sha256: that it must have; null only records it.
    protocols: by name; the first is the one of curves and claims.
    """

    protocols: dict[str, Protocol]
    weights: str = "inception-2015-12-05.pt"
    sha256: str | None = None
    kind: Literal["inception"] = "inception"

    def __post_init__(self) -> None:
        require(len(self.protocols) > 0, "protocols", {}, "at least one")


@dataclass(frozen=True)
class SurrogateNetwork(Strict):
    """Features are those of a fixed random network with Inception's interface, to rehearse without its weights.

    Its distances compare runs with each other; they are not FID. seed: of its weights.
    """

    protocols: dict[str, Protocol]
    seed: int = 0
    kind: Literal["surrogate"] = "surrogate"

    def __post_init__(self) -> None:
        require(len(self.protocols) > 0, "protocols", {}, "at least one")


Features = Classifier | Identity | InceptionNetwork | SurrogateNetwork


@dataclass(frozen=True)
class Evaluation(Strict):
    """What is generated to be compared.

    samples: generated per evaluation. generation_seeds: at the last step each is used; at snapshots only the first.
    intermediate_sigmas: noise levels of the few-step sampler, descending. heun_steps: of the sampler of denoisers.
    grid: images per row and column of the sample grid. weights: which of a run's weights. batch: generated at once.
    metrics: of extensions, besides those of the features.
    """

    samples: int
    generation_seeds: tuple[int, ...]
    intermediate_sigmas: tuple[float, ...]
    heun_steps: int
    grid: int
    weights: tuple[Weights, ...] = ("ema", "raw")
    batch: int = 500
    metrics: tuple[Annotated[Metric, register.metric], ...] = ()

    def __post_init__(self) -> None:
        names = [name for metric in self.metrics for name in metric.columns]
        require(len(names) == len(set(names)), "metrics", names, "a name only once")
        require(self.samples >= 2, "samples", self.samples, "an integer >= 2")
        require(len(self.generation_seeds) >= 1, "generation_seeds", [], "at least one seed")
        descending = list(self.intermediate_sigmas) == sorted(self.intermediate_sigmas, reverse=True)
        require(descending, "intermediate_sigmas", list(self.intermediate_sigmas), "descending noise levels")
        require(self.heun_steps >= 2, "heun_steps", self.heun_steps, "an integer >= 2")
        require(self.grid >= 1, "grid", self.grid, "an integer >= 1")
        require("ema" in self.weights, "weights", list(self.weights), "ema, or ema and raw")
        require(self.batch >= 1, "batch", self.batch, "an integer >= 1")


@dataclass(frozen=True)
class Theory(Strict):
    """Numerical checks of the paper's theory, on a mixture.

    horizons: T of Theorem 1; none leaves it out. intervals: its N, ascending, the last two a factor 4 apart. points:
    quasi-random points per scrambling, a power of two. scramblings: independent ones, for standard errors. sigmas:
    levels of Lemma 1 and Theorem 2, ascending, the last three large; none leaves them out. paths: trajectories of
    Figure 1; 0 leaves it out. path_sigmas: the noise levels where they start and end. predictor: the run whose EMA
    predicts the endpoints of pairs that Figure 1 shows besides; null shows none.
    """

    horizons: tuple[float, ...]
    intervals: tuple[int, ...]
    points: int
    scramblings: int
    sigmas: tuple[float, ...]
    paths: int
    seed: int
    path_sigmas: tuple[float, float] = (3.0, 0.05)
    predictor: RunReference | None = None

    def __post_init__(self) -> None:
        require(min(self.horizons, default=1) > 0, "horizons", list(self.horizons), "numbers > 0")
        steep = len(self.intervals) >= 2 and self.intervals[-1] == 4 * self.intervals[-2]
        rising = list(self.intervals) == sorted(set(self.intervals)) and min(self.intervals, default=0) >= 1
        expected = "ascending integers >= 1, the last of them 4 times the one before"
        require(steep and rising, "intervals", list(self.intervals), expected)
        require(
            self.points >= 2 and self.points & (self.points - 1) == 0, "points", self.points, "a power of two, >= 2"
        )
        require(self.scramblings >= 2, "scramblings", self.scramblings, "an integer >= 2")
        levels = list(self.sigmas)
        enough = not levels or (len(levels) >= 3 and levels == sorted(set(levels)) and levels[0] > 0)
        require(enough, "sigmas", levels, "none, or at least three ascending noise levels > 0")
        require(self.paths == 0 or self.paths >= 2, "paths", self.paths, "0, or an integer >= 2")
        start, end = self.path_sigmas
        require(start > end > 0, "path_sigmas", list(self.path_sigmas), "[start, end], two descending noise levels > 0")


@dataclass(frozen=True)
class Discrepancy(Strict):
    """Velocity discrepancy of each coupling, by the denoisers of the data set. samples: pairs per noise level."""

    samples: int
    sigmas: tuple[float, ...]
    seed: int

    def __post_init__(self) -> None:
        require(self.samples >= 2, "samples", self.samples, "an integer >= 2")
        levels = list(self.sigmas)
        require(len(levels) > 0 and min(levels) > 0, "sigmas", levels, "at least one number, each > 0")


@dataclass(frozen=True)
class Transport(Strict):
    """Transport cost: of IC, of OT in batches, and of GC at each noise level, ascending.

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
        levels = list(self.sigmas)
        rising = len(levels) > 0 and levels == sorted(set(levels)) and levels[0] > 0
        require(rising, "sigmas", levels, "ascending noise levels > 0, at least one")


@dataclass(frozen=True)
class Table(Strict):
    """A table of final metrics.

    reproduces: which table of the paper it answers, e.g. `table1`; the workflow has a target of that name.
    paper: which of the paper's data sets this is, for its numbers beside ours. published: the entry of
    `gcflow/paper.yaml` that these numbers stand in; null means the one called as `reproduces`. protocol: of the
    features; null means the first. note: what else a reader must know, shown below the table.
    """

    title: str
    methods: tuple[str, ...]
    reproduces: Reproduces | None = None
    paper: str | None = None
    published: str | None = None
    protocol: str | None = None
    note: str | None = None

    @property
    def published_entry(self) -> str:
        """The entry of `gcflow/paper.yaml`; of a table that nothing published stands beside, a name that is in none."""
        return self.published or self.reproduces or ""


@dataclass(frozen=True)
class Figure(Strict):
    """A figure.

    kind: a file of `gcflow.pipeline.figures`. methods: whose runs it shows, if its kind does. reproduces: which figure
    of the paper it answers, e.g. `figure5`; the workflow has a target of that name.
    """

    kind: FigureKindName
    title: str
    methods: tuple[str, ...] = ()
    reproduces: Reproduces | None = None


@dataclass(frozen=True)
class DatasetEntry(Strict):
    """Everything about one data set: where it comes from, what is trained on it, and how that is measured and shown.

    scale: `embedded` runs anywhere in minutes; `rehearsal` takes the paper's recipe for minutes on a GPU; `paper` is
    the paper's.
    """

    data: Annotated[Source, register.source]
    process: NoiseProcess
    network: Annotated[Network, register.network]
    training: TrainingConfig
    methods: dict[str, MethodEntry]
    runs: dict[str, Replicates]
    features: Annotated[Features, Field(discriminator="kind")]
    evaluation: Evaluation
    scale: Scale = "embedded"
    cadence: Cadence = field(default_factory=Cadence)
    transport: Transport | None = None
    discrepancy: Discrepancy | None = None
    theory: Theory | None = None
    tables: dict[str, Table] = field(default_factory=dict)
    figures: dict[str, Figure] = field(default_factory=dict)


@dataclass(frozen=True)
class RunsClaim(Strict):
    """That one method's statistic is lower than another's, over the training seeds that both have.

    place: in the paper. claim: one sentence. statistic: of a run (`gcflow.pipeline.ledger.run_statistics`).
    """

    place: str
    claim: str
    statistic: Literal["final", "start", "area", "rise", "discrepancy", "discrepancy-slope"]
    lower: str
    higher: str
    test: Literal["runs"] = "runs"

    def __post_init__(self) -> None:
        require(self.lower != self.higher, "higher", self.higher, "another method than lower")


@dataclass(frozen=True)
class TransportClaim(Strict):
    """About the transport cost of generator-augmented pairs: how it begins and ends, or that it falls below OT's."""

    place: str
    claim: str
    statistic: Literal["falls-at-small-noise", "falls-at-large-noise", "below-ot"]
    test: Literal["transport"] = "transport"


@dataclass(frozen=True)
class TheoryClaim(Strict):
    """That every numerical check of a statement holds. statement: as theory.json names it, e.g. `Theorem 1`."""

    place: str
    claim: str
    statement: str
    test: Literal["theory"] = "theory"


Claim = RunsClaim | TransportClaim | TheoryClaim


@dataclass(frozen=True)
class Claims(Strict):
    """What is tested, the same on every data set.

    confidence: of intervals; 1 - confidence bounds the chance of any wrong verdict on a data set.
    power: chance of a verdict that the number of seeds needed is computed for.
    """

    confidence: float
    power: float
    entries: dict[str, Annotated[Claim, Field(discriminator="test")]]

    def __post_init__(self) -> None:
        require(0 < self.confidence < 1, "confidence", self.confidence, "a number in (0, 1)")
        require(0 < self.power < 1, "power", self.power, "a number in (0, 1)")


@dataclass(frozen=True)
class Pretrained(Strict):
    """A public EDM model, which becomes checkpoints/<name>.safetensors.

    pickle: file in the archives' folder. url: where it can be had. sha256: that it must have; null only records it.
    """

    pickle: str
    url: str
    sha256: str | None = None


@dataclass(frozen=True)
class Tracking(Strict):
    """MLflow. The server is MLFLOW_TRACKING_URI, or else SQLite in the project folder.

    experiment: its name there; each data set has its own below it, `<experiment>/<data set>`. follow_after: a job that
    has lasted so many seconds is mirrored while it runs, a shorter one when the workflow ends; None: none is.
    follow_every: seconds between what is sent of such a job.
    """

    experiment: str
    follow_after: Annotated[float, Field(ge=0)] | None = 60.0
    follow_every: Annotated[float, Field(gt=0)] = 10.0


@dataclass(frozen=True)
class Document(Strict):
    """The whole file. extensions: Python files that register what gcflow lacks, relative to params.yaml."""

    tracking: Tracking
    datasets: dict[str, DatasetEntry]
    claims: Claims | None = None
    pretrained: dict[str, Pretrained] = field(default_factory=dict)
    extensions: tuple[str, ...] = ()
