"""MLflow is a mirror of files: what it shows, under real servers that work and that fail in every way."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from operator import itemgetter
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow_servers import Found, Proxy, mlflow_server, postgres, postgres_programs
from PIL import Image
from projects import (
    SCRIPT,
    alive,
    checkpoints,
    children,
    environment,
    free_port,
    gcflow,
    limit_file_size,
    prepare_data,
    run_folder,
    start,
    tiny_params,
    train_here,
    wait_until,
    write_project,
)
from workflows import SCRIPTS, duplicate, rules_for, snakemake

from gcflow.errors import GcflowError, Preempted
from gcflow.pipeline.folders import report_path
from gcflow.pipeline.lock import RunLock, newest_lease
from gcflow.pipeline.params import Params
from gcflow.tools.track.mirror import without_password
from gcflow.tools.track.runs import files_of
from gcflow.tools.track.sync import limited

RUN = "digits/ic/0"
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


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


def grid(name: str, steps: int = 40, seeds: int = 1, every: int = 10, watch: float = 1.0) -> dict[str, Any]:
    """A params.yaml with the runs of one method. every: steps between lines of metrics and between checkpoints."""
    params = tiny_params()
    params["tracking"] = {"experiment": name, "watch_every": watch}
    digits = params["datasets"]["digits"]
    digits["training"] |= {"steps": steps, "snapshot_every": steps}
    digits["cadence"] = {"log_every": every, "checkpoint_every": every}
    for key in ("transport", "discrepancy", "figures"):
        del digits[key]
    digits["methods"] = {"ic": digits["methods"]["ic"]}
    digits["runs"] = {"ic": {"label": "iCT-IC", "seeds": list(range(seeds))}}
    digits["tables"]["table1"]["methods"] = ["ic"]
    params["datasets"] = {"digits": digits}
    return params


def project(folder: Path, **settings: Any) -> Path:
    """Prepared data, and the grid."""
    return prepare_data(write_project(folder, grid(folder.name, **settings)), "digits")


def address_of(place: str) -> dict[str, str]:
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
        record.pop("checkpoint", None)
        step = record.pop("step")
        if record.pop("time") and (up_to is None or step <= up_to):
            for name, value in record.items():
                histories.setdefault(name, []).append((step, value))
    return histories


def assert_mirrored(folder: Path, place: str = "", run: str = RUN) -> None:
    """That MLflow has every point of a run once, with its step, in their order, and knows that it is finished."""
    mlflow = found(folder, place)
    assert mlflow.history(run) == on_disk(folder, run)
    assert mlflow.run(run).info.status == "FINISHED"


@contextmanager
def watching(folder: Path, env: dict[str, str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """`gcflow track sync --watch` beside the block, whose end it is told as by a workflow; its words are in a log."""
    command = [sys.executable, str(SCRIPT), "track", "sync", "--watch"]
    with (folder / "watch.log").open("ab") as log:
        watch = subprocess.Popen(
            command, cwd=folder, env=environment(env), stdin=subprocess.PIPE, stdout=log, stderr=log
        )
    try:
        yield watch
        watch.stdin.close()
        assert watch.wait(timeout=600) == 0, said(folder)
    finally:
        watch.stdin.close()
        watch.kill()
        watch.wait()


def said(folder: Path) -> list[str]:
    return (folder / "watch.log").read_text().splitlines()


def watches(folder: Path) -> list[int]:
    """The processes that watch a project."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if b"--watch" in path.read_bytes() and (path.parent / "cwd").samefile(folder):
                found.append(int(path.parent.name))
    return [pid for pid in found if alive(pid)]


def statuses(folder: Path, place: str = "") -> list[str]:
    """Of the runs that have points; nothing before there is a database."""
    if not place and not (folder / "mlflow.db").exists():
        return []
    return [run.info.status for run in found(folder, place).runs() if run.data.metrics]


@contextmanager
def held(folder: Path, env: dict[str, str] | None = None) -> Iterator[subprocess.Popen[str]]:
    """A process that trains the run, stopped after its first checkpoint."""
    job = start(folder, "train", RUN, env=env)
    try:
        wait_until(lambda: checkpoints(folder, RUN))
        job.send_signal(signal.SIGSTOP)
        yield job
    finally:
        job.kill()
        job.communicate()


