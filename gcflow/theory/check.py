"""One numerical check of a statement: what was measured, what is expected, and how close the two must be."""

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Check:
    """A measured number against an expected one.

    statement: of the paper, e.g. `Theorem 1`. relation: how `measured` should lie to `expected`. tolerance: the error
    that the measurement itself is known to have, in the unit of `measured`. reason: where the tolerance comes from.
    """

    statement: str
    name: str
    measured: float
    expected: float
    tolerance: float
    reason: str
    relation: Literal["=", "<", ">"] = "="

    @property
    def holds(self) -> bool:
        """Equality within the tolerance, or an inequality beyond it; never with a number that is not finite."""
        if not all(map(math.isfinite, (self.measured, self.expected, self.tolerance))):
            return False
        gap = self.measured - self.expected
        if self.relation == "=":
            return abs(gap) <= self.tolerance
        return gap > self.tolerance if self.relation == ">" else gap < -self.tolerance

    def line(self) -> str:
        """The check in one line of text."""
        verdict = "holds" if self.holds else "FAILS"
        error = f"{self.tolerance:.2g}" if math.isfinite(self.tolerance) else "unknown"
        return (
            f"{verdict}  {self.statement}: {self.name}: {self.measured:.6g} {self.relation} {self.expected:.6g} "
            f"(tolerance {error}: {self.reason})"
        )

    def record(self) -> dict[str, Any]:
        """The check as JSON values, with its verdict."""
        return asdict(self) | {"holds": self.holds}
