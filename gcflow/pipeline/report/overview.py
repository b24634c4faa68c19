"""The runs, by what they themselves recorded: the front of the report, and its provenance."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gcflow.files import expected_form
from gcflow.pipeline.drawing.image_files import MAGNIFICATION, tile
from gcflow.pipeline.features import metric_name
from gcflow.pipeline.folders import data_folder
from gcflow.pipeline.params import Params
from gcflow.pipeline.report.images import Picture, pixel_picture
from gcflow.pipeline.report.records import Output, Records
from gcflow.pipeline.report.run_pages import RunPage
from gcflow.pipeline.report.tables import Cell, Column, SortableTable
from gcflow.readable import duration, moment, number

HERO_METHODS = 3


class DataSet(NamedTuple):
    """A data set and its runs. record: of its manifest, None if it is not prepared. seconds: of training."""

    name: str
    record: dict[str, Any] | None
    source: str
    samples: int
    shape: str
    runs: list[RunPage]
    trained: int
    evaluated: int
    seconds: float
    real: Picture | None

    @property
    def firsts(self) -> list[RunPage]:
        """The first run of each method."""
        return list({page.run.method: page for page in reversed(self.runs)}.values())[::-1]


class Hero(NamedTuple):
    """Samples of a few methods for the front page. panels: of a label and a picture."""

    dataset: str
    panels: list[tuple[str, Picture]]


class MadeBy(NamedTuple):
    """A stage, and what it made."""

    name: str
    command: str
    outputs: list[Output]


def data_set(params: Params, records: Records, name: str, runs: list[RunPage]) -> DataSet:
    """A data set with its runs."""
    manifest = data_folder(Path(), name) / "manifest.json"
    record = records.json(manifest)
    with expected_form(records.root / manifest):
        known: dict[str, Any] = {"source": "", "count": 0, "shape": []} if record is None else record
        source, count, shape = str(known["source"]), int(known["count"]), list(known["shape"])
    return DataSet(
        name=name,
        record=record,
        source=source,
        samples=count,
        shape=" × ".join(map(str, shape)),
        runs=runs,
        trained=sum(page.config is not None for page in runs),
        evaluated=sum(page.state == "evaluated" for page in runs),
        seconds=sum(page.seconds or 0.0 for page in runs),
        real=_real(params, records, name) if len(shape) == 3 else None,
    )


def _real(params: Params, records: Records, dataset: str) -> Picture | None:
    """Real images from all over the data, as many as in a grid of samples."""
    path = records.path(data_folder(Path(), dataset) / "samples.npy")
    if path is None:
        return None
    side = params.dataset(dataset).evaluation.grid
    with expected_form(path):
        images = np.load(path, mmap_mode="r")
        spread = np.linspace(0, len(images) - 1, side**2).round().astype(int)
        return pixel_picture(tile(np.asarray(images[spread]), side), MAGNIFICATION)


def hero(params: Params, datasets: list[DataSet]) -> Hero | None:
    """Real images beside samples of the first table's methods, of the first data set that has both."""
    for found in datasets:
        table = next(iter(params.dataset(found.name).tables.values()), None)
        methods = table.methods[:HERO_METHODS] if table else ()
        firsts = {page.run.method: page for page in found.firsts}
        panels = [(firsts[m].label, picture) for m in methods if m in firsts and (picture := firsts[m].samples)]
        if found.real and panels:
            return Hero(found.name, [("real data", found.real), *panels])
    return None


def runs_table(pages: list[RunPage]) -> SortableTable:
    """Every run with its state and its first metric."""
    columns = [
        Column("run", numeric=False),
        Column("method", numeric=False, prose=True),
        Column("state", numeric=False),
        Column("steps"),
        Column("first metric", hint="at the last step, of EMA weights with the fewest network evaluations"),
        Column("training"),
        Column("ended", numeric=False),
    ]
    return SortableTable("Every run", columns, [_run_row(page) for page in pages])


def _run_row(page: RunPage) -> list[Cell]:
    name, value = page.headline or ("", None)
    metric = metric_name(name)
    scaled = None if value is None else value * metric.factor
    steps = page.config["training"]["steps"] if page.config else None
    kind = {"evaluated": "supported", "not trained": "missing"}.get(page.state, "")
    return [
        Cell("", page.run.name, links=((page.run.name, page.id),)),
        Cell(page.label, page.label),
        Cell(page.state, page.state, kind=kind),
        Cell("–" if steps is None else number(steps, 9), steps),
        Cell("–" if scaled is None else f"{metric.heading} {number(scaled)}", scaled),
        Cell(duration(page.seconds), page.seconds),
        Cell(moment(page.ended), page.ended),
    ]
