"""A run that is trained again between its checkpoints ends with the same bits, and one that was altered does not."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
from projects import checkpoints, gcflow, prepare_data, run_folder, tiny_params, train_here, write_project

from gcflow.config import Cadence
from gcflow.errors import GcflowError
from gcflow.pipeline.params import Params
from gcflow.pipeline.run_state import LOG
from gcflow.pipeline.stages import Stages
from gcflow.tools.replay import replay
from gcflow.weights import content_hash, load_tensors, save_tensors

RUNS = ("digits/denoiser/0", "digits/gc/0", "digits/cd/0", "digits/ect-gc/0", "digits/ic/0")


@pytest.fixture(autouse=True)
def within_this_process(request, monkeypatch):
    """Processes of their own, which take seconds to begin, are for the longer tests."""
    if "slow" not in request.keywords:
        monkeypatch.setattr("gcflow.tools.replay.ProcessPoolExecutor", lambda *_: ThreadPoolExecutor(1))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    root = prepare_data(write_project(tmp_path_factory.mktemp("replay") / "project"), "digits")
    for run in RUNS:
        train_here(root, run)
    return root


@pytest.fixture(scope="module")
def evaluated(trained, tmp_path_factory):
    root = shutil.copytree(trained, tmp_path_factory.mktemp("evaluated") / "project")
    made = [("features", "digits"), ("reference", "digits", "classifier")]
    made += [("evaluate", "digits/ic/0"), ("evaluate", "digits/gc/0"), ("table", "digits", "table1")]
    for words in made:
        assert gcflow(root, *words).returncode == 0
    return root


@pytest.fixture
def root(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "project")


def again(root, share=1.0):
    read = Params(root / "params.yaml")
    stages = [stage for stage in Stages(read) if stage.kind != "train" or stage.run.name in RUNS]
    return replay(read, stages, share)


def logged(root, run):
    lines = (run_folder(root, run) / "metrics.jsonl").read_text().splitlines()
    return [line["checkpoint"] for line in map(json.loads, lines) if "checkpoint" in line]


def kept(root, run):
    (path,) = run_folder(root, run).glob("state/*/kept-*.safetensors")
    return path


def alter(root, run, name):
    tensors, metadata = load_tensors(kept(root, run))
    tensors[name] = tensors[name].clone()
    tensors[name].flatten()[0] += 1e-6
    save_tensors(kept(root, run), tensors, metadata)


def test_the_log_has_the_hash_of_each_checkpoint_in_the_next_line(trained):
    for run in RUNS:
        assert [entry["step"] for entry in logged(trained, run)] == [10, 20, 30]
        (end,) = checkpoints(trained, run)
        tensors, _ = load_tensors(kept(trained, run))
        step = int(kept(trained, run).stem.partition("-")[2])
        state = {name: t for name, t in tensors.items() if not name.startswith("window.") and name != LOG}
        ends = json.loads((run_folder(trained, run) / "config.json").read_text())["checkpoint"]
        assert {"step": step, "sha256": content_hash(state)} in [*logged(trained, run), ends]
        assert ends["step"] == 40
        assert end.name == "checkpoint-00000040.safetensors"


def test_a_resumed_run_writes_the_hash_again(root):
    before, folder = logged(root, "digits/ic/0"), run_folder(root, "digits/ic/0")
    state = checkpoints(root, "digits/ic/0")[0].parent
    for path in (*checkpoints(root, "digits/ic/0"), folder / "config.json"):
        path.unlink()
    path = kept(root, "digits/ic/0")
    path.rename(state / path.name.replace("kept", "checkpoint"))
    train_here(root, "digits/ic/0")
    assert logged(root, "digits/ic/0") == before
    assert kept(root, "digits/ic/0") == path


@pytest.mark.parametrize(("keep", "steps"), [(0, []), (1, None), (3, [10, 20, 30]), (9, [10, 20, 30])])
def test_so_many_states_are_kept_at_steps_drawn_from_the_seed(keep, steps):
    cadence = Cadence(checkpoint_every=10, keep_states=keep)
    assert steps is None or cadence.kept_steps(0, 40) == steps
    drawn = {tuple(cadence.kept_steps(seed, 40)) for seed in range(30)}
    assert len(drawn) == (3 if steps is None else 1)
    assert cadence.kept_steps(0, 10) == []


def test_every_kind_of_run_repeats_its_bits(trained):
    found = again(trained)
    assert found.same
    # Of 40 steps the first ten, and ten after the kept state.
    assert found.kept == len(found.intervals) == 2 * len(RUNS)
    assert found.share == 0.5
    assert {interval.run.name for interval in found.intervals} == set(RUNS)
    assert all(interval.last - interval.first == 10 for interval in found.intervals)
    assert str(found).count("steps 0 to 10: the same bits\n") == len(RUNS)
    assert str(found).endswith(f"of the {found.kept} of which the state before is kept is found with a chance of 100%.")


@pytest.mark.parametrize(
    "name",
    [
        "ema.output.bias",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("raw.output.bias", "optimizer.0.exp_avg")),
    ],
)
def test_one_number_that_was_altered_is_found(root, name):
    run, step = "digits/gc/0", int(kept(root, "digits/gc/0").stem.partition("-")[2])
    alter(root, run, name)
    found = again(root)
    assert not found.same
    assert [(it.run.name, it.first) for it, same in found.intervals.items() if not same] == [(run, step)]
    assert f"{run}, steps {step} to {step + 10}: other bits\n" in str(found)


def test_a_part_is_drawn_at_random(trained):
    # 0.05 of 200 steps is one interval of ten.
    (first,) = again(trained, 0.05).intervals
    assert any(first not in again(trained, 0.05).intervals for _ in range(12))


def test_runs_of_another_configuration_are_left_out_and_without_any_it_says_so(root):
    document = tiny_params()
    digits = document["datasets"]["digits"]
    digits["methods"]["gc"]["mu"] = 0.5
    write_project(root, document)
    assert "digits/gc/0" not in {interval.run.name for interval in again(root).intervals}
    digits["training"]["learning_rate"] = 2.0e-3
    write_project(root, document)
    with pytest.raises(GcflowError, match="no run of these was trained as it stands"):
        again(root)


@pytest.mark.slow
def test_evaluations_tables_and_figures_come_out_again_from_what_they_read_alone(evaluated, tmp_path):
    root = shutil.copytree(evaluated, tmp_path / "project")
    found = again(root)
    assert {name.partition("@")[0].partition("-")[0] for name in found.stages} == {"evaluate", "table"}
    assert found.same
    path = run_folder(root, "digits/gc/0") / "evaluation" / "metrics.json"
    records = json.loads(path.read_text())
    records[0]["value"] += 1e-6
    path.write_text(json.dumps(records, indent=2) + "\n")
    found = again(root)
    assert {name for name, differing in found.stages.items() if differing} >= {"evaluate@digits-gc-0"}
    assert "evaluate@digits-gc-0: results/digits/gc/seed0/evaluation/metrics.json differs\n" in str(found)
