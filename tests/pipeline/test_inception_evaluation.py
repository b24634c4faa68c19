"""The whole path of an evaluation at a tiny size: surrogate of Inception, three protocols; DINOv2; real processes."""

import json
import shutil

import pytest
import torch
from builders import dinov2_weights
from projects import Fork, contents, error_line, prepare_data, run_folder, train_here, write_project
from torch import Tensor, nn
from torch.nn import functional

from gcflow.data import load_dataset
from gcflow.dinov2 import Dinov2
from gcflow.files import sha256_of
from gcflow.inception import PIXELS, Inception, float_round_trip, write_surrogate
from gcflow.metrics import FeatureStatistics, class_score, frechet_distance, kernel_inception_distance
from gcflow.pipeline import evaluate
from gcflow.pipeline.evaluate import evaluate_run
from gcflow.pipeline.folders import extractor_path, reference_path, snapshot
from gcflow.pipeline.params import Params
from gcflow.pipeline.reference import compute_reference, load_references
from gcflow.randomness import generator
from gcflow.sampling import Sampler, generate
from gcflow.weights import load_run_model, load_tensors, save_tensors

RUN, ECT = "noise/ic/0", "noise/ect/0"
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
    authors = {
        **PROTOCOL,
        "resize": "legacy-tensorflow",
        "pixels": "batch-min-max",
        "real_pixels": "round-trip",
        "reference_images": 40,
        "reference_seed": 5,
        "select": "best",
    }
    protocols = {"clean": PROTOCOL, "authors": authors, "authors-clip": {**authors, "pixels": "clip-truncate"}}
    ect = {
        "objective": "consistency",
        "sampling_boundary": 0.003,
        "training": {"batch": 16, "schedule": {"kind": "ect"}},
    }
    entry = {
        "data": {"source": "synthetic", "shape": [3, 8, 8], "count": 60, "seed": 1},
        "process": {},
        "network": {"architecture": "mlp", "channels": 16, "blocks": 1},
        "training": training,
        "methods": {"ic": {"objective": "consistency", "coupling": "ic"}, "ect": ect},
        "runs": {"ic": {"label": "iCT-IC", "seeds": [0]}, "ect": {"label": "ECT", "seeds": [0]}},
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
            "u": {"title": "U", "methods": ["ic", "ect"], "protocol": "authors", "note": "It is unknown which."},
        },
    }
    return {"tracking": {"experiment": "e"}, "datasets": {"noise": entry}}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = write_project(tmp_path_factory.mktemp("noise"), noise_params())
    prepare_data(folder, "noise")
    train_here(folder, RUN)
    train_here(folder, ECT)
    extractor_path(folder, "noise", "surrogate").parent.mkdir(parents=True)
    torch.jit.script(SmallNetwork().eval()).save(extractor_path(folder, "noise", "surrogate"))
    for protocol in ("clean", "authors", "authors-clip"):
        process = Fork(folder, "reference", "noise", protocol)
        assert process.wait() == 0, process.output
    return folder


@pytest.fixture(scope="module")
def evaluated(trained, tmp_path_factory):
    folder = shutil.copytree(trained, tmp_path_factory.mktemp("evaluated") / "project")
    for run in (RUN, ECT):
        process = Fork(folder, "evaluate", run)
        assert process.wait() == 0, process.output
    return folder


def records_of(folder, run=RUN):
    return json.loads((run_folder(folder, run) / "evaluation" / "metrics.json").read_text())


def chosen(count, total, seed):
    """The numbers of a reference's images, in its order."""
    return torch.randperm(total, generator=generator(seed, "reference"))[:count]


def one(records, **wanted):
    (found,) = (r for r in records if all(r[key] == value for key, value in wanted.items()))
    return found