def rewrite(path: Path, text: str) -> None:
    """Writes a file anew: a published one may be a link to a recorded one."""
    path.unlink()
    path.write_text(text)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    """The run of 40 steps."""
    folder = project(tmp_path_factory.mktemp("undisturbed"))
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
def reach(monkeypatch) -> Callable[[str], None]:
    """Makes an address MLFLOW_TRACKING_URI of this process."""
    from gcflow.tools.track.mirror import SETTINGS

    for name, value in SETTINGS.items():
        monkeypatch.setenv(name, value)
    return lambda address: monkeypatch.setenv("MLFLOW_TRACKING_URI", address)


@pytest.fixture
def sync(reach, sqlite_server) -> Callable[..., dict[str, Any]]:
    """`gcflow track sync` within this process, to a server; what results/tracking.json says then."""
    from gcflow.tools.track.sync import sync as send

    def call(folder: Path, address: str = sqlite_server) -> dict[str, Any]:
        reach(address)
        send(Params(folder / "params.yaml"), "all")
        return json.loads((folder / "results/tracking.json").read_text())

    return call


def write_evaluation(folder: Path, kinds: tuple[str, ...], steps: tuple[int, ...] = (40,), value: float = 2.0) -> None:
    path = run_folder(folder, RUN) / "evaluation" / "metrics.json"
    path.parent.mkdir(exist_ok=True)
    shared = {"metric": "classifier-fd", "value": value, "network_evaluations": 1, "protocol": "classifier"}
    path.unlink(missing_ok=True)
    path.write_text(json.dumps([{**shared, "weights": kind, "step": step} for kind in kinds for step in steps]))


@pytest.mark.parametrize("place", ["", "postgres_server"], indirect=True)
def test_runs_that_three_processes_send_at_once_arrive_once_and_whole(tmp_path, place):
    folder, runs = project(tmp_path / "several", seeds=4, every=2), [f"digits/ic/{seed}" for seed in range(4)]
    for run in runs:
        train_here(folder, run)
    with watching(folder, address_of(place)):
        both = [start(folder, "track", "sync", env=address_of(place)) for _ in range(2)]
        words = [process.communicate()[1] for process in both]
        assert [process.returncode for process in both] == [0, 0], words
        assert not any("warning" in text for text in words), words
        assert len(json.loads((folder / "results/tracking.json").read_text())["sent"]) == 4
    assert not [line for line in said(folder) if "waits for" not in line]
    for run in runs:
        assert_mirrored(folder, place, run)
    before = found(folder, place).everything()
    gcflow(folder, "track", "sync", env=address_of(place))
    assert found(folder, place).everything() == before


@pytest.fixture
def break_server(sqlite_server) -> Iterator[Callable[..., Proxy]]:
    with ExitStack() as stack:

        def broken(fault: str, patience: int = 0) -> Proxy:
            proxy = stack.enter_context(Proxy(sqlite_server))
            proxy.breaks(fault, patience)
            return proxy

        yield broken


FAULTS = [("refuses", 0), ("fails", 0), ("fails", 7), ("swallows", 5), ("refuses", 6), ("hangs", 0)]
FAULTS += [("later", 0), ("dribbles", 0), ("dribbles", 6)]


@pytest.mark.parametrize(("fault", "patience"), FAULTS)
def test_whatever_a_server_does_costs_a_warning_and_is_completed_later(
    copied, sync, monkeypatch, break_server, sqlite_server, capsys, fault, patience
):
    folder, proxy = copied(f"{fault}-{patience}"), break_server(fault, patience)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1" if fault == "hangs" else "10")
    with monkeypatch.context() as hurried:
        if fault == "dribbles":
            # Lest it be hurried while it imports MLflow.
            sync(copied(f"before-{patience}"))
            capsys.readouterr()
            hurried.setattr("gcflow.tools.track.sync.PATIENCE", 3.0)
        receipt = sync(folder, proxy.address)
    (warning,) = capsys.readouterr().err.splitlines()[-1:]
    assert warning.startswith(f"gcflow: warning: {proxy.address} did not take 1 runs (")
    assert (receipt["sent"], receipt["pending"]) == ({}, [RUN])
    assert proxy.asked > patience
    proxy.heal()
    assert sync(folder, proxy.address)["pending"] == []
    assert_mirrored(folder, sqlite_server)
    before = found(folder, sqlite_server).everything()
    sync(folder, proxy.address)
    assert found(folder, sqlite_server).everything() == before


