"""params.yaml with the target in it, dvc.yaml, and Snakemake."""

from collections.abc import Iterator
from importlib import import_module, metadata
from pathlib import Path
from typing import TYPE_CHECKING

from gcflow.errors import GcflowError
from gcflow.pipeline.doctor.check import Check, Request, Target, unexpected

if TYPE_CHECKING:
    from gcflow.pipeline.params import Params
    from gcflow.pipeline.stages import Stage, Stages


def _stages_of(stages: "Stages", target: str | None) -> "list[Stage] | None":
    """The stages that a target names; None if nothing has this name."""
    return list(stages) if target is None else stages.named(target)


def resolve(request: Request, params: "Params") -> Target:
    """The target with all that it depends on.

    Raises:
        GcflowError: nothing has its name, at this scale.
    """
    from gcflow.pipeline.schema import SCALES
    from gcflow.pipeline.stages import Stages

    stages = Stages(params, request.scale)
    asked = _stages_of(stages, request.target)
    if asked is None:
        elsewhere = [scale for scale in SCALES if _stages_of(Stages(params, scale), request.target) is not None]
        known = f"known: {', '.join((*stages.views(), *stages.datasets))}, and the stages of dvc.yaml"
        hint = f"give --scale {elsewhere[0]}" if elsewhere else known
        raise GcflowError(f"target {request.target!r}: there is no such thing at scale {request.scale}; {hint}")
    # A view may be answered by data sets of another scale.
    every = Stages(params, "all")
    makers = {out: stage for stage in every for out in stage.outs}
    needed: set[Stage] = set()
    while asked:
        stage = asked.pop()
        if stage not in needed:
            needed.add(stage)
            asked += [makers[dep] for dep in stage.deps if dep in makers]
    return Target(request, params, every, frozenset(needed))


def check_params(request: Request) -> "tuple[list[Check], Params | None]":
    """params.yaml, with a line per mistake; None if it has any."""
    mend = "mend this key; gcflow/pipeline/schema.py says what each means"
    try:
        from gcflow.pipeline.params import Params

        params = Params(request.path)
    except GcflowError as error:
        name = request.path.name
        lines = [line.removeprefix(f"{request.path}: ") for line in str(error).splitlines()]
        if not request.path.exists():
            return [Check(name, "missing", str(request.path), "run in the project's folder, or give --params")], None
        return [Check(name, "broken", line, mend) for line in lines], None
    except Exception as error:
        return [unexpected(request.path.name, error, needed=True)], None
    runs = sum(1 for _ in params.runs())
    return [Check(request.path.name, "OK", f"valid: {len(params.datasets)} data sets, {runs} runs")], params


def check_dvc_yaml(params: "Params", scale: str) -> Iterator[Check]:
    """dvc.yaml against params.yaml. Snakemake does without it."""
    from gcflow.pipeline.stages import dvc_document

    path, mend = params.root / "dvc.yaml", f"gcflow stages --scale {scale}"
    if not path.exists():
        yield Check("dvc.yaml", "missing", str(path), mend, needed=False)
        return
    text = path.read_text(errors="replace")
    fits = next((known for known in dict.fromkeys((scale, "all")) if text == dvc_document(params, known)), None)
    if fits:
        yield Check("dvc.yaml", "OK", f"up to date for scale {fits}", needed=False)
    else:
        yield Check("dvc.yaml", "warning", f"is not what {params.path.name} gives at scale {scale}", mend, needed=False)


def check_snakemake(root: Path) -> Iterator[Check]:
    """Snakemake, and what it reads."""
    import_module("snakemake")
    if (root / "Snakefile").exists():
        yield Check("Snakemake", "OK", f"{metadata.version('snakemake')}, Snakefile")
    else:
        yield Check("Snakemake", "missing", str(root / "Snakefile"), "run in a checkout of the repository")
