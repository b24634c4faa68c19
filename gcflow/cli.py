"""The command line: one verb per stage. Heavy imports happen inside the verbs, so that --help is instant."""

import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gcflow.errors import GcflowError

if TYPE_CHECKING:
    from gcflow.pipeline.params import Params

EPILOG = """\b
Examples:
  gcflow prepare digits          data/digits/ from scikit-learn's images
  gcflow train digits/gc/0       a run: data set / method / seed
  gcflow evaluate digits/gc/0    its metrics and sample grid
  gcflow table digits table1     results/digits/tables/table1.{md,csv,tex}

Exit codes: 0 done, 2 bad input, 3 the loss became non-finite, 75 stopped on request and saved (run it again to go on).
"""


def _load(context: click.Context) -> "Params":
    from gcflow.pipeline.params import Params

    return Params(context.obj)


def _device(choice: str) -> str:
    import torch

    if choice != "auto":
        try:
            torch.zeros(1, device=choice)
        except (RuntimeError, AssertionError) as error:
            raise GcflowError(f"--device {choice}: {str(error).splitlines()[0]}") from None
        return choice
    return "cuda" if torch.cuda.is_available() else "cpu"


DEVICE = click.option(
    "--device",
    default="auto",
    show_default=True,
    envvar="GCFLOW_DEVICE",
    show_envvar=True,
    help="Torch device, e.g. cpu or cuda:1; auto is the GPU if there is one.",
)


def verb(help_text: str, example: str) -> Callable[[Callable[..., None]], click.Command]:
    """A subcommand whose errors are one line each, and whose help ends with an example."""

    def decorate(function: Callable[..., None]) -> click.Command:
        @wraps(function)
        def guarded(*args: Any, **kwargs: Any) -> None:
            try:
                function(*args, **kwargs)
            except GcflowError as error:
                for line in str(error).splitlines():
                    click.echo(f"gcflow: error: {line}", err=True)
                sys.exit(error.exit_code)
            except OSError as error:
                named = f"{error.filename}: " if error.filename else ""
                click.echo(f"gcflow: error: {named}{error.strerror or error}; nothing was overwritten", err=True)
                sys.exit(2)

        command: click.Command = main.command(help=help_text, epilog=f"Example: {example}")(guarded)
        return command

    return decorate


@click.group(epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="gcflow")
@click.option(
    "--params",
    type=click.Path(path_type=Path),
    default=Path("params.yaml"),
    show_default=True,
    help="The grid of runs; its folder is the project's root.",
)
@click.pass_context
def main(context: click.Context, params: Path) -> None:
    """Consistency models with generator-augmented flows: one verb per stage of the pipeline.

    `snakemake --profile local all` runs every stage in order, `dvc repro STAGE` a single one.
    """
    context.obj = params


@verb("Write the arrays of DATASET and their manifest to data/DATASET/.", "gcflow prepare digits")
@click.argument("dataset")
@click.pass_context
def prepare(context: click.Context, dataset: str) -> None:
    params = _load(context)
    entry = params.dataset(dataset)
    from gcflow.data import prepare as write
    from gcflow.pipeline.folders import data_folder
    from gcflow.pipeline.progress import say

    manifest = write(entry.data, data_folder(params.root, dataset))
    say(f"  {dataset}: {manifest['count']} samples of shape {manifest['shape']}, std {manifest['std']}")


@verb("Train the classifier of DATASET whose features samples are compared in.", "gcflow features digits")
@click.argument("dataset")
@click.pass_context
def features(context: click.Context, dataset: str) -> None:
    params = _load(context)
    from gcflow.pipeline.evaluate import train_features

    train_features(params, dataset)


@verb("Compute the features of the real data of DATASET, once.", "gcflow reference digits")
@click.argument("dataset")
@click.pass_context
def reference(context: click.Context, dataset: str) -> None:
    params = _load(context)
    params.dataset(dataset)
    from gcflow.pipeline.evaluate import compute_reference

    compute_reference(params, dataset)