def test_a_server_that_drops_a_third_of_all_requests_has_everything_after_one_pass(
    copied, sync, break_server, sqlite_server, capsys
):
    folder, proxy = copied("drops"), break_server("drops")
    change(folder, runs={"ic": {"label": "iCT-IC", "seeds": [0, 1]}})
    train_here(folder, "digits/ic/1")
    write_studies(folder, "a table", ["undecided"])
    receipt = sync(folder, proxy.address)
    assert receipt["pending"] == []
    assert "did not take" not in capsys.readouterr().err
    proxy.heal()
    sync(folder, proxy.address)
    for seed in (0, 1):
        assert_mirrored(folder, sqlite_server, f"digits/ic/{seed}")
    assert len(found(folder, sqlite_server).runs()) == 4, "a run that was made twice, as no answer came, is there once"


def test_an_experiment_that_a_person_renames_stays_the_one_of_its_runs(copied, sync, sqlite_server):
    folder = copied("renamed")
    sync(folder)
    mlflow = found(folder, sqlite_server)
    before = mlflow.run(RUN).info
    mlflow.client.rename_experiment(before.experiment_id, "renamed/by hand")
    write_evaluation(folder, ("ema",))
    sync(folder)
    assert mlflow.run(RUN).info.run_id == before.run_id
    assert "classifier-fd/ema-1-evals" in mlflow.history(RUN)
    assert mlflow.client.get_experiment_by_name("renamed/digits") is None


def test_artifacts_are_where_the_project_is_and_a_copy_has_its_own(copied, sync, tmp_path):
    from mlflow.tracking._tracking_service.utils import _artifact_repos_cache

    first = copied("first")

    def sent(folder: Path, text: str) -> dict[Path, str]:
        write_studies(folder, text, ["undecided"])
        # As in a process of its own.
        _artifact_repos_cache.clear()
        assert sync(folder, "")["pending"] == []
        places = [Path(run.info.artifact_uri.removeprefix("file://")) for run in Found(*stored(folder)).runs()]
        assert all(place.is_relative_to(folder / "mlruns") for place in places)
        return {path: path.read_text() for path in tmp_path.rglob("mlruns/**/table1.md")}

    (table,) = sent(first, "ours")
    other = duplicate(first, tmp_path / "other")
    assert sent(other, "theirs") == {table: "ours", other / table.relative_to(first): "theirs"}
    moved = first.rename(tmp_path / "moved")
    assert sent(moved, "ours, anew")[moved / table.relative_to(first)] == "ours, anew"
    assert not first.exists()


def stored(folder: Path) -> tuple[str, str]:
    """The address of a project's own database, and its experiment."""
    from gcflow.tools.track.mirror import _address

    experiment = yaml.safe_load((folder / "params.yaml").read_text())["tracking"]["experiment"]
    return _address(folder / "mlflow.db"), experiment


def test_any_characters_in_the_path_of_a_project_are_those_of_its_database(copied, sync, tmp_path, monkeypatch):
    folder = duplicate(copied("plain"), tmp_path / "50%41? a+b#c&d" / "project")
    monkeypatch.chdir(folder.parent)
    write_studies(folder, "a table", ["undecided"])
    places = [set(path.iterdir()) for path in (tmp_path, folder.parent)]
    receipt = sync(folder, "")
    assert (list(receipt["sent"]), receipt["uri"]) == ([RUN], str(folder / "mlflow.db"))
    assert [set(path.iterdir()) for path in (tmp_path, folder.parent)] == places
    assert Found(*stored(folder)).history(RUN) == on_disk(folder)
    assert [path.read_text() for path in folder.rglob("mlruns/**/table1.md")] == ["a table"]


def test_a_sync_waits_for_a_watch_that_a_server_holds_up(copied, break_server, sqlite_server):
    folder, proxy = copied("hangs"), break_server("hangs")
    env = address_of(proxy.address) | {"MLFLOW_HTTP_REQUEST_TIMEOUT": "600"}
    with watching(folder, env) as watch:
        wait_until(lambda: proxy.held)
        process = start(folder, "track", "sync", env=env)
        assert process.stderr.readline() == f"MLflow: waits for process {watch.pid} on {os.uname().nodename}\n"
        assert proxy.held == 1
        proxy.heal()
        words = process.communicate()[1]
        assert process.returncode == 0, words
    assert "warning" not in words
    assert_mirrored(folder, sqlite_server)


