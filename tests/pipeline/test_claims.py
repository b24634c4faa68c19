"""The ledger of claims on result files that the tests write themselves."""

import json
import math
import re
import shutil
import statistics
import warnings
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from shutil import copy

import numpy as np
import pytest
from builders import refusal_of
from matplotlib import image
from projects import ROOT, dump, error_line, gcflow, tiny_params, write_project
from scipy import stats

from gcflow.errors import GcflowError
from gcflow.pipeline.ledger.course import course_plot
from gcflow.pipeline.ledger.evidence import Evidence
from gcflow.pipeline.ledger.findings import (
    decide,
    effect_words,
    finding_of,
    findings_on,
    judge,
    methods_over_seeds,
    pairs_wanted,
)
from gcflow.pipeline.ledger.forest import LIMITS, forest_plot
from gcflow.pipeline.ledger.plans import VERDICTS, Plan, plans
from gcflow.pipeline.ledger.rounds import decide_round
from gcflow.pipeline.ledger.run_statistics import run_statistic, summary
from gcflow.pipeline.ledger.summaries import complete_evidence, gather
from gcflow.pipeline.ledger.write import ledger_document, markdown, write_ledger
from gcflow.pipeline.params import Params, Run
from gcflow.pipeline.schema import Claims, RunsClaim
from gcflow.pipeline.stages import Stages
from gcflow.significance import Estimate, Paired, Welch, holm, seeds_needed
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
SEEDS = [*range(10)]
COSTS = ("falls-at-small-noise", "falls-at-large-noise", "below-ot")
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


METHODS = {"ic", "gc", "gc-frozen", "denoiser-ic", "denoiser-gc"}
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


def terms(confidence=0.95):
    names = ("final", "start", "area", "rise", "discrepancy", "discrepancy-slope")
    margins = dict.fromkeys(names, 0.1) | dict.fromkeys((s for s in COSTS), 0.01)
    return {"confidence": confidence, "prior_scale": 1.0, "most_seeds": 40, "margins": margins}


def settings(**changes):
    return Claims(**(terms() | {"entries": {}} | changes))


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
    params["claims"] = terms(confidence) | {"entries": entries or ENTRIES}
    return json.loads(json.dumps(params))


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
WIGGLE = [0.00, 0.01, -0.01, 0.02, 0.00, -0.02, 0.01, 0.00, 0.01, -0.01]


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
    """claims.json: the document, and its records by data set and name. command: which draws the pictures, too."""
    if command:
        gcflow(root, "claims")
    else:
        judgement = judge(Params(root / "params.yaml"), "all")
        dump(root / "results/claims.json", ledger_document(judgement))
        (root / "results/claims.md").write_text(markdown(judgement))
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


def statistic(name, records, source="file"):
    """From records of a stage, by way of the summary that docs/evidence keeps, as JSON."""
    found = summary("discrepancy" if name.startswith("discrepancy") else "evaluate", records, source)
    return run_statistic(name, json.loads(json.dumps(found)), source)


def test_statistics_of_a_curve_are_those_of_its_logarithms():
    records = metrics({20: [math.e**3], 40: [math.e], 60: [2.0, 4.0, 6.0]})

    def found(name):
        return statistic(name, records)

    assert found("final") == pytest.approx(math.log(4))
    assert found("start") == pytest.approx(3)
    assert found("area") == pytest.approx((3 + 1 + math.log(4)) / 3)
    # Of the three generation seeds at the end, the one that the snapshots have.
    assert found("rise") == pytest.approx(max(0.0, math.log(2.0 / min(2.0, math.e))))
    rising = metrics({20: [2.0], 40: [1.0], 60: [5.0, 9.0]})
    assert statistic("rise", rising) == pytest.approx(math.log(5))
    assert statistic("final", list(reversed(records))) == pytest.approx(math.log(4))


@pytest.mark.parametrize("power", [0.0, 1.0, 2.5])
def test_the_slope_of_a_power_law_is_its_exponent_whatever_happens_below_1(power):
    records = discrepancies(power, factor=3.0)
    assert statistic("discrepancy-slope", records) == pytest.approx(-power)
    mean = statistics.fmean(math.log(3.0 * min(1.0, sigma**-power)) for sigma in LEVELS)
    assert statistic("discrepancy", records) == pytest.approx(mean)


