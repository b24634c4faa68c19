"""`gcflow verify`: every flipped bit is found, laid at the right file's door, and its cure cures."""

import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from projects import (
    checkpoints,
    environment,
    error_line,
    gcflow,
    prepare_data,
    tiny_params,
    wait_until,
    write_project,
)
from workflows import duplicate, dvc, run, snakemake

from gcflow.errors import GcflowError
from gcflow.pipeline.lock import RunLock
from gcflow.pipeline.params import Params
from gcflow.pipeline.verify.inspection import Inspection, Report
from gcflow.pipeline.verify.screen import document
from gcflow.weights import load_tensors, save_tensors

SEED0 = "results/digits/ic/seed0"
FLIPS = 60


@pytest.fixture(scope="module")
def project(finished, tmp_path_factory) -> Path:
    """A copy of the finished project; a test that changes it puts it back."""
    return duplicate(finished, tmp_path_factory.mktemp("verify") / "project")


@pytest.fixture
def own(finished, tmp_path) -> Path:
    """A copy of the finished project for one test."""
    return duplicate(finished, tmp_path / "project")


def inspected(root: Path, *targets: str) -> Report:
    return Inspection(Params(root / "params.yaml"), targets or ("all",), "embedded", Path("archives")).report()


def findings(root: Path, *targets: str) -> list[dict[str, Any]]:
    report = inspected(root, *targets)
    found: list[dict[str, Any]] = document(targets, "embedded", report)["findings"]
    assert report.whole == all(finding["kind"] == "older" for finding in found)
    return found


def only(root: Path, *targets: str) -> dict[str, Any]:
    (finding,) = findings(root, *targets)
    return finding


def names(finding: dict[str, Any]) -> set[str]:
    return {finding["path"], *finding["same_bytes"]}


