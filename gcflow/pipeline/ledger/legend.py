"""What a verdict is called and marked with, and how far the axis of effects reaches, wherever they are shown."""

from typing import Literal, get_args

Verdict = Literal["supported", "contradicted", "undecided"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
MARKS: dict[Verdict, str] = {"supported": "✓", "contradicted": "✗", "undecided": "?"}
# Ratios at the ends of the axis.
LIMITS = (0.2, 5.0)