@pytest.mark.parametrize(
    ("name", "records", "problem"),
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
def test_records_that_lack_a_statistic_are_refused_by_file(name, records, problem):
    with pytest.raises(GcflowError, match=problem) as caught:
        statistic(name, records, "some/file.json")
    assert str(caught.value).startswith("some/file.json: ")


# Verdicts.


FILES = tuple(f"results/digits/{method}/seed0/evaluation/metrics.json" for method in "ab")


def evidence(values, statistic="final"):
    claim = RunsClaim("here", "a claim", statistic, "a", "b")
    plan = Plan("name", claim, "digits", ((Run("digits", "a", 0), Run("digits", "b", 0)),), FILES, None)
    of_seeds = {str(seed): value for seed, value in enumerate(values)}
    sides = {"a": of_seeds, "b": dict.fromkeys(of_seeds, 0.0)}
    return Evidence(plan, statistic, "a < b", "seed", {"a": len(values)}, sides, Paired(tuple(values), 1.0))


CLEAR = [-1.0, -1.001, -0.999, -1.0005, -0.9995, -1.0, -1.0001]
NOISE = [-1.0, 2.0, 0.5, -0.7, 1.0, -1.5, -0.3]


def test_a_verdict_needs_a_small_adjusted_p_and_then_follows_the_sign_or_a_narrow_interval():
    family = [evidence(CLEAR), evidence([-x for x in CLEAR]), evidence(NOISE), evidence([x + 1.0 for x in CLEAR])]
    findings = decide(family, settings())
    assert [found.verdict for found in findings] == ["supported", "contradicted", "undecided", "no difference"]
    adjusted = holm([item.comparison.p for item in family])
    assert [found.p_adjusted for found in findings] == [p for p, _ in adjusted]
    assert {found.tests for found in findings} == {4}
    # The interval shown decides: at Holm's step where it excludes 0, else at that of all tests together.
    steps = [
        4 if found.verdict in ("undecided", "no difference") else step
        for found, (_, step) in zip(findings, adjusted, strict=True)
    ]
    assert [found.level for found in findings] == pytest.approx([0.05 / step for step in steps])
    assert [found.interval for found in findings] == [
        item.comparison.interval(found.level) for item, found in zip(family, findings, strict=True)
    ]
    wide = settings(margins=dict.fromkeys(terms()["margins"], 1e-6))
    assert decide(family, wide)[3].verdict == "undecided"


def test_a_verdict_once_reached_is_not_taken_back_by_seeds_that_say_nothing():
    found = [decide([evidence([*CLEAR, *more])], settings())[0] for more in ([], [1.5, -2.0, 2.5])]
    assert [item.verdict for item in found] == ["supported", "supported"]
    assert found[1].interval == found[0].interval


def test_a_verdict_that_stands_alone_falls_among_many_tests_that_find_nothing():
    borderline, noise = evidence([-1.0, -1.2, -0.7, -1.1, -0.9, -1.3]), evidence(NOISE)
    enough = math.floor(0.05 / borderline.comparison.p)
    assert 1 <= enough < 200
    assert decide([borderline, *[noise] * (enough - 1)], settings())[0].verdict == "supported"
    assert decide([borderline, *[noise] * (enough + 1)], settings())[0].verdict == "undecided"


def test_the_seeds_that_would_decide_come_from_the_observed_spread_and_the_strictest_level():
    values = [-1.0, 0.5, -0.9, -0.2]
    item, other = evidence(values), evidence([0.1, -0.1, 0.3])
    found, _ = decide([item, other], settings())
    assert found.verdict == "undecided"
    assert found.seeds_needed == seeds_needed(item.comparison.effect, statistics.stdev(values), 1.0, 0.05 / 2, 0.1)
    assert found.seeds_needed > 4


def test_a_single_seed_borrows_the_spread_of_the_same_statistic_only():
    alone, first, second = evidence([-0.4]), evidence([0.1, -0.1, 0.3]), evidence([0.5, -0.3])
    other = evidence([9.0, -9.0], statistic="area")
    pooled = math.sqrt((first.comparison.std**2 + second.comparison.std**2) / 2)
    found = decide([alone, first, second, other], settings())[0]
    assert (found.verdict, found.p_adjusted) == ("undecided", 1.0)
    assert found.assumed_std == pytest.approx(pooled)
    assert found.seeds_needed == seeds_needed(-0.4, pooled, 1.0, 0.05 / 4, 0.1)
    unknown = decide([alone, other], settings())[0]
    # The fewest with which E can reach 40.
    assert (unknown.assumed_std, unknown.seeds_needed) == (None, 6)


def test_an_undecided_claim_wants_as_many_pairs_as_can_decide_and_half_as_many_more_at_most():
    def wanted(values, **changes):
        item = evidence(values)
        return pairs_wanted(item, decide([item], settings(**changes))[0], settings(**changes))

    assert wanted(CLEAR) == len(CLEAR)
    assert wanted([-0.4]) == 5
    assert wanted([*NOISE, *NOISE, *NOISE, *NOISE]) == 40
    assert wanted([*NOISE, *NOISE]) == 21
    assert wanted([*NOISE, *NOISE], most_seeds=16) == 16
    assert wanted([*NOISE, *NOISE], most_seeds=10) == 14
    nearly = [-0.9, 0.1, -0.9, -0.6, -1.0, 0.0, -0.8, -0.2]
    needed = decide([evidence(nearly)], settings())[0].seeds_needed
    assert wanted(nearly) == needed < 12


def simulated_ledger(source):
    """Claims about methods whose runs share seeds, with their true effects, watched as the workflow watches them.

    Seeds are added for as long as any claim is undecided that has not the most of them: a claim stops, too, by what the
    data of others say.
    """
    methods, terms_now = 7, settings(confidence=0.95, most_seeds=40)
    truth = np.array([0.0, *source.choice([0.0, 0.0, 0.03, 0.5, 1.5], methods - 1)])
    # Of each seed: what all methods share, and what is a method's own.
    values = truth + source.normal(0, 1.0, (40, 1)) + source.normal(0, 0.3, (40, methods))
    sides = [(lower, higher) for lower in range(methods) for higher in range(lower)][::2]
    pairs = dict.fromkeys(sides, 1)
    while True:
        family = [evidence([*(values[:n, lower] - values[:n, higher])]) for (lower, higher), n in pairs.items()]
        decisions = decide(family, terms_now)
        # A method has as many seeds as the claim that wants most of it.
        seeds = [0] * methods
        for side, item, found in zip(sides, family, decisions, strict=True):
            for method in side:
                seeds[method] = max(seeds[method], pairs_wanted(item, found, terms_now))
        grown = {(lower, higher): min(seeds[lower], seeds[higher]) for lower, higher in sides}
        if grown == pairs:
            return [
                (found.verdict, truth[lower] - truth[higher])
                for (lower, higher), found in zip(sides, decisions, strict=True)
            ]
        pairs = grown


def test_of_simulated_ledgers_with_known_truth_at_most_a_twentieth_has_a_false_verdict():
    """Of 200, with Clopper and Pearson's interval of that share, and with the power to find what is large."""
    source, margin = np.random.default_rng(5), terms()["margins"]["final"]
    ledgers = [simulated_ledger(source) for _ in range(200)]

    def false(verdict, effect):
        return (
            (verdict == "supported" and effect >= 0)
            or (verdict == "contradicted" and effect <= 0)
            or (verdict == "no difference" and abs(effect) > margin)
        )

    wrong = sum(any(false(*claim) for claim in ledger) for ledger in ledgers)
    interval = stats.binomtest(wrong, len(ledgers)).proportion_ci(0.95)
    share = f"95 % interval {interval.low:.3f} to {interval.high:.3f}"
    found = f"{wrong} ledgers of {len(ledgers)} with a false verdict, {share}"
    assert wrong <= 0.05 * len(ledgers), found
    large = [verdict for ledger in ledgers for verdict, effect in ledger if abs(effect) >= 1]
    none = [verdict for ledger in ledgers for verdict, effect in ledger if effect == 0]
    assert large.count("undecided") < 0.01 * len(large)
    assert none.count("no difference") + none.count("undecided") > 0.98 * len(none)


def test_costs_of_optimal_transport_are_means_of_thirty_batches_and_more():
    params = Params(ROOT / "params.yaml")
    measured = [params.dataset(name).transport for name in params.document["datasets"]]
    batches = [transport.samples // max(transport.batch_sizes) for transport in measured if transport]
    assert batches
    assert min(batches) >= 30


# Through the command.


def test_the_ledger_holds_every_claim_on_every_data_set_once(judged):
    _, content, records = judged
    untested = {(item["dataset"], item["name"]) for item in content["not_tested"]}
    assert len(records) + len(untested) == len(content["records"]) + len(content["not_tested"])
    assert set(records) | untested == {(dataset, name) for dataset in ("digits", "mixture2d") for name in ENTRIES}
    assert not set(records) & untested


def test_the_methods_stand_side_by_side_over_all_seeds(judged):
    root, content, _ = judged
    means = [1.05 * (1.6 + wiggle) for wiggle in WIGGLE]
    # Of two generation seeds, of which one is a tenth higher.
    within = math.sqrt(statistics.fmean((0.1 * (1.6 + wiggle)) ** 2 / 2 for wiggle in WIGGLE))
    expected = [
        ["method", "seeds", "classifier FD ↓"],
        ["iCT-IC", "10", f"2.10 ± 0.00 ({0.2 / math.sqrt(2):.2f})"],
        ["iCT-GC", "10", f"{statistics.fmean(means):.2f} ± {statistics.stdev(means):.2f} ({within:.2f})"],
        ["iCT-GC, frozen", "1", "1.50 (0.00)"],
    ]
    assert content["methods"]["digits"] == expected
    lines = (root / "results/claims.md").read_text().splitlines()
    assert all(f"| {' | '.join(row)} |" in lines for row in expected)


def test_a_claim_about_runs_holds_its_data_its_test_and_what_scipy_finds(judged):
    _, content, records = judged
    record = records["digits", "end"]
    lower = [math.log(1.05 * (1.6 + wiggle)) for wiggle in WIGGLE]
    higher = [math.log(1.05 * 2.0)] * len(SEEDS)
    expected = Paired(tuple(a - b for a, b in zip(lower, higher, strict=True)), 1.0)
    low, high = expected.interval(record["level"])
    assert [*record["values"]["gc"].values()] == pytest.approx(lower)
    assert [*record["values"]["ic"].values()] == pytest.approx(higher)
    assert record["effect"] == pytest.approx(expected.effect)
    assert record["interval"] == pytest.approx([low, high])
    assert record["ratio"] == pytest.approx(math.exp(expected.effect))
    assert record["ratio_interval"] == pytest.approx([math.exp(low), math.exp(high)])
    assert (record["p"], record["std"]) == pytest.approx((expected.p, expected.std))
    assert record["seeds"] == SEEDS
    assert set(record["runs"]) == {f"digits/{method}/{seed}" for method in ("gc", "ic") for seed in SEEDS}
    assert set(record["files"]) == {
        f"results/digits/{m}/seed{k}/evaluation/metrics.json" for m in ("gc", "ic") for k in SEEDS
    }
    assert record["verdict"] == "supported"
    assert record["confidence"] == content["confidence"] == 0.95
    assert record["shown"].startswith(f"−{100 - 100 * record['ratio']:.0f}\u00a0% [")


def test_p_values_are_adjusted_over_all_statistical_tests_of_a_data_set_and_theory_is_none(judged):
    _, content, records = judged
    tested = [record for (dataset, _), record in records.items() if dataset == "digits"]
    assert content["tests"] == {"digits": len(tested), "mixture2d": 0}
    assert [record["p_adjusted"] for record in tested] == pytest.approx([p for p, _ in holm([r["p"] for r in tested])])
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
    expected = Welch((Estimate(20.0, 0.1, 2), Estimate(60.0, 0.1, 48)))
    assert (below["p"], below["interval"]) == (expected.p, [*expected.interval(below["level"])])
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
    assert ledger(root)[1]["digits", "small-noise"]["verdict"] == "no difference"
    dump(root / "results/digits/transport.json", transport({0.5: 0.1, 5.0: 0.2}, error=1.0))
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
    params["claims"]["margins"]["final"] = 1e-9
    root = fill(write_project(tmp_path, params))
    found = []
    for value in (1.6, 2.4):
        dump(evaluation(root, "digits/gc/0"), metrics({20: [3.0], 40: [value]}))
        found.append(ledger(root)[1]["digits", "end"]["verdict"])
    assert found == ["supported", "undecided"]


def test_a_single_common_seed_is_undecided_with_the_pooled_number_of_seeds(judged):
    _, _, records = judged
    record, other = records["digits", "end-alone"], records["digits", "end"]
    assert record["seeds"] == [0]
    assert (record["verdict"], record["p"], record["p_adjusted"]) == ("undecided", 1.0, 1.0)
    assert record["interval"] == [None, None]
    assert record["effect"] == pytest.approx(math.log(1.5 / (1.05 * 2.0)))
    assert record["assumed_std"] == pytest.approx(other["std"])
    alpha = 0.05 / record["tests"]
    assert record["seeds_needed"] == seeds_needed(record["effect"], other["std"], 1.0, alpha, 0.1)
    assert f"about {record['seeds_needed']} seeds would decide it" in record["text"]
    assert "pooled: " in record["text"]


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
    item = evidence([math.log(ratio)])
    assert effect_words(item, decide([item], settings())[0]) == text.replace(" ", "\u00a0")


def test_the_forest_plot_wraps_long_labels_and_draws_what_is_beyond_its_axis_as_an_arrow():
    name = "a label of about thirty-eight letters $x$"
    items = [evidence([value, value + 0.01]) for value in (-3.0, 0.0, 3.0)] + [evidence([-3.0])]
    items.append(evidence([-3.0, -3.1], statistic="discrepancy-slope"))
    items = [replace(item, contrast=f"{name} < {name}") for item in items]
    terms_now = settings(confidence=0.2)
    decisions = decide(items, terms_now)
    findings = [finding_of(*both, terms_now) for both in zip(items, decisions, strict=True)]
    figure = forest_plot(findings, 0.95)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.canvas.draw()
    axes, of_slopes = figure.axes
    assert (axes.get_xscale(), of_slopes.get_xscale()) == ("log", "linear")
    assert axes.get_position().width > 0.15
    labels = [text.get_text() for text in axes.get_yticklabels()]
    assert labels[0] == "digits"
    assert [label.replace("\n", " ") for label in labels[1:]] == [f"end: {name} < {name}"] * 4
    boxes = [text.get_window_extent() for text in axes.get_yticklabels()]
    assert all(below.y1 <= above.y0 for above, below in pairwise(boxes))
    marks = [line for line in axes.lines if len(line.get_xdata()) == 1]
    markers = {line.get_xdata()[0]: line.get_marker() for line in marks}
    assert [markers[LIMITS[0]], markers[LIMITS[1]]] == ["<", ">"]
    # The single seed, in the last row, is hollow.
    assert [line.get_markerfacecolor() == "white" for line in marks if line.get_marker() in "<>s"][-1]
    shown = course_plot(findings)
    shown.canvas.draw()
    assert [panel.get_ylabel() for panel in shown.axes if panel.get_visible()] == ["ln ratio"] * 4 + ["slope"]


# The four files.


def test_json_markdown_and_pictures_agree(judged):
    root, content, records = judged
    text = (root / "results/claims.md").read_text()
    # In the order of the JSON.
    lines = [line for line in text.splitlines() if line.endswith(tuple(f" {verdict} |" for verdict in VERDICTS))]
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
    marks = {"supported": "✓", "contradicted": "✗", "no difference": "=", "undecided": "?"}
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
    write_ledger(Params(root / "params.yaml"), "all")
    before = [path.read_bytes() for path in files]

    def refuse(constant):
        raise AssertionError(constant)

    json.loads(before[0], parse_constant=refuse)
    write_ledger(Params(root / "params.yaml"), "all")
    assert [path.read_bytes() for path in files] == before


def test_a_line_for_each_verdict_and_a_summary_are_said(judged):
    root, content, _ = judged
    lines = gcflow(root, "claims").stderr.splitlines()
    assert len(lines) == len(content["records"]) + 1
    for record, line in zip(content["records"], lines, strict=False):
        assert line.split("  ")[1].split()[0] == f"{record['dataset']}/{record['name']}"
        assert f" {record['verdict']} " in line
        assert line.endswith(record["shown"])
    verdicts = [record["verdict"] for record in content["records"]]
    expected = ", ".join(f"{verdicts.count(v)} {v}" for v in VERDICTS)
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
    write_ledger(Params(bare / "params.yaml"), "all")
    assert {str(path.relative_to(bare)) for path in bare.glob("results/claims*")} == set(stage.outs)
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


# More seeds, and docs/evidence.


def test_a_round_keeps_what_was_measured_and_adds_the_seeds_that_undecided_claims_want_with_what_those_need(root):
    stages = [stage.name for stage in Stages(Params(root / "params.yaml"))]
    decide_round(Params(root / "params.yaml"), "all")
    params = Params(root / "params.yaml")
    added = params.added
    assert added is not None
    # Of ten pairs all are decided; the frozen predictor has one seed, and looks at runs of ic with the same.
    assert (added.round, set(added.seeds)) == (1, {"digits"})
    assert dict(added.seeds["digits"]) == {"gc-frozen": tuple(range(1, 7))}
    assert [run.seed for run in params.runs("digits", added=True) if run.method == "gc-frozen"] == [*range(7)]
    # What is no claim's business does without them.
    assert [stage.name for stage in Stages(params)] == stages
    assert "results/digits/gc-frozen/seed6/evaluation/metrics.json" in Stages(params).evidence
    ours, evidence = gather(params, "digits"), complete_evidence(params, "digits")
    assert evidence is not None
    assert (evidence.runs, evidence.transport) == (ours.runs, ours.transport)
    # It is what another clone goes on from: there the seeds that it lacks are measured, and nothing else.
    first = (root / "docs/evidence/digits.jsonl").read_text()
    shutil.rmtree(root / "results")
    seeds = added.seeds["digits"]["gc-frozen"]
    assert Stages(params).evidence == [
        str(evaluation(root, f"digits/gc-frozen/{seed}").relative_to(root)) for seed in seeds
    ]
    for seed in seeds:
        dump(evaluation(root, f"digits/gc-frozen/{seed}"), metrics({20: [4.0], 40: [1.5 + 0.01 * seed]}))
    decide_round(Params(root / "params.yaml"), "all")
    both = (root / "docs/evidence/digits.jsonl").read_text()
    assert both.startswith(first)
    assert [json.loads(line).get("run") for line in both.removeprefix(first).splitlines()] == [
        None,
        *(f"digits/gc-frozen/{seed}" for seed in seeds),
    ]
    assert Stages(Params(root / "params.yaml")).evidence == []
    # All decided: what was added is decided, too, and nothing more is asked for.
    assert Params(root / "params.yaml").added == added
    assert json.loads((root / "results/decided.json").read_text())["new"] == 0


def test_docs_evidence_decides_and_stands_beside_what_was_measured_here(root):
    decide_round(Params(root / "params.yaml"), "all")
    for value, here, apart in ((2.0, "−4.8", False), (2.5, "+19", True)):
        for seed in SEEDS:
            dump(evaluation(root, f"digits/gc/{seed}"), metrics({20: [3.0], 40: [value]}))
        content, records = ledger(root)
        end = records["digits", "end"]
        assert (end["verdict"], end["here_seeds"], end["apart"]) == ("supported", len(SEEDS), apart)
        assert end["here"].startswith(f"{here}\u00a0% [")
    assert "points apart" in (root / "results/claims.md").read_text()
    assert len(content["commits"]["digits"]) == 1
    assert "docs/evidence/digits.jsonl" in Stages(Params(root / "params.yaml")).claims().deps
    # Of other settings it decides nothing.
    changed = document()
    changed["datasets"]["digits"]["methods"]["gc"]["mu"] = 0.4
    write_project(root, changed)
    content, records = ledger(root)
    assert "methods.gc; renew it" in content["notes"]["digits"]
    assert records["digits", "end"]["verdict"] != "supported"
    (root / "docs/evidence/digits.jsonl").write_text("{")
    with pytest.raises(GcflowError, match=r"digits\.jsonl: not what snakemake --profile local decided writes"):
        complete_evidence(Params(root / "params.yaml"), "digits")


@pytest.mark.parametrize(
    ("change", "measured_anew"),
    [
        (lambda entry: entry["methods"]["gc-frozen"].update(mu=0.4), {"gc-frozen"}),
        # A denoiser of GC, GC with a frozen predictor and the transport cost rest on a run of IC.
        (
            lambda entry: entry["methods"]["ic"].update(network={"dropout": 0.1}),
            {"ic", "gc-frozen", "denoiser-gc", "transport.json"},
        ),
        (lambda entry: entry["evaluation"].update(samples=96), {"ic", "gc", "gc-frozen"}),
        (lambda entry: entry["transport"].update(seed=5), {"transport.json"}),
        (lambda entry: entry["process"].update(sigma_max=70.0), {*METHODS, "transport.json"}),
        (lambda entry: entry["runs"]["ic"].update(label="IC"), set()),
    ],
)
def test_what_rests_on_a_changed_setting_is_measured_anew_and_nothing_else(root, change, measured_anew):
    decide_round(Params(root / "params.yaml"), "all")
    (root / "seeds.yaml").unlink()
    changed = document()
    change(changed["datasets"]["digits"])
    write_project(root, changed)
    files = Stages(Params(root / "params.yaml")).evidence
    assert {file.split("/")[2] for file in files} == measured_anew
    decide_round(Params(root / "params.yaml"), "all")
    (root / "seeds.yaml").unlink(missing_ok=True)
    assert Stages(Params(root / "params.yaml")).evidence == []


@pytest.mark.parametrize("page", ["README.md", "docs/claims.md"])
def test_docs_evidence_gives_the_repositorys_verdicts_again(page):
    params, counts, text = Params(ROOT / "params.yaml"), Counter(), (ROOT / page).read_text()
    for dataset in params.at_scale("embedded"):
        if (evidence := complete_evidence(params, dataset)) is not None:
            counts.update(found.verdict for found in findings_on(params, dataset, evidence)[0])
    words = ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS)
    assert f"**{words}**" in " ".join(text.split())
    head, *rows = methods_over_seeds(params, "digits", complete_evidence(params, "digits"))
    shown = text.partition(f"| {' | '.join(head)} |\n| --- | --- | --- |\n")[2].partition("\n\n")[0].splitlines()
    assert len(shown) >= 5
    assert set(shown) <= {f"| {' | '.join(row)} |" for row in rows}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("round: 1\nseeds: {digits: {goc: [3]}}", "seeds.digits.goc has no runs in params.yaml; delete the key"),
        ("round: 0\nseeds: {}", "round is 0, expected a number >= 1"),
        ("round: 1\nseeds: {digits: {gc: [3, 3]}}", "seeds.digits.gc is [3, 3], expected "),
    ],
)
def test_added_seeds_that_cannot_be_are_refused_by_key(root, text, problem):
    (root / "seeds.yaml").write_text(text)
    with pytest.raises(GcflowError, match=re.escape(f"seeds.yaml: {problem}")):
        Params(root / "params.yaml")


# Errors.


@pytest.mark.parametrize(
    "file",
    [
        "results/digits/gc/seed1/evaluation/metrics.json",
        "results/digits/transport.json",
        "results/digits/denoiser-gc/seed2/discrepancy.json",
        "results/mixture2d/theory.json",
    ],
)
@pytest.mark.parametrize("content", [None, "{", '{"records": []}'])
def test_a_file_that_is_missing_or_damaged_is_named(root, file, content):
    (root / file).unlink()
    if content is not None:
        (root / file).write_text(content)
    with pytest.raises(GcflowError) as caught:
        write_ledger(Params(root / "params.yaml"), "all")
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"{root / file}: ")
    assert not (root / "results/claims.json").exists()


def refusal(folder, change):
    params = document()
    change(params["claims"])
    return refusal_of(params, folder, "claims.yaml")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda c: c.update(confidence=1.0), "confidence is 1.0, expected a number < 1"),
        (lambda c: c.update(prior_scale=0.0), "prior_scale is 0.0, expected a number > 0"),
        (lambda c: c.pop("margins"), "margins is missing"),
        (lambda c: c["margins"].pop("final"), "margins is ['start', "),
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
