"""`gcflow plan`: which jobs, how long, how much disk, and that its jobs are those that run."""

import json
from pathlib import Path

import pytest
from projects import error_line, gcflow, prepare_data, run_folder, tiny_params, train_here, write_project

import gcflow as package
from gcflow.config import to_dict
from gcflow.errors import GcflowError
from gcflow.pipeline.extractors import make_features
from gcflow.pipeline.params import Params
from gcflow.pipeline.planning.disk import cache_folder, second_copy, snapshot_bytes, space_of
from gcflow.pipeline.planning.jobs import Graph
from gcflow.pipeline.planning.report import document, plan, size, text
from gcflow.pipeline.planning.schedule import Task, critical_path, makespan
from gcflow.pipeline.planning.seconds import actual_seconds, benchmark_path
from gcflow.pipeline.planning.work import mean_passes_per_sample, without_dropout
from gcflow.pipeline.reference import compute_reference
from gcflow.pipeline.stages import Stages

SHIPPED = Path(package.__file__).parents[1] / "params.yaml"


def task(name, seconds, needs=(), pool="cpu", places=1):
    return Task(name, seconds, pool, places, tuple(needs))


# When jobs end.


@pytest.mark.parametrize(
    ("tasks", "places", "end"),
    [
        ([task("a", 2)], 1, 2),
        ([], 1, 0),
        # Longest first: 3 2 2 beside 3 2.
        ([task(name, seconds) for name, seconds in zip("abcde", (2, 3, 2, 3, 2), strict=True)], 2, 7),
        # The chain goes first though its first job is short.
        ([task("a", 4), task("b", 1), task("c", 5, "b")], 2, 6),
        ([task("a", 4), task("b", 1), task("c", 5, "b")], 1, 10),
        # A diamond.
        ([task("a", 1), task("b", 2, "a"), task("c", 3, "a"), task("d", 1, "bc")], 2, 5),
        # What needs two places waits for both, and what fits goes before it.
        ([task("a", 3), task("b", 2, places=2), task("c", 1)], 2, 5),
        # More places than there are: all of them.
        ([task("a", 3, places=8), task("b", 2)], 2, 5),
        # A job outside the plan is waited for by nobody.
        ([task("a", 3, ["done"])], 1, 3),
    ],
)
def test_jobs_end_when_a_schedule_by_hand_says(tasks, places, end):
    assert makespan(tasks, {"cpu": places}) == end


def test_gpus_and_cores_are_places_of_their_own():
    tasks = [task("a", 3, pool="gpu"), task("b", 3, pool="gpu"), task("c", 5), task("d", 1, "c", "gpu")]
    assert makespan(tasks, {"gpu": 1, "cpu": 1}) == 7
    assert makespan(tasks, {"gpu": 2, "cpu": 1}) == 6


def test_the_critical_path_is_the_longest_chain():
    tasks = [task("a", 1), task("b", 2, "a"), task("c", 3, "a"), task("d", 1, "bc"), task("e", 4)]
    assert critical_path(tasks) == (5, ["a", "c", "d"])
    assert critical_path([]) == (0, [])
    assert makespan(tasks, {"cpu": 9}) == 5


# Which jobs.


@pytest.fixture(scope="module")
def shipped():
    return Graph(Params(SHIPPED), "paper")


def test_every_target_of_the_paper_is_a_closed_set_of_jobs(shipped):
    whole = shipped.target("all")
    assert len(whole) == len(list(Stages(shipped.params, "paper")))
    kinds = {job.kind: name for name, job in shipped.jobs.items()}
    for target in (*shipped.views, *shipped.params.datasets, *kinds.values()):
        names = shipped.target(target)
        for place, name in enumerate(names):
            assert set(shipped.jobs[name].needs) <= set(names[:place])


def test_a_view_needs_what_its_runs_need(tmp_path):
    graph = Graph(Params(write_project(tmp_path) / "params.yaml"), "embedded")
    assert graph.target("train-digits-cd-0") == ["prepare-digits", "train-digits-denoiser-0", "train-digits-cd-0"]
    table = graph.target("table-digits-table1")
    assert set(table) == {
        "prepare-digits",
        "features-digits",
        "reference-digits-classifier",
        *(f"{kind}-digits-{run}" for kind in ("train", "evaluate") for run in ("ic-0", "ic-1", "gc-0")),
        "table-digits-table1",
    }
    assert all(graph.jobs[name].dataset == "mixture2d" for name in graph.target("mixture2d"))


