"""The form of params.yaml: every block, its keys, their meaning and their ranges.

docs/params.md and params.schema.json are written from here (`make keys`).
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

# Registers the sources of archives.
import gcflow.archives.layouts  # noqa: F401
from gcflow import register
from gcflow.config import (
    Cadence,
    MethodConfig,
    NoiseProcess,
    RunReference,
    Share,
    TrainingConfig,
    Weights,
)
from gcflow.errors import GcflowError
from gcflow.metrics import Metric
from gcflow.networks import Network
from gcflow.options import Count, Different, Drawn, Level, Line, Options, Seed, require
from gcflow.pipeline import figures
from gcflow.sources import Source

Scale = Literal["embedded", "rehearsal", "paper"]
SCALES: tuple[Scale, ...] = ("embedded", "rehearsal", "paper")
# Of data sets, methods, tables and what else becomes a part of a path or of a stage's name.
Name = Annotated[str, Field(pattern="^[a-z0-9-]+$")]
Methods = Different[tuple[str, ...]]
Open = Annotated[float, Field(gt=0, lt=1)]
if TYPE_CHECKING:
    FigureKindName = str
else:
    FigureKindName = Literal[figures.KINDS]
Reproduces = Annotated[str, Field(pattern="^(table|figure)[0-9]+$")]


class MethodEntry(MethodConfig):
    """A method: one entry of the algebra objective x coupling x (mu, predictor) or x teacher, and what it overrides."""

    network: dict[str, Any] = Field(
        default_factory=dict,
        description="keys that replace the data set's own; a network of another class replaces it as a whole",
    )
    training: dict[str, Any] = Field(
        default_factory=dict,
        description="keys that replace the data set's own; a schedule of another kind replaces it as a whole",
    )
    sweep: dict[str, Annotated[list[Any], Field(min_length=1)]] = Field(
        default_factory=dict,
        description="dotted key of this method to values: a method of its own for each, or for each combination, named "
        "after them: {mu: [0.3, 0.5]} of `gc` gives `gc-mu03` and `gc-mu05`. See docs/methods.md",
    )

    def algebra(self) -> MethodConfig:
        """The part that decides weights."""
        return MethodConfig(**{name: getattr(self, name) for name in MethodConfig.__pydantic_fields__})


class Replicates(Options):
    """The runs of a method."""

    label: Drawn = Field(description="the method's name in tables and figures")
    seeds: Different[tuple[Seed, ...]] = Field(min_length=1, description="one run each, all different")


class Classifier(Options):
    """Features are the penultimate layer (64 values) of a small classifier trained on the labelled data."""

    epochs: int = Field(ge=1, le=10**6, description="passes over the data")
    batch: int = Field(ge=2, le=10**6, description="samples per step")
    learning_rate: float = Field(gt=0, le=1e30, description="largest of its schedule")
    held_out: Open = Field(description="share of the data kept for its accuracy")
    minimum_accuracy: Share = Field(description="on these; below it the stage fails")
    seed: Seed = Field(description="of weights and order")
    kind: Literal["classifier"] = "classifier"

    @property
    def protocols(self) -> dict[str, None]:
        """The one way to compare, without settings."""
        return {self.kind: None}


class Identity(Options):
    """Features are the values themselves: for low-dimensional points."""

    kind: Literal["identity"] = "identity"

    @property
    def protocols(self) -> dict[str, None]:
        """The one way to compare, without settings."""
        return {self.kind: None}


# One half of the real images is compared with the other, and a covariance takes two.
FEWEST_REAL = 4


class Protocol(Options):
    """One way to compare images in the features of a published network, and which number of a run it reports."""

    pixels: Literal["clip", "clip-truncate", "batch-min-max"] = Field(
        default="clip",
        description="how output becomes 8-bit: `clip` to [-1, 1] and round, `clip-truncate`, or `batch-min-max`: each "
        "batch of the run's training batch size is scaled by its own extremes and truncated",
    )
    real_pixels: Literal["stored", "round-trip"] = Field(
        default="stored", description="real images as they are, or after a round trip through float32 that truncates"
    )
    split: Literal["train", "held-out"] = Field(default="train", description="which real images")
    reference_images: int | None = Field(
        default=None, ge=FEWEST_REAL, le=10**9, description="how many of them; null means all"
    )
    reference_seed: Seed = Field(default=0, description="they are drawn with, in a random order")
    select: Literal["last", "best"] = Field(
        default="last", description="reports the run's last step, or the best by Fréchet distance of all snapshots"
    )
    kid_subsets: Count = Field(default=100, description="of KID, or KD")
    kid_subset_size: int = Field(default=1000, ge=2, le=10**9, description="images in each of them")
    kid_seed: Seed = Field(default=0, description="they are drawn with")

    if TYPE_CHECKING:

        @property
        def resize(self) -> str:
            """How images get the network's size; its choices are each network's own."""

    kernel: ClassVar[str] = "KD"

    @property
    def fewest_images(self) -> int:
        """Real images that it needs."""
        return self.reference_images or FEWEST_REAL

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


class InceptionProtocol(Protocol):
    """One way to compare images in Inception's features."""

    resize: Literal["clean", "legacy-pytorch", "legacy-tensorflow"] = Field(
        default="clean",
        description="`clean` is clean-fid's; `legacy-pytorch` is bilinear without antialiasing; `legacy-tensorflow` "
        "happens inside the network",
    )
    score_splits: Count = Field(default=10, description="parts that the inception score is averaged over")
    kernel: ClassVar[str] = "KID"

    @property
    def fewest_images(self) -> int:
        """Real images that it needs."""
        return max(super().fewest_images, self.score_splits)


