"""The graph of stages: what each reads, which keys of params.yaml it depends on, what it writes, and its command.

Snakemake's rules take inputs and parameter slices from here and dvc.yaml is written from here, so the two cannot drift.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from gcflow.config import RunReference
from gcflow.extensions import origins
from gcflow.files import write_text
from gcflow.pipeline.dvc_views import view_definitions
from gcflow.pipeline.figures import figure_kind
from gcflow.pipeline.folders import (
    CLAIMS_FORMATS,
    DATA_FILES,
    FIGURE_FORMATS,
    TABLE_FORMATS,
    claims_path,
    data_folder,
    discrepancy_path,
    extractor_path,
    figure_path,
    pretrained_path,
    reference_path,
    report_path,
    results_folder,
    run_folder,
    theory_path,
)
from gcflow.pipeline.ledger.plans import plans
from gcflow.pipeline.params import Params, Run
from gcflow.pipeline.schema import Identity

HEADER = "# Written from params.yaml by `gcflow stages --scale {scale}`; change params.yaml and run it again.\n"

EVALUATION_OUTPUTS = ("metrics.json", "summary.json", "curves", "samples.npy", "samples.png", "grids")

# What decides the network of each kind of features, besides the kind.
FEATURE_KEYS = {"inception": ("features.weights", "features.sha256"), "surrogate": ("features.seed",)}


@dataclass(frozen=True)
class Stage:
    """One command. deps, outs: paths relative to the root. keys: dotted keys of params.yaml."""

    name: str
    command: str
    deps: tuple[str, ...]
    keys: tuple[str, ...]
    outs: tuple[str, ...]

    def slice(self, params: Params) -> dict[str, Any]:
        """The values of `keys`; a change in them, and in nothing else of params.yaml, makes the stage out of date."""
        return {key: _value(params.document, key) for key in self.keys}


def _value(document: Any, key: str) -> Any:
    for part in key.split("."):
        document = document.get(part) if isinstance(document, dict) else None
    return document


class Stages:
    """The stages of a params.yaml, by kind; as a whole, those of a scale. Paths are relative to the project's root."""

    def __init__(self, params: Params, scale: str = "all") -> None:
        self.params = params
        self.scale = scale
        self.datasets = params.at_scale(scale)
        self.root = Path()
        self._of_runs: dict[tuple[str, Run], Stage] = {}

    def _keys(self, dataset: str, *names: str) -> tuple[str, ...]:
        document = self.params.document["datasets"][dataset]
        return tuple(f"datasets.{dataset}.{name}" for name in names if _value(document, name) is not None)

    def _data(self, dataset: str) -> tuple[str, ...]:
        folder = data_folder(self.root, dataset)
        return tuple(str(folder / name) for name in DATA_FILES)

    def _extractor(self, dataset: str) -> tuple[str, ...]:
        features = self.params.dataset(dataset).features
        network = not isinstance(features, Identity)
        return (str(extractor_path(self.root, dataset, features.kind)),) if network else ()

    def _references(self, dataset: str) -> tuple[str, ...]:
        protocols = self.params.dataset(dataset).features.protocols
        return tuple(str(reference_path(self.root, dataset, protocol)) for protocol in protocols)

    def _code(self, run: Run) -> tuple[str, ...]:
        """Files of extensions that a run's coupling and network come from."""
        config = self.params.run_config(run.name)
        return tuple(origins(*config.parts))

    def _snapshots(self, run: Run) -> str:
        return str(run_folder(self.root, run) / "snapshots")

    def prepare(self, dataset: str) -> Stage:
        """Data arrays."""
        return Stage(
            f"prepare-{dataset}",
            f"gcflow prepare {dataset}",
            tuple(origins(self.params.dataset(dataset).data)),
            self._keys(dataset, "data"),
            self._data(dataset),
        )

    def pretrained(self, name: str) -> Stage:
        """A public model's weights."""
        return Stage(
            f"pretrained-{name}",
            f"gcflow pretrained {name}",
            (),
            (f"pretrained.{name}",),
            (str(pretrained_path(self.root, name)),),
        )

    def features(self, dataset: str) -> Stage:
        """The network that features are taken from: a classifier is trained on the data, Inception is looked up."""
        features = self.params.dataset(dataset).features
        names = ("features",) if features.kind == "classifier" else ("features.kind", *FEATURE_KEYS[features.kind])
        return Stage(
            f"features-{dataset}",
            f"gcflow features {dataset}",
            self._data(dataset) if features.kind == "classifier" else (),
            self._keys(dataset, *names),
            self._extractor(dataset),
        )

    def reference(self, dataset: str, protocol: str) -> Stage:
        """Features of the real data under a protocol."""
        return Stage(
            f"reference-{dataset}-{protocol}",
            f"gcflow reference {dataset} {protocol}",
            (*self._data(dataset), *self._extractor(dataset)),
            self._keys(dataset, "features.kind", f"features.protocols.{protocol}"),
            (str(reference_path(self.root, dataset, protocol)),),
        )

    def train(self, run: Run) -> Stage:
        """A run."""
        return self._once("train", run, self._train)

    def evaluate(self, run: Run) -> Stage:
        """Metrics and samples of a run."""
        return self._once("evaluate", run, self._evaluate)

    def _once(self, kind: str, run: Run, make: Callable[[Run], Stage]) -> Stage:
        """The stage of a run, made only once: a scheduler asks for each again and again, and grids have thousands."""
        if (kind, run) not in self._of_runs:
            self._of_runs[kind, run] = make(run)
        return self._of_runs[kind, run]

    def _train(self, run: Run) -> Stage:
        folder = run_folder(self.root, run)
        runs = sorted({self._snapshots(needed) for needed, _ in self.params.needed_runs(run).values()})
        files = sorted(set(self.params.needed_files(run).values()))
        return Stage(
            f"train-{run.dataset}-{run.method}-{run.seed}",
            f"gcflow train {run.name}",
            (*self._data(run.dataset), *runs, *files, *self._code(run)),
            self._keys(run.dataset, "process", "network", "training", f"methods.{run.method}"),
            (
                str(folder / "config.json"),
                str(folder / "weights.safetensors"),
                str(folder / "metrics.jsonl"),
                str(folder / "jobs.json"),
                str(folder / "snapshots"),
            ),
        )

    def _evaluate(self, run: Run) -> Stage:
        folder = run_folder(self.root, run) / "evaluation"
        metrics = self.params.dataset(run.dataset).evaluation.metrics
        return Stage(
            f"evaluate-{run.dataset}-{run.method}-{run.seed}",
            f"gcflow evaluate {run.name}",
            (
                *self._data(run.dataset),
                *self._extractor(run.dataset),
                *self._references(run.dataset),
                self._snapshots(run),
                str(run_folder(self.root, run) / "metrics.jsonl"),
                *origins(self.params.run_config(run.name).network, *metrics),
            ),
            self._keys(run.dataset, "evaluation", "features.protocols"),
            tuple(str(folder / name) for name in EVALUATION_OUTPUTS),
        )

    def transport(self, dataset: str) -> Stage:
        """Transport costs."""
        settings = self.params.dataset(dataset).transport
        predictor = settings.predictor if settings else RunReference(method="")
        needed, _ = self.params.resolve(predictor, dataset, 0)
        return Stage(
            f"transport-{dataset}",
            f"gcflow transport {dataset}",
            (*self._data(dataset), self._snapshots(needed)),
            self._keys(dataset, "transport"),
            (str(results_folder(self.root, dataset) / "transport.json"),),
        )

    def theory(self, dataset: str) -> Stage:
        """Checks of the paper's theory."""
        settings = self.params.dataset(dataset).theory
        predictor = settings.predictor if settings and settings.paths else None
        needed = [self.params.resolve(predictor, dataset, 0)[0]] if predictor else []
        return Stage(
            f"theory-{dataset}",
            f"gcflow theory {dataset}",
            tuple(map(self._snapshots, needed)),
            self._keys(dataset, "data", "process", "theory"),
            (str(theory_path(self.root, dataset)),),
        )

    def discrepancy(self, run: Run) -> Stage:
        """The velocity discrepancy of a denoiser's coupling."""
        snapshots = {self._snapshots(needed) for needed, _ in self.params.needed_runs(run).values()}
        weights = sorted({*snapshots, *self.params.needed_files(run).values()})
        return Stage(
            f"discrepancy-{run.dataset}-{run.method}-{run.seed}",
            f"gcflow discrepancy {run.name}",
            (*self._data(run.dataset), self._snapshots(run), *weights, *self._code(run)),
            self._keys(run.dataset, "discrepancy", f"methods.{run.method}"),
            (str(discrepancy_path(self.root, run)),),
        )

    def denoisers(self, dataset: str) -> list[Run]:
        """The runs whose discrepancy is measured."""
        entry = self.params.dataset(dataset)
        if entry.discrepancy is None:
            return []
        return [run for run in self.params.runs(dataset) if entry.methods[run.method].criterion.denoises]

    def _metrics(self, dataset: str, methods: tuple[str, ...]) -> tuple[str, ...]:
        runs = (
            Run(dataset, method, seed) for method in methods for seed in self.params.dataset(dataset).runs[method].seeds
        )
        return tuple(str(run_folder(self.root, run) / "evaluation" / "metrics.json") for run in runs)

    def _shown(self, dataset: str, methods: tuple[str, ...]) -> tuple[str, ...]:
        return self._keys(dataset, *(f"runs.{method}" for method in methods))

    def table(self, dataset: str, name: str) -> Stage:
        """A table."""
        entry = self.params.dataset(dataset)
        methods = entry.tables[name].methods
        protocol = entry.tables[name].protocol or next(iter(entry.features.protocols))
        out = results_folder(self.root, dataset) / "tables"
        return Stage(
            f"table-{dataset}-{name}",
            f"gcflow table {dataset} {name}",
            (str(reference_path(self.root, dataset, protocol)), *self._metrics(dataset, methods)),
            (*self._keys(dataset, f"tables.{name}"), *self._shown(dataset, methods)),
            tuple(str(out / f"{name}.{suffix}") for suffix in TABLE_FORMATS),
        )

    def figure(self, dataset: str, name: str) -> Stage:
        """A figure, from the files that its kind shows."""
        content = self.params.dataset(dataset).figures[name]
        inputs = figure_kind(content.kind).inputs(self.params, dataset, content)
        return Stage(
            f"figure-{dataset}-{name}",
            f"gcflow figure {dataset} {name}",
            tuple(map(str, inputs.files)),
            (*self._keys(dataset, f"figures.{name}"), *self._shown(dataset, (*content.methods, *inputs.labels))),
            tuple(str(figure_path(self.root, dataset, name, suffix)) for suffix in FIGURE_FORMATS),
        )

    def claims(self) -> Stage:
        """The ledger of claims, from every file that a test of them reads."""
        known = [plan for dataset in self.datasets for plan in plans(self.params, dataset)]
        tested = [plan for plan in known if plan.reason is None]
        runs = [run for plan in tested for pair in plan.runs for run in pair]
        shown = [key for run in runs for key in self._shown(run.dataset, (run.method,))]
        return Stage(
            "claims",
            f"gcflow claims --scale {self.scale}",
            tuple(dict.fromkeys(file for plan in tested for file in plan.files)),
            ("claims", *dict.fromkeys(shown)),
            tuple(str(claims_path(self.root, suffix)) for suffix in CLAIMS_FORMATS),
        )

    def report(self) -> Stage:
        """The report, from everything that the other stages make but snapshots, which it does not show."""
        made = list(self._made())
        snapshots = {self._snapshots(run) for dataset in self.datasets for run in self.params.runs(dataset)}
        names = ("runs", "tables", "figures", "evaluation.grid")
        return Stage(
            "report",
            f"gcflow report --scale {self.scale}",
            tuple(out for stage in made for out in stage.outs if out not in snapshots),
            tuple(key for dataset in self.datasets for key in self._keys(dataset, *names)),
            (str(report_path(self.root)),),
        )

    def of_dataset(self, dataset: str) -> Iterator[Stage]:
        """The stages of a data set, in an order in which they could run."""
        entry = self.params.dataset(dataset)
        yield self.prepare(dataset)
        if self._extractor(dataset):
            yield self.features(dataset)
        yield from (self.reference(dataset, protocol) for protocol in entry.features.protocols)
        runs = sorted(self.params.runs(dataset), key=self.params.depth)
        yield from (self.train(run) for run in runs)
        yield from (self.evaluate(run) for run in runs)
        yield from (self.discrepancy(run) for run in self.denoisers(dataset))
        if entry.transport:
            yield self.transport(dataset)
        if entry.theory:
            yield self.theory(dataset)
        yield from (self.table(dataset, name) for name in entry.tables)
        yield from (self.figure(dataset, name) for name in entry.figures)

    def _made(self) -> Iterator[Stage]:
        """All stages of the scale but the report of them."""
        stages = [stage for dataset in self.datasets for stage in self.of_dataset(dataset)]
        needed = {file for stage in stages for file in stage.deps}
        published = (self.pretrained(name) for name in self.params.pretrained)
        yield from (stage for stage in published if needed.intersection(stage.outs))
        yield from stages
        if self.params.claims:
            yield self.claims()

    def __iter__(self) -> Iterator[Stage]:
        """All stages of the scale, in an order in which they could run."""
        yield from self._made()
        yield self.report()

    def named(self, target: str) -> list[Stage] | None:
        """The stages that a target names: a view of the paper, a data set, a run or a stage; None if nothing does.

        Raises:
            GcflowError: it has the form of a run and is none.
        """
        if "/" in target:
            run = self.params.parse_run(target)
            return [self.train(run), self.evaluate(run)]
        if target in self.datasets:
            return list(self.of_dataset(target))
        views = self.views()
        if target in views:
            return views[target]
        return [stage for stage in self if stage.name == target] or None

    def views(self) -> dict[str, list[Stage]]:
        """The paper's tables and figures (`table1`, `figure5`) to the stages that answer them.

        At this scale; what it has no answer to, such as the low-dimensional figure 1, is answered by the other scales.
        """
        found: dict[str, list[Stage]] = {}
        for datasets in (self.datasets, [name for name in self.params.datasets if name not in self.datasets]):
            here: dict[str, list[Stage]] = {}
            for dataset in datasets:
                entry = self.params.dataset(dataset)
                tables = [(table.reproduces, self.table(dataset, name)) for name, table in entry.tables.items()]
                figures = [(figure.reproduces, self.figure(dataset, name)) for name, figure in entry.figures.items()]
                for place, stage in (*tables, *figures):
                    if place:
                        here.setdefault(place, []).append(stage)
            found = here | found
        return dict(sorted(found.items()))


def dvc_document(params: Params, scale: str) -> str:
    """The text of dvc.yaml for the stages of a scale."""
    stages: dict[str, Any] = {}
    for stage in Stages(params, scale):
        keys = dict.fromkeys(map(params.written, stage.keys))
        parts = {"cmd": stage.command, "deps": stage.deps, "params": keys, "outs": stage.outs}
        stages[stage.name] = {key: value if key == "cmd" else list(value) for key, value in parts.items() if value}
    document = {"stages": stages} | view_definitions(params, params.at_scale(scale))
    return HEADER.format(scale=scale) + yaml.safe_dump(document, sort_keys=False, width=1000)


def write_dvc_yaml(params: Params, scale: str) -> bool:
    """Writes dvc.yaml if its content differs; returns whether it did."""
    path, text = params.root / "dvc.yaml", dvc_document(params, scale)
    if path.exists() and path.read_text() == text:
        return False
    write_text(path, text)
    return True
