"""Reading pickles of EDM models without running code from them.

Such a pickle is a program: each object asks to call a function, and carries Python source to call it with. Here every
such request is answered by an inert stand-in that only records its arguments, or refused by name; parameters are read
from the records, and the source is never looked at. The most that a hostile file can do is to exhaust memory or time.
"""

import io
import math
import pickle
import pickletools
import struct
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gcflow.errors import GcflowError
from gcflow.songunet import LARGEST_PERIOD, SKIP_SCALE

# What our U-Nets fix. A fork of EDM may change one without a trace in the tensors.
MODULE_CONSTANTS: dict[str, tuple[float, ...]] = {
    "skip_scale": (SKIP_SCALE,),
    "adaptive_scale": (False,),
    "num_heads": (0, 1),
    "eps": (1e-6,),
    "max_positions": (LARGEST_PERIOD,),
    "endpoint": (True,),
}
FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# numpy's codes to those of the module struct.
SCALARS = {"f8": "d", "f4": "f", "f2": "e", "i8": "q", "i4": "i", "i2": "h", "i1": "b"}
SCALARS |= {"u8": "Q", "u4": "I", "u2": "H", "u1": "B", "b1": "?"}
# EXT looks callables up in a registry of the process, past find_class; the others are of no use to a module.
REFUSED_OPCODES = {"EXT1", "EXT2", "EXT4", "PERSID", "BINPERSID", "INST", "OBJ", "NEWOBJ_EX"}
REFUSED_OPCODES |= {"BYTEARRAY8", "NEXT_BUFFER", "READONLY_BUFFER"}
NOT_A_PICKLE = (
    "is not a whole pickle of an EDM network; download it again, or give a state dict (.pt, .pth or .safetensors)"
)


class Refusal(ValueError):
    """Why the content of a file cannot be imported; the reader puts the file's name before it."""


def printable(text: str) -> str:
    """Text of a file, safe to print in one line."""
    return text.encode("unicode_escape").decode()[:100]


