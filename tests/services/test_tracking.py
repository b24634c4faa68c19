"""MLflow is a mirror of files: what it shows, under real servers that work and that fail in every way."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow_servers import Found, Proxy, free_port, mlflow_server, postgres, postgres_programs
from PIL import Image
from projects import (
    SCRIPT,
    alive,
    checkpoints,
    environment,
    gcflow,
    limit_file_size,
    prepare_data,
    run_folder,
    start,
    state_folder,
    tiny_params,
    train_here,
    wait_until,
    weights,
    write_project,
)
from workflows import duplicate

from gcflow.errors import Preempted
from gcflow.pipeline.lock import RunLock, newest_lease
from gcflow.pipeline.params import Params

RUN = "digits/ic/0"
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
CLOCKS = ("images_per_second", "memory_gib", "system/")


@pytest.fixture(scope="module")
def sqlite_server(tmp_path_factory) -> Iterator[str]:
    with mlflow_server(tmp_path_factory.mktemp("server")) as address:
        yield address


@pytest.fixture(scope="module")
def postgres_server(tmp_path_factory) -> Iterator[str]:
    if postgres_programs() is None:
        pytest.skip("PostgreSQL is not installed")
    with postgres() as store, mlflow_server(tmp_path_factory.mktemp("postgres"), store) as address:
        yield address


@pytest.fixture
def place(request) -> str:
    """Where MLflow is: empty for the file in the project's folder."""
    return request.getfixturevalue(request.param) if request.param else ""


def project(folder: Path, steps: int = 40, seeds: int = 1, every: int = 10, follow: float | None = 0.0) -> Path:
    """Prepared data, and the runs of one method. every: steps between lines of metrics and between checkpoints."""
    params = tiny_params()
    params["tracking"] = {"experiment": folder.name, "follow_after": follow, "follow_every": 0.2}
    digits = params["datasets"]["digits"]
    digits["training"] |= {"steps": steps, "snapshot_every": steps}
    digits["cadence"] = {"log_every": every, "checkpoint_every": every}
    for key in ("transport", "discrepancy", "figures"):
        del digits[key]
    digits["methods"] = {"ic": digits["methods"]["ic"]}
    digits["runs"] = {"ic": {"label": "iCT-IC", "seeds": list(range(seeds))}}
    digits["tables"]["table1"]["methods"] = ["ic"]
    params["datasets"] = {"digits": digits}
    return prepare_data(write_project(folder, params), "digits")


def address_of(folder: Path, place: str = "") -> dict[str, str]:
    """What MLFLOW_TRACKING_URI is for a place."""
    return {"MLFLOW_TRACKING_URI": place} if place else {}


def found(folder: Path, place: str = "") -> Found:
    experiment = yaml.safe_load((folder / "params.yaml").read_text())["tracking"]["experiment"]
    return Found(place or f"sqlite:///{folder / 'mlflow.db'}", experiment)


def on_disk(folder: Path, run: str = RUN, up_to: int | None = None) -> dict[str, list[tuple[int, float]]]:
    """Steps and values of the metrics in metrics.jsonl, published or of the only configuration so far."""
    published = run_folder(folder, run) / "metrics.jsonl"
    path = published if published.exists() else next(run_folder(folder, run).glob("state/*/metrics.jsonl"))
    histories: dict[str, list[tuple[int, float]]] = {}
    for line in path.read_text().splitlines():
        record = json.loads(line)
        step = record.pop("step")
        if record.pop("time") and (up_to is None or step <= up_to):
            for name, value in record.items():
                histories.setdefault(name, []).append((step, value))
    return histories


def without_clocks(histories: dict[str, list[tuple[int, float]]]) -> dict[str, list[tuple[int, float]]]:
    return {name: points for name, points in histories.items() if not name.startswith(CLOCKS)}


def assert_mirrored(folder: Path, place: str = "", run: str = RUN) -> None:
    """That MLflow has every point of a run once, with its step, in their order."""
    there = found(folder, place).history(run)
    assert {name: points for name, points in there.items() if not name.startswith("system/")} == on_disk(folder, run)


def log(folder: Path, run: str = RUN) -> str:
    path = run_folder(folder, run) / "state" / "tracking" / "log"
    return path.read_text() if path.exists() else ""


