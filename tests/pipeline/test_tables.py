"""Tables of the paper's scale, from evaluation files written here: nothing is trained."""

import csv
import json
import math
import statistics

import pytest
import torch
import yaml
from projects import ROOT, write_project

from gcflow.errors import GcflowError
from gcflow.pipeline.evaluate import samplers
from gcflow.pipeline.features import KINDS, metric_name
from gcflow.pipeline.folders import reference_path, run_folder
from gcflow.pipeline.params import Params, Run
from gcflow.pipeline.table import build_table, cell, write_table
from gcflow.weights import save_tensors

FINAL = {0: [7.0, 7.2], 1: [7.4, 7.6], 2: [7.8, 8.0]}
SHIFTS = {"clean": 0.0, "authors": 1.0, "authors-clip": 0.5, "ect": 0.25}


@pytest.fixture
def params(tmp_path):
    document = yaml.safe_load((ROOT / "params.yaml").read_text())
    document["datasets"] = {"cifar10": document["datasets"]["cifar10"]}
    document["datasets"]["cifar10"]["evaluation"]["generation_seeds"] = [0, 1]
    loaded = Params(write_project(tmp_path, document) / "params.yaml")
    protocols = loaded.dataset("cifar10").features.protocols
    assert protocols.keys() == SHIFTS.keys()
    for protocol, rules in protocols.items():
        record = {
            "count": 50_000,
            "split": "train",
            "choice": "all",
            "protocol": rules.reference_settings,
            "extractor_sha256": "ab" * 32,
            "real_half_against_half": {"fid": 1.5, "kid": 0.0002, "is": 11.0},
        }
        path = reference_path(tmp_path, "cifar10", protocol)
        save_tensors(path, {"mean": torch.zeros(2)}, record)
    return loaded


def evaluate(params, run, final, snapshots=()):
    """Writes a run's metrics: FID as given at the end per generation seed, and with the first one at snapshots."""
    records = []

    def add(step, seed, value, weights="ema", evaluations=1):
        for protocol, shift in SHIFTS.items():
            for metric, number in (("fid", value + shift), ("kid", value / 1000), ("is", 10 - value / 10)):
                described = {"metric": metric, "value": number, "protocol": protocol, "weights": weights}
                place = {"step": step, "generation_seed": seed, "network_evaluations": evaluations}
                records.append(described | place)

    for step, value in snapshots:
        add(step, 0, value)
    for seed, value in enumerate(final):
        add(100_000, seed, value)
        add(100_000, seed, value / 2, evaluations=2)
        add(100_000, seed, value + 5, weights="raw")
    path = run_folder(params.root, run) / "evaluation" / "metrics.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(records))


@pytest.fixture
def evaluated(params):
    for seed, final in FINAL.items():
        evaluate(params, Run("cifar10", "ic", seed), final, [(10_000, 30.0), (20_000, 6.5)])
    evaluate(params, Run("cifar10", "gc", 1), [6.0, 6.2])
    return params


def row(rows, label):
    (found,) = (found for found in rows if found["method"] == label)
    return found


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([[0.0152, 0.0161], [0.0210, 0.0200]], "0.018 ± 0.003 (0.001)"),
        ([[0.0003, -0.0002], [0.04, 0.05]], "0.023 ± 0.032 (0.005)"),
        ([[0.00304]], "0.0030"),
        ([[0.12], [0.1]], "0.11 ± 0.01"),
        ([[0.0]], "0.00"),
        ([[125.087, 124.9]], "124.99 (0.13)"),
    ],
)
def test_small_values_have_two_significant_digits_and_others_two_decimals(values, expected):
    assert cell(values) == expected


def test_a_cell_is_the_mean_with_both_deviations_told_apart(evaluated):
    means = [statistics.fmean(values) for values in FINAL.values()]
    spread = math.sqrt(statistics.fmean(statistics.variance(values) for values in FINAL.values()))
    expected = f"{statistics.fmean(means):.2f} ± {statistics.stdev(means):.2f} ({spread:.2f})"
    assert expected == "7.50 ± 0.40 (0.14)"
    assert row(build_table(evaluated, "cifar10", "table1"), "iCT-IC")["FID ↓"] == expected


def test_kid_is_shown_times_a_hundred(evaluated):
    assert row(build_table(evaluated, "cifar10", "table1"), "iCT-IC")["KID×10² ↓"].startswith("0.75 ± 0.04")


def test_published_numbers_and_the_difference_to_them_stand_beside_ours(evaluated):
    found = row(build_table(evaluated, "cifar10", "table1"), "iCT-IC")
    assert found["published FID"] == "7.42 ± 0.04"
    assert found["Δ FID"] == "+0.08"
    assert found["published KID×10²"] == "0.44 ± 0.03"
    assert found["Δ KID×10²"] == "+0.31"
    assert found["published IS"] == "8.76 ± 0.06"
    assert found["Δ IS"] == "+0.49"


