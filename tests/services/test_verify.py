"""`gcflow verify`: every flipped bit is found, laid at the right file's door, and what it advises mends it."""

import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest
from projects import checkpoints, environment, error_line, gcflow, prepare_data, wait_until, write_project
from workflows import duplicate, dvc, dvc_stages, run, snakemake

from gcflow.errors import GcflowError
from gcflow.pipeline.lock import RunLock
from gcflow.pipeline.params import Params
from gcflow.tools.verify import Finding, Report, verify
from gcflow.weights import load_tensors

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


def report(root: Path, *targets: str) -> Report:
    return verify(Params(root / "params.yaml"), targets or ("all",), "embedded")


def only(root: Path, *targets: str) -> Finding:
    (finding,) = report(root, *targets).findings
    return finding


# No test changes dvc.yaml, which takes DVC a second to read.
stages_of = cache(dvc_stages)


def outputs(root: Path) -> dict[str, str]:
    """Every file that a stage of dvc.yaml declares, to the stage."""
    found = {}
    for name, (*_, outs) in stages_of(root).items():
        for out in map(Path, outs):
            files = (root / out).glob("[!.]*") if (root / out).is_dir() else [root / out]
            found |= {str(path.relative_to(root)): name for path in files}
    return found


def readers(root: Path, files: set[str]) -> set[str]:
    """The stages that depend on files by dvc.yaml alone: on them, or on a folder that holds them."""
    stages, found = stages_of(root), set[str]()
    while files:
        made = {place for file in files for place in (file, *map(str, Path(file).parents))}
        level = {name for name, (_, deps, *_) in stages.items() if made & deps} - found
        found |= level
        files = {out for name in level for out in stages[name][3]}
    return found


def linked(root: Path, file: str) -> set[str]:
    """All names of a file's bytes in a project."""
    path = root / file
    listed = run(root, "find", ".", "-samefile", str(path))
    return {name.removeprefix("./") for name in listed.split()}


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


def test_a_finished_project_is_whole(project):
    shown = gcflow(project, "verify")
    assert shown.stdout.count("\n") == 1, shown.stdout
    assert "all whole" in shown.stdout
    found = report(project)
    assert (found.findings, found.busy, found.unknown, found.absent) == ([], [], [], [])
    assert found.files >= len(outputs(project))


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
            assert found.kind == "damaged", where
            assert set(found.names) == linked(project, file), where
            assert set(found.stages) == {made[name] for name in found.names if name in made}, where
            assert set(found.readers) == readers(project, set(found.names)), where
    assert report(project).findings == []


