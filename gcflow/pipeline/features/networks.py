"""`gcflow features`: the network in whose features samples are compared."""

import shutil
from pathlib import Path

import torch

from gcflow.data import load_dataset
from gcflow.errors import GcflowError
from gcflow.files import atomic_path, sha256_of
from gcflow.inception import INCEPTION_URL, Inception, write_surrogate
from gcflow.pipeline.features.inception import InceptionFeatures
from gcflow.pipeline.features.small import SmallFeatures, load_classifier, make_classifier
from gcflow.pipeline.folders import data_folder, extractor_path
from gcflow.pipeline.params import Params
from gcflow.pipeline.prepare import check_classes
from gcflow.pipeline.progress import say
from gcflow.pipeline.published import find_published
from gcflow.pipeline.schema import Classifier, Identity, InceptionNetwork, SurrogateNetwork

Features = SmallFeatures | InceptionFeatures


def make_features(params: Params, dataset: str, archives: Path, fetch: bool) -> None:
    """Stores the network that features are taken from: a trained classifier, Inception, or its surrogate.

    Raises:
        GcflowError: there is no network to store, the classifier is not accurate enough, or Inception's weights are
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
    elif isinstance(settings, InceptionNetwork):
        source = find_published(params.root / archives, settings.weights, INCEPTION_URL, None, fetch)
        Inception.load(source, sha256=settings.sha256)
        with atomic_path(path) as temporary:
            shutil.copyfile(source, temporary)
        say(f"  {dataset}: Inception from {source}, sha256 {sha256_of(path)}")
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
    return InceptionFeatures(settings.kind, Inception.load(path, device), device)
