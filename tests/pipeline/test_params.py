import copy
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from builders import load, refusal_of
from hypothesis import assume, given
from hypothesis import strategies as st
from projects import ROOT, tiny_params, write_project
from pydantic import ValidationError
from ruamel.yaml import YAML

from gcflow.config import (
    CheckpointFile,
    EctSchedule,
    EdmSchedule,
    IctSchedule,
    MethodConfig,
    NetworkConfig,
    NoiseProcess,
    RunConfig,
    RunReference,
    TrainingConfig,
    digest,
    from_dict,
    to_dict,
)
from gcflow.errors import GcflowError
from gcflow.options import adapter, blocks, mistakes
from gcflow.pipeline.params import Params, Run
from gcflow.pipeline.stages import Stages
from gcflow.sampling import Sampler

REPOSITORY = ROOT / "params.yaml"
Key = tuple[str | int, ...]


def value_at(document: Any, key: Key) -> Any:
    for part in key:
        document = document[part]
    return document


def changed(key: Key, value: Any, base: dict[str, Any] | None = None) -> dict[str, Any]:
    document = copy.deepcopy(tiny_params() if base is None else base)
    value_at(document, key[:-1])[key[-1]] = value
    return document


def without(key: Key) -> dict[str, Any]:
    document = tiny_params()
    del value_at(document, key[:-1])[key[-1]]
    return document


def dotted(key: Key) -> str:
    return ".".join(map(str, key))


def with_denoiser(changes: dict[str, Any]) -> dict[str, Any]:
    """A document with a denoiser of predicted endpoints, with `changes` of its method."""
    document = tiny_params()
    document["datasets"]["digits"]["methods"]["denoiser-gc"] = DENOISER_GC | changes
    document["datasets"]["digits"]["runs"]["denoiser-gc"] = {"label": "Denoiser, GC", "seeds": [0]}
    return document


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("project")


DIGITS: Key = ("datasets", "digits")
DENOISER_GC: dict[str, Any] = {
    "objective": "denoising",
    "coupling": "gc",
    "mu": 0.5,
    "mu_from_step": 10,
    "predictor": {"method": "ic"},
    "training": {"schedule": {"kind": "edm"}},
}
ALL_DIGITS = ("ic/0", "ic/1", "gc/0", "gc-frozen/0", "cd/0", "denoiser/0", "ect/0", "ect-gc/0")
METHODS: Key = (*DIGITS, "methods")


# The grid.


def test_the_repositorys_own_params_load_and_give_every_run_that_they_list():
    params, document = Params(REPOSITORY), yaml.safe_load(REPOSITORY.read_text())
    expected = [
        f"{dataset}/{method}/{seed}"
        for dataset, entry in document["datasets"].items()
        for method, replicates in entry["runs"].items()
        for seed in replicates["seeds"]
    ]
    assert [run.name for run in params.runs()] == expected
    assert len(set(expected)) == len(expected) > 0
    digests = {digest(to_dict(params.run_config(name))) for name in expected}
    assert len(digests) == len(expected)


def test_runs_are_enumerated_in_the_files_order(folder):
    params = load(folder, tiny_params())
    names = [f"digits/{name}" for name in ALL_DIGITS]
    assert [run.name for run in params.runs()] == [*names, "mixture2d/ic/0"]
    assert [run.name for run in params.runs("digits")] == names
    assert params.parse_run("digits/ic/1") == Run("digits", "ic", 1)


def test_overrides_of_a_method_are_merged_deeply_into_the_blocks_of_the_data_set(folder):
    document = changed((*METHODS, "cd", "training"), {"schedule": {"s1": 12}, "ema_decay": 0.5})
    params = load(folder, document)
    base, cd = params.run_config("digits/ic/0"), params.run_config("digits/cd/0")
    assert base.training.schedule == IctSchedule(s0=4, s1=16, p_mean=-1.1, p_std=2.0)
    assert cd.training.schedule == IctSchedule(s0=4, s1=12, p_mean=-1.1, p_std=2.0)
    assert dataclasses.replace(cd.training, schedule=base.training.schedule, ema_decay=0.9) == base.training
    assert cd.network == base.network
    frozen = params.run_config("digits/gc-frozen/0")
    assert frozen.network == dataclasses.replace(base.network, channels=24)
    assert frozen.training == base.training


def test_a_schedule_of_another_kind_stands_in_the_place_of_the_data_sets_own(folder):
    document = changed((*METHODS, "ect", "training", "schedule"), {"kind": "ect", "stage_every": 20})
    params = load(folder, document)
    assert params.run_config("digits/denoiser/0").training.schedule == EdmSchedule(p_mean=-1.2, p_std=1.2)
    # p_mean and p_std of the data set's block are not among them: they belong to its kind.
    assert params.run_config("digits/ect/0").training.schedule == EctSchedule(stage_every=20)
    assert EctSchedule().p_std == tiny_params()["datasets"]["digits"]["training"]["schedule"]["p_std"]
    document["datasets"]["digits"]["training"]["schedule"]["p_std"] = 1.7
    again = load(folder, document)
    assert again.run_config("digits/ect/0").training.schedule == EctSchedule(stage_every=20)
    assert again.run_config("digits/gc/0").training.schedule == IctSchedule(s0=4, s1=16, p_mean=-1.1, p_std=1.7)


def test_a_method_without_a_preconditioning_has_that_of_its_schedule(folder):
    document = changed((*METHODS, "denoiser", "preconditioning"), "vp")
    for method in ("ect", "ect-gc"):
        document["datasets"]["digits"]["methods"][method]["preconditioning"] = "vp"
    for params, expected in ((load(folder, tiny_params()), "edm"), (load(folder, document), "vp")):
        found = {run.method: params.run_config(run.name).preconditioning for run in params.runs("digits")}
        assert {method: kind for method, kind in found.items() if kind != "consistency"} == {
            "denoiser": expected,
            "ect": expected,
            "ect-gc": expected,
        }


def test_a_run_has_the_values_of_the_file(folder):
    config = load(folder, tiny_params()).run_config("digits/gc/0")
    assert config.name == "digits/gc/0"
    assert config.process == NoiseProcess(0.002, 80.0, 7.0, 0.75, -0.39)
    assert config.network == NetworkConfig("mlp", 16, 1, dropout=0.1)
    assert config.method == MethodConfig("consistency", "gc", mu=(0.0, 1.0), predictor="ema")
    assert (config.training.steps, config.training.batch, config.training.learning_rate) == (40, 16, 1e-3)


def test_references_mean_the_same_seed_and_the_last_step_unless_they_say_more(folder):
    params = load(folder, tiny_params())
    assert params.needed_runs(Run("digits", "gc-frozen", 0)) == {"predictor": (Run("digits", "ic", 0), 20)}
    assert params.needed_runs(Run("digits", "cd", 0)) == {"teacher": (Run("digits", "denoiser", 0), 40)}
    assert params.needed_runs(Run("digits", "ect-gc", 0)) == {"init": (Run("digits", "denoiser", 0), 40)}
    assert params.needed_runs(Run("digits", "gc", 0)) == {}
    seeded = load(folder, changed((*METHODS, "gc-frozen", "predictor"), {"method": "ic", "seed": 1}))
    assert seeded.needed_runs(Run("digits", "gc-frozen", 0)) == {"predictor": (Run("digits", "ic", 1), 40)}