def test_a_server_that_comes_back_while_a_run_is_trained_has_all_of_it(tmp_path, break_server, sqlite_server):
    folder, proxy = project(tmp_path / "back", steps=2000, every=100), break_server("refuses")
    with watching(folder, address_of(proxy.address)), held(folder) as job:
        wait_until(lambda: said(folder))
        asked = proxy.asked
        wait_until(lambda: proxy.asked > asked + 6)
        assert len(said(folder)) == 1, "it is said once and not at every pass"
        proxy.heal()
        wait_until(lambda: statuses(folder, sqlite_server) == ["RUNNING"], pause=0.2)
        job.send_signal(signal.SIGCONT)
        words = job.communicate()[1]
        assert job.returncode == 0, words
        assert "MLflow" not in words
    assert len(said(folder)) == 1
    assert_mirrored(folder, sqlite_server)
    there = found(folder, sqlite_server).history(RUN)
    for name in ("system/cpu_utilization_percentage", "system/system_memory_usage_percentage"):
        assert len(there[name]) == 20
        assert all(0 <= value <= 100 for _, value in there[name])


def test_a_database_that_cannot_be_written_costs_a_warning(copied, sync, capsys, monkeypatch):
    folder = copied("readonly")
    # MLflow makes a folder `file:` of such an address.
    monkeypatch.chdir(folder)
    database = folder / "mlflow.db"
    sync(folder, f"sqlite:///{database}")
    before = found(folder).everything()
    path = run_folder(folder, RUN) / "metrics.jsonl"
    grown = path.read_text() + path.read_text().splitlines()[-1].replace('"step": 40', '"step": 39') + "\n"
    rewrite(path, grown)
    sync(folder, f"sqlite:///file:{database}?mode=ro&uri=true")
    warning = capsys.readouterr().err
    assert "did not take 1 runs" in warning
    assert "readonly database" in warning
    assert found(folder).everything() == before
    sync(folder, f"sqlite:///{database}")
    assert [step for step, _ in found(folder).history(RUN)["loss"]] == [10, 20, 30, 39, 40]


@pytest.mark.parametrize("make", [Path.mkdir, lambda path: path.write_text("no database")])
def test_what_is_no_database_costs_a_warning_and_no_second_try(copied, sync, capsys, monkeypatch, make):
    folder = copied("nothing")
    database = folder / "mlflow.db"
    make(database)
    # Time that MLflow spends between its tries.
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail(f"a pause of {seconds} s"))
    sync(folder, f"sqlite:///{database}")
    warning = capsys.readouterr().err.splitlines()[-1]
    assert warning.startswith(f"gcflow: warning: sqlite:///{database} did not take 1 runs")


def test_a_disk_that_is_full_costs_a_warning(tmp_path, undisturbed):
    folder = duplicate(undisturbed, tmp_path / "full")
    result = gcflow(folder, "track", "sync", preexec=lambda: limit_file_size(500_000))
    assert "did not take 1 runs" in result.stderr
    assert "Traceback" not in result.stderr
    gcflow(folder, "track", "sync")
    assert_mirrored(folder)


def test_a_run_that_is_killed_and_resumed_is_one_run_with_one_history(tmp_path):
    folder = project(tmp_path / "killed", steps=2000, every=20)
    with watching(folder):
        with held(folder):
            wait_until(lambda: statuses(folder) == ["RUNNING"], pause=0.2)
        wait_until(lambda: statuses(folder) == ["KILLED"], pause=0.2)
        killed = found(folder).run(RUN)
        covered = int(checkpoints(folder, RUN)[-1].stem.partition("-")[2])
        assert found(folder).history(RUN) == on_disk(folder, up_to=covered)
        # As if it had been killed between two checkpoints: what it trains again takes the place of this.
        path = checkpoints(folder, RUN)[0].parent / "metrics.jsonl"
        path.write_text(path.read_text() + json.dumps({"step": covered + 20, "loss": 1e9, "time": 1.0}) + "\n")
        gcflow(folder, "track", "sync")
        assert max(step for step, _ in found(folder).history(RUN)["loss"]) == covered
        gcflow(folder, "train", RUN)
    resumed = found(folder).run(RUN)
    assert resumed.info.run_id == killed.info.run_id
    assert (killed.data.tags["resumed"], resumed.data.tags["resumed"]) == ("0", "1")
    assert_mirrored(folder)
    assert not found(folder).runs(deleted=True)
    assert not said(folder)


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT, None])
def test_a_watch_that_is_told_to_end_sends_what_is_new_first(copied, sqlite_server, end):
    folder = copied(f"ends-{end}")
    change(folder, tracking={"watch_every": 10_000.0})
    with watching(folder, address_of(sqlite_server)) as watch:
        wait_until(lambda: statuses(folder, sqlite_server) == ["FINISHED"], pause=0.1)
        lock = folder / "results/logs/tracking"
        wait_until(lambda: newest_lease(lock).released)
        write_evaluation(folder, ("ema",))
        if end is None:
            watch.stdin.close()
        else:
            watch.send_signal(end)
        assert watch.wait(timeout=600) == 0
    assert found(folder, sqlite_server).history(RUN)["classifier-fd/ema-1-evals"] == [(40, 2.0)]
    assert not said(folder)