def test_an_unknown_target_is_refused_with_those_that_are_known(tmp_path):
    document = tiny_params()
    document["datasets"]["digits"]["tables"]["table1"]["reproduces"] = "table1"
    root = write_project(tmp_path, document)
    result = gcflow(root, "plan", "train-digits-cd-1", check=False)
    assert result.returncode == 2
    line = error_line(result.stderr)
    assert "views table1" in line
    assert "data sets digits, mixture2d" in line
    assert "train-digits-cd-0" in line


def test_the_paper_is_planned_as_a_whole_though_nothing_was_measured():
    found = document(plan(Params(SHIPPED), "all", "paper"))
    assert found["rows"]["total"]["jobs"] == len(list(Stages(Params(SHIPPED), "paper"))) == len(found["jobs"])
    assert {"table1", "figure5", "cifar10", "church64"} <= set(found["rows"])
    shown = text(found)
    for dataset in ("cifar10", "imagenet32", "celeba64", "church64"):
        assert f"  gcflow bench {dataset}" in shown.splitlines()
    assert found["rows"]["total"]["gpu_hours"] == {"value": None, "exact": False}
    assert "Wall clock: unknown" in shown


# What is done.


@pytest.fixture
def trained(tmp_path):
    root = prepare_data(write_project(tmp_path), "digits")
    train_here(root, "digits/denoiser/0")
    train_here(root, "digits/cd/0")
    return root


def done(root):
    graph = Graph(Params(root / "params.yaml"), "embedded")
    return graph.done(graph.target("all"))


def test_stages_with_all_their_files_are_done(trained):
    assert done(trained) == {"prepare-digits", "train-digits-denoiser-0", "train-digits-cd-0"}
    (run_folder(trained, "digits/cd/0") / "metrics.jsonl").unlink()
    assert done(trained) == {"prepare-digits", "train-digits-denoiser-0"}


def test_what_needs_a_stage_that_is_not_done_is_not_done_either(trained):
    (run_folder(trained, "digits/denoiser/0") / "config.json").unlink()
    assert done(trained) == {"prepare-digits"}


def test_a_run_of_another_configuration_is_not_done(trained):
    params = tiny_params()
    params["datasets"]["digits"]["methods"]["cd"]["training"] = {"learning_rate": 2.0e-3}
    write_project(trained, params)
    assert done(trained) == {"prepare-digits", "train-digits-denoiser-0"}


def test_a_run_of_other_data_is_not_done(trained):
    manifest = trained / "data" / "digits" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"samples.npy": "', '"samples.npy": "0'))
    assert done(trained) == {"prepare-digits"}


def test_a_run_of_weights_that_were_replaced_is_not_done(trained):
    weights = run_folder(trained, "digits/denoiser/0") / "snapshots" / "00000040.safetensors"
    weights.write_bytes(weights.read_bytes() + b" ")
    assert done(trained) == {"prepare-digits", "train-digits-denoiser-0"}


def test_a_run_that_was_cut_goes_on_from_its_newest_checkpoint(trained):
    folder = run_folder(trained, "digits/cd/0")
    (folder / "config.json").unlink()
    (state,) = (path for path in (folder / "state").iterdir() if path.is_dir())
    newest, _ = sorted(state.glob("checkpoint-*"), reverse=True)
    graph = Graph(Params(trained / "params.yaml"), "embedded")
    run = graph.params.parse_run("digits/cd/0")
    assert graph.step_reached(run) == 40
    newest.write_bytes(b"half")
    assert graph.step_reached(run) == 30
    params = tiny_params()
    params["datasets"]["digits"]["methods"]["cd"]["training"] = {"learning_rate": 2.0e-3}
    write_project(trained, params)
    assert Graph(Params(trained / "params.yaml"), "embedded").step_reached(run) == 0


# How long.


