"""`gcflow features` and `reference`: the network in whose features samples are compared, and the comparison itself."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from gcflow.classifier import ImageClassifier, train_classifier
from gcflow.config import to_dict
from gcflow.data import Dataset, load_dataset
from gcflow.errors import GcflowError
from gcflow.files import atomic_path, sha256_of
from gcflow.inception import INCEPTION_URL, PIXELS, Inception, write_surrogate
from gcflow.metrics import (
    FeatureSet,
    FeatureStatistics,
    InceptionScore,
    class_score,
    frechet_distance,
    kernel_distance,
    kernel_inception_distance,
)
from gcflow.pipeline.folders import data_folder, extractor_path, reference_path
from gcflow.pipeline.params import Params
from gcflow.pipeline.progress import Progress, say
from gcflow.pipeline.published import find_published
from gcflow.pipeline.schema import Classifier, InceptionNetwork, SurrogateNetwork
from gcflow.pipeline.schema import Protocol as InceptionProtocol
from gcflow.randomness import generator
from gcflow.weights import load_tensors, save_tensors

# Samples classified at once: so few that their activations stay in the cache, and their memory with the allocator.
CLASSIFIED = 64
REFERENCE_BATCH = 500
# Images of a set whose features are kept for KID, which compares subsets of them.
KID_POOL = 50_000


def make_features(params: Params, dataset: str, archives: Path, fetch: bool) -> None:
    """Stores the network that features are taken from: a trained classifier, Inception, or its surrogate.

    Raises:
        GcflowError: there is no network to store, the classifier is not accurate enough, or Inception's weights are
            missing or others.
    """
    settings = params.dataset(dataset).features
    path = extractor_path(params.root, dataset, settings.kind)
    torch.set_num_threads(params.dataset(dataset).training.cpu_threads)
    if isinstance(settings, Classifier):
        _train_classifier(params, dataset, settings, path)
    elif isinstance(settings, SurrogateNetwork):
        with atomic_path(path) as temporary:
            write_surrogate(temporary, settings.seed)
    elif isinstance(settings, InceptionNetwork):
        source = find_published(params.root / archives, settings.weights, INCEPTION_URL, None, fetch)
        Inception.load(source, sha256=settings.sha256)
        with atomic_path(path) as temporary:
            shutil.copyfile(source, temporary)
        say(f"  {dataset}: Inception from {source}, sha256 {sha256_of(path)}")
    else:
        raise GcflowError(f"{params.path}: datasets.{dataset}.features.kind is {settings.kind}: there is no network")


def _train_classifier(params: Params, dataset: str, settings: Classifier, path: Path) -> None:
    data = load_dataset(data_folder(params.root, dataset))
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
    save_tensors(path, classifier.state_dict(), metadata)


@dataclass(frozen=True)
class SmallExtractor:
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

    def compare(self, features: Tensor, probabilities: Tensor | None, reference: FeatureSet) -> dict[str, float]:
        """The metrics of a set of features against a reference."""
        generated = FeatureSet(features)
        values = {
            f"{self.name}-fd": frechet_distance(generated, reference),
            f"{self.name}-kd": kernel_distance(generated, reference),
        }
        if probabilities is not None:
            values[f"{self.name}-score"] = class_score(probabilities)
        return values


def load_network(params: Params, dataset: str, device: str) -> SmallExtractor | Inception:
    """The feature extractor of a data set."""
    settings = params.dataset(dataset).features
    path = extractor_path(params.root, dataset, settings.kind)
    if isinstance(settings, InceptionNetwork | SurrogateNetwork):
        return Inception.load(path, device)
    if not isinstance(settings, Classifier):
        return SmallExtractor("coordinate", None, None)
    tensors, metadata = load_tensors(path)
    classifier = ImageClassifier(tuple(metadata["shape"]), metadata["classes"])
    classifier.load_state_dict(tensors)
    return SmallExtractor("classifier", sha256_of(path), classifier.eval().requires_grad_(False))


class Comparison(Protocol):
    """Samples as they are generated, compared with a reference when all have come."""

    def update(self, output: Tensor) -> None:
        """Takes images [n, C, H, W] as a model gives them, around [-1, 1] and not clipped, or points [n, d]."""

    def values(self) -> dict[str, float]:
        """Metric to value."""


class SmallComparison:
    """Keeps every sample, and compares them in a small network's features."""

    def __init__(self, extractor: SmallExtractor, reference: FeatureSet, images: bool) -> None:
        self.extractor, self.reference, self.images = extractor, reference, images
        self.parts: list[Tensor] = []

    def update(self, output: Tensor) -> None:
        """Takes samples."""
        self.parts.append(PIXELS["clip"](output) if self.images else output)

    def values(self) -> dict[str, float]:
        """Distances, and the score where there are classes."""
        features, probabilities = self.extractor(torch.cat(self.parts))
        return self.extractor.compare(features, probabilities, self.reference)