def test_a_watch_needs_the_seconds_between_its_passes(copied):
    folder = copied("null")
    change(folder, tracking={"watch_every": None})
    refused = gcflow(folder, "track", "sync", "--watch", check=False)
    assert refused.returncode == 2
    assert "tracking.watch_every is null" in refused.stderr


def test_a_pass_over_what_did_not_change_asks_for_nothing_and_takes_no_lock(copied, reach, break_server, sqlite_server):
    from gcflow.tools.track.sync import Tracker

    folder, proxy = copied("unchanged"), break_server("")
    write_studies(folder, "a table", ["undecided"])
    reach(proxy.address)
    tracker = Tracker(Params(folder / "params.yaml"), "all")

    def passed() -> tuple[int, int]:
        assert tracker.send().problems == {}
        return proxy.asked, newest_lease(folder / "results/logs/tracking").attempt

    first, second = passed(), passed()
    assert first == second
    write_evaluation(folder, ("ema",))
    third = passed()
    assert third > second
    assert "classifier-fd/ema-1-evals" in found(folder, sqlite_server).history(RUN)
    rewrite(folder / "results/digits/tables/table1.md", "another table")
    assert passed() > third


def test_a_workflow_starts_and_ends_one_watch_whatever_ends_it(tmp_path):
    target, log = str(run_folder(Path(), RUN) / "weights.safetensors"), "results/logs/track-watch.log"
    folder = rules_for(tmp_path / "workflow", grid("workflow", steps=1_000_000, every=50))
    snakemake(folder, "-n", target)
    assert not (folder / log).exists()
    # A target that does not send to MLflow at its end.
    env = environment({"PATH": f"{SCRIPTS}:{os.environ['PATH']}"})
    command = ["snakemake", "--profile", "local", target]
    with (folder / "output").open("wb") as output:
        workflow = subprocess.Popen(command, cwd=folder, env=env, stdout=output, stderr=output, start_new_session=True)
    try:
        wait_until(lambda: statuses(folder) == ["RUNNING"], pause=0.2)
        (watch,) = watches(folder)
        assert watch in children(workflow.pid)
    finally:
        os.killpg(workflow.pid, signal.SIGKILL)
        workflow.wait()
    wait_until(lambda: not watches(folder))
    snakemake(folder, "--unlock")
    snakemake(folder, "results/digits/features/classifier.safetensors")
    wait_until(lambda: not watches(folder))
    assert statuses(folder) == ["KILLED"]
    assert (folder / log).read_text() == ""


def test_a_value_that_changed_replaces_the_run_and_no_one_elses(copied, sync, sqlite_server):
    folder = copied("value")
    write_evaluation(folder, ("ema",))
    sync(folder)
    mlflow = found(folder, sqlite_server)
    before = mlflow.run(RUN)
    # The same run of somebody else, whose bits are their own.
    tags = {"run": RUN, "config_hash": before.data.tags["config_hash"], "origin": "x"}
    other = mlflow.client.create_run(before.info.experiment_id, run_name="other", tags=tags)
    write_evaluation(folder, ("ema",), value=3.0)
    sync(folder)
    assert [run.info.run_id for run in mlflow.runs(deleted=True)] == [before.info.run_id]
    assert not mlflow.client.get_run(other.info.run_id).data.metrics
    mlflow.client.delete_run(other.info.run_id)
    assert mlflow.history(RUN)["classifier-fd/ema-1-evals"] == [(40, 3.0)]
    assert mlflow.run(RUN).info.status == "FINISHED"


