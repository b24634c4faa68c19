"""The one reader of what `gcflow evaluate` measured: evaluation/metrics.json of a run.

Tables, figures, the ledger of claims, the report and the views of DVC all show samples of EMA weights with the fewest
network evaluations, as means over generation seeds.
"""

from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from gcflow.errors import GcflowError
from gcflow.files import json_document
from gcflow.pipeline.folders import run_folder
from gcflow.pipeline.params import Params, Run

Record = dict[str, Any]
# Step to generation seed to value, steps ascending.
Curve = dict[int, dict[int, float]]


class Measured(NamedTuple):
    """The measurements of samples with the fewest network evaluations.

    evaluations: the fewest, per sample. curves: protocol to metric to its curve; the first ones are the main ones.
    """

    evaluations: int
    curves: dict[str, dict[str, Curve]]


def metrics_path(root: Path, run: Run) -> Path:
    """Every number that was measured on a run, each with its protocol record."""
    return run_folder(root, run) / "evaluation" / "metrics.json"


def measured(records: list[Record], weights: str = "ema") -> Measured:
    """The measurements of some weights by the cheapest sampler. records: of metrics.json."""
    chosen = [record for record in records if record["weights"] == weights]
    fewest = min((record["network_evaluations"] for record in chosen), default=0)
    curves: dict[str, dict[str, Curve]] = {}
    for record in sorted(chosen, key=lambda record: record["step"]):
        if record["network_evaluations"] == fewest:
            of_metric = curves.setdefault(record["protocol"], {}).setdefault(record["metric"], {})
            of_metric.setdefault(record["step"], {})[record["generation_seed"]] = record["value"]
    return Measured(fewest, curves)


def means(curve: Curve) -> dict[int, float]:
    """Step to the mean over generation seeds."""
    return {step: fmean(values.values()) for step, values in curve.items()}


def read_measured(params: Params, run: Run, protocol: str | None = None) -> tuple[int, dict[str, Curve]]:
    """Network evaluations, and the curve of each metric, of a run under a protocol, by default the data set's first.

    Raises:
        GcflowError: the run is not evaluated, or not under this protocol, or its file is damaged.
    """
    path = metrics_path(params.root, run)
    protocol = protocol or next(iter(params.dataset(run.dataset).features.protocols))
    with json_document(path) as records:
        evaluations, curves = measured(records)
    if protocol not in curves:
        raise GcflowError(f"{path}: has no records of protocol {protocol}; run gcflow evaluate {run.name}")
    return evaluations, curves[protocol]
