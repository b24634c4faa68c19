"""Files of weights: tensors with a header that says what they are, and the models they belong to."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, ValidationError
from safetensors import SafetensorError

from gcflow import register
from gcflow.config import (
    RunConfig,
    Weights,
    digest,
    from_dict,
    to_dict,
)
from gcflow.errors import GcflowError
from gcflow.extensions import origins
from gcflow.files import atomic_path, expected_form, opened_tensors, tensors_metadata
from gcflow.lazy_torch import torch
from gcflow.networks import Network
from gcflow.options import Count, Options, mistakes
from gcflow.preconditioning import NoiseProcess, Preconditioning
from gcflow.randomness import derived_seed
from gcflow.readable import one_line

if TYPE_CHECKING:
    from torch import Tensor

    from gcflow.model import PreconditionedNetwork


class ModelSpec(Options):
    """All that rebuilds a model around its weights."""

    network: Annotated[Network, register.network]
    preconditioning: Preconditioning
    process: NoiseProcess
    shape: tuple[Count, ...] = Field(description="of one sample")

    def header(self) -> dict[str, Any]:
        """As JSON values, the `model` entry of every weights file's header."""
        return to_dict(self)

    def build(self, seed: int = 0) -> PreconditionedNetwork:
        """The untrained model; its initial weights depend on the seed alone."""
        from gcflow.model import PreconditionedNetwork

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derived_seed(seed, "weights"))
            network = self.network.build(self.shape)
        return PreconditionedNetwork(network, self.preconditioning, self.process)


def spec_of(config: RunConfig, shape: tuple[int, ...]) -> ModelSpec:
    """The model of a run for samples of `shape`."""
    return ModelSpec(config.network, config.preconditioning, config.process, shape)


def load_weights(model: PreconditionedNetwork, tensors: dict[str, Tensor], weights: Weights, path: Path) -> None:
    """Loads the `ema.*` or `raw.*` tensors of the file at `path` into a model's network.

    Raises:
        GcflowError: tensors are missing, too many or of another shape.
    """
    found = {name.removeprefix(f"{weights}."): t for name, t in tensors.items() if name.startswith(f"{weights}.")}
    expected = model.network.state_dict()
    problems = [
        *(f"lacks {name}" for name in expected.keys() - found.keys()),
        *(f"has {name}, which the network has not" for name in found.keys() - expected.keys()),
        *(
            f"has {name} of shape {list(found[name].shape)}, not {list(tensor.shape)}"
            for name, tensor in expected.items()
            if name in found and found[name].shape != tensor.shape
        ),
        *(f"has {name}, which is not finite" for name, tensor in found.items() if not tensor.isfinite().all()),
    ]
    if problems:
        more = f", and {len(problems) - 1} more differences" if len(problems) > 1 else ""
        raise GcflowError(
            f"{path}: {weights} weights do not fit the network of its header: it {sorted(problems)[0]}{more}"
        )
    model.network.load_state_dict(found)


def content_hash(tensors: dict[str, Tensor], metadata: dict[str, Any] | None = None) -> str:
    """sha256 (hex) of names, types, shapes and values, and of what is said about them."""
    found = hashlib.sha256(json.dumps(metadata or {}, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    """Writes a safetensors file in one atomic, synced step. Equal content gives equal bytes.

    Raises:
        GcflowError: it could not be written (a full disk, say); a file that was at `path` is still there.
    """
    from safetensors.torch import save

    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    header = json.dumps({"content_sha256": content_hash(contiguous, metadata), **metadata})
    try:
        with atomic_path(path) as temporary:
            # One key, because safetensors writes several in an order that differs between processes.
            temporary.write_bytes(save(contiguous, {"gcflow": header}))
    except (OSError, SafetensorError) as error:
        raise GcflowError(f"{path}: cannot be written ({error}); nothing was overwritten") from None


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads what `save_tensors` wrote, on the CPU; of another safetensors file the metadata are empty.

    Raises:
        GcflowError: the file is missing, or damaged in a single bit.
    """
    with opened_tensors(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = tensors_metadata(file)
    if metadata and metadata.pop("content_sha256", None) != content_hash(tensors, metadata):
        raise GcflowError(f"{path}: damaged (its content is not what was written); make or fetch it again")
    return tensors, metadata


def weights_metadata(config: RunConfig, step: int, shape: tuple[int, ...]) -> dict[str, Any]:
    """The header of every weights file of a run: what is needed to rebuild the model, and what it is."""
    document = to_dict(config)
    model = spec_of(config, shape).header()
    return {"model": model, "config": document, "config_hash": digest(document), "step": step}


def load_model(
    path: Path, weights: Weights = "ema", device: str = "cpu"
) -> tuple[PreconditionedNetwork, ModelSpec, dict[str, Any]]:
    """The model stored in a weights file, a snapshot or an imported checkpoint, and the file's header.

    The model is in evaluation mode, without gradients.

    Raises:
        GcflowError: the file is missing or damaged, or is not a weights file.
    """
    tensors, metadata = load_tensors(path)
    if "model" not in metadata:
        raise GcflowError(f"{path}: has no gcflow header; expected weights of `gcflow train` or `gcflow import-edm`")
    try:
        spec = from_dict(ModelSpec, metadata["model"])
        model = spec.build()
    except ValidationError as error:
        problem = mistakes(error, metadata["model"])[0]
        if error.errors()[0]["type"] == "unknown_name":
            remedy = "list its file under extensions in params.yaml, or import it"
            raise GcflowError(f"{path}: its {problem}; {remedy}") from None
        raise GcflowError(f"{path}: its header is of another version of gcflow ({problem}); make it again") from None
    except (ValueError, RuntimeError, MemoryError) as error:
        raise GcflowError(f"{path}: no network can be as its header says ({one_line(error)}); make it again") from None
    with expected_form(path, "gcflow train"):
        is_denoiser(metadata)
    load_weights(model, tensors, weights, path)
    if device.startswith("cuda"):
        model.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model.to(device).eval().requires_grad_(False), spec, metadata


def is_denoiser(metadata: dict[str, Any]) -> bool:
    """True if a weights file's header is a denoiser's: of a run that says so, or imported and not `consistency`.

    Raises:
        GcflowError: its objective is of an extension that was not read.
    """
    if "config" not in metadata:
        return bool(metadata["model"]["preconditioning"] != "consistency")
    try:
        return bool(register.objective.of(metadata["config"]["method"]["objective"]).denoises)
    except ValidationError as error:
        remedy = "list its file under extensions in params.yaml, or import it"
        raise GcflowError(f"the weights' objective: its {mistakes(error)[0]}; {remedy}") from None


def load_run_model(
    path: Path, config: RunConfig, weights: Weights = "ema", device: str = "cpu"
) -> PreconditionedNetwork:
    """The model in a weights file that must be the run `config`'s.

    Raises:
        GcflowError: as `load_model`, or the weights are of another configuration.
    """
    model, _, metadata = load_model(path, weights, device)
    if metadata.get("config") != to_dict(config):
        raise GcflowError(f"{path}: weights of another configuration; run gcflow train {config.name} again")
    for file, sha256 in origins(*config.parts).items():
        if metadata.get("inputs", {}).get(file) != sha256:
            raise GcflowError(f"{path}: weights of another version of {file}; run gcflow train {config.name} again")
    return model
