"""`gcflow report`: results/report.html, one file that opens anywhere and asks for nothing."""

import io
from collections import Counter
from collections.abc import Iterator
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup

from gcflow import readable
from gcflow.files import expected_form, write_text
from gcflow.pipeline.drawing.image_files import tile
from gcflow.pipeline.features import KINDS
from gcflow.pipeline.figures import Caption, figure_kind
from gcflow.pipeline.folders import claims_path, course_path, data_folder, figure_path, report_path, results_folder
from gcflow.pipeline.ledger.plans import MARKS, METHODS_NOTE, VERDICTS
from gcflow.pipeline.ledger.summaries import COMMAND
from gcflow.pipeline.params import Params, PublishedValue
from gcflow.pipeline.progress import say
from gcflow.pipeline.report.recorded import embedded, made_by, or_without, picture, recorded
from gcflow.pipeline.report.runs import RunPage, run_page
from gcflow.pipeline.report.theory import read_checks, statements
from gcflow.pipeline.report.typeset import aligned
from gcflow.pipeline.schema import Figure, Table
from gcflow.pipeline.stages import Stage, Stages
from gcflow.readable import number

SECTIONS = {
    "/": "Overview",
    "/claims": "Claims",
    "/tables": "Tables",
    "/figures": "Figures",
    "/samples": "Samples",
    "/theory": "Theory",
    "/runs": "Runs",
    "/provenance": "Provenance",
}
HERO_METHODS = 3
# What the paper calls its data sets.
NAMES = {
    "cifar10": "CIFAR-10",
    "imagenet32": "ImageNet 32×32",
    "celeba64": "CelebA 64×64",
    "church64": "LSUN Church 64×64",
}
Rows = list[list[Any]]


def write_report(params: Params, scale: str) -> None:
    """Writes results/report.html on the data sets of a scale; what is not made yet is named there.

    Its bytes are decided by the recorded files alone: nothing of this machine, moment or checkout is in it.

    Raises:
        GcflowError: there is no such scale.
    """
    content = contents(params, scale)
    for problem in content["damaged"]:
        say(f"gcflow: warning: {problem}; left out")
    path = report_path(params.root)
    write_text(path, _render(content))
    pending = sum(bool(made.missing) for made in content["stages"])
    lacking = f", {readable.plural(pending, 'stage')} not there yet" if pending else ""
    say(f"  {path}: {readable.size(path.stat().st_size)}{lacking}")


def _render(content: dict[str, Any]) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    folder = Path(str(files("gcflow.pipeline.report"))) / "templates"
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        name: getattr(readable, name) for name in ("number", "duration", "size", "moment", "plural", "value")
    }
    return environment.get_template("page.html").render(content)


def contents(params: Params, scale: str) -> dict[str, Any]:
    """Everything that the page shows, by the names that its templates use."""
    stages = Stages(params, scale)
    damaged: list[str] = []
    datasets = [_data_set(params, stages, dataset, damaged) for dataset in stages.datasets]
    runs = [page for found in datasets for page in found.runs]
    read = frozenset(stages.report().deps)
    checks = [or_without(damaged, partial(read_checks, params, dataset), None) for dataset in stages.datasets]
    theory = [found for found in checks if found]
    return {
        "scale": scale,
        "sections": SECTIONS,
        "datasets": datasets,
        "runs": runs,
        "hero": _hero(params, datasets),
        "ledger": or_without(damaged, partial(_claims, params), None),
        "has_claims": params.claims is not None,
        "marks": MARKS,
        "verdicts": VERDICTS,
        "tables": [table for dataset in stages.datasets for table in _tables(params, stages, dataset, damaged)],
        "figures": [figure for dataset in stages.datasets for figure in _figures(params, stages, dataset)],
        "theory": theory,
        "statements": statements(theory),
        "environments": Counter(job for page in runs for job in {job.environment for job in page.jobs}),
        "has_fid": any(KINDS[params.dataset(dataset).features.kind].published for dataset in stages.datasets),
        "stages": [made_by(params.root, stage, read) for stage in stages if stage.kind != "report"],
        # A project's place is no matter of the report.
        "damaged": [problem.removeprefix(f"{params.root}/") for problem in damaged],
    }


class DataSet(NamedTuple):
    """A data set and its runs.

    manifest: None if it is not prepared. facts: source, number of samples and shape. real: a grid of its images.
    """

    name: str
    manifest: dict[str, Any] | None
    facts: list[str]
    real: str | None
    runs: list[RunPage]

    @property
    def firsts(self) -> dict[str, RunPage]:
        """The first run of each method."""
        found: dict[str, RunPage] = {}
        for page in self.runs:
            found.setdefault(page.run.method, page)
        return found


def _data_set(params: Params, stages: Stages, name: str, damaged: list[str]) -> DataSet:
    runs = [run_page(params, stages, run, damaged) for run in params.runs(name)]
    without = DataSet(name, None, [f"not prepared yet: gcflow prepare {name}", "–", "–"], None, runs)

    def read() -> DataSet:
        folder = data_folder(params.root, name)
        with recorded(folder / "manifest.json") as manifest:
            if manifest is None:
                return without
            facts = [manifest["source"], number(manifest["count"], 9), " × ".join(map(str, manifest["shape"]))]
        path, real = folder / "samples.npy", None
        if path.exists():
            with expected_form(path):
                real = _real(np.load(path, mmap_mode="r"), params.dataset(name).evaluation.grid)
        return DataSet(name, manifest, facts, real, runs)

    return or_without(damaged, read, without)


