"""The graph of stages: what each reads, which keys of params.yaml it depends on, and what it writes.

The one description: Snakemake's rules take from here the inputs that their wildcards do not tell and their slices of
params.yaml, and dvc.yaml is written from here (`gcflow.pipeline.dvc_stages`).
"""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from gcflow.config import RunReference
from gcflow.errors import GcflowError
from gcflow.extensions import origins
from gcflow.options import choice_of
from gcflow.pipeline.figures import figure_kind
from gcflow.pipeline.folders import (
    CLAIMS_FORMATS,
    COURSE_FORMATS,
    DATA_FILES,
    FIGURE_FORMATS,
    TABLE_FORMATS,
    evidence_path,
    extractor_path,
    reference_path,
    run_folder,
)
from gcflow.pipeline.ledger.plans import plans
from gcflow.pipeline.ledger.summaries import present_evidence
from gcflow.pipeline.params import CLAIMS, PAPER, Params, Run
from gcflow.pipeline.schema import Identity

# What decides the network of each kind of features, besides the kind.
FEATURE_KEYS = {
    "dinov2": ("features.size", "features.sha256"),
    "inception": ("features.weights", "features.sha256"),
    "surrogate": ("features.seed",),
}


def _under(prefix: str, names: Iterable[str]) -> tuple[str, ...]:
    return tuple(f"{prefix}{name}" for name in names)


ENTRY = "datasets.{dataset}."
RESULTS = "results/{dataset}/"
RUN = "results/{dataset}/{method}/seed{seed}/"
DATA = _under("data/{dataset}/", DATA_FILES)
TRAINED = ("config.json", "weights.safetensors", "metrics.jsonl", "jobs.json", "snapshots")
EVALUATED = ("metrics.json", "summary.json", "curves", "samples.npy", "samples.png", "grids")


@dataclass(frozen=True)
class Kind:
    """What all stages of a kind have in common, with Snakemake's wildcards; item: a protocol, a table, a model.

    deps, outs: paths. keys: dotted keys of params.yaml; one that a data set does not have is left out.
    """

    deps: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    outs: tuple[str, ...] = ()


KINDS = {
    "prepare": Kind(keys=(f"{ENTRY}data",), outs=DATA),
    "pretrained": Kind(keys=("pretrained.{item}",), outs=("checkpoints/{item}.safetensors",)),
    "features": Kind(),
    "reference": Kind(
        deps=DATA,
        keys=(f"{ENTRY}features.kind", f"{ENTRY}features.protocols.{{item}}"),
        outs=(f"{RESULTS}features/reference-{{item}}.safetensors",),
    ),
    "train": Kind(
        deps=DATA,
        keys=_under(ENTRY, ("process", "network", "training", "methods.{method}")),
        outs=_under(RUN, TRAINED),
    ),
    "evaluate": Kind(
        deps=(*DATA, f"{RUN}snapshots", f"{RUN}metrics.jsonl"),
        keys=(f"{ENTRY}evaluation", f"{ENTRY}features"),
        outs=_under(f"{RUN}evaluation/", EVALUATED),
    ),
    "discrepancy": Kind(
        deps=(*DATA, f"{RUN}snapshots"),
        keys=_under(ENTRY, ("discrepancy", "methods.{method}")),
        outs=(f"{RUN}discrepancy.json",),
    ),
    "transport": Kind(deps=DATA, keys=(f"{ENTRY}transport",), outs=(f"{RESULTS}transport.json",)),
    "theory": Kind(keys=_under(ENTRY, ("data", "process", "theory")), outs=(f"{RESULTS}theory.json",)),
    "table": Kind(keys=(f"{ENTRY}tables.{{item}}",), outs=_under(f"{RESULTS}tables/{{item}}.", TABLE_FORMATS)),
    "figure": Kind(keys=(f"{ENTRY}figures.{{item}}",), outs=_under(f"{RESULTS}figures/{{item}}.", FIGURE_FORMATS)),
    "claims": Kind(
        deps=(CLAIMS,),
        outs=(*_under("results/claims.", CLAIMS_FORMATS), *_under("results/claims-course.", COURSE_FORMATS)),
    ),
    "report": Kind(outs=("results/report.html",)),
}
OF_RUNS = ("train", "evaluate", "discrepancy")
# One each for all data sets of a scale.
OF_SCALE = ("claims", "report")


