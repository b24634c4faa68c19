"""Tables that a reader can sort, and the results' own with the paper's beside them."""

import csv
import io
import re
from pathlib import Path
from typing import Any, NamedTuple

from gcflow.files import expected_form
from gcflow.pipeline.folders import results_folder
from gcflow.pipeline.params import Params, PublishedValue
from gcflow.pipeline.report.records import Records

LEADING_NUMBER = re.compile(r"[+\-−]?\d[\d.]*")


class Cell(NamedTuple):
    """A cell. sort: what it is ordered by, None for a cell without a value. links: of text to places on the page."""

    text: str
    sort: float | str | None = None
    best: bool = False
    links: tuple[tuple[str, str], ...] = ()
    kind: str = ""


class Column(NamedTuple):
    """A column. numeric: aligned to the right. prose: its text may break into lines. hint: what it means."""

    name: str
    numeric: bool = True
    prose: bool = False
    hint: str = ""


class SortableTable(NamedTuple):
    """A table with a caption."""

    caption: str
    columns: list[Column]
    rows: list[list[Cell]]


class ResultTable(NamedTuple):
    """A table of results. note: how its numbers were made. published: the paper's, where they do not compare."""

    dataset: str
    name: str
    title: str
    reproduces: str | None
    table: SortableTable | None
    note: str
    published: list[SortableTable]
    source: str
    path: str


def leading_number(text: str) -> float | None:
    """The number that a cell such as `2.57 ± 0.11` begins with."""
    found = LEADING_NUMBER.match(text)
    return float(found[0].replace("−", "-")) if found else None


def result_tables(params: Params, records: Records, dataset: str) -> list[ResultTable]:
    """The tables of a data set, as far as they are written."""
    entry, folder, found = params.dataset(dataset), results_folder(Path(), dataset) / "tables", []
    for name, settings in entry.tables.items():
        text, notes = records.text(folder / f"{name}.csv"), records.text(folder / f"{name}.md")
        links = [
            tuple((str(seed), f"/run/{dataset}/{method}/{seed}") for seed in entry.runs[method].seeds)
            for method in settings.methods
        ]
        with expected_form(records.root / folder / f"{name}.csv"):
            table = None if text is None else _table(settings.title, text, links)
        paper = params.published.get(settings.published_entry, {})
        labels = {method: replicates.label for method, replicates in entry.runs.items()}
        found.append(
            ResultTable(
                dataset,
                name,
                settings.title,
                settings.reproduces,
                table,
                (notes or "").partition("\n\n")[2].strip().removeprefix(f"{settings.title}. "),
                [] if settings.paper else _published(paper, labels),
                str(paper.get("source", "")),
                str(folder / f"{name}.csv"),
            )
        )
    return found


def _table(title: str, text: str, links: list[tuple[tuple[str, str], ...]]) -> SortableTable:
    heads, *lines = list(csv.reader(io.StringIO(text)))
    best = [_best(head, [line[index] for line in lines]) for index, head in enumerate(heads)]
    columns = [Column(heads[0], numeric=False), *(Column(head) for head in heads[1:]), Column("runs", numeric=False)]
    rows = []
    for index, line in enumerate(lines):
        values = [leading_number(text) for text in line[1:]]
        cells = [
            Cell(text, value, value is not None and value == wanted)
            for text, value, wanted in zip(line[1:], values, best[1:], strict=True)
        ]
        runs = links[index] if index < len(links) else ()
        rows.append([Cell(line[0], line[0]), *cells, Cell("", len(runs), links=runs)])
    return SortableTable(title, columns, rows)


def _best(head: str, texts: list[str]) -> float | None:
    """The best value of a column that says which direction is better; None where there is nothing to compare."""
    values = [value for text in texts if (value := leading_number(text)) is not None]
    if len(values) < 2 or head[-1:] not in ("↓", "↑"):
        return None
    return min(values) if head.endswith("↓") else max(values)


def _published(paper: dict[str, Any], labels: dict[str, str]) -> list[SortableTable]:
    found = []
    for dataset, methods in paper.get("datasets", {}).items():
        metrics = list(dict.fromkeys(metric for values in methods.values() for metric in values))
        rows = [
            [Cell(labels.get(method, method), method), *(_published_cell(values.get(metric)) for metric in metrics)]
            for method, values in methods.items()
        ]
        if rows:
            heads = [Column("method", numeric=False), *(Column(metric) for metric in metrics)]
            found.append(SortableTable(dataset, heads, rows))
    return found


def _published_cell(value: list[Any] | None) -> Cell:
    if value is None:
        return Cell("–")
    shown = PublishedValue(*value)
    return Cell(shown.text, shown.mean)
