"""The command `gcflow`, and `python -m gcflow`: what a launcher such as torchrun starts."""

import io
import sys


def main() -> None:
    """Runs the command line, or says what it needs."""
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
    command_line()


if __name__ == "__main__":
    main()
