"""`gcflow features`: the network in whose features samples are compared."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from gcflow.classifier import ImageClassifier, train_classifier
from gcflow.config import to_dict
from gcflow.data import load_dataset
from gcflow.errors import GcflowError
from gcflow.files import atomic_path, sha256_of
from gcflow.inception import INCEPTION_URL, Inception, write_surrogate
from gcflow.metrics import FeatureSet, class_score, frechet_distance, kernel_distance
from gcflow.pipeline.folders import data_folder, extractor_path
from gcflow.pipeline.params import Params
from gcflow.pipeline.progress import say
from gcflow.pipeline.published import find_published
from gcflow.pipeline.schema import Classifier, InceptionNetwork, SurrogateNetwork
from gcflow.weights import load_tensors, save_tensors

# Samples classified at once: so few that their activations stay in the cache, and their memory with the allocator.
CLASSIFIED = 64


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
