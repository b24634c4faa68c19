"""The one exception that means "the user can fix this"."""

from pathlib import Path


class GcflowError(Exception):
    """Bad input or a bad environment: the message names the file, key or value and what to do.

    The command line prints the message as one line and exits with `exit_code`. heard: false where another process of
    the same run says the same.
    """

    exit_code = 2
    heard = True


class MissingFile(GcflowError):
    """A file that some stage makes is not there yet. command: what makes it, where that is known."""

    def __init__(self, path: Path, command: str | None = None) -> None:
        super().__init__(f"{path}: no such file; run {command or 'the stage that makes it'}")
        self.path = path


class Transient(GcflowError):
    """What the next attempt may not meet: another process, the network, a lack of memory."""


class Preempted(Transient):
    """A run was asked to stop (SIGTERM or a time limit) and has saved its state."""

    exit_code = 75


class NonFiniteLoss(GcflowError):
    """The loss became NaN or infinite; the last good checkpoint was kept."""

    exit_code = 3


class OutOfMemory(Transient):
    """A device had too little memory."""
