"""Every key of params.yaml and claims.yaml, from the blocks that read them: JSON schemas for editors, and a page.

`make keys`, or `python -m gcflow.pipeline.keys [PARAMS]`, writes params.schema.json and claims.schema.json beside a
params.yaml, with what its extensions register, and, where there is a folder docs, docs/params.md.
"""

import json
import sys
from pathlib import Path
from typing import Any

from pydantic.json_schema import GenerateJsonSchema

from gcflow.files import write_text
from gcflow.options import adapter
from gcflow.pipeline.params import Params
from gcflow.pipeline.schema import Claims, Document
from gcflow.readable import number

FILES: dict[str, Any] = {"params": Document, "claims": Claims}

INTRODUCTION = """\
# Keys of params.yaml and claims.yaml

Written by `make keys` from the blocks that read them (`gcflow/config.py`, `gcflow/pipeline/schema.py`). Unknown keys,
values of another type and values outside their range are refused by file and key before anything is scheduled. An
editor that speaks YAML shows the same from `params.schema.json`. `empty` stands for a block with its own defaults.
"""


class _Generator(GenerateJsonSchema):
    """Without titles, which would repeat the keys; names that are refused when they are read are so here."""

    def dict_schema(self, schema: Any) -> Any:
        mapping = super().dict_schema(schema)
        return mapping | ({"additionalProperties": False} if "patternProperties" in mapping else {})

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def json_schema(file: Any = Document) -> dict[str, Any]:
    """The JSON schema of a file, with every class that is registered by now."""
    schema = adapter(file).json_schema(schema_generator=_Generator)
    for union, name in _unions(schema):
        for branch in _references(union):
            # In Python a block's name is its default; in a file it says which block it is.
            block = schema["$defs"][branch]
            block["required"] = list(dict.fromkeys([*block.get("required", []), name]))
    return {"$schema": GenerateJsonSchema.schema_dialect, **schema}


def page() -> str:
    """All blocks, from the whole files down, with a row for each key."""
    text = [INTRODUCTION]
    for name, file in FILES.items():
        schema = json_schema(file)
        blocks = schema["$defs"]
        text += _block(f"{name}.yaml", schema)
        for block in dict.fromkeys(_below(schema, blocks)):
            text += _block(block, blocks[block])
    return "\n".join(text)


def _below(schema: dict[str, Any], blocks: dict[str, Any]) -> list[str]:
    found = []
    for name in _references(schema.get("properties", {})):
        found += [name, *_below(blocks[name], blocks)]
    return found


def _unions(schema: Any) -> list[tuple[Any, str]]:
    """Every union in a schema that a key decides, with that key."""
    if isinstance(schema, list):
        return [found for part in schema for found in _unions(part)]
    if not isinstance(schema, dict):
        return []
    own = [(schema["oneOf"], schema["discriminator"]["propertyName"])] if "discriminator" in schema else []
    return own + [found for part in schema.values() for found in _unions(part)]


def _references(schema: Any) -> list[str]:
    if isinstance(schema, list):
        return [name for part in schema for name in _references(part)]
    if not isinstance(schema, dict):
        return []
    # The mapping of a discriminator repeats its branches.
    own = [schema["$ref"].rpartition("/")[2]] if "$ref" in schema else []
    return own + [name for key, part in schema.items() if key != "discriminator" for name in _references(part)]


def _block(name: str, schema: dict[str, Any]) -> list[str]:
    rows = ["| key | value | default | meaning |", "| --- | --- | --- | --- |"]
    for key, part in schema["properties"].items():
        default = f"`{json.dumps(part['default'])}`" if "default" in part else "empty"
        shown = "required" if key in schema.get("required", ()) else default
        meaning = part.get("description", "says that it is this block")
        rows.append(f"| `{key}` | {_value(part)} | {shown} | {meaning} |")
    description = schema.get("description", "")
    return [f"## {name}", "", description, "", *(rows if schema["properties"] else []), ""]


def _value(schema: dict[str, Any]) -> str:
    """What a key may have as its value, in words."""
    branches = schema.get("anyOf") or schema.get("oneOf")
    words = [schema["const"]] if "const" in schema else schema.get("enum")
    if branches:
        text = " or ".join(dict.fromkeys(map(_value, branches)))
    elif "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        text = f"[{name}](#{name.lower()})"
    elif words:
        text = ", ".join(f"`{word}`" for word in words)
    elif "prefixItems" in schema:
        text = f"[{', '.join(map(_value, schema['prefixItems']))}]"
    elif "items" in schema:
        text = f"list of {_value(schema['items'])}" + (", not empty" if schema.get("minItems") else "")
    elif schema.get("type") == "object":
        values = [*schema.get("patternProperties", {}).values(), schema.get("additionalProperties")][0]
        text = f"mapping of names to {_value(values)}" if isinstance(values, dict) else "mapping"
    else:
        limits = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
        ranges = " and ".join(f"{sign} {number(schema[limit])}" for limit, sign in limits.items() if limit in schema)
        kind = schema.get("type", "anything")
        named = {"string": "text", "boolean": "`true`, `false`", "null": "`null`"}
        text = f"{named.get(kind, kind)} {ranges}".strip()
    return text


def main(params: Path = Path("params.yaml")) -> None:
    """Writes the schemas beside params.yaml, and the page where there is a folder for it."""
    Params(params)
    for name, file in FILES.items():
        schema = json.dumps(json_schema(file), indent=1, ensure_ascii=False)
        write_text(params.parent / f"{name}.schema.json", schema + "\n")
    if (params.parent / "docs").is_dir():
        write_text(params.parent / "docs" / "params.md", page())


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
