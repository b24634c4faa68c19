"""`gcflow publish` without a run: what DVC has recorded of a scale, as a Workflow Run RO-Crate with a page for people.

Nothing stands there that no file says: a stage's command, parameters, inputs and outputs are those of dvc.lock, as long
as DVC finds them unchanged; times are those of the runs' logs and of Snakemake's benchmarks.
"""

import csv
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from itertools import groupby
from mimetypes import guess_type
from pathlib import Path
from typing import Any
from urllib.parse import quote

from rocrate.model.contextentity import ContextEntity
from rocrate.rocrate import ROCrate

from gcflow.errors import GcflowError
from gcflow.files import expected_form, sha256_of, write_text
from gcflow.pipeline import markdown
from gcflow.pipeline.dvc_stages import versioned, write_dvc_yaml
from gcflow.pipeline.folders import data_folder, results_folder, run_folder
from gcflow.pipeline.graph import Graph
from gcflow.pipeline.job import commit_words
from gcflow.pipeline.params import Params, Run
from gcflow.pipeline.progress import say
from gcflow.pipeline.report.recorded import recorded
from gcflow.pipeline.report.runs import settings
from gcflow.pipeline.stages import OF_SCALE, Stage
from gcflow.pipeline.versions import LOCK, Versions, check_repository
from gcflow.pipeline.yaml_files import read_yaml
from gcflow.readable import value
from gcflow.tools.publish import new_folder, refusal

PROFILES = {
    "https://w3id.org/ro/wfrun/process/0.5": "Process Run Crate",
    "https://w3id.org/ro/wfrun/workflow/0.5": "Workflow Run Crate",
    "https://w3id.org/workflowhub/workflow-ro-crate/1.0": "Workflow RO-Crate",
}
# RO-Crate 1.1 has no name for it.
TERMS = {"sha256": "https://w3id.org/ro/terms/workflow-run#sha256"}
WORKFLOW, CITATION, PAGE_NAME = "Snakefile", "CITATION.cff", "README.md"
BESIDE = (CITATION, "LICENSE", "params.yaml", "seeds.yaml", "dvc.yaml", LOCK, "requirements.lock", "workflow")
ARRAYS = (".npy", ".safetensors")
# Stages that hold a GPU where there is one.
ON_DEVICE = ("features", "reference", "train", "evaluate", "discrepancy", "transport")
PAGE = """\
# {title}: scale {scale}

{abstract}

`CITATION.cff` says what to cite; `ro-crate-metadata.json`, a Workflow Run RO-Crate, which stage made which file, from
which files, by which command and parameters, each file with its sha256. Licence: {license}.

## What was run

{code}

{runs}

## Numbers and their error bars

{tables}

## Time and energy

{hours}

A job that several tables need is counted in each. Device-hours: for how long jobs that use a network had a GPU, or
where there is none a processor, times the processes of a run; of training by its log, of others by Snakemake's
benchmarks. Core-hours: time of processors, by these benchmarks; of a job that was interrupted, since its last start.
{energy}

## Data

{data}

Arrays (`.npy`, `.safetensors`), except for final weights, are not in here; the metadata have their sha256.

## What was not run

{missing}
"""


def publish_scale(params: Params, scale: str, out: Path, watts: dict[str, float], despite_terms: bool = False) -> None:
    """Writes the stages of a scale that are as dvc.lock has them to a new folder.

    Args:
        params: the grid.
        scale: whose stages.
        out: a new folder.
        watts: nominal power of a `device` that trains and of a `core`, for the energy; none is said without.
        despite_terms: hand on weights although the terms of their data set forbid it; else they stay out.

    Raises:
        GcflowError: nothing is recorded, CITATION.cff is missing or another form, or `out` is there already.
    """
    check_repository(params.root)
    write_dvc_yaml(params, scale)
    stages = versioned(params, scale)
    versions = Versions(params, stages)
    made = [stage for stage in stages if stage.name not in versions.changed]
    if not made:
        raise GcflowError(f"nothing to publish: {LOCK} has no stage of scale {scale} as it lies here; gcflow record")
    withheld = [name for name in params.at_scale(scale) if refusal(params, name) and not despite_terms]
    with new_folder(out) as place:
        found = _Scale(params, scale, made, withheld)
        write_text(place / PAGE_NAME, found.page([stage for stage in stages if stage not in made], watts))
        found.crate(place / PAGE_NAME, versions.locked).write(place)
    say(f"{out}: {len(made)} of {len(stages)} stages of scale {scale}")
    if withheld:
        say(f"  without weights of {', '.join(withheld)}: terms of the data; --despite-terms if you may publish them")


