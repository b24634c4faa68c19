"""One number per run for the claims, from its evaluation or from the discrepancy of its coupling. Lower is better.

All but the slope are natural logarithms, so that a difference of two runs is the logarithm of a ratio.
"""

import math
from collections.abc import Callable
from statistics import fmean, linear_regression
from typing import Any

from gcflow.errors import GcflowError
from gcflow.pipeline.features import main_metric
from gcflow.pipeline.measurements import Curve, Record, means, measured

SLOPE_FROM = 1.0


def distance_curve(records: list[Record], source: str) -> Curve:
    """The distance of EMA samples with the fewest network evaluations, under the first of several protocols.

    Raises:
        GcflowError: the records lack the metric, or hold a distance that has no logarithm.
    """
    curves = next(iter(measured(records).curves.values()), {})
    metric = main_metric([*curves])
    if metric is None:
        problem = "has no fid, nor a metric that ends in -fd, of EMA weights; delete it and evaluate the run again"
        raise GcflowError(f"{source}: {problem}")
    for step, values in curves[metric].items():
        for value in values.values():
            _require_logarithm(value, f"{source}: {metric} at step {step}")
    return curves[metric]


def _final(curve: Curve) -> float:
    return math.log(means(curve)[max(curve)])


def _start(curve: Curve) -> float:
    return math.log(means(curve)[min(curve)])


def _area(curve: Curve) -> float:
    return fmean(map(math.log, means(curve).values()))


def _rise(curve: Curve) -> float:
    # Snapshots are sampled with one generation seed only: with the same one at the end, no difference of noises counts.
    seed = next(iter(curve[min(curve)]))
    return math.log(curve[max(curve)][seed] / min(values[seed] for values in curve.values()))


def discrepancy_levels(records: list[dict[str, Any]], source: str) -> list[tuple[float, float]]:
    """Logarithms of sigma and of R for each noise level, as the run's own denoiser estimates R.

    Raises:
        GcflowError: no such level, or a discrepancy that has no logarithm.
    """
    chosen = [record for record in records if record["estimate"] == "denoiser"]
    if not chosen:
        raise GcflowError(f"{source}: has no estimate by the denoiser; delete it to make it again")
    for record in chosen:
        _require_logarithm(record["value"], f"{source}: the discrepancy at sigma {record['sigma']:g}")
    return [(math.log(record["sigma"]), math.log(record["value"])) for record in chosen]


def _slope(levels: list[tuple[float, float]], source: str) -> float:
    high = [level for level in levels if level[0] >= math.log(SLOPE_FROM)]
    if len(high) < 2:
        raise GcflowError(
            f"{source}: has {len(high)} noise levels >= {SLOPE_FROM:g}, a slope needs two; list more sigmas"
        )
    logs_of_sigma, logs_of_discrepancy = zip(*high, strict=True)
    return linear_regression(logs_of_sigma, logs_of_discrepancy).slope


CURVE: dict[str, Callable[[Curve], float]] = {"final": _final, "start": _start, "area": _area, "rise": _rise}


def run_statistic(statistic: str, records: list[dict[str, Any]], source: str) -> float:
    """A statistic of a run.

    Args:
        statistic: `final`: ln of the distance at the last step, a mean over generation seeds. `start`: the same at the
            first snapshot. `area`: the mean of that over snapshots, which is the lower the faster it falls. `rise`: ln
            of the distance at the end over the least of any snapshot. `discrepancy`: mean of ln R over noise levels.
            `discrepancy-slope`: of the least-squares line of ln R against ln sigma, for sigma >= 1.
        records: of metrics.json; for the last two, of discrepancy.json.
        source: the file's name, for errors.

    Raises:
        GcflowError: the records lack what the statistic is made of.
    """
    if statistic in CURVE:
        return CURVE[statistic](distance_curve(records, source))
    levels = discrepancy_levels(records, source)
    return _slope(levels, source) if statistic == "discrepancy-slope" else fmean(value for _, value in levels)


def _require_logarithm(value: float, what: str) -> None:
    if not 0 < value < math.inf:
        raise GcflowError(f"{what} is {value!r}, expected a number > 0")
