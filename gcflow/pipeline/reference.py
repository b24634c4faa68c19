"""`gcflow reference`: what is kept of the real data, once per protocol, and generated samples compared with it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from gcflow.config import to_dict
from gcflow.errors import GcflowError
from gcflow.extensions import origins
from gcflow.pipeline.features.networks import load_features
from gcflow.pipeline.features.small import SmallComparison
from gcflow.pipeline.features.streamed import StreamedComparison
from gcflow.pipeline.folders import data_folder, reference_path
from gcflow.pipeline.params import Params
from gcflow.pipeline.progress import say
from gcflow.scratch import load_near, scratch_folder
from gcflow.weights import load_tensors, save_tensors


def compute_reference(params: Params, dataset: str, protocol: str | None = None, device: str = "cpu") -> None:
    """Stores the features of the real samples under a protocol, with their count.

    Beside it stands how one random half of them compares with the other, which the metrics' values should be read
    against. Of a published network's features mean, covariance and a pool for KID are stored.

    Raises:
        GcflowError: no such protocol, or fewer images than it needs.
    """
    settings, folder = params.dataset(dataset).features, data_folder(params.root, dataset)
    protocol = protocol or next(iter(settings.protocols))
    rules = params.named(f"datasets.{dataset}.features.protocols", protocol, settings.protocols)
    torch.set_num_threads(params.dataset(dataset).training.cpu_threads)
    data = load_near(folder, scratch_folder(), say)
    features = load_features(params, dataset, device)
    tensors, record = features.reference(data, rules, str(folder))
    path = reference_path(params.root, dataset, protocol)
    save_tensors(path, tensors, record | {"data_sha256": data.sha256, "extractor_sha256": features.sha256})


@dataclass(frozen=True)
class Reference:
    """The other side of a comparison of generated samples, under one protocol.

    protocol: its name. compare: begins a comparison of so many samples. description: the protocol record.
    """

    protocol: str
    compare: Callable[[int], SmallComparison | StreamedComparison]
    description: dict[str, Any]


def load_references(params: Params, dataset: str, batch: int, device: str) -> list[Reference]:
    """The references of every protocol of a data set, for samples of a run with this training batch.

    Raises:
        GcflowError: one is missing, damaged, or was made by another network or for another protocol.
    """
    settings, features = params.dataset(dataset).features, load_features(params, dataset, device)
    metrics = params.dataset(dataset).evaluation.metrics
    found = []
    for name, rules in settings.protocols.items():
        path = reference_path(params.root, dataset, name)
        tensors, record = load_tensors(path)
        again = f"gcflow reference {dataset} {name}"
        if record["extractor_sha256"] != features.sha256:
            raise GcflowError(f"{path}: made with another {settings.kind}; run {again}")
        if rules is not None:
            rules.check_reference(path, record["protocol"], again)
        description = {
            "protocol": name,
            "extractor_sha256": features.sha256,
            "reference": record["count"],
            "reference_split": record["split"],
        }
        if "choice" in record:
            description["reference_choice"] = record["choice"]
        description |= features.space(rules, batch)
        if metrics:
            description["metrics"] = [{**to_dict(metric), **origins(metric)} for metric in metrics]
        found.append(Reference(name, features.comparisons(tensors, rules, batch, metrics), description))
    return found