def measured(root, dataset="digits", methods=("ic", "gc"), gpu=None):
    """Writes a bench.json of round numbers: a step of ic 0.1 s, an image 0.01 s a pass, features 0.001 s."""
    params = Params(root / "params.yaml")
    entry, steps = params.dataset(dataset), {"ic": 0.1, "gc": 0.2}
    configs = {method: params.run_config(f"{dataset}/{method}/{entry.runs[method].seeds[0]}") for method in methods}
    row = {"images_per_second": 1000.0, "seconds_per_comparison": 0.5, "seconds_once": 0.25, "network": "surrogate"}
    starts = ("prepare", "reference", "train", "evaluate", "transport", "table", "figure", "figure-samples")
    found = {
        "dataset": dataset,
        "machine": {"gpu": gpu, "cores": 2},
        "train": {
            "methods": {
                method: {
                    "seconds_per_step": steps[method],
                    "step_over_first": steps[method] / steps[methods[0]],
                    "config": to_dict(config),
                }
                for method, config in configs.items()
            }
        },
        "stages": {
            "startup_seconds": dict.fromkeys(starts, 1.0),
            "sampling": [
                {
                    "network": to_dict(without_dropout(configs[methods[0]].network)),
                    "operations_per_pass": 1,
                    "images_per_second": {"consistency-1": 100.0, "consistency-2": 50.0},
                }
            ],
            "features": dict.fromkeys(entry.features.protocols, row),
            "prepare": {"seconds": 3.0, "assumed": False},
            "classifier_step_seconds": 0.01,
            "transport": {"settings": to_dict(entry.transport) if entry.transport else None, "seconds": 7.0},
            "exact_denoising_seconds": 0.5,
            "assignment_seconds": 2.0,
        },
    }
    path = root / "results" / dataset / "bench.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found))
    return root


def jobs_of(root, target="all"):
    found = document(plan(Params(root / "params.yaml"), target, "embedded"))
    return {job["name"]: job for job in found["jobs"]}, found


