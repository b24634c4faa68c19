"""The registry: which couplings, objectives, schedules, networks, sources and metrics there are, by name.

All are made alike, gcflow's own and those of others: a frozen dataclass derived from its contract, whose fields are its
keys in params.yaml, with its name as the only value of one of them, registered by a decorator. Each contract stands
beside gcflow's own implementations, in the module that has them. docs/extending.md has an example of each.
"""

import json
from dataclasses import is_dataclass
from functools import cache
from typing import Any, TypeVar, get_args, get_type_hints

Class = TypeVar("Class", bound=type[Any])


class UnknownName(ValueError):
    """A name that nothing is registered under; begins with the key."""


class Table:
    """The registered classes of one kind by their names; called with a class, it registers it.

    Args:
        what: is registered, in words.
        key: field whose Literal holds the name, or the names.
    """

    def __init__(self, what: str, key: str) -> None:
        self.what, self.key = what, key
        self.base: type[Any] = object
        self.classes: dict[str, type[Any]] = {}

    def contract(self, cls: Class) -> Class:
        """Makes a class the one that each registered class derives from."""
        self.base = cls
        return cls

    def __call__(self, cls: Class) -> Class:
        """Registers a class.

        Raises:
            TypeError: it is no dataclass of the right kind, or has no name.
            ValueError: its name is taken.
        """
        if not (issubclass(cls, self.base) and is_dataclass(cls)):
            raise TypeError(f"{cls.__name__} is no dataclass derived from {self.base.__name__}")
        names = get_args(get_type_hints(cls).get(self.key))
        if not names:
            raise TypeError(f'{cls.__name__} has no name; give it a field {self.key}: Literal["name"] = "name"')
        self.add(dict.fromkeys(names, cls))
        return cls

    def add(self, classes: dict[str, type[Any]]) -> None:
        """Registers classes by their names.

        Raises:
            ValueError: a name is taken.
        """
        taken = [name for name in classes if name in self.classes]
        if taken:
            raise ValueError(f"there is a {self.what} {taken[0]!r} already; take another name")
        self.classes.update(classes)

    def __getitem__(self, name: object) -> type[Any]:
        """The class of a name.

        Raises:
            UnknownName: there is none; the message lists those there are.
        """
        if not isinstance(name, str) or name not in self.classes:
            listed = ", ".join(map(repr, self.classes)) or f"none; no extension registers a {self.what}"
            raise UnknownName(f"{self.key} is {name!r}: expected {listed}")
        return self.classes[name]

    def __contains__(self, name: str) -> bool:
        return name in self.classes

    def of(self, options: dict[str, Any]) -> Any:
        """An instance by its name and options: the inverse of `gcflow.config.to_dict`.

        Raises:
            UnknownName: see `__getitem__`.
            TypeError: options that the class has not.
        """
        plain = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
        return self[options.get(self.key)](**plain)

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        """Makes pydantic take the class that the name says; the core does without pydantic."""
        from pydantic_core import PydanticCustomError, core_schema

        def validated(options: Any) -> Any:
            if not isinstance(options, dict):
                raise PydanticCustomError("mapping_type", "Input should be a mapping with {key}", {"key": self.key})
            if self.key not in options:
                raise ValueError(f"{self.key} is missing")
            # As JSON, in which a tuple is a list.
            cls: Any = self[options[self.key]]
            return _adapter(cls).validate_json(json.dumps(options))

        return core_schema.no_info_plain_validator_function(validated)


@cache
def _adapter(cls: type[Any]) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(cls)


coupling = Table("coupling", "kind")
objective = Table("objective", "kind")
schedule = Table("schedule", "kind")
network = Table("network", "architecture")
source = Table("source", "source")
metric = Table("metric", "kind")
TABLES = (coupling, objective, schedule, network, source, metric)
