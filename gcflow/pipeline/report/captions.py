"""What to see in a figure of each kind, and how it was made: the one place that says it."""

from typing import NamedTuple


class Caption(NamedTuple):
    """Of a kind of figure. see: what to look for. made: from what, and how."""

    see: str
    made: str


CAPTIONS = {
    "convergence": Caption(
        "How far samples are from the data during training: lower is better, and earlier is faster. Curves whose bands "
        "overlap are not told apart by this picture; the ledger of claims tests their differences.",
        "Fréchet distance of samples from EMA weights with the fewest network evaluations, at every snapshot; mean "
        "over training seeds, with a band where there are several. The axis is logarithmic.",
    ),
    "samples": Caption(
        "What each method draws, beside real data. Equal places in two grids come from the same noise, so a difference "
        "between them is the method's.",
        "EMA weights of each method's first seed at the last step, with the fewest network evaluations; the first "
        "noises of the first generation seed, unselected.",
    ),
    "transport": Caption(
        "What it costs to carry data to noise along each coupling's pairs; lower is better. The paper has the cost of "
        "generator-augmented pairs begin at that of independent ones and fall with the noise, below optimal transport "
        "in batches. It follows for the exact flow of the data; a trained predictor may leave it.",
        "Monte-Carlo estimates of E‖x − z‖² over pairs, with their standard errors; data and noises are common to all "
        "couplings.",
    ),
    "discrepancy": Caption(
        "How far the velocity of a pair is from the mean velocity at its point: 0 would make consistency training the "
        "same as distillation. Lower curves are better, and what matters is how they fall as the noise grows.",
        "A denoiser trained on each coupling gives the mean velocity; mean over its seeds. Exact values and the bound "
        "by the endpoint predictor stand beside it where they are known.",
    ),
    "trajectories": Caption(
        "Straight paths that cross little are easy to follow in one step. Independent pairs are straight and cross "
        "everywhere; compare how the ODE of the probability flow and the generator-augmented flow trade one for the "
        "other. Straightness is 1 for straight lines.",
        "From the same starts on a distribution whose velocity is known, integrated in float64 by gcflow theory; 32 "
        "of the paths are drawn, all are counted.",
    ),
    "theory": Caption(
        "Whether measured points lie on what the theorems say: losses and gradients converge to their limits, the "
        "discrepancies fall with their exponents, and both sides of Lemma 1 agree.",
        "Quasi-Monte-Carlo and quadrature in float64 on a distribution where everything is known; each check with its "
        "tolerance is in the section on theory.",
    ),
}  # fmt: skip

FOREST = Caption(
    "Every statistically tested claim as the ratio of the side that it has lower to the other: left of ×1 speaks for "
    "the claim. Intervals are of each comparison alone; verdicts account for all tests of a data set.",
    "From the records of results/claims.json, by gcflow claims.",
)  # fmt: skip