def test_times_are_the_work_times_what_each_unit_took(tmp_path):
    jobs, found = jobs_of(measured(write_project(tmp_path)), "digits")
    seconds = {name: job["seconds"] for name, job in jobs.items()}
    assert seconds["prepare-digits"] == 4
    assert seconds["train-digits-ic-1"] == pytest.approx(1 + 40 * 0.1)
    assert seconds["train-digits-gc-0"] == pytest.approx(1 + 40 * 0.2, rel=0.01)
    # 64 samples: of a snapshot in one step; of the last with two seeds in one and in two steps; both kinds of weights.
    drawn = 2 * 64 * (3 * 0.01 + 2 * 0.02)
    assert seconds["evaluate-digits-ic-0"] == pytest.approx(1 + drawn + 10 * (64 * 0.001 + 0.5) + 0.25)
    # A denoiser in five evaluations, which were not timed: its end alone.
    assert seconds["evaluate-digits-denoiser-0"] == pytest.approx(1 + 2 * 2 * (64 * 0.05 + 64 * 0.001 + 0.5) + 0.25)
    assert seconds["reference-digits-classifier"] == pytest.approx(1 + 1797 * 0.001 + 0.75)
    assert seconds["features-digits"] == pytest.approx(1 + (1797 - 359) // 64 * 0.01)
    assert seconds["transport-digits"] == pytest.approx(1 + 64 * 2 * 0.01 + 7)
    assert seconds["discrepancy-digits-denoiser-0"] == pytest.approx(1 + 64 * 2 * 0.01 + 2 * 0.5)
    assert seconds["figure-digits-samples"] == seconds["table-digits-table1"] == 1
    assert not any(job["gpu"] for job in jobs.values())
    total = found["rows"]["total"]
    assert total["core_hours"]["value"] == pytest.approx(sum(seconds.values()) / 3600)
    assert total["wall_clock_hours"]["value"] < total["core_hours"]["value"]
    assert total["wall_clock_hours"]["value"] >= found["critical_path"]["hours"]


def test_methods_that_were_not_timed_are_derived_from_their_passes_and_this_is_said(tmp_path):
    root = measured(write_project(tmp_path), methods=("ic",))
    jobs, found = jobs_of(root, "digits")
    params = Params(root / "params.yaml")
    passes = mean_passes_per_sample(params.run_config("digits/gc/0")) / 4
    assert jobs["train-digits-gc-0"]["seconds"] == pytest.approx(1 + 40 * 0.1 * passes)
    assert jobs["train-digits-denoiser-0"]["seconds"] == pytest.approx(1 + 40 * 0.1 * 3 / 4)
    # Of more channels: by their operations.
    assert jobs["train-digits-gc-frozen-0"]["seconds"] > 1 + 40 * 0.1 * 4.5 / 4
    assert "digits: methods not timed take as long as ic per pass of the network" in found["notes"]


def test_a_share_that_is_switched_on_late_costs_only_from_there_on(tmp_path):
    params = tiny_params()
    gc = params["datasets"]["digits"]["methods"]["gc"]
    gc |= {"mu": 1.0, "mu_from_step": 30}
    late = Params(write_project(tmp_path, params) / "params.yaml").run_config("digits/gc/0")
    assert mean_passes_per_sample(late) == 4.25
    gc |= {"mu": [0.0, 1.0], "mu_from_step": None}
    rising = Params(write_project(tmp_path, params) / "params.yaml").run_config("digits/gc/0")
    assert mean_passes_per_sample(rising) == pytest.approx(4.5, abs=0.02)


def test_a_measurement_with_other_settings_is_scaled_by_the_batch_and_the_rest_is_said(tmp_path):
    root = measured(write_project(tmp_path))
    params = tiny_params()
    params["datasets"]["digits"]["training"] |= {"batch": 32, "precision": "bfloat16"}
    jobs, found = jobs_of(write_project(root, params), "digits")
    assert jobs["train-digits-ic-0"]["seconds"] == pytest.approx(1 + 40 * 0.2)
    assert "digits: timed with training.precision = float32, runs have bfloat16" in found["notes"]


def test_on_a_gpu_training_and_measuring_are_gpu_hours_and_share_the_gpus(tmp_path):
    jobs, found = jobs_of(measured(write_project(tmp_path), gpu="some"), "digits")
    assert {name.partition("-")[0] for name, job in jobs.items() if job["gpu"]} == {
        "train",
        "evaluate",
        "discrepancy",
        "transport",
    }
    on = {int(gpus): amount["value"] for gpus, amount in found["wall_clock_hours"].items()}
    assert on[1] > on[4] >= on[8] >= found["critical_path"]["hours"]
    assert found["rows"]["digits"]["gpu_hours"]["value"] < on[1]
    (only,) = document(plan(Params(tmp_path / "params.yaml"), "digits", "embedded", 2))["wall_clock_hours"]
    assert only == "2"


def test_what_is_done_and_steps_that_are_done_cost_nothing_any_more(trained):
    measured(trained)
    before, found = jobs_of(trained, "train-digits-cd-0")
    assert [job["seconds_left"] for job in before.values()] == [0, 0, 0]
    assert found["rows"]["total"]["core_hours"] == {"value": 0, "exact": True}
    assert found["rows"]["total"]["bytes"]["value"] == 0
    folder = run_folder(trained, "digits/cd/0")
    (folder / "config.json").unlink()
    (state,) = (path for path in (folder / "state").iterdir() if path.is_dir())
    max(state.glob("checkpoint-*")).unlink()
    after, _ = jobs_of(trained, "train-digits-cd-0")
    cd = after["train-digits-cd-0"]
    assert cd["seconds_left"] - 1 == pytest.approx((cd["seconds"] - 1) / 4)
    assert not cd["done"]


def test_what_was_not_measured_is_unknown_and_the_rest_a_lower_bound(tmp_path):
    root = measured(write_project(tmp_path))
    jobs, found = jobs_of(root)
    assert jobs["train-mixture2d-ic-0"]["seconds"] is None
    # Starting costs the same for every data set.
    assert jobs["figure-mixture2d-samples"]["seconds"] == 1
    total = found["rows"]["total"]["core_hours"]
    assert (total["value"] > 0, total["exact"]) == (True, False)
    assert found["rows"]["digits"]["core_hours"]["exact"]
    shown = text(found)
    assert ">= " in shown
    assert "Unknown times become known with:\n  gcflow bench mixture2d" in shown
    assert "bench digits" not in shown


def test_a_measurement_of_an_older_version_counts_as_none(tmp_path):
    root = measured(write_project(tmp_path))
    path = root / "results" / "digits" / "bench.json"
    old = json.loads(path.read_text())
    del old["stages"]
    path.write_text(json.dumps(old))
    jobs, _ = jobs_of(root, "digits")
    assert all(job["seconds"] is None for job in jobs.values())


def test_settings_that_changed_since_they_were_measured_are_unknown(tmp_path):
    root = measured(write_project(tmp_path))
    params = tiny_params()
    params["datasets"]["digits"]["transport"]["samples"] = 128
    jobs, found = jobs_of(write_project(root, params), "digits")
    assert jobs["transport-digits"]["seconds"] is None
    assert "gcflow bench digits" in found["remedies"]


def paper_like():
    """digits, compared in Inception's features."""
    params = tiny_params()
    digits = params["datasets"]["digits"]
    digits["features"] = {"kind": "inception", "protocols": {"clean": {}, "few": {"reference_images": 100}}}
    return params


def test_times_without_inception_itself_are_lower_bounds(tmp_path):
    root = measured(write_project(tmp_path, paper_like()), gpu="some")
    jobs, found = jobs_of(root, "digits")
    assert not jobs["evaluate-digits-ic-0"]["exact"]
    assert jobs["train-digits-ic-0"]["exact"]
    assert jobs["reference-digits-few"]["gpu"]
    assert jobs["reference-digits-few"]["seconds"] == pytest.approx(1 + 0.75)
    assert found["remedies"] == ["put inception-2015-12-05.pt into archives/, then gcflow bench digits"]
    path = root / "results" / "digits" / "bench.json"
    path.write_text(path.read_text().replace('"surrogate"', '"inception"'))
    jobs, found = jobs_of(root, "digits")
    assert jobs["reference-digits-few"]["seconds"] == pytest.approx(1 + 0.1 + 0.75)
    assert found["rows"]["digits"]["gpu_hours"]["exact"]
    assert found["remedies"] == []


def test_what_ran_is_compared_with_what_was_predicted(trained):
    measured(trained)
    graph = Graph(Params(trained / "params.yaml"), "embedded")
    for name, seconds in (("prepare-digits", 8), ("train-digits-cd-0", 12), ("train-digits-denoiser-0", 2)):
        path = benchmark_path(trained, graph.jobs[name])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"s\th:m:s\n{seconds}.0\t0:00:00\n")
    jobs, found = jobs_of(trained, "digits")
    trains = [jobs[f"train-digits-{method}-0"]["seconds"] for method in ("cd", "denoiser")]
    assert found["ran"]["prepare"] == {"jobs": 1, "predicted_seconds": 4, "actual_seconds": 8}
    assert found["ran"]["train"] == {"jobs": 2, "predicted_seconds": pytest.approx(sum(trains)), "actual_seconds": 14}
    assert list(found["ran"]) == ["prepare", "train", "total"]
    assert "actual / predicted" in text(found)