@verb(
    "Train RUN (data set/method/seed) to its end, from its newest checkpoint if there is one.",
    "gcflow train digits/gc/0 --time-limit 55",
)
@click.argument("run")
@DEVICE
@click.option("--time-limit", type=float, metavar="MINUTES", help="Save and exit with code 75 after so long.")
@click.option("--restart", is_flag=True, help="Forget the checkpoints of this configuration and begin anew.")
@click.pass_context
def train(context: click.Context, run: str, device: str, time_limit: float | None, restart: bool) -> None:
    params = _load(context)
    params.parse_run(run)
    from gcflow.pipeline.train import train_run

    train_run(params, run, _device(device), time_limit, restart)


@verb(
    "Measure RUN: metrics of EMA and raw weights at every snapshot, and a grid of samples.",
    "gcflow evaluate digits/gc/0",
)
@click.argument("run")
@DEVICE
@click.pass_context
def evaluate(context: click.Context, run: str, device: str) -> None:
    params = _load(context)
    params.parse_run(run)
    from gcflow.pipeline.evaluate import evaluate_run

    evaluate_run(params, run, _device(device))


@verb(
    "Draw samples from a WEIGHTS file of `gcflow train`; needs no params.yaml.",
    "gcflow sample results/digits/gc/seed0/weights.safetensors --count 64 --out samples.png",
)
@click.argument("weights", type=click.Path(path_type=Path))
@click.option("--count", default=64, show_default=True, type=click.IntRange(min=1))
@click.option("--seed", default=0, show_default=True, help="Of the noise.")
@click.option(
    "--sigma", "sigmas", multiple=True, type=float, help="Intermediate noise level of a further step; repeatable."
)
@click.option("--raw", is_flag=True, help="Raw weights instead of their EMA.")
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("samples.png"), show_default=True, help=".png or .npy"
)
def sample(weights: Path, count: int, seed: int, sigmas: tuple[float, ...], raw: bool, out: Path) -> None:
    from gcflow.pipeline.evaluate import sample_to_file

    sample_to_file(weights, count, seed, sigmas, "raw" if raw else "ema", out)


@verb("Measure the transport cost of each coupling on DATASET.", "gcflow transport digits")
@click.argument("dataset")
@click.pass_context
def transport(context: click.Context, dataset: str) -> None:
    params = _load(context)
    params.dataset(dataset)
    from gcflow.pipeline.transport import measure_transport

    measure_transport(params, dataset)


@verb("Write the table NAME of DATASET as Markdown, CSV and LaTeX.", "gcflow table digits table1")
@click.argument("dataset")
@click.argument("name")
@click.pass_context
def table(context: click.Context, dataset: str, name: str) -> None:
    params = _load(context)
    from gcflow.pipeline.table import write_table

    write_table(params, dataset, name)


@verb("Draw the figure NAME of DATASET as PNG and SVG.", "gcflow figure digits convergence-mu")
@click.argument("dataset")
@click.argument("name")
@click.pass_context
def figure(context: click.Context, dataset: str, name: str) -> None:
    params = _load(context)
    params.dataset(dataset)
    from gcflow.pipeline.figure import write_figure

    write_figure(params, dataset, name)


@verb("Mirror every finished run to MLflow; calling it again sends only what is missing.", "gcflow track")
@click.pass_context
def track(context: click.Context) -> None:
    params = _load(context)
    from gcflow.pipeline.track import track as mirror

    mirror(params)


@verb("Write dvc.yaml from params.yaml; --check only compares.", "gcflow stages --check")
@click.option("--check", is_flag=True, help="Change nothing; exit with 2 if dvc.yaml is out of date.")
@click.pass_context
def stages(context: click.Context, check: bool) -> None:
    params = _load(context)
    from gcflow.pipeline.stages import dvc_document, write_dvc_yaml

    path = params.root / "dvc.yaml"
    if not check:
        changed = write_dvc_yaml(params)
        click.echo(f"{path}: {'written' if changed else 'up to date'}", err=True)
    elif not path.exists() or path.read_text() != dvc_document(params):
        raise GcflowError(f"{path} is not what params.yaml gives; run gcflow stages")


@verb("Record in dvc.lock what is complete, so that `dvc status` is clean.", "gcflow record")
@click.pass_context
def record(context: click.Context) -> None:
    params = _load(context)
    from gcflow.pipeline.record import record as commit

    commit(params)
