"""`gcflow transport`: the cost E||x - z||^2 of the pairs that each coupling trains on (paper, section 3, Figure 3)."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gcflow.couplings import optimal_assignment
from gcflow.data import load_dataset
from gcflow.errors import GcflowError
from gcflow.files import write_json
from gcflow.metrics import transport_cost
from gcflow.oracles import solve_ode, velocity
from gcflow.pipeline.folders import data_folder, results_folder, run_folder, snapshot
from gcflow.pipeline.params import Params
from gcflow.pipeline.progress import Progress
from gcflow.preconditioning import to_model_space
from gcflow.randomness import generator
from gcflow.weights import load_run_model

EXACT_FLOW_STEPS, EXACT_PAIRS = 30, 512


def _estimate(cost: Tensor) -> dict[str, float]:
    return {"cost": cost.mean().item(), "standard_error": (cost.std() / len(cost) ** 0.5).item()}


def measure_transport(params: Params, dataset: str) -> None:
    """Writes results/<dataset>/transport.json: IC, OT per batch size, GC per noise level, trained and exact.

    `gc` uses the predictor run's EMA; `gc-exact` the flow of the data's own closed-form velocity.

    Raises:
        GcflowError: no transport block, or the predictor's weights are missing.
    """
    settings = params.dataset(dataset).transport
    if settings is None:
        raise GcflowError(f"{params.path}: datasets.{dataset}.transport is missing; see digits for an example")
    run, step = params.resolve(settings.predictor, dataset, 0)
    config = params.run_config(run.name)
    model = load_run_model(snapshot(run_folder(params.root, run), step), config)
    torch.set_num_threads(config.training.cpu_threads)
    data = load_dataset(data_folder(params.root, dataset))
    mixture = params.dataset(dataset).data.exact_mixture(data.samples, config.process)

    index = torch.randint(len(data.samples), (settings.samples,), generator=generator(settings.seed, "transport"))
    x = to_model_space(data.samples[index], config.process)
    z = torch.randn(x.shape, generator=generator(settings.seed, "transport-noise"))
    records: list[dict[str, Any]] = [{"coupling": "ic", **_estimate(transport_cost(x, z))}]
    for size in settings.batch_sizes:
        batches = zip(torch.split(x, size), torch.split(z, size), strict=True)
        cost = torch.stack([transport_cost(a, b[optimal_assignment(a, b)]).mean() for a, b in batches])
        # Pairs of one assignment are not independent: the standard error is over batches.
        records.append({"coupling": "ot", "batch": size, **_estimate(cost)})

    def exact(noisy: Tensor, sigma: Tensor) -> Tensor:
        def field(y: Tensor, level: Tensor) -> Tensor:
            return velocity(mixture.denoise, y, level)

        return solve_ode(field, noisy, float(sigma[0]), config.process.sigma_min, EXACT_FLOW_STEPS)[-1]

    endpoints: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"gc": model, "gc-exact": exact}
    # The exact flow looks at every sample of the data set at each of its steps, so fewer pairs have to do.
    pairs_used = {"gc": len(x), "gc-exact": min(EXACT_PAIRS, len(x))}
    with Progress(f"{dataset} transport cost", len(settings.sigmas), unit="noise level") as progress:
        for done, sigma in enumerate(settings.sigmas, start=1):
            for coupling, predict in endpoints.items():
                clean, noise = x[: pairs_used[coupling]], z[: pairs_used[coupling]]
                with torch.no_grad():
                    endpoint = predict(clean + sigma * noise, torch.full((len(clean),), sigma))
                records.append({"coupling": coupling, "sigma": sigma, **_estimate(transport_cost(endpoint, noise))})
            progress.update(done, f"sigma {sigma:g}")
    document = {
        "predictor": {"run": run.name, "step": step, "weights": "ema"},
        "exact_flow": {"solver": "RK4 in ln sigma", "steps": EXACT_FLOW_STEPS, "end": config.process.sigma_min},
        "samples": {"ic": len(x), "ot": len(x), **pairs_used},
        "seed": settings.seed,
        "space": "values in [-1, 1] minus data_mean",
        "records": records,
    }
    write_json(results_folder(params.root, dataset) / "transport.json", document)