def stages(root: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((root / "dvc.yaml").read_text())["stages"]
    return found


def outputs(root: Path) -> dict[str, str]:
    """Every file that a stage of dvc.yaml declares, to the stage."""
    found = {}
    for name, stage in stages(root).items():
        for out in map(Path, stage["outs"]):
            files = (root / out).glob("[!.]*") if (root / out).is_dir() else [root / out]
            found |= {str(path.relative_to(root)): name for path in files}
    return found


def distances(root: Path, files: set[str]) -> dict[str, int]:
    """The stages that depend on files by dvc.yaml alone, to how many stages away they are."""
    found: dict[str, int] = {}
    made, distance = files | {str(Path(file).parent) for file in files}, 1
    while made:
        level = {name for name, stage in stages(root).items() if made & set(stage.get("deps", []))} - found.keys()
        found |= dict.fromkeys(level, distance)
        made, distance = {out for name in level for out in stages(root)[name]["outs"]}, distance + 1
    return found


def linked(root: Path, file: str) -> set[str]:
    """All names of a file's bytes in a project."""
    path = root / file
    listed = run(root, "find", "data", "results", ".dvc/cache", "-samefile", str(path))
    return set(listed.split())


def write(path: Path, offset: int, bits: int) -> None:
    """Flips bits in place, in all hard links, whatever the mode of the file."""
    mode = path.stat().st_mode
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(offset)
        (byte,) = file.read(1)
        file.seek(offset)
        file.write(bytes([byte ^ bits]))
    path.chmod(mode)


@contextmanager
def flipped(path: Path, offset: int, bits: int) -> Iterator[None]:
    before = path.stat()
    write(path, offset, bits)
    try:
        yield
    finally:
        write(path, offset, bits)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replace(path: Path, content: bytes) -> None:
    """Other bytes under one name, as a program that writes whole files leaves them."""
    path.unlink()
    path.write_bytes(content)


def cured(root: Path, finding: dict[str, Any]) -> None:
    """Runs the one command that a finding names."""
    run(root, "bash", "-c", finding["cure"].replace("dvc ", f"{sys.executable} -m dvc "))


def test_a_finished_project_is_whole(project):
    shown = gcflow(project, "verify")
    assert shown.stdout.count("\n") == 1, shown.stdout
    assert "all of them whole" in shown.stdout
    found = json.loads(gcflow(project, "verify", "--json").stdout)
    assert found["whole"]
    assert (found["findings"], found["not_recorded"], found["not_here"], found["not_computed"]) == ([], [], [], [])
    assert found["files"] >= len(outputs(project))


def test_every_flipped_bit_of_every_kind_of_file_is_found_at_its_place(project):
    chosen = random.Random(7)
    made = outputs(project)
    # One of each kind of file at least: by stage's kind and file's name, without digits.
    kinds = {
        (stage.partition("-")[0], Path(file).suffix, Path(file).stem.strip("0123456789")): file
        for file, stage in made.items()
    }
    files = [*kinds.values(), *chosen.choices(sorted(made), k=max(0, FLIPS - len(kinds)))]
    for file in files:
        path = project / file
        offset, bits = chosen.randrange(path.stat().st_size), 1 << chosen.randrange(8)
        with flipped(path, offset, bits):
            found = only(project, made[file])
            where = f"bit {bits} of byte {offset} of {file}"
            assert found["kind"] == "damaged", where
            assert names(found) == linked(project, file), where
            assert file in names(found)
            expected = distances(project, names(found))
            assert set(found["dependents"]) == expected.keys(), where
            away = [expected[name] for name in found["dependents"]]
            assert away == sorted(away), where
    assert findings(project) == []


def test_flips_are_found_among_everything_by_the_command(project):
    chosen = random.Random(8)
    for file in chosen.sample(sorted(outputs(project)), 3):
        with flipped(project / file, chosen.randrange((project / file).stat().st_size), 4):
            result = gcflow(project, "verify", "--json", check=False)
            (found,) = json.loads(result.stdout)["findings"]
            assert (result.returncode, file in names(found)) == (2, True)
            shown = gcflow(project, "verify", check=False)
            assert shown.returncode == 2
            assert f"damaged  {found['path']}\n" in shown.stdout
            assert f"→ {found['cure']}\n" in shown.stdout
            for name in found["dependents"][:3]:
                assert name in shown.stdout


def test_two_damaged_files_are_two_findings(project):
    with flipped(project / "data/digits/manifest.json", 40, 1), flipped(project / SEED0 / "config.json", 40, 2):
        found = {finding["path"]: finding for finding in findings(project)}
    assert found.keys() == {"data/digits/manifest.json", f"{SEED0}/config.json"}


def test_checkpoints_are_looked_at_too(own):
    newest = checkpoints(own, "digits/ic/0")[-1]
    write(newest, 9000, 1)
    found = only(own, "digits/ic/0")
    assert (names(found), found["dependents"]) == ({str(newest.relative_to(own))}, [])
    cured(own, found)
    assert findings(own) == []


def test_without_dvc_lock_files_vouch_for_each_other(own):
    (own / "dvc.lock").unlink()
    report = inspected(own)
    assert (report.advice, report.absent) == ([], [])
    assert "results/digits/figures/samples.png" in report.unknown
    assert not any(path.endswith((".safetensors", ".npy")) for path in report.unknown if "evaluation" not in path)
    shown = gcflow(own, "verify")
    assert f"{len(report.unknown)} files not recorded, nobody vouches for them" in shown.stdout
    chosen = random.Random(9)
    made = outputs(own)
    for file in chosen.choices([file for file in sorted(made) if file.endswith(".safetensors")], k=25):
        with flipped(own / file, chosen.randrange((own / file).stat().st_size), 1 << chosen.randrange(8)):
            try:
                load_tensors(own / file)
            except GcflowError:
                found = only(own, made[file])
                assert names(found) == {name for name in linked(own, file) if ".dvc" not in name}
            else:
                # Some bits of a header's text mean nothing, such as the case of an exponent's e.
                assert findings(own, made[file]) == []
    for array in ("samples", "labels"):
        with flipped(own / f"data/digits/{array}.npy", 200, 1):
            assert only(own, "digits")["path"] == f"data/digits/{array}.npy"


def test_a_cut_file_and_one_that_grew(own):
    for file in (f"{SEED0}/weights.safetensors", f"{SEED0}/metrics.jsonl", "data/digits/samples.npy"):
        whole = (own / file).read_bytes()
        replace(own / file, whole[: len(whole) // 2])
        assert only(own)["path"] == file
        replace(own / file, whole + b"\0")
        assert only(own)["path"] == file
        replace(own / file, b"")
        found = only(own)
        assert found["path"] == file
        cured(own, found)
        assert findings(own) == []


def test_a_missing_file_is_missed_where_its_stage_is_otherwise_there(own):
    for file in (f"{SEED0}/weights.safetensors", f"{SEED0}/snapshots/00000020.safetensors", "data/digits/labels.npy"):
        (own / file).unlink()
        found = only(own)
        assert (found["kind"], found["path"], found["same_bytes"]) == ("missing", file, [])
        assert set(found["dependents"]) == distances(own, {file}).keys()
        cured(own, found)
        assert findings(own) == []
    shutil.rmtree(own / SEED0 / "snapshots")
    assert only(own)["path"] == f"{SEED0}/snapshots"
    cured(own, only(own))
    # A stage of which nothing is there may not have been pulled.
    (own / "results/digits/transport.json").unlink()
    report = inspected(own)
    assert (report.advice, report.absent) == ([], ["transport-digits"])


def test_without_dvc_lock_a_missing_snapshot_is_missed_too(own):
    (own / "dvc.lock").unlink()
    shutil.rmtree(own / ".dvc/cache")
    (own / SEED0 / "snapshots/00000020.safetensors").unlink()
    found = only(own, "digits/ic/0")
    assert (found["kind"], found["path"]) == ("missing", f"{SEED0}/snapshots/00000020.safetensors")
    cured(own, found)
    assert findings(own, "digits/ic/0") == []


def test_nothing_computed_is_nothing_wrong(tmp_path):
    report = inspected(prepare_data(write_project(tmp_path), "digits"))
    assert report.advice == []
    assert "train-digits-ic-0" in report.open
    assert report.unknown == ["data/digits/manifest.json"]


def test_weights_of_another_run_are_not_this_runs(own):
    """Valid in themselves, with a header that fits its content: only others know better."""
    source = own / "results/digits/ic/seed1/weights.safetensors"
    (own / SEED0 / "weights.safetensors").unlink()
    shutil.copy(source, own / SEED0 / "weights.safetensors")
    found = only(own)
    assert names(found) == {f"{SEED0}/weights.safetensors"}
    assert any("digits/ic/1" in reason["what"] for reason in found["reasons"])
    (own / "dvc.lock").unlink()
    found = only(own)
    assert names(found) == {f"{SEED0}/weights.safetensors"}
    assert found["reasons"][0]["by"] == f"{SEED0}/config.json"
    cured(own, found)
    assert findings(own) == []


def test_a_snapshot_under_the_name_of_another_step_is_found(own):
    (own / "dvc.lock").unlink()
    replace(own / SEED0 / "snapshots/00000020.safetensors", (own / SEED0 / "weights.safetensors").read_bytes())
    found = [finding for finding in findings(own) if finding["kind"] == "damaged"]
    assert [finding["path"] for finding in found] == [f"{SEED0}/snapshots/00000020.safetensors"]
    assert "step 40" in found[0]["reasons"][0]["what"]


def test_a_file_that_does_not_belong_into_a_directory_is_named(own):
    (own / SEED0 / "snapshots/notes.txt").write_text("mine\n")
    found = only(own)
    assert (found["kind"], found["path"]) == ("stray", f"{SEED0}/snapshots/notes.txt")
    cured(own, found)
    assert findings(own) == []


def test_a_folder_in_the_place_of_a_file_is_damage(own):
    (own / "results/digits/transport.json").unlink()
    (own / "results/digits/transport.json").mkdir()
    assert only(own, "transport-digits")["path"] == "results/digits/transport.json"


def test_an_older_configuration_is_no_damage(own):
    params = tiny_params()
    params["datasets"]["digits"]["methods"]["gc"]["mu"] = 0.25
    params["datasets"]["digits"]["evaluation"]["samples"] = 32
    write_project(own, params)
    result = gcflow(own, "verify", "--json")
    found = {finding["path"]: finding for finding in json.loads(result.stdout)["findings"]}
    evaluated = {
        stage: f"{Path(outs[0]).parent}/metrics.json"
        for stage, outs in ((stage, entry["outs"]) for stage, entry in stages(own).items())
        if stage.startswith("evaluate-")
    }
    record = "results/digits/gc/seed0/config.json"
    assert found.keys() == {record, *evaluated.values()} - {"results/mixture2d/ic/seed0/evaluation/metrics.json"}
    assert {finding["kind"] for finding in found.values()} == {"older"}
    assert "method.mu" in found[record]["reasons"][0]["what"]
    assert found[record]["cure"] == f"snakemake --profile local {record}"
    # Nor does it hide damage.
    with flipped(own / record, 30, 1):
        assert [each["path"] for each in findings(own) if each["kind"] == "damaged"] == [record]


def test_what_was_made_from_another_version_is_older(own):
    (own / "dvc.lock").unlink()
    tensors, header = load_tensors(own / "results/digits/features/classifier.safetensors")
    tensors["head.bias"] = tensors["head.bias"] + 1
    save_tensors(own / "results/digits/features/classifier.safetensors", tensors, header)
    found = findings(own)
    assert {finding["kind"] for finding in found} == {"older"}
    measured = {
        f"results/digits/{path.parent.parent.parent.name}/{path.parent.parent.name}/evaluation/metrics.json"
        for path in (own / "results/digits").glob("*/*/evaluation/metrics.json")
    }
    assert {finding["path"] for finding in found} == {
        "results/digits/features/reference-classifier.safetensors",
        *measured,
    }


def test_stages_made_again_since_they_were_recorded_are_not_called_damaged(own):
    params = tiny_params()
    params["datasets"]["digits"]["tables"]["table1"]["title"] = "Another title"
    write_project(own, params)
    snakemake(own, "results/digits/tables/table1.md")
    report = inspected(own)
    assert (report.whole, report.renewed) == (True, ["table-digits-table1"])
    assert "results/digits/tables/table1.md" in report.unknown
    gcflow(own, "record")
    report = inspected(own)
    assert (report.whole, report.renewed, report.unknown) == (True, [], [])


def test_a_run_that_is_being_trained_is_left_alone(own):
    write(own / SEED0 / "weights.safetensors", 20000, 1)
    write(checkpoints(own, "digits/ic/0")[-1], 9000, 1)
    assert len(findings(own)) == 2
    with RunLock(own / SEED0 / "state", "digits/ic/0"):
        result = gcflow(own, "verify", "--json")
        found = json.loads(result.stdout)
        assert found["findings"] == []
        assert found["busy"].keys() == {"digits/ic/0"}
        assert f"process {os.getpid()}" in found["busy"]["digits/ic/0"]
        assert f"digits/ic/0 is being trained by process {os.getpid()}" in gcflow(own, "verify").stdout
    assert len(findings(own)) == 2


def test_a_flip_in_hard_links_is_cured_from_a_remote(own, tmp_path):
    dvc(own, "remote", "add", "--quiet", "--default", "store", str(tmp_path / "store"))
    dvc(own, "push", "--quiet")
    before = dvc(own, "status")
    for file in (f"{SEED0}/weights.safetensors", "results/digits/transport.json"):
        write(own / file, 700, 1)
        # DVC itself trusts its read-only copy, and may have noted what it should not.
        dvc(own, "status", "--quiet", check=False)
        dvc(own, "pull", "--quiet", "--force", file, check=False)
        found = only(own)
        assert "dvc pull --force" in found["cure"]
        cured(own, found)
        assert findings(own) == []
        assert dvc(own, "status") == before


def test_a_flip_in_hard_links_is_cured_without_a_remote(own):
    before = (own / SEED0 / "weights.safetensors").read_bytes()
    made = {
        "weights.safetensors": f"{SEED0}/weights.safetensors {SEED0}/snapshots",
        "metrics.jsonl": f"{SEED0}/metrics.jsonl",
    }
    for name, files in made.items():
        write(own / SEED0 / name, 20, 1)
        (found,) = (finding for finding in findings(own) if finding["kind"] != "older")
        assert found["cure"].endswith(f"snakemake --profile local {files} && gcflow record --scale embedded")
        cured(own, found)
        assert (own / SEED0 / "weights.safetensors").read_bytes() == before
        # It was trained at another time, which is recorded, and what it was measured from has other bytes now.
        assert {finding["kind"] for finding in findings(own)} <= {"older"}


def test_equal_outputs_of_two_stages_are_made_again_both_and_nothing_else(own):
    """As DVC's cache makes them one file."""
    one, other = f"{SEED0}/jobs.json", "results/digits/gc/seed0/jobs.json"
    (own / other).unlink()
    os.link(own / one, own / other)
    kept = [own / file for file in outputs(own) if file not in {one, other}] + checkpoints(own, "digits/gc/0")
    before = [path.read_bytes() for path in kept]
    write(own / one, 5, 1)
    found = only(own)
    assert {one, other} < names(found)
    removed = shlex.split(found["cure"].partition(" && ")[0])[2:]
    declared = [out for stage in stages(own).values() for out in stage["outs"]]
    assert not [out for out in declared if any(out.startswith(f"{path}/") for path in removed)]
    cured(own, found)
    # They say when a job ran, and the report shows it.
    assert {finding["kind"] for finding in findings(own)} <= {"older"}
    assert [path.read_bytes() for path in kept] == before


def test_a_damaged_copy_in_the_cache_is_made_again_from_the_file(own):
    copy = run(own, "find", ".dvc/cache", "-samefile", "results/digits/transport.json").strip()
    whole = (own / copy).read_bytes()
    replace(own / copy, whole[:-1])
    found = only(own)
    assert (names(found), found["dependents"]) == ({copy}, [])
    cured(own, found)
    assert (own / copy).read_bytes() == whole
    assert findings(own) == []


def test_a_published_file_must_be_the_pinned_one(tmp_path):
    params = tiny_params()
    params["pretrained"] = {
        "public": {"pickle": "public.pkl", "url": "https://example.org/public.pkl", "sha256": "0" * 64}
    }
    params["datasets"]["digits"]["methods"]["ect"]["init"] = {"file": "checkpoints/public.safetensors"}
    root = write_project(tmp_path, params)
    (root / "archives").mkdir()
    (root / "archives/public.pkl").write_bytes(b"another")
    found = only(root, "pretrained-public")
    assert (found["kind"], found["path"]) == ("damaged", "archives/public.pkl")
    assert found["cure"] == "rm -f archives/public.pkl && gcflow pretrained public --download"


def test_tensors_of_every_type_have_the_hash_that_was_written(own):
    file = own / "results/digits/features/classifier.safetensors"
    header = load_tensors(file)[1]
    kinds = (
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.int32,
        torch.int16,
        torch.int8,
        torch.uint8,
        torch.bool,
    )
    tensors = {f"{number % 3}.{kind}": torch.arange(number).to(kind) for number, kind in enumerate(kinds)}
    save_tensors(file, tensors | {"scalar": torch.tensor(1.5), "matrix": torch.ones(3, 2)}, header)
    (own / "dvc.lock").unlink()
    assert findings(own, "features-digits") == []
    with flipped(file, file.stat().st_size - 1, 1):
        assert only(own, "features-digits")["kind"] == "damaged"


def test_bad_requests_are_one_line(own):
    assert "target 'digit'" in error_line(gcflow(own, "verify", "digit", check=False).stderr)
    (own / "dvc.lock").write_text("stages: [")
    result = gcflow(own, "verify", check=False)
    assert (result.returncode, "dvc.lock" in error_line(result.stderr)) == (2, True)


def test_ctrl_c_ends_it_within_a_file_and_before_the_next(tmp_path):
    folder = prepare_data(write_project(tmp_path), "digits")
    for name in ("samples.npy", "labels.npy", "held_out.npy"):
        # Holes: they take no space, and half an hour to read.
        os.truncate(folder / "data/digits" / name, 1 << 41)
    # Whoever runs the tests in the background of a shell passes on that Ctrl-C is ignored.
    begin = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    process = subprocess.Popen(
        [sys.executable, "-c", f"{begin}; from gcflow.cli import main; main(['verify'])"],
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_until(lambda: int(Path(f"/proc/{process.pid}/io").read_text().split()[1]) > 1 << 28)
        process.send_signal(signal.SIGINT)
        wait_until(lambda: process.poll() is not None)
    finally:
        process.kill()
    assert process.returncode == 1
    assert process.communicate() == ("", "\nAborted!\n")


def test_neither_torch_nor_numpy_is_imported(project):
    code = (
        "import sys\n"
        "from gcflow.cli import main\n"
        "with __import__('contextlib').suppress(SystemExit): main(['verify', 'digits/ic/0'])\n"
        "print(*sorted({'torch', 'numpy', 'mlflow', 'pandas'} & sys.modules.keys()), 'end')\n"
    )
    command = [sys.executable, "-P", "-c", code]
    result = subprocess.run(command, cwd=project, env=environment(), capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "end", result.stdout
