"""The shipped params.yaml at every scale: Snakemake's plan of it, and the stages that DVC would see."""

import re
import subprocess
from dataclasses import replace

import pytest
from projects import ROOT, environment
from workflows import SCRIPTS

from gcflow.pipeline.params import Params
from gcflow.pipeline.stages import Stages
from gcflow.tools.plan import passes_per_sample

PAPER = ["cifar10", "imagenet32", "celeba64", "church64"]


@pytest.fixture(scope="module")
def params():
    return Params(ROOT / "params.yaml")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The repository's workflow with nothing done yet."""
    here = tmp_path_factory.mktemp("scales")
    for name in ("workflow", "params.yaml", "claims.yaml", "paper.yaml"):
        (here / name).symlink_to(ROOT / name)
    return here


def plan(folder, *arguments):
    """Jobs of each rule that `snakemake -n` lists, and its whole output."""
    result = subprocess.run(
        ["snakemake", "--profile", "workflow/profiles/local", "-n", *arguments],
        cwd=folder,
        env=environment({"PATH": f"{SCRIPTS}:{environment()['PATH']}"}),
        capture_output=True,
        text=True,
        check=False,
    )
    output = result.stdout + result.stderr
    return {rule: int(count) for rule, count in re.findall(r"^(\w+) +(\d+)$", output, re.MULTILINE)}, output


@pytest.mark.service
def test_the_papers_scale_is_one_plan(folder, params):
    jobs, output = plan(folder, "--config", "scale=paper", "--", "all")
    stages = Stages(params, "paper")
    assert params.at_scale("paper") == PAPER
    runs = [run for dataset in PAPER for run in params.runs(dataset)]
    assert jobs["evaluate"] == len(runs) == 60, output
    assert jobs["features"] == 4
    assert jobs["reference"] == 13
    assert jobs["pretrained"] == 1
    # The views of other scales that answer what this one cannot, here figure 1.
    elsewhere = {stage.name for view in stages.views().values() for stage in view} - {stage.name for stage in stages}
    assert elsewhere == {"figure-mixture2d-trajectories", "figure-two-gaussians2d-trajectories"}
    # Their theory, and the predictor of one, with its data.
    assert (jobs["theory"], jobs["train"] - len(runs), jobs["prepare"] - len(PAPER)) == (2, 1, 1)
    # And all and track.
    assert jobs["total"] == len(list(stages)) + len(elsewhere) + 4 + 2


@pytest.mark.service
@pytest.mark.parametrize(
    ("target", "trained"), [("table1", 36), ("table2", 8), ("table3", 11), ("figure5", 12), ("figure8", 12)]
)
def test_a_table_or_figure_is_a_target_that_trains_what_it_shows_and_no_more(folder, target, trained):
    jobs, output = plan(folder, "--config", "scale=paper", "--", target)
    assert jobs["train"] == trained, output


@pytest.mark.service
def test_figure_2_needs_the_predictor_of_its_coupling_too(folder):
    jobs, output = plan(folder, "--config", "scale=paper", "--", "figure2")
    assert (jobs["train"], jobs["discrepancy"]) == (4, 3), output


@pytest.mark.service
def test_every_target_exists_at_the_embedded_scale(folder, params):
    assert sorted(Stages(params, "embedded").views()) == sorted(
        [f"table{n}" for n in (1, 2, 3)] + [f"figure{n}" for n in (1, 2, 3, 4, 5, 8)]
    )
    jobs, output = plan(folder, "figure1")
    assert jobs == {"prepare": 1, "train": 1, "theory": 2, "figure": 2, "figure1": 1, "total": 7}, output


@pytest.mark.service
def test_the_rehearsal_needs_no_archive_and_no_download(folder):
    jobs, output = plan(folder, "--config", "scale=rehearsal", "--", "all")
    assert jobs["train"] == 2, output
    assert "pretrained" not in jobs


@pytest.mark.service
@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("scale=papre", "scale 'papre': expected embedded, rehearsal, paper or all"),
        ("methods=goc", "methods: no run of scale embedded has goc; known: ic, ot, gc,"),
        ("seed=0", "--config seed: known are scale, methods and seeds"),
    ],
)
def test_a_mistaken_setting_is_one_clear_error(folder, setting, message):
    jobs, output = plan(folder, "--config", setting, "--", "all")
    assert not jobs
    assert message in output
    assert "Traceback" not in output


@pytest.mark.service
def test_a_subset_is_planned_by_name_and_what_it_leaves_out_is_said(folder):
    jobs, output = plan(folder, "--config", "scale=paper", "methods=ic gc", "seeds=1", "--", "all")
    assert set(re.findall(r"^Job \d+: train (\S+)$", output, re.MULTILINE)) == {
        f"{dataset}/{method}/1" for dataset in PAPER for method in ("ic", "gc")
    }
    assert jobs["evaluate"] == jobs["train"] == 8, output
    assert not {"table", "claims", "report"} & set(jobs)
    assert re.search(
        r"^Left out, since they show other runs, too: transport-cifar10, table-cifar10-table1, .*, report$",
        output,
        re.MULTILINE,
    )


