"""What to see in a figure of each kind, and how it was made: the one place that says it."""

from typing import NamedTuple


class Caption(NamedTuple):
    """Of a kind of figure. see: what to look for. made: from what, and how."""

    see: str
    made: str


CAPTIONS = {
    "convergence": Caption(
        "How far samples are from the data during training: lower is better, and earlier is faster. Bands are the "
        "scatter of single seeds, and a curve of one seed has none; which of the claimed differences are more than "
        "chance is in the ledger of claims.",
        "Fréchet distance, by the data set's first protocol, of samples from EMA weights with the fewest network "
        "evaluations: at snapshots from the first generation seed, at the last step the mean over all of them. Curves "
        "are means over training seeds. The axis is logarithmic.",
    ),
    "samples": Caption(
        "What each method draws, beside real data. Images at equal places of two methods' grids come from the same "
        "noise, so what differs is due to the methods, or to the chance in their training, and not to the noise.",
        "EMA weights of each method's first seed at the last step, with the fewest network evaluations; the first "
        "noises of the first generation seed, unselected. Real data are picked at equal steps through the data set. "
        "Points beyond the axes are not seen.",
    ),
    "transport": Caption(
        "What it costs to carry data to noise along each coupling's pairs; lower is better. By the corollaries of "
        "Lemma 1, the cost of generator-augmented pairs of the exact flow begins at that of independent ones and falls "
        "at first, and again where the noise is large; the paper finds it below optimal transport in batches from some "
        "noise on. A trained predictor need not follow.",
        "Monte-Carlo estimates of E‖x − z‖² over pairs: each curve is the cost of independent pairs minus what its "
        "coupling saves against them on the same data and noises. The exact flow takes many steps, so it may have the "
        "first of the pairs alone; its name says how many. Endpoints lie at σ_min and still hold σ_min z, which by "
        "itself saves about 2 σ_min per dimension.",
    ),
    "discrepancy": Caption(
        "How far the velocity of a pair is from the mean velocity at its point: 0 would make consistency training the "
        "same as distillation. Lower curves are better, and what matters is how they fall as the noise grows.",
        "A denoiser trained on each coupling's pairs stands for the mean velocity, and any other velocity than that "
        "lies farther from the pairs': estimates are upper bounds but for sampling error. So is the dashed one, where "
        "the endpoint predictor takes the denoiser's place. Means over the denoisers' training seeds, on the same data "
        "and noises. The exact denoiser of independent pairs, dotted, is known where the data are few; the axis leaves "
        "out most of its fall at small noise, where it knows each sample by heart.",
    ),
    "trajectories": Caption(
        "Straight paths that cross little are easy to follow in one step. Independent pairs are straight and cross "
        "most; compare how much straightness the ODE of the probability flow and the generator-augmented flow give up "
        "to cross less. Straightness is chord over arc, 1 for straight lines; two paths that meet in the plane count "
        "once.",
        "From the same data and noises on a distribution whose velocity is known. Both flows have the same starts and "
        "are integrated in float64 by gcflow theory, the generator-augmented one with exact endpoints; trained GC "
        "pairs, where there are some, have those that the EMA of a trained model predicts at the largest noise. The "
        "first 32 of the paths are drawn, all are counted.",
    ),
    "theory": Caption(
        "Theorem 1: with more intervals the gap between the losses comes to the theorem's limit (left, its distance "
        "from that), and their gradients come to agree for α = 2 alone (right; where they do, what is "
        "left is sampling error, large for large T). Theorem 2: the discrepancy of generator-augmented pairs falls "
        "faster than that of independent ones. Lemma 1: the slope of the transport cost (points) lies on the lemma's "
        "right side (line).",
        "Quasi-Monte-Carlo for Theorem 1, quadrature for the others, in float64 on a distribution whose velocity and "
        "flow are known; each check that the title counts is in the section on theory, with its tolerance.",
    ),
}  # fmt: skip

FOREST = Caption(
    "Every statistically tested claim as the ratio of the side that it has lower to the other: left of ×1 speaks for "
    "the claim. A slope is drawn as the ratio that it makes per e-fold of the noise, what lies beyond the axis as an "
    "arrow. Intervals are of each comparison alone, and a single pair of runs has none; verdicts account for all tests "
    "of a data set.",
    "From the records of results/claims.json, by gcflow claims.",
)  # fmt: skip