@pytest.mark.parametrize(
    ("run", "boundary", "batch"), [(RUN, None, 8), (ECT, 0.003, 16)], ids=["an iCT run", "an ECT run"]
)
@pytest.mark.parametrize(
    ("protocol", "resize", "pixels", "count", "seed"),
    [
        ("clean", "clean", "clip", 60, 0),
        ("authors", "legacy-tensorflow", "batch-min-max", 40, 5),
        ("authors-clip", "legacy-tensorflow", "clip-truncate", 40, 5),
    ],
)
def test_every_metric_is_that_of_the_generated_images_under_its_protocol(
    evaluated, run, boundary, batch, protocol, resize, pixels, count, seed
):
    params = Params(evaluated / "params.yaml")
    model = load_run_model(run_folder(evaluated, run) / "snapshots/00000004.safetensors", params.run_config(run), "ema")
    network = Inception.load(extractor_path(evaluated, "noise", "surrogate"))
    sampler = Sampler("consistency", boundary=boundary)
    drawn = torch.cat(list(generate(model, sampler, (3, 8, 8), range(50), 1, 20, torch.float32)))
    # 50 images: whole batches of the training's size, and a last one of the 2 that are left.
    images = torch.cat([PIXELS[pixels](part) for part in drawn.split(batch)])
    assert len(drawn) % batch == 2
    features = network(images, resize)[0]
    real = load_dataset(evaluated / "data/noise").samples[chosen(count, 60, seed)]
    real = network(real if protocol == "clean" else float_round_trip(real), resize)[0]
    wanted = {"protocol": protocol, "step": 4, "generation_seed": 1, "network_evaluations": 1}
    records = records_of(evaluated, run)
    found = one(records, metric="surrogate-fd", **wanted)
    assert found["value"] == pytest.approx(frechet_distance(features, real), rel=1e-4)
    kid = one(records, metric="surrogate-kd", **wanted)["value"]
    pool = load_tensors(reference_path(evaluated, "noise", protocol))[0]["kid_pool"]
    assert kid == pytest.approx(kernel_inception_distance(features, pool, 3, 20, 0)[0], rel=1e-4)
    torch.testing.assert_close(pool, real, rtol=1e-4, atol=1e-5)
    assert found["extractor_sha256"] == network.sha256
    assert (found["reference"], found["reference_split"], found["resize"]) == (count, "train", resize)
    assert found["reference_choice"] == ("all" if protocol == "clean" else "random of 60, seed 5")
    assert ("truncated" in found["reference_pixels"]) == (protocol != "clean")
    assert (found["generated"], found["generation_batch"]) == (50, 20)
    assert (f"each batch of {batch} scaled" in found["clipping"]) == (pixels == "batch-min-max")
    assert ("rounded" in found["quantisation"]) == (pixels == "clip")
    assert found["boundary"] == (boundary or 0.002)
    assert found["precision"] == "float32"


