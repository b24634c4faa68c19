"""The figures with their captions, and in words where their curves end: read off the tables that go with them."""

import csv
import io
import math
from pathlib import Path
from typing import NamedTuple

from gcflow.files import expected_form
from gcflow.pipeline.figures import Caption, figure_kind
from gcflow.pipeline.folders import figure_path
from gcflow.pipeline.params import Params
from gcflow.pipeline.report.images import Picture, svg_picture
from gcflow.pipeline.report.records import Records
from gcflow.pipeline.stages import Stages
from gcflow.readable import number

STEP = "training step"
NOISE = "sigma"


class ShownFigure(NamedTuple):
    """A figure with its caption. picture: None if it is not drawn yet. reading: where its curves end."""

    dataset: str
    name: str
    title: str
    kind: str
    reproduces: str | None
    picture: Picture | None
    caption: Caption
    reading: str
    command: str
    path: str


def shown_figures(params: Params, stages: Stages, records: Records, dataset: str) -> list[ShownFigure]:
    """The figures of a data set, with captions."""
    found = []
    for name, figure in params.dataset(dataset).figures.items():
        kind = figure_kind(figure.kind)
        path = figure_path(Path(), dataset, name, "svg")
        there, table = records.path(path), records.text(path.with_suffix(".csv"))
        with expected_form(records.root / path.with_suffix(".csv")):
            reading = right_end(table) if table and kind.of_curves else ""
        found.append(
            ShownFigure(
                dataset,
                name,
                figure.title,
                figure.kind,
                figure.reproduces,
                None if there is None else svg_picture(there),
                kind.caption,
                reading,
                stages.figure(dataset, name).command,
                str(path),
            )
        )
    return found


def right_end(table: str) -> str:
    """The order of curves at their last training step or largest noise level, lowest first.

    Args:
        table: a figure's CSV with a column `label`, one of training steps or noise levels (empty where a curve is
            constant), and its values in the column after that.
    """
    rows = list(csv.DictReader(io.StringIO(table)))
    heads = list(rows[0])
    place = next(index for index, name in enumerate(heads) if name.startswith((STEP, NOISE)))
    x, value = heads[place], heads[place + 1]
    last: dict[str, float] = {}
    for row in rows:
        if row[x]:
            last[row["label"]] = max(float(row[x]), last.get(row["label"], -math.inf))
    ends = [(row["label"], float(row[value])) for row in rows if not row[x] or float(row[x]) == last[row["label"]]]
    found = "; ".join(f"{label} {number(end, 3)}" for label, end in sorted(ends, key=lambda end: end[1]))
    trained, different = x.startswith(STEP), len(set(last.values())) > 1
    if different:
        where = "its last step" if trained else "its largest σ"
    else:
        end = next(iter(last.values()))
        where = f"step {number(end, 9)}" if trained else f"σ = {number(end)}"
    return f"{'Each at' if different else 'At'} {where}, from low to high: {found}."
