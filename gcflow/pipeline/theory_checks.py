"""`gcflow theory`: the paper's theorems and its Figure 1, checked on a Gaussian mixture."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gcflow.config import RunReference, to_dict
from gcflow.errors import GcflowError
from gcflow.files import write_json
from gcflow.pipeline.folders import run_folder, snapshot, theory_path
from gcflow.pipeline.params import Params
from gcflow.pipeline.progress import Progress, say
from gcflow.sources import Mixture2d
from gcflow.theory.check import Check
from gcflow.theory.distillation_gap import theorem_1, theorem_1_closed_form
from gcflow.theory.endpoints import standard_deviation
from gcflow.theory.trajectories import figure_1
from gcflow.theory.transport_cost import lemma_1
from gcflow.theory.velocity_discrepancy import theorem_2
from gcflow.weights import load_run_model

Part = tuple[list[Check], dict[str, Any]]
CLOSED_FORM_INTERVALS = 65536


def _predictor(params: Params, dataset: str, reference: RunReference) -> Callable[[Tensor, float], Tensor]:
    run, step = params.resolve(reference, dataset, 0)
    model = load_run_model(snapshot(run_folder(params.root, run), step), params.run_config(run.name))
    mean = model.process.data_mean

    def predict(x: Tensor, sigma: float) -> Tensor:
        return model((x - mean).float(), torch.full((len(x),), sigma)).to(x) + mean

    return predict


def check_theory(params: Params, dataset: str, threads: int) -> None:
    """Writes results/<dataset>/theory.json: every check, and the curves that figures draw. Prints the checks.

    Checks that fail are results too: they are written and said, and the ledger of claims shows them.

    Raises:
        GcflowError: no theory block, the data are no mixture, or the predictor's weights are missing.
    """
    entry = params.dataset(dataset)
    settings = entry.theory
    if settings is None:
        raise GcflowError(f"{params.path}: datasets.{dataset}.theory is missing; see mixture2d for an example")
    assert isinstance(entry.data, Mixture2d)
    torch.set_num_threads(threads)
    mixture, sigmas, seed = entry.data.mixture(), list(settings.sigmas), settings.seed
    parts: dict[str, Callable[[], Part]] = {}
    for horizon in settings.horizons:
        parts[f"Theorem 1, T = {horizon:g}"] = partial(
            theorem_1,
            mixture,
            sigma_data=entry.process.sigma_data,
            horizon=horizon,
            intervals=settings.intervals,
            points=settings.points,
            replicates=settings.scramblings,
            seed=seed,
        )
    if sigmas:
        parts["Lemma 1"] = partial(lemma_1, mixture, sigmas)
        parts["Theorem 2"] = partial(theorem_2, mixture, sigmas, seed)
    if settings.paths:
        predict = None if settings.predictor is None else _predictor(params, dataset, settings.predictor)
        sigma_min, levels = entry.process.sigma_min, settings.path_sigmas
        parts["Figure 1"] = partial(figure_1, mixture, sigma_min, levels, settings.paths, seed, predict)

    checks: list[Check] = []
    curves: dict[str, Any] = {}
    with Progress(f"{dataset} theory", len(parts), unit="part") as progress:
        for done, (name, part) in enumerate(parts.items(), start=1):
            found, curve = part()
            checks += found
            curves[name] = curve
            progress.update(done, name)
    std = standard_deviation(mixture)
    if std is not None:
        size = mixture.means.shape[1]
        checks += [theorem_1_closed_form(std, size, horizon, CLOSED_FORM_INTERVALS) for horizon in settings.horizons]
    write_json(
        theory_path(params.root, dataset),
        {
            "data": to_dict(entry.data),
            "settings": to_dict(settings),
            "checks": [check.record() for check in checks],
            "curves": curves,
        },
    )
    for check in checks:
        say(f"  {check.line()}")
    say(f"  {dataset}: {sum(check.holds for check in checks)} of {len(checks)} checks hold")