def test_a_missing_run_shows_as_missing_and_never_as_a_number(evaluated):
    rows = build_table(evaluated, "cifar10", "table1")
    missing = row(rows, "iCT-OT")
    assert missing["seeds"] == "0 of 3"
    assert {missing[column] for column in ("FID ↓", "KID×10² ↓", "IS ↑", "Δ FID", "Δ KID×10²", "Δ IS")} == {"missing"}
    assert missing["published FID"] == "6.75 ± 0.04"
    partial = row(rows, "iCT-GC (μ = 0.5)")
    assert partial["seeds"] == "1 of 3"
    assert partial["FID ↓"] == "6.10 (0.14)"
    assert row(rows, "iCT-IC")["seeds"] == "3"


def test_a_metric_that_a_run_was_evaluated_without_is_refused_with_the_command_that_makes_it(evaluated):
    path = run_folder(evaluated.root, Run("cifar10", "ic", 2)) / "evaluation" / "metrics.json"
    path.write_text(json.dumps([record for record in json.loads(path.read_text()) if record["metric"] != "kid"]))
    with pytest.raises(GcflowError) as caught:
        build_table(evaluated, "cifar10", "table1")
    assert str(caught.value) == "cifar10/ic/2: evaluated without kid; run: gcflow evaluate cifar10/ic/2"


def test_the_authors_protocols_report_the_best_step_of_training(evaluated):
    for name, found in (("authors", "7.50 ± 0.00"), ("authors-clip", "7.00 ± 0.00")):
        assert row(build_table(evaluated, "cifar10", f"table1-{name}"), "iCT-IC")["FID ↓"] == found
    assert row(build_table(evaluated, "cifar10", "table1"), "iCT-IC")["FID ↓"] == "7.50 ± 0.40 (0.14)"


AUTHORS = ("legacy-tensorflow", "went through float32 and were truncated", "best step by FID", "truncated to 8 bits")


@pytest.mark.parametrize(
    ("name", "protocol", "parts"),
    [
        ("table1", "clean", ("clean resize", "last step", "clipped to [-1, 1], rounded to 8 bits")),
        ("table1-authors", "authors", (*AUTHORS, "each batch of 512 scaled by its own extremes")),
        ("table1-authors-clip", "authors-clip", (*AUTHORS, "clipped to [-1, 1]")),
    ],
)
def test_each_table_says_which_protocol_it_shows_and_claims_none_for_the_published_numbers(
    evaluated, name, protocol, parts
):
    write_table(evaluated, "cifar10", name)
    folder = evaluated.root / "results" / "cifar10" / "tables"
    note = (folder / f"{name}.md").read_text().splitlines()[-1]
    for part in (f"Protocol {protocol}:", *parts, "50000 images of the train split", "abababababab", "Δ is ours"):
        assert part in note
    assert "Which protocol made the published numbers is unknown: `authors`" in note
    for suffix in ("tex", "json"):
        text = (folder / f"{name}.{suffix}").read_text()
        assert f"Protocol {protocol}:" in text
        assert "is unknown" in text
    with (folder / f"{name}.csv").open(newline="") as file:
        written = list(csv.DictReader(file))
    assert [found["method"] for found in written] == ["iCT-IC", "iCT-OT", "iCT-GC (μ = 0.5)"]
    assert {found["protocol"] for found in written} == {protocol}
    tex = (folder / f"{name}.tex").read_text()
    assert all(rule in tex for rule in (r"\toprule", r"\midrule", r"\bottomrule", r"$\Delta$ FID", "missing"))
    assert not any(symbol in tex for symbol in "±↓↑Δμ²")


@pytest.mark.parametrize("dataset", ["cifar10", "imagenet32", "celeba64", "church64"])
def test_every_data_set_of_the_paper_has_its_first_table_under_both_of_the_authors_protocols(dataset):
    entry = Params(ROOT / "params.yaml").dataset(dataset)
    tables = {name: table for name, table in entry.tables.items() if table.reproduces == "table1"}
    assert [table.protocol for table in tables.values()] == [None, "authors", "authors-clip"]
    assert len({table.title for table in tables.values()}) == 3
    rules = [entry.features.protocols[table.protocol] for table in tables.values() if table.protocol]
    assert [rule.pixels for rule in rules] == ["batch-min-max", "clip-truncate"]
    assert all(
        (rule.reference_images, rule.real_pixels, rule.select) == (50_000, "round-trip", "best") for rule in rules
    )
    for run in tables["table1"].methods:
        assert Params(ROOT / "params.yaml").run_config(f"{dataset}/{run}/0").training.snapshot_every == 5000


