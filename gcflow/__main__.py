"""The command `gcflow`, and `python -m gcflow`: what a launcher such as torchrun starts."""

import io
import os
import sys


def open_standard_streams() -> None:
    """Opens those that were closed to nothing: the next files would take their numbers, and what is printed."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
            setattr(sys, name, open(number, "w" if number else "r", encoding="utf-8"))  # noqa: SIM115


def main() -> None:
    """Runs the command line, or says what it needs."""
    open_standard_streams()
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal of another encoding shows `?` for what it has no character for.
        sys.stdout.reconfigure(errors="replace")
    try:
        from gcflow.cli import main as command_line
    except ModuleNotFoundError as error:
        if error.name != "click":
            raise
        needed = "the command line needs the extra `pipeline`: pip install 'gcflow[pipeline]'"
        sys.stderr.write(f"gcflow: error: {needed}\n")
        sys.exit(2)
    try:
        command_line()
    except OSError as error:
        sys.stderr.write(f"gcflow: error: {error.strerror or error}\n")
        sys.exit(2)


if __name__ == "__main__":
    main()