class Dinov2Protocol(Protocol):
    """One way to compare images in DINOv2's features."""

    resize: Literal["pillow", "clean"] = Field(
        default="pillow",
        description="Pillow's antialiased bicubic to 224, rounded to 8 bits as in `dgm-eval`; `clean` does not round",
    )


class InceptionNetwork(Options):
    """Features are those of clean-fid's TorchScript Inception: the metrics are FID, KID and IS."""

    protocols: dict[Name, InceptionProtocol] = Field(
        min_length=1, description="by name; the first is that of curves and claims"
    )
    weights: str = Field(default="inception-2015-12-05.pt", description="file in the archives' folder")
    sha256: str | None = Field(default=None, description="that it must have; null only records it")
    kind: Literal["inception"] = "inception"


class Dinov2Network(Options):
    """Features are DINOv2's class token: the metrics are FD-DINOv2 and KD-DINOv2, which are no FID and no KID."""

    protocols: dict[Name, Dinov2Protocol] = Field(
        min_length=1, description="by name; the first is that of curves and claims"
    )
    size: Literal["vits14", "vitb14", "vitl14"] = Field(
        default="vitl14", description="published FD-DINOv2 is of `vitl14`; its file is `dinov2_vitl14_pretrain.pth`"
    )
    sha256: str | None = Field(default=None, description="that its file must have; null means the published one's")
    kind: Literal["dinov2"] = "dinov2"


class SurrogateNetwork(Options):
    """Features are those of a fixed random network with Inception's interface, to rehearse without its weights.

    Its distances compare runs with each other; they are not FID.
    """

    protocols: dict[Name, InceptionProtocol] = Field(
        min_length=1, description="by name; the first is that of curves and claims"
    )
    seed: Seed = Field(default=0, description="of its weights")
    kind: Literal["surrogate"] = "surrogate"


Features = Classifier | Dinov2Network | Identity | InceptionNetwork | SurrogateNetwork


