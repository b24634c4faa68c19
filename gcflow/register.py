"""What a project can add: couplings, sources of data, networks and metrics, each by a name of its own.

All four are made alike, gcflow's own and those of others: a block of options whose fields are its keys in params.yaml,
with its name as the only value of one of them, registered by a decorator. docs/extending.md has an example of each.

Nothing here imports torch, and what does so at the top of its file makes every look at params.yaml a second slower.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Generic, NamedTuple, TypeVar, Union, get_args

from pydantic import Field, TypeAdapter, ValidationError
from pydantic_core import core_schema

from gcflow.options import Options, adapter, misfit

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

    from gcflow.config import NoiseProcess
    from gcflow.oracles import GaussianMixture

T = TypeVar("T", bound=Options)
Class = TypeVar("Class", bound=type[Options])


class Registry(Generic[T]):
    """The registered classes of one kind by their names; called with a class, it registers it.

    As an annotation it makes pydantic read the class that the name says, whenever that was registered.

    Args:
        what: is registered, in words.
        base: class that each derives from.
        key: field whose Literal holds the name, or the names.
        own: modules in which gcflow's own are defined; imported at the first look.
    """

    def __init__(self, what: str, base: type[T], key: str, *own: str) -> None:
        self.what, self.base, self.key, self.own = what, base, key, own
        self.classes: dict[str, type[T]] = {}

    def __call__(self, cls: Class) -> Class:
        """Registers a class.

        Raises:
            TypeError: it is of another kind, or has no name.
            ValueError: its name is taken.
        """
        base: Any = self.base
        if not issubclass(cls, base):
            raise TypeError(f"{cls.__name__} does not derive from {self.base.__name__}")
        field = cls.__pydantic_fields__.get(self.key)
        names = get_args(field.annotation) if field else ()
        if not names:
            raise TypeError(f'{cls.__name__} has no name; give it a field {self.key}: Literal["name"] = "name"')
        self.add(dict.fromkeys(names, cls))
        return cls

    def add(self, classes: dict[str, Any]) -> None:
        """Registers classes by their names.

        Raises:
            ValueError: a name is taken.
        """
        taken = [name for name in classes if name in self.known()]
        if taken:
            raise ValueError(f"there is a {self.what} {taken[0]!r} already; take another name")
        self.classes.update(classes)

    def known(self) -> dict[str, type[T]]:
        """Every class by its name: gcflow's own first."""
        for module in self.own:
            import_module(module)
        # By module, whichever of them was imported first.
        places = {module: place for place, module in enumerate(self.own)}
        listed = sorted(self.classes.items(), key=lambda item: places.get(item[1].__module__, len(places)))
        self.classes = dict(listed)
        return self.classes

    def __getitem__(self, name: object) -> type[T]:
        """The class of a name; otherwise as `named`."""
        return self.named(name, self.key)

    def named(self, name: object, key: str) -> type[T]:
        """The class of a name that stands under `key`.

        Raises:
            ValidationError: there is none, in an error of type `unknown_name`; it lists those there are.
        """
        known = self.known()
        if not isinstance(name, str) or name not in known:
            listed = ", ".join(map(repr, known)) or f"none; no extension registers a {self.what}"
            raise misfit(key, name, listed, "unknown_name")
        return known[name]

    def of(self, options: Any) -> T:
        """The block that options [name, keys] give; a block itself is one.

        Raises:
            ValidationError: its name is unknown, or its keys are not those of the class.
        """
        if isinstance(options, self.base):
            return options
        if not isinstance(options, dict) or self.key not in options:
            kind: Any = "missing" if isinstance(options, dict) else "dict_type"
            loc = (self.key,) if isinstance(options, dict) else ()
            raise ValidationError.from_exception_data(self.what, [{"type": kind, "loc": loc, "input": options}])
        cls: Any = self[options[self.key]]
        # Through JSON, in which a tuple is a list.
        block: T = adapter(cls).validate_json(json.dumps(options))
        return block

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        return core_schema.no_info_plain_validator_function(self.of)

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> Any:
        classes = tuple(dict.fromkeys(self.known().values()))
        if not classes:
            return {"type": "object", "required": [self.key]}
        one_of: Any = Annotated[Union[classes], Field(discriminator=self.key)]  # noqa: UP007
        return handler(TypeAdapter(one_of).core_schema)


@dataclass(frozen=True)
class CouplingContext:
    """What a coupling may look at besides data and noise when it predicts endpoints.

    sigma_low: [B], the lower noise level of each sample's interval, or a denoiser's only one.
    take_gc: [B] bool on the CPU, which samples take a predicted endpoint: each with probability mu.
    predict: endpoint predictor g(x_t [B', ...], sigma [B']) -> endpoint [B', ...], without gradient.
    multiple: B' is rounded up to a multiple of this, so that a compiled predictor sees few shapes.
    dropout: int32 [B], keys of a predictor in training, whose third argument are those of its samples; else None.
    """

    sigma_low: "Tensor"
    take_gc: "Tensor"
    predict: "Callable[..., Tensor]"
    multiple: int = 1
    dropout: "Tensor | None" = None


