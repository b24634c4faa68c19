"""The ledger of claims, and the checks of the theory, as the page shows them."""

import math
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from gcflow.files import expected_form
from gcflow.pipeline.folders import claims_path, theory_path
from gcflow.pipeline.ledger.legend import LIMITS, MARKS, VERDICTS
from gcflow.pipeline.report.images import Picture, svg_picture
from gcflow.pipeline.report.records import Records
from gcflow.pipeline.report.tables import Cell, Column, SortableTable
from gcflow.readable import number


class Bar(NamedTuple):
    """An effect in per cent of a bar's width. low, high: None without an interval. beyond: it leaves the bar."""

    effect: float
    low: float | None
    high: float | None
    beyond: bool


class Claim(NamedTuple):
    """A tested claim. order: of its verdict. bar: None for a statement of theory. runs: of which it reads."""

    id: str
    verdict: str
    mark: str
    order: int
    claim: str
    place: str
    dataset: str
    test: str
    shown: str
    sort: float | None
    bar: Bar | None
    text: str
    files: list[str]
    runs: list[str]


class Ledger(NamedTuple):
    """All claims. counts: of verdicts per data set. untested: data set to (claim, reason)."""

    claims: list[Claim]
    counts: dict[str, dict[str, int]]
    untested: dict[str, list[tuple[str, str]]]
    correction: str
    confidence: float
    forest: Picture | None

    @property
    def total(self) -> dict[str, int]:
        """Verdict to how often it was given."""
        return {verdict: sum(counts[verdict] for counts in self.counts.values()) for verdict in VERDICTS}


class TheoryChecks(NamedTuple):
    """The checks of a data set."""

    dataset: str
    table: SortableTable
    held: int
    total: int
    path: str


def ledger(records: Records) -> Ledger | None:
    """The ledger of claims; None where there is none."""
    name = claims_path(Path(), "json")
    document = records.json(name)
    if document is None:
        return None
    forest = records.path(claims_path(Path(), "svg"))
    with expected_form(records.root / name):
        claims = [_claim(record) for record in document["records"]]
        untested: dict[str, list[tuple[str, str]]] = {}
        for entry in document["not_tested"]:
            untested.setdefault(entry["dataset"], []).append((entry["name"], entry["reason"]))
        counted = {dataset: Counter(c.verdict for c in claims if c.dataset == dataset) for dataset in document["tests"]}
        counted |= {c.dataset: Counter(o.verdict for o in claims if o.dataset == c.dataset) for c in claims}
        return Ledger(
            claims,
            {dataset: {verdict: found[verdict] for verdict in VERDICTS} for dataset, found in counted.items()},
            untested,
            document["correction"],
            document["confidence"],
            None if forest is None else svg_picture(forest),
        )


def _claim(record: dict[str, Any]) -> Claim:
    verdict = record["verdict"]
    effect = _ratio(record.get("ratio"), record.get("effect"))
    return Claim(
        id=f"/claims/{record['dataset']}/{record['name']}",
        verdict=verdict,
        mark=MARKS[verdict],
        order=VERDICTS.index(verdict),
        claim=record["claim"],
        place=record["place"],
        dataset=record["dataset"],
        test=record["test"]["words"],
        shown=record["shown"],
        sort=effect,
        bar=None if effect is None else _bar(effect, record),
        text=record["text"],
        files=record["files"],
        runs=list(dict.fromkeys(record.get("runs", []))),
    )


def _ratio(ratio: float | None, effect: float | None) -> float | None:
    """Slopes have no ratio; they are drawn as the one that they make per e-fold of the noise."""
    return ratio if ratio is not None or effect is None else math.exp(effect)


def _bar(effect: float, record: dict[str, Any]) -> Bar:
    ratios, ends = record["ratio_interval"], record["interval"]
    low, high = (_ratio(ratio, end) for ratio, end in zip(ratios, ends, strict=True))
    within = all(LIMITS[0] <= value <= LIMITS[1] for value in (effect, low, high) if value is not None)
    return Bar(_place(effect), None if low is None else _place(low), None if high is None else _place(high), not within)


def _place(ratio: float) -> float:
    low, high = map(math.log, LIMITS)
    value = math.log(ratio) if ratio > 0 else low
    return round(100 * (min(max(value, low), high) - low) / (high - low), 1)


def theory_checks(records: Records, dataset: str) -> TheoryChecks | None:
    """The checks of a data set's theory.json; None where it has none."""
    name = theory_path(Path(), dataset)
    document = records.json(name)
    if document is None:
        return None
    columns = [
        Column("statement", numeric=False),
        Column("check", numeric=False, prose=True),
        Column("measured"),
        Column("expected"),
        Column("tolerance"),
        Column("holds", numeric=False),
        Column("where the tolerance comes from", numeric=False, prose=True),
    ]
    with expected_form(records.root / name):
        rows = [_check(check) for check in document["checks"]]
        held = sum(bool(check["holds"]) for check in document["checks"])
    caption = f"{dataset}: {held} of {len(rows)} checks hold"
    return TheoryChecks(dataset, SortableTable(caption, columns, rows), held, len(rows), str(name))


def _check(check: dict[str, Any]) -> list[Cell]:
    relation = "" if check["relation"] == "=" else f"{check['relation']} "
    holds = bool(check["holds"])
    return [
        Cell(check["statement"], check["statement"]),
        Cell(check["name"], check["name"]),
        Cell(number(check["measured"], 6), check["measured"]),
        Cell(f"{relation}{number(check['expected'], 6)}", check["expected"]),
        Cell(number(check["tolerance"], 2), check["tolerance"]),
        Cell("✓ holds" if holds else "✗ fails", int(holds), kind="supported" if holds else "contradicted"),
        Cell(check["reason"], check["reason"]),
    ]
