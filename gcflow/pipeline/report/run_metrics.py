"""The numbers of a run's metrics.json as tables and curves."""

from itertools import groupby
from typing import Any, NamedTuple

from gcflow.pipeline.features import metric_name
from gcflow.pipeline.measurements import Record, means, measured
from gcflow.pipeline.report.charts import Chart, Series, chart
from gcflow.pipeline.report.tables import Cell, Column, SortableTable
from gcflow.readable import number

# Which measurement a record of metrics.json is of; the rest of it is the protocol.
MEASURED = ("metric", "value", "run", "step", "weights", "sampler", "network_evaluations", "generation_seed")


class Protocol(NamedTuple):
    """The making of numbers, as their records have it."""

    name: str
    record: dict[str, Any]


def headline_of(records: list[Record]) -> tuple[str, float] | None:
    """The first metric under the first protocol at the last step, of EMA weights; mean over generation seeds."""
    of_protocols = measured(records).curves
    if not of_protocols:
        return None
    metric, curve = next(iter(next(iter(of_protocols.values())).items()))
    return metric, means(curve)[max(curve)]


def final_table(records: list[Record]) -> SortableTable | None:
    """Every metric at the last step, by each sampler and of both weights; mean over generation seeds."""
    if not records:
        return None
    last = max(record["step"] for record in records)
    keys = ("protocol", "metric", "weights", "sampler", "network_evaluations")
    groups: dict[tuple[Any, ...], list[Record]] = {}
    for record in records:
        if record["step"] == last:
            groups.setdefault(tuple(record[key] for key in keys), []).append(record)
    rows = []
    for (protocol, metric, weights, sampler, evaluations), found in groups.items():
        _, label, factor = metric_name(metric)
        values = [record["value"] * factor for record in found]
        mean = sum(values) / len(values)
        of_seeds = ", ".join(
            f"{record['generation_seed']}: {number(value)}" for record, value in zip(found, values, strict=True)
        )
        rows.append(
            [
                Cell(label, metric),
                Cell(number(mean), mean),
                Cell(weights, weights),
                Cell(sampler, sampler),
                Cell(str(evaluations), evaluations),
                Cell(of_seeds),
                Cell(protocol, protocol),
            ]
        )
    columns = [
        Column("metric", numeric=False),
        Column("mean"),
        Column("weights", numeric=False),
        Column("sampler", numeric=False),
        Column("evaluations", hint="network evaluations per sample"),
        Column("each generation seed", numeric=False, prose=True),
        Column("protocol", numeric=False),
    ]
    return SortableTable(f"At the last step, {number(last, 9)}", columns, rows)


def metric_curves(records: list[Record]) -> tuple[list[Chart], SortableTable | None]:
    """Every metric at every snapshot, of the cheapest sampler and the first generation seed; also as a table."""
    of_weights = {
        weights: measured(records, weights).curves for weights in dict.fromkeys(r["weights"] for r in records)
    }
    charts, heads, columns = [], [Column("step")], []
    for protocol, metrics in next(iter(of_weights.values()), {}).items():
        for metric in metrics:
            _, label, factor = metric_name(metric)
            title = f"{protocol}: {label}" if len(next(iter(of_weights.values()))) > 1 else label
            series = []
            for weights, found in of_weights.items():
                # The last step alone has several generation seeds, the first of which is that of the others.
                curve = {step: factor * next(iter(values.values())) for step, values in found[protocol][metric].items()}
                series.append(Series(f"{weights} weights", [(float(step), value) for step, value in curve.items()]))
                heads.append(Column(f"{title} ({weights})"))
                columns.append(curve)
            drawn = chart(title, series, title.endswith("↓"))
            charts += [drawn] if drawn else []
    steps = sorted({step for column in columns for step in column})
    rows = [
        [Cell(number(step, 9), step), *(Cell(number(column.get(step)), column.get(step)) for column in columns)]
        for step in steps
    ]
    return charts, SortableTable("At every snapshot", heads, rows) if len(steps) > 1 else None


def protocols_of(records: list[Record]) -> list[Protocol]:
    """The protocols of the records, each once."""
    found = []
    ordered = sorted(records, key=lambda record: str(record["protocol"]))
    for name, members in groupby(ordered, key=lambda record: record["protocol"]):
        record = next(members)
        found.append(Protocol(name, {key: value for key, value in record.items() if key not in MEASURED}))
    return found
