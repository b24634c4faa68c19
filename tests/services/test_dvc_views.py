"""What DVC shows of the runs: final numbers, curves, parameters, experiments. Real commands on a finished project."""

import csv
import json
import re
import shlex
from itertools import pairwise
from pathlib import Path
from statistics import fmean

import pytest
import torch
import yaml
from matplotlib import image
from projects import contents, gcflow, run_folder
from workflows import ROOT, commit, duplicate, dvc, run

from gcflow.errors import GcflowError
from gcflow.pipeline.drawing.image_files import tile
from gcflow.pipeline.dvc_stages import dvc_documents
from gcflow.pipeline.dvc_views import MOST_POINTS, loss_curve, metric_curves, write_views
from gcflow.pipeline.folders import snapshot
from gcflow.pipeline.params import Params, Run
from gcflow.sampling import Sampler, generate
from gcflow.weights import load_run_model


@pytest.fixture(scope="module")
def project(finished, tmp_path_factory):
    """Commands of DVC that only show leave traces in .dvc/tmp."""
    return duplicate(finished, tmp_path_factory.mktemp("views") / "project")


@pytest.fixture(scope="module")
def experiment(finished, tmp_path_factory):
    """A copy in which the experiment `mu05` was run, outside of its workspace; and what DVC said."""
    folder = duplicate(finished, tmp_path_factory.mktemp("experiment") / "project")
    run(folder, "git", "config", "user.name", "t")
    run(folder, "git", "config", "user.email", "t@example.org")
    change = ("--set-param", "datasets.digits.methods.ect-gc.mu=0.5")
    said = dvc(folder, "exp", "run", "--temp", "--name", "mu05", *change, "evaluate@digits-ect-gc-0")
    return folder, said


def runs_of(folder):
    return [one.name for one in Params(folder / "params.yaml").runs()]


def summary_of(name):
    return str(run_folder(ROOT, name).relative_to(ROOT) / "evaluation" / "summary.json")


def final_means(folder, name):
    """From metrics.json: means over generation seeds of EMA weights, last step, main sampler."""
    records = json.loads((run_folder(folder, name) / "evaluation" / "metrics.json").read_text())
    evaluations = 5 if "denoiser" in name else 1
    chosen = [r for r in records if (r["weights"], r["step"], r["network_evaluations"]) == ("ema", 40, evaluations)]
    means = {metric: [r["value"] for r in chosen if r["metric"] == metric] for metric in {r["metric"] for r in chosen}}
    assert {len(values) for values in means.values()} == {2}
    return {metric: fmean(values) for metric, values in means.items()}


def changed_params(folder, *revisions):
    """Key to old and new value of everything that `dvc params diff` lists."""
    (found,) = json.loads(dvc(folder, "params", "diff", "--json", *revisions)).values()
    return {key: (change["old"], change["new"]) for key, change in found.items()}


def specifications(page):
    """The plots of a page of DVC by name."""
    text = page.read_text()
    found = re.findall(r'<div id = "([^"]+)">.*?var spec = (.*?);\n', text, flags=re.DOTALL)
    return {name: json.loads(specification) for name, specification in found}


def test_metrics_show_has_a_row_per_run_with_the_means_over_generation_seeds(project):
    shown = json.loads(dvc(project, "metrics", "show", "--json"))[""]["data"]
    assert set(shown) == {summary_of(name) for name in runs_of(project)}
    for name in runs_of(project):
        assert shown[summary_of(name)]["data"] == pytest.approx(final_means(project, name), rel=1e-12)
    header, *rows = dvc(project, "metrics", "show").splitlines()
    assert header.split()[:4] == ["Path", "classifier-fd", "classifier-kd", "classifier-score"]
    assert len(rows) == len(runs_of(project))


def test_protocols_are_kept_apart_where_there_are_several(tmp_path):
    drawn = {"weights": "ema", "sampler": "consistency", "network_evaluations": 1}
    records = [
        {"protocol": protocol, "metric": "fid", "step": step, "generation_seed": seed, "value": value, **drawn}
        for protocol, step, seed, value in (("clean", 20, 0, 9.0), ("legacy", 20, 0, 8.0), ("clean", 40, 0, 5.0),
                                            ("clean", 40, 1, 7.0), ("legacy", 40, 0, 4.0))
    ]  # fmt: skip
    noise = [{**records[2], "weights": "raw", "value": 99.0}, {**records[2], "network_evaluations": 2, "value": 99.0}]
    curves = metric_curves([*records, *noise])
    write_views(tmp_path, Run("set", "gc", 3), [{"step": 40, "loss": 1.0}], curves)
    folder = run_folder(tmp_path, "set/gc/3") / "evaluation"
    assert json.loads((folder / "summary.json").read_text()) == {"clean": {"fid": 6.0}, "legacy": {"fid": 4.0}}
    assert (folder / "curves/metrics.csv").read_text() == "method,seed,step,fid\ngc,3,20,9.0\ngc,3,40,6.0\n"


