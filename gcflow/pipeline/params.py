"""params.yaml: the grid of runs, validated as a whole before anything is scheduled."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, NamedTuple, cast

import yaml
from pydantic import TypeAdapter, ValidationError

from gcflow.config import (
    CheckpointFile,
    RunConfig,
    RunReference,
    TrainingConfig,
    check_start,
)
from gcflow.errors import GcflowError
from gcflow.extensions import load_extensions
from gcflow.pipeline import features
from gcflow.pipeline.figures import figure_mistakes
from gcflow.pipeline.schema import SCALES, Claims, DatasetEntry, Document, RunsClaim, Table
from gcflow.register import Network, network
from gcflow.sources import Mixture2d

NAME_CHARACTERS = set("abcdefghijklmnopqrstuvwxyz0123456789-")


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


class Params:
    """The validated params.yaml: typed access, and the raw document for the slices that DVC and Snakemake compare.

    Args:
        path: of the file; its folder is the project's root.

    Raises:
        GcflowError: one line per mistake, each with file and key.
    """

    def __init__(self, path: Path = Path("params.yaml")) -> None:
        self.path = path
        self.root = path.parent
        self.document = _read_yaml(path)
        extensions = self.document.get("extensions", [])
        # What is no list of texts is refused with everything else.
        if isinstance(extensions, list) and all(isinstance(file, str) for file in extensions):
            load_extensions(self.root, extensions, f"{path}: extensions")
        parsed: Document = self._validated(Document, self.document, ())
        self.tracking = parsed.tracking
        self.datasets = parsed.datasets
        self.claims = parsed.claims
        self.pretrained = parsed.pretrained
        for name, entry in self.datasets.items():
            self._check_names(name, entry)
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
        if self.claims:
            self._check_claims(self.claims)
        for word in self.pretrained:
            if not word or set(word) - NAME_CHARACTERS:
                raise self._fail(f"pretrained: {word!r}", "is not a name of a-z, 0-9 and -")

    def _fail(self, key: str, problem: str) -> GcflowError:
        return GcflowError(f"{self.path}: {key} {problem}")

    def _validated(self, kind: Any, document: Any, prefix: tuple[str, ...]) -> Any:
        try:
            # Through JSON, so that lists may become tuples while strings stay strings.
            return _adapter(kind).validate_json(json.dumps(document), strict=True)
        except ValidationError as error:
            raise GcflowError(
                "\n".join(f"{self.path}: {line}" for line in _mistakes(error, document, prefix))
            ) from None

    def dataset(self, name: str) -> DatasetEntry:
        """The entry of a data set, or a GcflowError that lists the known ones."""
        if name not in self.datasets:
            raise self._fail(f"datasets has no {name!r};", f"known: {', '.join(self.datasets)}")
        return self.datasets[name]

    def at_scale(self, scale: str) -> list[str]:
        """The data sets of a scale; `all` means every one."""
        if scale not in (*SCALES, "all"):
            raise GcflowError(f"scale {scale!r}: expected {', '.join(SCALES)} or all")
        return [name for name, entry in self.datasets.items() if scale in ("all", entry.scale)]

    def runs(self, dataset: str | None = None) -> Iterator[Run]:
        """Every run of the grid, or of one data set, in the file's order."""
        for name in [dataset] if dataset else self.datasets:
            for method, replicates in self.dataset(name).runs.items():
                yield from (Run(name, method, seed) for seed in replicates.seeds)

    def parse_run(self, name: str) -> Run:
        """The run called `data set/method/seed`, or a GcflowError that says what is known."""
        parts = name.split("/")
        if len(parts) != 3 or not parts[2].isdecimal():
            raise GcflowError(f"run {name!r} is not of the form dataset/method/seed, e.g. digits/gc/0")
        run = Run(parts[0], parts[1], int(parts[2]))
        entry = self.dataset(run.dataset)
        if run.method not in entry.runs:
            raise self._fail(f"datasets.{run.dataset}.runs", f"has no {run.method!r}; known: {', '.join(entry.runs)}")
        seeds = entry.runs[run.method].seeds
        if run.seed not in seeds:
            known = ", ".join(map(str, seeds))
            raise self._fail(f"datasets.{run.dataset}.runs.{run.method}.seeds", f"has no {run.seed}; known: {known}")
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
        except ValueError as error:
            raise self._fail(f"{'.'.join(where)}:", str(error)) from None

    def needed_runs(self, run: Run) -> dict[str, tuple[Run, int]]:
        """Role (`predictor`, `teacher`, `init`) to the run, and its snapshot step, whose weights `run` needs in it."""
        frozen = self.dataset(run.dataset).methods[run.method].frozen
        references = {role: value for role, value in frozen.items() if isinstance(value, RunReference)}
        return {role: self.resolve(value, run.dataset, run.seed) for role, value in references.items()}

    def needed_files(self, run: Run) -> dict[str, str]:
        """Role to the file, relative to the root, whose weights `run` needs in it."""
        frozen = self.dataset(run.dataset).methods[run.method].frozen
        return {role: value.file for role, value in frozen.items() if isinstance(value, CheckpointFile)}

    def depth(self, run: Run) -> int:
        """How many runs must come before `run`, one after the other."""
        return max((1 + self.depth(needed) for needed, _ in self.needed_runs(run).values()), default=0)

    def resolve(self, reference: RunReference, dataset: str, seed: int) -> tuple[Run, int]:
        """The run and snapshot step that a reference means, seen from a run of `dataset` with `seed`."""
        run = Run(dataset, reference.method, reference.seed if reference.seed is not None else seed)
        training = self.run_config(run.name).training
        return run, reference.step if reference.step is not None else training.steps

    def _check_names(self, name: str, entry: DatasetEntry) -> None:
        where = f"datasets.{name}"
        for word in (name, *entry.methods, *entry.tables, *entry.figures, *entry.features.protocols):
            if not word or set(word) - NAME_CHARACTERS:
                raise self._fail(f"{where}: {word!r}", "is not a name of a-z, 0-9 and -")
        self._check_evaluation(f"{where}.evaluation", entry)
        for method in entry.runs:
            if method not in entry.methods:
                raise self._fail(f"{where}.runs.{method}", f"names no method; known: {', '.join(entry.methods)}")
        for view, table in entry.tables.items():
            self._check_table(f"{where}.tables.{view}", table, entry)
        for kind, views in (("tables", entry.tables), ("figures", entry.figures)):
            for view, content in views.items():
                for method in content.methods:
                    if method not in entry.runs:
                        known = ", ".join(entry.runs)
                        raise self._fail(f"{where}.{kind}.{view}.methods", f"names {method!r}; known: {known}")
        if entry.theory and not isinstance(entry.data, Mixture2d):
            raise self._fail(f"{where}.theory", "needs a source with an exact flow: mixture2d")
        for block, settings in (("transport", entry.transport), ("theory", entry.theory)):
            if settings and settings.predictor:
                self._check_role(f"{where}.{block}.predictor", settings.predictor, name, (0,), "predictor")

    def _check_evaluation(self, where: str, entry: DatasetEntry) -> None:
        taken = [metric.name for metric in features.KINDS[entry.features.kind].metrics]
        for name in (name for metric in entry.evaluation.metrics for name in metric.columns):
            if not name or set(name) - NAME_CHARACTERS or name in taken:
                raise self._fail(f"{where}.metrics", f"gives {name!r}, which is taken or no name of a-z, 0-9 and -")
        splits = max((rules.score_splits for rules in entry.features.protocols.values() if rules), default=1)
        if entry.evaluation.samples < splits:
            problem = f"is {entry.evaluation.samples}, but a protocol scores them in {splits} splits"
            raise self._fail(f"{where}.samples", problem)

    def _check_table(self, where: str, table: Table, entry: DatasetEntry) -> None:
        protocols = entry.features.protocols
        if table.protocol is not None and table.protocol not in protocols:
            raise self._fail(f"{where}.protocol", f"is {table.protocol!r}; known: {', '.join(protocols)}")
        if table.published is not None and table.published not in published_tables():
            raise self._fail(f"{where}.published", f"is {table.published!r}; known: {', '.join(published_tables())}")
        if table.paper is None:
            return
        if not features.KINDS[entry.features.kind].published:
            problem = f"is {table.paper!r}, but features of kind {entry.features.kind} compare with nothing published"
            raise self._fail(f"{where}.paper", problem)
        published = published_tables().get(table.published_entry, {}).get("datasets", {})
        if table.paper not in published:
            known, key = ", ".join(published) or "none", "published" if table.published else "reproduces"
            problem = f"is {table.paper!r}; known for {key} {table.published or table.reproduces}: {known}"
            raise self._fail(f"{where}.paper", problem)

    def _check_claims(self, claims: Claims) -> None:
        known = list(dict.fromkeys(method for entry in self.datasets.values() for method in entry.methods))
        for name, claim in claims.entries.items():
            if not name or set(name) - NAME_CHARACTERS:
                raise self._fail(f"claims.entries: {name!r}", "is not a name of a-z, 0-9 and -")
            sides = {"lower": claim.lower, "higher": claim.higher} if isinstance(claim, RunsClaim) else {}
            for side, method in sides.items():
                if method not in known:
                    problem = f"is {method!r}, which names no method of any data set; known: {', '.join(known)}"
                    raise self._fail(f"claims.entries.{name}.{side}", problem)

    def _check_method(self, dataset: str, method: str) -> None:
        entry, where = self.dataset(dataset), f"datasets.{dataset}.methods.{method}"
        config = self._config(Run(dataset, method, 0), {})
        seeds = entry.runs[method].seeds if method in entry.runs else ()
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
            raise self._fail(
                f"{key}.method", f"names {reference.method!r}, which has no runs; known: {', '.join(entry.runs)}"
            )
        objective = entry.methods[reference.method].objective
        if role != "init" and (objective == "denoising") != (role == "teacher"):
            raise self._fail(f"{key}.method", f"names {reference.method!r}, whose objective is {objective}")
        listed = entry.runs[reference.method].seeds
        for wanted in seeds if reference.seed is None else (reference.seed,):
            if wanted not in listed:
                raise self._fail(key, f"needs run {dataset}/{reference.method}/{wanted}, which runs does not list")
        run, step = self.resolve(reference, dataset, listed[0])
        known = self.run_config(run.name).training.snapshot_steps
        if step not in known:
            raise self._fail(f"{key}.step", f"is {step}, expected a snapshot step of {run.name}: {known}")


