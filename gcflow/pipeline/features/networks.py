"""`gcflow features`: the network in whose features samples are compared."""

import shutil
from pathlib import Path
from typing import NamedTuple

import torch

from gcflow.data import load_dataset
from gcflow.dinov2 import DINOV2_URL, PUBLISHED, Dinov2
from gcflow.errors import GcflowError
from gcflow.files import atomic_path
from gcflow.inception import INCEPTION_SHA256, INCEPTION_URL, Inception, write_surrogate
from gcflow.pipeline.features.small import SmallFeatures, load_classifier, make_classifier
from gcflow.pipeline.features.streamed import StreamedFeatures
from gcflow.pipeline.folders import data_folder, extractor_path
from gcflow.pipeline.params import Params
from gcflow.pipeline.prepare import check_classes
from gcflow.pipeline.progress import say
from gcflow.pipeline.published import find_published
from gcflow.pipeline.schema import Classifier, Dinov2Network, Identity, InceptionNetwork, SurrogateNetwork
from gcflow.pipeline.schema import Features as Settings

Features = SmallFeatures | StreamedFeatures


class PublishedFile(NamedTuple):
    """The file of a published network. name: in the archives' folder. sha256: what it must have, None for any.

    published: the sha256 that it has where it is published. network: what loads it.
    """

    name: str
    url: str
    sha256: str | None
    published: str
    network: type[Inception | Dinov2]


def published_file(settings: Settings) -> PublishedFile | None:
    """The file that features of a published network need; None of other kinds."""
    if isinstance(settings, InceptionNetwork):
        return PublishedFile(settings.weights, INCEPTION_URL, settings.sha256, INCEPTION_SHA256, Inception)
    if isinstance(settings, Dinov2Network):
        url, published = DINOV2_URL.format(settings.size), PUBLISHED[settings.size].sha256
        return PublishedFile(url.rpartition("/")[2], url, settings.sha256 or published, published, Dinov2)
    return None


def make_features(params: Params, dataset: str, archives: Path, fetch: bool) -> None:
    """Stores the network that features are taken from: a trained classifier, a published one, or Inception's surrogate.

    Raises:
        GcflowError: there is no network to store, the classifier is not accurate enough, or published weights are
            missing or others.
    """
    settings, key = params.dataset(dataset).features, f"{params.path}: datasets.{dataset}.features"
    path = extractor_path(params.root, dataset, settings.kind)
    torch.set_num_threads(params.dataset(dataset).training.cpu_threads)
    if isinstance(settings, Classifier):
        check_classes(params, dataset)
        make_classifier(path, settings, load_dataset(data_folder(params.root, dataset)), dataset, key)
    elif isinstance(settings, SurrogateNetwork):
        with atomic_path(path) as temporary:
            write_surrogate(temporary, settings.seed)
    elif file := published_file(settings):
        source = find_published(params.root / archives, file.name, file.url, None, fetch)
        network = file.network.load(source, sha256=file.sha256)
        with atomic_path(path) as temporary:
            shutil.copyfile(source, temporary)
        say(f"  {dataset}: {network.name} from {source}, sha256 {network.sha256}")
    else:
        raise GcflowError(f"{key}.kind is {settings.kind}: there is no network")


def load_features(params: Params, dataset: str, device: str) -> Features:
    """The features of a data set.

    Raises:
        GcflowError: their network is missing or damaged.
    """
    entry = params.dataset(dataset)
    settings, images = entry.features, len(entry.data.shape) == 3
    if isinstance(settings, Identity):
        return SmallFeatures(settings.kind, images)
    path = extractor_path(params.root, dataset, settings.kind)
    if isinstance(settings, Classifier):
        return load_classifier(path, images)
    network = (Dinov2 if isinstance(settings, Dinov2Network) else Inception).load(path, device)
    return StreamedFeatures(settings.kind, network, device)
