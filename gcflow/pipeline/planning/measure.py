"""What `gcflow bench` measures besides training and sampling, so that every other job of a data set can be planned.

Each function answers for one verb, from a small part of its work.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from gcflow.archives.base import Archived
from gcflow.archives.images import ImageIndex, available_cores, decode_chunk
from gcflow.archives.locators import silent
from gcflow.classifier import ImageClassifier, train_classifier
from gcflow.config import NoiseProcess, RunConfig
from gcflow.couplings import optimal_assignment
from gcflow.data import prepare
from gcflow.errors import GcflowError
from gcflow.inception import Inception, write_surrogate
from gcflow.metrics import FeatureSet, FeatureStatistics, frechet_distance, kernel_inception_distance
from gcflow.oracles import LARGEST_EXACT_DATA
from gcflow.pipeline.comparison import InceptionComparison, SmallComparison
from gcflow.pipeline.extractors import SmallExtractor
from gcflow.pipeline.folders import extractor_path
from gcflow.pipeline.params import Params
from gcflow.pipeline.planning.disk import sample_counts
from gcflow.pipeline.schema import Classifier, DatasetEntry, Identity, InceptionNetwork, Theory, metric_names
from gcflow.pipeline.transport import EXACT_FLOW_STEP, EXACT_PRODUCTS
from gcflow.preconditioning import to_model_space
from gcflow.sources import Mixture2d
from gcflow.theory import velocity_discrepancy
from gcflow.theory.distillation_gap import theorem_1
from gcflow.theory.endpoints import standard_deviation
from gcflow.theory.trajectories import figure_1
from gcflow.theory.transport_cost import lemma_1

# A stage of this project does nothing but start.
PROBE: dict[str, Any] = {
    "tracking": {"experiment": "probe"},
    "datasets": {
        "probe": {
            "data": {"source": "mixture2d", "means": [[0.0, 0.0]], "std": 0.5, "count": 16, "seed": 0},
            "process": {},
            "network": {"architecture": "mlp", "channels": 8, "blocks": 1},
            "training": {"steps": 2, "batch": 4, "learning_rate": 0.001, "snapshot_every": 1},
            "methods": {"ic": {"objective": "consistency"}},
            "runs": {"ic": {"label": "IC", "seeds": [0]}},
            "features": {"kind": "identity"},
            "evaluation": {
                "samples": 4,
                "generation_seeds": [0],
                "intermediate_sigmas": [],
                "heun_steps": 2,
                "grid": 2,
            },
            "transport": {
                "predictor": {"method": "ic", "seed": 0},
                "samples": 4,
                "batch_sizes": [2],
                "sigmas": [1.0],
                "seed": 0,
            },
            "tables": {"table": {"title": "probe", "methods": ["ic"]}},
            "figures": {
                "curve": {"kind": "convergence", "title": "probe", "methods": ["ic"]},
                "samples": {"kind": "samples", "title": "probe", "methods": ["ic"]},
            },
        }
    },
}
PROBED = {
    "prepare": ("prepare", "probe"),
    "reference": ("reference", "probe"),
    "train": ("train", "probe/ic/0"),
    "evaluate": ("evaluate", "probe/ic/0"),
    "transport": ("transport", "probe"),
    "table": ("table", "probe", "table"),
    "figure": ("figure", "probe", "curve"),
    "figure-samples": ("figure", "probe", "samples"),
}
ON_DEVICE = ("reference", "train", "evaluate", "transport")
CLASSIFIER_STEPS = 8
INCEPTION_IMAGES = {"cpu": 32, "cuda": 1024}
# What is taken for the speed of decoding and resizing photographs until the archives are there to be timed.
ASSUMED_IMAGES_PER_CORE_SECOND = 300.0
DECODED = 512
FEWEST_POINTS = 2048


def elapsed(work: Callable[[], object]) -> float:
    """Wall time of what ends on the CPU."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def startups(device: str) -> dict[str, float]:
    """Verb to the wall time of a process that starts, loads and writes, with next to nothing between.

    Raises:
        GcflowError: one of them failed.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GCFLOW_")}
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "params.yaml").write_text(yaml.safe_dump(PROBE, sort_keys=False))
        for kind, words in PROBED.items():
            command = [sys.executable, "-m", "gcflow", *words]
            command += ["--device", device] if kind in ON_DEVICE else []
            begun = time.perf_counter()
            ended = subprocess.run(command, cwd=folder, env=kept, capture_output=True, text=True, check=False)
            found[kind] = time.perf_counter() - begun
            if ended.returncode != 0:
                raise GcflowError(f"a trial of gcflow {' '.join(words)} failed: {ended.stderr.strip()[-300:]}")
    return found


def preparation(entry: DatasetEntry, archives: Path) -> dict[str, Any]:
    """`seconds` for a source at hand; for archives `images_per_second`, `assumed` where they are not there."""
    source = entry.data
    with tempfile.TemporaryDirectory() as folder:
        if not isinstance(source, Archived):
            return {"seconds": elapsed(lambda: prepare(source, Path(folder))), "assumed": False}
        try:
            splits = source.open(source.locate(archives), Path(folder), silent)
        except GcflowError:
            return {"images_per_second": available_cores() * ASSUMED_IMAGES_PER_CORE_SECOND, "assumed": True}
        stream = splits.samples
        if isinstance(stream, ImageIndex):
            items, transform, hashing = stream.items[:DECODED], stream.transform, stream.in_files
            taken = elapsed(lambda: decode_chunk(items, transform, hashing))
            return {"images_per_second": available_cores() * len(items) / taken, "assumed": False}
        begun = time.perf_counter()
        images = sum(block.items for block in islice(stream.blocks(0), 4))
        return {"images_per_second": images / (time.perf_counter() - begun), "assumed": False}


def classifier_step(settings: Classifier, images: Tensor) -> float:
    """Seconds of a step of the classifier's training."""
    count = min(len(images), 4 * settings.batch)
    labels = torch.arange(count) % 10

    def some_steps(epochs: int) -> int:
        held_out, batch = settings.held_out, settings.batch
        train_classifier(images[:count], labels, held_out, epochs, batch, settings.learning_rate, settings.seed)
        return max(2, epochs * (count - round(count * held_out)) // batch)

    some_steps(1)
    begun = time.perf_counter()
    steps = some_steps(CLASSIFIER_STEPS)
    return (time.perf_counter() - begun) / steps


def _small_features(params: Params, dataset: str, data: Tensor) -> dict[str, Any]:
    """Of a classifier, or of the values themselves: what comparing a set of samples takes, features included."""
    entry = params.dataset(dataset)
    classifier = None
    if isinstance(entry.features, Classifier):
        classifier = ImageClassifier(tuple(data.shape[1:]), 10).eval().requires_grad_(False)
    extractor = SmallExtractor(entry.features.kind, None, classifier)
    samples = entry.evaluation.samples
    drawn = data[torch.arange(samples) % len(data)]
    rate = len(data) / elapsed(lambda: extractor(data))
    reference = FeatureSet(extractor(data)[0])
    times = []
    for _ in range(2):
        comparison = SmallComparison(extractor, reference, False)
        comparison.update(drawn)
        times.append(elapsed(comparison.values))
    # Features are taken within the comparison, and are counted there.
    within = max(0.0, times[1] - samples / rate)
    return {
        "images_per_second": rate,
        "seconds_per_comparison": within,
        "seconds_once": max(0.0, times[0] - times[1]),
        "network": "classifier, untrained" if classifier else "none",
    }


def _inception(params: Params, dataset: str, archives: Path, scratch: Path) -> tuple[Path, str]:
    """The network file to be timed, and which it is."""
    settings = params.dataset(dataset).features
    kept = extractor_path(params.root, dataset, settings.kind)
    if kept.exists():
        return kept, settings.kind
    if isinstance(settings, InceptionNetwork) and (archives / settings.weights).exists():
        return archives / settings.weights, settings.kind
    path = scratch / "surrogate.pt"
    write_surrogate(path, 0)
    return path, "surrogate"


def _large_features(
    params: Params, dataset: str, shape: tuple[int, ...], archives: Path, device: str
) -> dict[str, Any]:
    settings = params.dataset(dataset).features
    assert not isinstance(settings, Classifier | Identity)
    with tempfile.TemporaryDirectory() as folder:
        path, which = _inception(params, dataset, archives, Path(folder))
        network = Inception.load(path, device)
    count, width = INCEPTION_IMAGES["cuda" if device.startswith("cuda") else "cpu"], network.features
    output = torch.rand(count, *shape) * 2 - 1
    drawn = torch.randn(2 * width, width, device=device)
    reference, generated = FeatureStatistics(), FeatureStatistics()
    reference.update(drawn)
    generated.update(drawn.flip(0))
    # All that is timed gives numbers on the host, so no further synchronisation is needed.
    first, again = (elapsed(partial(frechet_distance, generated, reference)) for _ in range(2))
    found: dict[str, Any] = {}
    for name, protocol in settings.protocols.items():
        rules = replace(protocol, score_splits=1)
        names = metric_names(settings.kind)
        comparison = InceptionComparison(network, rules, names, reference, drawn, 2 * count, count)
        _, rate = (count / elapsed(partial(comparison.update, output)) for _ in range(2))
        subsets = min(2, protocol.kid_subsets)
        size, seed = protocol.kid_subset_size, protocol.kid_seed
        kid = elapsed(partial(kernel_inception_distance, drawn, drawn, subsets, size, seed))
        found[name] = {
            "images_per_second": rate,
            "seconds_per_comparison": again + kid * protocol.kid_subsets / subsets,
            "seconds_once": max(0.0, first - again),
            "network": which,
        }
    return found


def features(params: Params, dataset: str, data: Tensor, archives: Path, device: str) -> dict[str, Any]:
    """By protocol: `images_per_second` of features, seconds of a comparison and what the first adds, which network."""
    settings = params.dataset(dataset).features
    if isinstance(settings, Classifier | Identity):
        return dict.fromkeys(settings.protocols, _small_features(params, dataset, data.cpu()))
    return _large_features(params, dataset, tuple(data.shape[1:]), archives, device)


def _pairs(data: Tensor, process: NoiseProcess, count: int) -> tuple[Tensor, Tensor]:
    x = to_model_space(data[torch.arange(count) % len(data)], process)
    return x, torch.randn(x.shape, generator=torch.Generator().manual_seed(0))


def assignment(data: Tensor, process: NoiseProcess, batch: int) -> float:
    """Seconds of pairing a batch by optimal transport."""
    x, z = _pairs(data, process, batch)
    return elapsed(lambda: optimal_assignment(x, z))


def transport(params: Params, dataset: str, config: RunConfig, data: Tensor) -> float:
    """Seconds of `gcflow transport` without its passes of the network: pairings, and the data's exact flow."""
    entry = params.dataset(dataset)
    settings, process = entry.transport, config.process
    assert settings is not None
    total = sum(assignment(data, process, size) * settings.samples / size for size in settings.batch_sizes)
    if not _is_exact(params, dataset):
        return total
    mixture = entry.data.exact_mixture(data, process)
    pairs = min(max(2, EXACT_PRODUCTS // mixture.means.numel()), settings.samples)
    part = max(2, pairs // 8)
    x, z = _pairs(data, process, part)
    for sigma in settings.sigmas:
        taken = elapsed(partial(mixture.flow, x + sigma * z, sigma, process.sigma_min, EXACT_FLOW_STEP))
        total += taken * pairs / part
    return total


def _is_exact(params: Params, dataset: str) -> bool:
    count, _ = sample_counts(params, dataset)
    shape = torch.Size(params.dataset(dataset).data.shape)
    return count is not None and count * shape.numel() <= LARGEST_EXACT_DATA


def exact_denoising(params: Params, dataset: str, config: RunConfig, data: Tensor) -> float:
    """Seconds in which the data's exact denoiser denoises what `gcflow discrepancy` asks of it at one noise level."""
    entry = params.dataset(dataset)
    if entry.discrepancy is None or not _is_exact(params, dataset):
        return 0.0
    mixture = entry.data.exact_mixture(data, config.process)
    count = entry.discrepancy.samples
    part = max(2, count // 4)
    x, z = _pairs(data, config.process, part)
    return elapsed(lambda: mixture.denoise(x + z, torch.ones(part))) * count / part


def theory(entry: DatasetEntry) -> float:
    """Seconds of `gcflow theory`, from each part at a fraction of its points, to which its cost is proportional."""
    settings, source = entry.theory, entry.data
    assert settings is not None
    assert isinstance(source, Mixture2d)
    mixture, sigmas = source.mixture(), list(settings.sigmas)
    total = _theorem_1(entry, settings)
    total += elapsed(lambda: lemma_1(mixture, sigmas))
    coarse = velocity_discrepancy.INNER_NODES // 2

    def discrepancy(sigma: float) -> float:
        measured = velocity_discrepancy.generator_augmented_discrepancy
        return 4 * elapsed(partial(measured, mixture, sigma, settings.seed, coarse))

    gaussian = standard_deviation(mixture) is not None
    # A Gaussian's are compared with a coarser quadrature, of 3/4 the nodes per axis.
    total += sum(map(discrepancy, sigmas)) * (1 + 9 / 16 if gaussian else 1)
    if not gaussian:
        total += len(velocity_discrepancy.ASYMPTOTIC) * discrepancy(velocity_discrepancy.ASYMPTOTIC[0])
        step = velocity_discrepancy.LARGEST_STEP
        total += 9 * elapsed(lambda: velocity_discrepancy.asymptotic_constant(mixture, step))
    if settings.paths:
        few = max(2, settings.paths // 8)
        drawn = elapsed(lambda: figure_1(mixture, entry.process.sigma_min, few, settings.seed))
        total += drawn * settings.paths / few
    return total


def _theorem_1(entry: DatasetEntry, settings: Theory) -> float:
    assert isinstance(entry.data, Mixture2d)
    mixture, intervals = entry.data.mixture(), settings.intervals[-2:]
    points = min(settings.points, FEWEST_POINTS)

    def part() -> None:
        theorem_1(mixture, entry.process.sigma_data, settings.horizons[0], intervals, points, 2, settings.seed)

    part()
    # The limit is one more number of intervals.
    whole = len(settings.horizons) * (len(settings.intervals) + 1) * settings.scramblings * settings.points
    return elapsed(part) * whole / ((len(intervals) + 1) * 2 * points)