def test_a_password_in_the_address_is_shown_nowhere(copied, sync, break_server, capsys):
    folder, proxy = copied("secret"), break_server("fails")
    for address in (proxy.address, f"http://127.0.0.1:{free_port()}"):
        receipt = sync(folder, address.replace("//", "//me:s3cret@"))
        warning = capsys.readouterr().err
        assert receipt["uri"] == address
        assert "did not take" in warning
        assert "s3cret" not in warning + json.dumps(receipt)
    with_password = address_of(proxy.address.replace("//", "//me:s3cret@"))
    with watching(folder, with_password):
        wait_until(lambda: said(folder))
        proxy.heal()
    assert "did not take" in (folder / "watch.log").read_text()
    assert "s3cret" not in (folder / "watch.log").read_text()
    result = gcflow(folder, "track", "sync", env=with_password)
    receipt = (folder / "results/tracking.json").read_text()
    assert list(json.loads(receipt)["sent"]) == [RUN]
    assert "s3cret" not in result.stdout + result.stderr + receipt


def test_a_limit_that_comes_while_an_object_is_collected_comes_again(capsys):
    class Slow:
        def __del__(self):
            time.sleep(0.3)
            slept.append(1)

    slept, things = [], [Slow()]

    def hang():
        things.clear()
        time.sleep(30)

    with pytest.raises(TimeoutError, match=r"no end after 0\.1 s"), limited(0.1):
        hang()
    assert slept == []
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "address",
    [
        "postgresql://127.0.0.1:1/runs?user=me&password=s3cret",
        "postgresql://me:s3cr/s3cret@127.0.0.1:1/runs",
        "http://127.0.0.1:1/?token=s3cret",
        "postgresql+nodriver://127.0.0.1/runs?sslpassword=s3cret",
    ],
)
def test_a_secret_anywhere_in_an_address_is_shown_nowhere(copied, sync, monkeypatch, capsys, address):
    monkeypatch.setattr("gcflow.tools.track.sync.PATIENCE", 1.0)
    receipt = sync(copied("secrets"), address)
    warning = capsys.readouterr().err
    assert receipt["pending"] == [RUN]
    assert "did not take 1 runs" in warning
    assert "s3c" not in warning + json.dumps(receipt)


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("of postgresql://me:s3cr/s3c@ret@host/runs?sslpassword=s3cret ends", "of postgresql://host/runs ends"),
        # As urllib3 says it: what is behind the host, alone.
        ("Max retries exceeded with url: /?token=s3cret/api (Caused", "Max retries exceeded with url: / (Caused"),
        ("with url: /api/2.0/runs?token=s3cret", "with url: /api/2.0/runs"),
        ("Is it there? /tmp/mlflow.db is not.", "Is it there? /tmp/mlflow.db is not."),
    ],
)
def test_what_is_said_of_an_address_is_shown_without_its_secrets(said, shown):
    assert without_password(said) == shown


def test_each_configuration_of_a_run_keeps_its_own_state(tmp_path, sync, sqlite_server):
    folder = project(tmp_path / "configurations", every=1)
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


def test_what_an_evaluation_no_longer_measures_is_no_longer_shown(copied, sync, sqlite_server):
    folder = copied("fewer")
    write_evaluation(folder, ("ema", "raw"), (20, 40))
    sync(folder)
    before = found(folder, sqlite_server).run(RUN)
    assert {"classifier-fd/ema-1-evals", "classifier-fd/raw-1-evals"} <= before.data.metrics.keys()
    both = found(folder, sqlite_server).models(RUN, "classifier-fd/ema-1-evals")
    assert {model.tags["step"] for model in both} == {"20", "40"}
    write_evaluation(folder, ("ema",))
    sync(folder)
    assert len(found(folder, sqlite_server).models(RUN, "classifier-fd/ema-1-evals")) == 1
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


def test_what_was_sent_before_any_run_began_is_the_same_afterwards(copied, sync, sqlite_server):
    folder = copied("early")
    report_path(folder).write_text("<p>theory</p>")
    trained = run_folder(folder, RUN).rename(folder / "trained")
    assert sync(folder)["sent"] == {}
    trained.rename(run_folder(folder, RUN))
    assert sync(folder)["sent"].keys() == {RUN}
    assert [run.info.run_name for run in found(folder, sqlite_server).runs()] == [RUN, "report"]


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


