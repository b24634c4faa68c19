"""The registry: which couplings, objectives, schedules, networks, sources and metrics there are, by name.

All are made alike, gcflow's own and those of others: a block of options derived from its contract, whose fields are its
keys in params.yaml, with its name as the only value of one of them, registered by a decorator. Each contract stands
beside gcflow's own implementations, in the module that has them. docs/extending.md has an example of each.
"""

import json
from typing import Annotated, Any, TypeVar, Union, get_args

from pydantic import Field, TypeAdapter, ValidationError
from pydantic_core import core_schema

from gcflow.options import Options, adapter, misfit, require

Class = TypeVar("Class", bound=type[Options])


class Registry:
    """The registered classes of one kind by their names; called with a class, it registers it.

    As an annotation it makes pydantic read the class that the name says, whenever that was registered.

    Args:
        what: is registered, in words.
        key: field whose Literal holds the name, or the names.
        by_name: a name alone stands for a block with the defaults of its options.
    """

    def __init__(self, what: str, key: str, by_name: bool = False) -> None:
        self.what, self.key, self.by_name = what, key, by_name
        self.base: type[Any] = Options
        self.classes: dict[str, type[Any]] = {}

    def contract(self, cls: Class) -> Class:
        """Makes a class the one that each registered class derives from."""
        self.base = cls
        return cls

    def __call__(self, cls: Class) -> Class:
        """Registers a class.

        Raises:
            TypeError: it is of another kind, or has no name.
            ValueError: its name is taken.
        """
        if not issubclass(cls, self.base):
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
        taken = [name for name in classes if name in self.classes]
        if taken:
            raise ValueError(f"there is a {self.what} {taken[0]!r} already; take another name")
        self.classes.update(classes)

    def named(self, name: object, key: str = "") -> type[Any]:
        """The class of a name, which stands under `key`.

        Raises:
            ValidationError: there is none, in an error of type `unknown_name`; it lists those there are.
        """
        if not isinstance(name, str) or name not in self.classes:
            listed = ", ".join(map(repr, self.classes)) or f"none; no extension registers a {self.what}"
            raise misfit(key, name, listed, "unknown_name")
        return self.classes[name]

    def of(self, options: Any) -> Any:
        """The block that options [name, keys] give, or with `by_name` a name alone; a block itself is one.

        Raises:
            ValidationError: its name is unknown, or its keys are not those of the class.
        """
        if isinstance(options, self.base):
            return options
        if self.by_name and isinstance(options, str):
            cls: Any = self.named(options)
            needed = _required(cls)
            block = f"{{{self.key}: {options}, ...}}"
            require(not needed, "", options, f"{block}, because it has options without a default: {', '.join(needed)}")
            return cls(**{self.key: options})
        if not isinstance(options, dict) or self.key not in options:
            kind: Any = "missing" if isinstance(options, dict) else "dict_type"
            loc = (self.key,) if isinstance(options, dict) else ()
            raise ValidationError.from_exception_data(self.what, [{"type": kind, "loc": loc, "input": options}])
        cls = self.named(options[self.key], self.key)
        # Through JSON, in which a tuple is a list.
        return adapter(cls).validate_json(json.dumps(options))

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        return core_schema.no_info_plain_validator_function(self.of)

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> Any:
        classes = tuple(dict.fromkeys(self.classes.values()))
        if not classes:
            return {"type": "object", "required": [self.key]}
        one_of: Any = Annotated[Union[classes], Field(discriminator=self.key)]  # noqa: UP007
        blocks = handler(TypeAdapter(one_of).core_schema)
        names = [name for name, cls in self.classes.items() if not _required(cls)]
        return {"anyOf": [{"enum": names}, blocks]} if self.by_name else blocks


def _required(cls: type[Any]) -> list[str]:
    return [option for option, field in cls.__pydantic_fields__.items() if field.is_required()]


coupling = Registry("coupling", "kind", by_name=True)
objective = Registry("objective", "kind", by_name=True)
schedule = Registry("schedule", "kind")
network = Registry("network", "architecture")
source = Registry("source", "source")
metric = Registry("metric", "kind")
TABLES = (coupling, objective, schedule, network, source, metric)
