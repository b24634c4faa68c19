"""`gcflow publish`: a folder from which the real diffusers draws the images of `gcflow sample`, and what is refused.

diffusers is no part of the locked environment: `pip install diffusers` for the one test that needs it.
"""

import json
import subprocess
import sys

import numpy as np
import pytest
from projects import contents, error_line, gcflow, prepare_data, run_folder, tiny_params, train_here, write_project
from safetensors.torch import load_file

from gcflow.sources import Digits
from gcflow.weights import load_model

RUN, DENOISER, POINTS = "digits/ic/0", "digits/denoiser/0", "mixture2d/ic/0"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = write_project(tmp_path_factory.mktemp("publish") / "project", tiny_params())
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
    for run, out, words in (
        (POINTS, "out", "its samples are points"),
        (RUN, "there", "there is something already"),
        ("digits/ic/1", "out", "no such file"),
    ):
        refused = gcflow(root, "publish", run, tmp_path / out, check=False)
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


@pytest.mark.slow
@pytest.mark.parametrize("run", [RUN, DENOISER])
def test_diffusers_draws_the_images_of_gcflow_sample(root, tmp_path, run):
    pytest.importorskip("diffusers")
    gcflow(root, "publish", run, tmp_path / "out")
    gcflow(
        root, "sample", run_folder(root, run) / "weights.safetensors", "--count", "8", "--seed", "3", "--out", "a.npy"
    )
    code = f"""
import numpy, diffusers
pipe = diffusers.DiffusionPipeline.from_pretrained({str(tmp_path / "out")!r}, trust_remote_code=True)
numpy.save({str(tmp_path / "b.npy")!r}, pipe(batch_size=8, seed=3, output_type="np").images)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    ours, theirs = np.load(root / "a.npy").transpose(0, 2, 3, 1) / 255, np.load(tmp_path / "b.npy")
    assert ours.std() > 0.01
    assert abs(ours - theirs).max() < 1e-5
