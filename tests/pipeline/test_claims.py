"""The ledger of claims on result files that the tests write themselves."""

import json
import math
import re
import statistics
import warnings
from dataclasses import replace
from itertools import pairwise
from shutil import copy

import pytest
from builders import refusal_of
from matplotlib import image
from projects import error_line, gcflow, tiny_params, write_project

from gcflow.errors import GcflowError
from gcflow.pipeline.ledger.evidence import Evidence
from gcflow.pipeline.ledger.findings import decide, effect_words, finding_of
from gcflow.pipeline.ledger.forest import LIMITS, forest_plot
from gcflow.pipeline.ledger.plans import Plan, plans
from gcflow.pipeline.ledger.run_statistics import run_statistic
from gcflow.pipeline.ledger.write import write_ledger
from gcflow.pipeline.params import Params, Run
from gcflow.pipeline.schema import Claims, RunsClaim
from gcflow.pipeline.stages import Stages
from gcflow.significance import Estimate, holm, paired_comparison, seeds_needed, welch_comparison
from gcflow.theory.check import Check

DISCREPANCY = {"samples": 8, "sigmas": [0.5, 1.0], "seed": 0}
THEORY = {
    "horizons": [1.0],
    "intervals": [4, 16],
    "points": 16,
    "scramblings": 2,
    "sigmas": [1.0, 20.0, 80.0],
    "paths": 0,
    "seed": 0,
}
DENOISER = {"objective": "denoising", "training": {"schedule": {"kind": "edm", "p_mean": -1.2, "p_std": 1.2}}}
SEEDS = [0, 1, 2, 3]
LEVELS = [0.5, 1.0, 2.0, 4.0, 8.0]


def runs_claim(statistic, lower, higher):
    return {
        "place": "Table 9",
        "claim": f"{lower} is below {higher} in {statistic}.",
        "test": "runs",
        "statistic": statistic,
        "lower": lower,
        "higher": higher,
    }


def transport_claim(statistic):
    return {"place": "Figure 9", "claim": f"Cost {statistic}.", "test": "transport", "statistic": statistic}


def theory_claim(statement):
    return {"place": statement, "claim": f"{statement} is true.", "test": "theory", "statement": statement}


ENTRIES = {
    "proved": theory_claim("Theorem 1"),
    "unchecked": theory_claim("Theorem 9"),
    "end": runs_claim("final", "gc", "ic"),
    "end-alone": runs_claim("final", "gc-frozen", "ic"),
    "beginning": runs_claim("start", "gc", "ic"),
    "speed": runs_claim("area", "gc", "ic"),
    "rise": runs_claim("rise", "gc", "ic"),
    "discrepancy": runs_claim("discrepancy", "denoiser-gc", "denoiser-ic"),
    "slope": runs_claim("discrepancy-slope", "denoiser-gc", "denoiser-ic"),
    "small-noise": transport_claim("falls-at-small-noise"),
    "large-noise": transport_claim("falls-at-large-noise"),
    "below-ot": transport_claim("below-ot"),
}


def document(entries=None, confidence=0.95):
    """The tiny project with replicates, denoisers of two couplings, and claims."""
    params = tiny_params()
    digits, mixture = params["datasets"]["digits"], params["datasets"]["mixture2d"]
    for method in ("ic", "gc"):
        digits["runs"][method]["seeds"] = SEEDS
    coupling = {"coupling": "gc", "mu": 1.0, "predictor": {"method": "ic"}}
    for method, how in (("denoiser-ic", {"coupling": "ic"}), ("denoiser-gc", coupling)):
        digits["methods"][method] = DENOISER | how
        digits["runs"][method] = {"label": f"Denoiser <{method[9:]}>", "seeds": SEEDS}
    digits["discrepancy"], mixture["theory"] = DISCREPANCY, THEORY
    params["claims"] = {"confidence": confidence, "power": 0.8, "entries": entries or ENTRIES}
    return json.loads(json.dumps(params))