def listed(names: list[str]) -> str:
    """The first three names, and how many more."""
    shown = ", ".join(printable(name) for name in names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


@contextmanager
def one_line(path: Path, otherwise: str) -> Iterator[None]:
    """Turns a refusal, and whatever a damaged file makes its readers raise, into one line that names the file."""
    try:
        yield
    except GcflowError:
        raise
    except Refusal as refusal:
        raise GcflowError(f"{path}: {refusal}") from None
    except Exception:  # pickle, torch and struct let a damaged file raise almost anything.
        raise GcflowError(f"{path}: {otherwise}") from None


class InertFunction:
    """What REDUCE may call. BUILD can change nothing of it: no __dict__, no settable attribute."""

    __slots__ = ("_answer",)
    _answer: Callable[..., Any]

    def __init__(self, answer: Callable[..., Any]) -> None:
        object.__setattr__(self, "_answer", answer)

    def __call__(self, *arguments: Any) -> Any:
        """The answer that stands in for the function's own."""
        return self._answer(*arguments)

    def __setattr__(self, name: str, value: object) -> None:
        raise TypeError("immutable")


class _Container:
    """Stands for a torch ModuleDict or ModuleList, which NEWOBJ makes and BUILD fills.

    NEWOBJ needs a class. Having __setstate__, it keeps BUILD from setting attributes, of instances and of the class.
    """

    __slots__ = ("state",)
    state: Any

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Dict(dict[Any, Any]):
    """Stands for EDM's EasyDict, whose state besides its items is empty; __setstate__ as in `_Container`."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        pass


class _ScalarType:
    """Stands for the dtype of a numpy scalar, whose byte order comes by BUILD."""

    __slots__ = ("code", "order")

    def __init__(self, code: object) -> None:
        if not isinstance(code, str) or code not in SCALARS:
            raise Refusal("holds a numpy value that is no plain number; no EDM model needs it")
        self.code, self.order = code, "="

    def __setstate__(self, state: Any) -> None:
        self.order = {"<": "<", ">": ">", "|": "=", "=": "="}[state[1]]


class Persistent(NamedTuple):
    """A persistent object of EDM: the name of its class, and its attributes."""

    class_name: str
    state: Any


class _Storage(NamedTuple):
    """The bytes of a storage, in torch.save's format."""

    content: bytes


class _Stored(NamedTuple):
    """A tensor not yet made: its storage, and which part of it."""

    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


def _persistent(meta: Any) -> Persistent:
    if not isinstance(meta, dict) or meta.get("type") != "class" or not isinstance(meta.get("class_name"), str):
        raise Refusal("holds a persistent object that is no instance of a class; no EDM model needs it")
    return Persistent(meta["class_name"], meta.get("state"))


def _scalar(kind: Any, content: Any) -> Any:
    if not isinstance(kind, _ScalarType) or not isinstance(content, bytes):
        raise Refusal("holds a numpy value that is no plain number; no EDM model needs it")
    return struct.unpack(kind.order + SCALARS[kind.code], content)[0]


def _storage(content: Any) -> _Storage:
    if not isinstance(content, bytes):
        raise Refusal(NOT_A_PICKLE)
    return _Storage(content)


def _stored(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> _Stored:
    return _Stored(storage, offset, size, stride)


def _parameter(data: Any, *_: Any) -> Any:
    return data


ANSWERS: dict[tuple[str, str], Any] = {
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): InertFunction(_persistent),
    ("dnnlib.util", "EasyDict"): _Dict,
    ("collections", "OrderedDict"): InertFunction(dict),
    ("builtins", "set"): InertFunction(set),
    ("torch.nn.modules.container", "ModuleDict"): _Container,
    ("torch.nn.modules.container", "ModuleList"): _Container,
    ("torch._utils", "_rebuild_parameter"): InertFunction(_parameter),
    ("torch._utils", "_rebuild_tensor_v2"): InertFunction(_stored),
    ("torch.storage", "_load_from_bytes"): InertFunction(_storage),
    ("numpy", "dtype"): InertFunction(lambda code, *_: _ScalarType(code)),
    ("numpy.core.multiarray", "scalar"): InertFunction(_scalar),
    ("numpy._core.multiarray", "scalar"): InertFunction(_scalar),
}


class _InertUnpickler(pickle.Unpickler):
    """Builds plain values and records only: nothing that a pickle names is imported or called."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ANSWERS:
            raise Refusal(
                f"refused: it asks to run {printable(f'{module}.{name}')}, which no EDM model needs; "
                "nothing of it was run"
            )
        return ANSWERS[module, name]

    def persistent_load(self, pid: object) -> Any:
        raise Refusal("refused: it refers to objects outside itself, which no EDM model does; nothing of it was run")


def unpickled(data: bytes) -> Any:
    """The plain values and records of a pickle.

    Raises:
        Refusal: it asks for something that no EDM model needs. Damaged ones raise almost anything.
    """
    # A refusal is one line; Python would warn of escapes in damaged text.
    with warnings.catch_warnings(action="ignore"):
        # Without running: is it whole, and does it keep to plain opcodes? A memo index far beyond the size would make
        # the unpickler reserve and clear that much memory.
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name in REFUSED_OPCODES:
                raise Refusal(
                    f"refused: it has the pickle opcode {opcode.name}, which no EDM model needs; nothing of it was run"
                )
            if opcode.name in {"PUT", "BINPUT", "LONG_BINPUT"} and isinstance(argument, int) and argument > len(data):
                raise Refusal(NOT_A_PICKLE)
        return _InertUnpickler(io.BytesIO(data)).load()


def torch_loaded(data: bytes) -> Any:
    """What torch.save wrote, if it is made of tensors and plain values alone."""
    # As above; torch would warn of the content it refuses.
    with warnings.catch_warnings(action="ignore"):
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def _indices(value: Any) -> bool:
    return isinstance(value, tuple) and all(type(i) is int and i >= 0 for i in value)


def _tensor(name: str, stored: Any) -> Tensor:
    """The tensor of a record, of the record's dtype."""
    shown = printable(name)
    if not isinstance(stored, _Stored) or not isinstance(stored.storage, _Storage):
        raise Refusal(f"{shown} is no tensor, in a place where every EDM model has one")
    try:
        storage = torch_loaded(stored.storage.content)
    except Exception:
        raise Refusal(f"refused: the storage of {shown} is damaged, or holds more than numbers") from None
    if not isinstance(storage, torch.storage.TypedStorage) or storage.dtype not in FLOATING:
        raise Refusal(f"the storage of {shown} holds no floating-point numbers")
    offset, size, stride = stored.offset, stored.size, stored.stride
    flat = torch.empty(0, dtype=storage.dtype).set_(storage)
    inside = _indices((offset,)) and _indices(size) and _indices(stride) and len(size) == len(stride)
    # Overlapping elements stay inside too, but let few bytes claim any size.
    count: int = math.prod(size) if inside else 0
    inside = inside and count <= flat.numel() - offset
    if inside and count:
        inside = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) < flat.numel()
    if not inside:
        raise Refusal(f"refused: {shown} reaches outside its storage")
    return torch.as_strided(flat, size, stride, offset)


