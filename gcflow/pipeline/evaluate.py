"""`gcflow features`, `reference` and `evaluate`: generated samples, and how they compare with real ones."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gcflow.classifier import ImageClassifier, train_classifier
from gcflow.config import RunConfig, Weights, to_dict
from gcflow.data import load_dataset
from gcflow.errors import GcflowError
from gcflow.files import atomic_path, sha256_of, write_json
from gcflow.metrics import FeatureSet, class_score, frechet_distance, kernel_distance
from gcflow.pipeline.drawing import save_samples
from gcflow.pipeline.folders import classifier_path, data_folder, reference_path, run_folder, snapshot
from gcflow.pipeline.params import Params
from gcflow.pipeline.progress import Progress, say
from gcflow.pipeline.schema import Classifier, Evaluation
from gcflow.randomness import generator
from gcflow.sampling import Sampler, generate
from gcflow.weights import load_run_model, load_tensors, save_tensors

# Samples classified at once: so few that their activations stay in the cache, and their memory with the allocator.
CLASSIFIED = 64


def train_features(params: Params, dataset: str) -> None:
    """Trains the classifier whose features are compared, and stores it with its held-out accuracy.

    Raises:
        GcflowError: the data set compares coordinates, or the accuracy is below `minimum_accuracy`.
    """
    settings = params.dataset(dataset).features
    if not isinstance(settings, Classifier):
        raise GcflowError(f"{params.path}: datasets.{dataset}.features.kind is {settings.kind}: nothing to train")
    data = load_dataset(data_folder(params.root, dataset))
    torch.set_num_threads(params.dataset(dataset).training.cpu_threads)
    classifier, accuracy = train_classifier(
        data.samples,
        data.labels,
        held_out=settings.held_out,
        epochs=settings.epochs,
        batch=settings.batch,
        learning_rate=settings.learning_rate,
        seed=settings.seed,
    )
    say(f"  {dataset} feature classifier: held-out accuracy {accuracy:.2%}")
    if accuracy < settings.minimum_accuracy:
        raise GcflowError(
            f"{params.path}: datasets.{dataset}.features.minimum_accuracy is {settings.minimum_accuracy}, "
            f"but the classifier reaches {accuracy:.4f}; train it longer (epochs)"
        )
    metadata = {
        "shape": list(data.shape),
        "classes": int(data.labels.max()) + 1,
        "held_out_accuracy": accuracy,
        "settings": to_dict(settings),
        "data_sha256": data.sha256,
    }
    save_tensors(classifier_path(params.root, dataset), classifier.state_dict(), metadata)


@dataclass(frozen=True)
class Extractor:
    """Turns stored samples into features, and into class probabilities where there are classes.

    name: prefix of the metrics' names. sha256: of its weights; None for the identity.
    """

    name: str
    sha256: str | None
    classifier: ImageClassifier | None

    @torch.no_grad()
    def __call__(self, samples: Tensor) -> tuple[Tensor, Tensor | None]:
        """Features [n, F] and probabilities [n, K] or None."""
        if self.classifier is None:
            return samples.flatten(1), None
        features = torch.cat([self.classifier.features(part) for part in torch.split(samples, CLASSIFIED)])
        return features, self.classifier.head(features).softmax(1)


def load_extractor(params: Params, dataset: str) -> Extractor:
    """The feature extractor of a data set's protocol."""
    if not isinstance(params.dataset(dataset).features, Classifier):
        return Extractor("coordinate", None, None)
    path = classifier_path(params.root, dataset)
    tensors, metadata = load_tensors(path)
    classifier = ImageClassifier(tuple(metadata["shape"]), metadata["classes"])
    classifier.load_state_dict(tensors)
    return Extractor("classifier", sha256_of(path), classifier.eval().requires_grad_(False))


def _compare(
    extractor: Extractor, features: Tensor, probabilities: Tensor | None, reference: FeatureSet
) -> dict[str, float]:
    generated = FeatureSet(features)
    values = {
        f"{extractor.name}-fd": frechet_distance(generated, reference),
        f"{extractor.name}-kd": kernel_distance(generated, reference),
    }
    if probabilities is not None:
        values[f"{extractor.name}-score"] = class_score(probabilities)
    return values