def test_the_command_names_the_file_the_stage_and_who_reads_it(project):
    made = outputs(project)
    for file in random.Random(8).sample(sorted(made), 2):
        with flipped(project / file, (project / file).stat().st_size // 2, 4):
            result = gcflow(project, "verify", check=False)
            assert result.returncode == 2
            lines = result.stdout.splitlines()
            (place,) = (number for number, line in enumerate(lines) if line.startswith("  damaged"))
            found = only(project)
            assert lines[place].split() == ["damaged", found.names[0]]
            assert lines[place - 1].partition(";")[0] == ", ".join(found.stages)
            assert set(found.names) == linked(project, file)
            text = " ".join(lines[place:])
            assert all(name in text for name in found.names)
            assert all(name in lines[place - 1] for name in found.readers[:3])
            assert lines[-1].endswith("1 not whole")


def test_two_damaged_files_are_two_findings(project):
    """What a damaged manifest says of the arrays does not count."""
    text = (project / "data/digits/manifest.json").read_text()
    inside_a_hash = text.index('"samples.npy": "') + 20
    with (
        flipped(project / "data/digits/manifest.json", inside_a_hash, 1),
        flipped(project / SEED0 / "config.json", 40, 2),
    ):
        found = {finding.names[0] for finding in report(project).findings}
    assert found == {"data/digits/manifest.json", f"{SEED0}/config.json"}


def test_checkpoints_are_looked_at_too(own):
    newest = checkpoints(own, "digits/ic/0")[-1]
    write(newest, 9000, 1)
    found = only(own, "digits/ic/0")
    assert (found.names, found.readers) == ([str(newest.relative_to(own))], [])
    newest.unlink()
    assert report(own).findings == []


def test_without_dvc_and_git_files_vouch_for_themselves(own):
    made = outputs(own)
    for name in (".git", ".dvc"):
        shutil.rmtree(own / name)
    (own / "dvc.lock").unlink()
    shown = gcflow(own, "verify").stdout.splitlines()
    assert len(shown) == 2
    assert "files of which neither dvc.lock nor anybody else has a hash" in shown[0]
    assert "all whole" in shown[1]
    unknown = report(own).unknown
    assert "results/digits/figures/samples.png" in unknown
    assert not any(path.endswith((".safetensors", "samples.npy")) for path in unknown if "evaluation" not in path)
    chosen = random.Random(9)
    for file in chosen.choices([file for file in sorted(made) if file.endswith(".safetensors")], k=25):
        with flipped(own / file, chosen.randrange((own / file).stat().st_size), 1 << chosen.randrange(8)):
            try:
                load_tensors(own / file)
            except GcflowError:
                assert set(only(own, made[file]).names) == linked(own, file)
            else:
                # Some bits of a header's text mean nothing, such as the case of an exponent's e.
                assert report(own, made[file]).findings == []
    with flipped(own / SEED0 / "weights.safetensors", 20, 1), flipped(own / SEED0 / "config.json", 40, 2):
        assert len(report(own, "digits/ic/0").findings) == 2
    for array in ("samples", "labels", "held_out"):
        with flipped(own / f"data/digits/{array}.npy", 100, 1):
            assert only(own, "digits").names == [f"data/digits/{array}.npy"]


def test_a_cut_file_and_one_that_grew_are_brought_back_by_dvc(own):
    for file in (f"{SEED0}/weights.safetensors", f"{SEED0}/metrics.jsonl", "data/digits/samples.npy"):
        whole = (own / file).read_bytes()
        for content in (whole[: len(whole) // 2], whole + b"\0", b""):
            replace(own / file, content)
            assert only(own).names == [file]
        (own / file).unlink()
        dvc(own, "checkout", "--quiet", file)
        assert report(own).findings == []


def test_a_missing_file_is_missed_where_its_stage_is_otherwise_there(own):
    for file in (f"{SEED0}/weights.safetensors", f"{SEED0}/snapshots/00000020.safetensors", "data/digits/labels.npy"):
        kept = (own / file).rename(own / "kept")
        found = only(own)
        assert (found.kind, found.names) == ("missing", [file])
        assert set(found.readers) == readers(own, {file})
        kept.rename(own / file)
    shutil.rmtree(own / SEED0 / "snapshots")
    assert only(own).names == [f"{SEED0}/snapshots"]
    dvc(own, "checkout", "--quiet", f"{SEED0}/snapshots")
    # A stage of which nothing is there may not have been pulled.
    (own / "results/digits/transport.json").unlink()
    found_all = report(own)
    assert (found_all.findings, found_all.absent) == ([], ["transport-digits"])


def test_a_file_in_a_folder_that_did_not_have_it_is_named(own):
    (own / SEED0 / "snapshots/notes.txt").write_text("mine\n")
    found = only(own)
    assert (found.kind, found.names) == ("stray", [f"{SEED0}/snapshots/notes.txt"])


def test_a_folder_is_compared_as_a_whole_if_the_cache_has_no_list_of_its_files(own):
    shutil.rmtree(own / ".dvc/cache")
    assert report(own).findings == []
    replace(own / SEED0 / "evaluation/grids/00000020.png", b"another picture")
    assert only(own).names == [f"{SEED0}/evaluation/grids"]


def test_a_folder_in_the_place_of_a_file_is_damage(own):
    (own / "results/digits/transport.json").unlink()
    (own / "results/digits/transport.json").mkdir()
    assert only(own, "transport-digits").names == ["results/digits/transport.json"]


def test_nothing_computed_is_nothing_wrong(tmp_path):
    found = report(prepare_data(write_project(tmp_path), "digits"))
    assert found.findings == []
    assert "train@digits-ic-0" in found.absent
    assert found.unknown == ["data/digits/manifest.json"]


def test_weights_of_another_run_are_not_this_runs(own):
    """Whole in themselves."""
    replace(own / SEED0 / "weights.safetensors", (own / "results/digits/ic/seed1/weights.safetensors").read_bytes())
    assert only(own).names == [f"{SEED0}/weights.safetensors"]


def test_a_run_that_is_being_trained_is_left_alone(own):
    write(own / SEED0 / "weights.safetensors", 20000, 1)
    write(checkpoints(own, "digits/ic/0")[-1], 9000, 1)
    assert len(report(own).findings) == 2
    with RunLock(own / SEED0 / "state", "digits/ic/0"):
        found = report(own)
        assert found.findings == []
        assert found.busy == [f"train@digits-ic-0 by process {os.getpid()} on {os.uname().nodename}"]
        assert found.busy[0] in gcflow(own, "verify").stdout
    assert len(report(own).findings) == 2


def removed(root: Path, finding: Finding) -> None:
    """Follows the advice."""
    for name in finding.names:
        (root / name).unlink()
        if "/state/" in name:
            shutil.rmtree(root / name.partition("/state/")[0] / "state", ignore_errors=True)


def test_flips_in_hard_links_are_mended_from_a_remote(own, tmp_path):
    dvc(own, "remote", "add", "--quiet", "--default", "store", str(tmp_path / "store"))
    dvc(own, "push", "--quiet")
    for file in (f"{SEED0}/weights.safetensors", "results/digits/transport.json"):
        write(own / file, 700, 1)
    # DVC itself trusts its read-only copies.
    dvc(own, "pull", "--quiet", "--force")
    found = report(own).findings
    assert len(found) == 2
    for finding in found:
        removed(own, finding)
    dvc(own, "pull", "--quiet")
    gcflow(own, "adopt")
    assert report(own).findings == []
    assert "Nothing to be done" in snakemake(own, "-n", "all")


def test_a_flip_in_hard_links_is_mended_by_the_stage(own):
    """Of a run from which little else is made."""
    weights = own / "results/digits/ect-gc/seed0/weights.safetensors"
    before = weights.read_bytes()
    write(weights, 700, 1)
    removed(own, only(own))
    snakemake(own, "all")
    gcflow(own, "record")
    assert report(own).findings == []
    assert weights.read_bytes() == before


def test_equal_outputs_of_two_stages_are_one_finding_that_names_both(own):
    """As DVC's cache makes them one file."""
    one, other = f"{SEED0}/jobs.json", "results/digits/gc/seed0/jobs.json"
    (own / other).unlink()
    os.link(own / one, own / other)
    write(own / one, 5, 1)
    found = only(own)
    assert {one, other} < set(found.names)
    assert set(found.stages) == {"train@digits-ic-0", "train@digits-gc-0"}


def test_bad_requests_are_one_line(own):
    assert "target 'digit'" in error_line(gcflow(own, "verify", "digit", check=False).stderr)
    (own / "dvc.lock").write_text("stages: [")
    result = gcflow(own, "verify", check=False)
    assert (result.returncode, "dvc.lock" in error_line(result.stderr)) == (2, True)


def test_ctrl_c_ends_it_within_a_file(tmp_path):
    folder = prepare_data(write_project(tmp_path), "digits")
    # A hole: it takes no space, and half an hour to read.
    os.truncate(folder / "data/digits/samples.npy", 1 << 41)
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
        wait_until(lambda: int(Path(f"/proc/{process.pid}/io").read_text().split()[1]) > 1 << 29)
        process.send_signal(signal.SIGINT)
        wait_until(lambda: process.poll() is not None)
    finally:
        process.kill()
    assert process.returncode == 1
    assert process.communicate() == ("", "\nAborted!\n")
