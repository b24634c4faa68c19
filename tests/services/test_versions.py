"""Versions across machines: record, push, clone, pull, adopt, repro and cleaning, with real git, DVC and Snakemake."""

import base64
import copy
import getpass
import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml
from projects import (
    Fork,
    checkpoints,
    contents,
    environment,
    error_line,
    free_port,
    gcflow,
    tiny_params,
    train_here,
    wait_until,
    write_project,
)
from workflows import ROOT, SCRIPTS, clone, commit, duplicate, dvc, run, snakemake

from gcflow.errors import GcflowError
from gcflow.pipeline.folders import report_path
from gcflow.pipeline.params import Params
from gcflow.pipeline.stages import Stages
from gcflow.pipeline.versions import RECORDED, locked_stages

IDLE = "Nothing to be done"
CLEAN = "Data and pipelines are up to date."
SSHD = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:/usr/bin")


def changed_mu():
    params = tiny_params()
    params["datasets"]["digits"]["methods"]["gc"]["mu"] = [0.0, 0.5]
    return params


def points_only(steps=40, seeds=(0,)):
    """Runs on the mixture alone."""
    params = tiny_params()
    params["datasets"] = {"mixture2d": params["datasets"]["mixture2d"]}
    entry = params["datasets"]["mixture2d"]
    entry["training"]["steps"] = steps
    entry["training"]["snapshot_every"] = steps
    entry["cadence"] = {"log_every": 100, "checkpoint_every": 20}
    entry["runs"]["ic"]["seeds"] = list(seeds)
    return params


def stages(folder):
    return list(Stages(Params(folder / "params.yaml"), "embedded"))


def planned(folder):
    """The stages that Snakemake would make."""
    plan = snakemake(folder, "-n", "-p", "--quiet", "host", "--", "all")
    commands = set(re.findall(r"(?m)(gcflow .*?)(?: --gpus \d+)?(?: --processes \d+)? 2>&1", plan))
    return {stage.name for stage in stages(folder) if stage.command in commands}


def downstream(folder, *names):
    """Stages, and everything that is made from them."""
    found, files = set(names), set()
    for stage in stages(folder):
        if stage.name in found or files.intersection(stage.deps):
            found.add(stage.name)
            files.update(stage.outs)
    return found


def stale(folder):
    return set(json.loads(dvc(folder, "status", "--json")))


def locked(folder):
    path = folder / "dvc.lock"
    return yaml.safe_load(path.read_text())["stages"] if path.exists() else {}


def said(result):
    return result.stdout + result.stderr


def outputs(folder, *names):
    """The files of every stage, or of some."""
    outs = [folder / out for stage in stages(folder) if not names or stage.name in names for out in stage.outs]
    files = [file for out in outs for file in ([out] if out.is_file() else sorted(out.rglob("*")))]
    return [file for file in files if file.is_file() and file.name != ".snakemake_timestamp"]


def cloned(origin, folder):
    run(origin, "git", "clone", "--quiet", str(origin), str(folder))
    return folder


def add_remote(folder, url, **settings):
    dvc(folder, "remote", "add", "--default", "store", url)
    for name, value in settings.items():
        dvc(folder, "remote", "modify", "store", name, value)
    commit(folder, "remote")


@pytest.fixture(scope="session")
def origin(finished, tmp_path_factory):
    """A recorded project whose data are in a remote on a local disk."""
    base = tmp_path_factory.mktemp("origin")
    folder = duplicate(finished, base / "project")
    add_remote(folder, str(base / "store"))
    dvc(folder, "push")
    return folder


@pytest.fixture(scope="session")
def pulled(origin, tmp_path_factory):
    """Another machine's clone, pulled and adopted; to be read only."""
    folder = cloned(origin, tmp_path_factory.mktemp("pulled") / "project")
    dvc(folder, "pull")
    gcflow(folder, "adopt")
    return folder


# Record.