def test_labels_and_titles_keep_their_characters_in_every_format(evaluated):
    path, label = evaluated.path, r"A & B <b>#1</b> 100% {x} | pipe \ $a_b$ ~ ^"
    document = yaml.safe_load(path.read_text())
    document["datasets"]["cifar10"]["runs"]["ic"]["label"] = label
    document["datasets"]["cifar10"]["tables"]["table1"]["title"] = "Vs. others, 0.5 & more"
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    write_table(Params(path), "cifar10", "table1")
    written = {s: (path.parent / f"results/cifar10/tables/table1.{s}").read_text() for s in ("md", "tex", "json")}
    assert r"| A & B \<b>#1\</b> 100% {x} \| pipe \ $a_b$ ~ ^ | 3 |" in written["md"]
    tex = (
        r"A \& B \textless{}b\textgreater{}\#1\textless{}/b\textgreater{} 100\% \{x\} \textbar{} pipe "
        r"\textbackslash{} \$a\_b\$ \textasciitilde{} \textasciicircum{} & 3 & "
    )
    assert tex in written["tex"]
    lines = [line for line in written["tex"].splitlines() if line.endswith(r"\\")]
    assert len({line.replace(r"\&", "").count("&") for line in lines}) == 1
    assert json.loads(written["json"])["rows"][0]["method"] == label


def test_the_reference_point_of_ect_stands_beside_its_own_protocol_alone(evaluated):
    texts = {}
    for name in ("table2", "table2-ect"):
        write_table(evaluated, "cifar10", name)
        texts[name] = (evaluated.root / "results" / "cifar10" / "tables" / f"{name}.md").read_text()
    assert "| 4.54 |" in texts["table2-ect"]
    assert "Geng" in texts["table2-ect"]
    assert "Protocol ect:" in texts["table2-ect"]
    assert "4.54" not in texts["table2"]


def test_ect_is_trained_and_sampled_as_its_code_does():
    params = Params(ROOT / "params.yaml")
    for method in params.dataset("cifar10").tables["table2-ect"].methods:
        config = params.run_config(f"cifar10/{method}/0")
        assert (config.training.precision, config.method.sampling_boundary) == ("float32", 0.003)
        assert {sampler.boundary for sampler in samplers(config, params.dataset("cifar10").evaluation)} == {0.003}
    rules = params.dataset("cifar10").features.protocols["ect"]
    assert (rules.resize, rules.pixels, rules.reference_images, rules.select) == (
        "legacy-tensorflow",
        "clip",
        None,
        "last",
    )


@pytest.mark.parametrize(
    ("table", "method", "number"),
    [
        ("table2", "ect", "7.37"),
        ("table2", "ect-gc", "6.41"),
        ("table2", "ect-long", "4.11"),
        ("table2", "ect-long-gc", "3.74"),
        ("table3", "gc-equal-time", "6.38"),
        ("table3", "gc-online", "6.73"),
        ("table3", "gc-dropout", "7.77"),
    ],
)
def test_a_number_of_a_secondary_source_is_shown_as_unconfirmed_and_nothing_is_computed_from_it(
    evaluated, table, method, number
):
    label = evaluated.dataset("cifar10").runs[method].label
    evaluate(evaluated, Run("cifar10", method, evaluated.dataset("cifar10").runs[method].seeds[0]), [6.0, 6.2])
    found = row(build_table(evaluated, "cifar10", table), label)
    assert found["published FID"] == f"{number} unconfirmed"
    assert found.get("Δ FID", "") == ""
    write_table(evaluated, "cifar10", table)
    for suffix in ("json", "md", "csv", "tex"):
        text = (evaluated.root / f"results/cifar10/tables/{table}.{suffix}").read_text()
        assert text.count(number) == text.count(f"{number} unconfirmed") == 1, suffix
    assert "third party" in (evaluated.root / f"results/cifar10/tables/{table}.md").read_text()


def test_a_table_without_a_difference_does_not_explain_one(evaluated):
    notes = {}
    for name in ("table1", "table3"):
        write_table(evaluated, "cifar10", name)
        notes[name] = (evaluated.root / f"results/cifar10/tables/{name}.md").read_text().splitlines()[-1]
    assert notes["table1"].endswith("Table 1; Δ is ours minus published.")
    assert notes["table3"].endswith("(unconfirmed).")


def test_numbers_without_the_protocol_are_refused_with_the_command_that_makes_them(params):
    path = run_folder(params.root, Run("cifar10", "ic", 0)) / "evaluation" / "metrics.json"
    path.parent.mkdir(parents=True)
    drawn = {"step": 1, "weights": "ema", "network_evaluations": 1, "generation_seed": 0}
    path.write_text(json.dumps([{"metric": "fid", "protocol": "other", "value": 1.0, **drawn}]))
    with pytest.raises(GcflowError, match=r"metrics\.json: has no records of protocol clean; run gcflow evaluate"):
        build_table(params, "cifar10", "table1")


def test_only_inceptions_distance_is_called_fid():
    assert metric_name("fid").heading == "FID ↓"
    assert metric_name("surrogate-fd").heading == "surrogate FD ↓"
    assert metric_name("fd-dinov2").heading == "FD-DINOv2 ↓"
    assert [name for kind in KINDS.values() for name in kind.metrics if name.label == "FID"] == [metric_name("fid")]
    assert metric_name("classifier-kd")[1:] == ("classifier KD×10² ↓", 100.0)
