"""How far a coupling's noise is from its velocity, and what its pairs cost: measured by runs, against closed forms."""

import json
import math
import re
from itertools import pairwise

import pytest
import torch
from builders import refusal_of
from projects import (
    contents,
    error_line,
    gcflow,
    prepare_data,
    run_folder,
    tiny_params,
    train_here,
    write_project,
)

from gcflow import oracles
from gcflow.couplings import optimal_assignment
from gcflow.data import load_dataset
from gcflow.errors import GcflowError
from gcflow.metrics import transport_cost
from gcflow.oracles import GaussianMixture, velocity
from gcflow.pipeline import discrepancy, transport
from gcflow.pipeline.discrepancy import measure_discrepancy
from gcflow.pipeline.folders import data_folder, snapshot
from gcflow.pipeline.params import Params
from gcflow.pipeline.stages import Stages
from gcflow.pipeline.transport import measure_transport
from gcflow.theory.transport_cost import gaussian_costs
from gcflow.weights import load_run_model

STD, SIGMAS, SAMPLES, BATCH = 0.6, [0.2, 1.0, 8.0], 4096, 16
CENTRE = [0.5, -0.25]


def document():
    """The tiny grid with a Gaussian in place of its mixture, and denoisers of every coupling on it."""
    whole = tiny_params()
    entry = whole["datasets"]["mixture2d"]
    # Many points, so that their own moments are those of the Gaussian.
    entry["data"] = {"source": "mixture2d", "means": [CENTRE], "std": STD, "count": 100_000, "seed": 0}
    entry["process"] |= {"data_mean": 0.1}
    denoising = {"objective": "denoising", "training": {"schedule": {"kind": "edm"}}}
    augmented = {"coupling": "gc", "predictor": {"method": "ic", "seed": 0}}
    entry["methods"] |= {
        "denoiser": denoising,
        "denoiser-ot": denoising | {"coupling": "ot"},
        "denoiser-gc": denoising | augmented | {"mu": 1.0},
        "denoiser-half": denoising | augmented | {"mu": [0.0, 0.5]},
    }
    entry["runs"] |= {
        name: {"label": f"Label of {name}", "seeds": [0, 1] if name == "denoiser" else [0]}
        for name in ("denoiser", "denoiser-ot", "denoiser-gc", "denoiser-half")
    }
    entry["discrepancy"] = {"samples": SAMPLES, "sigmas": SIGMAS, "seed": 0}
    entry["transport"] = {
        "predictor": {"method": "ic"},
        "samples": 1024,
        "batch_sizes": [8, 64],
        "sigmas": [0.1, 0.5, 2.0, 10.0, 80.0],
        "seed": 0,
    }
    entry["figures"] = {
        "discrepancy": {
            "kind": "discrepancy",
            "title": "Tiny discrepancy",
            "methods": ["denoiser", "denoiser-ot", "denoiser-gc"],
        },
        "transport": {"kind": "transport", "title": "Tiny transport"},
    }
    return whole


def without_discrepancy(*datasets):
    """The document without these data sets' discrepancy blocks and their figures."""
    whole = document()
    for name in datasets:
        del whole["datasets"][name]["discrepancy"], whole["datasets"][name]["figures"]["discrepancy"]
    return whole


RUNS = ("denoiser/0", "denoiser/1", "denoiser-ot/0", "denoiser-gc/0", "denoiser-half/0")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project whose runs are trained and measured."""
    root = prepare_data(write_project(tmp_path_factory.mktemp("discrepancy"), document()), "digits", "mixture2d")
    params = Params(root / "params.yaml")
    for name in ("digits/denoiser/0", "mixture2d/ic/0", *(f"mixture2d/{run}" for run in RUNS)):
        train_here(root, name)
        if "denoiser" in name:
            measure_discrepancy(params, name)
    with pytest.MonkeyPatch.context() as patch:
        # The first 512 of the pairs take the exact flow.
        patch.setattr(transport, "EXACT_PRODUCTS", 1024)
        measure_transport(params, "mixture2d")
    return root


@pytest.fixture
def params(project):
    return Params(project / "params.yaml")


def read(root, name):
    return json.loads((run_folder(root, name) / "discrepancy.json").read_text())


def values(found, estimate):
    """Noise level to the record of an estimate."""
    return {r["sigma"]: r for r in found["records"] if r["estimate"] == estimate}


@pytest.fixture
def scratch(project, params, monkeypatch, tmp_path):
    """Measures a run with other models in the place of its own, and leaves the project's files as they are."""

    def measure(name, model, frozen=None):
        monkeypatch.setattr(oracles, "PREDICTED", 1_000_000)
        monkeypatch.setattr(discrepancy, "load_run_model", lambda *args, **more: model)
        if frozen is not None:
            monkeypatch.setattr(discrepancy, "load_frozen", lambda *args: {"predictor": frozen})
        monkeypatch.setattr(discrepancy, "discrepancy_path", lambda *args: tmp_path / "found.json")
        measure_discrepancy(params, name)
        return json.loads((tmp_path / "found.json").read_text())

    return measure


