"""`gcflow table`: reported metrics of a list of methods, with their deviation over seeds, in four formats."""

import math
from statistics import fmean, stdev, variance
from typing import Any

from gcflow.errors import GcflowError
from gcflow.files import read_header, write_csv, write_json, write_text
from gcflow.pipeline import markdown
from gcflow.pipeline.features import KINDS, MetricName, metric_name
from gcflow.pipeline.folders import reference_path, results_folder
from gcflow.pipeline.measurements import means, metrics_path, read_measured
from gcflow.pipeline.params import Params, PublishedValue, Run
from gcflow.pipeline.schema import InceptionProtocol, Table

MISSING = "missing"
# Column to text.
Row = dict[str, str]
TEX = str.maketrans(
    {symbol: f"\\{symbol}" for symbol in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"}
    | {"±": r"$\pm$", "↓": r"$\downarrow$", "↑": r"$\uparrow$", "×": r"$\times$", "²": "$^2$"}
    | {"μ": r"$\mu$", "Δ": r"$\Delta$"}
)


def reported_values(params: Params, run: Run, protocol: str) -> dict[str, list[float]]:
    """A run's part of a table: a value per generation seed of each metric, of EMA and the cheapest sampler.

    Of the last step, or, where the protocol says so, of the step that is best by its first metric.

    Raises:
        GcflowError: the run is not evaluated, or not under this protocol.
    """
    _, curves = read_measured(params, run, protocol)
    main = means(next(iter(curves.values())))
    settings = params.dataset(run.dataset).features.protocols[protocol]
    best = settings is not None and settings.select == "best"
    step = min(main, key=lambda step: main[step]) if best else max(main)
    return {metric: [*curve[step].values()] for metric, curve in curves.items() if step in curve}


def _with_all(metrics: list[MetricName], params: Params, run: Run, protocol: str) -> dict[str, list[float]]:
    values = reported_values(params, run, protocol)
    for metric in metrics:
        if metric.name not in values:
            raise GcflowError(f"{run.name}: evaluated without {metric.name}; run: gcflow evaluate {run.name}")
    return values


def published_values(params: Params, table: Table) -> dict[str, dict[str, PublishedValue]]:
    """The published numbers beside a table's: method to metric to value."""
    if table.paper is None:
        return {}
    methods = params.published[table.published_entry]["datasets"][table.paper].items()
    return {name: {metric: PublishedValue(*value) for metric, value in row.items()} for name, row in methods}


def cell(values: list[list[float]]) -> str:
    """`mean ± std over training seeds (std over generation seeds)`; what has a single seed has no deviation.

    The latter is the root mean square of each training seed's. values: per training seed, one per generation seed. Two
    decimals; of small values two significant digits of the largest of the three.
    """
    means_of_runs = [fmean(of_run) for of_run in values]
    numbers, forms = [fmean(means_of_runs)], ["{}"]
    if len(values) > 1:
        numbers.append(stdev(means_of_runs))
        forms.append(" ± {}")
    if all(len(of_run) > 1 for of_run in values):
        numbers.append(math.sqrt(fmean(variance(of_run) for of_run in values)))
        forms.append(" ({})")
    largest = max(map(abs, numbers))
    places = max(2, 1 - math.floor(math.log10(largest))) if largest else 2
    return "".join(forms).format(*(f"{number:.{places}f}" for number in numbers))


def _metrics_shown(params: Params, dataset: str) -> list[MetricName]:
    """Those of the features, then those of extensions."""
    entry = params.dataset(dataset)
    added = (column for metric in entry.evaluation.metrics for column in metric.columns.items())
    return [*KINDS[entry.features.kind].metrics, *(MetricName(name, heading) for name, heading in added)]


def build_table(params: Params, dataset: str, name: str) -> list[Row]:
    """The rows of a table as text, one per method; published numbers, and differences to them, have their own columns.

    All rows have the columns of the first. A method of which no run is evaluated shows as missing.
    """
    entry = params.dataset(dataset)
    table = params.named(f"datasets.{dataset}.tables", name, entry.tables)
    protocol = table.protocol or next(iter(entry.features.protocols))
    published = published_values(params, table)
    shown = _metrics_shown(params, dataset)
    names = {metric.label: metric.name for metric in shown}
    rows: list[Row] = []
    for method in table.methods:
        runs = [Run(dataset, method, seed) for seed in entry.runs[method].seeds]
        evaluated = [run for run in runs if metrics_path(params.root, run).exists()]
        found = [_with_all(shown, params, run, protocol) for run in evaluated]
        complete = len(found) == len(runs)
        row = {
            "method": entry.runs[method].label,
            "seeds": str(len(runs)) if complete else f"{len(found)} of {len(runs)}",
        }
        scaled = {
            metric.name: [[value * metric.factor for value in run[metric.name]] for run in found] for metric in shown
        }
        row |= {metric.heading: cell(scaled[metric.name]) if found else MISSING for metric in shown}
        for metric, value in published.get(method, {}).items():
            row[f"published {metric}"] = value.text
            if not value.caveat:
                ours = scaled[names[metric]]
                row[f"Δ {metric}"] = f"{fmean(map(fmean, ours)) - value.mean:+.2f}" if found else MISSING
        rows.append(row)
    heads = list(dict.fromkeys(head for row in rows for head in row))
    return [{head: row.get(head, "") for head in heads} for row in rows]


def _lines(rows: list[Row]) -> list[list[str]]:
    return [[*rows[0]], *([*row.values()] for row in rows)]


def _tex(rows: list[Row], caption: str) -> str:
    lines = [" & ".join(cell.translate(TEX) for cell in line) + r" \\" for line in _lines(rows)]
    body = "\n".join([lines[0], r"\midrule", *lines[1:]])
    columns = "l" + "r" * (len(rows[0]) - 1)
    tabular = f"\\begin{{tabular}}{{{columns}}}\n\\toprule\n{body}\n\\bottomrule\n\\end{{tabular}}\n"
    return f"% {caption.translate(TEX)}\n{tabular}"


def _reference_record(params: Params, dataset: str, protocol: str) -> dict[str, Any]:
    path, rules = reference_path(params.root, dataset, protocol), params.dataset(dataset).features.protocols[protocol]
    record = read_header(path)
    if rules is not None:
        rules.check_reference(path, record["protocol"], f"gcflow reference {dataset} {protocol}")
    return record


def _real_data(record: dict[str, Any]) -> str:
    parts = []
    for name, value in record["real_half_against_half"].items():
        metric = metric_name(name)
        parts.append(f"{metric.label} {value * metric.factor:.2f}")
    return f"Real data, one random half of {record['count']} samples against the other: {', '.join(parts)}"


def protocol_line(params: Params, dataset: str, methods: tuple[str, ...], protocol: str, record: dict[str, Any]) -> str:
    """The making of numbers of methods under a protocol, in one or two sentences."""
    entry = params.dataset(dataset)
    settings, words = entry.features.protocols[protocol], KINDS[entry.features.kind].words
    if settings is None:
        return f"Protocol {protocol}: {words}, these numbers are not FID."
    first = {method: Run(dataset, method, entry.runs[method].seeds[0]) for method in methods}
    sizes = sorted({params.run_config(run.name).training.batch for run in first.values()})
    batch = f"each batch of {' or '.join(map(str, sizes))}"
    pixels = {
        "clip": "clipped to [-1, 1], rounded to 8 bits",
        "clip-truncate": "clipped to [-1, 1], truncated to 8 bits",
        "batch-min-max": f"{batch} scaled by its own extremes, truncated to 8 bits",
    }
    real = ", which went through float32 and were truncated to 8 bits" if settings.real_pixels == "round-trip" else ""
    score = f", score over {settings.score_splits} splits" if isinstance(settings, InceptionProtocol) else ""
    words += f": {record['network']}" if "network" in record else ""
    return (
        f"Protocol {protocol}: {words} (sha256 {record['extractor_sha256'][:12]}), {settings.resize} resize, images "
        f"{pixels[settings.pixels]}, reference {record['count']} images of the {record['split']} split "
        f"({record['choice']}){real}, {settings.kernel} over {settings.kid_subsets} subsets of "
        f"{settings.kid_subset_size} (seed {settings.kid_seed}){score}."
    )


def write_table(params: Params, dataset: str, name: str) -> None:
    """Writes results/<dataset>/tables/<name>.{json,md,csv,tex}: the cells, and a note on how they were made.

    The JSON has both apart, for the report. The CSV has no place for a note: it has the protocol as its last column.

    Raises:
        GcflowError: a run lacks a metric, or the reference is missing, or was made with other settings.
    """
    rows, entry = build_table(params, dataset, name), params.dataset(dataset)
    table, settings = entry.tables[name], entry.evaluation
    protocol = table.protocol or next(iter(entry.features.protocols))
    rules, record = entry.features.protocols[protocol], _reference_record(params, dataset, protocol)
    best = rules is not None and rules.select == "best"
    distance = KINDS[entry.features.kind].distance.label
    step = f"at the best step by {distance} of the snapshots" if best else "at the last step"
    where = ", where that step is the last" if best else ""
    note = (
        f"EMA weights {step}, {settings.samples} generated samples; ± is the standard deviation over "
        f"training seeds, in brackets over {len(settings.generation_seeds)} generation seeds of one run (root mean "
        f"square{where}). {protocol_line(params, dataset, table.methods, protocol, record)} {_real_data(record)}."
    )
    if table.note:
        note += f" {table.note}"
    if published_values(params, table):
        note += f" Published: {params.published[table.published_entry]['source']}"
        note += "; Δ is ours minus published." if any(head.startswith("Δ") for head in rows[0]) else "."
    folder = results_folder(params.root, dataset) / "tables"
    captioned = f"{table.title}. {note}"
    write_json(folder / f"{name}.json", {"protocol": protocol, "rows": rows, "note": note})
    write_text(folder / f"{name}.md", f"{markdown.table(_lines(rows))}\n\n{captioned}\n")
    write_csv(folder / f"{name}.csv", [{**row, "protocol": protocol} for row in rows])
    write_text(folder / f"{name}.tex", _tex(rows, captioned))
