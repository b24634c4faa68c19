"""params.yaml, the grid of runs, claims.yaml and seeds.yaml: validated as a whole before anything is scheduled."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar

from pydantic import ValidationError

from gcflow.config import (
    CheckpointFile,
    RunConfig,
    RunReference,
    TrainingConfig,
    check_start,
    from_dict,
)
from gcflow.errors import GcflowError
from gcflow.extensions import load_extensions
from gcflow.networks import Network
from gcflow.options import choice_of, mistakes
from gcflow.pipeline import features
from gcflow.pipeline.figures import figure_mistakes
from gcflow.pipeline.schema import SCALES, AddedSeeds, Claims, DatasetEntry, Document, RunsClaim, Table
from gcflow.pipeline.sweeps import expand_sweeps
from gcflow.pipeline.yaml_files import read_yaml
from gcflow.register import network
from gcflow.sources import Mixture2d

CLAIMS, PAPER, SEEDS = "claims.yaml", "paper.yaml", "seeds.yaml"
Entry = TypeVar("Entry")


def _refusal(path: Path, error: ValidationError, document: Any, prefix: tuple[str, ...] = ()) -> GcflowError:
    return GcflowError("\n".join(f"{path}: {line}" for line in mistakes(error, document, prefix)))


@dataclass(frozen=True)
class Run:
    """A point of the grid: data set x method x seed."""

    dataset: str
    method: str
    seed: int

    @property
    def name(self) -> str:
        """`data set/method/seed`."""
        return f"{self.dataset}/{self.method}/{self.seed}"


def named_run(reference: RunReference, dataset: str, seed: int) -> Run:
    """The run that a reference means, seen from a run of `dataset` with `seed`."""
    return Run(dataset, reference.method, seed if reference.seed is None else reference.seed)


class Params:
    """The validated params.yaml: typed access, and the document, with its sweeps expanded, for slices of it.

    claims: of claims.yaml. published: of paper.yaml, see `PublishedValue`. added: of seeds.yaml. Without the files None
    and empty. Tables, figures and `all` are of the runs of params.yaml; those that seeds.yaml adds decide claims only.

    Args:
        path: of the file; its folder is the project's root, which has the other three.

    Raises:
        GcflowError: one line per mistake, each with file and key.
    """

    def __init__(self, path: Path = Path("params.yaml")) -> None:
        self.path = path
        self.root = path.parent
        self.document = read_yaml(path)
        try:
            self._origins = expand_sweeps(self.document)
        except GcflowError as error:
            raise GcflowError(f"{path}: {error}") from None
        extensions = self.document.get("extensions", [])
        # What is no list of texts is refused with everything else.
        if isinstance(extensions, list) and all(isinstance(file, str) for file in extensions):
            load_extensions(self.root, extensions, f"{path}: extensions")
        parsed: Document = self._validated(Document, self.document, ())
        self.tracking = parsed.tracking
        self.datasets = parsed.datasets
        self.added = self._added()
        self.claims = self._claims()
        paper = self.root / PAPER
        self.published = read_yaml(paper) if paper.exists() else {}
        self.pretrained = parsed.pretrained
        for name, entry in self.datasets.items():
            self._check_views(name, entry)
            low, high = entry.process.sigma_min, entry.process.sigma_max
            levels = list(entry.evaluation.intermediate_sigmas)
            for sigma in levels:
                if not low < sigma < high:
                    key = f"datasets.{name}.evaluation.intermediate_sigmas"
                    raise self._fail(key, f"is {levels}, expected levels between {low:g} and {high:g}")
            for method in entry.methods:
                self._check_method(name, method)
            for figure in entry.figures:
                for key, problem in figure_mistakes(entry, figure):
                    raise self._fail(f"datasets.{name}.{key}", problem)

    def _fail(self, key: str, problem: str) -> GcflowError:
        return GcflowError(f"{self.path}: {key} {problem}")

    def _validated(self, kind: Any, document: Any, prefix: tuple[str, ...]) -> Any:
        try:
            return from_dict(kind, document)
        except ValidationError as error:
            raise _refusal(self.path, error, document, prefix) from None

    def written(self, key: str) -> str:
        """The dotted key at which the file has what `document` has at `key`: a sweep's stand under its one method."""
        parts = key.split(".")
        if len(parts) > 3:
            parts[3] = self._origins.get((parts[1], parts[2], parts[3]), parts[3])
        return ".".join(parts)

    def dataset(self, name: str) -> DatasetEntry:
        """The entry of a data set, or a GcflowError that lists the known ones."""
        return self.named("datasets", name, self.datasets)

    def named(self, key: str, name: str, entries: Mapping[str, Entry]) -> Entry:
        """An entry of a block of the file, or a GcflowError that lists the known ones. key: of the block."""
        if name not in entries:
            raise self._fail(f"{key} has no {name!r};", choice_of(name, entries))
        return entries[name]

    def at_scale(self, scale: str) -> list[str]:
        """The data sets of a scale; `all` means every one."""
        if scale not in (*SCALES, "all"):
            raise GcflowError(f"scale {scale!r}: expected {', '.join(SCALES)} or all")
        return [name for name, entry in self.datasets.items() if scale in ("all", entry.scale)]

    def seeds(self, dataset: str, method: str, added: bool = True) -> tuple[int, ...]:
        """The seeds of a method that has runs, with those of seeds.yaml behind its own."""
        own = self.dataset(dataset).runs[method].seeds
        more = self.added.seeds.get(dataset, {}).get(method, ()) if added and self.added else ()
        return (*own, *(seed for seed in more if seed not in own))

    def runs(self, dataset: str | None = None, added: bool = False) -> Iterator[Run]:
        """Every run of the grid, or of one data set, in the file's order; of each method the added ones last."""
        for name in [dataset] if dataset else self.datasets:
            for method in self.dataset(name).runs:
                yield from (Run(name, method, seed) for seed in self.seeds(name, method, added))

    def parse_run(self, name: str) -> Run:
        """The run called `data set/method/seed`, or a GcflowError that says what is known."""
        parts = name.split("/")
        if len(parts) != 3 or not parts[2].isdecimal():
            raise GcflowError(f"run {name!r} is not of the form dataset/method/seed, e.g. digits/gc/0")
        run = Run(parts[0], parts[1], int(parts[2]))
        key = f"datasets.{run.dataset}.runs"
        self.named(key, run.method, self.dataset(run.dataset).runs)
        seeds = self.seeds(run.dataset, run.method)
        if run.seed not in seeds:
            raise self._fail(f"{key}.{run.method}.seeds has no {run.seed};", choice_of(run.seed, seeds))
        return run

    def run_config(self, name: str, overrides: dict[str, dict[str, Any]] | None = None) -> RunConfig:
        """The resolved configuration of a run: the data set's blocks with the method's overrides.

        `overrides` change `network` and `training` once more, for a measurement.
        """
        return self._config(self.parse_run(name), overrides or {})

    def _config(self, run: Run, overrides: dict[str, dict[str, Any]]) -> RunConfig:
        entry, raw = self.dataset(run.dataset), self.document["datasets"][run.dataset]
        method = entry.methods[run.method]
        where = ("datasets", run.dataset, "methods", run.method)
        networks = _merged_network(_merged_network(raw["network"], method.network), overrides.get("network", {}))
        training = _merged(_merged(raw["training"], method.training), overrides.get("training", {}))
        parts = {
            "network": self._validated(Annotated[Network, network], networks, (*where, "network")),
            "training": self._validated(TrainingConfig, training, (*where, "training")),
        }
        try:
            return RunConfig(
                dataset=run.dataset,
                method_name=run.method,
                seed=run.seed,
                process=entry.process,
                method=method.algebra(),
                **parts,
            )
        except ValidationError as error:
            raise _refusal(self.path, error, {}, where) from None

    def needed_runs(self, run: Run) -> dict[str, tuple[Run, int]]:
        """Role (`predictor`, `teacher`, `init`) to the run, and its snapshot step, whose weights `run` needs in it."""
        return {role: self.resolve(value, run.dataset, run.seed) for role, value in self._references(run).items()}

    def with_needed(self, runs: Iterable[Run]) -> set[Run]:
        """The runs, whether or not their seeds are in the grid, and all whose weights they need, in turn."""
        found, open_ends = set[Run](), list(runs)
        while open_ends:
            run = open_ends.pop()
            if run not in found:
                found.add(run)
                references = self._references(run).values()
                open_ends += [named_run(reference, run.dataset, run.seed) for reference in references]
        return found

    def _references(self, run: Run) -> dict[str, RunReference]:
        frozen = self.dataset(run.dataset).methods[run.method].frozen
        return {role: value for role, value in frozen.items() if isinstance(value, RunReference)}

    def needed_files(self, run: Run) -> dict[str, str]:
        """Role to the file, relative to the root, whose weights `run` needs in it."""
        frozen = self.dataset(run.dataset).methods[run.method].frozen
        return {role: value.file for role, value in frozen.items() if isinstance(value, CheckpointFile)}

    def depth(self, run: Run) -> int:
        """How many runs must come before `run`, one after the other."""
        return max((1 + self.depth(needed) for needed, _ in self.needed_runs(run).values()), default=0)

    def resolve(self, reference: RunReference, dataset: str, seed: int) -> tuple[Run, int]:
        """The run and snapshot step that a reference means, seen from a run of `dataset` with `seed`."""
        run = named_run(reference, dataset, seed)
        training = self.run_config(run.name).training
        return run, reference.step if reference.step is not None else training.steps

    def _check_views(self, name: str, entry: DatasetEntry) -> None:
        where = f"datasets.{name}"
        self._check_evaluation(where, entry)
        for method in entry.runs:
            if method not in entry.methods:
                raise self._fail(f"{where}.runs.{method}", f"names no method; {choice_of(method, entry.methods)}")
        for view, table in entry.tables.items():
            self._check_table(f"{where}.tables.{view}", table, entry)
        for kind, views in (("tables", entry.tables), ("figures", entry.figures)):
            for view, content in views.items():
                for method in content.methods:
                    if method not in entry.runs:
                        problem = f"names {method!r}; {choice_of(method, entry.runs)}"
                        raise self._fail(f"{where}.{kind}.{view}.methods", problem)
        if entry.theory and not isinstance(entry.data, Mixture2d):
            raise self._fail(f"{where}.theory", "needs a source with an exact flow: mixture2d")
        for block, settings in (("transport", entry.transport), ("theory", entry.theory)):
            if settings and settings.predictor:
                self._check_role(f"{where}.{block}.predictor", settings.predictor, name, (0,), "predictor")

    def _check_evaluation(self, where: str, entry: DatasetEntry) -> None:
        taken = [metric.name for metric in features.KINDS[entry.features.kind].metrics]
        for name in (name for metric in entry.evaluation.metrics for name in metric.columns):
            if not re.fullmatch("[a-z0-9-]+", name) or name in taken:
                raise self._fail(
                    f"{where}.evaluation.metrics", f"gives {name!r}, which is taken or no name of a-z, 0-9 and -"
                )
        splits = max(getattr(rules, "score_splits", 1) for rules in entry.features.protocols.values())
        if entry.evaluation.samples < splits:
            problem = f"is {entry.evaluation.samples}, but a protocol scores them in {splits} splits"
            raise self._fail(f"{where}.evaluation.samples", problem)
        if entry.features.kind != "identity" and len(entry.data.shape) != 3:
            raise self._fail(f"{where}.features.kind", f"is {entry.features.kind!r}, expected 'identity' for points")
        for name, rules in entry.features.protocols.items():
            real = entry.data.count if rules and rules.split == "train" else None
            if rules and real is not None and real < (least := rules.fewest_images):
                problem = f"asks for {least} real images, and there are {real}"
                raise self._fail(f"{where}.features.protocols.{name}", problem)

    def _check_table(self, where: str, table: Table, entry: DatasetEntry) -> None:
        protocols = entry.features.protocols
        if table.protocol is not None and table.protocol not in protocols:
            raise self._fail(f"{where}.protocol", f"is {table.protocol!r}; {choice_of(table.protocol, protocols)}")
        if table.published is not None and table.published not in self.published:
            problem = f"is {table.published!r}; {choice_of(table.published, self.published)}"
            raise self._fail(f"{where}.published", problem)
        if table.paper is None:
            return
        if not features.KINDS[entry.features.kind].published:
            problem = f"is {table.paper!r}, but features of kind {entry.features.kind} compare with nothing published"
            raise self._fail(f"{where}.paper", problem)
        published = self.published.get(table.published_entry, {}).get("datasets", {})
        if table.paper not in published:
            known, key = ", ".join(published) or "none", "published" if table.published else "reproduces"
            problem = f"is {table.paper!r}; known for {key} {table.published or table.reproduces}: {known}"
            raise self._fail(f"{where}.paper", problem)

    def _beside(self, path: Path, kind: Any) -> Any:
        """A file beside params.yaml as an object of `kind`; None without it."""
        if not path.exists():
            return None
        document = read_yaml(path)
        try:
            return from_dict(kind, document)
        except ValidationError as error:
            raise _refusal(path, error, document) from None

    def _added(self) -> AddedSeeds | None:
        path = self.root / SEEDS
        added: AddedSeeds | None = self._beside(path, AddedSeeds)
        if added is None:
            return None
        for dataset, methods in added.seeds.items():
            known = self.datasets[dataset].runs if dataset in self.datasets else {}
            for method in methods.keys() - known.keys():
                raise GcflowError(f"{path}: seeds.{dataset}.{method} has no runs in {self.path.name}; delete the key")
        return added

    def _claims(self) -> Claims | None:
        path = self.root / CLAIMS
        claims: Claims | None = self._beside(path, Claims)
        if claims is None:
            return None
        known = list(dict.fromkeys(method for entry in self.datasets.values() for method in entry.methods))
        for name, claim in claims.entries.items():
            sides = {"lower": claim.lower, "higher": claim.higher} if isinstance(claim, RunsClaim) else {}
            for side, method in sides.items():
                if method not in known:
                    problem = f"is {method!r}, which names no method of any data set; {choice_of(method, known)}"
                    raise GcflowError(f"{path}: entries.{name}.{side} {problem}")
        return claims

    def _check_method(self, dataset: str, method: str) -> None:
        entry, where = self.dataset(dataset), f"datasets.{dataset}.methods.{method}"
        config = self._config(Run(dataset, method, 0), {})
        try:
            config.network.check(tuple(entry.data.shape))
        except ValidationError as error:
            raise _refusal(self.path, error, {}, (*where.split("."), "network")) from None
        except ValueError as error:
            raise self._fail(f"{where}.network", str(error)) from None
        seeds = self.seeds(dataset, method) if method in entry.runs else ()
        for role, reference in entry.methods[method].frozen.items():
            if isinstance(reference, CheckpointFile):
                continue
            self._check_role(f"{where}.{role}", reference, dataset, seeds, role)
            self._check_no_cycle(f"{where}.{role}", dataset, method, reference.method)
            if role == "init":
                self._check_start(f"{where}.init", config, self._config(Run(dataset, reference.method, 0), {}))

    def _check_no_cycle(self, key: str, dataset: str, method: str, needed: str) -> None:
        methods, open_ends, seen = self.dataset(dataset).methods, [needed], set()
        while open_ends:
            current = open_ends.pop()
            if current == method:
                raise self._fail(f"{key}.method", f"names {needed!r}, which itself needs {method!r}")
            if current in methods and current not in seen:
                seen.add(current)
                open_ends += [r.method for r in methods[current].frozen.values() if isinstance(r, RunReference)]

    def _check_start(self, key: str, config: RunConfig, start: RunConfig) -> None:
        try:
            check_start(start.network, start.preconditioning, start.process, config)
        except ValueError as error:
            raise self._fail(f"{key}.method", f"names {start.method_name!r}, {error}") from None

    def _check_role(self, key: str, reference: RunReference, dataset: str, seeds: tuple[int, ...], role: str) -> None:
        entry = self.dataset(dataset)
        if reference.method not in entry.runs:
            problem = f"names {reference.method!r}, which has no runs; {choice_of(reference.method, entry.runs)}"
            raise self._fail(f"{key}.method", problem)
        objective = entry.methods[reference.method].objective
        if role != "init" and objective.denoises != (role == "teacher"):
            raise self._fail(f"{key}.method", f"names {reference.method!r}, whose objective is {objective.kind}")
        listed = self.seeds(dataset, reference.method)
        for wanted in seeds if reference.seed is None else (reference.seed,):
            if wanted not in listed:
                raise self._fail(key, f"needs run {dataset}/{reference.method}/{wanted}, which runs does not list")
        run, step = self.resolve(reference, dataset, listed[0])
        known = self.run_config(run.name).training.snapshot_steps
        if step not in known:
            raise self._fail(f"{key}.step", f"is {step}, expected a snapshot step of {run.name}: {known}")


class PublishedValue(NamedTuple):
    """A number of others, in paper.yaml a list: table (`table1`) to `datasets`, to method, to metric, to this.

    std: None where none is given. caveat: stands beside it wherever it is shown; nothing is computed from what has one.
    """

    mean: float
    std: float | None = None
    caveat: str = ""

    @property
    def text(self) -> str:
        """As it is shown."""
        spread = "" if self.std is None else f" ± {self.std:.2f}"
        return f"{self.mean:.2f}{spread} {self.caveat}".rstrip()


def _merged(base: Any, override: dict[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in override.items():
        under = result.get(key)
        # Another kind of schedule has other keys: it stands in the place of the one below instead of changing it.
        nested = isinstance(value, dict) and isinstance(under, dict) and value.get("kind") in (None, under.get("kind"))
        result[key] = _merged(result[key], value) if nested else value
    return result


def _merged_network(base: dict[str, Any], override: dict[str, Any]) -> dict[str, Any]:
    # As with schedules, a network of another class has other keys.
    classes = [network.classes.get(str(block.get(network.key))) for block in (base, override)]
    replaces = None not in classes and classes[0] is not classes[1]
    return override if replaces else _merged(base, override)