def exact(params):
    """The data's own distribution in model space."""
    entry = params.dataset("mixture2d")
    return entry.data.exact_mixture(torch.zeros(1, 2), entry.process)


class Recorder:
    """A denoiser that keeps the noisy points it is asked about, by noise level."""

    def __init__(self):
        self.noisy = {}

    def __call__(self, x, sigma):
        self.noisy[round(sigma[0].item(), 6)] = x
        return torch.zeros_like(x)


@pytest.fixture
def pairs(scratch):
    """Data and noise of independent pairs, recovered from the points at two noise levels."""
    seen = Recorder()
    scratch("mixture2d/denoiser/0", seen)
    low, high = seen.noisy[0.2], seen.noisy[8.0]
    z = (high - low) / 7.8
    return low - 0.2 * z, z


# Independent pairs.


def test_with_the_exact_denoiser_the_estimate_is_the_exact_one(params, scratch):
    found = scratch("mixture2d/denoiser/0", exact(params).denoise)
    ours, theirs = values(found, "denoiser"), values(found, "exact")
    assert list(ours) == SIGMAS
    for sigma in SIGMAS:
        assert ours[sigma] == theirs[sigma] | {"estimate": "denoiser"}


def test_the_exact_discrepancy_of_a_gaussian_is_its_closed_form(project):
    for sigma, record in values(read(project, "mixture2d/denoiser/0"), "exact").items():
        closed = 2 * STD**2 / (STD**2 + sigma**2)
        assert abs(record["value"] - closed) < 4 * record["standard_error"] < 0.15 * closed
        # z - v is Gaussian here, so its squared length has the standard deviation of its mean, and d = 2 of them.
        assert record["standard_error"] == pytest.approx(closed / math.sqrt(SAMPLES), rel=0.15)


def test_a_denoiser_that_is_off_by_a_constant_is_farther_from_the_noise_by_its_square(params, scratch):
    offset = torch.tensor([0.3, -0.4])
    mixture = exact(params)
    found = scratch("mixture2d/denoiser/0", lambda x, sigma: mixture.denoise(x, sigma) + offset)
    for sigma in SIGMAS:
        ours, theirs = (values(found, estimate)[sigma] for estimate in ("denoiser", "exact"))
        # The cross term has mean 0 and this standard error.
        error = 2 * 0.5 / sigma * math.sqrt(STD**2 / (STD**2 + sigma**2) / SAMPLES)
        assert ours["value"] - theirs["value"] == pytest.approx((0.5 / sigma) ** 2, abs=4 * error)
        assert ours["value"] > theirs["value"]


def test_an_estimate_is_the_mean_over_pairs_with_the_runs_own_ema(project, params, pairs):
    x, z = pairs
    name = "mixture2d/denoiser/0"
    model = load_run_model(snapshot(run_folder(project, name), 40), params.run_config(name))
    for sigma, record in values(read(project, name), "denoiser").items():
        level = torch.full((SAMPLES,), sigma)
        with torch.no_grad():
            gaps = (z - velocity(model, x + sigma * z, level)).square().sum(1)
        assert record["value"] == pytest.approx(gaps.mean().item(), rel=1e-4)
        assert record["standard_error"] == pytest.approx(gaps.std().item() / math.sqrt(SAMPLES), rel=1e-3)


