"""Bytes that a target writes: data, snapshots, checkpoints, references and samples."""

import configparser
import json
import math
import shutil
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from gcflow.classifier import FEATURES as CLASSIFIER_FEATURES
from gcflow.config import RunConfig, TrainingConfig, digest, to_dict, without_dropout
from gcflow.inception import FEATURES as INCEPTION_FEATURES
from gcflow.optimizers import make_optimizer
from gcflow.pipeline.comparison import KID_POOL
from gcflow.pipeline.folders import DATA_FILES, data_folder
from gcflow.pipeline.params import Params
from gcflow.pipeline.planning.jobs import Job
from gcflow.pipeline.run_state import KEPT_CHECKPOINTS
from gcflow.pipeline.schema import Classifier, Protocol
from gcflow.sources import Digits, Mixture2d, Patches32, Synthetic
from gcflow.weights import ModelSpec, spec_of, weights_metadata

ARRAY_HEADER = 128
LABEL_BYTES = 8
Shapes = dict[str, tuple[int, ...]]


class Space(NamedTuple):
    """Bytes that a job leaves. outputs: declared files. state: checkpoints, which stay beside them. known: or more."""

    outputs: int = 0
    state: int = 0
    known: bool = True


class Network(NamedTuple):
    """tensors: of its state dict. parameters: what an optimizer moves, in its order. All float32."""

    tensors: Shapes
    parameters: list[tuple[int, ...]]


@lru_cache(maxsize=256)
def _built(spec: ModelSpec) -> Network:
    with torch.device("meta"):
        network = spec.build().network
    return Network(
        {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()},
        [tuple(parameter.shape) for parameter in network.parameters()],
    )


def network_of(config: RunConfig, shape: tuple[int, ...]) -> Network:
    """The shapes of a run's network, without its memory."""
    spec = spec_of(config, shape)
    return _built(replace(spec, network=without_dropout(spec.network)))


@lru_cache(maxsize=8)
def _slots(optimizer: str) -> tuple[str, ...]:
    """What an optimizer keeps of each parameter, in its own shape; `step`, if it is kept, is one number."""
    parameter = nn.Parameter(torch.zeros(2))
    training = TrainingConfig(steps=1, batch=1, learning_rate=1.0, snapshot_every=1, optimizer=optimizer)  # type: ignore[arg-type]
    made = make_optimizer([parameter], training)
    parameter.grad = torch.ones(2)
    made.step()
    return tuple(made.state_dict()["state"][0])


