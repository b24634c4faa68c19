"""Downloads that go on where they stopped, and are checked before they get their name.

Not pooch: it begins each download anew, and an archive of gigabytes over a line that drops would never come.
"""

import hashlib
import http.client
import os
import re
import time
import urllib.error
import urllib.request
from http.client import HTTPResponse
from pathlib import Path

from gcflow.archives.formats import BLOCK, Report, silent
from gcflow.errors import GcflowError, Transient
from gcflow.files import naming

ATTEMPTS = 5
PAUSE_SECONDS = 2.0
TIMEOUT_SECONDS = 60.0
LOST = (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError)


class _Lost(Exception):
    """A try that may be repeated."""


def download(url: str, target: Path, md5: str | None = None, report: Report = silent) -> None:
    """Fetches a file over HTTP. What is there of it stays in `target`.part until it is whole.

    Args:
        url: of the file.
        target: its path.
        md5: of its content (hex), if known.
        report: called with bytes.

    Raises:
        GcflowError: the server refuses, the connection is lost again and again, or the content is not the expected.
        OSError: the file cannot be written.
    """
    if not url.startswith(("http://", "https://")):
        raise GcflowError(f"{url}: not an http or https address")
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")
    fruitless = 0
    while True:
        before = _size(part)
        try:
            _continue(url, part, report)
            break
        except _Lost as problem:
            fruitless = 0 if _size(part) > before else fruitless + 1
            if fruitless == ATTEMPTS:
                raise Transient(
                    f"{url}: {problem}; run it again to go on, or put the file to {target} yourself"
                ) from None
            time.sleep(PAUSE_SECONDS)
    with part.open("rb") as file:
        if md5 is not None and hashlib.file_digest(file, "md5").hexdigest() != md5:
            part.unlink()
            raise GcflowError(f"{url}: its md5 is not {md5}, so it is not the published file; nothing was kept")
        os.fsync(file.fileno())
    part.replace(target)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _continue(url: str, part: Path, report: Report) -> None:
    """Fetches what `part` lacks."""
    have = _size(part)
    headers = {"User-Agent": "gcflow", "Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    request = urllib.request.Request(url, headers=headers)
    try:
        response: HTTPResponse = urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code == 416:
            if (error.headers.get("Content-Range") or "").rpartition("/")[2] == str(have):
                return
            part.unlink()
            raise _Lost("the server has less of it than was fetched before") from None
        if error.code >= 500:
            raise _Lost(f"the server answers {error.code} ({error.reason})") from None
        raise GcflowError(f"{url}: the server answers {error.code} ({error.reason})") from None
    except LOST as error:
        raise _Lost(f"no connection ({getattr(error, 'reason', error)})") from None
    with response:
        total = int(response.headers.get("Content-Length") or 0)
        if response.status == 206:
            span = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range") or "")
            if span is None or int(span[1]) != have:
                part.unlink()
                raise _Lost("the server sends another part than was asked for")
            total += have
        else:
            # The server does not know ranges, so it sends the whole.
            have = 0
        have = _save(response, part, have, total, report)
    if total not in (0, have):
        raise _Lost(f"the connection was lost at byte {have} of {total}")


def _save(response: HTTPResponse, part: Path, have: int, total: int, report: Report) -> int:
    """Writes what comes from byte `have` on; returns how many bytes are there then."""
    with part.open("r+b" if part.exists() else "wb") as file:
        file.truncate(have)
        file.seek(have)
        while True:
            try:
                content = response.read(BLOCK)
            except LOST:
                return have
            if not content:
                return have
            with naming(part):
                file.write(content)
            have += len(content)
            report(have, total, "download")
