"""A run that is trained again between its checkpoints ends with the same bits, and one that was altered does not."""

import shutil

import pytest
from projects import checkpoints, prepare_data, tiny_params, train_here, write_project

from gcflow.errors import GcflowError
from gcflow.pipeline.params import Params
from gcflow.tools.replay import replay
from gcflow.weights import load_tensors, save_tensors

RUNS = ("digits/denoiser/0", "digits/gc/0", "digits/cd/0", "digits/ect-gc/0", "digits/ic/0")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    root = prepare_data(write_project(tmp_path_factory.mktemp("replay") / "project"), "digits")
    for run in RUNS:
        train_here(root, run)
    return root


@pytest.fixture
def root(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "project")


def again(root, share=1.0):
    read = Params(root / "params.yaml")
    return replay(read, [read.parse_run(run) for run in RUNS], share)


def alter(root, run, name):
    path = checkpoints(root, run)[-1]
    tensors, metadata = load_tensors(path)
    tensors[name] = tensors[name].clone()
    tensors[name].flatten()[0] += 1e-6
    save_tensors(path, tensors, metadata)


def test_every_kind_of_run_repeats_its_bits(trained):
    found = again(trained)
    assert found.same
    assert len(found.differing) == found.kept == len(RUNS)
    # Of 40 steps those between the last two checkpoints.
    assert found.share == 0.25
    assert str(found).count(": steps 30 to 40: the same bits\n") == len(RUNS)
    assert str(found).endswith("of the 5 that are kept is found with a chance of 100%.")


@pytest.mark.parametrize("name", ["ema.output.bias", "raw.output.bias", "optimizer.0.exp_avg"])
def test_one_number_that_was_altered_is_found_and_named(root, name):
    alter(root, "digits/gc/0", name)
    found = again(root)
    assert not found.same
    wrong = {interval.run.name: names for interval, names in found.differing.items() if names}
    assert wrong == {"digits/gc/0": [name]}
    assert f"digits/gc/0: steps 30 to 40: other bits in {name}\n" in str(found)


def test_a_part_of_the_runs_is_drawn_at_random(trained):
    # 0.05 of 200 steps is one interval of ten.
    drawn = {interval.run.name for _ in range(12) for interval in again(trained, 0.05).differing}
    assert 1 < len(drawn) <= len(RUNS)
    assert "found with a chance of 20%" in str(again(trained, 0.05))


def test_runs_of_another_configuration_are_left_out_and_without_any_it_says_so(root):
    document = tiny_params()
    digits = document["datasets"]["digits"]
    digits["methods"]["gc"]["mu"] = 0.5
    write_project(root, document)
    assert "digits/gc/0" not in {interval.run.name for interval in again(root, 0.1).differing}
    digits["training"]["learning_rate"] = 2.0e-3
    write_project(root, document)
    with pytest.raises(GcflowError, match="no run of these has kept two checkpoints"):
        again(root)