def test_recording_keeps_times_where_the_cache_has_the_same_bytes_from_before(finished, tmp_path):
    folder = duplicate(finished, tmp_path / "project")
    table = folder / "results/digits/tables/table1.md"
    os.utime(table, (1e9, 1e9))
    snakemake(folder, "--forcerun", "table", "--", "results/digits/tables/table1.md")
    made = table.stat()
    (folder / "dvc.lock").unlink()
    gcflow(folder, "record")
    assert table.stat().st_ino != made.st_ino
    assert table.stat().st_mtime_ns == made.st_mtime_ns
    assert IDLE in snakemake(folder, "-n", "all")
    assert dvc(folder, "status").strip() == CLEAN


def test_recording_keeps_the_times_of_recorded_files_whose_bytes_another_stage_makes(finished, tmp_path):
    folder, params = duplicate(finished, tmp_path / "project"), tiny_params()
    params["datasets"]["again2d"] = copy.deepcopy(params["datasets"]["mixture2d"])
    write_project(folder, params)
    first, second = (folder / "data" / name / "samples.npy" for name in ("mixture2d", "again2d"))
    before = first.stat().st_mtime_ns
    snakemake(folder, "data/again2d/samples.npy")
    gcflow(folder, "record")
    assert first.stat().st_ino == second.stat().st_ino
    assert first.stat().st_mtime_ns == before
    assert {"prepare-mixture2d", "prepare-again2d"} <= locked(folder).keys()


def test_recording_while_snakemake_runs_records_whole_stages_and_disturbs_nothing(tmp_path):
    folder = clone(tmp_path / "project", points_only(steps=300, seeds=range(2)))
    command = ["snakemake", "--profile", "local", "--cores", "2", "all"]
    paths = environment({"PATH": f"{SCRIPTS}:{environment()['PATH']}"})
    with (tmp_path / "output").open("w") as output:
        process = subprocess.Popen(command, cwd=folder, env=paths, stdout=output, stderr=output)
        counts = []
        while process.poll() is None:
            gcflow(folder, "record", check=False)
            counts.append(len(locked(folder)))
            # What was recorded stays recorded: nothing of it is made again or changed afterwards.
            assert counts == sorted(counts)
    assert process.returncode == 0, (tmp_path / "output").read_text()
    gcflow(folder, "record")
    assert dvc(folder, "status").strip() == CLEAN
    assert IDLE in snakemake(folder, "-n", "all")


def test_an_output_that_somebody_else_has_changed_is_not_recorded(finished, tmp_path):
    folder = duplicate(finished, tmp_path / "project")
    before = (folder / "dvc.lock").read_bytes()
    # Of a directory Snakemake itself looks at no file, so that what was made from it is left here, too.
    for name in ("tables/table1.md", "ic/seed0/evaluation/curves/loss.csv", "gc/seed0/snapshots/00000020.safetensors"):
        file = folder / "results/digits" / name
        file.unlink()
        file.write_text("better numbers")
    left = said(gcflow(folder, "record")).partition("inputs: ")[2].strip().split(", ")
    written = {"table-digits-table1", "evaluate@digits-ic-0", "train@digits-gc-0"}
    assert set(left) == written | {"report", "evaluate@digits-gc-0"}
    assert (folder / "dvc.lock").read_bytes() == before


def damage(path: Path) -> None:
    """Other bytes under the same time, as a copy of a damaged file has."""
    before, content = path.stat(), bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink()
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def listed(output: str, after: str) -> set[str]:
    """The stages of which a line of `gcflow record` says something."""
    return set(output.partition(after)[2].partition("\n")[0].strip().split(", "))


def left_as_damaged(folder: Path) -> set[str]:
    return listed(said(gcflow(folder, "record")), "(gcflow verify): ")


def test_what_changed_under_its_old_time_is_not_recorded_and_what_was_recorded_brings_it_back(pulled, tmp_path):
    folder = duplicate(pulled, tmp_path / "project")
    before = (folder / "dvc.lock").read_bytes(), contents(folder / "results")
    files = ["gc/seed0/weights.safetensors", "ic/seed0/snapshots/00000020.safetensors", "ic/seed1/metrics.jsonl"]
    files += ["gc/seed0/evaluation/metrics.json", "cd/seed0/evaluation/samples.png", "tables/table1.md"]
    for name in files:
        damage(folder / "results/digits" / name)
    assert left_as_damaged(folder) == stale(folder)
    assert (folder / "dvc.lock").read_bytes() == before[0]
    dvc(folder, "checkout", "--force")
    assert contents(folder / "results") == before[1]
    assert "all whole" in gcflow(folder, "verify").stdout
    # Another job of Snakemake's is another matter.
    shutil.rmtree(folder / "results/mixture2d/ic/seed0/state", ignore_errors=True)
    snakemake(folder, "--forcerun", "train", "--", "results/mixture2d/ic/seed0/weights.safetensors")
    assert "train@mixture2d-ic-0" in stale(folder)
    gcflow(folder, "record")
    assert "train@mixture2d-ic-0" not in stale(folder)