def test_the_times_of_jobs_are_read_where_the_workflow_writes_them(shipped):
    root = Path("root")
    expected = {
        "prepare-cifar10": "cifar10/benchmarks/prepare",
        "features-digits": "digits/benchmarks/features-classifier.safetensors",
        "features-cifar10": "cifar10/benchmarks/features-inception.pt",
        "reference-cifar10-clean": "cifar10/benchmarks/reference-clean",
        "train-cifar10-gc-0": "cifar10/benchmarks/train-gc-0",
        "transport-digits": "digits/benchmarks/transport",
        "table-digits-table1": "digits/benchmarks/table-table1",
        "claims": "benchmarks/claims",
        "pretrained-edm-cifar10": "benchmarks/pretrained-edm-cifar10",
    }
    for name, place in expected.items():
        assert benchmark_path(root, shipped.jobs[name]) == root / "results" / f"{place}.tsv"
    assert actual_seconds(root / "missing.tsv") is None


# How much disk.


def test_the_bytes_of_a_run_are_those_that_it_writes(trained):
    params = Params(trained / "params.yaml")
    graph = Graph(params, "embedded")
    for run in ("digits/denoiser/0", "digits/cd/0"):
        folder = run_folder(trained, run)
        (state,) = (path for path in (folder / "state").iterdir() if path.is_dir())
        snapshots = [path.stat().st_size for path in (folder / "snapshots").iterdir()]
        kept = [path.stat().st_size for path in state.glob("checkpoint-*")]
        snapshot, checkpoint = snapshot_bytes(params, run, (1, 8, 8))
        assert snapshots == pytest.approx([snapshot] * 2, rel=0.002)
        assert kept == pytest.approx([checkpoint] * 2, rel=0.02)
        space = space_of(params, graph.jobs[f"train-{run.replace('/', '-')}"])
        assert space.outputs == pytest.approx(sum(snapshots), rel=0.002)
        assert space.state == pytest.approx(sum(kept), rel=0.02)
        # The final weights and the snapshots beside the checkpoints are no further bytes.
        assert (folder / "weights.safetensors").stat().st_nlink > 1