def test_a_denoiser_of_predicted_endpoints_needs_the_run_or_the_file_of_its_predictor(folder):
    document = with_denoiser({"predictor": {"method": "gc-frozen", "step": 20}})
    params, run = load(folder, document), Run("digits", "denoiser-gc", 0)
    assert params.needed_runs(run) == {"predictor": (Run("digits", "gc-frozen", 0), 20)}
    assert params.depth(run) == 2
    # Also of a seed that the grid has not, as those are that undecided claims ask for.
    chain = {Run("digits", method, 7) for method in ("denoiser-gc", "gc-frozen", "ic")}
    assert params.with_needed([Run("digits", "denoiser-gc", 7)]) == chain
    config = params.run_config(run.name)
    assert config.preconditioning == "edm"
    assert config.method == MethodConfig(
        "denoising", "gc", mu=0.5, mu_from_step=10, predictor=RunReference("gc-frozen", 20)
    )
    stage = Stages(params).train(run)
    assert "results/digits/gc-frozen/seed0/snapshots" in stage.deps
    assert stage.slice(params)["datasets.digits.methods.denoiser-gc"]["mu_from_step"] == 10
    order = [stage.name for stage in Stages(params)]
    assert order.index("train@digits-gc-frozen-0") < order.index("train@digits-denoiser-gc-0")
    filed = load(folder, with_denoiser({"predictor": {"file": "consistency.safetensors"}}))
    assert filed.needed_runs(run) == {}
    assert filed.needed_files(run) == {"predictor": "consistency.safetensors"}
    assert "consistency.safetensors" in Stages(filed).train(run).deps


def test_a_denoiser_of_predicted_endpoints_may_teach_and_start_other_runs(folder):
    document = with_denoiser({})
    document["datasets"]["digits"]["methods"]["cd"]["teacher"] = {"method": "denoiser-gc"}
    document["datasets"]["digits"]["methods"]["ect"]["init"] = {"method": "denoiser-gc"}
    params = load(folder, document)
    depths = [params.depth(Run("digits", method, 0)) for method in ("ic", "denoiser-gc", "cd", "ect")]
    assert depths == [0, 1, 2, 2]


def test_a_method_may_need_a_run_or_a_file_in_each_role(folder):
    document = changed((*METHODS, "cd", "teacher"), {"file": "checkpoints/edm.safetensors"})
    document["datasets"]["digits"]["methods"]["cd"]["init"] = {"method": "ic", "step": 20}
    document["datasets"]["digits"]["methods"]["gc-frozen"]["predictor"] = {"file": "consistency.safetensors"}
    document["datasets"]["digits"]["methods"]["ect"]["init"] = {"file": "checkpoints/edm.safetensors"}
    params = load(folder, document)
    cd, frozen, ect = (Run("digits", method, 0) for method in ("cd", "gc-frozen", "ect"))
    assert params.needed_files(cd) == {"teacher": "checkpoints/edm.safetensors"}
    assert params.needed_runs(cd) == {"init": (Run("digits", "ic", 0), 20)}
    assert params.needed_files(frozen) == {"predictor": "consistency.safetensors"}
    assert params.needed_runs(frozen) == params.needed_runs(ect) == {}
    assert params.needed_files(ect) == {"init": "checkpoints/edm.safetensors"}
    assert params.needed_files(Run("digits", "ic", 0)) == {}


def test_references_may_chain_and_depth_counts_the_longest(folder):
    document = changed((*METHODS, "gc", "init"), {"method": "cd"})
    document["datasets"]["digits"]["methods"]["ic"]["init"] = {"file": "start.safetensors"}
    params = load(folder, document)
    depths = {run.name: params.depth(run) for run in params.runs("digits")}
    assert [depths[f"digits/{name}"] for name in ALL_DIGITS] == [0, 0, 2, 1, 1, 0, 1, 1]


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("digits", "is not of the form"),
        ("digits/ic", "is not of the form"),
        ("digits/ic/x", "is not of the form"),
        ("digits/ic/-1", "is not of the form"),
        ("digits/ic/0/0", "is not of the form"),
        ("", "is not of the form"),
        ("cifar/ic/0", "datasets has no 'cifar'; known: digits, mixture2d"),
        ("digits/ot/0", "datasets.digits.runs has no 'ot'; known: ic, gc, gc-frozen, cd, denoiser, ect, ect-gc"),
        ("digits/ic/2", "datasets.digits.runs.ic.seeds has no 2; known: 0, 1"),
    ],
)
def test_a_run_that_does_not_exist_is_refused_with_what_is_known(folder, name, problem):
    params = load(folder, tiny_params())
    with pytest.raises(GcflowError) as caught:
        params.parse_run(name)
    assert problem in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


# Identity.


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ((*DIGITS, "cadence"), {"log_every": 7, "checkpoint_every": 3}),
        ((*DIGITS, "runs", "ic", "label"), "another label"),
        ((*DIGITS, "runs", "ic", "seeds"), [0, 5]),
        ((*DIGITS, "evaluation", "samples"), 128),
        ((*DIGITS, "features", "epochs"), 3),
        ((*DIGITS, "tables", "table1", "title"), "another title"),
        (("tracking", "experiment"), "another"),
        ((*METHODS, "gc", "mu"), 0.25),
        (("datasets", "mixture2d", "training", "steps"), 80),
    ],
)
def test_what_does_not_touch_the_weights_of_a_run_is_no_part_of_its_identity(folder, key, value):
    before = load(folder, tiny_params()).run_config("digits/ic/0")
    after = load(folder, changed(key, value)).run_config("digits/ic/0")
    assert after == before
    assert digest(to_dict(after)) == digest(to_dict(before))


def training_keys() -> list[Key]:
    blocks = [(*DIGITS, name) for name in ("process", "network", "training")]
    values = [key for key, value in walk(tiny_params()) if key[:3] in blocks and isinstance(value, int | float | str)]
    # Another kind has other keys beside it.
    return [key for key in values if key[-1] != "kind"]


def walk(document: Any, key: Key = ()) -> Iterator[tuple[Key, Any]]:
    """Every value of a document below its root, containers included, with its key."""
    if key:
        yield key, document
    children: Any = document.items() if isinstance(document, dict) else ()
    for name, value in enumerate(document) if isinstance(document, list) else children:
        yield from walk(value, (*key, name))


ANOTHER = {
    "architecture": ("ddpm++", "mlp"),
    "optimizer": ("lion", "adam"),
    "learning_rate_decay": ("none", "linear"),
    "distance": ("squared-l2", "pseudo-huber"),
}


