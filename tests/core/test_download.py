import hashlib
import http.server
import re
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from gcflow import download as module
from gcflow.data import load_dataset
from gcflow.download import download
from gcflow.errors import GcflowError
from gcflow.preparation import prepare

CONTENT = bytes(range(256)) * 5000
MD5 = hashlib.md5(CONTENT).hexdigest()


class Server(http.server.BaseHTTPRequestHandler):
    """Serves CONTENT. What it does wrong is in `plan`, one entry per request."""

    plan: ClassVar[list[str]]
    requests: ClassVar[list[tuple[int, str]]]
    content: bytes
    url: str

    def do_GET(self) -> None:
        what = self.plan.pop(0) if self.plan else "range"
        found = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        start = int(found[1]) if found and what != "no range" else 0
        self.requests.append((start, what))
        if what in ("404", "503"):
            self.send_error(int(what))
            return
        if start >= len(self.content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(self.content)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        part = self.content[start:]
        self.send_response(206 if found and what != "no range" else 200)
        if found and what != "no range":
            shown = start + 5 if what == "another part" else start
            self.send_header("Content-Range", f"bytes {shown}-{len(self.content) - 1}/{len(self.content)}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part[: len(part) // 2] if what == "drop" else part)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[type[Server]]:
    class Handler(Server):
        plan: ClassVar[list[str]] = []
        requests: ClassVar[list[tuple[int, str]]] = []
        content = CONTENT
        url = ""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        Handler.url = f"http://127.0.0.1:{listening.server_address[1]}/file"
        thread = threading.Thread(target=listening.serve_forever, args=(0.01,))
        thread.start()
        yield Handler
        listening.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(module, "BLOCK", 10_000)


def test_a_file_is_fetched_checked_and_named(server, tmp_path):
    told = []
    download(server.url, tmp_path / "new" / "file", MD5, lambda *told_now: told.append(told_now))
    assert (tmp_path / "new" / "file").read_bytes() == CONTENT
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["file"]
    assert told[-1] == (len(CONTENT), len(CONTENT), "download")
    assert sorted(told) == told


@pytest.mark.parametrize("plan", [["drop"], ["drop", "drop", "drop"], ["503", "drop"], ["drop", "no range"]])
def test_a_dropped_connection_is_taken_up_where_it_ended(server, tmp_path, plan):
    server.plan = list(plan)
    download(server.url, tmp_path / "file", MD5)
    assert (tmp_path / "file").read_bytes() == CONTENT
    starts = [start for start, what in server.requests if what == "range"]
    if plan[-1] == "drop":
        drops = plan.count("drop")
        assert starts[0] == pytest.approx(len(CONTENT) * (1 - 0.5**drops), abs=drops)


def test_a_later_call_takes_up_what_an_earlier_one_fetched(server, tmp_path):
    (tmp_path / "file.part").write_bytes(CONTENT[:1000])
    download(server.url, tmp_path / "file", MD5)
    assert server.requests == [(1000, "range")]
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_part_that_is_whole_is_only_checked(server, tmp_path):
    (tmp_path / "file.part").write_bytes(CONTENT)
    download(server.url, tmp_path / "file", MD5)
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_part_that_is_longer_than_the_file_is_fetched_anew(server, tmp_path):
    (tmp_path / "file.part").write_bytes(CONTENT + b"more")
    download(server.url, tmp_path / "file", MD5)
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_another_part_than_was_asked_for_is_not_appended(server, tmp_path):
    (tmp_path / "file.part").write_bytes(CONTENT[:1000])
    server.plan = ["another part"]
    download(server.url, tmp_path / "file", MD5)
    assert (tmp_path / "file").read_bytes() == CONTENT


def refusal(url: str, target: Path, md5: str | None = None) -> str:
    with pytest.raises(GcflowError) as caught:
        download(url, target, md5)
    assert not target.exists()
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def test_a_content_with_another_md5_is_not_kept(server, tmp_path):
    server.content = CONTENT[:-1] + b"!"
    assert refusal(server.url, tmp_path / "file", MD5).startswith(f"{server.url}: its md5 is not {MD5}")
    assert list(tmp_path.iterdir()) == []


def test_a_refusal_of_the_server_is_not_repeated(server, tmp_path):
    server.plan = ["404"]
    assert refusal(server.url, tmp_path / "file").startswith(f"{server.url}: the server answers 404")
    assert len(server.requests) == 1


def test_a_server_that_fails_again_and_again_is_given_up_and_what_was_fetched_is_kept(server, tmp_path):
    server.plan = ["drop"] + ["503"] * module.ATTEMPTS
    message = refusal(server.url, tmp_path / "file", MD5)
    assert message.startswith(f"{server.url}: the server answers 503")
    assert "run it again to go on" in message
    assert (tmp_path / "file.part").read_bytes() == CONTENT[: len(CONTENT) // 2]
    download(server.url, tmp_path / "file", MD5)
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_nobody_who_answers_is_an_error_of_one_line(tmp_path):
    assert "no connection" in refusal("http://127.0.0.1:9/file", tmp_path / "file")


def test_other_addresses_than_those_of_the_web_are_refused(tmp_path):
    (tmp_path / "secret").write_text("x")
    assert "not an http" in refusal(f"file://{tmp_path}/secret", tmp_path / "file")


def test_a_full_disk_is_named_and_the_next_call_goes_on(server, tmp_path):
    script = (
        "import sys; from pathlib import Path; from gcflow.download import download\n"
        "try: download(sys.argv[1], Path(sys.argv[2]))\n"
        "except OSError as error: print(error.filename)"
    )

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    command = [sys.executable, "-c", script, server.url, tmp_path / "file"]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, preexec_fn=limit, check=True)
    assert result.stdout == f"{tmp_path}/file.part\n"
    assert not (tmp_path / "file").exists()
    download(server.url, tmp_path / "file", MD5)
    assert server.requests[-1][0] > 0
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_prepare_fetches_what_is_missing_and_only_that(server, tmp_path):
    from archive_files import python2_batch, random_batch, write_tar

    from gcflow.archives.layouts import Cifar10

    batches = {name: random_batch(2) for name in [*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]}
    members = {f"cifar-10-batches-py/{name}": python2_batch(*batch) for name, batch in batches.items()}
    server.content = write_tar(tmp_path / "packed", members, "w:gz").read_bytes()
    md5 = hashlib.md5(server.content).hexdigest()
    source = Cifar10(url=server.url, md5=md5, images=10, held_out_images=2)
    server.plan = ["drop"]
    prepare(source, tmp_path / "data", tmp_path / "archives", workers=1, download=True)
    assert load_dataset(tmp_path / "data").held_out.numpy().reshape(2, -1).tolist() == batches["test_batch"][0].tolist()
    asked = len(server.requests)
    prepare(source, tmp_path / "data", tmp_path / "archives", workers=1, download=True)
    assert len(server.requests) == asked