def compute_reference(params: Params, dataset: str) -> None:
    """Stores the features of every real sample, once, with their count and how one random half compares with the other.

    That comparison of real with real is what the metrics' values should be read against.
    """
    torch.set_num_threads(params.dataset(dataset).training.cpu_threads)
    data, extractor = load_dataset(data_folder(params.root, dataset)), load_extractor(params, dataset)
    features, probabilities = extractor(data.samples)
    order = torch.randperm(len(features), generator=generator(0, "halves"))
    first, second = order[: len(order) // 2], order[len(order) // 2 :]
    halves = _compare(
        extractor,
        features[first],
        probabilities[first] if probabilities is not None else None,
        FeatureSet(features[second]),
    )
    metadata = {
        "count": len(features),
        "split": "all",
        "real_half_against_half": halves,
        "data_sha256": data.sha256,
        "extractor_sha256": extractor.sha256,
    }
    save_tensors(reference_path(params.root, dataset), {"features": features}, metadata)


def samplers(config: RunConfig, settings: Evaluation) -> list[Sampler]:
    """One step, and few steps, of a consistency model; the PF-ODE of a denoiser. The first is the main one."""
    if config.method.objective == "denoising":
        return [Sampler("heun", heun_steps=settings.heun_steps)]
    levels = settings.intermediate_sigmas
    return [Sampler("consistency", levels[:length]) for length in range(len(levels) + 1)]


def _space(dtype: torch.dtype) -> dict[str, str]:
    if dtype == torch.uint8:
        return {"clipping": "[-1, 1]", "quantisation": "uint8, rounded", "resize": "none"}
    return {"clipping": "none", "quantisation": "none", "resize": "none"}


def _measure(
    extractor: Extractor,
    samples: Tensor,
    reference: FeatureSet,
    reference_record: dict[str, Any],
    protocol: dict[str, Any],
) -> Iterator[dict[str, Any]]:
    features, probabilities = extractor(samples)
    for metric, value in _compare(extractor, features, probabilities, reference).items():
        yield {
            "metric": metric,
            "value": value,
            **protocol,
            "extractor_sha256": extractor.sha256,
            "generated": len(samples),
            "reference": reference_record["count"],
            "reference_split": reference_record["split"],
        }


def evaluate_run(params: Params, name: str, device: str = "cpu") -> None:
    """Measures a run: EMA and raw weights at every snapshot; every sampler and generation seed at the last step.

    Writes evaluation/metrics.json (each number with its protocol record), samples.npy and samples.png.

    Raises:
        GcflowError: weights, reference or classifier are missing or damaged.
    """
    run = params.parse_run(name)
    entry, config = params.dataset(run.dataset), params.run_config(name)
    torch.set_num_threads(config.training.cpu_threads)
    folder, settings = run_folder(params.root, run), entry.evaluation
    tensors, reference_record = load_tensors(reference_path(params.root, run.dataset))
    extractor = load_extractor(params, run.dataset)
    if reference_record["extractor_sha256"] != extractor.sha256:
        path = reference_path(params.root, run.dataset)
        raise GcflowError(f"{path}: made with another classifier; run gcflow reference {run.dataset}")
    dataset = load_dataset(data_folder(params.root, run.dataset))
    dtype, shape = dataset.samples.dtype, dataset.shape

    steps = config.training.snapshot_steps
    choices = samplers(config, settings)
    plan: list[tuple[int, Weights, Sampler, int]] = []
    for weights in ("ema", "raw"):
        # Sampling a denoiser costs tens of evaluations: its curve is not a figure of the paper, its end is enough.
        if config.method.objective != "denoising":
            plan += [(step, weights, choices[0], settings.generation_seeds[0]) for step in steps[:-1]]
        plan += [(steps[-1], weights, sampler, seed) for sampler in choices for seed in settings.generation_seeds]

    real = FeatureSet(tensors["features"])
    records: list[dict[str, Any]] = []
    grid = None
    with Progress(f"{name} evaluation", len(plan), unit="measurement") as progress:
        for (step, weights), measurements in groupby(plan, key=itemgetter(0, 1)):
            model = load_run_model(snapshot(folder, step), config, weights, device)
            for _, _, sampler, seed in measurements:
                samples = torch.cat(list(generate(model, sampler, shape, range(settings.samples), seed, dtype=dtype)))
                protocol = {
                    "run": name,
                    "step": step,
                    "weights": weights,
                    "sampler": sampler.name,
                    "network_evaluations": sampler.evaluations,
                    "generation_seed": seed,
                    **_space(dtype),
                }
                measured = list(_measure(extractor, samples, real, reference_record, protocol))
                records += measured
                if (step, weights) == (steps[-1], "ema") and grid is None:
                    grid = samples[: settings.grid**2].numpy()
                progress.update(progress.done + 1, f"{measured[0]['metric']} {measured[0]['value']:.3g}")
    assert grid is not None
    out = folder / "evaluation"
    with atomic_path(out / "samples.npy") as temporary, temporary.open("wb") as file:
        np.save(file, grid)
    with atomic_path(out / "samples.png") as temporary:
        save_samples(grid, settings.grid, temporary)
    write_json(out / "metrics.json", records)
