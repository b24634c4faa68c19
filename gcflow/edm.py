"""Public EDM models (Karras et al. 2022) in and out: their pickles (`gcflow.edm_pickle`), and plain state dicts."""

import dataclasses
import hashlib
import io
import math
import pickle
import re
from pathlib import Path
from typing import Any, Literal, NamedTuple

import safetensors.torch
import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from torch import Tensor

from gcflow.config import NetworkConfig, NoiseProcess, Preconditioning, Weights
from gcflow.edm_pickle import (
    FLOATING,
    NOT_A_PICKLE,
    Persistent,
    Refusal,
    check_constants,
    dropout_rates,
    entries_of,
    listed,
    modules_of,
    one_line,
    printable,
    state_dict_of,
    state_of,
    torch_loaded,
    unpickled,
)
from gcflow.errors import GcflowError
from gcflow.files import atomic_path
from gcflow.options import mistakes
from gcflow.preconditioning import VP_BETA_D, VP_BETA_MIN, VP_LEVELS
from gcflow.songunet import VARIANTS
from gcflow.weights import ModelSpec, load_tensors, save_tensors

PRECONDITIONINGS: dict[str, Preconditioning] = {"EDMPrecond": "edm", "VPPrecond": "vp", "VEPrecond": "ve"}
NETWORK_CLASS = "SongUNet"
# What our preconditioning and U-Net fix. A fork may change one without a trace in the tensors.
WRAPPER_CONSTANTS = {"VPPrecond": {"beta_d": VP_BETA_D, "beta_min": VP_BETA_MIN, "M": VP_LEVELS}}
ENCODER_TENSOR = re.compile(r"enc\.([0-9]{1,6})x\1_(conv|down|aux_residual|block[0-9]+)\.(.+)")
ZIP_MAGIC = b"PK\x03\x04"
LEGACY_MAGIC = pickle.dumps(torch.serialization.MAGIC_NUMBER, protocol=2)


class ImportedModel(NamedTuple):
    """A model read from elsewhere.

    spec: how to rebuild it. tensors: float32 state dict of its network. source: where it is from, as JSON values.
    notes: what was changed on the way, one sentence each.
    """

    spec: ModelSpec
    tensors: dict[str, Tensor]
    source: dict[str, Any]
    notes: tuple[str, ...]


def _architecture(tensors: dict[str, Tensor], channels: int, levels: int) -> Literal["ddpm++", "ncsn++"]:
    fourier = "map_noise.freqs" in tensors
    residual = any(name.split(".")[1].endswith("_aux_residual") for name in tensors if name.startswith("enc."))
    filters = {tuple(tensor.shape[-2:]) for name, tensor in tensors.items() if name.endswith(".resample_filter")}
    noise = _shape(tensors, "map_layer0.weight", 2)[1]
    architectures: tuple[Literal["ddpm++", "ncsn++"], ...] = ("ddpm++", "ncsn++")
    for architecture in architectures:
        variant = VARIANTS[architecture]
        taps = len(variant.resample_filter)
        # One level has nothing to resample.
        resampling = levels == 1 or (variant.residual_encoder, {(taps, taps)}) == (residual, filters)
        if resampling and (fourier, noise) == (variant.fourier_embedding, variant.embedding_multiplier * channels):
            return architecture
    sides = " and ".join(sorted("x".join(map(str, shape)) for shape in filters)) or "no"
    raise Refusal(
        f"mixes EDM's networks ({'Fourier' if fourier else 'positional'} embedding of width {noise}, {sides} filters, "
        f"{'residual' if residual else 'standard'} encoder); expected ddpm++ (positional, width {channels}, 2x2, "
        f"standard) or ncsn++ (Fourier, width {2 * channels}, 4x4, residual)"
    )


def _shape(tensors: dict[str, Tensor], name: str, dimensions: int) -> tuple[int, ...]:
    if name not in tensors:
        raise Refusal(f"lacks {name}, so it is no whole {NETWORK_CLASS} of EDM")
    shape = tuple(tensors[name].shape)
    if len(shape) != dimensions:
        raise Refusal(f"{name} has shape {list(shape)}, expected {dimensions} dimensions")
    return shape