def test_the_pairs_are_data_in_model_space_with_standard_noise(params, pairs):
    x, z = pairs
    data = load_dataset(data_folder(params.root, "mixture2d")).samples - 0.1
    distance = (x[:50, None] - data).abs().amax(2)
    assert distance.min(1).values.max() < 1e-5
    assert len(x.unique(dim=0)) > 0.9 * SAMPLES
    assert z.mean(0).abs().max() < 4 / math.sqrt(SAMPLES)
    covariance = torch.cov(torch.cat([x, z], dim=1).T)
    expected = torch.diag(torch.tensor([STD**2, STD**2, 1.0, 1.0]))
    torch.testing.assert_close(covariance, expected, rtol=0, atol=5 * math.sqrt(2 / SAMPLES))


def test_two_seeds_of_a_method_are_measured_on_the_same_pairs(project):
    first, second = (read(project, f"mixture2d/denoiser/{seed}") for seed in (0, 1))
    assert values(first, "exact") == values(second, "exact")
    assert values(first, "denoiser") != values(second, "denoiser")


def test_the_exact_value_is_left_out_where_the_data_are_many(params, scratch, monkeypatch):
    monkeypatch.setattr(discrepancy, "LARGEST_EXACT_DATA", 199_999)
    found = scratch("mixture2d/denoiser/0", exact(params).denoise)
    assert {r["estimate"] for r in found["records"]} == {"denoiser"}
    monkeypatch.setattr(discrepancy, "LARGEST_EXACT_DATA", 200_000)
    assert values(scratch("mixture2d/denoiser/0", exact(params).denoise), "exact")


def test_the_exact_denoiser_is_where_its_data_are(params):
    # `meta` stands for any other device than the CPU.
    entry = params.dataset("mixture2d")
    mixture = entry.data.exact_mixture(torch.zeros(3, 2, device="meta"), entry.process)
    assert mixture.means.device.type == mixture.weights.device.type == "meta"


# Pairs of the other couplings.


def test_optimal_transport_exchanges_noises_within_batches_and_nothing_else(scratch, pairs):
    x, z = pairs
    seen = Recorder()
    found = scratch("mixture2d/denoiser-ot/0", seen)
    assert {r["estimate"] for r in found["records"]} == {"denoiser"}
    paired = (seen.noisy[8.0] - seen.noisy[0.2]) / 7.8
    torch.testing.assert_close(seen.noisy[0.2] - 0.2 * paired, x, rtol=0, atol=1e-4)
    changed = 0
    for data, noise, mine in zip(x.split(BATCH), z.split(BATCH), paired.split(BATCH), strict=True):
        torch.testing.assert_close(mine, noise[optimal_assignment(data, noise)], rtol=0, atol=1e-4)
        changed += int((mine - noise).abs().amax(1).gt(1e-3).sum())
    assert changed > SAMPLES / 2
    assert (x - paired).square().sum() < (x - z).square().sum()


@pytest.mark.parametrize("name", ["mixture2d/denoiser-gc/0", "mixture2d/denoiser-half/0"])
def test_generator_augmented_points_have_the_endpoints_of_the_frozen_predictor(project, params, scratch, pairs, name):
    x, z = pairs
    predict = load_run_model(snapshot(run_folder(project, "mixture2d/ic/0"), 40), params.run_config("mixture2d/ic/0"))
    seen = Recorder()
    found = scratch(name, seen)
    taken = []
    for sigma, noisy in seen.noisy.items():
        level = torch.full((SAMPLES,), sigma)
        with torch.no_grad():
            predicted = predict(x + sigma * z, level)
            bound = (z - velocity(predict, noisy, level)).square().sum(1).mean().item()
        endpoint = noisy - sigma * z
        kept, replaced = ((endpoint - end).abs().amax(1) < 1e-3 for end in (x, predicted))
        assert (kept | replaced).all()
        taken.append(replaced & ~kept)
        assert values(found, "upper-bound")[sigma]["value"] == pytest.approx(bound, rel=1e-4)
        nothing = (z - noisy / sigma).square().sum(1).mean().item()
        assert values(found, "denoiser")[sigma]["value"] == pytest.approx(nothing, rel=1e-3)
    assert {r["estimate"] for r in found["records"]} == {"denoiser", "upper-bound"}
    share = taken[-1].double().mean().item()
    if "half" in name:
        # Mu at the end of training, for the same samples at every noise level.
        assert share == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(SAMPLES))
        assert torch.equal(taken[1], taken[2])
    else:
        assert share == 1