def state_of(module: Any, name: str) -> dict[str, Any]:
    """The attributes of a module called `name`."""
    state = module.state if isinstance(module, Persistent) else getattr(module, "state", None)
    if not isinstance(module, Persistent | _Container) or not isinstance(state, dict):
        raise Refusal(f"{printable(name)} is no module, in a place where every EDM model has one")
    return state


def entries_of(state: dict[str, Any], key: str) -> dict[str, Any]:
    """The named entries of a module's `_modules`, `_parameters` or `_buffers`, without empty ones."""
    entries = state.get(key) or {}
    if not isinstance(entries, dict) or not all(isinstance(name, str) for name in entries):
        raise Refusal(f"has a module whose {key} are not named; every EDM model's are")
    return {name: entry for name, entry in entries.items() if entry is not None}


class _Module(NamedTuple):
    """A module of the network: its dotted name with a dot at the end, and its attributes."""

    prefix: str
    state: dict[str, Any]


def modules_of(root: Any) -> list[_Module]:
    """`root` and all modules in it, each once."""
    found: list[_Module] = []
    seen: set[int] = set()
    open_ends: list[tuple[str, Any]] = [("", root)]
    while open_ends:
        prefix, module = open_ends.pop()
        state = state_of(module, prefix.removesuffix("."))
        # A module within itself would have no end; one in two places doubles at each level.
        if id(module) in seen:
            raise Refusal(f"{printable(prefix.removesuffix('.'))} is in two places; in EDM models no module is")
        seen.add(id(module))
        found.append(_Module(prefix, state))
        children = entries_of(state, "_modules")
        open_ends += [(f"{prefix}{name}.", child) for name, child in reversed(children.items())]
    return found


def check_constants(modules: list[_Module]) -> None:
    """Refuses networks that compute something else than ours with the same tensors."""
    for prefix, state in modules:
        for attribute, allowed in MODULE_CONSTANTS.items():
            value = state.get(attribute, allowed[0])
            number = isinstance(value, int | float)
            if not number or not any(math.isclose(value, expected, rel_tol=1e-6) for expected in allowed):
                raise Refusal(
                    f"{printable(prefix + attribute)} is {printable(repr(value))}, expected "
                    f"{' or '.join(map(str, allowed))}; only EDM's own networks can be imported"
                )


def state_dict_of(modules: list[_Module]) -> dict[str, Tensor]:
    """The tensors of the modules by their dotted names."""
    tensors = {}
    for prefix, state in modules:
        left_out = state.get("_non_persistent_buffers_set")
        for name, entry in (entries_of(state, "_parameters") | entries_of(state, "_buffers")).items():
            if not isinstance(left_out, set) or name not in left_out:
                tensors[prefix + name] = _tensor(prefix + name, entry)
    return tensors


def dropout_rates(modules: list[_Module]) -> float | list[float]:
    """The rate that all blocks have, or the different ones."""
    rates = {state["dropout"] for _, state in modules if isinstance(state.get("dropout"), int | float)}
    return rates.pop() if len(rates) == 1 else sorted(rates)