def test_a_long_loss_curve_has_few_points_whose_means_are_those_of_the_log(tmp_path):
    path = tmp_path / "metrics.jsonl"
    losses = [float(n % 7) for n in range(1, 1001)]
    path.write_text("".join(f"{json.dumps({'step': 10 * n, 'loss': loss})}\n" for n, loss in enumerate(losses, 1)))
    curve = loss_curve(path)
    assert len(curve) == MOST_POINTS
    assert [point["step"] for point in curve] == list(range(50, 10001, 50))
    assert curve[3]["loss"] == fmean(losses[15:20])


def test_losses_that_are_missing_or_damaged_are_named(project, tmp_path):
    folder = duplicate(project, tmp_path / "project")
    path = run_folder(folder, "digits/ic/0") / "metrics.jsonl"
    path.write_text(path.read_text()[:-40])
    with pytest.raises(GcflowError, match=r"metrics\.jsonl: not the losses of a finished run; delete it and train"):
        loss_curve(path)
    path.unlink()
    refused = gcflow(folder, "evaluate", "digits/ic/0", check=False)
    assert refused.returncode == 2
    assert "ic/seed0/metrics.jsonl: no such file" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_plots_hold_every_runs_losses_and_distances_as_its_own_files_have_them(project):
    dvc(project, "plots", "show")
    plots = specifications(project / "dvc_plots" / "index.html")
    assert list(plots) == [
        "digits-loss-consistency", "digits-loss-distillation", "digits-loss-denoising", "digits-classifier-fd",
        "mixture2d-loss-consistency", "mixture2d-coordinate-fd",
    ]  # fmt: skip
    shown: dict[str, dict[str, list]] = {"loss": {}, "fd": {}}
    for name, plot in plots.items():
        dataset, kind = name.split("-")[0], "loss" if "-loss-" in name else "fd"
        x, y = plot["encoding"]["x"], plot["encoding"]["y"]
        assert (x["field"], x["title"], y["title"]) == ("step", "training step", f"{y['field']}, log scale")
        assert plot["title"]["text"].startswith(f"{dataset}: ")
        for point in plot["data"]["values"]:
            of_run = shown[kind].setdefault(f"{dataset}/{point['method']}/{point['seed']}", [])
            of_run.append((int(point["step"]), float(point[y["field"]])))
    assert set(shown["loss"]) == set(shown["fd"]) == set(runs_of(project))
    for name in runs_of(project):
        logged = [json.loads(line) for line in (run_folder(project, name) / "metrics.jsonl").read_text().splitlines()]
        assert shown["loss"][name] == [(line["step"], line["loss"]) for line in logged]
        metric = "coordinate-fd" if name.startswith("mixture2d") else "classifier-fd"
        last = (40, pytest.approx(final_means(project, name)[metric], rel=1e-12))
        assert shown["fd"][name][-1] == last
        assert [step for step, _ in shown["fd"][name]] == ([40] if "denoiser" in name else [20, 40])


def test_the_offline_page_asks_for_nothing_and_brings_vega(project):
    template = run(project, "python", "workflow/offline_plots.py").strip()
    dvc(project, "plots", "show", "--html-template", template, "--out", "offline")
    page = (project / "offline" / "index.html").read_text()
    assert "vegaEmbed" in page
    assert len(page) > 1_000_000
    assert not re.search(r"<script[^>]+src=|<link", page)
    assert list(specifications(project / "offline" / "index.html")) == list(
        specifications(project / "dvc_plots" / "index.html")
    )
    assert run(project, "git", "status", "--porcelain", "dvc_plots", ".dvc") == ""


def test_params_diff_names_exactly_the_changed_key(project, tmp_path):
    folder = duplicate(project, tmp_path / "project")
    params = yaml.safe_load((folder / "params.yaml").read_text())
    params["datasets"]["digits"]["methods"]["gc"]["mu"] = [0.0, 0.5]
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    assert changed_params(folder) == {"datasets.digits.methods.gc.mu": ("[0.0, 1.0]", "[0.0, 0.5]")}


def test_an_experiment_with_another_mu_runs_its_two_stages_and_leaves_the_workspace_alone(experiment, finished):
    folder, said = experiment
    assert re.findall(r"Running stage '(\S+)'", said) == ["train@digits-ect-gc-0", "evaluate@digits-ect-gc-0"]
    assert run(folder, "git", "status", "--porcelain") == ""
    assert contents(folder / "results") == contents(finished / "results")
    assert changed_params(folder, "main", "mu05") == {"datasets.digits.methods.ect-gc.mu": (0.3, 0.5)}


def test_a_table_of_experiments_has_a_column_per_key_and_number_that_differs(experiment):
    (command,) = re.findall(r"^dvc (exp show .*)$", (ROOT / "docs/comparing.md").read_text(), flags=re.MULTILINE)
    header, *rows = csv.reader(dvc(experiment[0], *shlex.split(command), "--csv").splitlines())
    numbers = {f"{summary_of('digits/ect-gc/0')}:{name}" for name in final_means(experiment[0], "digits/ect-gc/0")}
    assert set(header) == {"Experiment", "rev", "typ", "Created", "datasets.digits.methods.ect-gc.mu", *numbers}
    assert [row[header.index("Experiment")] for row in rows][2:] == ["mu05"]