def test_with_the_exact_flow_and_its_best_velocity_augmented_pairs_have_their_closed_form(params, scratch):
    mixture = exact(params)
    mean = mixture.means[0]

    def best(x, sigma):
        """E[e | e + t z] for e = m + (s / r) (x* - m + t z), r^2 = s^2 + t^2."""
        a = STD * sigma / (STD**2 + sigma**2).sqrt()
        slope = (STD**2 + sigma * a) / (STD**2 + sigma**2 + 2 * sigma * a)
        return mean + slope[:, None] * (x - mean)

    found = scratch(
        "mixture2d/denoiser-gc/0", best, lambda x, sigma: mixture.flow(x, float(sigma[0]), 0.0, largest_step=0.5)
    )
    for sigma in SIGMAS[:2]:
        a = STD * sigma / math.hypot(STD, sigma)
        closed = 2 * STD**4 / ((STD**2 + sigma**2) * (STD**2 + sigma**2 + 2 * sigma * a))
        record, bound = values(found, "denoiser")[sigma], values(found, "upper-bound")[sigma]
        assert abs(record["value"] - closed) < 4 * record["standard_error"] < 0.15 * closed
        assert bound["value"] > record["value"]
        assert record["value"] < values(read(params.root, "mixture2d/denoiser/0"), "exact")[sigma]["value"]


# The file, the command, and refusals.


def test_the_file_says_what_was_measured_and_on_what(project, params):
    found = read(project, "mixture2d/denoiser-gc/0")
    assert found["run"] == "mixture2d/denoiser-gc/0"
    assert (found["step"], found["weights"], found["coupling"]) == (40, "ema", "gc")
    assert (found["samples"], found["seed"]) == (SAMPLES, 0)
    assert set(found["inputs"]) == {"data_sha256", "predictor_sha256"}
    assert set(read(project, "mixture2d/denoiser/0")["inputs"]) == {"data_sha256"}
    assert [r["sigma"] for r in found["records"]] == [sigma for sigma in SIGMAS for _ in range(2)]
    for record in found["records"]:
        assert set(record) == {"estimate", "sigma", "value", "standard_error"}


def test_the_command_writes_the_same_file_again(project, tmp_path):
    path = run_folder(project, "digits/denoiser/0") / "discrepancy.json"
    before = path.read_bytes()
    path.unlink()
    gcflow(project, "discrepancy", "digits/denoiser/0")
    assert path.read_bytes() == before


def refused(params, name, expected):
    before = contents(params.root)
    with pytest.raises(GcflowError) as caught:
        measure_discrepancy(params, name)
    assert expected in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert contents(params.root) == before


def test_a_run_that_is_no_denoiser_is_refused(params):
    refused(params, "mixture2d/ic/0", "mixture2d/ic/0: its objective is consistency; denoisers measure the discrepancy")


def test_a_data_set_without_a_discrepancy_block_is_refused_by_a_real_process(tmp_path):
    root = write_project(tmp_path, without_discrepancy("digits"))
    result = gcflow(root, "discrepancy", "digits/denoiser/0", check=False)
    assert result.returncode == 2
    assert error_line(result.stderr) == "params.yaml: datasets.digits.discrepancy is missing; see digits for an example"


def test_missing_weights_are_refused_by_file(tmp_path):
    root = prepare_data(write_project(tmp_path, document()), "mixture2d")
    params = Params(root / "params.yaml")
    refused(params, "mixture2d/denoiser/0", "results/mixture2d/denoiser/seed0/snapshots/00000040.safetensors")
    refused(params, "mixture2d/denoiser-gc/0", "run gcflow train mixture2d/ic/0 first")


# Transport cost.


@pytest.fixture(scope="module")
def costs(project):
    return json.loads((project / "results/mixture2d/transport.json").read_text())


def of(costs, coupling):
    return [r for r in costs["records"] if r["coupling"] == coupling]


