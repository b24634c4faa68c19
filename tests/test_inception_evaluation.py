"""The whole path of the paper's evaluation at a tiny size: surrogate network, two protocols, real processes."""

import json
import shutil

import pytest
import torch
from projects import Fork, contents, error_line, prepare_data, run_folder, train_here, write_project
from torch import Tensor, nn
from torch.nn import functional

from gcflow.data import load_dataset
from gcflow.inception import PIXELS, Inception, write_surrogate
from gcflow.metrics import FeatureStatistics, frechet_distance, kernel_inception_distance
from gcflow.pipeline import evaluate
from gcflow.pipeline.evaluate import evaluate_run
from gcflow.pipeline.folders import extractor_path, reference_path, snapshot
from gcflow.pipeline.params import Params
from gcflow.sampling import Sampler, generate
from gcflow.weights import load_run_model, load_tensors, save_tensors

RUN = "noise/ic/0"
PROTOCOL = {"kid_subsets": 3, "kid_subset_size": 20, "score_splits": 2}


class SmallNetwork(nn.Module):
    """Inception's interface with sixteen features, whose distances take no time."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Conv2d(3, 16, 60, stride=60), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        self.output = nn.Linear(16, 7)

    def forward(
        self, img: Tensor, return_features: bool = False, use_fp16: bool = False, no_output_bias: bool = False
    ) -> Tensor:
        x = functional.interpolate(img.float(), size=(299, 299), mode="bilinear", align_corners=False)
        features = self.layers((x - 128) / 128).reshape(-1, 16)
        return features if return_features else torch.softmax(self.output(features), 1)


def noise_params():
    training = {"steps": 4, "batch": 8, "learning_rate": 1e-3, "snapshot_every": 2, "schedule": {"kind": "ict"}}
    protocols = {
        "clean": PROTOCOL,
        "authors": {
            **PROTOCOL,
            "resize": "legacy-tensorflow",
            "pixels": "batch-min-max",
            "reference_images": 40,
            "select": "best",
        },
    }
    entry = {
        "data": {"source": "synthetic", "shape": [3, 8, 8], "count": 60, "seed": 1},
        "process": {},
        "network": {"architecture": "mlp", "channels": 16, "blocks": 1},
        "training": training,
        "methods": {"ic": {"objective": "consistency", "coupling": "ic"}},
        "runs": {"ic": {"label": "iCT-IC", "seeds": [0]}},
        "features": {"kind": "surrogate", "seed": 3, "protocols": protocols},
        "evaluation": {
            "samples": 50,
            "generation_seeds": [0, 1],
            "intermediate_sigmas": [0.8],
            "heun_steps": 2,
            "grid": 3,
            "weights": ["ema"],
            "batch": 20,
        },
        "tables": {
            "t": {"title": "T", "methods": ["ic"]},
            "u": {"title": "U", "methods": ["ic"], "protocol": "authors"},
        },
    }
    return {"tracking": {"experiment": "e"}, "datasets": {"noise": entry}}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = write_project(tmp_path_factory.mktemp("noise"), noise_params())
    prepare_data(folder, "noise")
    train_here(folder, RUN)
    extractor_path(folder, "noise", "surrogate").parent.mkdir(parents=True)
    torch.jit.script(SmallNetwork().eval()).save(extractor_path(folder, "noise", "surrogate"))
    for command in (("reference", "noise"), ("reference", "noise", "authors")):
        process = Fork(folder, *command)
        assert process.wait() == 0, process.output
    return folder


@pytest.fixture(scope="module")
def evaluated(trained, tmp_path_factory):
    folder = shutil.copytree(trained, tmp_path_factory.mktemp("evaluated") / "project")
    process = Fork(folder, "evaluate", RUN)
    assert process.wait() == 0, process.output
    return folder


def records_of(folder):
    return json.loads((run_folder(folder, RUN) / "evaluation" / "metrics.json").read_text())


def one(records, **wanted):
    (found,) = (r for r in records if all(r[key] == value for key, value in wanted.items()))
    return found


@pytest.mark.parametrize(
    ("protocol", "resize", "pixels", "count"),
    [("clean", "clean", "clip", 60), ("authors", "legacy-tensorflow", "batch-min-max", 40)],
)
def test_every_metric_is_that_of_the_generated_images_under_its_protocol(evaluated, protocol, resize, pixels, count):
    params = Params(evaluated / "params.yaml")
    model = load_run_model(run_folder(evaluated, RUN) / "snapshots/00000004.safetensors", params.run_config(RUN), "ema")
    network = Inception.load(extractor_path(evaluated, "noise", "surrogate"))
    batches = list(generate(model, Sampler("consistency"), (3, 8, 8), range(50), 1, 20, torch.float32))
    images = torch.cat([PIXELS[pixels](batch) for batch in batches])
    features = network(images, resize)[0]
    real = network(load_dataset(evaluated / "data/noise").samples[:count], resize)[0]
    wanted = {"protocol": protocol, "step": 4, "generation_seed": 1, "network_evaluations": 1}
    records = records_of(evaluated)
    found = one(records, metric="surrogate-fd", **wanted)
    assert found["value"] == pytest.approx(frechet_distance(features, real), rel=1e-4)
    kid = one(records, metric="surrogate-kd", **wanted)["value"]
    pool = load_tensors(reference_path(evaluated, "noise", protocol))[0]["kid_pool"]
    assert kid == pytest.approx(kernel_inception_distance(features, pool, 3, 20, 0)[0], rel=1e-4)
    # The order of the real images is kept.
    torch.testing.assert_close(pool, real, rtol=1e-4, atol=1e-5)
    assert found["extractor_sha256"] == network.sha256
    assert (found["reference"], found["reference_split"], found["resize"]) == (count, "train", resize)
    assert (found["generated"], found["generation_batch"]) == (50, 20)
    assert ("[-1, 1]" in found["clipping"]) == (pixels == "clip")


def test_snapshots_seeds_and_samplers_are_those_of_the_plan(evaluated):
    kinds = {(r["step"], r["network_evaluations"], r["generation_seed"]) for r in records_of(evaluated)}
    assert kinds == {(2, 1, 0), (4, 1, 0), (4, 1, 1), (4, 2, 0), (4, 2, 1)}
    assert {r["weights"] for r in records_of(evaluated)} == {"ema"}
    assert not any("fid" in r["metric"] for r in records_of(evaluated))


def test_the_reference_holds_the_statistics_of_its_images(trained):
    tensors, record = load_tensors(reference_path(trained, "noise", "authors"))
    network = Inception.load(extractor_path(trained, "noise", "surrogate"))
    features = network(load_dataset(trained / "data/noise").samples[:40], "legacy-tensorflow")[0]
    statistics = FeatureStatistics.of(tensors)
    torch.testing.assert_close(statistics.mean, features.double().mean(0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(statistics.covariance, torch.cov(features.double().T), rtol=1e-3, atol=1e-6)
    assert statistics.count == record["count"] == 40
    assert set(record["real_half_against_half"]) == {"surrogate-fd", "surrogate-kd", "surrogate-score"}


def test_tables_of_both_protocols_are_written(evaluated):
    for name in ("t", "u"):
        process = Fork(evaluated, "table", "noise", name)
        assert process.wait() == 0, process.output
    text = (evaluated / "results/noise/tables/u.md").read_text()
    assert "Protocol authors: Features of a random network, not FID" in text


def interrupted(folder, monkeypatch):
    """Evaluates a project's run up to its fourth measurement; the list to which each measurement is added."""
    monkeypatch.setattr(evaluate, "SECONDS_BETWEEN_SAVES", 0.0)
    measured, measure = [], evaluate.Evaluator.measure

    def stop_at_the_fourth(self, model, step, weights, sampler, seed):
        measured.append((step, sampler.evaluations, seed))
        if len(measured) == 4:
            raise KeyboardInterrupt
        return measure(self, model, step, weights, sampler, seed)

    monkeypatch.setattr(evaluate.Evaluator, "measure", stop_at_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        evaluate_run(Params(folder / "params.yaml"), RUN)
    assert not (run_folder(folder, RUN) / "evaluation").exists()
    return measured


def test_a_killed_evaluation_goes_on_and_ends_with_the_same_numbers(trained, evaluated, tmp_path, monkeypatch):
    folder = shutil.copytree(trained, tmp_path / "project")
    measured = interrupted(folder, monkeypatch)
    evaluate_run(Params(folder / "params.yaml"), RUN)
    assert measured[4:] == [measured[3], (4, 2, 1)]
    ours, theirs = (run_folder(root, RUN) / "evaluation" for root in (folder, evaluated))
    for name in ("samples.npy", "samples.png", *(f"grids/{path.name}" for path in (theirs / "grids").iterdir())):
        assert (ours / name).read_bytes() == (theirs / name).read_bytes()
    assert {path.name for path in (ours / "grids").iterdir()} == {"00000002.png", "00000004.png"}
    for ours, theirs in zip(records_of(folder), records_of(evaluated), strict=True):
        assert ours == {**theirs, "value": pytest.approx(theirs["value"], rel=1e-9)}
    assert not (run_folder(folder, RUN) / "state" / "evaluation").exists()


def test_a_killed_evaluation_of_other_weights_is_begun_anew(trained, tmp_path, monkeypatch):
    folder = shutil.copytree(trained, tmp_path / "project")
    measured = interrupted(folder, monkeypatch)
    # As after training from another initial state, which no configuration tells: only the first snapshot differs.
    path = snapshot(run_folder(folder, RUN), 2)
    tensors, header = load_tensors(path)
    save_tensors(path, {name: 2 * tensor for name, tensor in tensors.items()}, header)
    fresh = shutil.copytree(folder, tmp_path / "fresh")
    shutil.rmtree(run_folder(fresh, RUN) / "state" / "evaluation")
    for root in (folder, fresh):
        evaluate_run(Params(root / "params.yaml"), RUN)
    assert len(measured) == 4 + 5 + 5
    assert records_of(folder) == records_of(fresh)
    assert not (run_folder(folder, RUN) / "state" / "evaluation").exists()


def refused(folder, *command):
    process = Fork(folder, *command)
    assert process.wait() == 2, process.output
    return error_line(process.output)


def test_a_reference_of_another_network_split_or_count_is_refused(trained, tmp_path):
    folder = shutil.copytree(trained, tmp_path / "project")
    path = reference_path(folder, "noise", "authors")
    tensors, record = load_tensors(path)
    save_tensors(path, tensors, {**record, "protocol": {**record["protocol"], "split": "held-out"}})
    assert "made for split held-out, not train; run gcflow reference noise authors" in refused(folder, "evaluate", RUN)
    save_tensors(path, tensors, {**record, "protocol": {**record["protocol"], "reference_images": 50}})
    assert "made for reference_images 50, not 40" in refused(folder, "evaluate", RUN)
    save_tensors(path, tensors, record)
    process = Fork(folder, "features", "noise")
    assert process.wait() == 0, process.output
    assert "made with another surrogate; run gcflow reference noise clean" in refused(folder, "evaluate", RUN)


def test_a_protocol_that_asks_for_more_images_than_there_are_is_refused(trained, tmp_path):
    folder = shutil.copytree(trained, tmp_path / "project")
    document = noise_params()
    document["datasets"]["noise"]["features"]["protocols"]["authors"]["reference_images"] = 61
    document["datasets"]["noise"]["features"]["protocols"]["clean"]["split"] = "held-out"
    write_project(folder, document)
    before = contents(folder / "results")
    assert "train split has 60 images, the protocol asks for 61" in refused(folder, "reference", "noise", "authors")
    assert "held-out split has 0 images" in refused(folder, "reference", "noise", "clean")
    assert "known: clean, authors" in refused(folder, "reference", "noise", "other")
    assert contents(folder / "results") == before


def test_inception_is_looked_up_in_the_archives_and_checked(trained, tmp_path):
    folder, archives = shutil.copytree(trained, tmp_path / "project"), tmp_path / "archives"
    archives.mkdir()
    document = noise_params()
    features = document["datasets"]["noise"]["features"]
    del features["seed"]
    features["kind"] = "inception"
    write_project(folder, document)
    command = ("features", "noise", "--archives", archives)
    missing = refused(folder, *command)
    assert f"{archives}/inception-2015-12-05.pt: missing; fetch https://" in missing
    (archives / "inception-2015-12-05.pt").write_bytes(b"not a network")
    assert "inception-2015-12-05.pt" in refused(folder, *command)
    write_surrogate(archives / "inception-2015-12-05.pt", 3)
    process = Fork(folder, *command)
    assert process.wait() == 0, process.output
    assert (
        extractor_path(folder, "noise", "inception").read_bytes() == (archives / "inception-2015-12-05.pt").read_bytes()
    )
    features["sha256"] = "0" * 64
    write_project(folder, document)
    line = refused(folder, *command)
    assert "0" * 64 in line
    assert "inception-2015-12-05.pt" in line
