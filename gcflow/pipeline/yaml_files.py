"""A file of YAML as plain values: what YAML takes and nobody means is refused by its line."""

import json
import re
from collections import deque
from itertools import accumulate
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.events import CollectionEndEvent, CollectionStartEvent
from ruamel.yaml.nodes import MappingNode, SequenceNode

from gcflow.errors import GcflowError

TAGS = ("map", "seq", "str", "int", "float", "bool", "null", "timestamp", "merge")
# A parser, and an alias of aliases, know no bounds of their own.
DEEPEST, MOST_VALUES = 50, 200_000


def read_yaml(path: Path) -> dict[str, Any]:
    """A file of YAML 1.2, as DVC reads it: 1e-4 is a number, `on` a text. Keys and dates are texts: what JSON can hold.

    Raises:
        GcflowError: it is missing, is no YAML or no mapping, or has what nobody means: a key twice, an octal number.
    """
    yaml = YAML(typ="safe")
    try:
        text = path.read_text(encoding="utf-8")
        steps = (isinstance(e, CollectionStartEvent) - isinstance(e, CollectionEndEvent) for e in yaml.parse(text))
        if any(depth > DEEPEST for depth in accumulate(steps)):
            raise ValueError(f"nested more than {DEEPEST} deep")
        root = yaml.compose(text)
        if not isinstance(root, MappingNode):
            raise GcflowError(f"{path}: expected keys and their values")
        _check(root)
        # Through JSON, so that what an alias repeats is a copy.
        document: dict[str, Any] = json.loads(json.dumps(yaml.constructor.construct_document(root), default=str))
    except FileNotFoundError:
        raise GcflowError(f"{path}: no such file; run in the project's folder or give --params") from None
    except (YAMLError, UnicodeDecodeError, TypeError, ValueError) as error:
        raise GcflowError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    return document


def _check(root: MappingNode) -> None:
    count, waiting = 0, deque[Any]([root])
    while waiting:
        node, count = waiting.popleft(), count + 1
        line, tag = f"line {node.start_mark.line + 1}", str(node.tag).removeprefix("tag:yaml.org,2002:")
        if count > MOST_VALUES:
            raise ValueError(f"{line}: aliases make more than {MOST_VALUES} values of the file")
        if tag not in TAGS:
            raise ValueError(f"{line}: a {tag} is no number, text, list or mapping")
        if tag == "int" and re.fullmatch("[-+]?(0[0-9_]+|[0-9_]{20,})", node.value):
            raise ValueError(
                f"{line}: {node.value[:20]} begins with 0, or has more than 19 digits; write another number"
            )
        if isinstance(node, MappingNode):
            names: set[str] = set()
            for key, _ in node.value:
                if str(key.value) in names:
                    raise ValueError(f"line {key.start_mark.line + 1}: key {key.value!r} stands twice")
                names.add(str(key.value))
            waiting.extend(part for pair in node.value for part in pair)
        elif isinstance(node, SequenceNode):
            waiting.extend(node.value)