def test_many_grids_are_each_sent_once(copied, sync, sqlite_server):
    folder = copied("grids")
    grids = run_folder(folder, RUN) / "evaluation" / "grids"
    grids.mkdir(parents=True)
    for step in range(60):
        Image.new("L", (2, 2), step % 256).save(grids / f"{step:08d}.png")
    assert sync(folder)["pending"] == []
    mlflow = found(folder, sqlite_server)
    run_id = mlflow.run(RUN).info.run_id
    assert len(mlflow.artifacts(run_id, "images")) == 120
    for path in sorted(grids.iterdir())[10:]:
        path.unlink()
    # Something else that is new sends none again.
    write_evaluation(folder, ("ema",))
    sync(folder)
    assert len(mlflow.artifacts(run_id, "images")) == 120
    # Redrawn, one is another image: the run is made anew.
    rewrite(grids / "00000007.png", "")
    Image.new("L", (3, 3)).save(grids / "00000007.png")
    sync(folder)
    assert [run.info.run_id for run in mlflow.runs(deleted=True)] == [run_id]
    assert len(mlflow.artifacts(mlflow.run(RUN).info.run_id, "images")) == 20


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
    assert f"gcflow: warning: {RUN}: [Errno 2] No such file or directory: '{missing}'; not sent\n" in (
        said := capsys.readouterr().err
    )
    assert sqlite_server not in said
    # Nor does one that is damaged, of a run or of all.
    write_studies(folder, "a table", ["undecided"])
    damaged = [run_folder(folder, RUN) / "config.json", folder / "results/claims.json"]
    for path in damaged:
        rewrite(path, path.read_text()[:-20])
    receipt = sync(folder)
    assert (list(receipt["sent"]), receipt["pending"]) == (["digits/ic/1"], [RUN])
    warnings = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert [any(str(path) in line for line in warnings) for path in damaged] == [True, True]
    assert len(warnings) == 2
    assert "digits/table1" in [run.info.run_name for run in found(folder, sqlite_server).runs()]
    runs = [run.data.tags.get("run") for run in found(folder, sqlite_server).runs()]
    assert [name for name in runs if name] == ["digits/ic/1"]


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", "null", "5", '["x"]', '[{"step": 1}]', '{"config": []}'])
@pytest.mark.parametrize("name", ["config.json", "jobs.json", "evaluation/metrics.json", "discrepancy.json"])
def test_a_damaged_file_of_a_run_is_one_error_that_names_it(copied, name, content):
    folder = copied("damaged")
    path = run_folder(folder, RUN) / name
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    path.write_text(content)
    (run,) = Params(folder / "params.yaml").runs()
    of_nobody = name == "jobs.json" and content in {"[]", "{}"}
    with nullcontext() if of_nobody else pytest.raises(GcflowError, match=re.escape(f"{path}: not ")):
        for files in files_of(folder, run):
            assert files.identity
            files.points()


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
    name = "classifier-fd/ema-1-evals"
    measured = [model for model in mlflow.models(RUN, name) if model.tags["run"] == RUN]
    ranked = [(int(m.tags["step"]), next(x.value for x in m.metrics if x.key == name)) for m in measured]
    assert ranked == sorted(history[name], key=itemgetter(1))
    assert all((finished / model.tags["weights"]).exists() and model.status == "READY" for model in measured)
    view = json.loads(mlflow.client.get_experiment(run.info.experiment_id).tags["mlflow.sharedViewState.gcflow"])
    assert view["orderByKey"] == f"metrics.`{name}`"
    assert {column.split("`")[1] for column in view["selectedColumns"]} <= {*tags, *run.data.metrics}
    (data,) = run.inputs.dataset_inputs
    assert config["inputs"]["data_sha256"].startswith(data.dataset.digest)
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
        page.goto(f"{experiment}?viewStateShareKey=gcflow")
        page.get_by_role("columnheader", name="classifier-fd/ema-1-evals").first.wait_for()
        page.get_by_role("gridcell", name="iCT-IC", exact=True).first.wait_for()
        for name in ("ic/0", "ic/1", "gc/0", "gc-frozen/0", "cd/0", "denoiser/0", "ect/0", "ect-gc/0"):
            page.get_by_text(f"digits/{name}", exact=True).first.wait_for()
        # Without a new page MLflow waits for ever when the address of a shared view is edited.
        page.goto("about:blank")
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