def passed(folder: Path, run: str = RUN) -> bool:
    """Whether a process has tried to send a run, so that there is a database."""
    lease = newest_lease(run_folder(folder, run) / "state" / "tracking")
    return lease is not None and (lease.attempt > 1 or lease.released)


def followers(folder: Path) -> list[int]:
    """Processes that follow runs of a project."""
    pids = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
            if b"follow" in words and Path(os.readlink(path.parent / "cwd")) == folder.resolve():
                pids.append(int(path.parent.name))
        except OSError:
            continue
    return [pid for pid in pids if alive(pid)]


def followers_ended(folder: Path) -> bool:
    return not followers(folder)


def rewrite(path: Path, text: str) -> None:
    path.unlink()
    path.write_text(text)


def same_point(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return all(a[key] == b[key] for key in ("metric", "weights", "network_evaluations", "step", "protocol"))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    """The run of 40 steps as it is without MLflow."""
    folder = project(tmp_path_factory.mktemp("undisturbed"), follow=None)
    train_here(folder, RUN)
    return folder


def change(folder: Path, **digits: dict[str, Any]) -> None:
    """Changes keys of blocks of the data set in params.yaml; `tracking` is the file's own block."""
    document = yaml.safe_load((folder / "params.yaml").read_text())
    for block, values in digits.items():
        (document if block == "tracking" else document["datasets"]["digits"])[block] |= values
    write_project(folder, document)


def begin(folder: Path) -> Path:
    """Begins to train the run, whose job stops before its first step; the state folder of this configuration."""
    known = set(run_folder(folder, RUN).glob("state/*/jobs.json"))
    with pytest.raises(Preempted):
        train_here(folder, RUN, minutes=0)
    (new,) = set(run_folder(folder, RUN).glob("state/*/jobs.json")) - known
    return new.parent


def log_a_line(state: Path) -> None:
    (state / "metrics.jsonl").write_text(json.dumps({"step": 0, "loss": 1.0, "time": 1.0}) + "\n")


@pytest.fixture
def copied(tmp_path, undisturbed) -> Callable[[str], Path]:
    """Copies of the finished run, each with an experiment of its own."""

    def copy(name: str) -> Path:
        folder = duplicate(undisturbed, tmp_path / name)
        change(folder, tracking={"experiment": name})
        return folder

    return copy


@pytest.fixture
def sync(monkeypatch, sqlite_server) -> Callable[[Path], dict[str, Any]]:
    """`gcflow track sync` within this process to a server; what results/tracking.json says then."""
    from gcflow.pipeline.tracking.server import SETTINGS
    from gcflow.pipeline.tracking.sync import sync as send

    for name, value in (SETTINGS | {"MLFLOW_TRACKING_URI": sqlite_server}).items():
        monkeypatch.setenv(name, value)

    def call(folder: Path) -> dict[str, Any]:
        send(Params(folder / "params.yaml"), "all")
        return json.loads((folder / "results/tracking.json").read_text())

    return call


def write_evaluation(folder: Path, kinds: tuple[str, ...], steps: tuple[int, ...] = (40,)) -> None:
    path = run_folder(folder, RUN) / "evaluation" / "metrics.json"
    path.parent.mkdir(exist_ok=True)
    shared = {"metric": "classifier-fd", "value": 2.0, "network_evaluations": 1, "protocol": "classifier"}
    path.write_text(json.dumps([{**shared, "weights": kind, "step": step} for kind in kinds for step in steps]))


@pytest.mark.parametrize("place", ["", "postgres_server"], indirect=True)
def test_eight_runs_that_write_at_once_arrive_once_and_whole(tmp_path, place):
    folder = project(tmp_path / "eight", seeds=8, every=1, follow=None)
    runs = [f"digits/ic/{seed}" for seed in range(8)]
    for run in runs:
        train_here(folder, run)
    env = environment(address_of(folder, place))
    command = [sys.executable, str(SCRIPT), "track", "follow"]
    jobs = [
        subprocess.Popen([*command, run], cwd=folder, env=env, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for run in runs
    ]
    # All of them live until each has sent its run, or said why it could not: the next pass does it then.
    wait_until(lambda: all(passed(folder, run) for run in runs), seconds=300)
    wait_until(
        lambda: sum(bool(run.data.tags.get("mlflow.gcflow.sent")) for run in found(folder, place).runs()) == 8,
        seconds=300,
        pause=0.5,
    )
    said = [job.communicate() for job in jobs]
    assert [job.returncode for job in jobs] == [0] * 8, said
    for run in runs:
        assert_mirrored(folder, place, run)
        assert found(folder, place).run(run).info.status == "FINISHED"
    before = found(folder, place).everything()
    assert gcflow(folder, "track", "sync", env=address_of(folder, place)).returncode == 0
    assert found(folder, place).everything() == before


@pytest.fixture
def break_server(sqlite_server) -> Iterator[Callable[[str], tuple[Proxy, dict[str, str]]]]:
    with ExitStack() as stack:

        def broken(fault: str, patience: int = 0) -> tuple[Proxy, dict[str, str]]:
            proxy = stack.enter_context(Proxy(sqlite_server))
            proxy.breaks(fault, patience)
            return proxy, {"MLFLOW_TRACKING_URI": proxy.address}

        yield broken


FAULTS = [("refuses", 0), ("fails", 0), ("fails", 7), ("swallows", 5), ("refuses", 10)]


@pytest.mark.parametrize(("fault", "patience"), FAULTS)
def test_whatever_a_server_does_the_run_is_the_same_and_is_completed_later(
    tmp_path, undisturbed, break_server, sqlite_server, fault, patience
):
    folder = project(tmp_path / f"{fault}-{patience}")
    proxy, env = break_server(fault, patience)
    job = gcflow(folder, "train", RUN, env=env)
    assert "MLflow" not in job.stderr, "it is the follower's business"
    assert weights(folder, RUN) == weights(undisturbed, RUN)
    assert without_clocks(on_disk(folder)) == without_clocks(on_disk(undisturbed))
    wait_until(lambda: followers_ended(folder), seconds=120)
    assert proxy.asked > patience
    assert "not sent: " in log(folder)
    proxy.heal()
    gcflow(folder, "track", "sync", env=env)
    assert_mirrored(folder, sqlite_server)
    assert found(folder, sqlite_server).run(RUN).info.status == "FINISHED"
    before = found(folder, sqlite_server).everything()
    gcflow(folder, "track", "sync", env=env)
    assert found(folder, sqlite_server).everything() == before


def test_a_server_that_hangs_holds_its_follower_and_not_the_job(tmp_path, break_server, sqlite_server):
    folder = project(tmp_path / "hangs", steps=2000, every=100)
    proxy, env = break_server("hangs")
    job = start(folder, "train", RUN, env=env | {"MLFLOW_HTTP_REQUEST_TIMEOUT": "600"})
    try:
        wait_until(lambda: checkpoints(folder, RUN))
        # However fast it is, it trains a part of its steps while the server hangs.
        job.send_signal(signal.SIGSTOP)
        wait_until(lambda: proxy.held, seconds=120)
        seen = checkpoints(folder, RUN)[-1]
        job.send_signal(signal.SIGCONT)
        said = job.communicate()[1]
    finally:
        job.kill()
    assert job.returncode == 0, said
    assert checkpoints(folder, RUN)[-1].name == "checkpoint-00002000.safetensors" > seen.name
    assert proxy.held == 1
    assert followers(folder)
    proxy.heal()
    wait_until(lambda: followers_ended(folder), seconds=120)
    gcflow(folder, "track", "sync", env=env)
    assert_mirrored(folder, sqlite_server)


def test_sync_gives_a_server_that_hangs_up_with_a_warning(tmp_path, undisturbed, break_server):
    folder = duplicate(undisturbed, tmp_path / "hangs")
    _, env = break_server("hangs")
    result = gcflow(folder, "track", "sync", env=env | {"MLFLOW_HTTP_REQUEST_TIMEOUT": "1"})
    assert f"warning: {env['MLFLOW_TRACKING_URI']} did not take 1 runs" in result.stderr
    assert result.stderr.count("\n") <= 2
    assert json.loads((folder / "results/tracking.json").read_text())["pending"] == [RUN]


def test_a_server_that_comes_back_while_a_run_is_trained_has_all_of_it(tmp_path, break_server, sqlite_server):
    folder = project(tmp_path / "back", steps=2000, every=100)
    proxy, env = break_server("refuses")
    job = start(folder, "train", RUN, env=env)
    try:
        wait_until(lambda: checkpoints(folder, RUN))
        job.send_signal(signal.SIGSTOP)
        wait_until(lambda: "not sent" in log(folder), seconds=120)
        proxy.heal()
        wait_until(lambda: any(run.data.metrics for run in found(folder, sqlite_server).runs()), seconds=120, pause=0.2)
        assert found(folder, sqlite_server).run(RUN).info.status == "RUNNING"
        job.send_signal(signal.SIGCONT)
        said = job.communicate()[1]
    finally:
        job.kill()
    assert job.returncode == 0, said
    wait_until(lambda: followers_ended(folder), seconds=120)
    assert_mirrored(folder, sqlite_server)
    there = found(folder, sqlite_server).history(RUN)
    assert len(there["system/cpu_utilization_percentage"]) >= 1
    assert len(there["system/system_memory_usage_percentage"]) >= 1


def test_a_database_that_cannot_be_written_costs_a_warning(tmp_path, undisturbed):
    folder = duplicate(undisturbed, tmp_path / "readonly")
    gcflow(folder, "track", "sync")
    before = found(folder).everything()
    path = run_folder(folder, RUN) / "metrics.jsonl"
    grown = path.read_text() + path.read_text().splitlines()[-1].replace('"step": 40', '"step": 39') + "\n"
    rewrite(path, grown)
    read_only = {"MLFLOW_TRACKING_URI": f"sqlite:///file:{folder / 'mlflow.db'}?mode=ro&uri=true"}
    result = gcflow(folder, "track", "sync", env=read_only)
    assert "did not take 1 runs" in result.stderr
    assert "readonly database" in result.stderr
    assert found(folder).everything() == before
    gcflow(folder, "track", "sync")
    assert [step for step, _ in found(folder).history(RUN)["loss"]] == [10, 20, 30, 39, 40]


def test_a_disk_that_is_full_costs_a_warning(tmp_path, undisturbed):
    folder = duplicate(undisturbed, tmp_path / "full")
    result = gcflow(folder, "track", "sync", preexec=lambda: limit_file_size(500_000))
    assert "did not take 1 runs" in result.stderr
    assert "Traceback" not in result.stderr
    gcflow(folder, "track", "sync")
    assert_mirrored(folder)


def test_a_run_that_is_killed_and_resumed_is_one_run_with_one_history(tmp_path):
    folder = project(tmp_path / "killed", steps=2000, every=20)
    job = start(folder, "train", RUN)
    try:
        wait_until(lambda: checkpoints(folder, RUN))
        job.send_signal(signal.SIGSTOP)
        wait_until(lambda: passed(folder), seconds=120)
        wait_until(lambda: any(run.data.metrics for run in found(folder).runs()), seconds=120, pause=0.2)
    finally:
        job.kill()
        job.communicate()
    wait_until(lambda: followers_ended(folder), seconds=120)
    killed = found(folder).run(RUN)
    covered = int(checkpoints(folder, RUN)[-1].stem.partition("-")[2])
    assert killed.info.status == "KILLED"
    assert without_clocks(found(folder).history(RUN)) == without_clocks(on_disk(folder, up_to=covered))
    # As if it had been killed between two checkpoints: what it trains again takes the place of this.
    path = checkpoints(folder, RUN)[0].parent / "metrics.jsonl"
    path.write_text(path.read_text() + json.dumps({"step": covered + 20, "loss": 1e9, "time": 1.0}) + "\n")
    gcflow(folder, "track", "sync")
    assert max(step for step, _ in found(folder).history(RUN)["loss"]) == covered
    assert gcflow(folder, "train", RUN).returncode == 0
    wait_until(lambda: followers_ended(folder), seconds=120)
    resumed = found(folder).run(RUN)
    assert resumed.info.run_id == killed.info.run_id
    assert resumed.info.status == "FINISHED"
    assert (killed.data.tags["resumed"], resumed.data.tags["resumed"]) == ("0", "1")
    assert_mirrored(folder)
    assert not found(folder).runs(deleted=True)


def test_a_value_that_changed_replaces_the_run_and_no_one_elses(tmp_path, finished):
    folder = duplicate(finished, tmp_path / "finished")
    mlflow = Found(f"sqlite:///{folder / 'mlflow.db'}", "tiny")
    before = mlflow.run(RUN)
    # A published file may be a link to a recorded one, so that it is written anew.
    path = run_folder(folder, RUN) / "evaluation" / "metrics.json"
    records = json.loads(path.read_text())
    records[0]["value"] += 1.0
    rewrite(path, json.dumps(records))
    # The same run of somebody else, whose bits are their own.
    other = mlflow.client.create_run(
        before.info.experiment_id,
        run_name=RUN,
        tags={"run": "digits/gc/0", "config_hash": mlflow.run("digits/gc/0").data.tags["config_hash"], "origin": "x"},
    )
    gcflow(folder, "track", "sync")
    after = mlflow.run(RUN)
    assert after.info.run_id != before.info.run_id
    assert [run.info.run_id for run in mlflow.runs(deleted=True)] == [before.info.run_id]
    assert not mlflow.client.get_run(other.info.run_id).data.metrics
    assert sum(run.data.tags.get("run") == "digits/gc/0" for run in mlflow.runs()) == 2
    name = f"{records[0]['metric']}/{records[0]['weights']}-{records[0]['network_evaluations']}-evals"
    values = [record["value"] for record in records if same_point(record, records[0])]
    assert dict(mlflow.history(RUN)[name])[records[0]["step"]] == pytest.approx(sum(values) / len(values))


def test_a_password_in_the_address_is_shown_nowhere(tmp_path, undisturbed, break_server):
    folder = duplicate(undisturbed, tmp_path / "secret")
    proxy, _ = break_server("fails")
    for address in (proxy.address, f"http://127.0.0.1:{free_port()}"):
        env = {"MLFLOW_TRACKING_URI": address.replace("//", "//me:s3cret@")}
        result = gcflow(folder, "track", "sync", env=env)
        follow = subprocess.run(
            [sys.executable, str(SCRIPT), "track", "follow", RUN],
            cwd=folder,
            env=environment(env),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=True,
        )
        receipt = (folder / "results/tracking.json").read_text()
        assert json.loads(receipt)["uri"] == address
        assert "did not take" in result.stderr
        assert "not sent" in follow.stderr
        assert "s3cret" not in result.stdout + result.stderr + follow.stdout + follow.stderr + receipt
    proxy.heal()
    result = gcflow(folder, "track", "sync", env={"MLFLOW_TRACKING_URI": proxy.address.replace("//", "//me:s3cret@")})
    receipt = (folder / "results/tracking.json").read_text()
    assert list(json.loads(receipt)["sent"]) == [RUN]
    assert "s3cret" not in result.stdout + result.stderr + receipt


def test_each_configuration_of_a_run_keeps_its_own_state(tmp_path, sync, sqlite_server):
    folder = project(tmp_path / "configurations", every=1, follow=None)
    change(folder, training={"learning_rate": 0.001})
    log_a_line(begin(folder))
    change(folder, training={"learning_rate": 0.002})
    train_here(folder, RUN)
    receipt = sync(folder)
    assert receipt["sent"] == {RUN: one_of(folder, sqlite_server, "0.002").info.run_id}
    # As Snakemake does, before it trains with another configuration.
    for name in ("config.json", "jobs.json", "weights.safetensors", "metrics.jsonl", "snapshots/00000040.safetensors"):
        (run_folder(folder, RUN) / name).unlink()
    change(folder, training={"learning_rate": 0.003})
    log_a_line(begin(folder))
    with RunLock(run_folder(folder, RUN) / "state", RUN):
        receipt = sync(folder)
    runs = [one_of(folder, sqlite_server, rate) for rate in ("0.001", "0.002", "0.003")]
    assert [run.info.status for run in runs] == ["KILLED", "FINISHED", "RUNNING"]
    assert "weights.safetensors" not in runs[1].data.tags["mlflow.note.content"], "they are another's, or nobody's"
    assert ["not finished" in run.data.tags["mlflow.note.content"] for run in runs] == [True, False, True]
    assert receipt["sent"] == {RUN: runs[2].info.run_id}
    train_here(folder, RUN)
    receipt = sync(folder)
    runs = [one_of(folder, sqlite_server, rate) for rate in ("0.001", "0.002", "0.003")]
    assert [run.info.status for run in runs] == ["KILLED", "FINISHED", "FINISHED"]
    assert "weights.safetensors" in runs[2].data.tags["mlflow.note.content"]
    assert receipt["sent"] == {RUN: runs[2].info.run_id}


def one_of(folder: Path, place: str, rate: str) -> Any:
    """The MLflow run of a learning rate."""
    (run,) = (run for run in found(folder, place).runs() if run.data.params["training.learning_rate"] == rate)
    return run


def test_the_machine_is_watched_for_the_configuration_that_has_just_begun(copied, sync):
    from gcflow.pipeline.tracking.follow import follow

    folder = copied("begun")
    finished_state = state_folder(folder, RUN)
    change(folder, training={"learning_rate": 0.5})
    begun_state = begin(folder)
    assert not (begun_state / "metrics.jsonl").exists(), "its job has not logged a line"
    params = Params(folder / "params.yaml")
    with open(os.devnull) as ended:
        follow(params, params.parse_run(RUN), ended)
    assert (begun_state / "system.jsonl").exists()
    assert not (finished_state / "system.jsonl").exists()


def test_what_an_evaluation_no_longer_measures_is_no_longer_shown(copied, sync, sqlite_server):
    folder = copied("fewer")
    write_evaluation(folder, ("ema", "raw"), (20, 40))
    sync(folder)
    before = found(folder, sqlite_server).run(RUN)
    assert {"classifier-fd/ema-1-evals", "classifier-fd/raw-1-evals"} <= before.data.metrics.keys()
    write_evaluation(folder, ("ema",))
    sync(folder)
    after = found(folder, sqlite_server).run(RUN)
    history = found(folder, sqlite_server).history(RUN)
    assert after.info.run_id != before.info.run_id
    assert {name for name in history if name.endswith("-evals")} == {"classifier-fd/ema-1-evals"}
    assert history["classifier-fd/ema-1-evals"] == [(40, 2.0)]
    # One that only is not here, in a clone say, takes nothing away.
    (run_folder(folder, RUN) / "evaluation" / "metrics.json").unlink()
    sync(folder)
    assert found(folder, sqlite_server).run(RUN).info.run_id == after.info.run_id
    assert "classifier-fd/ema-1-evals" in found(folder, sqlite_server).history(RUN)


def write_studies(folder: Path, text: str, verdicts: list[str]) -> None:
    """A table and the ledger of claims, an hour old."""
    table, claims = folder / "results/digits/tables/table1.md", folder / "results/claims.json"
    table.parent.mkdir(parents=True, exist_ok=True)
    table.write_text(text)
    claims.write_text(json.dumps({"records": [{"dataset": "digits", "verdict": verdict} for verdict in verdicts]}))
    for path in (table, claims):
        os.utime(path, (path.stat().st_mtime - 3600,) * 2)


def test_two_projects_in_one_experiment_have_their_own_tables_and_reports(copied, sync, sqlite_server):
    ours, theirs = copied("shared"), copied("theirs")
    change(theirs, tracking={"experiment": "shared"})
    jobs = run_folder(theirs, RUN) / "jobs.json"
    rewrite(jobs, jobs.read_text().replace('"host": "', '"host": "other-'))
    write_studies(ours, "ours", ["supported", "supported"])
    write_studies(theirs, "theirs", ["undecided"])
    mlflow = found(ours, sqlite_server)

    def shown(name: str) -> list[tuple[str, dict[str, float]]]:
        client, runs = mlflow.client, (run for run in mlflow.runs() if run.info.run_name == name)
        sent = [(client.download_artifacts(run.info.run_id, ""), run.data.metrics) for run in runs]
        return sorted((next(Path(place).glob("*")).read_text(), metrics) for place, metrics in sent)

    sync(ours)
    for run in mlflow.runs():
        if "study" in run.data.tags and "run" not in run.data.tags:
            # As older ones are, which were everybody's.
            mlflow.client.delete_tag(run.info.run_id, "mlflow.gcflow.origins")
    for folder in (ours, theirs, ours):
        sync(folder)
    assert [text for text, _ in shown("digits/table1")] == ["ours", "theirs"]
    # The clone that pulled our results, and evaluated them anew: nothing is supported any more.
    elsewhere = duplicate(ours, ours.parent / "clone")
    shutil.rmtree(run_folder(elsewhere, RUN) / "state")
    write_studies(elsewhere, "ours, anew", ["undecided", "undecided", "undecided"])
    sync(elsewhere)
    assert [text for text, _ in shown("digits/table1")] == ["ours, anew", "theirs"]
    counts = [metrics for _, metrics in shown("report")]
    assert sorted(counts, key=len) == [
        {"digits/undecided": 1.0},
        {"digits/supported": 0.0, "digits/undecided": 3.0},
    ]
    # Older files again: the numbers shown are theirs.
    sync(ours)
    assert {"digits/supported": 2.0, "digits/undecided": 0.0} in [metrics for _, metrics in shown("report")]


def test_three_hundred_grids_are_each_sent_once(copied, sync, sqlite_server):
    folder = copied("grids")
    grids = run_folder(folder, RUN) / "evaluation" / "grids"
    grids.mkdir(parents=True)
    for step in range(300):
        Image.new("L", (2, 2), step % 256).save(grids / f"{step:08d}.png")
    assert sync(folder)["pending"] == []
    mlflow = found(folder, sqlite_server)
    run_id = mlflow.run(RUN).info.run_id
    assert len(mlflow.artifacts(run_id, "images")) == 600
    # Redrawn, it is known to be another image, however its hash was written down: the run is made anew.
    mlflow.client.delete_tag(run_id, "mlflow.gcflow.uploaded.grid of step 7")
    mlflow.client.set_tag(run_id, "mlflow.gcflow.uploaded", json.dumps({"grid of step 7": "0" * 32}))
    for path in list(grids.iterdir())[10:]:
        path.unlink()
    Image.new("L", (3, 3)).save(grids / "00000007.png")
    sync(folder)
    assert [run.info.run_id for run in mlflow.runs(deleted=True)] == [run_id]


def test_an_experiment_that_was_deleted_is_made_again_from_the_files(copied, sync, sqlite_server):
    folder = copied("deleted")
    write_evaluation(folder, ("ema", "raw"))
    sync(folder)
    write_evaluation(folder, ("ema",))
    sync(folder)
    mlflow = found(folder, sqlite_server)
    old = mlflow.run(RUN)
    mlflow.client.delete_experiment(old.info.experiment_id)
    assert sync(folder)["pending"] == []
    new = mlflow.run(RUN)
    assert (new.info.experiment_id, new.info.status) == (old.info.experiment_id, "FINISHED")
    assert new.data.metrics == old.data.metrics
    assert len(mlflow.runs(deleted=True)) == 2, "what was deleted with it or before stays deleted"


def test_a_run_that_lacks_a_file_does_not_hold_up_the_others(copied, sync, sqlite_server, capsys):
    folder = copied("lacking")
    change(folder, runs={"ic": {"label": "iCT-IC", "seeds": [0, 1]}})
    train_here(folder, "digits/ic/1")
    missing = run_folder(folder, RUN) / "weights.safetensors"
    missing.unlink()
    receipt = sync(folder)
    assert (list(receipt["sent"]), receipt["pending"]) == (["digits/ic/1"], [RUN])
    assert f"gcflow: warning: {RUN}: {missing} is missing; not sent\n" in (said := capsys.readouterr().err)
    assert sqlite_server not in said
    assert [run.data.tags["run"] for run in found(folder, sqlite_server).runs()] == ["digits/ic/1"]


def test_mlflow_shows_what_the_files_say(finished):
    mlflow = Found(f"sqlite:///{finished / 'mlflow.db'}", "tiny")
    run = mlflow.run(RUN)
    tags, jobs = run.data.tags, json.loads((run_folder(finished, RUN) / "jobs.json").read_text())
    commit = subprocess.run(["git", "rev-list", "HEAD"], cwd=finished, capture_output=True, text=True, check=True)
    assert tags["git_commit"] == tags["mlflow.source.git.commit"] == jobs[0]["commit"] in commit.stdout.split()
    assert tags["git_dirty"] == "False"
    assert (tags["dataset"], tags["method"], tags["seed"], tags["label"]) == ("digits", "ic", "0", "iCT-IC")
    assert (tags["host"], tags["device"], tags["resumed"]) == (jobs[0]["host"], jobs[0]["device"], "0")
    config = json.loads((run_folder(finished, RUN) / "config.json").read_text())
    assert tags["config_hash"] == config["config_hash"]
    times = [json.loads(line)["time"] for line in (run_folder(finished, RUN) / "metrics.jsonl").open()]
    assert (run.info.start_time, run.info.end_time) == (int(1000 * times[0]), int(1000 * times[-1]))
    params = run.data.params
    assert (params["method.coupling"], params["training.schedule.s1"]) == ("ic", "16")
    assert params["data_sha256"] == config["inputs"]["data_sha256"]
    lock = (finished / "dvc.lock").read_text()
    assert tags["weights_md5"] in lock, "DVC knows the weights by it"
    files = mlflow.artifacts(run.info.run_id)
    assert not [name for name in files if name.endswith(".safetensors")], "nor does it keep them twice"
    history = mlflow.history(RUN)
    steps = [json.loads(line)["step"] for line in (run_folder(finished, RUN) / "metrics.jsonl").open()]
    for name in ("loss", "learning_rate", "intervals", "images_per_second", "memory_gib", "gradient_norm"):
        assert [step for step, _ in history[name]] == steps, name
    for kind in ("ema", "raw"):
        assert [step for step, _ in history[f"classifier-fd/{kind}-1-evals"]] == [20, 40]
    images = [name for name in files if name.startswith("images/samples+step+")]
    assert {name.split("+")[2] for name in images} == {"20", "40"}
    assert len(images) == 4, "each step once, in two sizes"
    assert (tags["study"], tags["studies"]) == ("table1", "table1, convergence, samples")
    (table,) = (run for run in mlflow.runs() if run.info.run_name == "digits/table1")
    assert {"table1.md", "table1.csv", "table1.tex"} <= set(mlflow.artifacts(table.info.run_id))
    experiments = {e.experiment_id: e.name for e in mlflow.client.search_experiments()}
    (report,) = (run for run in mlflow.runs() if run.info.run_name == "report")
    assert "report.html" in mlflow.artifacts(report.info.run_id)
    assert experiments[report.info.experiment_id] == experiments[table.info.experiment_id] == "tiny"
    assert experiments[run.info.experiment_id] == "tiny/digits"


@pytest.fixture
def page() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("there is no chromium on this machine")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1600, "height": 1200})
        page.set_default_timeout(120_000)
        yield page
        browser.close()


