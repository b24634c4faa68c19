"""What every block of options has in common, in params.yaml and in Python, and how its mistakes are told."""

import re
from collections.abc import Iterable
from dataclasses import fields
from difflib import get_close_matches
from functools import cache
from typing import Annotated, Any, dataclass_transform

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from pydantic_core import PydanticCustomError

Count = Annotated[int, Field(ge=1)]
# The limits that a field can have, by the type of pydantic's error.
LIMITS = {
    "greater_than": "a number > {gt:g}",
    "greater_than_equal": "a number >= {ge:g}",
    "less_than": "a number < {lt:g}",
    "less_than_equal": "a number <= {le:g}",
    "too_short": "at least {min_length} of them",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "dataclass_type": "a mapping",
}


@dataclass_transform(frozen_default=True, field_specifiers=(Field,))
class Options:
    """A block of options: each subclass is a frozen dataclass of pydantic, whose fields are its keys.

    Types, ranges and names are checked at construction, from a file and in Python alike, also by
    `dataclasses.replace`, which pydantic's models have no like of.
    """

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, validate_default=True)
        dataclass(frozen=True, config=config)(cls)


@cache
def adapter(kind: Any) -> "TypeAdapter[Any]":
    """What pydantic makes of a type; it takes longer to build than to read a hundred runs with it."""
    return TypeAdapter(kind)


def misfit(key: str, value: object, expected: str, kind: str = "misfit") -> ValidationError:
    """The error of a value that does not fit; `key` is dotted, seen from the block that raises it."""
    text = PydanticCustomError(kind, "expected {expected}", {"expected": expected, "key": key})
    return ValidationError.from_exception_data(key, [{"type": text, "loc": tuple(key.split(".")), "input": value}])


def require(condition: bool, key: str, value: object, expected: str) -> None:
    """For `__post_init__`: what the type of one field cannot say.

    Raises:
        ValidationError: `condition` does not hold.
    """
    if not condition:
        raise misfit(key, value, expected)


def suggestion(word: object, known: Iterable[str]) -> str:
    """What a mistyped word may have meant, to end a message with; empty if nothing is near."""
    near = get_close_matches(word, list(known), 1) if isinstance(word, str) else []
    return f"; did you mean {near[0]!r}?" if near else ""


def mistakes(error: ValidationError, document: Any, prefix: tuple[str, ...] = ()) -> list[str]:
    """One line per mistake in a document: key, value, and what is expected there.

    Of a union's branches the one that got deepest speaks; equals are joined by `or`.
    """
    found: dict[tuple[str, ...], dict[str, None]] = {}
    for item in error.errors():
        key, message = _described(item, document)
        found.setdefault((*prefix, *key), {})[message] = None
    lines = []
    for key, messages in found.items():
        if not any(other[: len(key)] == key and other != key for other in found):
            start, _, first = next(iter(messages)).partition(", expected ")
            others = [text.removeprefix(f"{start}, expected ") for text in messages if text.startswith(start)]
            text = f"{start}, expected {' or '.join(others)}" if first else start
            lines.append(f"{'.'.join(key)} {text}")
    return lines


def _described(error: Any, document: Any) -> tuple[tuple[str, ...], str]:
    """The key of one pydantic error as it stands in the document; the value, and what was expected."""
    context = error.get("ctx", {})
    # What `misfit` names need not stand in the document.
    own = tuple(context["key"].split(".")) if "key" in context else ()
    path, here = [], document
    for part in error["loc"][: len(error["loc"]) - len(own)]:
        if isinstance(here, list) and isinstance(part, int) and part < len(here):
            here = here[part]
        elif isinstance(here, dict) and part in here:
            here = here[part]
        elif error["type"] != "missing" or part != error["loc"][-1]:
            continue  # the name of a branch of a union, not a key
        path.append(str(part))
    key = (*path, *own)
    if error["type"] == "missing":
        return key, "is missing"
    if error["type"] == "unexpected_keyword_argument":
        return key, f"is not a known key{suggestion(key[-1], _siblings(error, document))}"
    if error["type"] == "string_pattern_mismatch" and error["loc"][-1] == "[key]":
        return key[:-1], f"has {error['input']!r}, expected names of a-z, 0-9 and -"
    if error["type"].startswith("union_tag"):
        name = context["discriminator"].strip("'")
        if name not in here:
            return (*key, name), "is missing"
        expected = context.get("expected_tags", "a known name")
        return (*key, name), f"is {here[name]!r}, expected {expected}{suggestion(here[name], _quoted(expected))}"
    if error["type"] in LIMITS:
        expected = LIMITS[error["type"]].format(**context)
    else:
        expected = error["msg"].removeprefix("Input should be ").removeprefix("expected ")
    value = error["input"]
    hint = suggestion(value, _quoted(expected))
    if isinstance(value, str) and error["type"] in ("float_type", "int_type") and _is_number(value):
        hint = "; remove the quotes"
    return key, f"is {value!r}, expected {expected}{hint}"


def _quoted(text: str) -> list[str]:
    return re.findall(r"'([^']*)'", text)


def _siblings(error: Any, document: Any) -> list[str]:
    """The keys of the block that has most of those that stand beside an unknown one."""
    beside: Any = document
    for part in error["loc"][:-1]:
        if (isinstance(beside, dict) and part in beside) or (isinstance(beside, list) and isinstance(part, int)):
            beside = beside[part]
    names = [[field.name for field in fields(block)] for block in _below(Options)]
    return max(names, key=lambda known: len(set(known) & set(beside)) - len(known) / 1000, default=[])


def _below(block: Any) -> list[Any]:
    return [found for child in block.__subclasses__() for found in (child, *_below(child))]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
