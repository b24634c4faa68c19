"""What is asked of a diagnosis, and what a check answers."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from gcflow.errors import GcflowError

if TYPE_CHECKING:
    from gcflow.pipeline.params import Params, Run
    from gcflow.pipeline.stages import Stage, Stages

Verdict = Literal["OK", "warning", "missing", "broken", "skipped"]


class Check(NamedTuple):
    """What was found about one subject.

    mend: what to do about it. needed: the target cannot run while this is missing or broken.
    """

    subject: str
    verdict: Verdict
    found: str
    mend: str = ""
    needed: bool = True

    @property
    def fails(self) -> bool:
        """Whether this keeps the target from running."""
        return self.needed and self.verdict in ("missing", "broken")


@dataclass(frozen=True)
class Request:
    """What is asked.

    path: of params.yaml. target: a table or figure of the paper, a data set or a stage; None means the whole scale.
    archives: relative to the project's root. thorough: read every byte of data and archives.
    """

    path: Path = Path("params.yaml")
    target: str | None = None
    scale: str = "embedded"
    archives: Path = Path("archives")
    device: str = "auto"
    thorough: bool = False


@dataclass(frozen=True)
class Target:
    """A request whose params.yaml is valid.

    stages: those of all scales. needed: the ones that make the target, and those that they depend on.
    """

    request: Request
    params: "Params"
    stages: "Stages"
    needed: "frozenset[Stage]"

    @property
    def archives(self) -> Path:
        """Where archives are looked for."""
        return self.params.root / self.request.archives

    @property
    def datasets(self) -> list[str]:
        """The data sets whose arrays are needed."""
        return [name for name in self.stages.datasets if self.stages.prepare(name) in self.needed]

    @property
    def runs(self) -> "list[Run]":
        """The runs that are needed."""
        runs = (run for name in self.stages.datasets for run in self.params.runs(name))
        return [run for run in runs if self.stages.train(run) in self.needed]

    @property
    def slow_on_cpu(self) -> bool:
        """Whether a run is made for a GPU."""
        return any(self.params.dataset(run.dataset).scale != "embedded" for run in self.runs)


def one_line(error: object) -> str:
    """The text of an error in one line."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def size(count: float) -> str:
    """Bytes, for people."""
    for unit in ("bytes", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def refusal(subject: str, error: GcflowError) -> Check:
    """Messages of missing and damaged files say what was found, a semicolon, and what to do."""
    found, _, mend = one_line(error).partition("; ")
    where, missing, _ = found.partition(": missing")
    return Check(subject, "missing", where, mend) if missing else Check(subject, "broken", found, mend)


def unexpected(subject: str, error: BaseException, needed: bool) -> Check:
    """A check that failed in another way than it should."""
    mend = "this check itself failed; mend what the message names"
    if isinstance(error, ModuleNotFoundError) and error.name:
        mend = f"python -m pip install {error.name.partition('.')[0]}"
    return Check(subject, "broken", f"{type(error).__name__}: {one_line(error)}", mend, needed)
