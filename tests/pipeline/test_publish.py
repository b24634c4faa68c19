"""`gcflow publish`: a folder from which the real diffusers draws the images of `gcflow sample`, a scale as an RO-Crate.

diffusers and roc-validator are no part of the locked environment: each is for the one test that needs it, the latter in
an environment of its own whose `rocrate-validator` is on the PATH (it wants another rich than snakemake).
"""

import json
import shutil
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import rocrate
import yaml
from projects import (
    ROOT,
    contents,
    error_line,
    gcflow,
    prepare_data,
    run_folder,
    tiny_params,
    train_here,
    write_project,
)
from safetensors.torch import load_file

from gcflow.sources import Digits
from gcflow.weights import load_model

RUN, DENOISER, POINTS = "digits/ic/0", "digits/denoiser/0", "mixture2d/ic/0"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    params = tiny_params()
    params["datasets"]["digits"]["tables"]["own"] = {"title": "A table", "methods": ["denoiser"]}
    folder = write_project(tmp_path_factory.mktemp("publish") / "project", params)
    prepare_data(folder, "digits", "mixture2d")
    for run in (RUN, DENOISER, POINTS):
        train_here(folder, run)
    for arguments in (("features", "digits"), ("reference", "digits"), ("evaluate", RUN), ("evaluate", DENOISER)):
        gcflow(folder, *arguments)
    return folder


def test_the_folder_has_the_weights_the_numbers_and_the_terms(root, tmp_path):
    gcflow(root, "publish", RUN, tmp_path / "out")
    assert set(contents(tmp_path / "out")) == {
        *("README.md", "config.json", "model_index.json", "pipeline.py"),
        *("unet/config.json", "unet/diffusion_pytorch_model.safetensors", "unet/gcflow_model.py"),
    }
    model, _, metadata = load_model(run_folder(root, RUN) / "weights.safetensors")
    tensors = load_file(tmp_path / "out" / "unet" / "diffusion_pytorch_model.safetensors")
    assert all((tensors[f"model.{name}"] == value).all() for name, value in model.state_dict().items())
    card = (tmp_path / "out" / "README.md").read_text()
    assert Digits().terms.licence in card
    assert metadata["config_hash"] in card
    records = json.loads((run_folder(root, RUN) / "evaluation" / "metrics.json").read_text())
    final = [r["value"] for r in records if (r["metric"], r["step"], r["weights"], r["network_evaluations"]) == (
        "classifier-fd", 40, "ema", 1)]  # fmt: skip
    assert f"| classifier FD ↓ | {np.mean(final):.4g} ± {np.std(final, ddof=1):.2g} (2) |" in card