class PublishedValue(NamedTuple):
    """A number of others. std: None where none is given. caveat: stands beside it wherever it is shown.

    What has a caveat is shown and nothing is computed from it.
    """

    mean: float
    std: float | None = None
    caveat: str = ""

    @property
    def text(self) -> str:
        """As it is shown."""
        spread = "" if self.std is None else f" ± {self.std:.2f}"
        return f"{self.mean:.2f}{spread} {self.caveat}".rstrip()


def published_tables() -> dict[str, Any]:
    """Published numbers: table (`table1`) to `source`, and `datasets`: data set to method to metric to [mean, std].

    A third entry is the caveat of a `PublishedValue`.
    """
    document: dict[str, Any] = yaml.safe_load(files("gcflow").joinpath("paper.yaml").read_text())
    return document


@cache
def _adapter(kind: Any) -> "TypeAdapter[Any]":
    # Building one takes longer than validating a hundred runs with it.
    return TypeAdapter(kind)


class _Loader(yaml.SafeLoader):
    """Safe YAML, with dates as text, every key as text, and no key twice: what JSON can hold."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping with text keys.

        Raises:
            ConstructorError: a key stands twice.
        """
        own = [self._key(key) for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        for place, key in enumerate(own):
            if key in own[:place]:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} stands twice", node.start_mark)
        # A key of one's own stands behind the merged ones, and wins.
        self.flatten_mapping(node)
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            result[self._key(key_node)] = self.construct_object(value_node, deep=True)
        return result

    def _key(self, node: yaml.Node) -> str:
        plain = isinstance(node, yaml.ScalarNode)
        return node.value if plain else str(self.construct_object(node, deep=True))