def test_what_is_damaged_or_of_an_older_configuration_is_not_recorded_the_first_time_either(finished, tmp_path):
    folder = duplicate(finished, tmp_path / "project")
    (folder / "dvc.lock").unlink()
    (folder / RECORDED).unlink()
    write_project(folder, changed_mu())
    damage(folder / "results/digits/ect-gc/seed0/weights.safetensors")
    old, damaged = (downstream(folder, f"train@digits-{method}-0") for method in ("gc", "ect-gc"))
    output = said(gcflow(folder, "record"))
    assert (listed(output, "inputs: "), listed(output, "(gcflow verify): ")) == (old, damaged - old)
    assert locked(folder).keys() == {stage.name for stage in stages(folder)} - old - damaged


def test_without_snakemakes_records_what_is_of_another_configuration_is_made_again(finished, tmp_path):
    folder = duplicate(finished, tmp_path / "project")
    shutil.rmtree(folder / ".snakemake")
    assert IDLE in snakemake(folder, "-n", "all")
    params = changed_mu()
    write_project(folder, params)
    assert planned(folder) == downstream(folder, "train@digits-gc-0")
    params["datasets"]["mixture2d"]["data"]["std"] = 0.4
    write_project(folder, params)
    assert planned(folder) == downstream(folder, "train@digits-gc-0", "prepare-mixture2d")


def test_where_the_cache_gives_symbolic_links_a_change_is_made_once_and_recorded(tmp_path):
    folder = clone(tmp_path / "project", points_only())
    dvc(folder, "config", "cache.type", "symlink")
    weights, made = "results/mixture2d/ic/seed0/weights.safetensors", {"prepare-mixture2d", "train@mixture2d-ic-0"}
    for steps in (40, 60):
        write_project(folder, points_only(steps))
        snakemake(folder, weights)
        gcflow(folder, "record")
        assert (folder / weights).is_symlink()
        # As of files so large that Snakemake does not hash them.
        assert IDLE in snakemake(folder, "-n", "--max-checksum-file-size", "0", weights)
        assert locked(folder).keys() == made
        assert not made & stale(folder)
        assert "0 stages recorded, 2 of " in said(gcflow(folder, "record"))


def test_what_dvc_did_not_write_is_one_line_that_can_be_followed_in_a_merge(finished, tmp_path):
    folder = duplicate(finished, tmp_path / "project")
    for text in ("[1]", "stages:", "stages: [1]", "stages: {a: 1}", "stages: {a: {outs: [1]}}", "", "\xff"):
        (folder / "dvc.lock").write_text(text, encoding="latin-1")
        with pytest.raises(GcflowError, match="not what DVC writes"):
            locked_stages(folder)
    run(folder, "git", "checkout", "dvc.lock")
    lock = (folder / "dvc.lock").read_text()
    git = ("git", "-c", "user.name=t", "-c", "user.email=t@example.org")
    for branch in ("theirs", "ours"):
        run(folder, *git, "checkout", "--quiet", "-b", branch, "main")
        (folder / "dvc.lock").write_text(lock.replace("schema: '2.0'", f"schema: '2.0' # {branch}"))
        commit(folder, branch)
    assert "CONFLICT" in run(folder, *git, "merge", "theirs", check=False)
    message = error_line(gcflow(folder, "adopt", check=False).stderr)
    assert "in a merge gcflow record keeps both sides; else take it from git: git checkout HEAD dvc.lock" in message
    gcflow(folder, "record")
    assert dvc(folder, "status").strip() == CLEAN