class Evaluation(Options):
    """What is generated to be compared."""

    samples: int = Field(ge=2, le=10**7, description="generated per evaluation")
    generation_seeds: Different[tuple[Seed, ...]] = Field(
        min_length=1, description="at the last step each is used; at snapshots only the first"
    )
    intermediate_sigmas: Different[tuple[Level, ...]] = Field(
        description="noise levels of the few-step sampler, descending"
    )
    heun_steps: int = Field(ge=2, le=10**4, description="of the sampler of denoisers")
    grid: int = Field(ge=1, le=100, description="images per row and column of the sample grid")
    weights: Different[tuple[Weights, ...]] = Field(
        default=("ema", "raw"), description="which of a run's weights; ema is one"
    )
    batch: Count = Field(default=500, description="samples generated at once")
    metrics: tuple[Annotated[Metric, register.metric], ...] = Field(
        default=(), description="of extensions, besides those of the features"
    )

    def __post_init__(self) -> None:
        names = [name for metric in self.metrics for name in metric.columns]
        require(len(names) == len(set(names)), "metrics", names, "a name only once")
        levels = list(self.intermediate_sigmas)
        require(levels == sorted(levels, reverse=True), "intermediate_sigmas", levels, "descending noise levels")
        require("ema" in self.weights, "weights", list(self.weights), "ema, or ema and raw")


class Theory(Options):
    """Numerical checks of the paper's theory, on a mixture."""

    horizons: tuple[Level, ...] = Field(description="T of Theorem 1; none leaves it out")
    intervals: tuple[Count, ...] = Field(description="its N, ascending, the last two a factor 4 apart")
    points: int = Field(ge=2, le=10**9, description="quasi-random points per scrambling, a power of two")
    scramblings: int = Field(ge=2, le=10**6, description="independent ones, for standard errors")
    sigmas: tuple[Level, ...] = Field(
        description="levels of Lemma 1 and Theorem 2, ascending, the last three large; none leaves them out"
    )
    paths: int = Field(ge=0, le=10**6, description="trajectories of Figure 1, at least two; 0 leaves it out")
    seed: Seed = Field(description="of everything drawn")
    path_sigmas: tuple[Level, Level] = Field(default=(3.0, 0.05), description="noise levels where they start and end")
    predictor: RunReference | None = Field(
        default=None, description="the run whose EMA predicts the endpoints of pairs in Figure 1; null shows none"
    )

    def __post_init__(self) -> None:
        intervals, sigmas = list(self.intervals), list(self.sigmas)
        steep = len(intervals) >= 2 and intervals[-1] == 4 * intervals[-2] and intervals == sorted(set(intervals))
        expected = "ascending integers >= 1, the last of them 4 times the one before"
        require(steep, "intervals", intervals, expected)
        require(self.points & (self.points - 1) == 0, "points", self.points, "a power of two, >= 2")
        enough = not sigmas or (len(sigmas) >= 3 and sigmas == sorted(set(sigmas)))
        require(enough, "sigmas", sigmas, "none, or at least three ascending noise levels > 0")
        require(self.paths != 1, "paths", self.paths, "0, or an integer >= 2")
        start, end = self.path_sigmas
        require(start > end, "path_sigmas", [start, end], "[start, end], two descending noise levels > 0")


class Discrepancy(Options):
    """Velocity discrepancy of each coupling, by the denoisers of the data set."""

    samples: int = Field(ge=2, le=10**7, description="pairs per noise level")
    sigmas: Different[tuple[Level, ...]] = Field(min_length=1, description="noise levels")
    seed: Seed = Field(description="of the pairs")


