"""One number per run for the claims, from its evaluation or from the discrepancy of its coupling. Lower is better.

All but the slope are natural logarithms, so that a difference of two runs is the logarithm of a ratio.
"""

import math
from statistics import fmean, linear_regression
from typing import Any

from gcflow.errors import GcflowError
from gcflow.pipeline.features import main_metric
from gcflow.pipeline.ledger.plans import DISCREPANCY_STATISTICS
from gcflow.pipeline.measurements import means, measured

SLOPE_FROM = 1.0


def summary(verb: str, records: list[dict[str, Any]], source: str) -> dict[str, Any]:
    """What the statistics of a run are made of: {step: {generation seed: distance}}, or {sigma: R}.

    Args:
        verb: `evaluate`: the distance of EMA samples with the fewest network evaluations, under the first of several
            protocols. `discrepancy`: R as the run's own denoiser estimates it.
        records: of metrics.json or discrepancy.json.
        source: the file's name, for errors.

    Raises:
        GcflowError: the records lack it, or a value has no logarithm.
    """
    if verb == "discrepancy":
        chosen = [record for record in records if record["estimate"] == "denoiser"]
        if not chosen:
            raise GcflowError(f"{source}: has no estimate by the denoiser; delete it to make it again")
        for record in chosen:
            _require_logarithm(record["value"], f"{source}: the discrepancy at sigma {record['sigma']:g}")
        return {str(record["sigma"]): record["value"] for record in chosen}
    curves = next(iter(measured(records).curves.values()), {})
    metric = main_metric([*curves])
    if metric is None:
        problem = "has no fid, nor a metric that ends in -fd, of EMA weights; delete it and evaluate the run again"
        raise GcflowError(f"{source}: {problem}")
    for step, values in curves[metric].items():
        for value in values.values():
            _require_logarithm(value, f"{source}: {metric} at step {step}")
    return {str(step): {str(seed): value for seed, value in values.items()} for step, values in curves[metric].items()}


def run_statistic(statistic: str, numbers: dict[str, Any], source: str) -> float:
    """A statistic of a run.

    Args:
        statistic: `final`: ln of the distance at the last step, a mean over generation seeds. `start`: the same at the
            first snapshot. `area`: the mean of that over snapshots, which is the lower the faster it falls. `rise`: ln
            of the distance at the end over the least of any snapshot. `discrepancy`: mean of ln R over noise levels.
            `discrepancy-slope`: of the least-squares line of ln R against ln sigma, for sigma >= 1.
        numbers: of `summary`.
        source: the file's name, for errors.

    Raises:
        GcflowError: there are too few noise levels for a slope.
    """
    if statistic in DISCREPANCY_STATISTICS:
        levels = {math.log(float(sigma)): math.log(value) for sigma, value in numbers.items()}
        return _slope(levels, source) if statistic == "discrepancy-slope" else fmean(levels.values())
    curve = {int(step): values for step, values in numbers.items()}
    if statistic == "rise":
        # Snapshots are sampled with one generation seed only: with the same one at the end, no difference of noises
        # counts.
        seed = next(iter(curve[min(curve)]))
        return math.log(curve[max(curve)][seed] / min(values[seed] for values in curve.values()))
    logarithms = {step: math.log(mean) for step, mean in means(curve).items()}
    if statistic == "area":
        return fmean(logarithms.values())
    return logarithms[max(curve) if statistic == "final" else min(curve)]


def _slope(levels: dict[float, float], source: str) -> float:
    high = {sigma: value for sigma, value in levels.items() if sigma >= math.log(SLOPE_FROM)}
    if len(high) < 2:
        raise GcflowError(
            f"{source}: has {len(high)} noise levels >= {SLOPE_FROM:g}, a slope needs two; list more sigmas"
        )
    return linear_regression([*high], [*high.values()]).slope


def _require_logarithm(value: float, what: str) -> None:
    if not 0 < value < math.inf:
        raise GcflowError(f"{what} is {value!r}, expected a number > 0")