@pytest.mark.parametrize("key", training_keys(), ids=dotted)
def test_every_value_of_process_network_and_training_is_part_of_a_runs_identity(folder, key):
    old = value_at(tiny_params(), key)
    if key[-1] == "snapshot_every":
        new = old // 2
    elif isinstance(old, str):
        new = next(v for v in ANOTHER[key[-1]] if v != old)
    else:
        new = old + 1 if isinstance(old, int) else old * 1.01
    before = load(folder, tiny_params()).run_config("digits/ic/0")
    after = load(folder, changed(key, new)).run_config("digits/ic/0")
    assert digest(to_dict(after)) != digest(to_dict(before))


def test_the_kind_of_the_schedule_and_the_way_a_run_starts_are_part_of_its_identity(folder):
    runs = [
        load(folder, document).run_config("digits/ect/0")
        for document in (
            tiny_params(),
            changed((*METHODS, "ect", "training", "schedule", "kind"), "ict"),
            changed((*METHODS, "ect", "init"), {"method": "denoiser", "step": 20}),
            changed((*METHODS, "ect", "init"), {"file": "start.safetensors"}),
            changed((*METHODS, "ect", "init"), None),
        )
        if document["datasets"]["digits"]["methods"]["ect"]["training"]["schedule"].pop("stage_every")
    ]
    assert len({digest(to_dict(config)) for config in runs}) == len(runs)