class Transport(Options):
    """Transport cost: of IC, of OT in batches, and of GC at each noise level."""

    predictor: RunReference = Field(description="the run whose EMA predicts endpoints")
    samples: int = Field(
        ge=2,
        le=10**7,
        description="pairs per estimate; a multiple of every batch size, of twice at least; 30 batches and more keep "
        "the test of OT's cost at its level",
    )
    batch_sizes: Different[tuple[Count, ...]] = Field(description="of optimal transport")
    sigmas: tuple[Level, ...] = Field(min_length=1, description="noise levels, ascending")
    seed: Seed = Field(description="of the pairs")

    def __post_init__(self) -> None:
        for size in self.batch_sizes:
            two = self.samples % size == 0 and self.samples > size
            require(two, "batch_sizes", size, "a divisor of samples that gives at least two batches")
        levels = list(self.sigmas)
        require(levels == sorted(set(levels)), "sigmas", levels, "ascending noise levels > 0")


class Table(Options):
    """A table of final metrics."""

    title: Line = Field(description="above the table")
    methods: Methods = Field(min_length=1, description="whose runs it shows; a swept method means all of its sweep")
    reproduces: Reproduces | None = Field(
        default=None,
        description="which table of the paper it answers, `table1`; the workflow has a target of that name",
    )
    paper: str | None = Field(
        default=None, description="which of the paper's data sets this is, for its numbers beside ours"
    )
    published: str | None = Field(
        default=None,
        description="the entry of paper.yaml that these numbers stand in; null means the one called as `reproduces`",
    )
    protocol: str | None = Field(default=None, description="of the features; null means the first")
    note: str | None = Field(default=None, description="what else a reader must know, shown below the table")

    @property
    def published_entry(self) -> str:
        """The entry of paper.yaml; of a table that nothing published stands beside, a name that is in none."""
        return self.published or self.reproduces or ""


class Figure(Options):
    """A figure."""

    kind: FigureKindName = Field(description="how it is drawn: a file of `gcflow/pipeline/figures`")
    title: Drawn = Field(description="above the figure")
    methods: Methods = Field(
        default=(), description="whose runs it shows, where its kind shows runs; a swept method means all of its sweep"
    )
    reproduces: Reproduces | None = Field(
        default=None,
        description="which figure of the paper it answers, `figure5`; the workflow has a target of that name",
    )


class DatasetEntry(Options):
    """Everything about one data set: where it comes from, what is trained on it, and how that is measured and shown."""

    data: Annotated[Source, register.source] = Field(description="where it comes from")
    process: NoiseProcess = Field(description="the noise, and the scale of the data")
    network: Annotated[Network, register.network] = Field(description="what is trained, unless a method overrides it")
    training: TrainingConfig = Field(description="how, unless a method overrides it")
    methods: dict[Name, MethodEntry] = Field(description="what can be trained, by name")
    runs: dict[str, Replicates] = Field(
        description="which runs exist, by method; a swept method means all of its sweep, each named in its label"
    )
    features: Annotated[Features, Field(discriminator="kind")] = Field(description="what samples are compared in")
    evaluation: Evaluation = Field(description="what is compared")
    scale: Scale = Field(
        default="embedded",
        description="`embedded` runs anywhere in minutes; `rehearsal` takes the paper's recipe for minutes on a GPU; "
        "`paper` is the paper's",
    )
    cadence: Cadence = Field(default_factory=Cadence, description="how often a run speaks and saves")
    transport: Transport | None = Field(default=None, description="transport costs to measure")
    discrepancy: Discrepancy | None = Field(default=None, description="velocity discrepancies to measure")
    theory: Theory | None = Field(default=None, description="checks of the theory, where the flow is known exactly")
    tables: dict[Name, Table] = Field(default_factory=dict, description="by name")
    figures: dict[Name, Figure] = Field(default_factory=dict, description="by name")


RunStatistic = Literal["final", "start", "area", "rise", "discrepancy", "discrepancy-slope"]
CostStatistic = Literal["falls-at-small-noise", "falls-at-large-noise", "below-ot"]

Statistic = RunStatistic | CostStatistic


