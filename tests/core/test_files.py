import errno
import hashlib
import os
import stat
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gcflow.errors import GcflowError
from gcflow.files import atomic_path, read_json, sha256_of, write_json, write_text

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


class Interrupted(Exception):
    pass


def write_half(path: Path, error: type[BaseException]) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text("half")
        raise error


@pytest.mark.parametrize("error", [Interrupted, KeyboardInterrupt, SystemExit])
def test_an_exception_leaves_neither_the_file_nor_a_temporary_one(tmp_path, error):
    with pytest.raises(error):
        write_half(tmp_path / "new.json", error)
    assert list(tmp_path.iterdir()) == []


def test_an_exception_keeps_the_file_that_was_there(tmp_path):
    path = tmp_path / "kept.txt"
    path.write_text("whole")
    with pytest.raises(Interrupted):
        write_half(path, Interrupted)
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"kept.txt": "whole"}


def test_the_old_file_is_there_until_the_block_ends_and_the_new_one_after_it(tmp_path):
    path = tmp_path / "weights.safetensors"
    path.write_text("old")
    with atomic_path(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
        assert temporary.parent == path.parent
        assert temporary.suffix == path.suffix
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"weights.safetensors": "new"}


def test_a_folder_that_refuses_to_be_synced_is_named(tmp_path, monkeypatch):
    sync = os.fsync

    def of_files_only(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", of_files_only)
    with pytest.raises(OSError, match="Invalid argument") as refused:
        write_text(tmp_path / "new.txt", "whole")
    assert refused.value.filename == str(tmp_path)


def test_a_block_that_writes_nothing_fails_and_keeps_the_old_file(tmp_path):
    path = tmp_path / "kept.txt"
    path.write_text("whole")
    with pytest.raises(FileNotFoundError), atomic_path(path):
        pass
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"kept.txt": "whole"}


def test_missing_folders_are_made(tmp_path):
    write_text(tmp_path / "a" / "b" / "c.txt", "text")
    assert (tmp_path / "a" / "b" / "c.txt").read_text() == "text"


def test_the_bytes_are_synced_before_they_get_their_name(tmp_path, monkeypatch):
    path, events = tmp_path / "synced.txt", []
    fsync, replace = os.fsync, Path.replace

    def recording_fsync(descriptor: int) -> None:
        events.append(("fsync", os.fstat(descriptor).st_ino))
        fsync(descriptor)

    def recording_replace(self: Path, target: Path) -> Path:
        events.append(("replace", self.stat().st_ino))
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", recording_fsync)
    monkeypatch.setattr(Path, "replace", recording_replace)
    write_text(path, "text")
    inode, folder = path.stat().st_ino, tmp_path.stat().st_ino
    assert events == [("fsync", inode), ("replace", inode), ("fsync", folder)]


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(document=JSON)
def test_json_survives_a_round_trip(tmp_path, document):
    path = tmp_path / "document.json"
    write_json(path, document)
    assert read_json(path) == document
    assert [p.name for p in tmp_path.iterdir()] == ["document.json"]


def test_a_document_that_is_not_json_overwrites_nothing(tmp_path):
    path = tmp_path / "document.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert read_json(path) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["document.json"]


@pytest.mark.parametrize("content", [b"", b'{"half": ', b"\xff\xfe\x00", b"[1, 2"])
def test_a_file_that_is_not_json_is_named_in_one_line(tmp_path, content):
    path = tmp_path / "broken.json"
    path.write_bytes(content)
    with pytest.raises(GcflowError) as caught:
        read_json(path)
    assert str(caught.value).startswith(f"{path}: not valid JSON")
    assert len(str(caught.value).splitlines()) == 1


def test_a_missing_json_file_is_named(tmp_path):
    with pytest.raises(GcflowError) as caught:
        read_json(tmp_path / "absent.json")
    assert str(caught.value).startswith(f"{tmp_path / 'absent.json'}: no such file")


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(content=st.binary(max_size=100_000))
def test_sha256_is_that_of_the_bytes(tmp_path, content):
    (tmp_path / "bytes").write_bytes(content)
    assert sha256_of(tmp_path / "bytes") == hashlib.sha256(content).hexdigest()