def finite(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(low, high, allow_nan=False, allow_infinity=False)


NAMES = st.from_regex(r"[a-z0-9-]{1,12}", fullmatch=True)
SEEDS = st.integers(0, 2**31)
MU = finite(0, 1) | st.tuples(finite(0, 1), finite(0, 1))
REFERENCES = st.builds(RunReference, NAMES, st.none() | st.integers(1, 10**6), st.none() | SEEDS)
FILES = st.builds(CheckpointFile, NAMES)
DENSITY = {"p_mean": finite(-5, 5), "p_std": finite(1e-3, 5)}
ICT = st.builds(IctSchedule, s0=st.integers(1, 10), s1=st.integers(10, 2000), **DENSITY)
ECT = st.builds(
    EctSchedule, finite(1.01, 4), finite(0, 20), finite(0, 5), st.none() | st.integers(10**6, 10**7), **DENSITY
)
EDM = st.builds(EdmSchedule, **DENSITY)
PROCESSES = st.builds(
    NoiseProcess,
    sigma_min=finite(1e-6, 1),
    sigma_max=finite(1.5, 1e3),
    rho=finite(1, 20),
    sigma_data=finite(1e-3, 10),
    data_mean=finite(-1, 1),
)
NETWORK = {
    "architecture": st.sampled_from(["ddpm++", "ncsn++", "mlp"]),
    "channels": st.integers(1, 128).map(lambda quarter: 4 * quarter),
    "blocks": st.integers(1, 8) | st.lists(st.integers(1, 8), min_size=1, max_size=4).map(tuple),
    "multipliers": st.lists(st.integers(1, 8), min_size=1, max_size=4).map(tuple),
    "attention": st.lists(st.sampled_from([8, 16, 32]), max_size=2).map(tuple),
    "dropout": finite(0, 0.99) | st.lists(finite(0, 0.99), min_size=1, max_size=4).map(tuple),
    "label_dim": st.integers(0, 1000),
    "augment_dim": st.integers(0, 9),
}
TRAINING = {
    "steps": st.integers(1, 10**7),
    "batch": st.integers(1, 4096),
    "learning_rate": finite(1e-12, 10),
    "snapshot_every": st.integers(1000, 10**7),
    "optimizer": st.sampled_from(["lion", "adam", "radam"]),
    "learning_rate_decay": st.sampled_from(["none", "linear"]),
    "weight_decay": finite(0, 1),
    "gradient_clip": st.none() | finite(1e-6, 100),
    "ema_decay": finite(0, 0.99999),
    "ema_every": st.integers(1, 10),
    "ema_start": st.integers(0, 10**5),
    "ema_ramp_up": st.booleans(),
    "distance": st.sampled_from(["pseudo-huber", "squared-l2"]),
    "huber_c": st.none() | finite(0, 10),
    "grain": st.sampled_from([None, 1]),
    "precision": st.sampled_from(["float32", "tf32", "bfloat16"]),
    "channels_last": st.booleans(),
    "compile": st.sampled_from(["none", "fused", "graph", "default"]),
    "cpu_threads": st.integers(1, 64),
    "schedule": ICT | ECT | EDM,
}
PRECONDITIONINGS = ["edm", "vp", "ve"]
COMMON = {
    "init": st.none() | REFERENCES | FILES,
    "preconditioning": st.none() | st.sampled_from(["consistency", *PRECONDITIONINGS]),
}
CONSISTENCY = st.builds(MethodConfig, st.just("consistency"), st.sampled_from(["ic", "ot"]), **COMMON)
AUGMENTED = st.builds(
    MethodConfig,
    st.just("consistency"),
    st.just("gc"),
    MU,
    predictor=st.sampled_from(["ema", "online"]) | REFERENCES | FILES,
    **COMMON,
)
DISTILLATION = st.builds(MethodConfig, st.just("distillation"), teacher=st.just("exact") | REFERENCES | FILES, **COMMON)
DENOISER = {"init": COMMON["init"], "preconditioning": st.none() | st.sampled_from(PRECONDITIONINGS)}
DENOISING = st.builds(MethodConfig, st.just("denoising"), st.sampled_from(["ic", "ot"]), **DENOISER) | st.builds(
    MethodConfig, st.just("denoising"), st.just("gc"), MU, predictor=REFERENCES | FILES, **DENOISER
)


@st.composite
def networks(draw: st.DrawFn) -> NetworkConfig:
    """Any network: an MLP has no levels, a U-Net one value or one per level."""
    parts = {name: draw(strategy) for name, strategy in NETWORK.items()}
    if parts["architecture"] == "mlp":
        parts |= {"multipliers": (1,), "attention": (), "label_dim": 0, "augment_dim": 0}
    for name in ("blocks", "dropout"):
        if isinstance(parts[name], tuple):
            levels = len(parts["multipliers"])
            parts[name] = parts[name][0] if parts["architecture"] == "mlp" else (parts[name] * levels)[:levels]
    return NetworkConfig(**parts)


@st.composite
def run_configs(draw: st.DrawFn) -> RunConfig:
    """Any run whose schedule fits its objective."""
    method = draw(CONSISTENCY | AUGMENTED | DISTILLATION | DENOISING)
    schedule = EDM if method.objective.kind == "denoising" else ICT
    if method.objective.kind != "denoising" and method.preconditioning != "consistency":
        schedule = ICT | ECT
    training = draw(st.builds(TrainingConfig, **(TRAINING | {"schedule": schedule})))
    if method.coupling.kind == "gc":
        begin = draw(st.none() | st.integers(0, training.steps - 1))
        method = dataclasses.replace(method, mu_from_step=begin)
    return RunConfig(
        dataset=draw(NAMES),
        method_name=draw(NAMES),
        seed=draw(SEEDS),
        process=draw(PROCESSES),
        network=draw(networks()),
        training=training,
        method=method,
    )


RUN_CONFIGS = run_configs()


def test_the_strategies_know_every_field():
    assert {field.name for field in dataclasses.fields(TrainingConfig)} == TRAINING.keys()
    assert {field.name for field in dataclasses.fields(NetworkConfig)} == NETWORK.keys()


@given(config=RUN_CONFIGS)
def test_every_configuration_survives_being_written_and_read(config):
    document = to_dict(config)
    read = from_dict(RunConfig, document)
    assert read == config
    assert digest(to_dict(read)) == digest(document)


def test_a_configuration_written_before_mu_could_begin_late_is_read_as_one_whose_mu_begins_at_once(folder):
    config = load(folder, tiny_params()).run_config("digits/gc/0")
    document = to_dict(config)
    assert document["method"].pop("mu_from_step") is None
    assert from_dict(RunConfig, document) == config


@given(config=RUN_CONFIGS, data=st.data())
def test_the_digest_changes_with_any_value_of_training_or_network(config, data):
    block, strategies = data.draw(st.sampled_from([("training", TRAINING), ("network", NETWORK)]))
    name = data.draw(st.sampled_from(sorted(strategies)))
    value = data.draw(strategies[name])
    old = getattr(config, block)
    assume(value != getattr(old, name))
    try:
        new = dataclasses.replace(config, **{block: dataclasses.replace(old, **{name: value})})
    except ValueError:
        assume(False)
    assert digest(to_dict(new)) != digest(to_dict(config))
    assert new != config


@given(steps=st.integers(1, 500), every=st.integers(1, 600))
def test_snapshot_steps_are_the_multiples_and_the_last_step(steps, every):
    config = TrainingConfig(steps=steps, batch=1, learning_rate=1e-3, snapshot_every=every)
    assert config.snapshot_steps == [k for k in range(1, steps + 1) if k % every == 0 or k == steps]


# Options in Python.


TRAINING_KEYS = {"steps": 1, "batch": 1, "learning_rate": 1e-3, "snapshot_every": 1}
MISTYPED = [
    (TrainingConfig, TRAINING_KEYS | {"distance": "l1"}, "distance is 'l1', expected 'pseudo-huber' or 'squared-l2'"),
    (TrainingConfig, TRAINING_KEYS | {"precision": "fp16"}, "precision is 'fp16', expected 'float32', 'tf32' or "),
    (
        MethodConfig,
        {"objective": "consistancy"},
        "objective is 'consistancy', expected 'consistency', 'distillation', ",
    ),
    (MethodConfig, {"objective": "denoising", "coupling": "gcc"}, "coupling is 'gcc', expected 'ic', 'ot', 'gc'; did"),
    (Sampler, {"name": "euler"}, "name is 'euler', expected 'consistency' or 'heun'"),
    (NoiseProcess, {"sigma_min": 90.0}, "sigma_max is 80.0, expected a number > sigma_min"),
    (NetworkConfig, {"architecture": "mlp", "channels": 16}, "blocks is missing"),
    (IctSchedule, {"s3": 20}, "s3 is not a known key"),
]


@pytest.mark.parametrize(("block", "options", "line"), MISTYPED)
def test_what_a_library_user_mistypes_is_refused_by_its_key(block, options, line):
    with pytest.raises(ValidationError) as caught:
        block(**options)
    (found,) = mistakes(caught.value)
    assert found.startswith(line)


def test_a_value_that_is_given_by_its_place_is_refused_by_its_key():
    for make in (lambda: Sampler("euler"), lambda: RunReference("ic", "last"), lambda: NetworkConfig("mlp", 0, 1)):
        with pytest.raises(ValidationError) as caught:
            make()
        assert mistakes(caught.value)[0].split()[0] in ("name", "step", "channels")
    with pytest.raises(ValidationError, match="Unexpected positional argument"):
        CheckpointFile("a", "b")
    with pytest.raises(TypeError, match="multiple values for keyword argument 'file'"):
        CheckpointFile("a", file="b")


def test_what_is_changed_is_checked_as_what_is_made():
    with pytest.raises(ValidationError):
        dataclasses.replace(IctSchedule(), s0=0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        IctSchedule().s0 = 20


# Refusals, whatever the key.


OVERRIDABLE = tiny_params()
OVERRIDABLE["datasets"]["digits"]["methods"]["cd"]["network"] = {}
OVERRIDABLE["datasets"]["digits"]["methods"]["cd"]["training"] = {"schedule": {"s1": 12}}
LEVELS = [(), *(key for key, value in walk(OVERRIDABLE) if isinstance(value, dict))]
VALUES = [(key, value) for key, value in walk(OVERRIDABLE) if not isinstance(value, dict) or value]
FIELDS = {field.name for block in blocks() for field in dataclasses.fields(block)}
SCALARS = st.none() | st.booleans() | st.integers(-5, 5) | st.floats(-5, 5) | st.text("abc", max_size=3)


@given(level=st.sampled_from(LEVELS), name=st.from_regex(r"[a-z][a-z_]{0,11}", fullmatch=True), value=SCALARS)
def test_any_unknown_key_at_any_level_is_refused_in_one_line_with_file_and_key(folder, level, name, value):
    assume(name not in FIELDS and name not in value_at(OVERRIDABLE, level))
    line = refusal_of(changed((*level, name), value, OVERRIDABLE), folder)
    assert line.startswith(f"{dotted((*level, name))} ")


def wrong_types(key: Key, value: Any) -> list[Any]:
    """Values of other types than the one that stands in the file, and than any other that the key may have."""
    wrong: list[Any] = [True]
    if key[-1] not in ("predictor", "teacher", "init"):
        wrong.append({"x": 1})
    if isinstance(value, int):
        wrong += [2.5, str(value), [value]]
    elif isinstance(value, float):
        wrong += [str(value), "text", [value]]
    elif isinstance(value, str):
        wrong += [3, 2.5, [value]]
    elif isinstance(value, list):
        wrong += [3, 2.5, "text"]
    else:
        wrong = [True, 3, "text", [1]]
    if key[-1] == "watch_every":
        wrong.remove(3)
    optional = (
        "gradient_clip",
        "watch_every",
        "step",
        "paper",
        "reproduces",
        "transport",
        "init",
        "huber_c",
        "stage_every",
    )
    if key[-1] not in optional and key[-2:] != ("predictor", "seed"):
        wrong.append(None)
    return wrong


@given(data=st.data())
def test_any_value_of_a_wrong_type_is_refused_in_one_line_with_file_and_key(folder, data):
    key, value = data.draw(st.sampled_from(VALUES))
    wrong = data.draw(st.sampled_from(wrong_types(key, value)))
    line = refusal_of(changed(key, wrong, OVERRIDABLE), folder)
    assert line.startswith((f"{dotted(key)} ", f"{dotted(key)}."))


OUTSIDE = st.floats(allow_nan=True).filter(lambda mu: not 0 <= mu <= 1)


@given(mu=OUTSIDE | st.tuples(OUTSIDE, finite(0, 1)) | st.tuples(finite(0, 1), OUTSIDE))
def test_mu_outside_0_to_1_is_refused_by_key(folder, mu):
    value = list(mu) if isinstance(mu, tuple) else mu
    line = refusal_of(changed((*METHODS, "gc", "mu"), value), folder)
    assert line.startswith(("datasets.digits.methods.gc.mu is ", "datasets.digits.methods.gc.mu."))


@given(mu=MU)
def test_mu_within_0_to_1_is_accepted_as_it_stands(folder, mu):
    value = list(mu) if isinstance(mu, tuple) else mu
    method = load(folder, changed((*METHODS, "gc", "mu"), value)).run_config("digits/gc/0").method
    assert method.mu == mu
    assert method.mu_range == (mu if isinstance(mu, tuple) else (mu, mu))


# Key below datasets.digits, and values that are refused there.
IMPOSSIBLE = """
process.sigma_min: 0.0, -1.0
process.sigma_max: 0.001, .inf, .nan
process.data_mean: .nan
process.rho: 0.5
process.sigma_data: 0.0
network.architecture: transformer
network.channels: 0, 1000000000000
network.blocks: 0, [2], 1000000000000
network.multipliers: []
network.dropout: 1.0, [0.1]
network.attention: [4]
network.label_dim: -1, 10
network.augment_dim: 9
training.steps: 0
training.batch: -1
training.snapshot_every: 0
training.cpu_threads: 0, 1000000000
training.learning_rate: 0.0, .inf, .nan
training.weight_decay: -0.1
training.gradient_clip: 0.0
training.ema_decay: 1.0
training.ema_every: 0
training.ema_start: -1
training.huber_c: -1.0e-9
training.grain: 0, 5
training.precision: float16
training.compile: fast
training.optimizer: sgd
training.schedule.s0: 0
training.schedule.s1: 3
training.schedule.p_std: 0.0
methods.ect.training.schedule.q: 1.0
methods.ect.training.schedule.k: -1.0
methods.ect.training.schedule.stage_every: 0
methods.ect.training.schedule.p_std: 0.0
methods.denoiser.training.schedule.p_std: 0.0
methods.ect.preconditioning: ddpm
methods.gc.mu_from_step: -1, 2.5, true
cadence.log_every: 0
cadence.checkpoint_every: 0
runs.ic.seeds: [], [0, 0]
features.held_out: 1.0
features.minimum_accuracy: 1.1
features.batch: 1
features: {kind: surrogate, protocols: {}}
evaluation.samples: 1
evaluation.generation_seeds: []
evaluation.intermediate_sigmas: [0.5, 0.8], [-1.0], [0.001], [100.0]
evaluation.heun_steps: 1, 1000000000000
evaluation.grid: 0, 1000000000
evaluation.weights: [raw]
transport.batch_sizes: [3]
transport.samples: 1000000000000
methods.ic.init: {file: ""}
transport.sigmas: []
scale: huge
tables.table1.reproduces: chapter1
"""


@pytest.mark.parametrize("line", IMPOSSIBLE.split("\n")[1:-1])
def test_an_impossible_value_is_refused_by_key(folder, line):
    key, _, values = line.partition(": ")
    place = (*DIGITS, *key.split("."))
    for value in yaml.safe_load(f"[{values}]"):
        assert refusal_of(changed(place, value), folder).startswith(f"datasets.digits.{key}")


def test_each_mistake_has_a_line_of_its_own(folder):
    document = changed((*DIGITS, "training", "steps"), "many")
    document["datasets"]["mixture2d"]["network"]["chanels"] = 3
    with pytest.raises(GcflowError) as caught:
        load(folder, document)
    file = folder / "params.yaml"
    first, second = str(caught.value).splitlines()
    assert first.startswith(f"{file}: datasets.digits.training.steps is 'many'")
    assert second == f"{file}: datasets.mixture2d.network.chanels is not a known key; did you mean 'channels'?"


# Refusals of what does not fit together.


# What is changed below datasets.digits (of a document that has a denoiser of predicted endpoints), and how the line
# begins that refuses it, below the same.
REFUSED = """
network: {architecture: mlp, channels: 16, blocks: 1, label_dim: 1}
    -> network.label_dim is 1, expected no value for an mlp
data: {source: mixture2d, means: [[0.0, 0.0]], std: 0.0, count: 1, seed: 0}
    -> data.std is 0.0, expected a number > 0
data: {source: mixture2d, means: [[0.0, 0.0]], std: 1.0, count: 0, seed: 0}
    -> data.count is 0, expected a number >= 1
data: {source: mixture2d, means: [], std: 1.0, count: 1, seed: 0} -> data.means is [], expected at least 1 of them
data: {source: digit} -> data.source is 'digit', expected 'digits', 'mixture2d'
tables.table1.methods: [ic, ot] -> tables.table1.methods names 'ot'; known: ic, gc, gc-frozen
figures.samples.methods: [nope] -> figures.samples.methods names 'nope'
tables.table1.paper: digits -> tables.table1.paper is 'digits'
tables.table1.paper: cifar10
    -> tables.table1.paper is 'cifar10', but features of kind classifier compare with nothing
tables.table1.protocol: clean -> tables.table1.protocol is 'clean'; known: classifier
tables.table1.published: nobody -> tables.table1.published is 'nobody'; known: table1, table2,
features: {kind: surrogate, protocols: {clean: {}, fine: {score_splits: 65}}}
    -> evaluation.samples is 64, but a protocol
features: {kind: surrogate, protocols: {clean: {reference_images: 3}}}
    -> features.protocols.clean.reference_images is 3, expected a number >= 4
runs.cd.seeds: [0, 3] -> methods.cd.teacher needs run digits/denoiser/3, which runs does not list
runs.ic.seeds: [0, -1] -> runs.ic.seeds.1 is -1, expected a number >= 0
runs.nope: {label: x, seeds: [0]} -> runs.nope names no method
transport.predictor.seed: 9 -> transport.predictor needs run digits/ic/9, which runs does not list
transport.predictor.method: nope -> transport.predictor.method names 'nope', which has no runs
transport.sigmas: [0.0] -> transport.sigmas.0 is 0.0, expected a number > 0
figures.transport-cost.methods: [ic] -> figures.transport-cost.methods is ['ic'], expected none for transport
figures.samples.methods: [] -> figures.samples.methods is [], expected some for samples
methods.Upper: {objective: consistency} -> methods has 'Upper', expected names of a-z, 0-9 and -
methods.a/b: {objective: consistency} -> methods has 'a/b', expected names of a-z, 0-9 and -
methods.ic.sampling_boundary: 0.003
    -> methods.ic.sampling_boundary is 0.003, expected no value but for a consistency model
methods.denoiser.sampling_boundary: 0.003 -> methods.denoiser.sampling_boundary is 0.003, expected no value but
methods.ect.sampling_boundary: 80.0 -> methods.ect.sampling_boundary is 80.0, expected a noise level >= 0 and below
methods.gc-frozen.predictor.method: nope -> methods.gc-frozen.predictor.method names 'nope', which has no runs
methods.gc-frozen.predictor.step: 30
    -> methods.gc-frozen.predictor.step is 30, expected a snapshot step of digits/ic/0: [20, 40]
methods.gc-frozen.predictor.method: denoiser
    -> methods.gc-frozen.predictor.method names 'denoiser', whose objective is denoising
methods.cd.teacher.method: ic -> methods.cd.teacher.method names 'ic', whose objective is consistency
methods.cd.teacher.seed: 7 -> methods.cd.teacher needs run digits/denoiser/7, which runs does not list
methods.ic.mu: 0.5 -> methods.ic.mu is 0.5, expected no value unless coupling is gc
methods.ic.mu_from_step: 5 -> methods.ic.mu_from_step is 5, expected no value unless coupling is gc
methods.cd.mu_from_step: 5 -> methods.cd.mu_from_step is 5, expected no value unless coupling is gc
methods.gc.mu_from_step: 40
    -> methods.gc.mu_from_step is 40, expected less than training.steps, 40, or mu would be 0
methods.ic.predictor: ema -> methods.ic.predictor is 'ema', expected no value unless coupling is gc
methods.ic.teacher: exact -> methods.ic.teacher is 'exact', expected no value unless objective is distillation
methods.ic.coupling: gcc -> methods.ic.coupling is 'gcc', expected 'ic', 'ot', 'gc'; did you mean 'gc'?
methods.gc.predictor: emma
    -> methods.gc.predictor is 'emma', expected 'ema' or 'online' or a mapping; did you mean 'ema'?
methods.gc.predictor: null -> methods.gc.predictor is None, expected ema, online or a run, because coupling is gc
methods.gc: {objective: distillation, teacher: exact, coupling: gc, mu: 0.5, predictor: ema}
    -> methods.gc.coupling is 'gc', expected ic or ot, because objective is distillation
methods.cd.training: {steps: 0} -> methods.cd.training.steps is 0, expected a number >= 1
methods.cd.training: {schedule: {s1: 2}} -> methods.cd.training.schedule.s1 is 2, expected an integer >= s0
methods.gc-frozen.predictor: {method: gc-frozen}
    -> methods.gc-frozen.predictor.method names 'gc-frozen', which itself needs 'gc-frozen'
methods.denoiser.init: {method: ect} -> methods.denoiser.init.method names 'ect', which itself needs 'denoiser'
methods.ic.init: {method: gc, seed: 0}, methods.gc.init: {method: gc-frozen}
    -> methods.ic.init.method names 'gc', which itself needs 'ic'
methods.ect.init: {method: nope} -> methods.ect.init.method names 'nope', which has no runs
methods.ect.init: {method: ic, step: 30} -> methods.ect.init.step is 30, expected a snapshot step of digits/ic/0
methods.ect.init: {method: ic, seed: 3} -> methods.ect.init needs run digits/ic/3, which runs does not list
methods.cd.init: {method: gc-frozen}
    -> methods.cd.init.method names 'gc-frozen', whose network has another shape; give both
methods.ect.network: {multipliers: [1, 2], architecture: ddpm++}
    -> methods.ect.init.method names 'denoiser', whose network has another shape
methods.ect.preconditioning: vp
    -> methods.ect.init.method names 'denoiser', whose preconditioning is edm; set preconditioning: edm
methods.denoiser.preconditioning: ve
    -> methods.ect.init.method names 'denoiser', whose preconditioning is ve; set preconditioning: ve
methods.ect.preconditioning: consistency
    -> methods.ect.preconditioning is 'consistency', expected edm, vp or ve, because the boundary of ect
methods.denoiser.preconditioning: consistency
    -> methods.denoiser.preconditioning is 'consistency', expected edm, vp or ve
methods.denoiser.training: {}
    -> methods.denoiser.training.schedule.kind is 'ict', expected edm, because objective is denoising
methods.denoiser.training: {schedule: {kind: ect}}
    -> methods.denoiser.training.schedule.kind is 'ect', expected edm, because objective is denoising
methods.gc.training: {schedule: {kind: edm}}
    -> methods.gc.training.schedule.kind is 'edm', expected ict or ect, because objective is consistency
methods.cd.training: {schedule: {kind: edm}}
    -> methods.cd.training.schedule.kind is 'edm', expected ict or ect, because objective is distillation
methods.gc.training: {schedule: {kind: cosine}}
    -> methods.gc.training.schedule.kind is 'cosine', expected 'ict', 'ect', 'edm'
methods.gc.training: {schedule: {kind: ect, s0: 4}} -> methods.gc.training.schedule.s0 is not a known key
methods.gc.training: {schedule: {stage_every: 4}} -> methods.gc.training.schedule.stage_every is not a known key
methods.denoiser-gc.predictor: ema
    -> methods.denoiser-gc.predictor is 'ema', expected a consistency run or a file, because a denoiser predicts no
methods.denoiser-gc.predictor: online
    -> methods.denoiser-gc.predictor is 'online', expected a consistency run or a file
methods.denoiser-gc.predictor: null -> methods.denoiser-gc.predictor is None, expected a consistency run or a file
methods.denoiser-gc.predictor: {method: denoiser}
    -> methods.denoiser-gc.predictor.method names 'denoiser', whose objective is denoising
methods.denoiser-gc.predictor: {method: denoiser-gc}
    -> methods.denoiser-gc.predictor.method names 'denoiser-gc', whose objective is
methods.denoiser-gc.predictor: {method: nope}
    -> methods.denoiser-gc.predictor.method names 'nope', which has no runs
methods.denoiser-gc.predictor: {method: ic, step: 30}
    -> methods.denoiser-gc.predictor.step is 30, expected a snapshot step of digits/ic/0
methods.denoiser-gc.mu: null
    -> methods.denoiser-gc.mu is None, expected a number in [0, 1], or [start, end], because coupling is gc
methods.denoiser-gc.mu: [0.5] -> methods.denoiser-gc.mu.1 is missing
methods.denoiser-gc.mu: [0.0, 1.5] -> methods.denoiser-gc.mu.1 is 1.5, expected a number <= 1
methods.denoiser-gc.coupling: ot -> methods.denoiser-gc.mu is 0.5, expected no value unless coupling is gc
methods.denoiser-gc.preconditioning: consistency
    -> methods.denoiser-gc.preconditioning is 'consistency', expected edm, vp or ve
methods.denoiser-gc.training: {}
    -> methods.denoiser-gc.training.schedule.kind is 'ict', expected edm, because objective is denoising
methods.denoiser-gc.mu_from_step: 40
    -> methods.denoiser-gc.mu_from_step is 40, expected less than training.steps, 40
methods.denoiser-gc.network: {architecture: ddpm++, channels: 16, multipliers: [1, 2], blocks: [1, 2, 3]}
    -> methods.denoiser-gc.network.blocks is [1, 2, 3], expected one value, or one per level (2 multipliers)
methods.denoiser-gc.network: {architecture: ddpm++, channels: 16, multipliers: [1, 2], blocks: [1, 0]}
    -> methods.denoiser-gc.network.blocks.1 is 0
methods.denoiser-gc.network: {architecture: ddpm++, channels: 16, multipliers: [1, 2], dropout: [0.1]}
    -> methods.denoiser-gc.network.dropout is [0.1], expected one value, or one per level
methods.denoiser-gc.network: {architecture: ddpm++, channels: 16, multipliers: [1, 2], dropout: [0.1, 1.0]}
    -> methods.denoiser-gc.network.dropout.1 is 1.0
methods.denoiser-gc.network: {architecture: ddpm++, channels: 16, multipliers: [1, 2], dropout: []}
    -> methods.denoiser-gc.network.dropout is []
methods.denoiser-gc.network: {architecture: ddpm++, channels: 18}
    -> methods.denoiser-gc.network.channels is 18, expected a multiple of 4
methods.ect.init: {file: a.safetensors, method: ic} -> methods.ect.init.method is not a known key
methods.ect.init: {file: a.safetensors, step: 20} -> methods.ect.init.step is not a known key
methods.ect.init: {method: denoiser, path: a.safetensors} -> methods.ect.init.path is not a known key
methods.ect.init: a.safetensors -> methods.ect.init is 'a.safetensors', expected a mapping
methods.ect.init: {} -> methods.ect.init.method is missing
methods.cd.teacher: {method: denoiser, stepp: 20}
    -> methods.cd.teacher.stepp is not a known key; did you mean 'step'?
methods.cd.teacher: {file: 3} -> methods.cd.teacher.file is 3, expected a valid string
methods.cd.teacher: denoiser -> methods.cd.teacher is 'denoiser', expected 'exact' or a mapping
methods.gc-frozen.predictor: {method: ic, step: twenty}
    -> methods.gc-frozen.predictor.step is 'twenty', expected a valid integer
methods.gc-frozen.predictor: exact
    -> methods.gc-frozen.predictor is 'exact', expected 'ema' or 'online' or a mapping
methods.spare: {objective: consistency, training: {stepps: 1}}
    -> methods.spare.training.stepps is not a known key; did you mean 'steps'?
methods.spare: {objective: consistency, network: {channels: "8"}}
    -> methods.spare.network.channels is '8', expected a valid integer; remove the quotes
methods.spare: {objective: consistency, init: {method: nope}}
    -> methods.spare.init.method names 'nope', which has no runs
methods.gc.mu: [0, 1, 1] -> methods.gc.mu is [0, 1, 1], expected at most 2 of them
tables.table1.methods: [] -> tables.table1.methods is [], expected at least 1 of them
tables.table1.methods: [ic, ic] -> tables.table1.methods is ['ic', 'ic'], expected each only once
evaluation.generation_seeds: [0, 0] -> evaluation.generation_seeds is [0, 0], expected each only once
process.sigma_max: 1.0e+308 -> process.sigma_max is 1e+308, expected a number <= 1e+06
training.steps: 1000000000000000000 -> training.steps is 1000000000000000000, expected a number <= 1e+09
training.steps: 1000000, training.snapshot_every: 1
    -> training.snapshot_every is 1, expected so many steps that there are at most 10000
runs.ic.label: "two\\nlines" -> runs.ic.label is 'two\\nlines', expected text in one line
runs.ic.label: _mine -> runs.ic.label is '_mine', expected text that figures can draw
runs.ic.label: 漢字 -> runs.ic.label is '漢字', expected text that figures can draw
network: {architecture: ddpm++, channels: 8, blocks: 1, multipliers: [1, 1, 1, 1, 1]}
    -> methods.ic.network.multipliers is [1, 1, 1, 1, 1], expected so few that the side 8 of the images
network: {architecture: ddpm++, channels: 8, blocks: 1, attention: [4]}
    -> methods.ic.network.attention is [4], expected sides of the levels: [8]
features: {kind: surrogate, protocols: {clean: {reference_images: 2000}}}
    -> features.protocols.clean asks for 2000 real images, and there are 1797
data: {source: mixture2d, means: [[0.0, 0.0]], std: 1.0, count: 9, seed: 0}
    -> features.kind is 'classifier', expected 'identity' for points
training.learning_rte: 0.1 -> training.learning_rte is not a known key; did you mean 'learning_rate'?
training.distance: psuedo-huber
    -> training.distance is 'psuedo-huber', expected 'pseudo-huber' or 'squared-l2'; did you mean 'pseudo-huber'?
training.schedule.kind: nope -> training.schedule.kind is 'nope', expected 'ict', 'ect', 'edm'
features.kind: nope -> features.kind is 'nope', expected 'classifier', 'dinov2', 'identity', 'inception', 'surrogate'
"""


@pytest.mark.parametrize("line", REFUSED.replace("\n    ->", " ->").split("\n")[1:-1])
def test_what_does_not_fit_is_refused_in_one_line_by_its_key(folder, line):
    changes, _, expected = line.partition(" -> ")
    document = with_denoiser({})
    for key, value in yaml.safe_load(f"{{{changes}}}").items():
        *blocks_above, last = key.split(".")
        value_at(document, (*DIGITS, *blocks_above))[last] = value
    assert refusal_of(document, folder).startswith(f"datasets.digits.{expected}")


def test_mu_may_begin_at_any_step_before_the_end(folder):
    for begin in (None, 0, 39):
        document = changed((*METHODS, "gc", "mu_from_step"), begin)
        assert load(folder, document).run_config("digits/gc/0").method.mu_from_step == begin


def test_the_step_at_which_mu_begins_is_part_of_a_runs_identity(folder):
    documents = [changed((*METHODS, "gc", "mu_from_step"), begin) for begin in (None, 1, 2)]
    assert len({digest(to_dict(load(folder, d).run_config("digits/gc/0"))) for d in documents}) == 3


def test_the_consistency_and_the_edm_preconditioning_can_start_each_other(folder):
    document = changed((*METHODS, "gc", "init"), {"method": "denoiser"})
    document["datasets"]["digits"]["methods"]["ect"]["init"] = {"method": "cd"}
    document["datasets"]["digits"]["methods"]["ect"]["network"] = {"dropout": 0.0}
    params = load(folder, document)
    assert params.run_config("digits/gc/0").preconditioning == "consistency"
    assert params.run_config("digits/ect/0").preconditioning == "edm"


def test_a_value_for_each_level_of_a_network_is_accepted(folder):
    network = {"architecture": "ncsn++", "channels": 16, "blocks": [1, 2], "multipliers": [1, 2]}
    network |= {"dropout": [0.0, 0.25], "attention": [4]}
    config = load(folder, changed((*DIGITS, "network"), network)).run_config("digits/gc/0")
    assert config.network == NetworkConfig("ncsn++", 16, (1, 2), (1, 2), (4,), (0.0, 0.25))
    assert config.network.blocks_per_level == (1, 2)


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ((*METHODS, "gc", "mu"), "datasets.digits.methods.gc.mu is None, expected a number in [0, 1]"),
        ((*METHODS, "gc", "predictor"), "datasets.digits.methods.gc.predictor is None, expected ema, online or a run"),
        ((*METHODS, "cd", "teacher"), "datasets.digits.methods.cd.teacher is None, expected exact or a denoiser run"),
        ((*DIGITS, "transport"), "datasets.digits.transport is missing, but a figure of kind transport needs it"),
        ((*DIGITS, "training", "steps"), "datasets.digits.training.steps is missing"),
        ((*DIGITS, "network"), "datasets.digits.network is missing"),
        ((*DIGITS, "training", "schedule", "kind"), "datasets.digits.training.schedule.kind is missing"),
        ((*DIGITS, "features", "kind"), "datasets.digits.features.kind is missing"),
        ((*DIGITS, "data", "source"), "datasets.digits.data.source is missing"),
        ((*DIGITS, "features", "epochs"), "datasets.digits.features.epochs is missing"),
        (("datasets", "mixture2d", "data", "std"), "datasets.mixture2d.data.std is missing"),
        (("tracking",), "tracking is missing"),
    ],
)
def test_what_is_missing_is_named(folder, key, expected):
    assert refusal_of(without(key), folder).startswith(expected)