def _facts(path: Path, name: str) -> dict[str, str]:
    media = guess_type(name)[0] or "application/octet-stream"
    return {"name": name, "contentSize": str(path.stat().st_size), "encodingFormat": media, "sha256": sha256_of(path)}


def _below(root: Path, name: str) -> list[str]:
    paths = [path for path in sorted((root / name).rglob("[!.]*")) if path.is_file() and path.suffix != ".pyc"]
    return (
        [name] if (root / name).is_file() else [f"{name}/{path.relative_to(root / name).as_posix()}" for path in paths]
    )


def _recorded(path: Path) -> Any:
    with recorded(path) as content:
        return content


class _Scale:
    """What is published. made: stages. withheld: data sets without weights. jobs, logs: what each run recorded."""

    def __init__(self, params: Params, scale: str, made: list[Stage], withheld: list[str]) -> None:
        self.params, self.root, self.scale, self.made, self.withheld = params, params.root, scale, made, withheld
        self.datasets = [name for name in params.at_scale(scale) if any(stage.dataset == name for stage in made)]
        folders = {s.run: run_folder(self.root, s.run) for s in made if s.kind == "train" and s.run}
        self.jobs = {run: _recorded(folder / "jobs.json") for run, folder in folders.items()}
        self.logs = {run: _recorded(folder / "metrics.jsonl") for run, folder in folders.items()}
        citation = read_yaml(self.root / CITATION)
        with expected_form(self.root / CITATION, "the Citation File Format 1.2"):
            self.about = {key: str(citation[key]) for key in ("title", "abstract", "license")}
            self.authors = {
                one.get("name") or f"{one['given-names']} {one['family-names']}": one for one in citation["authors"]
            }
        codes = {(job["gcflow"], job["commit"], job["dirty"]) for jobs in self.jobs.values() for job in jobs}
        self.code = ", ".join(
            f"{version} (commit {commit_words(commit, dirty)})" for version, commit, dirty in sorted(codes, key=str)
        )

    def crate(self, page: Path, locked: dict[str, Any]) -> ROCrate:
        """All stages and files. page: README.md. locked: what dvc.lock has of the stages."""
        self.graph = ROCrate(version="1.1")
        self.graph.metadata.extra_terms = TERMS
        self.graph.name, self.graph.description = f"{self.about['title']}: scale {self.scale}", self.about["abstract"]
        licence = f"https://spdx.org/licenses/{self.about['license']}"
        self.graph.license = self._thing(licence, "CreativeWork", self.about["license"])
        self.graph.root_dataset["author"] = [
            self._thing(f"#{quote(name)}", "Organization" if "name" in one else "Person", name)
            for name, one in self.authors.items()
        ]
        self.graph.datePublished = datetime.now(UTC).date()
        self.graph.root_dataset["conformsTo"] = [
            self._thing(url, "CreativeWork", name, version=url.rpartition("/")[2]) for url, name in PROFILES.items()
        ]
        self.graph.add_file(page, page.name, properties=_facts(page, page.name))
        facts = _facts(source := self.root / WORKFLOW, WORKFLOW)
        workflow = self.graph.add_workflow(source, WORKFLOW, properties=facts, main=True, lang="snakemake")
        tool = self._thing("#gcflow", "SoftwareApplication", "gcflow", softwareVersion=self.code)
        actions = [self._action(stage, tool, locked[stage.name]) for stage in self.made]
        used = [*self._files(BESIDE), *(self._dataset(name) for name in self.datasets)]
        shown = [out for stage in self.made if stage.kind in ("table", "figure", *OF_SCALE) for out in stage.outs]
        words = {"name": f"scale {self.scale}", "description": f"snakemake --config scale={self.scale} all"}
        run = self.graph.add_action(workflow, "#run", used, self._files(shown), words)
        self.graph.root_dataset["mentions"] = [run, *actions]
        return self.graph

    def _thing(self, identifier: str, kind: str, name: str, **facts: Any) -> Any:
        """An entity that is no file of the crate."""
        known = self.graph.get(identifier)
        return known or self.graph.add(ContextEntity(self.graph, identifier, {"@type": kind, "name": name, **facts}))

    def _files(self, names: Iterable[str]) -> list[Any]:
        """Files, and those of folders, by their paths from the project's root."""
        return [self._file(file) for file in dict.fromkeys(file for name in names for file in _below(self.root, name))]

    def _file(self, name: str) -> Any:
        path, parts = self.root / name, Path(name).parts
        own = path.suffix not in ARRAYS or (path.name == "weights.safetensors" and parts[1] not in self.withheld)
        inside = own and ".." not in parts and not Path(name).is_absolute()
        identifier = quote(name if inside else f"#{name}", safe="#/")
        if known := self.graph.get(identifier):
            return known
        if inside:
            return self.graph.add_file(path, name, properties=_facts(path, name))
        return self._thing(identifier, "File", **_facts(path, name))

    def _dataset(self, name: str) -> Any:
        terms, files = self.params.dataset(name).data.terms, self._files([f"data/{name}"])
        source = _recorded(data_folder(self.root, name) / "manifest.json")["source"]
        licence = self._thing(terms.url, "CreativeWork", terms.licence) if terms.url else terms.licence
        return self._thing(f"#data/{name}", "Dataset", name, description=source, license=licence, hasPart=files)

    def _action(self, stage: Stage, tool: Any, record: dict[str, Any]) -> Any:
        """One stage, with the parameters that dvc.lock has of it."""
        keys = {key: found for file in record.get("params", {}).values() for key, found in file.items()}
        settings = [self._thing(f"#{key}", "PropertyValue", key, value=value(found)) for key, found in keys.items()]
        words = {"name": stage.name, "description": record["cmd"]}
        if stage.kind == "train" and stage.run:
            ended = datetime.fromtimestamp(self.logs[stage.run][-1]["time"], UTC).isoformat(timespec="seconds")
            words |= {"startTime": self.jobs[stage.run][0]["begun"], "endTime": ended}
        used = [*self._files(stage.deps), *settings]
        return self.graph.add_action(tool, f"#stage/{stage.name}", used, self._files(stage.outs), words)

    def page(self, left: list[Stage], watts: dict[str, float]) -> str:
        """README.md. left: stages that are not published."""
        given = ", ".join(f"{each:g} W per {name}-hour" for name, each in watts.items())
        missing = [
            f"- {kind}: {', '.join(stage.name.removeprefix(kind)[1:] or stage.name for stage in group)}"
            for kind, group in groupby(sorted(left, key=lambda stage: stage.kind), lambda stage: stage.kind)
        ]
        others = [name for name in self.params.datasets if name not in self.params.at_scale(self.scale)]
        missing += [f"- data sets of other scales: {', '.join(others)}"] if others else []
        terms = {name: self.params.dataset(name).data.terms for name in self.datasets}
        data = [
            [name, f"{each.licence} {each.url}".strip(), "not in here" if name in self.withheld else "in here"]
            for name, each in terms.items()
        ]
        places = {f"torch {job['torch']} on {job['device']}" for jobs in self.jobs.values() for job in jobs}
        tables = [next(out for out in s.outs if out.endswith(".md")) for s in self.made if s.kind == "table"]
        return PAGE.format(
            **{key: markdown.escaped(text) for key, text in self.about.items()},
            scale=self.scale,
            code=f"gcflow {self.code}; {'; '.join(sorted(places))}." if places else "No run.",
            runs=markdown.table(list(self._runs())) if self.jobs else "",
            tables="\n".join(f"### {name}\n\n{(self.root / name).read_text('utf-8')}" for name in tables)
            or "No table.",
            hours=markdown.table(list(self._hours(watts))),
            energy=f"Energy is not measured: it is time × nominal power, as given: {given}." if given else "",
            data=markdown.table([["Data set", "Terms", "Weights"], *data]),
            missing="\n".join(missing) or "Nothing is missing.",
        )

    def _runs(self) -> Iterator[list[str]]:
        groups = dict[tuple[str, str], list[Run]]()
        for run in self.jobs:
            groups.setdefault((run.dataset, run.method), []).append(run)
        for (dataset, method), runs in groups.items():
            facts = settings(_recorded(run_folder(self.root, runs[0]) / "config.json")["config"])
            if runs[0] == next(iter(self.jobs)):
                yield ["Data set", "Method", "Training seeds", *facts]
            label = self.params.dataset(dataset).runs[method].label
            yield [dataset, f"{label} ({method})", ", ".join(str(run.seed) for run in runs), *facts.values()]

    def _hours(self, watts: dict[str, float]) -> Iterator[list[str]]:
        yield ["Table", "Jobs", "with a time", "Device-hours", "Core-hours", *(["Wh (nominal)"] if watts else [])]
        graph = Graph(self.params, self.scale)
        rows = {f"{s.dataset}, {s.item}": graph.closure([s.name]) for s in self.made if s.kind == "table"}
        for title, names in (rows | {"all": [stage.name for stage in self.made]}).items():
            jobs = [self._seconds(stage) for stage in self.made if stage.name in names]
            device, core = (sum(filter(None, column)) / 3600 for column in zip(*jobs, strict=True))
            energy = [device * watts.get("device", 0) + core * watts.get("core", 0)] if watts else []
            timed = sum(None not in job for job in jobs)
            yield [title, str(len(jobs)), str(timed), *(f"{each:.3g}" for each in (device, core, *energy))]

    def _seconds(self, stage: Stage) -> tuple[float | None, float | None]:
        """Of a device and of cores; None where it is not recorded."""
        item = Path(stage.outs[0]).name if stage.kind == "features" else "" if stage.kind in OF_SCALE else stage.item
        words = (stage.run.method, str(stage.run.seed)) if stage.run else (item,)
        folder = results_folder(self.root, stage.dataset) if stage.dataset else self.root / "results"
        path = folder / "benchmarks" / f"{'-'.join(filter(None, (stage.kind, *words)))}.tsv"
        device = core = None
        if path.exists():
            with path.open(encoding="utf-8", newline="") as file, expected_form(path, "Snakemake"):
                *_, row = csv.DictReader(file, delimiter="\t")
                # Snakemake has no number, but NA or a dash, of what was over before it looked.
                device, core = (float(row[key]) if row[key][:1].isdigit() else None for key in ("s", "cpu_time"))
        if stage.kind == "train" and stage.run:
            device = self._training_seconds(stage.run)
        return device if stage.kind in ON_DEVICE else 0.0, core

    def _training_seconds(self, run: Run) -> float:
        """Time of all steps, by the speed of each logged line, times the processes that shared them."""
        batch = _recorded(run_folder(self.root, run) / "config.json")["config"]["training"]["batch"]
        seconds, before = 0.0, 0
        for line in self.logs[run]:
            processes = next(job["processes"] for job in self.jobs[run][::-1] if job["step"] <= before)
            seconds += (line["step"] - before) * batch / line["images_per_second"] * processes
            before = line["step"]
        return seconds
