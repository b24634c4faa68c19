"""dvc.yaml: the graph of stages as DVC has it. What a run is made of stands once, `foreach` run of workflow/runs.yaml.

Written, not by hand: DVC cannot put a list into `deps`, and tables, figures and the ledger read as many files as they
show runs. A folder of all evaluations instead would make `dvc repro` of a table train every run of its data set.
"""

from pathlib import Path
from textwrap import indent
from typing import Any

import yaml

from gcflow.files import write_text
from gcflow.pipeline.dvc_views import plot_definitions
from gcflow.pipeline.folders import run_folder
from gcflow.pipeline.params import Params
from gcflow.pipeline.stages import KINDS, OF_RUNS, Stage, Stages

RUNS = "workflow/runs.yaml"
HEADER = "# Written from params.yaml by `gcflow stages --scale {scale}`; change params.yaml and run it again.\n"
ITEM = {name: f"${{item.{name}}}" for name in ("dataset", "method", "seed")}


def versioned(params: Params, scale: str) -> list[Stage]:
    """The stages of a scale, and those of seeds.yaml's runs that are here or recorded: `all` does without others."""
    stages, lock = Stages(params, scale), params.root / "dvc.lock"
    # Looked for as text, since both sides of a conflict count.
    recorded = set(lock.read_text("utf-8").splitlines()) if lock.exists() else set()
    return [*stages, *(s for s in stages.added if f"  {s.name}:" in recorded or (params.root / s.outs[0]).exists())]


def dvc_documents(params: Params, scale: str) -> dict[str, str]:
    """The texts of dvc.yaml and of the runs that it is about, by path, for the stages of a scale."""
    stages = versioned(params, scale)
    groups = {kind: [stage for stage in stages if stage.kind == kind] for kind in OF_RUNS}
    groups = {kind: group for kind, group in groups.items() if group}
    grid = {kind: _template(kind, _slots(group)) for kind, group in groups.items()}
    items = {kind: dict(_item(params, stage, _slots(group)) for stage in group) for kind, group in groups.items()}
    single = {stage.name: _single(params, stage, stages) for stage in stages if stage.kind not in OF_RUNS}
    plots = plot_definitions(params, params.at_scale(scale))
    document = [
        _yaml({"vars": [RUNS], "stages": grid}),
        indent(_yaml(single, compact=True), "  "),
        _yaml({"plots": [f"${{plots[{number}]}}" for number in range(len(plots))]}),
    ]
    if artifacts := _artifacts(params, params.at_scale(scale)):
        document.append(_yaml({"artifacts": artifacts}))
    return {
        "dvc.yaml": HEADER.format(scale=scale) + "\n".join(document),
        RUNS: HEADER.format(scale=scale) + _yaml(items | {"plots": plots}, compact=True),
    }


def write_dvc_yaml(params: Params, scale: str) -> bool:
    """Writes the documents whose content differs; returns whether any did."""
    changed = False
    for name, text in dvc_documents(params, scale).items():
        path = params.root / name
        if not path.exists() or path.read_text("utf-8") != text:
            path.parent.mkdir(exist_ok=True)
            write_text(path, text)
            changed = True
    return changed


def _yaml(document: Any, compact: bool = False) -> str:
    style = None if compact else False
    return yaml.safe_dump(document, sort_keys=False, width=112, default_flow_style=style, allow_unicode=True)


def _slots(group: list[Stage]) -> int:
    """How many files the stages of a kind read at most that their run does not tell."""
    return max(len(stage.reads) for stage in group)


def _template(kind: str, slots: int) -> dict[str, Any]:
    common = KINDS[kind]
    outs = [path.format(**ITEM) for path in common.outs]
    metrics = [path for path in outs if path.endswith("summary.json")]
    parts = {
        "cmd": f"gcflow {kind} {'/'.join(ITEM.values())}",
        "deps": [*(path.format(**ITEM) for path in common.deps), *(f"${{item.read{slot}}}" for slot in range(slots))],
        "params": [key.format(**ITEM | {"method": "${item.entry}"}) for key in common.keys],
        "outs": [path for path in outs if path not in metrics],
        "metrics": metrics,
    }
    return {"foreach": f"${{{kind}}}", "do": {name: part for name, part in parts.items() if part}}


def _item(params: Params, stage: Stage, slots: int) -> tuple[str, dict[str, Any]]:
    """A run as `foreach` has it. What reads less than others names a file again: `deps` has no optional entries.

    entry: under which its method stands in the file, of a swept one the sweep's.
    """
    assert stage.run is not None
    reads = (*stage.reads, *[stage.deps[0]] * (slots - len(stage.reads)))
    entry = params.written(f"datasets.{stage.run.dataset}.methods.{stage.run.method}").split(".")[3]
    item = vars(stage.run) | {"entry": entry} | {f"read{slot}": read for slot, read in enumerate(reads)}
    return stage.name.partition("@")[2], item


def _single(params: Params, stage: Stage, stages: list[Stage]) -> dict[str, Any]:
    deps = _folders(stage, stages) if stage.kind == "report" else stage.deps
    keys = dict.fromkeys(map(params.written, stage.keys))
    parts = {"deps": list(deps), "params": list(keys), "outs": list(stage.outs)}
    return {"cmd": stage.command} | {name: part for name, part in parts.items() if part}


def _artifacts(params: Params, datasets: list[str]) -> dict[str, Any]:
    """What `dvc artifacts get` finds by the name of a data set: its first table's last method, first seed."""
    found = {}
    for dataset in datasets:
        entry = params.dataset(dataset)
        last = [table.methods[-1] for table in entry.tables.values()][:1]
        for run in [run for run in params.runs(dataset) if run.method in last][:1]:
            found[dataset] = {
                "path": str(run_folder(Path(), run) / "weights.safetensors"),
                "type": "model",
                "desc": f"{entry.runs[run.method].label} on {dataset}, seed {run.seed}",
                "labels": [entry.methods[run.method].objective.kind, run.dataset, run.method],
            }
    return found


def _folders(report: Stage, stages: list[Stage]) -> list[str]:
    """What the report reads, of runs, tables and figures by their folders."""
    folders = {}
    for stage in stages:
        for out in stage.outs:
            if stage.run:
                folders[out] = str(run_folder(Path(), stage.run))
            elif stage.kind in ("table", "figure"):
                folders[out] = str(Path(out).parent)
    return list(dict.fromkeys(folders.get(dep, dep) for dep in report.deps))