def test_a_name_that_mlflow_would_not_take_is_refused_and_not_shown_whole(folder):
    message = refusal_of(changed(("tracking", "experiment"), "x" * 5000), folder)
    assert message.startswith("tracking.experiment is 'xxx")
    assert message.endswith("..., expected at most 400 characters")
    assert len(message) < 300


def test_an_unknown_data_set_is_refused_with_the_known_ones(folder):
    params = load(folder, tiny_params())
    with pytest.raises(GcflowError) as caught:
        params.dataset("cifar")
    assert str(caught.value) == f"{folder / 'params.yaml'}: datasets has no 'cifar'; known: digits, mixture2d"


# Refusals of the file itself.


def written(folder: Path, old: str, new: str) -> Path:
    text = yaml.safe_dump(tiny_params(), sort_keys=False)
    path = write_project(folder) / "params.yaml"
    path.write_text(text.replace(old, new, 1))
    return path


@pytest.mark.parametrize("number", ["1e-4", "1.0e-4", "0.0001", "1E-4"])
def test_a_number_is_the_one_that_dvc_reads(folder, number):
    path = written(folder, "learning_rate: 0.001", f"learning_rate: {number}")
    assert Params(path).datasets["digits"].training.learning_rate == 1e-4
    assert YAML(typ="safe").load(path)["datasets"]["digits"]["training"]["learning_rate"] == 1e-4