@dataclass(frozen=True)
class Stage:
    """One command.

    kind: of KINDS, its verb. dataset: None for a public model, the ledger and the report. item: what it makes of the
    data set (a protocol, a table, a figure), the model, or the scale. run: of train, evaluate and discrepancy. deps,
    outs: paths relative to the root. reads: those deps that its kind, data set, item and run do not tell. keys: dotted
    keys of params.yaml.
    """

    kind: str
    dataset: str | None
    item: str
    run: Run | None
    deps: tuple[str, ...]
    reads: tuple[str, ...]
    keys: tuple[str, ...]
    outs: tuple[str, ...]

    @property
    def name(self) -> str:
        """As DVC has it: `train@digits-gc-0`, `table-digits-table1`, `report`."""
        if self.run:
            return f"{self.kind}@{self.run.name.replace('/', '-')}"
        item = "" if self.kind in OF_SCALE else self.item
        return "-".join(filter(None, (self.kind, self.dataset, item)))

    @property
    def command(self) -> str:
        """Makes it."""
        if self.kind in OF_SCALE:
            return f"gcflow {self.kind} --scale {self.item}"
        words = (self.run.name,) if self.run else (self.dataset, self.item)
        return " ".join(filter(None, ("gcflow", self.kind, *words)))

    def slice(self, params: Params) -> dict[str, Any]:
        """The values of `keys`; a change in them, and in nothing else of params.yaml, makes the stage out of date."""
        return {key: _value(params.document, key) for key in self.keys}


def _value(document: Any, key: str) -> Any:
    for part in key.split("."):
        document = document.get(part) if isinstance(document, dict) else None
    return document


@dataclass(frozen=True)
class Subset:
    """Some runs of a scale. methods, seeds: those of any data set; None: all."""

    methods: tuple[str, ...] | None = None
    seeds: tuple[int, ...] | None = None

    @classmethod
    def parse(cls, methods: object, seeds: object) -> "Subset":
        """From texts such as `ic gc` and `0 1`; None is all.

        Raises:
            GcflowError: a text names nothing, or a seed is no number.
        """
        words = {"methods": methods, "seeds": seeds}
        names = {key: tuple(re.findall(r"[^][,'\"\s]+", str(text))) for key, text in words.items() if text is not None}
        for key, found in names.items():
            if not found or (key == "seeds" and not all(name.isdecimal() for name in found)):
                example = "ic gc" if key == "methods" else "0 1"
                raise GcflowError(f"{key}: {words[key]!r}, expected names such as {example!r}")
        return cls(names.get("methods"), tuple(map(int, names["seeds"])) if "seeds" in names else None)

    def __contains__(self, run: Run) -> bool:
        return (self.methods is None or run.method in self.methods) and (self.seeds is None or run.seed in self.seeds)