def _real(samples: np.ndarray, side: int) -> str | None:
    """Real images from all over the data, as many as in a grid of samples; None of points."""
    from PIL import Image

    if samples.ndim != 4:
        return None
    spread = np.linspace(0, len(samples) - 1, side**2).round().astype(int)
    # The one format with the same bytes whatever the versions of libraries: it does not compress.
    content = io.BytesIO()
    Image.fromarray(tile(np.asarray(samples[spread]), side)).save(content, format="BMP")
    return embedded(content.getvalue(), "image/bmp")


def _hero(params: Params, datasets: list[DataSet]) -> tuple[str, dict[str, str]] | None:
    """A data set, and for the front page its real images and samples of its first table's methods, by label."""
    for found in datasets:
        table = next(iter(params.dataset(found.name).tables.values()), None)
        firsts = [found.firsts[method] for method in (table.methods[:HERO_METHODS] if table else ())]
        samples = {page.label: page.samples for page in firsts if page.samples}
        if found.real and samples:
            return found.name, {"real data": found.real} | samples
    return None


def _claims(params: Params) -> dict[str, Any] | None:
    """The ledger of claims; None where there is none."""
    keys = (
        *("dataset", "name", "verdict", "claim", "place", "shown", "text", "files", "seeds"),
        *("here", "here_seeds", "apart"),
    )
    known = {run.name for run in params.runs()}
    with recorded(claims_path(params.root, "json")) as ledger:
        if ledger is None:
            return None
        records = [
            {key: record.get(key) for key in keys}
            | {"test": record["test"]["words"], "runs": [run for run in record.get("runs", ()) if run in known]}
            for record in ledger["records"]
        ]
        counts = {
            dataset: Counter(r["verdict"] for r in records if r["dataset"] == dataset) for dataset in ledger["tests"]
        }
        untested: dict[str, dict[str, str]] = {}
        for entry in ledger["not_tested"]:
            untested.setdefault(entry["dataset"], {})[entry["name"]] = entry["reason"]
        pictures = {
            "forest": picture(claims_path(params.root, "svg")),
            "course": picture(course_path(params.root, "svg")),
        }
        commits: dict[str, list[str]] = {}
        for dataset, words in ledger["commits"].items():
            for commit in words:
                commits.setdefault(commit, []).append(dataset)
        shown = {
            "records": records,
            "untested": untested,
            "total": sum(counts.values(), Counter()),
            "commits": commits,
            "command": COMMAND,
            "notes": ledger["notes"],
            "methods": {dataset: rows for dataset, rows in ledger["methods"].items() if rows},
            "methods_note": METHODS_NOTE,
            **pictures,
        }
        counts = {dataset: found for dataset, found in counts.items() if found}
        return shown | {"counts": counts, "confidence": ledger["confidence"], "correction": ledger["correction"]}


class ShownTable(NamedTuple):
    """A table of results. rows: the heads first; none if it is not written. published: others' numbers, by data set."""

    stage: Stage
    settings: Table
    rows: Rows
    note: str
    published: dict[str, Rows]
    source: str


def _tables(params: Params, stages: Stages, dataset: str, damaged: list[str]) -> Iterator[ShownTable]:
    entry = params.dataset(dataset)
    unwritten: tuple[str, Rows, Rows] = ("", [], [])
    for name, settings in entry.tables.items():
        note, heads, lines = or_without(damaged, partial(_table, params, dataset, name), unwritten)
        paper = params.published.get(settings.published_entry, {})
        labels = {method: replicates.label for method, replicates in entry.runs.items()}
        published = {} if settings.paper else _published(paper.get("datasets", {}), labels)
        yield ShownTable(stages.table(dataset, name), settings, heads + lines, note, published, paper.get("source", ""))


def _table(params: Params, dataset: str, name: str) -> tuple[str, Rows, Rows]:
    """Its note, heads and rows; none if it is not written."""
    entry = params.dataset(dataset)
    links = [
        Markup(" ").join(_link(str(seed), f"/run/{dataset}/{method}/{seed}") for seed in entry.runs[method].seeds)
        for method in entry.tables[name].methods
    ]
    with recorded(results_folder(params.root, dataset) / "tables" / f"{name}.json") as found:
        note, rows = (found["note"], found["rows"]) if found else ("", [])
        if not rows:
            return note, [], []
        texts = [[*map(str, column)] for column in zip(*(row.values() for row in rows), strict=True)]
        columns: list[list[Any]] = [texts[0], *map(aligned, texts[1:]), links]
        return note, [[*rows[0], "runs"]], list(map(list, zip(*columns, strict=True)))


def _link(text: str, place: str) -> Markup:
    return Markup('<a href="#{}">{}</a>').format(place, text)


def _published(datasets: dict[str, Any], labels: dict[str, str]) -> dict[str, Rows]:
    found, headings = {}, {metric.label: metric.heading for metric in KINDS["inception"].metrics}
    for dataset, methods in datasets.items():
        metrics = list(dict.fromkeys(metric for values in methods.values() for metric in values))
        columns: list[list[Any]] = [[labels.get(method, method) for method in methods]]
        for metric in metrics:
            columns.append(aligned([PublishedValue(*v[metric]).text if metric in v else "–" for v in methods.values()]))
        heads = ["method", *(headings.get(metric, metric) for metric in metrics)]
        found[NAMES.get(dataset, dataset)] = [heads, *map(list, zip(*columns, strict=True))]
    return {dataset: rows for dataset, rows in found.items() if len(rows) > 1}


class ShownFigure(NamedTuple):
    """A figure. picture: None if it is not drawn yet."""

    stage: Stage
    settings: Figure
    caption: Caption
    picture: str | None


def _figures(params: Params, stages: Stages, dataset: str) -> Iterator[ShownFigure]:
    for name, settings in params.dataset(dataset).figures.items():
        shown = picture(figure_path(params.root, dataset, name, "svg"))
        yield ShownFigure(stages.figure(dataset, name), settings, figure_kind(settings.kind).caption, shown)
