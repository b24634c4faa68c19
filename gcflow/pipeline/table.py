"""`gcflow table`: final metrics of a list of methods, mean and standard deviation over seeds, in three formats."""

import math
from html import escape

import pandas as pd

from gcflow.errors import GcflowError
from gcflow.files import opened_tensors, read_json, tensors_metadata, write_text
from gcflow.pipeline.folders import reference_path, results_folder, run_folder
from gcflow.pipeline.params import Params, Run, paper_table1


def metric_label(metric: str) -> tuple[str, float]:
    """How a metric is shown: its name with the direction of better, and the factor of its values."""
    extractor, kind = metric.rsplit("-", 1)
    shown = {"fd": ("FD ↓", 1.0), "kd": ("KD×10² ↓", 100.0), "score": ("score ↑", 1.0)}
    label, factor = shown[kind]
    return f"{extractor} {label}", factor


def run_metrics(params: Params, run: Run) -> pd.DataFrame:
    """Every record of a run's evaluation, one row each."""
    path = run_folder(params.root, run) / "evaluation" / "metrics.json"
    records = read_json(path)
    if not isinstance(records, list) or not records:
        raise GcflowError(f"{path}: has no records; run gcflow evaluate {run.name}")
    return pd.DataFrame.from_records(records)


def final_values(params: Params, dataset: str, method: str) -> pd.DataFrame:
    """Metrics of the EMA at the last step by the cheapest sampler: a row per seed, mean over generation seeds."""
    rows = []
    for seed in params.dataset(dataset).runs[method].seeds:
        records = run_metrics(params, Run(dataset, method, seed))
        chosen = records[
            (records["weights"] == "ema")
            & (records["step"] == records["step"].max())
            & (records["network_evaluations"] == records["network_evaluations"].min())
        ]
        rows.append(chosen.groupby("metric", sort=False)["value"].mean())
    return pd.DataFrame(rows)


def paper_values(paper: str) -> dict[str, dict[str, list[float]]]:
    """The paper's Table 1 for one of its data sets: method to metric to [mean, std]."""
    values: dict[str, dict[str, list[float]]] = paper_table1()[paper]
    return values


def cell(mean: float, std: float, count: int) -> str:
    """`mean ± std` over `count` seeds; a single seed has no standard deviation."""
    return f"{mean:.2f} ± {std:.2f}" if count > 1 and not math.isnan(std) else f"{mean:.2f}"


def build_table(params: Params, dataset: str, name: str) -> pd.DataFrame:
    """The table as text cells, a row per method; the paper's numbers, where it has any, in columns of their own."""
    entry = params.dataset(dataset)
    if name not in entry.tables:
        raise GcflowError(f"{params.path}: datasets.{dataset}.tables has no {name!r}; known: {', '.join(entry.tables)}")
    table = entry.tables[name]
    paper = paper_values(table.paper) if table.paper else {}
    rows = []
    for method in table.methods:
        values = final_values(params, dataset, method)
        row: dict[str, str] = {"method": entry.runs[method].label, "seeds": str(len(values))}
        for metric in values.columns:
            label, factor = metric_label(str(metric))
            column = values[metric] * factor
            row[label] = cell(float(column.mean()), float(column.std()), len(column))
        for metric, (mean, std) in paper.get(method, {}).items():
            row[f"paper: {metric}"] = f"{mean:.2f} ± {std:.2f}"
        rows.append(row)
    return pd.DataFrame(rows).fillna("")


def _tex(frame: pd.DataFrame, caption: str) -> str:
    symbols = {
        "±": r"$\pm$",
        "↓": r"$\downarrow$",
        "↑": r"$\uparrow$",
        "×10²": r"$\times 10^2$",
        "μ": r"$\mu$",
        "%": r"\%",
    }

    def tex(text: str) -> str:
        for symbol, command in symbols.items():
            text = text.replace(symbol, command)
        return text

    lines = [" & ".join(map(tex, row)) + r" \\" for row in [list(frame.columns), *frame.to_numpy().tolist()]]
    body = "\n".join([lines[0], r"\midrule", *lines[1:]])
    columns = "l" + "r" * (len(frame.columns) - 1)
    return f"% {tex(caption)}\n\\begin{{tabular}}{{{columns}}}\n\\toprule\n{body}\n\\bottomrule\n\\end{{tabular}}\n"


def _markdown(frame: pd.DataFrame) -> str:
    rows = [list(frame.columns), ["---"] * len(frame.columns), *frame.to_numpy().tolist()]
    return "".join("| " + " | ".join(row) + " |\n" for row in rows)


def _html(frame: pd.DataFrame, note: str) -> str:
    style = (
        "body{font:15px/1.5 system-ui,sans-serif;margin:2rem;color:#222;background:#fff}"
        "table{border-collapse:collapse}th,td{padding:.35rem .9rem;text-align:right;border-bottom:1px solid #ddd}"
        "th:first-child,td:first-child{text-align:left}p{max-width:46rem;color:#555}"
    )
    table = frame.to_html(index=False, border=0)
    head = f"<meta charset='utf-8'><title>{escape(note.partition('.')[0])}</title><style>{style}</style>"
    return f"<!doctype html><html lang='en'><head>{head}</head><body>{table}<p>{escape(note)}</p></body></html>\n"


def _real_data(params: Params, dataset: str) -> str:
    with opened_tensors(reference_path(params.root, dataset), "np") as file:
        record = tensors_metadata(file)
    parts = []
    for metric, value in record["real_half_against_half"].items():
        label, factor = metric_label(metric)
        parts.append(f"{label[:-2]} {value * factor:.2f}")
    return f"Real data, one random half of {record['count']} samples against the other: {', '.join(parts)}"


def write_table(params: Params, dataset: str, name: str) -> None:
    """Writes results/<dataset>/tables/<name>.{md,csv,tex,html}."""
    frame, entry = build_table(params, dataset, name), params.dataset(dataset)
    settings = entry.evaluation
    note = (
        f"{entry.tables[name].title}. EMA weights at the last step, {settings.samples} generated samples, mean over "
        f"{len(settings.generation_seeds)} generation seeds, then mean ± standard deviation over training seeds. "
        f"{_real_data(params, dataset)}. {entry.features.kind.capitalize()} features: these numbers are not FID."
    )
    folder = results_folder(params.root, dataset) / "tables"
    write_text(folder / f"{name}.md", f"{_markdown(frame)}\n{note}\n")
    write_text(folder / f"{name}.csv", frame.to_csv(index=False))
    write_text(folder / f"{name}.tex", _tex(frame, note))
    write_text(folder / f"{name}.html", _html(frame, note))
