"""`gcflow publish`: the weights of a run as a folder for Hugging Face, from which diffusers samples."""

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from safetensors.torch import save_file

from gcflow.errors import GcflowError
from gcflow.extensions import origins
from gcflow.files import json_document, write_json, write_text
from gcflow.pipeline.features import metric_name
from gcflow.pipeline.folders import run_folder
from gcflow.pipeline.measurements import metrics_path, read_measured
from gcflow.pipeline.params import Params, Run
from gcflow.pipeline.progress import say
from gcflow.weights import is_denoiser, load_model

# Copied into the folder, where diffusers looks for them.
PIPELINE, MODEL = "pipeline.py", "gcflow_model.py"
CODE = Path(__file__).parent / "diffusers"
CARD = """---
license: {licence}
library_name: diffusers
pipeline_tag: unconditional-image-generation
tags: [consistency-models, gcflow]
---
# {label} on {dataset}, seed {seed}

A reproduction of *Improving Consistency Models with Generator-Augmented Flows* (ICML 2025, arXiv 2406.09570) by gcflow;
not the authors' weights.

```python
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained(FOLDER, trust_remote_code=True)  # pip install gcflow diffusers
images = pipe(batch_size=16, seed=0).images  # those of gcflow sample --seed 0
```

Data: {source}. Their terms: {terms}.{others}

Method, network and training are in `config.json` (hash {config_hash}): {step} steps, average of the weights (EMA).

| metric | mean ± standard deviation over generation seeds |
| --- | --- |
{rows}

Network evaluations per sample: {evaluations}. What is not called FID is not FID. Protocol:

```json
{protocol}
```

For research on generative models. This is one training seed; how seeds differ is in the tables of the project.
"""


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder that takes the place of `out` when everything is in it, and else is removed."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise GcflowError(f"{out}: there is something already; give a new folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}-"))
    try:
        yield folder
        folder.chmod(0o755)
        folder.rename(out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def refusal(params: Params, dataset: str) -> str | None:
    """Why weights of a data set may not be handed on; None if nothing says so."""
    terms = params.dataset(dataset).data.terms
    why = f"{dataset}: terms of the data: {terms.licence} ({terms.url}); --despite-terms if you may publish it"
    return None if terms.handed_on else why


def weights_of_others(params: Params, run: Run) -> set[str]:
    """Files of imported weights that a run, or one that it needs, starts from or looks at."""
    return {file for needed in params.with_needed([run]) for file in params.needed_files(needed).values()}


def publish(params: Params, name: str, out: Path, despite_terms: bool = False) -> None:
    """Writes a run's weights (EMA) for diffusers, with a model card, the code that samples, and the configuration.

    Args:
        params: the grid.
        name: of the run.
        out: a new folder.
        despite_terms: hand on weights although the terms of their data set forbid it.

    Raises:
        GcflowError: the terms of the data forbid it, the run is not finished or not evaluated, is of points or has a
            network of an extension, or `out` is there already.
    """
    run = params.parse_run(name)
    folder = run_folder(params.root, run)
    if (problem := refusal(params, run.dataset)) and not despite_terms:
        raise GcflowError(problem)
    model, spec, metadata = load_model(folder / "weights.safetensors")
    if len(spec.shape) != 3:
        raise GcflowError(f"{name}: its samples are points; diffusers has pipelines for images")
    if files := origins(spec.network):
        raise GcflowError(f"{name}: its network is of {next(iter(files))}, which diffusers would not find")
    card = _card(params, run, metadata)
    config = {
        "_class_name": "GcflowModel",
        "spec": metadata["model"],
        "denoiser": is_denoiser(metadata),
        "boundary": metadata["config"]["method"]["sampling_boundary"],
    }
    classes = {"_class_name": ["pipeline", "GcflowPipeline"], "unet": ["gcflow_model", "GcflowModel"]}
    with new_folder(out) as place:
        (place / "unet").mkdir()
        tensors = {f"model.{key}": value.contiguous() for key, value in model.state_dict().items()}
        save_file(tensors, place / "unet" / "diffusion_pytorch_model.safetensors", {"format": "pt"})
        write_json(place / "unet" / "config.json", config)
        write_json(place / "model_index.json", classes)
        shutil.copyfile(CODE / PIPELINE, place / PIPELINE)
        shutil.copyfile(CODE / MODEL, place / "unet" / MODEL)
        shutil.copyfile(folder / "config.json", place / "config.json")
        write_text(place / "README.md", card)
    say(f"{name}: {out}")


def _card(params: Params, run: Run, metadata: dict[str, Any]) -> str:
    """The model card, in Markdown."""
    entry = params.dataset(run.dataset)
    terms, (evaluations, curves) = entry.data.terms, read_measured(params, run)
    others = ", ".join(sorted(weights_of_others(params, run)))
    with json_document(metrics_path(params.root, run)) as records:
        first = next(record for record in records if record["network_evaluations"] == evaluations)
    ours = ("metric", "value", "run", "step", "weights", "generation_seed")
    finals = {metric: list(curve[max(curve)].values()) for metric, curve in curves.items()}
    return CARD.format(
        licence="apache-2.0" if terms.handed_on and not others else "other",
        label=entry.runs[run.method].label,
        dataset=run.dataset,
        seed=run.seed,
        source=entry.data.source,
        terms=f"{terms.licence} {terms.url}".strip(),
        others=f" Made with the weights of others ({others}), whose terms hold, too." if others else "",
        config_hash=metadata["config_hash"],
        step=metadata["step"],
        rows="\n".join(f"| {_heading(metric)} | {_spread(values)} |" for metric, values in finals.items()),
        evaluations=evaluations,
        protocol=json.dumps({key: value for key, value in first.items() if key not in ours}, indent=2),
    )


def _heading(metric: str) -> str:
    """With the direction of better; of a number as it is stored, without the factor of tables."""
    name = metric_name(metric)
    return name.heading if name.factor == 1 else name.heading.replace("×10²", "")


def _spread(values: list[float]) -> str:
    return f"{fmean(values):.4g}" + (f" ± {stdev(values):.2g} ({len(values)})" if len(values) > 1 else " (1)")
