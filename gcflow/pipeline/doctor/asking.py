"""Questions to other programs and to servers, none of which is waited for without end."""

import os
import subprocess
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Callable
from concurrent.futures import Future
from http.client import HTTPException
from pathlib import Path
from threading import Thread
from typing import TypeVar
from urllib.parse import unquote, urlsplit

from gcflow.errors import GcflowError
from gcflow.pipeline.doctor.check import one_line

# A server that is asked, and all that is asked beside each other.
ANSWER_SECONDS, PATIENCE_SECONDS = 3.0, 8.0

T = TypeVar("T")


def output(*command: str, seconds: float | None = None, folder: Path | None = None) -> str:
    """What a command prints; a GcflowError with its last words if it fails, or runs for longer."""
    seconds = seconds or ANSWER_SECONDS
    try:
        # Programs that draw tables, as `dvc remote list` does, break lines at the width of the terminal.
        wide = os.environ | {"COLUMNS": "10000"}
        result = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=seconds, env=wide, check=False
        )
    except subprocess.TimeoutExpired:
        raise GcflowError(f"no answer within {seconds:.0f} s") from None
    if result.returncode != 0:
        raise GcflowError((result.stderr.strip() or result.stdout.strip() or "no message").splitlines()[-1])
    return result.stdout


def http_problem(url: str, refuses: bool = True) -> str | None:
    """Why an address gives nothing; with `refuses` unset a server that answers at all is no problem."""
    # urllib takes a name and password in an address for a part of the host's name.
    account, at, host = urlsplit(url).netloc.rpartition("@")
    request = urllib.request.Request(url.replace(f"{account}{at}{host}", host, 1))
    if account:
        request.add_header("Authorization", f"Basic {b64encode(unquote(account).encode()).decode()}")
    try:
        with urllib.request.urlopen(request, timeout=ANSWER_SECONDS):
            return None
    except urllib.error.HTTPError as error:
        return f"answers {error.code} ({error.reason})" if refuses else None
    except (OSError, HTTPException) as error:
        return f"not reachable ({one_line(getattr(error, 'reason', error))})"


def started(function: Callable[[], T]) -> Future[T]:
    """Begins a call in a thread that does not keep the process alive."""
    future: Future[T] = Future()

    def call() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    Thread(target=call, daemon=True).start()
    return future