def infer_network(tensors: dict[str, Tensor]) -> tuple[NetworkConfig, tuple[int, ...]]:
    """The network whose state dict this is, from names and shapes alone, and the shape [C, H, W] of its images.

    The dropout rate, which leaves no trace there, is set to 0. Tensors that do not fit the network found are not
    noticed here.

    Args:
        tensors: state dict of a SongUNet, names without the `model.` of its preconditioning.

    Raises:
        ValueError: it is neither a DDPM++ nor an NCSN++ of EDM (Karras et al. 2022, appendix F).
    """
    parts: dict[int, set[str]] = {}
    attention: set[int] = set()
    for name in tensors:
        if name.startswith("enc."):
            match = ENCODER_TENSOR.fullmatch(name)
            if match is None:
                raise Refusal(f"has {printable(name)}, which neither ddpm++ nor ncsn++ of EDM has")
            side, part = int(match[1]), match[2]
            parts.setdefault(side, set()).add(part)
            if part.startswith("block") and match[3] == "qkv.weight":
                attention.add(side)
    if not parts:
        raise Refusal(f"holds no tensor enc.*, so it is no {NETWORK_CLASS} of EDM")
    sides = sorted(parts, reverse=True)
    if sides != [sides[0] >> level for level in range(len(sides))]:
        raise Refusal(f"has levels of sides {sides}, expected each half of the one before")
    channels, image_channels = _shape(tensors, f"enc.{sides[0]}x{sides[0]}_conv.weight", 4)[:2]
    widths = [_shape(tensors, f"enc.{side}x{side}_block0.conv1.weight", 4)[0] for side in sides]
    for side, width in zip(sides, widths, strict=True):
        if channels == 0 or width % channels:
            raise Refusal(f"has {width} channels at {side}x{side}, expected a multiple of the first {channels}")
    blocks = tuple(sum(part.startswith("block") for part in parts[side]) for side in sides)
    config = NetworkConfig(
        architecture=_architecture(tensors, channels, len(sides)),
        channels=channels,
        blocks=blocks[0] if len(set(blocks)) == 1 else blocks,
        multipliers=tuple(width // channels for width in widths),
        attention=tuple(side for side in sides if side in attention),
        label_dim=_shape(tensors, "map_label.weight", 2)[1] if "map_label.weight" in tensors else 0,
        augment_dim=_shape(tensors, "map_augment.weight", 2)[1] if "map_augment.weight" in tensors else 0,
    )
    return config, (image_channels, sides[0], sides[0])


def _check_tensors(spec: ModelSpec, tensors: dict[str, Tensor]) -> None:
    """Whether the tensors are those of the network, none missing, none too many, each of its shape."""
    # Shapes that a file made up must not cost memory.
    with torch.device("meta"):
        expected = spec.build().network.state_dict()
    architecture = spec.network.architecture
    missing = [name for name in expected if name not in tensors]
    extra = [name for name in tensors if name not in expected]
    wrong = [name for name, tensor in expected.items() if name in tensors and tensors[name].shape != tensor.shape]
    if missing:
        raise Refusal(f"lacks tensors of its {architecture} network: {listed(missing)}")
    if extra:
        raise Refusal(f"has tensors that a {architecture} network lacks: {listed(extra)}")
    if wrong:
        shapes = f"{list(tensors[wrong[0]].shape)}, expected {list(expected[wrong[0]].shape)}"
        raise Refusal(f"has tensors of other shapes than its {architecture} network: {listed(wrong)} ({shapes})")


def _check_filters(architecture: str, tensors: dict[str, Tensor]) -> None:
    """Whether resampling is as our network does it, whatever the filter tensors say."""
    taps = torch.tensor(VARIANTS[architecture].resample_filter, dtype=torch.float32)
    outer = taps[:, None] * taps / taps.sum() ** 2
    for name, tensor in tensors.items():
        if name.endswith(".resample_filter") and not torch.allclose(tensor[0, 0], outer):
            raise Refusal(f"{name} is not the {architecture} filter; only EDM's own networks can be imported")


def _without_embeddings(network: NetworkConfig, tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """The state dict of the same function of (x, sigma), for no class and no augmentation; notes on the changes."""
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(("map_label.", "map_augment."))}
    notes = []
    if network.augment_dim:
        notes.append("map_augment is left out, which changes nothing without augmentation labels")
    if network.label_dim:
        # With all labels zero the class embedding still adds its bias to the input of map_layer0.
        weight, bias = tensors["map_layer0.weight"].double(), tensors["map_layer0.bias"].double()
        kept["map_layer0.bias"] = (bias + weight @ tensors["map_label.bias"].double()).float()
        notes.append(
            "map_label is left out and its bias added to map_layer0.bias, which changes nothing without class labels; "
            "whether a class-conditional model is of use without them depends on its training"
        )
    return kept, notes


def _imported(
    tensors: dict[str, Tensor],
    preconditioning: Preconditioning,
    process: NoiseProcess,
    keep_embeddings: bool,
    source: dict[str, Any],
    shape: tuple[int, ...] | None = None,
) -> ImportedModel:
    try:
        network, found = infer_network(tensors)
        spec = ModelSpec(network, preconditioning, process, found)
        _check_tensors(spec, tensors)
    except ValidationError as error:
        raise Refusal(mistakes(error)[0]) from None
    except ValueError as error:
        raise Refusal(str(error)) from None
    if shape not in (None, found):
        raise Refusal(f"says that its images have shape {printable(repr(shape))}, but its network is for {found}")
    # Only now: a small file may claim large tensors, but not those of the network and within its storages.
    tensors = {name: tensor.detach().to(torch.float32, copy=True) for name, tensor in tensors.items()}
    _check_filters(network.architecture, tensors)
    source = {**source, "label_dim": network.label_dim, "augment_dim": network.augment_dim}
    if keep_embeddings:
        return ImportedModel(spec, tensors, source, ())
    tensors, notes = _without_embeddings(network, tensors)
    without = dataclasses.replace(network, label_dim=0, augment_dim=0)
    return ImportedModel(dataclasses.replace(spec, network=without), tensors, source, tuple(notes))


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise GcflowError(f"{path}: no such file; download the checkpoint first") from None
    except OSError as error:
        raise GcflowError(f"{path}: cannot be read ({error.strerror})") from None


def _format(data: bytes) -> Literal["pickle", "torch", "safetensors"]:
    if data.startswith((ZIP_MAGIC, LEGACY_MAGIC)):
        return "torch"
    header = int.from_bytes(data[:8], "little")
    return "safetensors" if data[8:9] == b"{" and header <= len(data) - 8 else "pickle"


def _from_pickle(path: Path, data: bytes, preconditioning: Preconditioning | None, keep: bool) -> ImportedModel:
    with one_line(path, NOT_A_PICKLE):
        document = unpickled(data)
        if not isinstance(document, dict) or not isinstance(document.get("ema"), Persistent):
            raise Refusal("holds no network under 'ema'; expected a network-snapshot-*.pkl of EDM")
        wrapper = document["ema"]
        name = wrapper.class_name
        if name not in PRECONDITIONINGS:
            raise Refusal(f"holds a model of class {printable(name)}; expected {', '.join(PRECONDITIONINGS)}")
        if preconditioning not in (None, PRECONDITIONINGS[name]):
            raise Refusal(
                f"is of class {name}, so its preconditioning is {PRECONDITIONINGS[name]}, not {preconditioning}"
            )
        state = state_of(wrapper, "ema")
        network = entries_of(state, "_modules").get("model")
        if not isinstance(network, Persistent) or network.class_name != NETWORK_CLASS:
            found = network.class_name if isinstance(network, Persistent) else "no network"
            raise Refusal(
                f"holds {printable(found)}; only {NETWORK_CLASS} models of EDM (CIFAR-10, FFHQ, AFHQ) can be imported"
            )
        for attribute, expected in WRAPPER_CONSTANTS.get(name, {}).items():
            value = state.get(attribute)
            if not isinstance(value, int | float) or value != expected:
                raise Refusal(f"{attribute} is {printable(repr(value))}, expected {expected}, as in EDM's VP models")
        modules = modules_of(network)
        check_constants(modules)
        sigma_data = state.get("sigma_data", 0.5)
        if not isinstance(sigma_data, int | float) or not 0 < sigma_data < math.inf:
            raise Refusal(f"sigma_data is {printable(repr(sigma_data))}, expected a number > 0")
        source = {
            "file": path.name,
            "sha256": hashlib.sha256(data).hexdigest(),
            "class": name,
            "dropout": dropout_rates(modules),
        }
        side, channels = state.get("img_resolution"), state.get("img_channels")
        return _imported(
            state_dict_of(modules),
            PRECONDITIONINGS[name],
            NoiseProcess(sigma_data=float(sigma_data)),
            keep,
            source,
            None if side is None or channels is None else (channels, side, side),
        )


def _from_state_dict(path: Path, data: bytes, preconditioning: Preconditioning | None, keep: bool) -> ImportedModel:
    unreadable = "is damaged, or holds more than tensors; expected the state dict of a SongUNet"
    with one_line(path, unreadable):
        tensors = safetensors.torch.load(data) if _format(data) == "safetensors" else torch_loaded(data)
        if not isinstance(tensors, dict) or not all(isinstance(name, str) for name in tensors):
            raise Refusal(unreadable)
        if not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
            raise Refusal(unreadable)
        if any(name.startswith("ema.") for name in tensors):
            raise Refusal("holds ema.*, as weights files of gcflow do; they need no import")
        if preconditioning is None:
            raise Refusal("is a plain state dict, which does not tell its preconditioning; give --preconditioning")
        wrapped = all(name.startswith("model.") for name in tensors)
        for name, tensor in tensors.items():
            # A tensor on the device `meta` has no values at all.
            if tensor.dtype not in FLOATING or tensor.layout != torch.strided or tensor.is_meta:
                raise Refusal(f"{printable(name)} holds no floating-point numbers")
        named = {name.removeprefix("model.") if wrapped else name: tensor for name, tensor in tensors.items()}
        source = {
            "file": path.name,
            "sha256": hashlib.sha256(data).hexdigest(),
            "class": NETWORK_CLASS,
            "dropout": None,
        }
        return _imported(named, preconditioning, NoiseProcess(), keep, source)


def read_model(
    path: Path, preconditioning: Preconditioning | None = None, keep_embeddings: bool = False
) -> ImportedModel:
    """The EMA network of a public EDM checkpoint, or the plain state dict of a SongUNet; which, its content tells.

    Nothing in the file is run. By default the class and augmentation embeddings are left out, which keeps
    D(x, sigma) without labels; `notes` says so. A state dict does not tell sigma_data: it is taken to be EDM's 0.5.

    Args:
        path: a pickle of EDM (`edm-cifar10-32x32-uncond-vp.pkl`, `network-snapshot-*.pkl`), or a state dict
            (`model.` before each name or not) of torch.save or safetensors.
        preconditioning: of the model; needed for a state dict, which does not tell.
        keep_embeddings: keep `map_label` and `map_augment`.

    Raises:
        GcflowError: the file is missing, damaged, asks for anything that no EDM model needs, or holds another network
            than a SongUNet in the EDM, VP or VE preconditioning; or its preconditioning is unknown or another one.
    """
    data = _read_bytes(path)
    read = _from_pickle if _format(data) == "pickle" else _from_state_dict
    return read(path, data, preconditioning, keep_embeddings)


def import_edm(
    path: Path, out: Path, preconditioning: Preconditioning | None = None, keep_embeddings: bool = False
) -> ImportedModel:
    """Makes a weights file of gcflow from a model that `read_model` reads.

    Its tensors are `ema.*`; its header has `model` (the spec) and `source` (file name, sha256, class, dropout).

    Args:
        path: see `read_model`.
        out: the safetensors file to write.
        preconditioning: see `read_model`.
        keep_embeddings: see `read_model`.

    Raises:
        GcflowError: the model cannot be read, or `out` not written.
    """
    model = read_model(path, preconditioning, keep_embeddings)
    tensors = {f"ema.{name}": tensor for name, tensor in model.tensors.items()}
    save_tensors(out, tensors, {"model": model.spec.header(), "source": model.source})
    return model


def export_state_dict(weights_file: Path, out: Path, weights: Weights = "ema") -> None:
    """Writes the network's plain state dict, under EDM's names for a U-Net, for use elsewhere.

    Args:
        weights_file: a weights file of gcflow, trained or imported.
        out: `.safetensors`, or `.pt` or `.pth` for torch.save of a dict of tensors.
        weights: which of the file's weights.

    Raises:
        GcflowError: `weights_file` is missing, damaged or lacks these weights; `out` has another ending or cannot be
            written.
    """
    if out.suffix not in {".safetensors", ".pt", ".pth"}:
        raise GcflowError(f"{out}: unknown ending {out.suffix!r}; expected .safetensors, .pt or .pth")
    tensors, metadata = load_tensors(weights_file)
    if "model" not in metadata:
        raise GcflowError(f"{weights_file}: has no gcflow header; expected a weights file of gcflow")
    prefix = f"{weights}."
    chosen = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    if not chosen:
        raise GcflowError(f"{weights_file}: has no {weights} weights; choose others")
    if out.suffix == ".safetensors":
        content = safetensors.torch.save(chosen)
    else:
        # In memory: torch.save writes the name of a file into it.
        buffer = io.BytesIO()
        torch.save(chosen, buffer)
        content = buffer.getvalue()
    try:
        with atomic_path(out) as temporary:
            temporary.write_bytes(content)
    except (OSError, SafetensorError) as error:
        raise GcflowError(f"{out}: cannot be written ({error}); nothing was overwritten") from None
