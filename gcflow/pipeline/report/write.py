"""`gcflow report`: results/report.html, one file that opens anywhere and asks for nothing."""

from importlib.resources import files
from pathlib import Path
from typing import Any

from gcflow import readable
from gcflow.files import write_text
from gcflow.pipeline.features import KINDS
from gcflow.pipeline.folders import report_path
from gcflow.pipeline.ledger.legend import CAPTION, LIMITS, VERDICTS
from gcflow.pipeline.params import Params
from gcflow.pipeline.progress import say
from gcflow.pipeline.report.claims import ledger, theory_checks
from gcflow.pipeline.report.figures import shown_figures
from gcflow.pipeline.report.jobs import environments
from gcflow.pipeline.report.overview import MadeBy, data_set, hero, runs_table
from gcflow.pipeline.report.records import Records
from gcflow.pipeline.report.run_pages import run_page
from gcflow.pipeline.report.tables import result_tables
from gcflow.pipeline.stages import Stages

SECTIONS = (
    ("/", "Overview"),
    ("/claims", "Claims"),
    ("/tables", "Tables"),
    ("/figures", "Figures"),
    ("/samples", "Samples"),
    ("/theory", "Theory"),
    ("/runs", "Runs"),
    ("/provenance", "Provenance"),
)


def write_report(params: Params, scale: str) -> None:
    """Writes results/report.html on the data sets of a scale; what is not made yet is named there.

    Its bytes are decided by the recorded files alone: nothing of this machine, moment or checkout is in it.

    Raises:
        GcflowError: a recorded file is damaged, or the scale has no data sets.
    """
    content = contents(params, scale)
    path = report_path(params.root)
    write_text(path, _render(content))
    lacking = f", {readable.plural(len(content['pending']), 'stage')} not there yet" if content["pending"] else ""
    say(f"  {path}: {readable.size(path.stat().st_size)}{lacking}")


def contents(params: Params, scale: str) -> dict[str, Any]:
    """Everything that the page shows, by the names that its templates use."""
    stages = Stages(params, scale)
    records = Records(params.root, stages)
    made = [stage for stage in stages if stage.name != "report"]
    pages = {
        dataset: [run_page(params, stages, records, run) for run in params.runs(dataset)] for dataset in stages.datasets
    }
    runs = [page for of_dataset in pages.values() for page in of_dataset]
    ended = [page.ended for page in runs if page.ended is not None]
    begun = [job.begun for page in runs for job in page.jobs]
    checks = [found for dataset in stages.datasets if (found := theory_checks(records, dataset))]
    datasets = [data_set(params, records, dataset, pages[dataset]) for dataset in stages.datasets]
    return {
        "scale": scale,
        "sections": SECTIONS,
        "datasets": datasets,
        "hero": hero(params, datasets),
        "runs": runs,
        "runs_table": runs_table(runs),
        "has_claims": params.claims is not None,
        "ledger": ledger(records),
        "verdicts": VERDICTS,
        "limits": LIMITS,
        "forest_caption": CAPTION,
        "tables": [table for dataset in stages.datasets for table in result_tables(params, records, dataset)],
        "figures": [
            figure for dataset in stages.datasets for figure in shown_figures(params, stages, records, dataset)
        ],
        "checks": checks,
        "environments": environments([page.jobs for page in runs]),
        "unrecorded": sum(page.config is not None and not page.jobs for page in runs),
        "begun": min(begun, default=None),
        "ended": max(ended, default=None),
        "seconds": sum(page.seconds or 0.0 for page in runs),
        "has_fid": any(KINDS[params.dataset(dataset).features.kind].published for dataset in stages.datasets),
        "stages": [MadeBy(stage.name, stage.command, records.outputs(stage)) for stage in made],
        "pending": records.pending(made),
    }


def _render(content: dict[str, Any]) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    folder = Path(str(files("gcflow.pipeline.report"))) / "templates"
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        name: getattr(readable, name) for name in ("number", "duration", "size", "moment", "plural", "value")
    }
    return environment.get_template("page.html").render(content)
