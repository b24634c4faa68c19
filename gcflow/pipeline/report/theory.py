"""The checks of the theory: a line for each statement of the paper, then every check of each data set."""

from collections.abc import Iterable
from typing import Any, NamedTuple

from markupsafe import Markup

from gcflow.pipeline.folders import theory_path
from gcflow.pipeline.params import Params
from gcflow.pipeline.report.recorded import recorded
from gcflow.pipeline.report.typeset import aligned, formula
from gcflow.readable import number

SAYS = {
    "Theorem 1": "N^α (L_CT − L_CD) comes to C T^(α−1) R(θ); the gradients to each other for α = 2 alone",
    "Lemma 1": "The transport cost falls with the slope c′(t) = −2 E⟨∂f/∂x w, w⟩",
    "Theorem 2": "R̃_GC lies below R̃_IC, and falls as t^−4 where that falls as t^−2",
    "Figure 1": "The generator-augmented flow is straighter than the PF-ODE, and its paths cross less",
}


class Checks(NamedTuple):
    """The checks of a data set as rows of a table. held: how many of them."""

    dataset: str
    held: int
    rows: list[list[Any]]
    checks: list[dict[str, Any]]


class Statement(NamedTuple):
    """What the checks of a statement came to. share: see `share_of_tolerance`, the largest; where: its data set."""

    name: str
    says: Markup
    held: int
    total: int
    share: float
    where: str


def share_of_tolerance(check: dict[str, Any]) -> float:
    """A deviation over its tolerance; of an inequality that holds the tolerance over the margin. 1 is too much."""
    gap, tolerance = abs(check["measured"] - check["expected"]), check["tolerance"]
    over, under = (gap, tolerance) if check["relation"] == "=" else (tolerance, gap)
    return float(over / under) if under else float(not check["holds"])


def read_checks(params: Params, dataset: str) -> Checks | None:
    """The checks of a data set; None if there are none."""
    with recorded(theory_path(params.root, dataset)) as document:
        if document is None:
            return None
        checks = document["checks"]
        relations = ["" if check["relation"] == "=" else f"{check['relation']} " for check in checks]
        columns = [
            [check["statement"] for check in checks],
            [formula(check["name"]) for check in checks],
            aligned([number(check["measured"], 6) for check in checks]),
            [relation + number(check["expected"], 6) for relation, check in zip(relations, checks, strict=True)],
            [number(check["measured"] - check["expected"], 2) for check in checks],
            [number(check["tolerance"], 2) for check in checks],
            [
                Markup('<b class="supported">✓ holds</b>' if check["holds"] else '<b class="contradicted">✗ fails</b>')
                for check in checks
            ],
            [check["reason"] for check in checks],
        ]
        held = sum(bool(check["holds"]) for check in checks)
        return Checks(dataset, held, list(map(list, zip(*columns, strict=True))), checks)


def statements(found: Iterable[Checks]) -> list[Statement]:
    """A line for each statement, over all data sets."""
    of = [(check["statement"], part.dataset, check) for part in found for check in part.checks]
    lines = []
    for name in dict.fromkeys(name for name, _, _ in of):
        own = [(dataset, check) for statement, dataset, check in of if statement == name]
        where, worst = max(own, key=lambda pair: share_of_tolerance(pair[1]))
        held = sum(bool(check["holds"]) for _, check in own)
        lines.append(Statement(name, formula(SAYS.get(name, "")), held, len(own), share_of_tolerance(worst), where))
    return lines
