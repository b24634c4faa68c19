"""`gcflow reference`: the features of the real data, computed once per protocol."""

from typing import Any

import torch
from torch import Tensor

from gcflow.data import Dataset
from gcflow.errors import GcflowError
from gcflow.inception import REAL_PIXELS, Inception
from gcflow.metrics import FeatureSet, FeatureStatistics, InceptionScore, frechet_distance, kernel_inception_distance
from gcflow.pipeline.comparison import KID_POOL
from gcflow.pipeline.extractors import SmallExtractor, load_network
from gcflow.pipeline.folders import data_folder, reference_path
from gcflow.pipeline.params import Params
from gcflow.pipeline.progress import Progress, say
from gcflow.pipeline.schema import FEWEST_REAL, metric_names
from gcflow.pipeline.schema import Protocol as InceptionProtocol
from gcflow.randomness import generator
from gcflow.scratch import load_near, scratch_folder
from gcflow.weights import save_tensors

# Even, so that images of the two halves alternate throughout.
REFERENCE_BATCH = 500


def compute_reference(params: Params, dataset: str, protocol: str | None = None, device: str = "cpu") -> None:
    """Stores the features of the real samples under a protocol, with their count.

    Beside it stands how one random half of them compares with the other, which the metrics' values should be read
    against. Of Inception's features mean, covariance and a pool for KID are stored.

    Raises:
        GcflowError: no such protocol, or fewer images than it needs.
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
        if len(data.samples) < FEWEST_REAL:
            folder = data_folder(params.root, dataset)
            raise GcflowError(
                f"{folder}: {len(data.samples)} samples, at least {FEWEST_REAL} are needed to compare with"
            )
        tensors, record = _small_reference(network, data)
    else:
        rules = settings.protocols[protocol]
        assert rules is not None
        images, chosen = _chosen_images(params, dataset, data, rules)
        names = metric_names(settings.kind)
        tensors, record = _inception_reference(network, images, chosen, rules, names, dataset, device)
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


def _chosen_images(params: Params, dataset: str, data: Dataset, rules: InceptionProtocol) -> tuple[Tensor, Tensor]:
    """The images of the split, and the numbers of those that are taken, in the order in which they are.

    That order is random: prepared data may be sorted by class, and the score is of contiguous splits.
    """
    images = data.samples if rules.split == "train" else data.held_out
    wanted = rules.reference_images
    if len(images) < (least := max(wanted or FEWEST_REAL, rules.score_splits)):
        raise GcflowError(
            f"{data_folder(params.root, dataset)}: the {rules.split} split has {len(images)} images, the protocol asks "
            f"for {'' if wanted else 'at least '}{least}; change features.protocols or prepare more"
        )
    order = torch.randperm(len(images), generator=generator(rules.reference_seed, "reference"))
    return images, order[:wanted]


def _inception_reference(
    network: Inception,
    images: Tensor,
    chosen: Tensor,
    rules: InceptionProtocol,
    names: tuple[str, str, str],
    name: str,
    device: str,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    total, pixels = len(chosen), REAL_PIXELS[rules.real_pixels]
    first, second, score = FeatureStatistics(), FeatureStatistics(), InceptionScore(total, rules.score_splits)
    parts = []
    with Progress(f"{name} reference", total, unit="image") as progress:
        for start in range(0, total, REFERENCE_BATCH):
            numbers = chosen[start : start + REFERENCE_BATCH]
            features, probabilities = network(pixels(images[numbers]), rules.resize)
            # The order is random, so every second image is a random half.
            first.update(features[0::2])
            second.update(features[1::2])
            score.update(probabilities)
            parts.append(features[: max(0, KID_POOL - start)].cpu())
            progress.update(start + len(numbers))
    pool = torch.cat(parts)
    kid, _ = kernel_inception_distance(
        pool[0::2].to(device), pool[1::2].to(device), rules.kid_subsets, rules.kid_subset_size, rules.kid_seed
    )
    against = dict(zip(names, (frechet_distance(first, second), kid, score.value[0]), strict=True))
    first.merge(second)
    record = {
        "count": total,
        "split": rules.split,
        "choice": "all" if total == len(images) else f"random of {len(images)}, seed {rules.reference_seed}",
        "protocol": rules.reference_settings,
        "real_half_against_half": against,
    }
    return {**first.tensors(), "kid_pool": pool}, record