class RunsClaim(Options):
    """That one method's statistic is lower than another's, over the training seeds that both have."""

    place: Line = Field(description="in the paper")
    claim: Line = Field(description="one sentence")
    statistic: RunStatistic = Field(
        description="of a run: ln distance at the end, at the first snapshot, its mean over snapshots, at the end over "
        "the least; mean ln discrepancy of a denoiser's coupling, its slope against ln sigma"
    )
    lower: str = Field(description="the method whose statistic is lower")
    higher: str = Field(description="than this other method's")
    test: Literal["runs"] = "runs"

    def __post_init__(self) -> None:
        require(self.lower != self.higher, "higher", self.higher, "another method than lower")


class TransportClaim(Options):
    """About the transport cost of generator-augmented pairs: how it begins and ends, or that it falls below OT's."""

    place: Line = Field(description="in the paper")
    claim: Line = Field(description="one sentence")
    statistic: CostStatistic = Field(description="what it does")
    test: Literal["transport"] = "transport"


class TheoryClaim(Options):
    """That every numerical check of a statement holds."""

    place: Line = Field(description="in the paper")
    claim: Line = Field(description="one sentence")
    statement: str = Field(description="as theory.json names it, e.g. `Theorem 1`")
    test: Literal["theory"] = "theory"


Claim = RunsClaim | TransportClaim | TheoryClaim


class Claims(Options):
    """claims.yaml: what is tested, the same on every data set."""

    confidence: Open = Field(
        description="of all tests of a data set together; 1 - confidence bounds the chance of any wrong verdict there"
    )
    prior_scale: float = Field(
        gt=0, le=1e3, description="of the tests of runs: effects, in standard deviations of the pairs, that they expect"
    )
    most_seeds: int = Field(
        ge=2,
        le=10**4,
        description="of each method, base and added, where the workflow adds seeds until claims are decided",
    )
    margins: dict[Statistic, Annotated[float, Field(gt=0)]] = Field(
        description="by statistic the largest difference that is none: of logarithms, slopes, and shares of a cost"
    )
    entries: dict[Name, Annotated[Claim, Field(discriminator="test")]] = Field(description="by name")

    def __post_init__(self) -> None:
        for name, claim in self.entries.items():
            statistic = None if isinstance(claim, TheoryClaim) else claim.statistic
            known = statistic is None or statistic in self.margins
            require(known, "margins", list(self.margins), f"one for {statistic}, too, of entries.{name}")


class AddedSeeds(Options):
    """seeds.yaml: runs beyond those of params.yaml, which undecided claims asked for."""

    round: int = Field(ge=1, le=10**4, description="how often seeds were added")
    seeds: dict[Name, dict[Name, Different[tuple[Seed, ...]]]] = Field(description="by data set and method")


class Pretrained(Options):
    """A public EDM model, which becomes checkpoints/<name>.safetensors."""

    pickle: str = Field(description="file in the archives' folder")
    url: str = Field(description="where it can be had")
    sha256: str | None = Field(default=None, description="that it must have; null only records it")


class Tracking(Options):
    """MLflow. The server is MLFLOW_TRACKING_URI, or else SQLite in the project folder."""

    # MLflow takes 500 characters, of which a data set's name needs some.
    experiment: Line = Field(
        max_length=400, description="its name there; each data set has its own below it, `<experiment>/<data set>`"
    )
    watch_every: float | None = Field(
        default=30.0,
        gt=0,
        le=10**6,
        description="seconds between what is sent while a workflow runs; null: all is sent at its end",
    )


class Document(Options):
    """The grid of runs, and what is measured and shown of them."""

    tracking: Tracking = Field(description="where runs are mirrored to")
    datasets: dict[Name, DatasetEntry] = Field(description="by name")
    pretrained: dict[Name, Pretrained] = Field(
        default_factory=dict, description="public models that runs start from, by name: `gcflow pretrained NAME`"
    )
    extensions: tuple[str, ...] = Field(
        default=(), description="Python files that register what gcflow lacks, relative to params.yaml"
    )