def test_scaled_batches_do_not_depend_on_how_many_images_are_generated_at_once(trained):
    params = Params(trained / "params.yaml")
    (reference,) = (r for r in load_references(params, "noise", 8, "cpu") if r.protocol == "authors")
    images = 3 * torch.randn(50, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    found = []
    for sizes in ([20, 20, 10], [50], [8] * 6 + [2], [1] * 50):
        comparison = reference.compare(50)
        for part in images.split(sizes):
            comparison.update(part)
        found.append(comparison.values())
    for values in found:
        assert values == pytest.approx(found[0], rel=1e-4)
    other = load_references(params, "noise", 50, "cpu")[1].compare(50)
    other.update(images)
    assert other.values()["surrogate-fd"] != pytest.approx(found[0]["surrogate-fd"], rel=1e-2)


def test_a_reference_is_a_random_subset_in_a_random_order_that_its_seed_decides(trained, tmp_path):
    folder, document = shutil.copytree(trained, tmp_path / "project"), noise_params()
    pools = []
    for seed, images in ((5, 40), (5, 40), (6, 40), (5, None)):
        document["datasets"]["noise"]["features"]["protocols"]["clean"] = {
            **PROTOCOL,
            "reference_seed": seed,
            "reference_images": images,
        }
        compute_reference(Params(write_project(folder, document) / "params.yaml"), "noise")
        tensors, record = load_tensors(reference_path(folder, "noise", "clean"))
        pools.append(tensors["kid_pool"])
        assert record["choice"] == (f"random of 60, seed {seed}" if images else "all")
    assert torch.equal(pools[0], pools[1])
    assert not torch.equal(pools[0], pools[2])
    everything = Inception.load(extractor_path(folder, "noise", "surrogate"))(
        load_dataset(folder / "data/noise").samples, "clean"
    )[0]
    for pool in pools:
        nearest = torch.cdist(pool, everything).argmin(1)
        assert len(nearest.unique()) == len(pool)
        # Neither the first images, nor any in their order.
        assert nearest.max() > 50
        assert (nearest.diff() < 0).any()


def test_snapshots_seeds_and_samplers_are_those_of_the_plan(evaluated):
    kinds = {(r["step"], r["network_evaluations"], r["generation_seed"]) for r in records_of(evaluated)}
    assert kinds == {(2, 1, 0), (4, 1, 0), (4, 1, 1), (4, 2, 0), (4, 2, 1)}
    assert {r["weights"] for r in records_of(evaluated)} == {"ema"}
    assert not any("fid" in r["metric"] for r in records_of(evaluated))


def test_the_reference_holds_the_statistics_of_its_images(trained):
    tensors, record = load_tensors(reference_path(trained, "noise", "authors"))
    network = Inception.load(extractor_path(trained, "noise", "surrogate"))
    images = float_round_trip(load_dataset(trained / "data/noise").samples[chosen(40, 60, 5)])
    features, probabilities = network(images, "legacy-tensorflow")
    statistics = FeatureStatistics.of(tensors)
    torch.testing.assert_close(statistics.mean, features.double().mean(0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(statistics.covariance, torch.cov(features.double().T), rtol=1e-3, atol=1e-6)
    assert statistics.count == record["count"] == 40
    scores = [class_score(part) for part in probabilities.split(20)]
    kid = kernel_inception_distance(features[0::2], features[1::2], 3, 20, 0)[0]
    assert record["real_half_against_half"] == {
        "surrogate-fd": pytest.approx(frechet_distance(features[0::2], features[1::2]), rel=1e-4),
        "surrogate-kd": pytest.approx(kid, rel=1e-3, abs=1e-7),
        "surrogate-score": pytest.approx(sum(scores) / 2, rel=1e-6),
    }


def test_tables_say_their_protocol_and_their_note_in_every_format(evaluated):
    for name in ("t", "u"):
        process = Fork(evaluated, "table", "noise", name)
        assert process.wait() == 0, process.output
    written = {s: (evaluated / f"results/noise/tables/u.{s}").read_text() for s in ("md", "json", "tex", "csv")}
    for suffix in ("md", "json", "tex"):
        text = written[suffix]
        assert "Protocol authors: features of a random network, not FID" in text
        assert "each batch of 8 or 16 scaled by its own extremes, truncated to 8 bits" in text
        assert "reference 40 images of the train split (random of 60, seed 5), which went through float32" in text
        assert "at the best step by surrogate FD of the snapshots" in text
        assert "It is unknown which." in text
    assert [line.rsplit(",", 1)[1] for line in written["csv"].splitlines()] == ["protocol", "authors", "authors"]
    assert "unknown" not in (evaluated / "results/noise/tables/t.md").read_text()


def test_samples_that_are_not_finite_end_the_evaluation_in_one_line(trained, tmp_path, refused):
    folder = shutil.copytree(trained, tmp_path / "project")
    path = snapshot(run_folder(folder, RUN), 4)
    tensors, header = load_tensors(path)
    save_tensors(path, {name: 1e35 * tensor for name, tensor in tensors.items()}, header)
    line = refused(folder, "evaluate", RUN)
    assert line.endswith("noise/ic/0: samples of the ema weights at step 4 are NaN or infinite")


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


@pytest.fixture
def refused(here):
    """The line with which a command is refused."""

    def call(folder, *command):
        outcome = here(folder, *command)
        assert outcome.code == 2, outcome.errors
        return error_line(outcome.errors)

    return call


def test_a_reference_of_another_network_split_or_count_is_refused(trained, evaluated, tmp_path, refused):
    folder = shutil.copytree(trained, tmp_path / "project")
    path = reference_path(folder, "noise", "authors")
    tensors, record = load_tensors(path)
    save_tensors(path, tensors, {**record, "protocol": {**record["protocol"], "split": "held-out"}})
    assert "made for split held-out, not train; run gcflow reference noise authors" in refused(folder, "evaluate", RUN)
    save_tensors(path, tensors, {**record, "protocol": {**record["protocol"], "reference_images": 50}})
    assert "made for reference_images 50, not 40" in refused(folder, "evaluate", RUN)
    # As a reference of the first images was described.
    older = {key: record["protocol"][key] for key in ("resize", "split", "reference_images")}
    save_tensors(path, tensors, {**record, "protocol": older})
    again = "made for real_pixels None, not round-trip; run gcflow reference noise authors"
    assert again in refused(folder, "evaluate", RUN)
    shutil.copytree(run_folder(evaluated, RUN) / "evaluation", run_folder(folder, RUN) / "evaluation")
    assert again in refused(folder, "table", "noise", "u")
    save_tensors(path, tensors, record)
    process = Fork(folder, "features", "noise")
    assert process.wait() == 0, process.output
    assert "made with another surrogate; run gcflow reference noise clean" in refused(folder, "evaluate", RUN)


def test_a_protocol_that_asks_for_more_images_than_there_are_is_refused(trained, tmp_path, refused):
    folder = shutil.copytree(trained, tmp_path / "project")
    document = noise_params()
    protocols = document["datasets"]["noise"]["features"]["protocols"]
    protocols["clean"]["split"] = "held-out"
    write_project(folder, document)
    before = contents(folder / "results")
    assert "held-out split has 0 images, the protocol asks for at least 4" in refused(
        folder, "reference", "noise", "clean"
    )
    assert "known: clean, authors" in refused(folder, "reference", "noise", "other")
    protocols["authors"]["reference_images"] = 61
    write_project(folder, document)
    expected = "protocols.authors asks for 61 real images, and there are 60"
    assert expected in refused(folder, "reference", "noise", "authors")
    assert contents(folder / "results") == before


def test_inception_is_looked_up_in_the_archives_and_checked(trained, tmp_path, refused):
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


def test_fd_dinov2_goes_from_a_file_of_the_hub_to_a_table(trained, tmp_path, refused):
    folder, archives = shutil.copytree(trained, tmp_path / "project"), tmp_path / "archives"
    archives.mkdir()
    document, weights = noise_params(), archives / "dinov2_vits14_pretrain.pth"
    rules = {"kid_subsets": 3, "kid_subset_size": 20, "reference_images": 40, "reference_seed": 5}
    features = {"kind": "dinov2", "size": "vits14", "protocols": {"pillow": rules}}
    entry = document["datasets"]["noise"]
    entry |= {"features": features, "tables": {"t": {"title": "T", "methods": ["ic"]}}}
    write_project(folder, document)
    command = ("features", "noise", "--archives", archives)
    assert f"{weights}: missing; fetch https://dl.fbaipublicfiles.com/dinov2/dinov2_vits14/" in refused(
        folder, *command
    )
    sha256 = sha256_of(dinov2_weights(weights, width=128))
    assert f"another version of DINOv2: its sha256 is {sha256}, expected b938bf1b" in refused(folder, *command)
    features["sha256"] = sha256
    write_project(folder, document)
    for verb in (command, ("reference", "noise", "pillow"), ("evaluate", RUN), ("table", "noise", "t")):
        process = Fork(folder, *verb)
        assert process.wait() == 0, process.output

    params, records = Params(folder / "params.yaml"), records_of(folder)
    assert {record["metric"] for record in records} == {"fd-dinov2", "kd-dinov2"}
    model = load_run_model(run_folder(folder, RUN) / "snapshots/00000004.safetensors", params.run_config(RUN), "ema")
    drawn = torch.cat(list(generate(model, Sampler("consistency"), (3, 8, 8), range(50), 1, 20, torch.float32)))
    network = Dinov2.load(weights)
    generated, _ = network(PIXELS["clip"](drawn), "pillow")
    real, _ = network(load_dataset(folder / "data/noise").samples[chosen(40, 60, 5)], "pillow")
    wanted = {"step": 4, "generation_seed": 1, "network_evaluations": 1}
    distance = one(records, metric="fd-dinov2", **wanted)
    assert distance["value"] == pytest.approx(frechet_distance(generated, real), rel=1e-4)
    kernel = one(records, metric="kd-dinov2", **wanted)["value"]
    assert kernel == pytest.approx(kernel_inception_distance(generated, real, 3, 20, 0)[0], rel=1e-4)
    said = {"extractor_sha256": sha256, "resize": "pillow", "kd": "3 subsets of 20, seed 0"}
    said |= {"network": "class token of 2 blocks of width 128, float32", "reference": 40}
    assert said.items() <= distance.items()
    assert not {"kid", "score_splits"} & distance.keys()

    text = (folder / "results/noise/tables/t.md").read_text()
    heads = [head.strip() for head in text.splitlines()[0].strip("|").split("|")]
    assert heads == ["method", "seeds", "FD-DINOv2 ↓", "KD-DINOv2×10² ↓"]
    assert (
        "Protocol pillow: features of DINOv2, not FID: class token of 2 blocks of width 128, float32 (sha256 " in text
    )
    assert "pillow resize" in text
    assert "KD over 3 subsets of 20 (seed 0)." in text
    assert text.count("FID") == 1