def test_the_bytes_of_data_and_references_are_known_before_they_are_written(tmp_path):
    root = write_project(tmp_path)
    params = Params(root / "params.yaml")
    graph = Graph(params, "embedded")
    names = ("prepare-digits", "prepare-mixture2d", "reference-digits-classifier", "reference-mixture2d-identity")
    before = {name: space_of(params, graph.jobs[name]).outputs for name in names}
    prepare_data(root, "digits", "mixture2d")
    make_features(params, "digits", Path("archives"), False)
    for dataset in ("digits", "mixture2d"):
        compute_reference(params, dataset)
    for name, predicted in before.items():
        written = sum((root / out).stat().st_size for out in graph.jobs[name].stage.outs if not out.endswith(".json"))
        assert predicted == pytest.approx(written, rel=0.02, abs=1000)


def test_references_in_inceptions_features_are_statistics_and_a_pool(shipped):
    few = space_of(shipped.params, shipped.jobs["reference-cifar10-clean"]).outputs
    assert few == 8 * 2048 * 2049 + 50_000 * 2048 * 4


def test_a_cache_on_another_file_system_holds_a_second_copy(tmp_path):
    assert cache_folder(tmp_path) is None
    assert second_copy(tmp_path) is None
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc" / "config").write_text("[core]\n    analytics = false\n[cache]\n    type = hardlink\n")
    assert cache_folder(tmp_path) == tmp_path / ".dvc" / "cache"
    assert second_copy(tmp_path) is None
    (tmp_path / ".dvc" / "config.local").write_text("[cache]\n    dir = /proc/cache\n")
    assert second_copy(tmp_path) == Path("/proc/cache")
    root = write_project(tmp_path)
    disk = document(plan(Params(root / "params.yaml"), "digits", "embedded"))["disk"]
    assert disk["second_copy"] == disk["outputs"] > 0


def test_what_does_not_fit_is_said(tmp_path):
    root = measured(write_project(tmp_path))
    found = document(plan(Params(root / "params.yaml"), "digits", "embedded"))
    assert "DOES NOT FIT" not in text(found)
    found["disk"]["free"] = 1000
    assert "DOES NOT FIT" in text(found)
    assert [size(n) for n in (999, 2048, 3 * 2**30)] == ["999 B", "2 KiB", "3 GiB"]


# What is planned is what runs.


def a_few_runs():
    params = tiny_params()
    digits = params["datasets"]["digits"]
    kept = ("ic", "gc")
    digits["methods"] = {name: digits["methods"][name] for name in kept}
    digits["runs"] = {name: {"label": name, "seeds": [0]} for name in kept}
    digits["figures"] = {"samples": {"kind": "samples", "title": "Samples", "methods": ["ic", "gc"]}}
    del digits["transport"], digits["discrepancy"], params["datasets"]["mixture2d"]
    return params


def test_a_plan_names_the_jobs_that_run_and_nothing_is_left_of_it(tmp_path):
    root = write_project(tmp_path, a_few_runs())
    gcflow(root, "bench", "digits", "--steps", "10", "--rounds", "3")
    gcflow(root, "plan", "--json", "before.json")
    before = json.loads((root / "before.json").read_text())
    graph = Graph(Params(root / "params.yaml"), "embedded")
    assert sorted(job["name"] for job in before["jobs"]) == sorted(graph.target("all"))
    for job in before["jobs"]:
        gcflow(root, *graph.jobs[job["name"]].stage.command.split()[1:])
        path = benchmark_path(root, graph.jobs[job["name"]])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"s\n{2 * job['seconds']}\n")
    gcflow(root, "plan", "--json", "after.json")
    after = json.loads((root / "after.json").read_text())
    assert after["rows"]["total"]["done"] == after["rows"]["total"]["jobs"] == len(graph.jobs)
    total = after["ran"]["total"]
    predicted = sum(job["seconds"] for job in before["jobs"])
    assert total["predicted_seconds"] == pytest.approx(predicted)
    assert total["actual_seconds"] == pytest.approx(2 * predicted)


def test_a_graph_without_claims_has_none(tmp_path):
    graph = Graph(Params(write_project(tmp_path) / "params.yaml"), "embedded")
    assert "claims" not in graph.jobs
    with pytest.raises(GcflowError, match="target 'claims'"):
        graph.target("claims")
