"""The numbers of a run's metrics.json as tables and curves."""

from collections.abc import Iterable
from itertools import groupby
from typing import Any, NamedTuple

from gcflow.pipeline.report.charts import Chart, Series, chart
from gcflow.pipeline.report.tables import Cell, Column, SortableTable
from gcflow.pipeline.report.words import number
from gcflow.pipeline.table import metric_label

# Which measurement a record of metrics.json is of; the rest of it is the protocol.
MEASURED = ("metric", "value", "run", "step", "weights", "sampler", "network_evaluations", "generation_seed")


class Protocol(NamedTuple):
    """How numbers were made, as their records have it."""

    name: str
    record: dict[str, Any]


def _of_ema(records: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The records of EMA weights and the fewest network evaluations."""
    chosen = [record for record in records if record["weights"] == "ema"]
    least = min((record["network_evaluations"] for record in chosen), default=0)
    return [record for record in chosen if record["network_evaluations"] == least]


def headline_of(measured: list[dict[str, Any]]) -> tuple[str, float] | None:
    """The first metric under the first protocol at the last step, of EMA weights; mean over generation seeds."""
    chosen = _of_ema(measured)
    if not chosen:
        return None
    first, last = chosen[0], max(record["step"] for record in chosen)
    same = ("metric", "protocol")
    values = [r["value"] for r in chosen if r["step"] == last and all(r[key] == first[key] for key in same)]
    return first["metric"], sum(values) / len(values)


def final_table(measured: list[dict[str, Any]]) -> SortableTable | None:
    """Every metric at the last step, by each sampler and of both weights; mean over generation seeds."""
    if not measured:
        return None
    last = max(record["step"] for record in measured)
    keys = ("protocol", "metric", "weights", "sampler", "network_evaluations")
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for record in measured:
        if record["step"] == last:
            groups.setdefault(tuple(record[key] for key in keys), []).append(record)
    rows = []
    for (protocol, metric, weights, sampler, evaluations), found in groups.items():
        label, factor = metric_label(metric)
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


def metric_curves(measured: list[dict[str, Any]]) -> tuple[list[Chart], SortableTable | None]:
    """Every metric at every snapshot, of the cheapest sampler and the first generation seed; also as a table."""
    if not measured:
        return [], None
    seed, least = measured[0]["generation_seed"], min(record["network_evaluations"] for record in measured)
    chosen = [r for r in measured if r["generation_seed"] == seed and r["network_evaluations"] == least]
    curves: dict[tuple[str, str], dict[str, dict[int, float]]] = {}
    for record in chosen:
        factor = metric_label(record["metric"])[1]
        place = curves.setdefault((record["protocol"], record["metric"]), {}).setdefault(record["weights"], {})
        place[record["step"]] = record["value"] * factor
    several = len({protocol for protocol, _ in curves}) > 1
    charts, heads, columns = [], [Column("step")], []
    for (protocol, metric), of_weights in curves.items():
        title = (f"{protocol}: " if several else "") + metric_label(metric)[0]
        series = [
            Series(f"{name} weights", sorted((float(s), v) for s, v in found.items()))
            for name, found in of_weights.items()
        ]
        drawn = chart(title, series, title.endswith("↓"))
        charts += [drawn] if drawn else []
        heads += [Column(f"{title} ({name})") for name in of_weights]
        columns += list(of_weights.values())
    steps = sorted({step for column in columns for step in column})
    rows = [
        [Cell(number(step, 9), step), *(Cell(number(column.get(step)), column.get(step)) for column in columns)]
        for step in steps
    ]
    return charts, SortableTable("At every snapshot", heads, rows) if len(steps) > 1 else None


def protocols_of(measured: list[dict[str, Any]]) -> list[Protocol]:
    """The protocols of the records, each once."""
    found = []
    ordered = sorted(measured, key=lambda record: str(record["protocol"]))
    for name, members in groupby(ordered, key=lambda record: record["protocol"]):
        record = next(members)
        found.append(Protocol(name, {key: value for key, value in record.items() if key not in MEASURED}))
    return found
