"""The files of a project that register what gcflow lacks, and which of them a thing comes from."""

import hashlib
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any

from gcflow.errors import GcflowError
from gcflow.register import TABLES

PREFIX = "gcflow_extension_"
# Module name to the file as params.yaml names it, the sha256 of its bytes, and what it registers in each table.
_loaded: dict[str, tuple[str, str, list[dict[str, type[Any]]]]] = {}


def load_extensions(root: Path, files: Sequence[str], where: str = "extensions") -> None:
    """Runs the files, in whose place those of any project read before are forgotten.

    A file of the same content is run once per process.

    Args:
        root: folder that the files are relative to.
        files: paths of Python files. Each is complete in itself: it can import what is installed, and not its
            neighbours, whose changes would go unnoticed.
        where: what lists them, for messages.

    Raises:
        GcflowError: a file is missing, fails (the message names the line), or registers nothing.
    """
    for table in TABLES:
        ours = {name: cls for name, cls in table.classes.items() if not cls.__module__.startswith(PREFIX)}
        table.classes.clear()
        table.classes.update(ours)
    for file in files:
        path = root / file
        plain = PurePosixPath(file)
        if str(plain) != file or plain.is_absolute() or ".." in plain.parts:
            raise GcflowError(f"{where} lists {file!r}, expected a path below its folder, such as extensions/mine.py")
        try:
            content = path.read_bytes()
        except OSError as error:
            raise GcflowError(f"{where} lists {file!r}, which cannot be read ({error.strerror})") from None
        digest = hashlib.sha256(content).hexdigest()
        name = PREFIX + hashlib.sha256(f"{path.resolve()} {digest}".encode()).hexdigest()[:16]
        try:
            if name in _loaded:
                for table, classes in zip(TABLES, _loaded[name][2], strict=True):
                    table.add(classes)
            else:
                _run(name, path, content)
        except (Exception, SystemExit) as error:
            text = error.msg if isinstance(error, SyntaxError) else str(error)
            raise GcflowError(f"{_place(path, error)}: {type(error).__name__}: {text}; {where} lists it") from None
        registered = [{word: cls for word, cls in t.classes.items() if cls.__module__ == name} for t in TABLES]
        if not any(registered):
            raise GcflowError(f"{path}: registers nothing, though {where} lists it; see docs/extending.md")
        _loaded[name] = (file, digest, registered)


def _run(name: str, path: Path, content: bytes) -> None:
    module = ModuleType(name)
    module.__file__ = str(path)
    # Where pydantic looks annotations up.
    sys.modules[name] = module
    exec(compile(content, path, "exec"), module.__dict__)


def _place(path: Path, error: BaseException) -> str:
    """File and line that an error comes from, as far as they are known."""
    if isinstance(error, SyntaxError):
        return f"{path}:{error.lineno}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return f"{path}:{lines[-1]}" if lines else str(path)


def origins(*things: object) -> dict[str, str]:
    """Files of extensions that these are defined in, as params.yaml names them, to their sha256; sorted."""
    found = (_loaded.get(type(thing).__module__) for thing in things)
    return dict(sorted((origin[0], origin[1]) for origin in found if origin is not None))