_Loader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        document = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError:
        raise GcflowError(f"{path}: no such file; run in the project's folder or give --params") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise GcflowError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(document, dict):
        raise GcflowError(f"{path}: expected keys tracking and datasets")
    return cast("dict[str, Any]", document)


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
    names = [block.get(network.key) for block in (base, override)]
    known = [name for name in names if isinstance(name, str) and name in network]
    replaces = len(known) == 2 and network[known[0]] is not network[known[1]]
    return override if replaces else _merged(base, override)


def _mistakes(error: ValidationError, document: Any, prefix: tuple[str, ...]) -> list[str]:
    """One line per mistake. Of a union's branches the one that got deepest speaks; equals are joined by `or`."""
    found: dict[tuple[str, ...], list[str]] = {}
    for item in error.errors():
        key, message = _describe(item, document, prefix)
        found.setdefault(key, []).append(message)
    lines = []
    for key, messages in found.items():
        if any(other[: len(key)] == key and other != key for other in found):
            continue
        start = messages[0].partition("expected ")[0]
        expected = [m.removeprefix(f"{start}expected ") for m in dict.fromkeys(messages) if m.startswith(start)]
        text = f"{start}expected {' or '.join(expected)}" if len(expected) > 1 else messages[0]
        lines.append(f"{'.'.join(key)} {text}")
    return lines


def _describe(error: Any, document: Any, prefix: tuple[str, ...]) -> tuple[tuple[str, ...], str]:
    """The key of one pydantic error as it stands in the file; the value, and what was expected."""
    path, here = list(prefix), document
    for part in error["loc"]:
        in_list = isinstance(here, list) and isinstance(part, int) and part < len(here)
        if in_list or (isinstance(here, dict) and part in here):
            here = here[part]
        elif error["type"] == "missing" and part == error["loc"][-1]:
            here = None
        else:
            continue  # the name of a branch of a union, not a key
        path.append(str(part))
    if error["type"] == "value_error":
        name, _, text = str(error["ctx"]["error"]).partition(" ")
        return (*path, name), text
    if error["type"] == "missing":
        return tuple(path), "is missing"
    if error["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return tuple(path), "is not a known key"
    if error["type"].startswith("union_tag"):
        name = error["ctx"]["discriminator"].strip("'")
        if name not in here:
            return (*path, name), "is missing"
        expected = error["ctx"].get("expected_tags", "a known name")
        return (*path, name), f"is {here[name]!r}: expected {expected}"
    message = error["msg"].replace("Input should be", "expected")
    hint = ""
    if isinstance(here, str) and error["type"] in ("float_type", "int_type", "float_parsing") and _is_number(here):
        hint = f"; YAML reads {here} as text, write {float(here)!r}" if "e" in here.lower() else "; remove the quotes"
    return tuple(path), f"is {here!r}: {message}{hint}"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
