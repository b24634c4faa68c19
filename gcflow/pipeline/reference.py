"""`gcflow reference`: the features of the real data, computed once per protocol."""

from typing import Any

import torch
from torch import Tensor

from gcflow.data import Dataset
from gcflow.errors import GcflowError
from gcflow.inception import Inception
from gcflow.metrics import FeatureSet, FeatureStatistics, InceptionScore, frechet_distance, kernel_inception_distance
from gcflow.pipeline.comparison import KID_POOL, reference_settings
from gcflow.pipeline.extractors import SmallExtractor, load_network
from gcflow.pipeline.folders import data_folder, reference_path
from gcflow.pipeline.params import Params
from gcflow.pipeline.progress import Progress, say
from gcflow.pipeline.schema import Protocol as InceptionProtocol
from gcflow.pipeline.schema import metric_names
from gcflow.randomness import generator
from gcflow.scratch import load_near, scratch_folder
from gcflow.weights import save_tensors

REFERENCE_BATCH = 500


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
    data = load_near(data_folder(params.root, dataset), scratch_folder(), say)
    network = load_network(params, dataset, device)
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
        "protocol": reference_settings(rules),
        "real_half_against_half": against,
    }
    return {**first.tensors(), "kid_pool": pool}, record