def test_a_merge_of_two_branches_that_added_a_seed_keeps_the_records_of_both(finished, tmp_path):
    folder, params = duplicate(finished, tmp_path / "project"), tiny_params()
    git = ("git", "-c", "user.name=t", "-c", "user.email=t@example.org")
    made = {}
    for branch, seed in (("theirs", 1), ("ours", 2)):
        run(folder, *git, "checkout", "--quiet", "-b", branch, "main")
        params["datasets"]["mixture2d"]["runs"]["ic"]["seeds"] = [0, seed]
        write_project(folder, params)
        snakemake(folder, f"results/mixture2d/ic/seed{seed}/evaluation/metrics.json")
        gcflow(folder, "record")
        names = {f"train@mixture2d-ic-{seed}", f"evaluate@mixture2d-ic-{seed}"}
        made |= {name: record for name, record in locked(folder).items() if name in names}
        commit(folder, branch)
    assert "CONFLICT" in run(folder, *git, "merge", "theirs", check=False)
    params["datasets"]["mixture2d"]["runs"]["ic"]["seeds"] = [0, 1, 2]
    write_project(folder, params)
    gcflow(folder, "record")
    assert len(made) == 4
    assert made.items() <= locked(folder).items()
    dvc(folder, "checkout")
    gcflow(folder, "adopt")
    assert planned(folder) == {"figure-mixture2d-samples", "report"}
    gcflow(folder, "record")
    assert made.items() <= locked(folder).items()
    assert not made.keys() & stale(folder)


def test_files_without_a_job_of_snakemakes_are_not_recorded(finished, tmp_path):
    folder = duplicate(finished, tmp_path / "project")
    (folder / "dvc.lock").unlink()
    shutil.rmtree(folder / ".snakemake")
    assert "nothing to record" in error_line(gcflow(folder, "record", check=False).stderr)
    assert not (folder / "dvc.lock").exists()


