"""A swept method of params.yaml stands for one method per value, wherever a method may stand."""

import re
from typing import Any

import pytest
import yaml
from builders import load
from projects import tiny_params

from gcflow.config import digest, to_dict
from gcflow.errors import GcflowError
from gcflow.pipeline.dvc_stages import RUNS, dvc_documents
from gcflow.pipeline.params import Run
from gcflow.pipeline.stages import Stages

MU = {"objective": "consistency", "coupling": "gc", "predictor": "ema", "sweep": {"mu": [0.3, 0.5, 1.0]}}


def swept(method: dict[str, Any] | None = None, name: str = "gc") -> dict[str, Any]:
    """The tiny document with a method that is swept."""
    document = tiny_params()
    document["datasets"]["digits"]["methods"][name] = MU if method is None else method
    return document


def by_hand() -> dict[str, Any]:
    """What `swept` stands for, written out."""
    document = tiny_params()
    digits = document["datasets"]["digits"]
    values = {"gc-mu03": 0.3, "gc-mu05": 0.5, "gc-mu1": 1.0}
    for block in ("methods", "runs"):
        kept = {}
        for method, content in digits[block].items():
            if method != "gc":
                kept[method] = content
            elif block == "methods":
                plain = {"objective": "consistency", "coupling": "gc", "predictor": "ema"}
                kept |= {name: plain | {"mu": mu} for name, mu in values.items()}
            else:
                kept |= {name: {"label": f"iCT-GC, mu = {mu}", "seeds": [0]} for name, mu in values.items()}
        digits[block] = kept
    for view in (digits["tables"]["table1"], digits["figures"]["convergence"]):
        view["methods"] = ["ic", *values]
    return document


def test_a_sweep_is_what_one_would_have_written_out(tmp_path):
    params, written = load(tmp_path / "swept", swept()), load(tmp_path / "written", by_hand())
    assert params.document == written.document
    assert [run.name for run in params.runs()] == [run.name for run in written.runs()]
    for run in written.runs():
        assert digest(to_dict(params.run_config(run.name))) == digest(to_dict(written.run_config(run.name)))
    ours, theirs = list(Stages(params)), list(Stages(written))
    assert ours == theirs
    assert [stage.slice(params) for stage in ours] == [stage.slice(written) for stage in theirs]


def test_dvc_looks_the_keys_of_a_sweep_up_where_they_stand_in_the_file(tmp_path):
    params = load(tmp_path, swept())
    documents = {path: yaml.safe_load(text) for path, text in dvc_documents(params, "all").items()}
    stages, item = documents["dvc.yaml"]["stages"], documents[RUNS]["train"]["digits-gc-mu03-0"]
    assert stages["train"]["do"]["cmd"] == "gcflow train ${item.dataset}/${item.method}/${item.seed}"
    assert "datasets.${item.dataset}.methods.${item.entry}" in stages["train"]["do"]["params"]
    assert (item["method"], item["entry"]) == ("gc-mu03", "gc")
    file = yaml.safe_load((tmp_path / "params.yaml").read_text())
    for stage in (stage for stage in stages.values() if "params" in stage):
        assert len(set(stage["params"])) == len(stage["params"])
        for key in stage["params"]:
            here = file
            for part in key.split("."):
                here = here[part]
    table = stages["table-digits-table1"]
    assert [key for key in table["params"] if ".runs." in key] == ["datasets.digits.runs.ic", "datasets.digits.runs.gc"]


def test_a_change_of_one_value_touches_its_own_method_alone(tmp_path):
    other = MU | {"sweep": {"mu": [0.3, 0.5, 0.9]}}
    before, after = load(tmp_path / "before", swept()), load(tmp_path / "after", swept(other))
    same = [run for run in before.runs() if run in set(after.runs())]
    assert Run("digits", "gc-mu03", 0) in same
    assert Run("digits", "gc-mu1", 0) not in same
    for run in same:
        assert Stages(before).train(run).slice(before) == Stages(after).train(run).slice(after)