def test_the_recipes_are_those_of_the_paper(params):
    recipes = {name: params.run_config(f"{name}/ic/0") for name in PAPER}
    assert [c.training.steps for c in recipes.values()] == [100_000, 150_000, 150_000, 150_000]
    assert [c.training.batch for c in recipes.values()] == [512, 512, 128, 128]
    assert [c.training.learning_rate for c in recipes.values()] == [1e-4, 8e-5, 8e-5, 8e-5]
    assert [c.network.multipliers for c in recipes.values()] == [(1, 2, 2), (1, 1, 2), (1, 2, 2, 2), (1, 2, 2, 2)]
    assert [c.network.blocks_per_level for c in recipes.values()] == [(3, 3, 3), (3, 5, 7), (3, 3, 4, 5), (3, 3, 4, 5)]
    assert [c.network.attention for c in recipes.values()] == [(), (16,), (), ()]
    assert [c.network.dropout_per_level for c in recipes.values()] == [
        (0.3, 0.3, 0.3),
        (0.0, 0.2, 0.2),
        (0.0, 0.0, 0.2, 0.2),
        (0.0, 0.0, 0.2, 0.2),
    ]
    for name, config in recipes.items():
        training, process = config.training, config.process
        assert (training.optimizer, training.ema_decay, training.gradient_clip) == ("lion", 0.9999, None)
        assert (training.ema_every, training.ema_ramp_up) == (5, True)
        assert training.ema_start == (10_000 if name == "imagenet32" else 0)
        assert (training.schedule.s0, training.schedule.s1) == (10, 1280)
        assert (training.schedule.p_mean, training.schedule.p_std) == (-1.1, 2.0)
        assert (process.sigma_min, process.sigma_max, process.rho) == (0.002, 80.0, 7.0)
        assert (process.sigma_data, process.data_mean) == (0.5, 0.0)
        assert set(params.run_config(f"{name}/gc/0").network.dropout_per_level) == {0.0}
        assert params.run_config(f"{name}/ot/0").network == config.network
        assert (params.run_config(f"{name}/gc/0").method.mu, params.dataset(name).evaluation.samples) == (0.5, 50_000)


def test_figure_1_is_also_on_the_authors_example_as_their_code_has_it(params):
    config, entry = params.run_config("two-gaussians2d/ic/0"), params.dataset("two-gaussians2d")
    training, process = config.training, config.process
    assert (entry.data.means, entry.data.std, entry.data.count) == (((0, 0.5), (0, -0.5)), 0.01, 10_000)
    assert (process.sigma_min, process.sigma_max, process.sigma_data, process.rho) == (0.001, 5.0, 0.5, 7.0)
    assert (config.network.architecture, config.network.channels) == ("mlp", 256)
    assert (training.steps, training.batch, training.optimizer, training.learning_rate) == (10_000, 256, "adam", 5e-5)
    assert (training.learning_rate_decay, training.gradient_clip, training.distance) == ("none", None, "squared-l2")
    assert (training.ema_decay, training.ema_ramp_up, training.ema_every) == (0.9999, True, 2)
    assert (training.schedule.s0, training.schedule.s1) == (10, 100)
    assert (training.schedule.p_mean, training.schedule.p_std) == (-1.1, 2.0)
    shown = {name: params.dataset(name).figures["trajectories"].reproduces for name in ("mixture2d", "two-gaussians2d")}
    assert set(shown.values()) == {"figure1"}


def test_ect_is_the_public_recipe_from_the_public_model_for_the_papers_steps_and_for_its_own(params):
    methods = ("ect-gc", "ect-8k-gc", "ect-long-gc")
    short, own, long = (params.run_config(f"cifar10/{method}/0") for method in methods)
    assert (short.training.steps, own.training.steps, long.training.steps) == (4_000, 8_000, 100_000)
    for config in (short, own):
        assert (config.training.ema_decay, config.training.schedule.q) == (0.9993, 256.0)
        assert config.training.schedule.stage_every is None
    assert (long.training.ema_decay, long.training.schedule.q) == (0.9999, 2.0)
    assert long.training.schedule.stage_every == 25_000
    for config in (short, own, long):
        assert config.training.snapshot_steps[-2:] == [
            config.training.steps - config.training.snapshot_every,
            config.training.steps,
        ]
        assert (config.training.batch, config.training.optimizer, config.training.huber_c) == (128, "radam", 0.0)
        assert (config.training.ema_every, config.training.ema_ramp_up) == (1, False)
        assert (config.network.channels, config.network.multipliers, config.network.blocks) == (128, (2, 2, 2), 4)
        assert (config.network.attention, config.network.dropout) == ((16,), 0.2)
        assert (config.method.mu, config.preconditioning) == (0.3, "edm")
        assert config.method.init.file == "checkpoints/edm-cifar10.safetensors"
    labels = {method: replicates.label for method, replicates in params.dataset("cifar10").runs.items()}
    assert all(
        "4k steps (the paper's)" in labels[method] for method in params.dataset("cifar10").tables["table2"].methods[:2]
    )
    assert all("8k steps (ECT's)" in labels[method] for method in ("ect-8k", "ect-8k-gc"))


@pytest.mark.parametrize("dataset", ["cifar10", "digits"])
def test_gc_at_equal_time_costs_what_ic_does(params, dataset):
    ic, gc, equal = (params.run_config(f"{dataset}/{method}/0") for method in ("ic", "gc", "gc-equal-time"))
    passes = [config.training.steps * passes_per_sample(config) for config in (ic, equal)]
    # To the nearest whole step.
    assert abs(passes[1] - passes[0]) <= passes_per_sample(equal) / 2
    assert equal == replace(gc, method_name="gc-equal-time", training=replace(gc.training, steps=equal.training.steps))
    assert equal.training.snapshot_steps[-1] == equal.training.steps