def test_what_a_running_snakemake_is_yet_to_make_again_is_neither_recorded_nor_adopted(finished, tmp_path):
    folder = duplicate(finished, tmp_path / "project")
    (folder / "dvc.lock").unlink()
    command = ["snakemake", "--profile", "local", "--cores", "1", "--forcerun", "train", "--", "all"]
    paths = environment({"PATH": f"{SCRIPTS}:{environment()['PATH']}"})
    process = subprocess.Popen(
        command, cwd=folder, env=paths, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    # What a killed Snakemake was yet to make is known once its first job has begun.
    wait_until(lambda: any((folder / ".snakemake/incomplete").glob("*")))
    os.killpg(process.pid, 9)
    process.wait()
    gcflow(folder, "record")
    recorded = locked(folder)
    assert {"prepare-digits", "features-digits"} <= recorded.keys()
    assert not [name for name in recorded if name.startswith(("train", "evaluate", "table"))]
    run(folder, "git", "checkout", "dvc.lock")
    assert "Snakemake runs in this folder" in error_line(gcflow(folder, "adopt", check=False).stderr)


# Another machine.


def test_after_pull_and_adopt_nothing_is_to_be_done_and_files_are_on_disk_once(origin, pulled):
    assert IDLE in snakemake(pulled, "-n", "all")
    assert dvc(pulled, "status").strip() == CLEAN
    assert "Everything is up to date" in dvc(pulled, "pull")
    files = [file.relative_to(origin) for file in outputs(origin)]
    assert {str(file): (pulled / file).read_bytes() for file in files} == {
        str(file): (origin / file).read_bytes() for file in files
    }
    cached = {path.stat().st_ino for path in (pulled / ".dvc/cache").rglob("*") if path.is_file()}
    assert (pulled / "results/digits/ic/seed0/weights.safetensors").stat().st_ino in cached
    # Of the runs, this machine's MLflow was told, too.
    sent = json.loads((pulled / "results/tracking.json").read_text())["sent"]
    assert sent.keys() == {run.name for run in Params(pulled / "params.yaml").runs()}
    assert (pulled / "mlflow.db").exists()


def test_adopted_jobs_have_the_records_that_snakemake_itself_has_of_them(origin, pulled):
    keys = ("rule", "input", "log", "shellcmd", "params", "code", "input_checksums")

    def records(folder):
        found = {}
        place = folder / ".snakemake/metadata"
        for path in (path for path in place.rglob("*") if path.is_file()):
            record = json.loads(path.read_text())
            output = base64.urlsafe_b64decode("".join(part.lstrip("@") for part in path.relative_to(place).parts))
            found[output.decode()] = {key: record[key] for key in keys}
        return found

    assert records(pulled) == records(origin)


def test_adopting_and_recording_again_change_nothing(pulled, tmp_path):
    """No byte and no time."""
    folder = duplicate(pulled, tmp_path / "project")
    files = [folder / "dvc.lock", folder / "dvc.yaml", *outputs(folder)]
    before = [(file.read_bytes(), file.stat().st_mtime_ns) for file in files]
    count = len(stages(folder))
    assert f"0 stages adopted, {count} of {count} up to date" in said(gcflow(folder, "adopt"))
    assert f"0 stages recorded, {count} of {count} complete" in said(gcflow(folder, "record"))
    assert [(file.read_bytes(), file.stat().st_mtime_ns) for file in files] == before


def test_one_methods_mu_and_no_comment_makes_stages_out_of_date_on_the_other_machine(pulled, tmp_path):
    folder = duplicate(pulled, tmp_path / "project")
    with (folder / "gcflow/training.py").open("a") as file:
        file.write("# Another comment.\n")
    assert IDLE in snakemake(folder, "-n", "all")
    assert stale(folder) == set()
    write_project(folder, changed_mu())
    assert planned(folder) == downstream(folder, "train@digits-gc-0")
    assert stale(folder) == {"train@digits-gc-0"}


def test_tables_figures_and_report_made_again_from_pulled_evaluations_are_the_same_bytes(pulled, tmp_path):
    folder = duplicate(pulled, tmp_path / "project")
    before = contents(folder / "results")
    for name in ("tables", "figures"):
        shutil.rmtree(folder / "results/digits" / name)
    report_path(folder).unlink()
    gcflow(folder, "table", "digits", "table1")
    for figure in ("convergence", "transport-cost", "samples", "discrepancy"):
        gcflow(folder, "figure", "digits", figure)
    gcflow(folder, "report")
    assert contents(folder / "results") == before


def test_what_differs_from_dvc_lock_is_left_to_snakemake_and_named(origin, tmp_path):
    folder = cloned(origin, tmp_path / "project")
    dvc(folder, "pull")
    table = folder / "results/digits/tables/table1.md"
    table.unlink()
    table.write_text("better numbers")
    write_project(folder, changed_mu())
    output = said(gcflow(folder, "adopt"))
    left = downstream(folder, "train@digits-gc-0", "table-digits-table1")
    assert set(output.partition("what is here: ")[2].strip().split(", ")) == left
    assert planned(folder) == left


def test_of_a_partial_pull_only_what_was_pulled_is_adopted(origin, tmp_path):
    folder = cloned(origin, tmp_path / "project")
    dvc(folder, "pull", "train@digits-gc-0")
    assert "1 stages adopted, 1 of " in said(gcflow(folder, "adopt"))
    assert IDLE in snakemake(folder, "-n", "results/digits/gc/seed0/weights.safetensors")
    assert not (folder / "results/tracking.json").exists()


def test_the_artifact_of_a_data_set_comes_from_the_remote_without_a_clone(origin, tmp_path):
    trained = origin / "results/digits/gc/seed0/weights.safetensors"
    git = ("git", "-c", "user.name=t", "-c", "user.email=t@example.org")
    run(origin, *git, "tag", "--annotate", "digits@v1.0.0", "--message", "first")
    dvc(tmp_path, "artifacts", "get", str(origin), "digits", "--out", "gc.safetensors")
    assert (tmp_path / "gc.safetensors").read_bytes() == trained.read_bytes()


@pytest.mark.parametrize(("lacks", "cure"), [("dvc.lock", "gcflow record"), ("remote", "dvc remote add")])
def test_make_sync_without_what_it_needs_is_one_line(finished, tmp_path, lacks, cure):
    folder = duplicate(finished, tmp_path / "project")
    (folder / ".venv").mkdir()
    (folder / ".venv" / "complete").touch()
    os.utime(folder / ".venv" / "complete", (time.time() + 86400,) * 2)
    if lacks == "dvc.lock":
        (folder / "dvc.lock").unlink()
    said = [line for line in run(folder, "make", "sync", check=False).splitlines() if not line.startswith("make: ")]
    assert len(said) == 1
    assert cure in said[0]


def test_a_clone_without_data_has_nothing_to_adopt(origin, tmp_path):
    folder = cloned(origin, tmp_path / "project")
    assert "`dvc pull` first" in error_line(gcflow(folder, "adopt", check=False).stderr)
    assert "0\xa0files" in (shown := gcflow(folder, "verify").stdout)
    assert "nothing is here" in shown


@pytest.fixture
def sshd(tmp_path):
    """A server of this machine's own, for this user and a key of its own: (port, private key)."""
    if SSHD is None:
        pytest.skip("sshd is not installed")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    for name in ("host", "user"):
        run(tmp_path, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / name))
    port = free_port()
    lines = {
        "ListenAddress": "127.0.0.1",
        "Port": port,
        "HostKey": tmp_path / "host",
        "AuthorizedKeysFile": tmp_path / "user.pub",
        "PidFile": tmp_path / "pid",
        "StrictModes": "no",
        "UsePAM": "no",
        "PasswordAuthentication": "no",
        "PermitRootLogin": "prohibit-password",
        "Subsystem": "sftp internal-sftp",
    }
    (tmp_path / "config").write_text("".join(f"{key} {value}\n" for key, value in lines.items()))
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen([SSHD, "-D", "-e", "-f", str(tmp_path / "config")], stdout=log, stderr=log)
        try:
            wait_until(lambda: "Server listening" in (tmp_path / "log").read_text() or process.poll() is not None)
            assert process.poll() is None, (tmp_path / "log").read_text()
            yield port, tmp_path / "user"
        finally:
            process.terminate()
            process.wait()


