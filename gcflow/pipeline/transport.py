"""`gcflow transport`: the cost E||x - z||^2 of the pairs that each coupling trains on (paper, Figure 3)."""

from typing import Any

import torch
from torch import Tensor

from gcflow.couplings import EndpointPredictor, optimal_assignment
from gcflow.data import load_dataset
from gcflow.errors import GcflowError
from gcflow.files import write_json
from gcflow.metrics import mean_and_error, transport_cost
from gcflow.oracles import LARGEST_EXACT_DATA, GaussianMixture, in_parts
from gcflow.pipeline.folders import data_folder, results_folder, run_folder, snapshot
from gcflow.pipeline.params import Params
from gcflow.pipeline.progress import Progress
from gcflow.preconditioning import to_model_space
from gcflow.randomness import generator
from gcflow.theory.endpoints import standard_deviation
from gcflow.theory.transport_cost import gaussian_costs
from gcflow.weights import load_run_model

EXACT_FLOW_STEP = 0.25
# The exact flow looks at every value of its mixture for every pair at each of its steps.
EXACT_PRODUCTS = 60_000_000
# Of a cost: what float32 and the solver of the exact flow leave uncertain. At small noise the exact flow of finite data
# ends at the data themselves, so that a change is this rounding and nothing else.
RESOLUTION = 1e-6


def _estimate(cost: Tensor, independent: Tensor, previous: Tensor | None = None) -> dict[str, Any]:
    """A cost [n], what it saves against independent pairs, and its change from the noise level before, if there is one.

    All on the same data and noises, so that their common scatter cancels in the differences.
    """
    names = ("cost", "standard_error", "saving", "saving_standard_error", "change", "change_standard_error")
    change: tuple[float | None, float | None] = (None, None)
    if previous is not None:
        mean, error = mean_and_error(cost - previous)
        change = (mean, max(error, RESOLUTION * float(cost.mean())))
    return dict(zip(names, (*mean_and_error(cost), *mean_and_error(independent - cost), *change), strict=True))


def measure_transport(params: Params, dataset: str, device: str = "cpu") -> None:
    """Writes results/<dataset>/transport.json: IC, OT per batch size, GC per noise level, trained and exact.

    `gc` uses the predictor run's EMA; `gc-exact`, for data small enough, the flow of their own closed-form velocity,
    which is slow and takes the first of the pairs alone. A `cost` is of a coupling's own pairs; a `saving` is against
    independent pairs of the same data and noises, so that savings compare whatever the number of pairs. A `change` is
    from the noise level before, at the first one from sigma_min: there endpoints hold sigma_min z, which alone saves
    d (2 sigma_min - sigma_min^2) against independent pairs. Gaussian data have the closed forms beside.

    Raises:
        GcflowError: no transport block, or the predictor's weights are missing.
    """
    settings = params.dataset(dataset).transport
    if settings is None:
        raise GcflowError(f"{params.path}: datasets.{dataset}.transport is missing; see digits for an example")
    run, step = params.resolve(settings.predictor, dataset, 0)
    config = params.run_config(run.name)
    model = load_run_model(snapshot(run_folder(params.root, run), step), config, device=device)
    torch.set_num_threads(config.training.cpu_threads)
    data = load_dataset(data_folder(params.root, dataset))
    mixture = None
    if data.samples.numel() <= LARGEST_EXACT_DATA:
        mixture = params.dataset(dataset).data.exact_mixture(data.samples, config.process)

    index = torch.randint(len(data.samples), (settings.samples,), generator=generator(settings.seed, "transport"))
    x = to_model_space(data.samples[index], config.process)
    z = torch.randn(x.shape, generator=generator(settings.seed, "transport-noise"))
    independent = transport_cost(x, z)
    cost, error = mean_and_error(independent)
    records: list[dict[str, Any]] = [{"coupling": "ic", "cost": cost, "standard_error": error}]
    for size in settings.batch_sizes:
        batches = zip(torch.split(x, size), torch.split(z, size), strict=True)
        # Pairs of one assignment are not independent: errors are over batches.
        costs = torch.stack([transport_cost(a, b[optimal_assignment(a, b)]).mean() for a, b in batches])
        of_batches = independent.reshape(-1, size).mean(1)
        records.append({"coupling": "ot", "batch": size, **_estimate(costs, of_batches)})

    endpoints: dict[str, EndpointPredictor] = {"gc": in_parts(model, device)}
    pairs_used = {"gc": len(x)}
    if mixture is not None:

        def exact(noisy: Tensor, sigma: Tensor, mixture: GaussianMixture = mixture) -> Tensor:
            return mixture.flow(noisy, float(sigma[0]), config.process.sigma_min, EXACT_FLOW_STEP)

        endpoints["gc-exact"] = exact
        pairs_used["gc-exact"] = min(max(2, EXACT_PRODUCTS // mixture.means.numel()), len(x))
    boundary = transport_cost(x + config.process.sigma_min * z, z)
    previous = {coupling: boundary[:pairs] for coupling, pairs in pairs_used.items()}
    with Progress(f"{dataset} transport cost", len(settings.sigmas), unit="noise level") as progress:
        for done, sigma in enumerate(settings.sigmas, start=1):
            for coupling, predict in endpoints.items():
                clean, noise = x[: pairs_used[coupling]], z[: pairs_used[coupling]]
                with torch.no_grad():
                    endpoint = predict(clean + sigma * noise, torch.full((len(clean),), sigma))
                costs = transport_cost(endpoint, noise)
                estimate = _estimate(costs, independent[: len(costs)], previous[coupling])
                records.append({"coupling": coupling, "sigma": sigma, **estimate})
                previous[coupling] = costs
            progress.update(done, f"sigma {sigma:g}")
    document = {
        "predictor": {"run": run.name, "step": step, "weights": "ema"},
        "exact_flow": {"solver": "RK4", "largest_step": EXACT_FLOW_STEP, "end": config.process.sigma_min},
        "samples": {"ic": len(x), "ot": len(x), **pairs_used},
        "seed": settings.seed,
        "space": "values in [-1, 1] minus data_mean",
        "records": records,
    }
    if mixture is not None and standard_deviation(mixture) is not None:
        document["closed_form"] = {"sigmas": settings.sigmas, **gaussian_costs(mixture, settings.sigmas)}
    write_json(results_folder(params.root, dataset) / "transport.json", document)
