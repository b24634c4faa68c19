"""The ledger of claims as Markdown and as a page of its own."""

from collections.abc import Iterable
from html import escape

from gcflow.pipeline.ledger.legend import MARKS
from gcflow.pipeline.ledger.plans import Plan
from gcflow.pipeline.ledger.verdicts import Judgement
from gcflow.pipeline.ledger.wording import Row
from gcflow.pipeline.markdown import escaped, table

TITLE = "The paper's claims, tested"
UNTESTED = "–"
LEGEND = f"{', '.join(f'{mark} {verdict}' for verdict, mark in MARKS.items())}, {UNTESTED} not tested."
HEADS = ["claim", "place", "test", "effect", "verdict"]
STYLE = """
:root{color-scheme:light dark;--ink:#1d1d1f;--soft:#5c5c66;--line:#d9d9de;--page:#fff;
--supported:#00714f;--contradicted:#b04a00;--undecided:#5c5c66}
@media(prefers-color-scheme:dark){:root{--ink:#ececf0;--soft:#a6a6b2;--line:#3a3a42;--page:#17171a;
--supported:#3ecf9f;--contradicted:#ff9a55;--undecided:#a6a6b2}}
body{font:15px/1.5 system-ui,sans-serif;margin:0 auto;padding:1rem;max-width:68rem;
color:var(--ink);background:var(--page)}
h1{font-size:1.4rem}h2{font-size:1.15rem;margin-top:2.2rem}p{max-width:46rem}
table{border-collapse:collapse;width:100%}
th,td{padding:.45rem .8rem .45rem 0;text-align:left;vertical-align:top;border-bottom:1px solid var(--line)}
th{color:var(--soft);font-weight:600}small,details,.none{color:var(--soft)}summary{cursor:pointer}
small{display:block}details p{margin:.4rem 0;overflow-wrap:anywhere}
.verdict,.overview span{font-weight:600;white-space:nowrap}
.supported{color:var(--supported)}.contradicted{color:var(--contradicted)}.undecided{color:var(--undecided)}
.findings tbody tr:not(.how) td{border:0;padding-bottom:0}.findings td:nth-child(3){min-width:9.5rem}
.findings .how td{padding-top:0}
@media(max-width:44rem){.findings thead{display:none}.findings tr,.findings td{display:block}
.findings tbody td,.findings tbody tr:not(.how) td{padding:.1rem 0}.findings tr:not(.how){padding-top:.6rem}
.findings .how td{padding-bottom:.6rem}
.overview th:not(:first-child){writing-mode:vertical-rl;padding:.45rem .2rem .45rem 0}}
"""


def introduction(judgement: Judgement) -> str:
    """The ledger's guide for its reader."""
    confidence = f"{100 * judgement.settings.confidence:g} %"
    risk = f"{1 - judgement.settings.confidence:.2g}"
    return (
        "Each claim is a test that params.yaml writes down, the same on every data set. "
        "Effects set the side that a claim has lower against the other: a negative one, or a factor below 1, speaks "
        "for it. Distances are of samples from EMA weights with the fewest network evaluations. Runs are compared "
        "in pairs of the same seed, transport costs in pairs of the same data and noise (two-sided paired t tests), "
        "and the cost of GC with that of OT in batches as independent means (Welch's t test). A verdict needs "
        f"p < {risk} after Holm's correction for all statistical tests of a data set, so that the chance "
        f"of any wrong verdict there is about {risk} at most; {confidence} intervals are of each comparison alone. "
        "Undecided speaks neither for a claim nor against it. Statements of theory are checked numerically and have no "
        "p value."
    )


def markdown(judgement: Judgement, words: list[Row]) -> str:
    """claims.md: an overview, then for each data set a table and how each verdict came about."""
    parts = [f"# {TITLE}", introduction(judgement), table(_overview(judgement, words)), LEGEND]
    for dataset in judgement.datasets:
        here = [row for row in words if row.dataset == dataset]
        parts.append(f"## {dataset}")
        if here:
            parts.append(table([HEADS, *([row.claim, row.place, row.test, row.effect, row.verdict] for row in here)]))
        parts += [escaped(f"**{row.claim}** {row.decided} Data: {row.data}") for row in here]
        missing = [escaped(f"- {plan.claim.claim} ({plan.reason})") for plan in _untested(judgement, dataset)]
        if missing:
            parts += ["Not tested here:", "\n".join(missing)]
    return "\n\n".join(parts) + "\n"


def html(judgement: Judgement, words: list[Row]) -> str:
    """claims.html: the same as a page that asks for nothing else."""
    heads, *lines = _overview(judgement, words)
    marked = (_line(_claim(claim, place), *map(_mark, marks)) for claim, place, *marks in lines)
    parts = [
        f"<h1>{TITLE}</h1><p>{escape(introduction(judgement))}</p>",
        _table("overview", [heads[0], *heads[2:]], marked),
        f"<p><small>{escape(LEGEND)}</small></p>",
    ]
    for dataset in judgement.datasets:
        here = [row for row in words if row.dataset == dataset]
        parts.append(f"<h2>{escape(dataset)}</h2>")
        if here:
            parts.append(_table("findings", ["claim", "test", "effect", "verdict"], map(_finding, here)))
        missing = [f"<li>{escape(f'{p.claim.claim} ({p.reason})')}</li>" for p in _untested(judgement, dataset)]
        if missing:
            summary = f"Not tested here: {len(missing)}"
            parts.append(f"<details><summary>{summary}</summary><ul>{''.join(missing)}</ul></details>")
    head = (
        "<meta charset='utf-8'><meta name='viewport' content='width=device-width,initial-scale=1'>"
        f"<title>{TITLE}</title><style>{STYLE}</style>"
    )
    body = "\n".join(parts)
    return f"<!doctype html><html lang='en'><head>{head}</head><body>\n{body}\n</body></html>\n"


def _overview(judgement: Judgement, words: list[Row]) -> list[list[str]]:
    """A line of heads, then claim, place and a mark per data set for each claim of params.yaml."""
    marks = {(row.name, row.dataset): MARKS[row.verdict] for row in words}
    lines = [
        [entry.claim, entry.place, *(marks.get((name, dataset), UNTESTED) for dataset in judgement.datasets)]
        for name, entry in judgement.settings.entries.items()
    ]
    return [["claim", "place", *judgement.datasets], *lines]


def _untested(judgement: Judgement, dataset: str) -> list[Plan]:
    return [plan for plan in judgement.untested if plan.dataset == dataset]


def _table(kind: str, heads: list[str], lines: Iterable[str]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    body = "\n".join(lines)
    return f"<table class='{kind}'><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table>"


def _line(*cells: str) -> str:
    return f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def _claim(claim: str, place: str) -> str:
    return f"{escape(claim)}<small>{escape(place)}</small>"


def _finding(row: Row) -> str:
    verdict = f"<span class='verdict {row.verdict}'>{MARKS[row.verdict]} {row.verdict}</span>"
    how = f"<p>{escape(row.decided)}</p><p>Data: {escape(row.data)}</p>"
    details = f"<details><summary>how it was decided</summary>{how}</details>"
    cells = _line(_claim(row.claim, row.place), escape(row.test), escape(row.effect), verdict)
    return f"{cells}<tr class='how'><td colspan='4'>{details}</td></tr>"


def _mark(mark: str) -> str:
    verdict = next((verdict for verdict, known in MARKS.items() if known == mark), "none")
    return f"<span class='{verdict}' title='{'not tested' if verdict == 'none' else verdict}'>{mark}</span>"