class Coupling(Options):
    """Which clean endpoint goes with which noise: overrides `assignment`, or `endpoints`, or neither.

    Its name is its field `kind`. One that predicts endpoints takes the keys `mu` and `predictor` of a method, as `gc`
    does.
    """

    def assignment(self, x: "Tensor", z: "Tensor", uniform: "Tensor") -> "Tensor":
        """The index of the noise that each sample takes, int64 [B] on the CPU; noises may repeat.

        Computed ahead in a thread, beside the steps before. It must be a function of its arguments alone.

        Args:
            x: data in model space, [B, ...], on the device. B is the global batch, whatever the number of processes,
                or with `assignment: rank` this process's share of it.
            z: standard normal noise, [B, ...].
            uniform: float64 [B] on the CPU, in [0, 1): each a function of seed, step and the sample's place in the
                global batch alone. The only randomness that a coupling has.
        """
        raise NotImplementedError

    def endpoints(self, x: "Tensor", z: "Tensor", context: CouplingContext) -> "Tensor":
        """The endpoints in the place of x, [B, ...], without gradient; called for each micro-batch of each process."""
        raise NotImplementedError

    @property
    def assigns(self) -> bool:
        """Whether it re-pairs the noises."""
        return type(self).assignment is not Coupling.assignment

    @property
    def predicts(self) -> bool:
        """Whether it replaces endpoints."""
        return type(self).endpoints is not Coupling.endpoints


class RawData(NamedTuple):
    """samples: uint8 [n, C, H, W] or float32 [n, d]. labels: int64 [n]. provenance: source and transform, in words.

    held_out: what is kept from training, as samples are, or None if the source has no such split.
    """

    samples: "np.ndarray"
    labels: "np.ndarray"
    provenance: dict[str, str]
    held_out: "np.ndarray | None" = None


class Source(Options):
    """Where samples come from. Its name is its field `source`.

    shape: of one sample: [C, H, W] of an image, whose values are stored as uint8, or [d] of a point, as float32.
    count: samples to train on; None if that is not known before they are read. Both are fields or properties.
    """

    if TYPE_CHECKING:

        @property
        def shape(self) -> tuple[int, ...]:
            """See above."""

        @property
        def count(self) -> int | None:
            """See above."""

    def timing_samples(self) -> "np.ndarray":
        """Samples to time a recipe on, at any time."""
        raise NotImplementedError

    def exact_mixture(self, data: "Tensor", process: "NoiseProcess") -> "GaussianMixture":
        """The distribution in model space, by default the empirical one of the prepared data."""
        from gcflow.oracles import empirical
        from gcflow.preconditioning import to_model_space

        return empirical(to_model_space(data, process))


class SmallSource(Source):
    """A source that is at hand at any time, and as a whole."""

    def load(self) -> RawData:
        """All of it; the same at every call."""
        raise NotImplementedError

    def timing_samples(self) -> "np.ndarray":
        """Its own, as `load` gives them."""
        return self.load().samples


class Network(Options):
    """The network inside the preconditioning. Its name is its field `architecture`.

    A field `dropout` may differ between a run and the run that it starts from.
    """

    if TYPE_CHECKING:

        @property
        def architecture(self) -> str:
            """See above."""

    def build(self, shape: tuple[int, ...]) -> "nn.Module":
        """The untrained network for samples of `shape`, a function of torch's global generator alone.

        It maps (x [B, ...], c_noise [B], dropout keys int32 [B] or None) to the shape of x. Dropout is a function of
        the keys (`gcflow.dropout`); a network without it ignores them.

        Raises:
            ValueError: it does not fit samples of this shape.
        """
        raise NotImplementedError


class Metric(Options):
    """How generated samples compare with real ones, in the features of their data set. Its name is its field `kind`.

    columns: each number's name (a-z, 0-9, -) to its heading in tables, with the direction of better.
    """

    columns: ClassVar[dict[str, str]]

    def compare(self, generated: "Tensor", real: "Tensor") -> dict[str, float]:
        """A number for each of `columns`.

        Args:
            generated: features [n, F].
            real: features [m, F], of the same type and device. Of Inception's, at most 50,000 of either are given.
        """
        raise NotImplementedError


coupling = Registry("coupling", Coupling, "kind", "gcflow.couplings")
source = Registry("source", Source, "source", "gcflow.sources", "gcflow.archives.sources")
network = Registry("network", Network, "architecture", "gcflow.config")
metric = Registry("metric", Metric, "kind")
TABLES: tuple[Registry[Any], ...] = (coupling, source, network, metric)
