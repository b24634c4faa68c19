"""Reading what files say, so that a damaged one becomes a remark about it."""

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from gcflow.config import differing_keys
from gcflow.pipeline.verify.statements import Remark, Statement, Voucher
from gcflow.pipeline.verify.tensors import Header, read_header


class Reading:
    """Small documents and headers below `root`. headers: of the safetensors files that were read so far."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.headers: dict[str, Header] = {}

    def json(self, path: str) -> Any:
        """A JSON document.

        Raises:
            OSError, ValueError: it is missing or damaged.
        """
        return json.loads((self.root / path).read_bytes())

    def guarded(self, path: str, read: Callable[[], Iterable[Statement]]) -> Iterator[Statement]:
        """What `read` says, and that the file at `path` is damaged if it cannot; nothing of a missing file."""
        try:
            yield from read()
        except FileNotFoundError:
            return
        except (ValueError, OSError) as error:
            yield Remark(path, "damaged", f"cannot be read ({error})", path)
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            yield Remark(path, "damaged", f"is not of the form that is written there ({error!r})", path)

    def tensors(
        self, path: str, check: Callable[[dict[str, Any]], Iterable[Statement]] = lambda said: ()
    ) -> Iterator[Statement]:
        """What the header of a safetensors file of ours says of its content, and `check` of the header."""

        def read() -> Iterator[Statement]:
            header = read_header(self.root / path)
            self.headers[path] = header
            yield Voucher(path, "content", header.content_sha256, path)
            yield from check(header.said)

        return self.guarded(path, read)


def older(path: str, what: str, recorded: Any, now: Any) -> Iterator[Statement]:
    """That params.yaml has something else now than a file was made with; names the keys if there are any."""
    now = json.loads(json.dumps(now))
    if recorded != now:
        keys = _differing(recorded, now)
        text = f"made with another {what} than params.yaml has now{f': {keys}' if keys else ''}"
        yield Remark(path, "older", text, path)


def _differing(one: Any, other: Any) -> str:
    """The dotted keys whose values differ between two JSON documents, the first three of them."""
    keys = differing_keys(one, other)
    return ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