def test_what_cannot_be_published_is_refused_and_leaves_nothing(root, tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").touch()
    for arguments, words in (
        ((POINTS, tmp_path / "out"), "its samples are points"),
        ((RUN, tmp_path / "there"), "there is something already"),
        (("digits/ic/1", tmp_path / "out"), "no such file"),
        ((RUN,), "a run and then a folder for it"),
        ((RUN, DENOISER, tmp_path / "out"), "a run and then a folder for it"),
    ):
        refused = gcflow(root, "publish", *arguments, check=False)
        assert refused.returncode == 2
        assert words in error_line(refused.stderr)
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_weights_whose_data_forbid_it_are_published_only_if_told(root, tmp_path, monkeypatch):
    from gcflow.errors import GcflowError
    from gcflow.pipeline.params import Params
    from gcflow.tools.publish import publish

    monkeypatch.setattr(Digits, "terms", Digits.terms._replace(licence="research only", handed_on=False))
    params = Params(root / "params.yaml")
    with pytest.raises(
        GcflowError, match=r"digits: terms of the data: research only \(https.*; --despite-terms if you"
    ):
        publish(params, RUN, tmp_path / "out")
    publish(params, RUN, tmp_path / "out", despite_terms=True)
    assert "license: other" in (tmp_path / "out" / "README.md").read_text()


def test_weights_of_others_are_found_through_the_runs_that_need_them():
    from gcflow.pipeline.params import Params
    from gcflow.tools.publish import weights_of_others

    params = Params(ROOT / "params.yaml")
    found = {run.method: weights_of_others(params, run) for run in params.runs("cifar10")}
    assert found["ect"] == {"checkpoints/edm-cifar10.safetensors"}
    assert not found["ic"]


@pytest.mark.slow
@pytest.mark.parametrize("run", [RUN, DENOISER])
def test_diffusers_draws_the_images_of_gcflow_sample(root, tmp_path, run):
    pytest.importorskip("diffusers")
    gcflow(root, "publish", run, tmp_path / "out")
    gcflow(
        root, "sample", run_folder(root, run) / "weights.safetensors", "--count", "8", "--seed", "3", "--out", "a.npy"
    )
    # A torchvision of another build than torch, as that for GPUs beside a torch for CPUs, lacks its own operators.
    code = f"""
import numpy, torch
try:
    import torchvision
except (ImportError, RuntimeError):
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        library.define(f"{{name}}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
import diffusers
pipe = diffusers.DiffusionPipeline.from_pretrained({str(tmp_path / "out")!r}, trust_remote_code=True)
numpy.save({str(tmp_path / "b.npy")!r}, pipe(batch_size=8, seed=3, output_type="np").images)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    ours, theirs = np.load(root / "a.npy").transpose(0, 2, 3, 1) / 255, np.load(tmp_path / "b.npy")
    assert ours.std() > 0.01
    assert abs(ours - theirs).max() < 1e-5


MADE = ("prepare-digits", "features-digits", "reference-digits-classifier", "train@digits-denoiser-0")
MADE += ("evaluate@digits-denoiser-0", "table-digits-own", "train@digits-ic-0")


@pytest.fixture(scope="module")
def versioned(root):
    """The same with DVC, which has recorded `MADE` and not the rest, and with the time of one job by Snakemake."""
    for name in ("Snakefile", "CITATION.cff", "LICENSE"):
        shutil.copy(ROOT / name, root)
    shutil.copytree(ROOT / "workflow" / "rules", root / "workflow" / "rules")
    gcflow(root, "table", "digits", "own")
    gcflow(root, "stages")
    for arguments in (("init", "--quiet", "--no-scm"), ("commit", "--quiet", "--force", *MADE)):
        subprocess.run([sys.executable, "-m", "dvc", *arguments], cwd=root, check=True)
    times = root / "results" / "digits" / "benchmarks" / "evaluate-denoiser-0.tsv"
    times.parent.mkdir()
    times.write_text("s\th:m:s\tmean_load\tcpu_time\n7200.0\t2:00:00\t50.0\t3600.0\n")
    return root


@pytest.fixture(scope="module")
def crate(versioned, tmp_path_factory):
    out = tmp_path_factory.mktemp("crate") / "out"
    gcflow(versioned, "publish", out, "--device-watts", "100", "--core-watts", "10")
    return out


def entities(out):
    graph = json.loads((out / "ro-crate-metadata.json").read_text())["@graph"]
    found = {entity["@id"]: entity for entity in graph}
    assert len(found) == len(graph)
    return found


def references(value):
    """Every @id that a value of an entity names."""
    if isinstance(value, dict):
        return [value["@id"]]
    return [name for part in value for name in references(part)] if isinstance(value, list) else []


@pytest.mark.service
def test_a_crate_has_every_file_with_its_hash_and_the_stages_that_made_it(versioned, crate, tmp_path):
    found, files = entities(crate), contents(crate)
    stated = {unquote(name): entity["sha256"] for name, entity in found.items() if "sha256" in entity}
    inside = {name: value for name, value in stated.items() if not name.startswith("#")}
    assert inside == {name: value for name, value in files.items() if name != "ro-crate-metadata.json"}
    for name in stated.keys() - inside.keys():
        assert stated[name] == sha256((versioned / name[1:]).read_bytes()).hexdigest()
    outside = {Path(name).name for name in stated.keys() - inside.keys()}
    assert outside == {
        *("samples.npy", "labels.npy", "held_out.npy", "classifier.safetensors", "reference-classifier.safetensors"),
        *("00000020.safetensors", "00000040.safetensors"),
    }
    named = {name for entity in found.values() for value in entity.values() for name in references(value)}
    assert {name for name in named if not name.startswith("http")} <= found.keys()
    # From the table back to the data, over the stages alone.
    maker = {name: entity for entity in found.values() for name in references(entity.get("result"))}
    maker |= {n: e for e in found.values() if e["@id"].startswith("#stage/") for n in references(e["result"])}
    reached, ends = set(), ["results/digits/tables/own.md"]
    while ends:
        action = maker.get(ends.pop())
        if action and action["name"] not in reached:
            reached.add(action["name"])
            ends += references(action["object"])
    assert reached == {*MADE} - {"train@digits-ic-0"}
    training = yaml.safe_load((versioned / "params.yaml").read_text())["datasets"]["digits"]["training"]
    assert json.loads(found["#datasets.digits.training"]["value"]) == training
    assert {"@id": "#datasets.digits.training"} in found["#stage/train@digits-ic-0"]["object"]
    assert found[found["#data/digits"]["license"]["@id"]]["name"] == Digits.terms.licence
    gcflow(versioned, "publish", tmp_path / "again", "--device-watts", "100", "--core-watts", "10")
    assert contents(tmp_path / "again") == files


@pytest.mark.service
def test_the_page_of_a_crate_says_what_was_run_what_not_and_what_it_took(versioned, crate):
    page = (crate / "README.md").read_text()
    assert (versioned / "results" / "digits" / "tables" / "own.md").read_text() in page
    assert "| digits | Denoiser (denoiser) | 0 | denoising |" in page
    # One job of the table's six has both times: of the others Snakemake, which did not run here, has none.
    assert "| digits, own | 6 | 1 | 2 | 1 | 210 |" in page
    assert "100 W per device-hour, 10 W per core-hour" in page
    missing = page.partition("## What was not run")[2].splitlines()
    untrained = (
        "digits-ic-1, digits-gc-0, digits-gc-frozen-0, digits-cd-0, digits-ect-0, digits-ect-gc-0, mixture2d-ic-0"
    )
    assert {"- discrepancy: digits-denoiser-0", "- table: digits-table1"} < {*missing}
    assert {*untrained.split(", ")} == {
        *next(line for line in missing if line.startswith("- train: ")).removeprefix("- train: ").split(", ")
    }


@pytest.mark.service
def test_what_terms_forbid_or_dvc_does_not_vouch_for_stays_out_of_a_crate(versioned, tmp_path, monkeypatch):
    from gcflow.pipeline.params import Params
    from gcflow.tools.crate import publish_scale

    monkeypatch.setattr(Digits, "terms", Digits.terms._replace(handed_on=False))
    project = tmp_path / "project"
    shutil.copytree(versioned, project)
    params, weights = Params(project / "params.yaml"), "results/digits/ic/seed0/weights.safetensors"
    publish_scale(params, "embedded", tmp_path / "without", {})
    assert f"#{weights}" in entities(tmp_path / "without")
    assert not [*(tmp_path / "without").rglob("*.safetensors")]
    (project / "results/digits/denoiser/seed0/evaluation/metrics.json").write_text("[]")
    publish_scale(params, "embedded", tmp_path / "with", {}, despite_terms=True)
    found = entities(tmp_path / "with")
    assert weights in found
    assert "#stage/train@digits-denoiser-0" in found
    assert found.keys().isdisjoint({"#stage/evaluate@digits-denoiser-0", "#stage/table-digits-own"})
    (project / "dvc.lock").unlink()
    refused = gcflow(project, "publish", tmp_path / "nothing", check=False)
    assert "nothing to publish" in error_line(refused.stderr)
    assert not (tmp_path / "nothing").exists()


# What RO-Crate 1.1 calls otherwise than the version whose names the library brings.
NAMES = {
    "ComputationalWorkflow": "https://bioschemas.org/ComputationalWorkflow",
    "FormalParameter": "https://bioschemas.org/FormalParameter",
    "input": "https://bioschemas.org/ComputationalWorkflow#input",
    "output": "https://bioschemas.org/ComputationalWorkflow#output",
}
# The validator asks the web for them, or its cache.
WARM = """
import io, sys
import requests, urllib3
from requests_cache import CachedSession

class Served(requests.adapters.BaseAdapter):
    def send(self, request, **_):
        answer = requests.Response()
        answer.status_code, answer.url, answer.request = 200, request.url, request
        answer.headers["Content-Type"] = "application/ld+json"
        answer.raw = urllib3.HTTPResponse(io.BytesIO(open(sys.argv[1], "rb").read()), status=200, preload_content=False)
        return answer

    def close(self):
        pass

session = CachedSession(sys.argv[2], backend="sqlite", expire_after=-1)
session.mount("https://", Served())
session.get("https://w3id.org/ro/crate/1.1/context")
"""


@pytest.mark.service
@pytest.mark.skipif(not shutil.which("rocrate-validator"), reason="needs rocrate-validator of roc-validator")
def test_the_validator_of_ro_crates_finds_no_error(crate, tmp_path):
    context = json.loads((Path(rocrate.__file__).parent / "data" / "ro-crate.jsonld").read_text())
    context["@context"] |= NAMES
    (tmp_path / "context.jsonld").write_text(json.dumps(context))
    validator, cache = Path(shutil.which("rocrate-validator")), tmp_path / "cache"
    python = validator.parent / "python"
    subprocess.run([python, "-c", WARM, tmp_path / "context.jsonld", cache], check=True)
    options = ["--offline", "--cache-path", cache, "--output-format", "json", "--output-file", tmp_path / "found.json"]
    for profile, least in (("ro-crate-1.1", 30), ("workflow-run-crate", 50)):
        command = [validator, "--no-interactive", "validate", "--profile-identifier", profile, *options, crate]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        report = json.loads((tmp_path / "found.json").read_text())
        assert (done.returncode, report["issues"]) == (0, []), done.stdout
        assert report["statistics"]["total_checks"] >= least
