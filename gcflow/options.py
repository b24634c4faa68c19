"""What every block of options has in common, in params.yaml and in Python, and how its mistakes are told."""

import re
from collections.abc import Iterable
from dataclasses import fields
from difflib import get_close_matches
from functools import cache, wraps
from typing import Annotated, Any, ClassVar, TypeVar, dataclass_transform

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

Count = Annotated[int, Field(ge=1, le=10**6)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
# Of steps, images and other things of which there may be very many.
Many = Annotated[int, Field(ge=1, le=10**9)]
# Of noise and of the data's scale: the squares of larger ones do not fit single precision.
Level = Annotated[float, Field(gt=0, le=10**6)]
# Of numbers with either sign.
Real = Annotated[float, Field(ge=-(10**6), le=10**6)]


def _one_line(text: str) -> str:
    if len(text.splitlines()) != 1 or "\t" in text:
        raise PydanticCustomError("line", "expected text in one line")
    return text


def _different(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if len(set(values)) < len(values):
        raise PydanticCustomError("repeated", "expected each only once")
    return values


Line = Annotated[str, AfterValidator(_one_line)]


def _drawable(text: str) -> str:
    # matplotlib's own font ends before the scripts of East Asia, and its legends leave out what begins with `_`.
    if text.startswith("_") or max(text, default="") >= "\u2e80":
        raise PydanticCustomError("drawn", "expected text that figures can draw: no leading _, no East Asian script")
    return text


Drawn = Annotated[Line, AfterValidator(_drawable)]
Values = TypeVar("Values", bound=tuple[Any, ...])
Different = Annotated[Values, AfterValidator(_different)]
# What is expected where a value is outside its limits, or of another form, by the type of pydantic's error.
LIMITS = {
    "greater_than": "a number > {gt:g}",
    "greater_than_equal": "a number >= {ge:g}",
    "less_than": "a number < {lt:g}",
    "less_than_equal": "a number <= {le:g}",
    "too_short": "at least {min_length} of them",
    "too_long": "at most {max_length} of them",
    "string_too_long": "at most {max_length} characters",
}
SHOWN = 200
FORMS = {
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "dataclass_type": "a mapping",
    "union_tag_invalid": "{expected_tags}",
}
# What is a number without its quotes.
NUMBERS = {"int_type": r"[-+]?[1-9]\d*|0", "float_type": r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?"}


@dataclass_transform(frozen_default=True, field_specifiers=(Field,))
class Options:
    """A block of options: each subclass is a frozen dataclass of pydantic, whose fields are its keys.

    Types, ranges and names are checked at construction, from a file and in Python alike, also by
    `dataclasses.replace`, which pydantic's models have no like of.
    """

    __pydantic_fields__: ClassVar[dict[str, FieldInfo]]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, validate_default=True)
        dataclass(frozen=True, config=config)(cls)
        checked: Any = cls.__init__

        @wraps(checked)
        def by_name(self: Any, *values: Any, **options: Any) -> None:
            names = cls.__pydantic_fields__ if len(values) <= len(cls.__pydantic_fields__) else ()
            checked(self, *values[len(names) :], **dict(zip(names, values, strict=False)), **options)

        # Given by place, a value would be refused by its number.
        cls.__init__ = by_name  # type: ignore[method-assign]


@cache
def adapter(kind: Any) -> "TypeAdapter[Any]":
    """What pydantic makes of a type; it takes longer to build than to read a hundred runs with it."""
    return TypeAdapter(kind)


def misfit(key: str, value: object, expected: str, kind: str = "misfit") -> ValidationError:
    """The error of a value that does not fit; `key` is dotted, seen from what raises it, whose own value has none."""
    text = PydanticCustomError(kind, "expected {expected}", {"expected": expected, "key": key})
    loc = tuple(filter(None, key.split(".")))
    return ValidationError.from_exception_data(key, [{"type": text, "loc": loc, "input": value}])


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


def choice_of(word: object, known: Iterable[object]) -> str:
    """What there is in place of a word that is not among it, to end a message with."""
    names = list(map(str, known))
    return f"known: {', '.join(names) or 'none'}{suggestion(word, names)}"


def mistakes(error: ValidationError, document: Any = None, prefix: tuple[str, ...] = ()) -> list[str]:
    """One line per mistake: its key, the value there, what is expected, and what may have been meant.

    Of a union's branches the one that got deepest speaks: to a key within, or to a value of the right type; equals are
    joined by `or`.

    Args:
        error: of pydantic.
        document: what was read; None for options that were given in Python.
        prefix: key of the document in its file.
    """
    found: dict[tuple[str, ...], list[Any]] = {}
    for item in error.errors():
        found.setdefault((*prefix, *_key(item, document)), []).append(item)
    lines = []
    for key, items in found.items():
        if not any(other[: len(key)] == key and other != key for other in found):
            chosen = [item for item in items if item["type"] in LIMITS] or items
            lines.append(f"{'.'.join(key)} {_problem(chosen)}")
    return lines


def _key(error: Any, document: Any) -> tuple[str, ...]:
    """The key of one error as it stands in the document, without the names of the branches of unions."""
    context, loc = error.get("ctx", {}), error["loc"]
    # What `misfit` names need not stand in the document.
    own = tuple(filter(None, context.get("key", "").split(".")))
    path, here = [], document
    for place, part in enumerate(loc[: len(loc) - len(own)]):
        if _has(here, part):
            here = here[part]
            path.append(str(part))
        elif part != "[key]" and (document is None or (error["type"] == "missing" and place == len(loc) - 1)):
            path.append(str(part))
    if error["type"] == "string_pattern_mismatch" and loc[-1] == "[key]":
        path.pop()
    tag = (context["discriminator"].strip("'"),) if error["type"].startswith("union_tag") else ()
    return (*path, *own, *tag)


def _has(document: Any, part: Any) -> bool:
    within = isinstance(document, list) and isinstance(part, int) and part < len(document)
    return within or (isinstance(document, dict) and part in document)


def _problem(items: list[Any]) -> str:
    """What is wrong at one key, told by the errors of all branches there."""
    first = items[0]
    kind, value, context = first["type"], first["input"], first.get("ctx", {})
    if kind in ("missing", "union_tag_not_found"):
        return "is missing"
    if kind == "unexpected_keyword_argument":
        word, known = first["loc"][-1], {field.name for block in blocks() for field in fields(block)}
        # One that another block has is not mistyped.
        return f"is not a known key{'' if word in known else suggestion(word, sorted(known))}"
    if kind == "string_pattern_mismatch" and first["loc"][-1] == "[key]":
        return f"has {value!r}, expected names of a-z, 0-9 and -"
    if kind == "union_tag_invalid":
        value = context["tag"]
    expected = " or ".join(dict.fromkeys(map(_expected, items)))
    hint = suggestion(value, re.findall(r"'([^']*)'", expected))
    if isinstance(value, str) and re.fullmatch(NUMBERS.get(kind, "(?!)"), value):
        hint = "; remove the quotes"
    shown = repr(value)
    return f"is {shown if len(shown) <= SHOWN else f'{shown[:SHOWN]}...'}, expected {expected}{hint}"


def _expected(error: Any) -> str:
    words = LIMITS | FORMS
    if error["type"] in words:
        return words[error["type"]].format(**error.get("ctx", {}))
    return str(error["msg"]).removeprefix("Input should be ").removeprefix("expected ")


def blocks(above: Any = Options) -> list[Any]:
    """Every block of options that has been defined, below one."""
    return [found for child in above.__subclasses__() for found in (child, *blocks(child))]
