"""Sweeps: a method of params.yaml that stands for several, one for each value of a key or combination of values.

They are expanded before anything else sees the document, so that every method has a name, a folder and a slice of its
own. docs/methods.md has an example.
"""

import copy
import json
import math
from collections.abc import Callable
from itertools import product
from typing import Any

from gcflow.errors import GcflowError

MOST_METHODS = 1000
Values = dict[str, Any]
# (data set, `methods` or `runs`, method) to the swept method that it stands under in the file.
Origins = dict[tuple[str, str, str], str]


def expand_sweeps(document: dict[str, Any]) -> Origins:
    """Puts methods of their own in the place of each swept one: in methods, runs, tables and figures; in place.

    What is no sweep, valid or not, stays as it is.

    Raises:
        GcflowError: a sweep has no values, or gives no name or a taken one; begins with the key.
    """
    origins: Origins = {}
    for dataset, entry in _mapping(document.get("datasets")).items():
        blocks = {block: _mapping(_mapping(entry).get(block)) for block in ("methods", "runs", "tables", "figures")}
        swept: dict[str, dict[str, Values]] = {}
        for method, content in blocks["methods"].items():
            if "sweep" in _mapping(content):
                where = f"datasets.{dataset}.methods.{method}.sweep"
                swept[method] = _points(where, method, content.pop("sweep"), content)
                for block in (block for block in ("methods", "runs") if method in blocks[block]):
                    for name in swept[method]:
                        if name in blocks[block]:
                            raise GcflowError(f"{where} gives {name!r}, which {block} has already")
                        origins[dataset, block, name] = method
        if swept:
            entry["methods"] = _expanded(blocks["methods"], swept, _with_values)
            entry["runs"] = _expanded(blocks["runs"], swept, _labelled)
            for view in (*blocks["tables"].values(), *blocks["figures"].values()):
                if isinstance(_mapping(view).get("methods"), list):
                    view["methods"] = [name for word in view["methods"] for name in swept.get(str(word), [word])]
    return origins


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _expanded(block: dict[str, Any], swept: dict[str, dict[str, Values]], change: Callable[..., Any]) -> dict[str, Any]:
    single: Values = {}
    return {
        name: change(content, values) if values else content
        for method, content in block.items()
        for name, values in swept.get(method, {method: single}).items()
    }


def _points(where: str, method: str, sweep: Any, content: dict[str, Any]) -> dict[str, Values]:
    """The name of each point of a sweep to the values of its keys there."""
    if not _mapping(sweep):
        raise GcflowError(f"{where} is {sweep!r}, expected {{key: [values]}}")
    for key, values in sweep.items():
        if not isinstance(values, list) or not values:
            raise GcflowError(f"{where}.{key} is {values!r}, expected a list of values")
        if any(isinstance(part, dict) for value in values for part in (value if isinstance(value, list) else [value])):
            raise GcflowError(f"{where}.{key} is {values!r}, expected numbers, words or lists of them")
        block = content
        for part in key.split(".")[:-1]:
            block = block.get(part, {})
            if not isinstance(block, dict):
                raise GcflowError(f"{where}.{key} is no key of this method, whose {part} is {block!r}")
    if (number := math.prod(map(len, sweep.values()))) > MOST_METHODS:
        raise GcflowError(f"{where} gives {number} methods, expected at most {MOST_METHODS}")
    points: dict[str, Values] = {}
    for combination in product(*sweep.values()):
        values = dict(zip(sweep, combination, strict=True))
        name = "-".join([method, *(_named(key, value) for key, value in values.items())])
        if name in points:
            raise GcflowError(f"{where} gives {name!r} twice")
        points[name] = values
    return points


def _named(key: str, value: Any) -> str:
    """A key and its value as a part of a name: `mu03` for mu 0.3, `optimizer-adam`; a name has no points."""
    parts = value if isinstance(value, list) else [value]
    words = "-".join(part if isinstance(part, str) else _number(part).replace(".", "") for part in parts)
    between = "" if words[:1].isdigit() else "-"
    return f"{_last(key).replace('_', '-')}{between}{words.removeprefix('-')}"


def _number(value: Any) -> str:
    # 1.0 is 1, as people write it.
    return f"{value:.12g}".replace("+", "") if isinstance(value, float) else json.dumps(value)


def _last(key: str) -> str:
    return key.rpartition(".")[2]


def _with_values(content: dict[str, Any], values: Values) -> dict[str, Any]:
    method = copy.deepcopy(content)
    for key, value in values.items():
        *blocks, last = key.split(".")
        block = method
        for part in blocks:
            block = block.setdefault(part, {})
        block[last] = value
    return method


def _labelled(replicates: Any, values: Values) -> Any:
    if not isinstance(_mapping(replicates).get("label"), str):
        return replicates
    shown = ", ".join(
        f"{_last(key)} = {value if isinstance(value, str) else json.dumps(value)}" for key, value in values.items()
    )
    return replicates | {"label": f"{replicates['label']}, {shown}"}