class Stages:
    """The stages of a params.yaml, by kind; as a whole, those of a scale. Paths are relative to the project's root.

    Args:
        params: the grid.
        scale: whose data sets are meant.
        subset: of a subset, what shows other runs is left out, and so are the ledger and the report.

    Raises:
        GcflowError: there is no such scale, or the subset names a method or a seed that no run of it has.
    """

    def __init__(self, params: Params, scale: str = "all", subset: Subset | None = None) -> None:
        self.params = params
        self.scale = scale
        self.subset = subset or Subset()
        self.datasets = params.at_scale(scale)
        self.root = Path()
        self._of_runs: dict[tuple[str, Run], Stage] = {}
        runs = [run for dataset in self.datasets for run in params.runs(dataset)]
        _check_known("methods", self.subset.methods, dict.fromkeys(run.method for run in runs), scale)
        _check_known("seeds", self.subset.seeds, sorted({run.seed for run in runs}), scale)

    def _stage(
        self,
        kind: str,
        dataset: str | None = None,
        item: str = "",
        run: Run | None = None,
        reads: Iterable[str] = (),
        keys: Iterable[str] = (),
        outs: tuple[str, ...] = (),
    ) -> Stage:
        """Of a kind, with what it reads, depends on and writes besides."""
        common, reads = KINDS[kind], tuple(reads)
        words: dict[str, Any] = {"dataset": dataset, "item": item} | (vars(run) if run else {})
        wanted = (*(key.format(**words) for key in common.keys), *keys)
        return Stage(
            kind,
            dataset,
            item,
            run,
            (*(path.format(**words) for path in common.deps), *reads),
            reads,
            tuple(key for key in dict.fromkeys(wanted) if _value(self.params.document, key) is not None),
            (*(path.format(**words) for path in common.outs), *outs),
        )

    def _extractor(self, dataset: str) -> tuple[str, ...]:
        features = self.params.dataset(dataset).features
        network = not isinstance(features, Identity)
        return (str(extractor_path(self.root, dataset, features.kind)),) if network else ()

    def _code(self, run: Run) -> tuple[str, ...]:
        """Files of extensions that a run's coupling and network come from."""
        config = self.params.run_config(run.name)
        return tuple(origins(*config.parts))

    def _snapshots(self, run: Run) -> str:
        return str(run_folder(self.root, run) / "snapshots")

    def _weights(self, run: Run) -> tuple[str, ...]:
        """What holds the frozen weights that a run starts from or looks at."""
        runs = sorted({self._snapshots(needed) for needed, _ in self.params.needed_runs(run).values()})
        return (*runs, *sorted(set(self.params.needed_files(run).values())))

    def prepare(self, dataset: str) -> Stage:
        """Data arrays."""
        return self._stage("prepare", dataset, reads=origins(self.params.dataset(dataset).data))

    def pretrained(self, name: str) -> Stage:
        """A public model's weights."""
        return self._stage("pretrained", item=name)

    def features(self, dataset: str) -> Stage:
        """The network that features are taken from: a classifier is trained on the data, others are looked up."""
        kind = self.params.dataset(dataset).features.kind
        keys = ("features",) if kind == "classifier" else ("features.kind", *FEATURE_KEYS[kind])
        reads = [path.format(dataset=dataset) for path in DATA] if kind == "classifier" else []
        keys = tuple(f"datasets.{dataset}.{key}" for key in keys)
        return self._stage("features", dataset, reads=reads, keys=keys, outs=self._extractor(dataset))

    def reference(self, dataset: str, protocol: str) -> Stage:
        """Features of the real data under a protocol."""
        return self._stage("reference", dataset, protocol, reads=self._extractor(dataset))

    def train(self, run: Run) -> Stage:
        """A run."""
        return self._once("train", run, self._train)

    def evaluate(self, run: Run) -> Stage:
        """Metrics and samples of a run."""
        return self._once("evaluate", run, self._evaluate)

    def discrepancy(self, run: Run) -> Stage:
        """The velocity discrepancy of a denoiser's coupling."""
        return self._once("discrepancy", run, self._train)

    def _once(self, kind: str, run: Run, reads: Callable[[Run], Iterable[str]]) -> Stage:
        """The stage of a run, made only once: a scheduler asks for each again and again, and grids have thousands."""
        if (kind, run) not in self._of_runs:
            self._of_runs[kind, run] = self._stage(kind, run.dataset, run=run, reads=reads(run))
        return self._of_runs[kind, run]

    def _train(self, run: Run) -> Iterator[str]:
        yield from self._weights(run)
        yield from self._code(run)

    def _evaluate(self, run: Run) -> Iterator[str]:
        entry = self.params.dataset(run.dataset)
        yield from self._extractor(run.dataset)
        yield from (str(reference_path(self.root, run.dataset, protocol)) for protocol in entry.features.protocols)
        yield from origins(self.params.run_config(run.name).network, *entry.evaluation.metrics)

    def transport(self, dataset: str) -> Stage:
        """Transport costs."""
        settings = self.params.dataset(dataset).transport
        predictor = settings.predictor if settings else RunReference(method="")
        needed, _ = self.params.resolve(predictor, dataset, 0)
        return self._stage("transport", dataset, reads=[self._snapshots(needed)])

    def theory(self, dataset: str) -> Stage:
        """Checks of the paper's theory."""
        settings = self.params.dataset(dataset).theory
        predictor = settings.predictor if settings and settings.paths else None
        needed = [self.params.resolve(predictor, dataset, 0)[0]] if predictor else []
        return self._stage("theory", dataset, reads=map(self._snapshots, needed))

    def denoisers(self, dataset: str, added: bool = False) -> list[Run]:
        """The runs whose discrepancy is measured. added: of the seeds of seeds.yaml, too."""
        entry = self.params.dataset(dataset)
        if entry.discrepancy is None:
            return []
        return [run for run in self.params.runs(dataset, added) if entry.methods[run.method].objective.denoises]

    def _metrics(self, dataset: str, methods: tuple[str, ...]) -> tuple[str, ...]:
        replicates = self.params.dataset(dataset).runs
        runs = (Run(dataset, method, seed) for method in methods for seed in replicates[method].seeds)
        return tuple(str(run_folder(self.root, run) / "evaluation" / "metrics.json") for run in runs)

    def table(self, dataset: str, name: str) -> Stage:
        """A table."""
        entry = self.params.dataset(dataset)
        methods = entry.tables[name].methods
        protocol = entry.tables[name].protocol or next(iter(entry.features.protocols))
        published = [PAPER] if entry.tables[name].paper else []
        reads = (str(reference_path(self.root, dataset, protocol)), *self._metrics(dataset, methods), *published)
        return self._stage("table", dataset, name, reads=reads, keys=_shown(dataset, methods))

    def figure(self, dataset: str, name: str) -> Stage:
        """A figure, from the files that its kind shows."""
        content = self.params.dataset(dataset).figures[name]
        inputs = figure_kind(content.kind).inputs(self.params, dataset, content)
        keys = _shown(dataset, (*content.methods, *inputs.labels))
        return self._stage("figure", dataset, name, reads=map(str, inputs.files), keys=keys)

    def claims(self) -> Stage:
        """The ledger of claims, from every file that a test of them reads."""
        known = [plan for dataset in self.datasets for plan in plans(self.params, dataset)]
        tested = [plan for plan in known if plan.reason is None]
        kept = (evidence_path(self.root, dataset) for dataset in self.datasets)
        reads = dict.fromkeys(file for plan in tested for file in plan.files)
        reads |= dict.fromkeys(str(path) for path in kept if (self.params.root / path).exists())
        runs = [run for plan in tested for pair in plan.runs for run in pair]
        keys = [key for run in runs for key in _shown(run.dataset, (run.method,))]
        return self._stage("claims", item=self.scale, reads=reads, keys=keys)

    @cached_property
    def evidence(self) -> list[str]:
        """The files that tests of the claims read, with the seeds that seeds.yaml adds, and docs/evidence lacks."""
        files: dict[str, object] = {}
        for dataset in self.datasets:
            known = present_evidence(self.params, dataset)
            for plan in plans(self.params, dataset, added=True):
                files |= known.lacks(plan)
        return [*files]

    @cached_property
    def added(self) -> list[Stage]:
        """What makes the runs that seeds.yaml adds; `all` does without."""
        own = set(self.params.runs())
        runs = [run for d in self.datasets for run in self.params.runs(d, added=True) if run not in own]
        runs.sort(key=self.params.depth)
        needed = {run for d in self.datasets for run in self.denoisers(d, added=True)}.intersection(runs)
        kinds = ((self.train, runs), (self.evaluate, runs), (self.discrepancy, [r for r in runs if r in needed]))
        return [make(run) for make, chosen in kinds for run in chosen]

    def report(self) -> Stage:
        """The report, from everything that the other stages make but snapshots, which it does not show."""
        snapshots = {self._snapshots(run) for dataset in self.datasets for run in self.params.runs(dataset)}
        published = [PAPER] if self.params.published else []
        reads = [*(out for stage in self._whole for out in stage.outs if out not in snapshots), *published]
        names = ("runs", "tables", "figures", "evaluation.grid")
        keys = [f"datasets.{dataset}.{name}" for dataset in self.datasets for name in names]
        return self._stage("report", item=self.scale, reads=reads, keys=keys)

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

    @cached_property
    def _whole(self) -> list[Stage]:
        """All stages of the scale, but the report of them."""
        stages = [stage for dataset in self.datasets for stage in self.of_dataset(dataset)]
        needed = {file for stage in stages for file in stage.deps}
        published = (self.pretrained(name) for name in self.params.pretrained)
        claims = [self.claims()] if self.params.claims else []
        return [*(stage for stage in published if needed.intersection(stage.outs)), *stages, *claims]

    @cached_property
    def left_out(self) -> list[Stage]:
        """What the subset leaves out: its other runs, what shows any of them, the ledger and the report."""
        if self.subset == Subset():
            return []
        left: list[Stage] = []
        files: set[str] = set()
        for stage in (*self._whole, self.report()):
            other = stage.run not in self.subset if stage.run else files.intersection(stage.deps)
            if other or stage.kind in OF_SCALE:
                left.append(stage)
                files.update(stage.outs)
        return left

    def __iter__(self) -> Iterator[Stage]:
        """All stages of the scale, or of its subset, in an order in which they could run."""
        left = {stage.name for stage in self.left_out}
        yield from (stage for stage in (*self._whole, self.report()) if stage.name not in left)

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
        return [stage for stage in (*self, *self.added) if stage.name == target] or None

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


def _shown(dataset: str, methods: Iterable[str]) -> tuple[str, ...]:
    return tuple(f"datasets.{dataset}.runs.{method}" for method in methods)


def _check_known(key: str, wanted: Iterable[Any] | None, known: Iterable[Any], scale: str) -> None:
    for name in wanted or ():
        if name not in known:
            raise GcflowError(f"{key}: no run of scale {scale} has {name}; {choice_of(name, known)}")