def test_several_keys_give_every_combination_in_order(tmp_path):
    sweep = {"mu": [0.0, [0.0, 1.0]], "training.optimizer": ["adam", "lion"], "training.schedule.p_mean": [-1.1]}
    params = load(tmp_path, swept(MU | {"sweep": sweep}))
    names = [method for method in params.datasets["digits"].runs if method.startswith("gc-mu")]
    assert names == [
        f"gc-mu{mu}-optimizer-{optimizer}-p-mean-11" for mu in ("0", "0-1") for optimizer in ("adam", "lion")
    ]
    config = params.run_config(f"digits/{names[2]}/0")
    assert (config.method.mu, config.training.optimizer, config.training.schedule.p_mean) == ((0.0, 1.0), "adam", -1.1)
    assert config.training.schedule.s0 == 4
    label = params.datasets["digits"].runs[names[3]].label
    assert label == "iCT-GC, mu = [0.0, 1.0], optimizer = lion, p_mean = -1.1"


def test_other_methods_refer_to_a_method_of_a_sweep_by_its_name(tmp_path):
    document = swept()
    frozen = document["datasets"]["digits"]["methods"]["gc-frozen"]
    frozen["predictor"] = {"method": "gc-mu05"}
    params = load(tmp_path, document)
    assert params.needed_runs(Run("digits", "gc-frozen", 0)) == {"predictor": (Run("digits", "gc-mu05", 0), 40)}
    frozen["predictor"] = {"method": "gc"}
    with pytest.raises(GcflowError, match="names 'gc', which has no runs; known: ic, gc-mu03, gc-mu05, gc-mu1, "):
        load(tmp_path, document)


def test_a_sweep_may_be_of_what_a_method_starts_from_and_some_of_it_may_run(tmp_path):
    document = swept(MU | {"sweep": {"mu": [0.3], "predictor": ["ema", "online"]}}, "both")
    digits = document["datasets"]["digits"]
    digits["runs"]["both-mu03-predictor-online"] = {"label": "one of them", "seeds": [4]}
    params = load(tmp_path, document)
    assert "both-mu03-predictor-ema" in params.datasets["digits"].methods
    assert [run.name for run in params.runs() if "both" in run.method] == ["digits/both-mu03-predictor-online/4"]
    runs = yaml.safe_load(dvc_documents(params, "all")[RUNS])["train"]
    assert runs["digits-both-mu03-predictor-online-4"]["entry"] == "both"


@pytest.mark.parametrize(
    ("sweep", "expected"),
    [
        ({}, "gc.sweep is {}, expected {key: [values]}"),
        ([0.3], "gc.sweep is [0.3], expected {key: [values]}"),
        ({"mu": 0.3}, "gc.sweep.mu is 0.3, expected a list of values"),
        ({"mu": []}, "gc.sweep.mu is [], expected a list of values"),
        ({"mu": [0.3, 0.3]}, "gc.sweep gives 'gc-mu03' twice"),
        (
            {key: list(range(10)) for key in "abcdefghijkl"},
            "gc.sweep gives 1000000000000 methods, expected at most 1000",
        ),
        ({"training.batch": [15, 1.5]}, "gc.sweep gives 'gc-batch15' twice"),
        (
            {"predictor": [{"method": "ic"}]},
            "gc.sweep.predictor is [{'method': 'ic'}], expected numbers, words or lists",
        ),
        ({"coupling.epsilon": [0.1]}, "gc.sweep.coupling.epsilon is no key of this method, whose coupling is 'gc'"),
        ({"mu": [1.5]}, "gc-mu15.mu is 1.5, expected a number <= 1"),
        ({"muu": [0.5]}, "gc-muu05.muu is not a known key; did you mean 'mu'?"),
        ({"frozen": [1]}, "gc.sweep gives 'gc-frozen1', which methods has already"),
    ],
)
def test_a_sweep_that_cannot_be_is_refused_by_its_key(tmp_path, sweep, expected):
    document = swept(MU | {"sweep": sweep})
    document["datasets"]["digits"]["methods"]["gc-frozen1"] = {"objective": "consistency"}
    with pytest.raises(GcflowError, match=re.escape(f"{tmp_path}/params.yaml: datasets.digits.methods.{expected}")):
        load(tmp_path, document)


def test_what_is_no_sweep_stays_as_it_is(tmp_path):
    document = tiny_params()
    assert load(tmp_path, document).document == document
    for broken in ("text", ["methods"], {"methods": 3, "runs": {"ic": 3}}):
        document["datasets"]["digits"] = broken
        with pytest.raises(GcflowError, match=r"datasets\.digits"):
            load(tmp_path, document)