def test_a_remote_over_ssh_brings_the_same_bytes_to_another_clone(finished, sshd, tmp_path):
    port, key = sshd
    folder = duplicate(finished, tmp_path / "project")
    add_remote(folder, f"ssh://{getpass.getuser()}@127.0.0.1:{port}{tmp_path}/store", keyfile=str(key))
    targets = ("prepare-digits", "train@digits-gc-0", "evaluate@digits-gc-0")
    dvc(folder, "push", *targets)
    other = cloned(folder, tmp_path / "other")
    dvc(other, "pull", *targets)
    files = [file.relative_to(folder) for file in outputs(folder, *targets)]
    assert [(other / file).read_bytes() for file in files] == [(folder / file).read_bytes() for file in files]


# One stage.


def test_dvc_repro_of_a_changed_run_is_adopted_and_not_made_again(pulled, tmp_path):
    folder = duplicate(pulled, tmp_path / "project")
    write_project(folder, changed_mu())
    output = dvc(folder, "repro", "--single-item", "train@digits-gc-0")
    assert re.findall(r"Running stage '(\S+)'", output) == ["train@digits-gc-0"]
    gcflow(folder, "adopt")
    assert planned(folder) == downstream(folder, "train@digits-gc-0") - {"train@digits-gc-0"}


def test_dvc_repro_of_one_evaluation_and_one_table_runs_only_those(origin, tmp_path):
    folder = cloned(origin, tmp_path / "project")
    dvc(folder, "pull", "prepare-digits", "features-digits", "reference-digits-classifier", "train@digits-gc-0")
    output = dvc(folder, "repro", "--single-item", "--force", "evaluate@digits-gc-0")
    assert re.findall(r"Running stage '(\S+)'", output) == ["evaluate@digits-gc-0"]
    dvc(folder, "pull", "evaluate@digits-ic-0", "evaluate@digits-ic-1")
    output = dvc(folder, "repro", "--single-item", "--force", "table-digits-table1")
    assert re.findall(r"Running stage '(\S+)'", output) == ["table-digits-table1"]