def test_a_person_sees_runs_curves_and_samples_in_a_browser(tmp_path, finished, page):
    folder = duplicate(finished, tmp_path / "finished")
    store = f"sqlite:///{folder / 'mlflow.db'}"
    run = Found(store, "tiny").run(RUN)
    with mlflow_server(tmp_path / "ui", store) as address:
        page.goto(f"{address}/#/experiments")
        for name in ("tiny", "tiny/digits", "tiny/mixture2d"):
            page.get_by_role("link", name=name, exact=True).first.wait_for()
        experiment = f"{address}/#/experiments/{run.info.experiment_id}/runs"
        page.goto(experiment)
        for name in ("ic/0", "ic/1", "gc/0", "gc-frozen/0", "cd/0", "denoiser/0", "ect/0", "ect-gc/0"):
            page.get_by_text(f"digits/{name}", exact=True).first.wait_for()
        page.goto(f"{experiment}?compareRunsMode=CHART")
        page.get_by_text("classifier-fd/ema-1-evals", exact=True).first.wait_for()
        page.locator(".js-plotly-plot .scatterlayer path.js-line").first.wait_for(state="attached")
        page.goto(f"{experiment}/{run.info.run_id}")
        page.get_by_text(f"gcflow train {RUN}", exact=True).first.wait_for()
        page.get_by_text(f"{run_folder(Path(), RUN)}/weights.safetensors").first.wait_for()
        page.goto(f"{experiment}/{run.info.run_id}/model-metrics")
        search = page.get_by_placeholder("Search metric charts")
        search.fill("samples")
        page.get_by_text("samples", exact=True).first.wait_for()
        slider = page.get_by_role("slider").first
        for step in ("20", "40"):
            slider.press("ArrowRight")
            page.wait_for_function("slider => slider.ariaValueNow", arg=slider.element_handle())
            assert slider.get_attribute("aria-valuenow") == step
            page.wait_for_function("[...document.images].some(image => image.naturalWidth > 99)")


def test_training_imports_nothing_of_mlflow():
    code = "import gcflow.pipeline.train, sys; print({'mlflow', 'pandas', 'sqlalchemy'} & set(sys.modules))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "set()"