@pytest.mark.parametrize("label", ["on", "yes", "no", "12:30:00"])
def test_what_is_no_text_in_older_yaml_is_one(folder, label):
    assert Params(written(folder, "label: iCT-GC", f"label: {label}")).datasets["digits"].runs["gc"].label == label


def test_a_number_in_quotes_is_refused_with_a_hint(folder):
    with pytest.raises(GcflowError, match=r"learning_rate is '0.001', expected a valid number; remove the quotes$"):
        Params(written(folder, "learning_rate: 0.001", "learning_rate: '0.001'"))


def test_a_number_of_another_type_in_quotes_gets_no_hint(folder):
    with pytest.raises(GcflowError, match=r"steps is '4e1', expected a valid integer$"):
        Params(written(folder, "steps: 40", "steps: '4e1'"))


ALIASES = "\n".join(f"a{k}: &a{k} [{', '.join(9 * [f'*a{k - 1}'])}]" for k in range(1, 9))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "expected keys and their values"),
        (b"- a list", "expected keys and their values"),
        (b"just text", "expected keys and their values"),
        (b"a: [1, 2", "while parsing a flow sequence"),
        (b"a: b: c", "mapping values are not allowed"),
        (b"\ttab: 1", "while scanning"),
        (b"a: &x 1\nb: *y", "undefined alias"),
        (b"a: \xff\xfe", "can't decode byte"),
        (b"a: \x00", "control characters are not allowed"),
        (b"b: 1\na: !!python/object/apply:os.system [true]", "line 2: a python/object/apply"),
        (b"a: !!binary aGVsbG8=", "line 1: a binary is no number, text, list or mapping"),
        (b"a: !!set {b, c}", "line 1: a set is no number, text, list or mapping"),
        (b"a: " + 100_000 * b"[", "nested more than 50 deep"),
        (100_000 * b"- ", "nested more than 50 deep"),
        (b"a: " + 5_000 * b"1", "line 1: 11111111111111111111 begins with 0, or has more than 19 digits"),
        (b"a: 010", "line 1: 010 begins with 0"),
        (b"a: &a [*a]", "line 1: aliases make more than 200000 values"),
        (f"a0: &a0 [1]\n{ALIASES}".encode(), "aliases make more than 200000 values"),
        (b"? [1, 2]\n: 3", "keys must be"),
    ],
)
def test_a_file_that_is_not_a_grid_is_refused_in_one_line(tmp_path, content, said):
    path = tmp_path / "params.yaml"
    path.write_bytes(content)
    with pytest.raises(GcflowError) as caught:
        Params(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert said in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_missing_file_is_refused_by_name(tmp_path):
    with pytest.raises(GcflowError) as caught:
        Params(tmp_path / "params.yaml")
    assert str(caught.value).startswith(f"{tmp_path / 'params.yaml'}: no such file")


def test_a_key_that_stands_twice_is_refused_because_one_of_the_two_would_be_lost(folder):
    path = written(folder, "      steps: 40\n", "      steps: 40\n      steps: 50\n")
    with pytest.raises(GcflowError) as caught:
        Params(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "key 'steps' stands twice" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_date_is_refused_by_key(folder):
    path = written(folder, "steps: 40", "steps: 2026-01-31")
    with pytest.raises(GcflowError) as caught:
        Params(path)
    assert str(caught.value).startswith(f"{path}: datasets.digits.training.steps is ")


def test_a_data_set_whose_name_is_a_number_is_read_as_text_or_refused_by_name(folder):
    document = tiny_params()
    document["datasets"][32] = document["datasets"].pop("mixture2d")
    try:
        read = [run.name for run in load(folder, document).runs()]
    except GcflowError as error:
        read = [str(error)]
    assert any("32" in text for text in read)


def test_a_key_that_is_a_number_is_named(folder):
    assert refusal_of(changed((*DIGITS, "training", 1), 5), folder).startswith("datasets.digits.training.1 ")


@pytest.mark.parametrize("block", dict.fromkeys(blocks()), ids=lambda block: block.__name__)
def test_every_number_of_every_block_is_bounded_on_both_sides(block):
    schema = adapter(block).json_schema(ref_template="{model}")

    def numbers(part):
        if part.get("type") in ("integer", "number"):
            yield part
        items = [part["items"]] if "items" in part else []
        for below in (*part.get("anyOf", ()), *part.get("prefixItems", ()), *items):
            yield from numbers(below)

    for name, part in schema.get("properties", {}).items():
        for number in numbers(part):
            assert {"minimum", "exclusiveMinimum"} & set(number), name
            assert {"maximum", "exclusiveMaximum"} & set(number), name