@pytest.mark.parametrize(("std", "centre"), [(0.5, [0.0, 0.0, 0.0]), (1.7, [1.0, -2.0, 0.5])])
def test_the_closed_costs_of_a_gaussian_are_those_of_its_pairs(std, centre):
    mixture = GaussianMixture(torch.tensor([centre]).double(), torch.ones(1).double(), std)
    sigmas = (0.01, 1.0, 1e5)
    found = gaussian_costs(mixture, sigmas)
    generator = torch.Generator().manual_seed(0)
    x, _ = mixture.sample(20_000, generator)
    z = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    drawn = [(found["independent"], x)]
    drawn += [
        (cost, mixture.flow(x + t * z, t, 0.0, 1.0))
        for t, cost in zip(sigmas, found["generator_augmented"], strict=True)
    ]
    for cost, endpoint in drawn:
        pairs = transport_cost(endpoint, z)
        assert abs(pairs.mean().item() - cost) < 4 * pairs.std().item() / math.sqrt(20_000)
    # The squared Wasserstein distance of two isotropic Gaussians, and the limit of large noise.
    assert found["wasserstein"] == pytest.approx(sum(c**2 for c in centre) + 3 * (1 - std) ** 2)
    assert found["generator_augmented"][2] == pytest.approx(found["wasserstein"], rel=1e-6)
    assert found["independent"] > found["generator_augmented"][0] > found["generator_augmented"][1]


def test_the_exact_flow_costs_the_closed_form_within_its_error(costs):
    closed = costs["closed_form"]
    assert closed["sigmas"] == [0.1, 0.5, 2.0, 10.0, 80.0]
    records = of(costs, "gc-exact")
    assert costs["samples"] == {"ic": 1024, "ot": 1024, "gc": 1024, "gc-exact": 512}
    for record, expected in zip(records, closed["generator_augmented"], strict=True):
        assert abs(record["cost"] - expected) < 4 * record["standard_error"] < 0.3 * expected
        saving = closed["independent"] - expected
        assert abs(record["saving"] - saving) < 4 * record["saving_standard_error"]
    (independent,) = of(costs, "ic")
    assert abs(independent["cost"] - closed["independent"]) < 4 * independent["standard_error"]


def test_changes_are_from_the_level_before_and_are_known_better_than_costs(costs):
    closed = costs["closed_form"]["generator_augmented"]
    for coupling in ("gc", "gc-exact"):
        records = of(costs, coupling)
        assert [r["sigma"] for r in records] == costs["closed_form"]["sigmas"]
        for before, record in pairwise(records):
            assert record["change"] == pytest.approx(record["cost"] - before["cost"], abs=1e-5)
    # At sigma_min = 0.002 endpoints are x + sigma_min z, in two dimensions.
    boundary = costs["closed_form"]["independent"] - 2 * (2 * 0.002 - 0.002**2)
    for record, before, cost in zip(of(costs, "gc-exact"), [boundary, *closed], closed, strict=False):
        assert abs(record["change"] - (cost - before)) < 4 * record["change_standard_error"]
    last = of(costs, "gc-exact")[-1]
    assert last["change_standard_error"] < last["standard_error"] / 10


def test_savings_are_against_independent_pairs_of_the_same_data_and_noises(costs):
    (independent,) = of(costs, "ic")
    for record in (*of(costs, "ot"), *of(costs, "gc")):
        assert record["saving"] == pytest.approx(independent["cost"] - record["cost"], abs=1e-5)
    # The exact flow is computed for the first of the pairs alone.
    totals = [record["saving"] + record["cost"] for record in of(costs, "gc-exact")]
    assert totals == pytest.approx([totals[0]] * 5, abs=1e-5)
    assert totals[0] != pytest.approx(independent["cost"], abs=1e-3)


def test_larger_batches_of_optimal_transport_cost_less_and_more_than_the_wasserstein_distance(costs):
    (independent,) = of(costs, "ic")
    small, large = of(costs, "ot")
    assert (small["batch"], large["batch"]) == (8, 64)
    assert independent["cost"] > small["cost"] > large["cost"]
    assert large["cost"] > costs["closed_form"]["wasserstein"] - 4 * large["standard_error"]
    for record in (small, large):
        assert record["saving"] > 4 * record["saving_standard_error"] > 0
        assert record["change"] is None


def test_data_that_are_no_gaussian_have_no_closed_form(project):
    params = Params(project / "params.yaml")
    # Few pairs of the exact flow, which looks at every image.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transport, "EXACT_PRODUCTS", 0)
        patch.setattr(transport, "EXACT_FLOW_STEP", 2.0)
        train_here(project, "digits/ic/0")
        measure_transport(params, "digits")
    found = json.loads((project / "results/digits/transport.json").read_text())
    assert "closed_form" not in found
    assert found["samples"]["gc-exact"] == 2