def test_dvc_repro_goes_on_with_a_training_that_was_killed_and_snakemake_adopts_it(tmp_path):
    folder = clone(tmp_path / "project", points_only(steps=1500))
    dvc(folder, "repro", "--single-item", "prepare-mixture2d")
    process = Fork(folder, "train", "mixture2d/ic/0")
    wait_until(lambda: checkpoints(folder, "mixture2d/ic/0"))
    process.send(signal.SIGKILL)
    process.wait()
    assert not (folder / "results/mixture2d/ic/seed0/config.json").exists()
    assert "resumes at step" in dvc(folder, "repro", "--single-item", "train@mixture2d-ic-0")
    gcflow(folder, "adopt")
    assert IDLE in snakemake(folder, "-n", "results/mixture2d/ic/seed0/weights.safetensors")


# Clean.


def documented(command):
    """The lines of docs/versioning.md that begin with a command."""
    text = (ROOT / "docs/versioning.md").read_text()
    lines = [line.partition("  #")[0].strip() for line in text.splitlines() if line.startswith(command)]
    assert lines
    return lines


def test_the_documented_command_removes_the_checkpoints_of_published_runs_and_of_no_other(finished, tmp_path):
    (command,) = documented("find results ")
    folder = duplicate(finished, tmp_path / "project")
    # One of them published again, and not recorded.
    params = changed_mu()
    write_project(folder, params)
    train_here(folder, "digits/gc/0")
    params["datasets"]["digits"]["methods"]["gc"]["training"] = {"steps": 4000, "snapshot_every": 4000}
    write_project(folder, params)
    known = set(checkpoints(folder, "digits/gc/0"))
    process = Fork(folder, "train", "digits/gc/0")
    wait_until(lambda: len(checkpoints(folder, "digits/gc/0")) > len(known))
    process.send(signal.SIGKILL)
    process.wait()
    interrupted = set(checkpoints(folder, "digits/gc/0")) - known
    before = contents(folder / "results")
    run(folder, "bash", "-c", command)
    removed = before.keys() - contents(folder / "results").keys()
    assert removed
    assert all("/checkpoint-" in name for name in removed)
    assert set(folder.glob("results/**/checkpoint-*.safetensors")) == interrupted
    stopped = Fork(folder, "train", "digits/gc/0", "--time-budget", "0")
    stopped.wait()
    assert "resumes at step" in stopped.output


def test_the_documented_garbage_collection_keeps_what_any_version_has_and_nothing_else(finished, tmp_path):
    folder = duplicate(finished, tmp_path / "project")
    git = ("git", "-c", "user.name=t", "-c", "user.email=t@example.org")
    table = folder / "results/digits/tables/table1.md"
    made = {"main": table.read_bytes()}

    def version(title):
        params = tiny_params()
        params["datasets"]["digits"]["tables"]["table1"]["title"] = title
        write_project(folder, params)
        dvc(folder, "repro", "--single-item", "table-digits-table1")
        made[title] = table.read_bytes()

    def back():
        run(folder, *git, "checkout", "--quiet", "--force", "main")
        dvc(folder, "checkout", "--force")

    def cached():
        return {path.read_bytes() for path in (folder / ".dvc/cache/files/md5").glob("??/*")}

    for title in ("branch", "tag"):
        run(folder, *git, "checkout", "--quiet", "-b", title)
        version(title)
        commit(folder, title)
        back()
    run(folder, *git, "tag", "released", "tag")
    run(folder, *git, "branch", "--quiet", "-D", "tag")
    version("nobody's")
    back()
    assert made["nobody's"] in cached()
    commands = [*documented("gcflow stages"), *documented("dvc gc")]
    assert len(commands) == 3
    for command in (commands[0], f"{commands[2]} --force", commands[1]):
        words = command.split()
        (gcflow if words[0] == "gcflow" else dvc)(folder, *words[1:])
    assert made["nobody's"] not in cached()
    assert run(folder, "git", "status", "--porcelain", "dvc.yaml", "dvc.lock") == ""
    assert dvc(folder, "status").strip() == CLEAN
    for place, title in {"branch": "branch", "released": "tag", "main": "main"}.items():
        run(folder, *git, "checkout", "--quiet", "--force", place)
        dvc(folder, "checkout", "--force")
        assert table.read_bytes() == made[title]
        assert "table-digits-table1" not in stale(folder)
