"""Names and marks of verdicts, the ends of the axis of effects, and the caption of the forest plot."""

from typing import Literal, get_args

from gcflow.pipeline.figures import Caption

Verdict = Literal["supported", "contradicted", "undecided"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
MARKS: dict[Verdict, str] = {"supported": "✓", "contradicted": "✗", "undecided": "?"}
# Ratios at the ends of the axis.
LIMITS = (0.2, 5.0)
# Of the forest plot.
CAPTION = Caption(
    "Every statistically tested claim as the ratio of the side that it has lower to the other: left of ×1 speaks for "
    "the claim. A slope is drawn as the ratio that it makes per e-fold of the noise, what lies beyond the axis as an "
    "arrow. Intervals are of each comparison alone, and a single pair of runs has none; verdicts account for all tests "
    "of a data set.",
    "From the records of results/claims.json, by gcflow claims.",
)
