"""docs/params.md and params.schema.json say what the models say."""

import copy
import json

import pytest
from jsonschema import Draft202012Validator
from projects import ROOT, tiny_params

from gcflow.pipeline.keys import json_schema, main, page
from gcflow.pipeline.params import Params, read_yaml
from gcflow.pipeline.schema import Claims


@pytest.fixture(scope="module")
def schema():
    # Without the extensions of any project read before.
    Params(ROOT / "params.yaml")
    return json_schema()


def errors(schema, document):
    return [".".join(map(str, error.absolute_path)) for error in Draft202012Validator(schema).iter_errors(document)]


def test_the_page_and_the_schema_in_the_repository_are_those_of_the_models(schema):
    assert json.loads((ROOT / "params.schema.json").read_text()) == schema, "run make keys"
    assert json.loads((ROOT / "claims.schema.json").read_text()) == json_schema(Claims), "run make keys"
    assert (ROOT / "docs" / "params.md").read_text() == page(), "run make keys"
    assert (ROOT / "params.yaml").read_text().startswith("# yaml-language-server: $schema=params.schema.json\n")


def test_every_key_has_a_meaning_and_every_block_a_sentence(schema):
    blocks = {"Document": schema} | schema["$defs"]
    assert len(blocks) > 30
    for name, block in blocks.items():
        assert block["description"].endswith("."), name
        for key, value in block["properties"].items():
            # Where there is one value, it is the block's name.
            assert "const" in value or len(value["description"]) > 4, f"{name}.{key}"


@pytest.mark.parametrize("file", ["params.yaml", "benchmarks/cifar10.yaml"])
def test_the_schema_accepts_what_the_models_accept(schema, file):
    Draft202012Validator.check_schema(schema)
    assert errors(schema, read_yaml(ROOT / file)) == []
    assert errors(schema, tiny_params()) == []
    assert errors(json_schema(Claims), read_yaml(ROOT / "claims.yaml")) == []


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("training.steps", 0),
        ("training.stepps", 3),
        ("training.distance", "l1"),
        ("training.schedule", {"s0": 4}),
        ("training.schedule", {"kind": "ect", "s0": 4}),
        ("network.dropout", 1.0),
        ("methods.gc.mu", 1.5),
        ("methods.gc.mu", [0.0, 0.5, 1.0]),
        ("methods.Upper", {"objective": "consistency"}),
        ("data", {"source": "digit"}),
        ("features.kind", "nope"),
    ],
)
def test_the_schema_refuses_what_the_models_refuse(schema, key, value):
    document = copy.deepcopy(tiny_params())
    *above, last = key.split(".")
    block = document["datasets"]["digits"]
    for part in above:
        block = block[part]
    block[last] = value
    (place,) = errors(schema, document)
    assert key.startswith(place.removeprefix("datasets.digits.").rstrip("."))


def test_the_schema_of_a_project_knows_its_extensions(tmp_path):
    for file in ("params.yaml", "sinkhorn.py", "continuous.py", "rings.py", "convolutional.py", "coverage.py"):
        (tmp_path / file).write_bytes((ROOT / "examples" / file).read_bytes())
    main(tmp_path / "params.yaml")
    schema = json.loads((tmp_path / "params.schema.json").read_text())
    document = read_yaml(tmp_path / "params.yaml")
    assert errors(schema, document) == []
    document["datasets"]["rings"]["methods"]["sinkhorn"]["coupling"]["epsilon"] = 0
    assert errors(schema, document) == ["datasets.rings.methods.sinkhorn.coupling"]
    assert not (tmp_path / "docs").exists()