class InceptionComparison:
    """Streams images through Inception once, and keeps statistics, and features for KID."""

    def __init__(
        self,
        network: Inception,
        protocol: InceptionProtocol,
        names: tuple[str, str, str],
        reference: FeatureStatistics,
        pool: Tensor,
        total: int,
    ) -> None:
        self.network, self.protocol, self.names = network, protocol, names
        self.reference, self.pool = reference, pool
        self.statistics = FeatureStatistics()
        self.score = InceptionScore(total, protocol.score_splits)
        self.features: list[Tensor] = []

    def update(self, output: Tensor) -> None:
        """Takes images."""
        features, probabilities = self.network(PIXELS[self.protocol.pixels](output), self.protocol.resize)
        self.statistics.update(features)
        self.score.update(probabilities)
        self.features.append(features.cpu())

    def values(self) -> dict[str, float]:
        """FID, KID and IS."""
        protocol = self.protocol
        generated = torch.cat(self.features)[:KID_POOL]
        kid, _ = kernel_inception_distance(
            generated.to(self.pool.device), self.pool, protocol.kid_subsets, protocol.kid_subset_size, protocol.kid_seed
        )
        measured = (frechet_distance(self.statistics, self.reference), kid, self.score.value[0])
        return dict(zip(self.names, measured, strict=True))


@dataclass(frozen=True)
class Reference:
    """What generated samples are compared with under one protocol.

    protocol: its name. compare: begins a comparison of so many samples. description: the protocol record.
    """

    protocol: str
    compare: Callable[[int], Comparison]
    description: dict[str, Any]


def metric_names(kind: str) -> tuple[str, str, str]:
    """How the Fréchet distance, the kernel distance and the score are called: FID only where it is Inception's."""
    return ("fid", "kid", "is") if kind == "inception" else (f"{kind}-fd", f"{kind}-kd", f"{kind}-score")


def load_references(params: Params, dataset: str, images: bool, device: str) -> list[Reference]:
    """The references of every protocol of a data set.

    Raises:
        GcflowError: one is missing, damaged, or was made by another network or for another protocol.
    """
    settings, network = params.dataset(dataset).features, load_network(params, dataset, device)
    found = []
    for name, protocol in settings.protocols.items():
        path = reference_path(params.root, dataset, name)
        tensors, record = load_tensors(path)
        again = f"run gcflow reference {dataset} {name}"
        if record["extractor_sha256"] != network.sha256:
            raise GcflowError(f"{path}: made with another {settings.kind}; {again}")
        description = {
            "protocol": name,
            "extractor_sha256": network.sha256,
            "reference": record["count"],
            "reference_split": record["split"],
        }
        if isinstance(network, SmallExtractor):
            compare = _small_comparison(network, FeatureSet(tensors["features"]), images)
            description |= _small_space(images)
        else:
            assert protocol is not None
            for key, value in _reference_settings(protocol).items():
                if record["protocol"].get(key) != value:
                    raise GcflowError(f"{path}: made for {key} {record['protocol'].get(key)}, not {value}; {again}")
            compare = _inception_comparison(network, protocol, metric_names(settings.kind), tensors, device)
            description |= _inception_space(protocol)
        found.append(Reference(name, compare, description))
    return found


def _small_comparison(network: SmallExtractor, real: FeatureSet, images: bool) -> Callable[[int], Comparison]:
    def compare(_: int) -> Comparison:
        return SmallComparison(network, real, images)

    return compare


def _inception_comparison(
    network: Inception,
    protocol: InceptionProtocol,
    names: tuple[str, str, str],
    tensors: dict[str, Tensor],
    device: str,
) -> Callable[[int], Comparison]:
    pool = tensors.pop("kid_pool").to(device)
    statistics = FeatureStatistics.of(tensors, device)

    def compare(total: int) -> Comparison:
        return InceptionComparison(network, protocol, names, statistics, pool, total)

    return compare


def _small_space(images: bool) -> dict[str, Any]:
    if images:
        return {"clipping": "[-1, 1]", "quantisation": "uint8, rounded", "resize": "none"}
    return {"clipping": "none", "quantisation": "none", "resize": "none"}