def test_a_mistaken_experiment_ends_with_the_line_that_names_the_key(experiment):
    folder, _ = experiment
    change = ("--set-param", "datasets.digits.methods.ect-gc.mu=1.5")
    said = dvc(folder, "exp", "run", "--temp", *change, "train@digits-ect-gc-0", check=False)
    assert "datasets.digits.methods.ect-gc.mu is 1.5, expected a number <= 1" in said
    assert "Traceback" not in said
    assert dvc(folder, "exp", "list", "--name-only").split() == ["mu05"]


def test_an_experiment_is_compared_applied_and_taken_back(experiment, tmp_path):
    folder = duplicate(experiment[0], tmp_path / "project")
    before = final_means(folder, "digits/ect-gc/0")
    compared = json.loads(dvc(folder, "metrics", "diff", "main", "mu05", "--json"))
    dvc(folder, "plots", "diff", "main", "mu05")
    plots = specifications(folder / "dvc_plots" / "index.html")
    dvc(folder, "exp", "apply", "mu05")
    after = final_means(folder, "digits/ect-gc/0")
    assert set(compared) == {summary_of("digits/ect-gc/0")}
    for metric, change in compared[summary_of("digits/ect-gc/0")].items():
        assert (change["old"], change["new"]) == pytest.approx((before[metric], after[metric]), rel=1e-12)
    assert before["classifier-fd"] != after["classifier-fd"]
    points = plots["digits-loss-consistency"]["data"]["values"]
    losses = {
        revision: [float(p["loss"]) for p in points if (p["method"], p["rev"]) == ("ect-gc", revision)]
        for revision in ("main", "mu05")
    }
    with (run_folder(folder, "digits/ect-gc/0") / "evaluation/curves/loss.csv").open() as file:
        assert losses["mu05"] == [float(row["loss"]) for row in csv.DictReader(file)]
    assert losses["main"] != losses["mu05"]

    commit(folder, "mu = 0.5")
    assert set(json.loads(dvc(folder, "metrics", "diff", "HEAD~1", "HEAD", "--json"))) == set(compared)
    run(folder, "git", "checkout", "--quiet", "HEAD~1")
    dvc(folder, "checkout")
    assert final_means(folder, "digits/ect-gc/0") == before
    assert dvc(folder, "status").strip() == "Data and pipelines are up to date."


def test_grids_show_each_snapshot_from_the_same_noises(project):
    evaluation = run_folder(project, "digits/gc/0") / "evaluation"
    assert [path.name for path in sorted((evaluation / "grids").glob("*.png"))] == ["00000020.png", "00000040.png"]
    assert (evaluation / "grids/00000040.png").read_bytes() == (evaluation / "samples.png").read_bytes()
    config = Params(project / "params.yaml").run_config("digits/gc/0")
    for step in (20, 40):
        model = load_run_model(snapshot(evaluation.parent, step), config, "ema", "cpu")
        with torch.no_grad():
            (samples,) = generate(model, Sampler("consistency"), (1, 8, 8), range(16), seed=0)
        drawn = image.imread(evaluation / "grids" / f"{step:08d}.png")[::4, ::4]
        assert abs(255 * drawn - tile(samples.numpy(), 4)).max() <= 1
    for name, steps in (("digits/denoiser/0", [40]), ("mixture2d/ic/0", [20, 40])):
        grids = run_folder(project, name) / "evaluation" / "grids"
        assert sorted(int(path.stem) for path in grids.glob("*.png")) == steps


def test_evaluating_again_gives_the_same_bytes_and_removes_grids_of_other_steps(project, tmp_path):
    folder = duplicate(project, tmp_path / "project")
    evaluation = run_folder(folder, "digits/gc/0") / "evaluation"
    before = contents(evaluation)
    (evaluation / "grids" / "00000030.png").write_bytes(b"of an earlier configuration")
    gcflow(folder, "evaluate", "digits/gc/0")
    assert contents(evaluation) == before


@pytest.mark.parametrize("scale", ["embedded", "paper"])
def test_every_run_is_in_a_plot_of_losses_and_one_of_distances(scale):
    params = Params(ROOT / "params.yaml")
    document = yaml.safe_load(dvc_documents(params, scale)["workflow/runs.yaml"])
    runs = [one.name for dataset in params.at_scale(scale) for one in params.runs(dataset)]
    definitions = {name: plot for entry in document["plots"] for name, plot in entry.items()}
    assert len(definitions) == len(document["plots"])
    files = [file for plot in definitions.values() for file in plot["y"]]
    assert sorted(files) == sorted(
        f"{run_folder(Path(), name)}/evaluation/curves/{curve}.csv" for name in runs for curve in ("loss", "metrics")
    )
    assert {plot["template"] for plot in definitions.values()} == {"curves"}
    titles = sorted(plot["title"] for plot in definitions.values())
    assert all(one != other for one, other in pairwise(titles))