def _bytes_of(shapes: Shapes, metadata: dict[str, Any]) -> int:
    """Bytes of a safetensors file: the length of its header, the header, the values (float32; counters int64)."""
    entries: dict[str, Any] = {"__metadata__": {"gcflow": json.dumps(metadata)}}
    offset = 0
    for name, shape in shapes.items():
        size = math.prod(shape) * (8 if name.startswith("window") else 4)
        entries[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    header = len(json.dumps(entries, separators=(",", ":")))
    return 8 + header + -header % 8 + offset


def snapshot_bytes(params: Params, job_run: str, shape: tuple[int, ...]) -> tuple[int, int]:
    """Bytes of a snapshot of a run and of a checkpoint."""
    config, run = params.run_config(job_run), params.parse_run(job_run)
    network = network_of(config, shape)
    roles = [*params.needed_runs(run), *params.needed_files(run)]
    inputs = dict.fromkeys(("data_sha256", *(f"{role}_sha256" for role in roles)), "0" * 64)
    header = {
        "content_sha256": "0" * 64,
        **weights_metadata(config, config.training.steps, shape),
        "config": to_dict(config),
        "inputs": inputs,
        "config_hash": digest({}),
        "processes": 1,
    }
    weights = {f"{kind}.{name}": shape for kind in ("raw", "ema") for name, shape in network.tensors.items()}
    moments: Shapes = {
        f"optimizer.{number}.{slot}": () if slot == "step" else shape
        for number, shape in enumerate(network.parameters)
        for slot in _slots(config.training.optimizer)
    }
    window: Shapes = {"window.loss_sum": (), "window.loss_count": ()}
    return _bytes_of(weights, header), _bytes_of(weights | moments | window, header)


def sample_counts(params: Params, dataset: str) -> tuple[int | None, int]:
    """Samples to train on, None if unknown, and held-out ones: as prepared, or else as the source promises."""
    source = params.dataset(dataset).data
    manifest = data_folder(params.root, dataset) / "manifest.json"
    if manifest.exists():
        found = json.loads(manifest.read_text())
        return int(found["count"]), int(found.get("held_out", 0))
    if isinstance(source, Patches32):
        held_out = source.load().held_out
        return source.count, 0 if held_out is None else len(held_out)
    if isinstance(source, Digits | Mixture2d | Synthetic):
        return source.count, 0
    return source.count, getattr(source, "held_out_images", 0)


def _data(params: Params, dataset: str) -> Space:
    folder = data_folder(params.root, dataset)
    files = [folder / name for name in DATA_FILES]
    if all(path.exists() for path in files):
        return Space(sum(path.stat().st_size for path in files))
    source = params.dataset(dataset).data
    count, held_out = sample_counts(params, dataset)
    if count is None:
        return Space(known=False)
    one = math.prod(source.shape) * (4 if isinstance(source, Mixture2d) else 1)
    return Space((count + held_out) * one + count * LABEL_BYTES + 3 * ARRAY_HEADER)


def _train(params: Params, job: Job, shape: tuple[int, ...]) -> Space:
    assert job.run is not None
    training = params.run_config(job.run.name).training
    snapshot, checkpoint = snapshot_bytes(params, job.run.name, shape)
    saved = math.ceil(training.steps / params.dataset(job.run.dataset).cadence.checkpoint_every)
    # The final weights are another name of the last snapshot.
    return Space(len(training.snapshot_steps) * snapshot, min(saved, KEPT_CHECKPOINTS) * checkpoint)


def reference_images(params: Params, dataset: str, protocol: str) -> int | None:
    """Real images whose features a protocol takes; None if the source does not say how many it has."""
    rules: Protocol | None = params.dataset(dataset).features.protocols[protocol]
    count, held_out = sample_counts(params, dataset)
    if rules is None or rules.split == "train":
        return rules.reference_images or count if rules is not None else count
    return rules.reference_images or held_out


def _reference(params: Params, job: Job, shape: tuple[int, ...]) -> Space:
    assert job.dataset is not None
    features = params.dataset(job.dataset).features
    images = reference_images(params, job.dataset, job.item)
    if images is None:
        return Space(known=False)
    if features.kind in ("inception", "surrogate"):
        pool = min(images, KID_POOL) * INCEPTION_FEATURES * 4
        return Space(8 * INCEPTION_FEATURES * (INCEPTION_FEATURES + 1) + pool)
    return Space(4 * images * (CLASSIFIER_FEATURES if isinstance(features, Classifier) else math.prod(shape)))


def space_of(params: Params, job: Job) -> Space:
    """The bytes that a job writes. What is small (tables, figures, logs, a classifier) counts nothing."""
    if job.dataset is None:
        return Space()
    entry = params.dataset(job.dataset)
    shape = entry.data.shape
    if job.kind == "prepare":
        return _data(params, job.dataset)
    if job.kind == "train":
        return _train(params, job, shape)
    if job.kind == "reference":
        return _reference(params, job, shape)
    if job.kind == "evaluate":
        one = math.prod(shape) * (4 if isinstance(entry.data, Mixture2d) else 1)
        return Space(min(entry.evaluation.grid**2, entry.evaluation.batch) * one + ARRAY_HEADER)
    return Space()


def cache_folder(root: Path) -> Path | None:
    """DVC's cache of a project; None where there is no DVC."""
    if not (root / ".dvc").is_dir():
        return None
    folder = root / ".dvc" / "cache"
    for name in ("config", "config.local"):
        # Its files are indented, which configparser takes for continued lines.
        path = root / ".dvc" / name
        text = "\n".join(line.strip() for line in path.read_text().splitlines()) if path.exists() else ""
        settings = configparser.ConfigParser(allow_no_value=True)
        settings.read_string(text)
        found = settings.get("cache", "dir", fallback=None)
        folder = root / ".dvc" / found if found else folder
    return folder


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path


def second_copy(root: Path) -> Path | None:
    """DVC's cache if it cannot share files with the project, being on another file system; else None."""
    cache = cache_folder(root)
    if cache is None or _existing(cache).stat().st_dev == root.resolve().stat().st_dev:
        return None
    return cache


def free_bytes(root: Path) -> int:
    """What is free where the project is."""
    return shutil.disk_usage(root.resolve()).free