def dump(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def metrics(curve):
    """Records of a run from step to FD per generation seed, among others that no claim is about."""
    records = []
    for step, values in curve.items():
        for seed, value in enumerate(values):
            main = {
                "protocol": "classifier",
                "metric": "classifier-fd",
                "weights": "ema",
                "network_evaluations": 1,
                "value": value,
            }
            for other in (
                {},
                {"protocol": "classifier", "metric": "classifier-kd", "value": -1.0},
                {"weights": "raw", "value": 1e3},
                {"network_evaluations": 2, "value": 1e-3},
            ):
                records.append(main | {"step": step, "generation_seed": seed} | other)
    return records


def discrepancies(power, factor=1.0):
    """Records of a discrepancy that falls as sigma^-power from sigma = 1 on, and is flat below."""
    return [
        {
            "estimate": estimate,
            "sigma": sigma,
            "value": factor * wrong * min(1.0, sigma**-power),
            "standard_error": 0.01,
        }
        for sigma in LEVELS
        for estimate, wrong in (("exact", 7.0), ("denoiser", 1.0), ("upper-bound", 9.0))
    ]


def transport(savings, error=0.1):
    """A transport.json from noise level to the exact flow's saving on a cost of 100, with OT's of 10 and 20."""
    records = [{"coupling": "ic", "cost": 100.0, "standard_error": 0.3}]
    for batch, saving in ((16, 10.0), (32, 20.0)):
        saved = {"saving": saving, "saving_standard_error": error}
        records.append({"coupling": "ot", "batch": batch, "cost": 100 - saving, "standard_error": 0.3} | saved)
    before = 0.0
    for sigma, saving in savings.items():
        exact = {"saving": saving, "saving_standard_error": error, "change": before - saving}
        exact |= {"change_standard_error": error, "cost": 100 - saving}
        records.append({"coupling": "gc-exact", "sigma": sigma, "standard_error": 0.3} | exact)
        records.append({"coupling": "gc", "sigma": sigma, "standard_error": 0.3} | exact | {"saving": -50.0})
        before = saving
    return {"samples": {"ic": 64, "ot": 64, "gc": 64, "gc-exact": 48}, "records": records}


def check(statement, name, measured, expected, tolerance=0.1, relation="="):
    return Check(statement, name, measured, expected, tolerance, "quadrature", relation).record()


CHECKS = [
    check("Theorem 1", "limit", 1.02, 1.0),
    check("Theorem 1", "rate", 2.0, 2.05),
    check("Lemma 1", "x", 5.0, 1.0),
]
WIGGLE = [0.00, 0.01, -0.01, 0.02]


def evaluation(root, run):
    dataset, method, seed = run.split("/")
    return root / "results" / dataset / method / f"seed{seed}" / "evaluation" / "metrics.json"


def fill(root):
    """Results in which GC is better by about a fifth everywhere."""
    for seed in SEEDS:
        for method, level in (("ic", 2.0), ("gc", 1.6 + WIGGLE[seed])):
            curve = {20: [3 * level], 40: [level, 1.1 * level]}
            dump(evaluation(root, f"digits/{method}/{seed}"), metrics(curve))
        for method, power in (("denoiser-ic", 2.0), ("denoiser-gc", 2.5 + WIGGLE[seed])):
            path = root / f"results/digits/{method}/seed{seed}/discrepancy.json"
            dump(path, {"run": f"digits/{method}/{seed}", "records": discrepancies(power)})
    dump(evaluation(root, "digits/gc-frozen/0"), metrics({20: [4.0], 40: [1.5, 1.5]}))
    dump(evaluation(root, "mixture2d/ic/0"), metrics({20: [4.0], 40: [1.5, 1.5]}))
    dump(root / "results/digits/transport.json", transport({0.5: 1.0, 5.0: 60.0}))
    dump(root / "results/mixture2d/theory.json", {"checks": CHECKS})
    return root


def ledger(root, command=False):
    """claims.json as `gcflow claims` writes it: the document, and its records by data set and name."""
    if command:
        gcflow(root, "claims")
    else:
        write_ledger(Params(root / "params.yaml"), "all")
    content = json.loads((root / "results/claims.json").read_text())
    return content, {(record["dataset"], record["name"]): record for record in content["records"]}


@pytest.fixture
def root(tmp_path):
    return fill(write_project(tmp_path, document()))


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """A project whose ledger is written: its folder, claims.json, and its records."""
    root = fill(write_project(tmp_path_factory.mktemp("claims"), document()))
    return root, *ledger(root, command=True)


# Statistics of a run.


def test_statistics_of_a_curve_are_those_of_its_logarithms():
    records = metrics({20: [math.e**3], 40: [math.e], 60: [2.0, 4.0, 6.0]})

    def found(name):
        return run_statistic(name, records, "file")

    assert found("final") == pytest.approx(math.log(4))
    assert found("start") == pytest.approx(3)
    assert found("area") == pytest.approx((3 + 1 + math.log(4)) / 3)
    # Of the three generation seeds at the end, the one that the snapshots have.
    assert found("rise") == pytest.approx(max(0.0, math.log(2.0 / min(2.0, math.e))))
    rising = metrics({20: [2.0], 40: [1.0], 60: [5.0, 9.0]})
    assert run_statistic("rise", rising, "file") == pytest.approx(math.log(5))
    assert run_statistic("final", list(reversed(records)), "file") == pytest.approx(math.log(4))


@pytest.mark.parametrize("power", [0.0, 1.0, 2.5])
def test_the_slope_of_a_power_law_is_its_exponent_whatever_happens_below_1(power):
    records = discrepancies(power, factor=3.0)
    assert run_statistic("discrepancy-slope", records, "file") == pytest.approx(-power)
    mean = statistics.fmean(math.log(3.0 * min(1.0, sigma**-power)) for sigma in LEVELS)
    assert run_statistic("discrepancy", records, "file") == pytest.approx(mean)


@pytest.mark.parametrize(
    ("statistic", "records", "problem"),
    [
        ("final", [], "has no fid"),
        ("final", [r | {"metric": "classifier-kd"} for r in metrics({40: [1.0]})], "has no fid"),
        ("final", [r for r in metrics({40: [1.0]}) if r["weights"] == "raw"], "EMA"),
        ("final", metrics({40: [0.0]}), "step 40 is 0.0"),
        ("area", metrics({20: [math.nan], 40: [1.0]}), "step 20 is nan"),
        ("discrepancy", [r for r in discrepancies(1.0) if r["estimate"] == "exact"], "denoiser"),
        ("discrepancy", discrepancies(1.0, factor=-1.0), "sigma 0.5 is -1.0"),
        ("discrepancy-slope", discrepancies(1.0)[:6], "a slope needs two"),
    ],
)
def test_records_that_lack_a_statistic_are_refused_by_file(statistic, records, problem):
    with pytest.raises(GcflowError, match=problem) as caught:
        run_statistic(statistic, records, "some/file.json")
    assert str(caught.value).startswith("some/file.json: ")


# Verdicts.


FILES = tuple(f"results/digits/{method}/seed0/evaluation/metrics.json" for method in "ab")


def evidence(values, statistic="final"):
    claim = RunsClaim("here", "a claim", statistic, "a", "b")
    plan = Plan("name", claim, "digits", ((Run("digits", "a", 0), Run("digits", "b", 0)),), FILES, None)
    comparison = paired_comparison(values, [0.0] * len(values), 0.95)
    return Evidence(plan, statistic, "a < b", "seed", {"a": len(values)}, {}, comparison)


def test_a_verdict_needs_a_small_adjusted_p_and_then_follows_the_sign():
    clear = [-1.0, -1.001, -0.999, -1.0005]
    family = [evidence(clear), evidence([-x for x in clear]), evidence([-1.0, 2.0, 0.5, -0.7])]
    findings = decide(family, Claims(0.95, 0.8, {}))
    assert [found.verdict for found in findings] == ["supported", "contradicted", "undecided"]
    assert [found.p_adjusted for found in findings] == holm([item.comparison.p for item in family])
    assert {found.tests for found in findings} == {3}


def test_a_verdict_that_stands_alone_falls_among_many_tests_that_find_nothing():
    borderline, noise = evidence([-1.0, -1.2, -0.7, -1.1]), evidence([-1.0, 2.0, 0.5, -0.7])
    p = borderline.comparison.p
    enough = math.floor(0.05 / p)
    assert 1 <= enough < 200
    settings = Claims(0.95, 0.8, {})
    assert decide([borderline, *[noise] * (enough - 1)], settings)[0].verdict == "supported"
    assert decide([borderline, *[noise] * (enough + 1)], settings)[0].verdict == "undecided"


def test_the_seeds_that_would_decide_come_from_the_observed_spread_and_the_strictest_level():
    item, other = evidence([-1.0, 0.5, -0.9, -0.2]), evidence([0.1, -0.1, 0.3])
    found, _ = decide([item, other], Claims(0.95, 0.8, {}))
    expected = seeds_needed(item.comparison.effect, statistics.stdev([-1.0, 0.5, -0.9, -0.2]), 0.05 / 2, 0.8)
    assert found.verdict == "undecided"
    assert found.seeds_needed == pytest.approx(expected)
    assert found.seeds_needed > 4


def test_a_single_seed_borrows_the_spread_of_the_same_statistic_only():
    alone, first, second = evidence([-0.4]), evidence([0.1, -0.1, 0.3]), evidence([0.5, -0.3])
    other = evidence([9.0, -9.0], statistic="area")
    settings = Claims(0.95, 0.8, {})
    pooled = math.sqrt((first.comparison.std**2 + second.comparison.std**2) / 2)
    found = decide([alone, first, second, other], settings)[0]
    assert (found.verdict, found.p_adjusted) == ("undecided", 1.0)
    assert found.assumed_std == pytest.approx(pooled)
    assert found.seeds_needed == seeds_needed(-0.4, pooled, 0.05 / 4, 0.8)
    unknown = decide([alone, other], settings)[0]
    assert (unknown.assumed_std, unknown.seeds_needed) == (None, 2)


def test_no_effect_needs_no_number_of_seeds():
    found = decide([evidence([1.0, -1.0]), evidence([0.0])], Claims(0.95, 0.8, {}))
    assert [(item.verdict, item.seeds_needed) for item in found] == [("undecided", None)] * 2


# Through the command.


def test_the_ledger_holds_every_claim_on_every_data_set_once(judged):
    _, content, records = judged
    untested = {(item["dataset"], item["name"]) for item in content["not_tested"]}
    assert len(records) + len(untested) == len(content["records"]) + len(content["not_tested"])
    assert set(records) | untested == {(dataset, name) for dataset in ("digits", "mixture2d") for name in ENTRIES}
    assert not set(records) & untested


def test_a_claim_about_runs_holds_its_data_its_test_and_what_scipy_finds(judged):
    _, content, records = judged
    record = records["digits", "end"]
    lower = [math.log(1.05 * (1.6 + wiggle)) for wiggle in WIGGLE]
    higher = [math.log(1.05 * 2.0)] * 4
    expected = paired_comparison(lower, higher, 0.95)
    assert [*record["values"]["gc"].values()] == pytest.approx(lower)
    assert [*record["values"]["ic"].values()] == pytest.approx(higher)
    assert record["effect"] == pytest.approx(expected.effect)
    assert record["interval"] == pytest.approx([expected.low, expected.high])
    assert record["ratio"] == pytest.approx(math.exp(expected.effect))
    assert record["ratio_interval"] == pytest.approx([math.exp(expected.low), math.exp(expected.high)])
    assert (record["p"], record["std"]) == pytest.approx((expected.p, expected.std))
    assert record["seeds"] == SEEDS
    assert set(record["runs"]) == {f"digits/{method}/{seed}" for method in ("gc", "ic") for seed in SEEDS}
    assert set(record["files"]) == {
        f"results/digits/{m}/seed{k}/evaluation/metrics.json" for m in ("gc", "ic") for k in SEEDS
    }
    assert record["verdict"] == "supported"
    assert (record["confidence"], content["power"]) == (0.95, 0.8)
    assert record["shown"].startswith(f"−{100 - 100 * record['ratio']:.0f}\u00a0% [")


def test_p_values_are_adjusted_over_all_statistical_tests_of_a_data_set_and_theory_is_none(judged):
    _, content, records = judged
    tested = [record for (dataset, _), record in records.items() if dataset == "digits"]
    assert content["tests"] == {"digits": len(tested), "mixture2d": 0}
    assert [record["p_adjusted"] for record in tested] == pytest.approx(holm([record["p"] for record in tested]))
    assert {record["tests"] for record in tested} == {len(tested)}
    assert "p" not in records["mixture2d", "proved"]


def test_each_statistic_reaches_its_claim(judged):
    _, _, records = judged
    gap = statistics.fmean(math.log((1.6 + wiggle) / 2.0) for wiggle in WIGGLE)
    assert records["digits", "beginning"]["effect"] == pytest.approx(gap)
    assert records["digits", "speed"]["effect"] == pytest.approx(gap)
    assert records["digits", "rise"]["effect"] == pytest.approx(0, abs=1e-12)
    slope = records["digits", "slope"]
    assert slope["effect"] == pytest.approx(-0.5 - statistics.fmean(WIGGLE))
    assert slope["ratio"] is None
    assert "%" not in slope["shown"]
    logs = statistics.fmean(math.log(max(1.0, sigma)) for sigma in LEVELS)
    assert records["digits", "discrepancy"]["effect"] == pytest.approx((-0.5 - statistics.fmean(WIGGLE)) * logs)


def test_transport_costs_are_compared_as_the_claims_say(judged):
    _, _, records = judged
    small, large, below = (records["digits", name] for name in ("small-noise", "large-noise", "below-ot"))
    assert (small["effect"], small["ratio"]) == pytest.approx((-1.0, 0.99))
    assert (large["effect"], large["ratio"]) == pytest.approx((-59.0, 40 / 99))
    # The largest of the batches counts, and its error with that of the other side.
    assert (below["effect"], below["ratio"]) == pytest.approx((-40.0, 40 / 80))
    assert below["standard_error"] == pytest.approx(math.hypot(0.1, 0.1))
    # Few batches: what their standard error itself is uncertain by is in p and interval.
    expected = welch_comparison([Estimate(20.0, 0.1, 2), Estimate(60.0, 0.1, 48)], 0.95)
    assert (below["p"], below["interval"]) == (expected.p, [expected.low, expected.high])
    assert "Two-sided Welch's t test" in below["text"]
    assert "Two-sided paired t test" in small["text"]
    assert small["test"]["words"].startswith(
        "transport cost of generator-augmented pairs, endpoints by the exact flow: GC at σ = 0.5"
    )
    assert small["replicates"] == {"gc-exact": 48}
    assert below["replicates"] == {"gc-exact": 48, "ot": 2}
    assert {record["verdict"] for record in (small, large, below)} == {"supported"}


def test_a_cost_that_rises_contradicts_and_one_that_the_errors_hide_is_undecided(root):
    dump(root / "results/digits/transport.json", transport({0.5: -1.0, 5.0: -9.0}))
    records = ledger(root)[1]
    verdicts = [records["digits", name]["verdict"] for name in ("small-noise", "large-noise", "below-ot")]
    assert verdicts == ["contradicted"] * 3
    dump(root / "results/digits/transport.json", transport({0.5: 0.1, 5.0: 0.2}))
    record = ledger(root)[1]["digits", "small-noise"]
    assert record["verdict"] == "undecided"
    assert record["growth_needed"] > 1
    assert "times as many samples" in record["text"]


def test_data_too_large_for_the_exact_flow_are_judged_by_the_trained_predictors_pairs(root):
    content = transport({0.5: 1.0, 5.0: 60.0})
    del content["samples"]["gc-exact"]
    content["records"] = [r for r in content["records"] if r["coupling"] != "gc-exact"]
    dump(root / "results/digits/transport.json", content)
    records = ledger(root)[1]
    below, end = records["digits", "below-ot"], records["digits", "end"]
    assert below["replicates"] == {"gc": 64, "ot": 2}
    # The trained predictor's saving in these records.
    assert below["effect"] == pytest.approx(20.0 + 50.0)
    assert "Over 64 pairs of GC and 2 batches of OT" in below["text"]
    assert "pairs, endpoints by the trained predictor: GC" in below["test"]["words"]
    assert "endpoints" not in end["test"]["words"]


def test_a_statement_stands_with_all_its_checks_and_falls_with_one(root):
    record = ledger(root)[1]["mixture2d", "proved"]
    assert (record["verdict"], len(record["checks"])) == ("supported", 2)
    assert record["shown"].startswith("2 of 2 checks hold")
    assert record["worst"] == pytest.approx(0.5)
    dump(root / "results/mixture2d/theory.json", {"checks": [*CHECKS, check("Theorem 1", "other", 3.0, 1.0)]})
    record = ledger(root)[1]["mixture2d", "proved"]
    assert record["verdict"] == "contradicted"
    assert record["shown"].startswith("2 of 3 checks hold")
    assert record["worst"] == pytest.approx(20)
    assert "other: measured 3" in record["text"]


def test_a_check_of_an_inequality_counts_by_its_lead(root):
    more = check("Theorem 1", "greater", 3.0, 1.0, relation=">")
    less = check("Theorem 1", "less", 0.5, 1.0, relation="<")
    dump(root / "results/mixture2d/theory.json", {"checks": [more, less]})
    record = ledger(root)[1]["mixture2d", "proved"]
    assert (record["verdict"], record["worst"], record["margin"]) == ("supported", None, pytest.approx(5))
    assert "expected more than 1, tolerance 0.1" in record["text"]
    dump(root / "results/mixture2d/theory.json", {"checks": [check("Theorem 1", "odd", 3.0, 1.0, relation="~")]})
    with pytest.raises(GcflowError, match=r"theory\.json: not what gcflow theory mixture2d writes"):
        ledger(root)


def test_one_number_of_one_evaluation_file_changes_the_verdict(tmp_path):
    # Two pairs and little confidence, so that a single number is enough to turn the mean over.
    params = document({"end": runs_claim("final", "gc", "ic")}, confidence=0.3)
    params["datasets"]["digits"]["runs"]["gc"]["seeds"] = [0, 1]
    root = fill(write_project(tmp_path, params))
    found = []
    for value in (1.6, 30.0, 2.4):
        dump(evaluation(root, "digits/gc/0"), metrics({20: [3.0], 40: [value]}))
        found.append(ledger(root)[1]["digits", "end"]["verdict"])
    assert found == ["supported", "contradicted", "undecided"]


def test_a_single_common_seed_is_undecided_with_the_pooled_number_of_seeds(judged):
    _, _, records = judged
    record, other = records["digits", "end-alone"], records["digits", "end"]
    assert record["seeds"] == [0]
    assert (record["verdict"], record["p"], record["p_adjusted"]) == ("undecided", 1.0, 1.0)
    assert record["interval"] == [None, None]
    assert record["effect"] == pytest.approx(math.log(1.5 / (1.05 * 2.0)))
    assert record["assumed_std"] == pytest.approx(other["std"])
    alpha = 0.05 / record["tests"]
    assert record["seeds_needed"] == seeds_needed(record["effect"], other["std"], alpha, 0.8)
    assert f"about {record['seeds_needed']} seeds would decide it" in record["text"]
    assert "pooled standard deviation" in record["text"]


def test_what_is_not_tested_on_a_data_set_says_why(judged):
    root, content, _ = judged
    reasons = {(item["dataset"], item["name"]): item["reason"] for item in content["not_tested"]}
    assert reasons["mixture2d", "end"] == "mixture2d has no method gc"
    assert reasons["mixture2d", "discrepancy"] == "mixture2d has no method denoiser-gc"
    assert reasons["mixture2d", "below-ot"] == "mixture2d has no transport block"
    assert reasons["digits", "proved"] == "digits has no theory block"
    assert reasons["mixture2d", "unchecked"] == "results/mixture2d/theory.json has no check of Theorem 9"
    text = (root / "results/claims.md").read_text()
    for reason in reasons.values():
        assert reason in text


@pytest.mark.parametrize(
    ("change", "name", "reason"),
    [
        (lambda d: d["runs"].pop("gc"), "end", "digits has no runs of gc"),
        (lambda d: d["runs"]["gc-frozen"].update(seeds=[3]), "end-alone", None),
        (lambda d: d["runs"]["ic"].update(seeds=[1, 2, 3]), "end-alone", "gc-frozen and ic have no seed in common"),
        (lambda d: d.pop("discrepancy"), "slope", "digits has no discrepancy block"),
        (
            lambda d: d["transport"].update(batch_sizes=[]),
            "below-ot",
            "the transport block of digits has no batch size",
        ),
        (
            lambda d: d["transport"].update(sigmas=[1.0]),
            "large-noise",
            "the transport block of digits has a single noise",
        ),
        (lambda d: d["transport"].update(sigmas=[1.0]), "small-noise", None),
        (
            lambda d: d["methods"]["gc"].update(training={"snapshot_every": 10}),
            "speed",
            "gc and ic have snapshots at different steps on digits",
        ),
        (lambda d: d["methods"]["gc"].update(training={"snapshot_every": 10}), "end", None),
    ],
)
def test_a_claim_needs_what_it_compares(tmp_path, change, name, reason):
    params = document()
    digits = params["datasets"]["digits"]
    del digits["figures"]["convergence"], digits["figures"]["discrepancy"]
    digits["tables"], digits["methods"]["gc-frozen"]["predictor"] = {}, {"method": "ic", "seed": 2}
    digits["methods"]["denoiser-gc"]["predictor"]["seed"] = digits["transport"]["predictor"]["seed"] = 2
    change(digits)
    read = Params(write_project(tmp_path, params) / "params.yaml")
    found = next(plan for plan in plans(read, "digits") if plan.name == name)
    if reason is None:
        assert (found.reason, found.files != ()) == (None, True)
    else:
        assert found.reason.startswith(reason)
        assert found.files == ()


def test_a_statistic_of_denoisers_is_not_asked_of_others(tmp_path):
    entries = {
        "a": runs_claim("discrepancy", "gc", "denoiser-ic"),
        "b": runs_claim("area", "denoiser-gc", "denoiser-ic"),
        "c": runs_claim("final", "denoiser-gc", "denoiser-ic"),
    }
    params = Params(write_project(tmp_path, document(entries)) / "params.yaml")
    reasons = {plan.name: plan.reason for plan in plans(params, "digits")}
    assert reasons["a"] == "gc is no denoiser on digits"
    assert "evaluated at their end only" in reasons["b"]
    assert reasons["c"] is None


@pytest.mark.parametrize(
    ("ratio", "text"),
    [(1.0, "0 %"), (1 + 1e-15, "0 %"), (0.9996, "−0.04 %"), (1.00004, "+0.004 %"), (0.997, "−0.3 %"), (0.8, "−20 %")],
)
def test_small_effects_have_a_digit_to_be_told_from_none(ratio, text):
    assert effect_words(evidence([math.log(ratio)])) == text.replace(" ", "\u00a0")


def test_the_forest_plot_wraps_long_labels_and_draws_what_is_beyond_its_axis_as_an_arrow():
    name = "a label of about thirty-eight letters $x$"
    settings = Claims(0.95, 0.8, {})
    items = [evidence([value, value + 0.01]) for value in (-3.0, 0.0, 3.0)]
    items = [replace(item, contrast=f"{name} < {name}") for item in items]
    decisions = decide(items, settings)
    figure = forest_plot([finding_of(*both, settings) for both in zip(items, decisions, strict=True)], 0.95)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.canvas.draw()
    (axes,) = figure.axes
    assert axes.get_position().width > 0.15
    labels = [text.get_text() for text in axes.get_yticklabels()]
    assert labels[0] == "digits"
    assert [label.replace("\n", " ") for label in labels[1:]] == [f"end: {name} < {name}"] * 3
    boxes = [text.get_window_extent() for text in axes.get_yticklabels()]
    assert all(below.y1 <= above.y0 for above, below in pairwise(boxes))
    markers = {line.get_xdata()[0]: line.get_marker() for line in axes.lines if len(line.get_xdata()) == 1}
    assert [markers[LIMITS[0]], markers[LIMITS[1]]] == ["<", ">"]
    assert len(markers) == 3


# The four files.


def test_json_markdown_and_pictures_agree(judged):
    root, content, records = judged
    text = (root / "results/claims.md").read_text()
    # In the order of the JSON.
    lines = [line for line in text.splitlines() if line.endswith(("supported |", "contradicted |", "undecided |"))]
    assert len(lines) == len(content["records"])
    for record, line in zip(content["records"], lines, strict=True):
        assert record["text"] in text
        assert line.split(" | ") == [
            f"| {record['claim']}",
            record["place"],
            record["test"]["words"].replace("<gc>", "\\<gc>").replace("<ic>", "\\<ic>"),
            record["shown"],
            f"{record['verdict']} |",
        ]
    table = [line for line in text.partition("\n## ")[0].splitlines() if line.startswith("|")]
    heads, _, *overview = [line.strip("| ").split(" | ") for line in table]
    assert heads == ["claim", "place", "digits", "mixture2d"]
    marks = {"supported": "✓", "contradicted": "✗", "undecided": "?"}
    for row, name in zip(overview, ENTRIES, strict=True):
        found = [records.get((dataset, name), {}).get("verdict") for dataset in ("digits", "mixture2d")]
        assert row[2:] == [marks.get(verdict, "–") for verdict in found]
    assert image.imread(root / "results/claims.png").std() > 0
    picture = (root / "results/claims.svg").read_text()
    for record in content["records"]:
        if record["test"]["test"] != "theory":
            assert record["shown"] in picture


def test_the_ledger_is_valid_json_and_the_same_when_written_again(root):
    broken = {"checks": [check("Theorem 1", "no tolerance", 1.0, 2.0, tolerance=0.0)]}
    dump(root / "results/mixture2d/theory.json", broken)
    files = [root / f"results/claims.{suffix}" for suffix in ("json", "md", "png", "svg")]
    ledger(root)
    before = [path.read_bytes() for path in files]

    def refuse(constant):
        raise AssertionError(constant)

    json.loads(before[0], parse_constant=refuse)
    ledger(root)
    assert [path.read_bytes() for path in files] == before


def test_a_line_for_each_verdict_and_a_summary_are_said(judged):
    root, content, _ = judged
    lines = gcflow(root, "claims").stderr.splitlines()
    assert len(lines) == len(content["records"]) + 1
    for record, line in zip(content["records"], lines, strict=False):
        assert line.split()[:2] == [f"{record['dataset']}/{record['name']}", record["verdict"]]
        assert line.endswith(record["shown"])
    verdicts = [record["verdict"] for record in content["records"]]
    expected = ", ".join(f"{verdicts.count(v)} {v}" for v in ("supported", "contradicted", "undecided"))
    assert expected in lines[-1]


# The stage.


def test_the_stage_depends_on_exactly_the_files_that_are_read(root, tmp_path_factory):
    params = Params(root / "params.yaml")
    stage = Stages(params).claims()
    assert len(set(stage.deps)) == len(stage.deps)
    assert "results/digits/gc-frozen/seed0/evaluation/metrics.json" in stage.deps
    assert "results/mixture2d/ic/seed0/evaluation/metrics.json" not in stage.deps
    # With nothing else there it runs, and without any one of them it does not.
    bare = write_project(tmp_path_factory.mktemp("bare"), document())
    for dep in stage.deps:
        (bare / dep).parent.mkdir(parents=True, exist_ok=True)
        copy(root / dep, bare / dep)
    ledger(bare)
    assert {str(path.relative_to(bare)) for path in bare.glob("results/claims.*")} == set(stage.outs)
    for dep in stage.deps[:: len(stage.deps) // 4]:
        kept = (bare / dep).read_text()
        (bare / dep).unlink()
        with pytest.raises(GcflowError, match=re.escape(dep)):
            ledger(bare)
        (bare / dep).write_text(kept)


def test_the_stage_is_out_of_date_with_the_claims_and_the_labels_and_seeds_that_it_shows(tmp_path):
    before = Params(write_project(tmp_path / "a", document()) / "params.yaml")

    def same_slice(change):
        params = document()
        change(params)
        after = Params(write_project(tmp_path / "b", params) / "params.yaml")
        return Stages(after).claims().slice(after) == Stages(before).claims().slice(before)

    digits = ("datasets", "digits")
    assert same_slice(lambda d: d[digits[0]][digits[1]]["runs"]["cd"].update(label="another"))
    assert not same_slice(lambda d: d[digits[0]][digits[1]]["runs"]["gc"].update(label="another"))
    assert not same_slice(lambda d: d[digits[0]][digits[1]]["runs"]["gc"].update(seeds=[0, 1]))
    assert "claims.yaml" in Stages(before).claims().deps


def test_without_claims_there_is_no_stage(tmp_path):
    params = Params(write_project(tmp_path) / "params.yaml")
    assert "claims" not in {stage.name for stage in Stages(params)}
    assert "claims.yaml: no such file; there is nothing to test" in error_line(
        gcflow(tmp_path, "claims", check=False).stderr
    )


# Errors.


@pytest.mark.parametrize(
    ("file", "command"),
    [
        ("results/digits/gc/seed1/evaluation/metrics.json", "gcflow evaluate digits/gc/1"),
        ("results/digits/transport.json", "gcflow transport digits"),
        ("results/digits/denoiser-gc/seed2/discrepancy.json", "gcflow discrepancy digits/denoiser-gc/2"),
        ("results/mixture2d/theory.json", "gcflow theory mixture2d"),
    ],
)
@pytest.mark.parametrize("content", [None, "{", '{"records": []}'])
def test_a_file_that_is_missing_or_damaged_is_named_with_the_command_that_makes_it(root, file, command, content):
    (root / file).unlink()
    if content is not None:
        (root / file).write_text(content)
    with pytest.raises(GcflowError) as caught:
        write_ledger(Params(root / "params.yaml"), "all")
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"{root / file}: ")
    if content is None:
        assert line == f"{root / file}: no such file; run {command}"
    assert not (root / "results/claims.json").exists()


def refusal(folder, change):
    params = document()
    change(params["claims"])
    return refusal_of(params, folder, "claims.yaml")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda c: c.update(confidence=1.0), "confidence is 1.0, expected a number < 1"),
        (lambda c: c.update(power=0.0), "power is 0.0, expected a number > 0"),
        (lambda c: c.pop("power"), "power is missing"),
        (lambda c: c["entries"]["end"].update(statistic="best"), "entries.end.statistic is 'best', expected "),
        (
            lambda c: c["entries"]["end"].update(higher="gc"),
            "entries.end.higher is 'gc', expected another method",
        ),
        (
            lambda c: c["entries"]["end"].update(lower="nope"),
            "entries.end.lower is 'nope', which names no method of any data set; known: ic, gc, ",
        ),
        (lambda c: c["entries"]["end"].update(test="guess"), "entries.end.test is 'guess', expected 'runs'"),
        (lambda c: c["entries"]["end"].pop("test"), "entries.end.test is missing"),
        (lambda c: c["entries"]["proved"].pop("statement"), "entries.proved.statement is missing"),
        (lambda c: c["entries"]["below-ot"].update(lower="gc"), "entries.below-ot.lower is not a known key"),
        (
            lambda c: c["entries"].update({"Not a name": ENTRIES["end"]}),
            "entries has 'Not a name', expected names of a-z, 0-9 and -",
        ),
    ],
)
def test_a_claim_that_cannot_be_tested_is_refused_by_key(tmp_path, change, expected):
    assert refusal(tmp_path, change).startswith(expected)


def test_the_repositorys_own_claims_have_a_place_and_one_sentence_each():
    claims = Params().claims
    assert claims is not None
    for name, entry in claims.entries.items():
        place = r"(Introduction|Section \d(\.\d)+|Appendix), (Theorem|Lemma|Table|Figure) \d|beyond the paper"
        assert re.fullmatch(place, entry.place), name
        assert re.fullmatch(r"[A-Z][^.!?]*(\.\d[^.!?]*)*\.", entry.claim), name
    assert len({entry.claim for entry in claims.entries.values()}) == len(claims.entries)