# Stages and params.yaml.


def test_every_denoiser_of_a_data_set_with_a_discrepancy_block_is_measured(params):
    stages = {stage.name: stage for stage in Stages(params)}
    names = [name for name in stages if name.startswith("discrepancy@")]
    expected = [f"mixture2d-{run.replace('/', '-')}" for run in RUNS]
    assert sorted(names) == sorted(f"discrepancy@{name}" for name in ["digits-denoiser-0", *expected])
    stage = stages["discrepancy@mixture2d-denoiser-gc-0"]
    folder = "results/mixture2d/{}/seed0".format
    assert stage.command == "gcflow discrepancy mixture2d/denoiser-gc/0"
    assert stage.outs == (f"{folder('denoiser-gc')}/discrepancy.json",)
    weights = {dep for dep in stage.deps if not dep.startswith("data/")}
    assert weights == {f"{folder('denoiser-gc')}/snapshots", f"{folder('ic')}/snapshots"}
    assert set(stage.deps) - weights == set(stages["prepare-mixture2d"].outs)
    prefix = "datasets.mixture2d."
    assert set(stage.slice(params)) == {f"{prefix}discrepancy", f"{prefix}methods.denoiser-gc"}
    independent = stages["discrepancy@mixture2d-denoiser-1"]
    assert f"{folder('ic')}/snapshots" not in independent.deps


def test_the_figure_depends_on_its_methods_measurements_and_labels(params):
    stage = Stages(params).figure("mixture2d", "discrepancy")
    measured = [f"{run.rpartition('/')[0]}/seed{run[-1]}" for run in RUNS if "half" not in run]
    assert sorted(stage.deps) == sorted(f"results/mixture2d/{folder}/discrepancy.json" for folder in measured)
    assert "datasets.mixture2d.runs.denoiser-gc" in stage.keys


def test_without_a_discrepancy_block_no_denoiser_is_measured(tmp_path):
    whole = without_discrepancy("digits", "mixture2d")
    stages = Stages(Params(write_project(tmp_path, whole) / "params.yaml"))
    assert stages.denoisers("mixture2d") == []
    assert not any(stage.name.startswith("discrepancy") for stage in stages)


def refusal(folder, whole):
    return refusal_of(whole, folder).removeprefix("datasets.mixture2d.")


@pytest.mark.parametrize(
    ("block", "key", "value"),
    [
        ("discrepancy", "samples", 1),
        ("discrepancy", "sigmas", []),
        ("discrepancy", "sigmas", [1.0, 0.0]),
        ("discrepancy", "sigmas", [-1.0]),
        ("transport", "sigmas", []),
        ("transport", "sigmas", [0.0, 1.0]),
        ("transport", "sigmas", [2.0, 1.0]),
        ("transport", "sigmas", [1.0, 1.0]),
    ],
)
def test_an_impossible_value_is_refused_by_key(tmp_path, block, key, value):
    whole = document()
    whole["datasets"]["mixture2d"][block][key] = value
    assert re.match(rf"{block}\.{key}(\.\d)? is .*, expected ", refusal(tmp_path, whole))


def test_figures_are_refused_where_what_they_show_is_not_measured(tmp_path):
    for block in ("discrepancy", "transport"):
        whole = document()
        del whole["datasets"]["mixture2d"][block]
        expected = f"{block} is missing, but a figure of kind {block} needs it"
        assert refusal(tmp_path, whole) == expected


@pytest.mark.parametrize(
    ("methods", "expected"),
    [
        ([], "figures.discrepancy.methods is [], expected some for discrepancy"),
        (["denoiser", "ic"], "figures.discrepancy.methods names 'ic', whose objective is consistency, not denoising"),
        (["nope"], "figures.discrepancy.methods names 'nope'; known: "),
    ],
)
def test_a_figure_of_discrepancies_shows_denoisers(tmp_path, methods, expected):
    whole = document()
    whole["datasets"]["mixture2d"]["figures"]["discrepancy"]["methods"] = methods
    assert refusal(tmp_path, whole).startswith(expected)
