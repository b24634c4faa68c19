"""`gcflow discrepancy`: R_t = E||z - v_t(x_t)||^2 of a coupling, by a denoiser trained on it (paper, Figure 2)."""

from typing import Any

import torch

from gcflow.config import to_dict
from gcflow.couplings import CouplingContext, samples_to_predict
from gcflow.errors import GcflowError
from gcflow.files import write_json
from gcflow.metrics import mean_and_error, transport_cost
from gcflow.oracles import LARGEST_EXACT_DATA, Denoiser, in_parts, velocity
from gcflow.pipeline.folders import discrepancy_path, run_folder, snapshot
from gcflow.pipeline.params import Params
from gcflow.pipeline.progress import Progress
from gcflow.pipeline.train import find_inputs, load_frozen
from gcflow.preconditioning import to_model_space
from gcflow.randomness import coupling_uniforms, generator
from gcflow.weights import load_run_model


def measure_discrepancy(params: Params, name: str, device: str = "cpu") -> None:
    """Writes the run's discrepancy.json: R_t of its coupling at each noise level, on noise that no training saw.

    `denoiser` takes v_t from the run itself. Any velocity but the best one is farther from z, so this is an upper bound
    in expectation, and so is `upper-bound`, which for the generator-augmented coupling takes the endpoint predictor for
    the denoiser. `exact` is the closed form of the data, for independent pairs of data small enough.

    Raises:
        GcflowError: the run is no denoiser, there is no discrepancy block, or weights are missing.
    """
    run = params.parse_run(name)
    entry, config = params.dataset(run.dataset), params.run_config(name)
    settings = entry.discrepancy
    if settings is None:
        raise GcflowError(f"{params.path}: datasets.{run.dataset}.discrepancy is missing; see digits for an example")
    objective = config.method.objective
    if not objective.denoises:
        raise GcflowError(f"{name}: its objective is {objective.kind}; denoisers measure the discrepancy")
    torch.set_num_threads(config.training.cpu_threads)
    inputs, steps = find_inputs(params, run), config.training.steps
    frozen = load_frozen(params, run, inputs, device).get("predictor")
    predict = in_parts(frozen, device) if frozen is not None else None
    model = load_run_model(snapshot(run_folder(params.root, run), steps), config, device=device)

    samples = inputs.dataset.samples
    index = torch.randint(len(samples), (settings.samples,), generator=generator(settings.seed, "discrepancy"))
    x = to_model_space(samples[index].to(device), config.process)
    z = torch.randn(x.shape, generator=generator(settings.seed, "discrepancy-noise")).to(device)
    uniform = torch.rand(settings.samples, generator=generator(settings.seed, "discrepancy-share"))
    take_gc, coupling = uniform < config.mu_at(steps), config.method.coupling
    to_predict = samples_to_predict(take_gc).to(device)
    if coupling.assigns:
        drawn = coupling_uniforms(settings.seed, 0, len(x))
        parts = zip(*(part.split(config.training.batch) for part in (x, z, drawn)), strict=True)
        z = torch.cat([noise[coupling.assignment(data, noise, own).to(device)] for data, noise, own in parts])

    estimators: dict[str, Denoiser] = {"denoiser": in_parts(model, device)}
    if predict is not None:
        estimators["upper-bound"] = predict
    if not (coupling.assigns or coupling.predicts) and samples.numel() <= LARGEST_EXACT_DATA:
        estimators["exact"] = entry.data.exact_mixture(samples.to(device), config.process).denoise
    records: list[dict[str, Any]] = []
    with Progress(f"{name} discrepancy", len(settings.sigmas), unit="noise level") as progress, torch.no_grad():
        for done, level in enumerate(settings.sigmas, start=1):
            sigma = torch.full((len(x),), level, device=device)
            endpoints = x
            if coupling.predicts:
                assert predict is not None
                context = CouplingContext(sigma, take_gc.to(device), to_predict, predict)
                endpoints = coupling.endpoints(x, z, context)
            noisy = endpoints + level * z
            for estimate, denoiser in estimators.items():
                error = transport_cost(velocity(denoiser, noisy, sigma), z)
                value, scatter = mean_and_error(error)
                records.append({"estimate": estimate, "sigma": level, "value": value, "standard_error": scatter})
            progress.update(done, f"sigma {level:g}: {records[-1]['value']:.3g}")
    document = {
        "run": name,
        "step": steps,
        "weights": "ema",
        "coupling": to_dict(config.method)["coupling"],
        "inputs": inputs.hashes,
        "samples": settings.samples,
        "seed": settings.seed,
        "space": "values in [-1, 1] minus data_mean; summed over dimensions",
        "records": records,
    }
    write_json(discrepancy_path(params.root, run), document)
