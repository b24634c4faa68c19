"""Features of a small classifier, or the values themselves: every sample of both sides is kept and compared."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gcflow.classifier import ImageClassifier, train_classifier
from gcflow.config import to_dict
from gcflow.data import Dataset
from gcflow.errors import GcflowError
from gcflow.files import sha256_of
from gcflow.inception import PIXELS
from gcflow.metrics import FeatureSet, Metric, class_score, frechet_distance, kernel_distance
from gcflow.pipeline.features import KINDS, further_values
from gcflow.pipeline.progress import say
from gcflow.pipeline.schema import FEWEST_REAL, Classifier, Protocol
from gcflow.randomness import generator
from gcflow.weights import load_tensors, save_tensors

# Samples classified at once: so few that their activations stay in the cache, and their memory with the allocator.
CLASSIFIED = 64


@dataclass(frozen=True)
class SmallFeatures:
    """Turns stored samples into features, and into class probabilities where there are classes.

    kind: `classifier` or `identity`. images: whether samples are images. classifier, sha256: None for the identity.
    """

    kind: str
    images: bool
    classifier: ImageClassifier | None = None
    sha256: str | None = None

    @torch.no_grad()
    def __call__(self, samples: Tensor, rules: Protocol | None = None) -> tuple[Tensor, Tensor | None]:
        """Features [n, F] and probabilities [n, K] or None."""
        if self.classifier is None:
            return samples.flatten(1), None
        features = torch.cat([self.classifier.features(part) for part in torch.split(samples, CLASSIFIED)])
        return features, self.classifier.head(features).softmax(1)

    def distances(self, features: Tensor, probabilities: Tensor | None, reference: FeatureSet) -> dict[str, float]:
        """The metrics of a set of features against a reference."""
        kind, generated = KINDS[self.kind], FeatureSet(features)
        values = {
            kind.distance.name: frechet_distance(generated, reference),
            kind.kernel.name: kernel_distance(generated, reference),
        }
        if kind.score is not None and probabilities is not None:
            values[kind.score.name] = class_score(probabilities)
        return values

    def reference(self, data: Dataset, rules: Protocol | None, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All features of the real data, to be stored, and their record: count, split, one half against the other.

        Raises:
            GcflowError: there are too few; `name` is of the data.
        """
        if len(data.samples) < FEWEST_REAL:
            raise GcflowError(f"{name}: {len(data.samples)} samples, at least {FEWEST_REAL} are needed to compare with")
        features, probabilities = self(data.samples)
        order = torch.randperm(len(features), generator=generator(0, "halves"))
        first, second = order[: len(order) // 2], order[len(order) // 2 :]
        halves = self.distances(
            features[first],
            probabilities[first] if probabilities is not None else None,
            FeatureSet(features[second]),
        )
        return {"features": features}, {"count": len(features), "split": "train", "real_half_against_half": halves}

    def comparisons(
        self, reference: dict[str, Tensor], rules: Protocol | None, batch: int, metrics: tuple[Metric, ...]
    ) -> Callable[[int], "SmallComparison"]:
        """Begins a comparison of so many samples with a stored reference."""
        real = FeatureSet(reference["features"])
        return lambda _total: SmallComparison(self, real, metrics)

    def space(self, rules: Protocol | None, batch: int) -> dict[str, Any]:
        """The part of the protocol record that says how samples become features."""
        if self.images:
            return {"clipping": "[-1, 1]", "quantisation": "uint8, rounded", "resize": "none"}
        return {"clipping": "none", "quantisation": "none", "resize": "none"}


class SmallComparison:
    """Keeps every sample, and compares them when all have come."""

    def __init__(self, features: SmallFeatures, reference: FeatureSet, metrics: tuple[Metric, ...]) -> None:
        self.features, self.reference, self.metrics = features, reference, metrics
        self.parts: list[Tensor] = []

    def update(self, output: Tensor) -> None:
        """Takes images [n, C, H, W] as a model gives them, around [-1, 1] and not clipped, or points [n, d]."""
        samples = output.cpu()
        self.parts.append(PIXELS["clip"](samples) if self.features.images else samples)

    def values(self) -> dict[str, float]:
        """Distances, the score where there are classes, and further metrics."""
        features, probabilities = self.features(torch.cat(self.parts))
        values = self.features.distances(features, probabilities, self.reference)
        return values | further_values(self.metrics, features.double(), self.reference.values)


def make_classifier(path: Path, settings: Classifier, data: Dataset, name: str, key: str) -> None:
    """Trains and stores the classifier of a data set. name: of this. key: of the settings, for messages.

    Raises:
        GcflowError: it is not accurate enough.
    """
    classifier, accuracy = train_classifier(
        data.samples,
        data.labels,
        held_out=settings.held_out,
        epochs=settings.epochs,
        batch=settings.batch,
        learning_rate=settings.learning_rate,
        seed=settings.seed,
    )
    say(f"  {name} feature classifier: held-out accuracy {accuracy:.2%}")
    if accuracy < settings.minimum_accuracy:
        raise GcflowError(
            f"{key}.minimum_accuracy is {settings.minimum_accuracy}, but the classifier reaches {accuracy:.4f}; train "
            "it longer (epochs)"
        )
    metadata = {
        "shape": list(data.shape),
        "classes": int(data.labels.max()) + 1,
        "held_out_accuracy": accuracy,
        "settings": to_dict(settings),
        "data_sha256": data.sha256,
    }
    save_tensors(path, classifier.state_dict(), metadata)


def load_classifier(path: Path, images: bool) -> SmallFeatures:
    """The features of a stored classifier."""
    tensors, metadata = load_tensors(path)
    classifier = ImageClassifier(tuple(metadata["shape"]), metadata["classes"])
    classifier.load_state_dict(tensors)
    return SmallFeatures("classifier", images, classifier.eval().requires_grad_(False), sha256_of(path))