def _inception_space(protocol: InceptionProtocol) -> dict[str, Any]:
    clipping = {"clip": "[-1, 1]", "batch-min-max": "none; each batch scaled by its own minimum and maximum"}
    return {
        "clipping": clipping[protocol.pixels],
        "quantisation": "uint8, rounded" if protocol.pixels == "clip" else "uint8, truncated",
        "resize": protocol.resize,
        "kid": f"{protocol.kid_subsets} subsets of {protocol.kid_subset_size}, seed {protocol.kid_seed}",
        "score_splits": protocol.score_splits,
    }


def _reference_settings(protocol: InceptionProtocol) -> dict[str, Any]:
    """What of a protocol decides the reference."""
    return {"resize": protocol.resize, "split": protocol.split, "reference_images": protocol.reference_images}


def compute_reference(params: Params, dataset: str, protocol: str | None = None, device: str = "cpu") -> None:
    """Stores the features of the real samples under a protocol, with their count.

    Beside it stands how one random half of them compares with the other, which the metrics' values should be read
    against. Of Inception's features mean, covariance and a pool for KID are stored.

    Raises:
        GcflowError: no such protocol, or fewer images than it asks for.
    """
    settings = params.dataset(dataset).features
    protocol = protocol or next(iter(settings.protocols))
    if protocol not in settings.protocols:
        known = ", ".join(settings.protocols)
        raise GcflowError(f"{params.path}: datasets.{dataset}.features.protocols has no {protocol!r}; known: {known}")
    torch.set_num_threads(params.dataset(dataset).training.cpu_threads)
    data, network = load_dataset(data_folder(params.root, dataset)), load_network(params, dataset, device)
    path = reference_path(params.root, dataset, protocol)
    if isinstance(network, SmallExtractor):
        tensors, record = _small_reference(network, data)
    else:
        rules = settings.protocols[protocol]
        assert rules is not None
        images = _chosen_images(params, dataset, data, rules)
        tensors, record = _inception_reference(network, images, rules, metric_names(settings.kind), dataset, device)
    save_tensors(path, tensors, record | {"data_sha256": data.sha256, "extractor_sha256": network.sha256})


def _small_reference(extractor: SmallExtractor, data: Dataset) -> tuple[dict[str, Tensor], dict[str, Any]]:
    features, probabilities = extractor(data.samples)
    order = torch.randperm(len(features), generator=generator(0, "halves"))
    first, second = order[: len(order) // 2], order[len(order) // 2 :]
    halves = extractor.compare(
        features[first],
        probabilities[first] if probabilities is not None else None,
        FeatureSet(features[second]),
    )
    return {"features": features}, {"count": len(features), "split": "train", "real_half_against_half": halves}


def _chosen_images(params: Params, dataset: str, data: Dataset, rules: InceptionProtocol) -> Tensor:
    images = data.samples if rules.split == "train" else data.held_out
    wanted = rules.reference_images
    if len(images) < (wanted or 2):
        raise GcflowError(
            f"{data_folder(params.root, dataset)}: the {rules.split} split has {len(images)} images, the protocol asks "
            f"for {wanted or 'at least 2'}; change features.protocols or prepare more"
        )
    return images[:wanted]


def _inception_reference(
    network: Inception, images: Tensor, rules: InceptionProtocol, names: tuple[str, str, str], name: str, device: str
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    total = len(images)
    order = torch.randperm(total, generator=generator(0, "halves"))
    in_first = torch.zeros(total, dtype=torch.bool)
    in_first[order[: total // 2]] = True
    pooled = torch.zeros(total, dtype=torch.bool)
    pooled[order[:KID_POOL]] = True
    first, second, score = FeatureStatistics(), FeatureStatistics(), InceptionScore(total, rules.score_splits)
    parts, halves = [], []
    with Progress(f"{name} reference", total, unit="image") as progress:
        for start in range(0, total, REFERENCE_BATCH):
            stop = min(start + REFERENCE_BATCH, total)
            features, probabilities = network(images[start:stop], rules.resize)
            chosen = in_first[start:stop].to(features.device)
            first.update(features[chosen])
            second.update(features[~chosen])
            score.update(probabilities)
            kept = pooled[start:stop]
            parts.append(features.cpu()[kept])
            halves.append(in_first[start:stop][kept])
            progress.update(stop)
    pool, of_first = torch.cat(parts), torch.cat(halves)
    kid, _ = kernel_inception_distance(
        pool[of_first].to(device), pool[~of_first].to(device), rules.kid_subsets, rules.kid_subset_size, rules.kid_seed
    )
    against = dict(zip(names, (frechet_distance(first, second), kid, score.value[0]), strict=True))
    first.merge(second)
    record = {
        "count": total,
        "split": rules.split,
        "protocol": _reference_settings(rules),
        "real_half_against_half": against,
    }
    return {**first.tensors(), "kid_pool": pool}, record
