"""The command line: one verb per stage. Heavy imports happen inside the verbs, so that --help is instant."""

import os
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from pathlib import Path
from subprocess import CalledProcessError
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import click

from gcflow.errors import GcflowError, MissingFile, Transient

if TYPE_CHECKING:
    from gcflow.config import Preconditioning, Weights
    from gcflow.pipeline.params import Params

EPILOG = """\b
Examples:
  gcflow prepare digits          data/digits/ from scikit-learn's images
  gcflow train digits/gc/0       a run: data set / method / seed
  gcflow evaluate digits/gc/0    its metrics and sample grid
  gcflow table digits table1     results/digits/tables/table1.{md,csv,tex}

Exit codes: 0 done, 2 bad input, 3 the loss became non-finite, 75 stopped on request and saved (run it again to go on).
"""


SECTIONS = {
    "Stages, in the order of the pipeline": (
        *("prepare", "pretrained", "features", "reference", "train", "evaluate", "discrepancy", "transport", "theory"),
        *("table", "figure", "claims", "decide", "report"),
    ),
    "Models": ("sample", "import-edm", "export", "publish"),
    "What is there, and what it takes": ("status", "plan", "doctor", "bench", "verify"),
    "DVC and MLflow": ("stages", "record", "adopt", "track"),
}


class _Sections(click.Group):
    """A group whose verbs are listed by what they are for, each with its first sentence."""

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        for title, names in SECTIONS.items():
            with formatter.section(title):
                whole = formatter.width * len(names)
                formatter.write_dl([(name, self.commands[name].get_short_help_str(whole)) for name in names])


class _NamedPath(click.Path):
    """A path; an empty one, as of a variable that is not set, does not mean the folder where we are."""

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Any:
        if value == "":
            self.fail("the path is empty", parameter, context)
        return super().convert(value, parameter, context)


PATH = _NamedPath(path_type=Path)


def _load(context: click.Context) -> "Params":
    from gcflow.pipeline.params import Params

    return Params(context.obj)


def _device(choice: str) -> str:
    import torch

    if choice != "auto":
        try:
            torch.zeros(1, device=choice).item()
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
GPUS = click.option(
    "--gpus",
    "leased_gpus",
    default=0,
    type=click.IntRange(min=0),
    help="Use so many GPUs that no other job with this option uses, as soon as they are free.",
)

WATTS = click.FloatRange(min=0, min_open=True)
SCALE = click.option(
    "--scale",
    type=click.Choice(["embedded", "rehearsal", "paper", "all"]),
    default="embedded",
    show_default=True,
    envvar="GCFLOW_SCALE",
    show_envvar=True,
    help="Which data sets are meant.",
)
ARCHIVES = click.option(
    "--archives",
    type=PATH,
    default=Path("archives"),
    show_default=True,
    envvar="GCFLOW_ARCHIVES",
    show_envvar=True,
    help="Where the official files lie.",
)
DOWNLOAD = click.option(
    "--download",
    is_flag=True,
    envvar="GCFLOW_DOWNLOAD",
    show_envvar=True,
    help="Fetch what is missing where its source allows it.",
)


def _failure() -> Path | None:
    """Where a stage of a workflow tells of a failure that its retries can only repeat."""
    folder = os.environ.get("GCFLOW_FAILURES")
    return Path(folder, quote(" ".join(sys.argv[1:]), safe=" ")) if folder else None


def _with_maker(error: MissingFile) -> MissingFile:
    """The same with the command of the stage that makes the file, if one of the grid does."""
    from gcflow.pipeline.params import Params
    from gcflow.pipeline.stages import Stages

    with suppress(GcflowError, ValueError):
        params = Params(click.get_current_context().obj)
        name = error.path.resolve().relative_to(params.root.resolve())
        for stage in Stages(params):
            if any(name.is_relative_to(out) for out in stage.outs):
                return MissingFile(error.path, stage.command)
    return error


def _lack_told_by(error: MemoryError | RuntimeError | CalledProcessError) -> str | None:
    """What this machine has not, where an error of torch's or Triton's tells of that."""
    text = str(error)
    if re.search(r"(No working|Failed to find) C(\+\+)? compiler|C\+\+ compile error|'-fPIC'", text):
        missing = "training.compile needs a C and a C++ compiler and Python's headers, which this machine has not"
        return f"{missing}; install gcc, g++ and python3-dev, name others in CC and CXX, or choose none"
    threads = "can't start new thread" in text
    if isinstance(error, MemoryError) or "memory" in text or threads:
        reason = text.partition("\n")[0] or "more than this machine has was asked for"
        return f"out of {'threads or memory' if threads else 'memory'} ({reason}); ask for less at once"
    return None


def verb(
    help_text: str, example: str, group: click.Group | None = None
) -> Callable[[Callable[..., None]], click.Command]:
    """A subcommand whose errors are one line each, and whose help ends with an example."""

    def decorate(function: Callable[..., None]) -> click.Command:
        @wraps(function)
        def guarded(*args: Any, **kwargs: Any) -> None:
            failure = _failure()
            if failure and failure.exists():
                code, _, text = failure.read_text("utf-8").partition(" ")
                click.echo(f"gcflow: error: {text}", err=True)
                sys.exit(int(code))
            try:
                if gpus := kwargs.pop("leased_gpus", 0):
                    from gcflow.pipeline.gpus import leased

                    click.get_current_context().with_resource(leased(gpus))
                function(*args, **kwargs)
            except GcflowError as error:
                text = str(_with_maker(error) if isinstance(error, MissingFile) else error)
                if failure and not isinstance(error, Transient):
                    with suppress(OSError):
                        failure.write_text(f"{error.exit_code} {text}", encoding="utf-8")
                for line in text.splitlines() if error.heard else []:
                    click.echo(f"gcflow: error: {line}", err=True)
                sys.exit(error.exit_code)
            except BrokenPipeError:
                # Who reads what is printed has enough of it: click ends without a word.
                raise
            except OSError as error:
                named = f"{error.filename}: " if error.filename else ""
                click.echo(f"gcflow: error: {named}{error.strerror or error}; nothing was overwritten", err=True)
                sys.exit(2)
            except (MemoryError, RuntimeError, CalledProcessError) as error:
                if (lacking := _lack_told_by(error)) is None:
                    raise
                click.echo(f"gcflow: error: {lacking}", err=True)
                sys.exit(2)

        command: click.Command = (group or main).command(help=help_text, epilog=f"Example: {example}")(guarded)
        return command

    return decorate


@click.group(cls=_Sections, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="gcflow")
@click.option(
    "--params",
    type=PATH,
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


@verb(
    "Write the arrays of DATASET and their manifest to data/DATASET/. Stopped half-way, it goes on when called again.",
    "gcflow prepare digits",
)
@click.argument("dataset")
@ARCHIVES
@DOWNLOAD
@click.option("--skip-broken", is_flag=True, help="Leave out images that do not decode; the manifest lists them.")
@click.option(
    "--workers", type=click.IntRange(min=1), help="Threads that decode images.  [default: one per available core]"
)
@click.pass_context
def prepare(
    context: click.Context, dataset: str, archives: Path, download: bool, skip_broken: bool, workers: int | None
) -> None:
    params = _load(context)
    params.dataset(dataset)
    from gcflow.pipeline.prepare import prepare_dataset

    prepare_dataset(params, dataset, archives, workers, skip_broken, download)


@verb(
    "Make the network that features of DATASET are taken from: train its classifier, or look a published one up.",
    "gcflow features cifar10 --download",
)
@click.argument("dataset")
@ARCHIVES
@DOWNLOAD
@click.pass_context
def features(context: click.Context, dataset: str, archives: Path, download: bool) -> None:
    params = _load(context)
    from gcflow.pipeline.features.networks import make_features

    make_features(params, dataset, archives, download)


@verb(
    "Compute the features of the real data of DATASET under PROTOCOL (default: its first), once.",
    "gcflow reference cifar10 clean",
)
@click.argument("dataset")
@click.argument("protocol", required=False)
@DEVICE
@GPUS
@click.pass_context
def reference(context: click.Context, dataset: str, protocol: str | None, device: str) -> None:
    params = _load(context)
    params.dataset(dataset)
    from gcflow.pipeline.reference import compute_reference

    compute_reference(params, dataset, protocol, _device(device))


@verb(
    "Turn the public EDM model NAME of params.yaml into checkpoints/NAME.safetensors.",
    "gcflow pretrained edm-cifar10 --download",
)
@click.argument("name")
@ARCHIVES
@DOWNLOAD
@click.pass_context
def pretrained(context: click.Context, name: str, archives: Path, download: bool) -> None:
    params = _load(context)
    from gcflow.pipeline.published import import_pretrained

    import_pretrained(params, name, archives, download)


@verb(
    "Train RUN (data set/method/seed) to its end, from its newest checkpoint if there is one.",
    "gcflow train digits/gc/0 --time-budget 55",
)
@click.argument("run")
@DEVICE
@GPUS
@click.option("--time-budget", type=float, metavar="MINUTES", help="Save and exit with code 75 after so long.")
@click.option(
    "--requeue",
    is_flag=True,
    envvar="GCFLOW_REQUEUE",
    show_envvar=True,
    help="In a Slurm job: save before its time limit, and put it back into the queue, to go on.",
)
@click.option("--restart", is_flag=True, help="Forget the checkpoints of this configuration and begin anew.")
@click.option(
    "--wait",
    is_flag=True,
    envvar="GCFLOW_WAIT",
    show_envvar=True,
    help="Wait while another process trains this run, instead of refusing.",
)
@click.option(
    "--processes",
    default=1,
    show_default=True,
    type=click.IntRange(min=1),
    envvar="GCFLOW_PROCESSES",
    show_envvar=True,
    help="Processes on this machine, one per GPU, that share each batch. Under torchrun leave it out.",
)
@click.option(
    "--data-share",
    default=0.5,
    show_default=True,
    type=click.FloatRange(0, 1),
    envvar="GCFLOW_DATA_SHARE",
    show_envvar=True,
    help="Share of the device's memory that the data may take; larger data are streamed from the file.",
)
@click.option(
    "--scratch",
    type=PATH,
    metavar="FOLDER",
    envvar="GCFLOW_SCRATCH",
    show_envvar=True,
    help="On this node's own disk: the data are copied there, once for all jobs of the node, and read from there.",
)
@click.pass_context
def train(
    context: click.Context,
    run: str,
    device: str,
    time_budget: float | None,
    requeue: bool,
    restart: bool,
    wait: bool,
    processes: int,
    data_share: float,
    scratch: Path | None,
) -> None:
    params = _load(context)
    params.parse_run(run)
    from gcflow.pipeline.launch import is_member, launch

    if processes > 1 and not is_member():
        sys.exit(launch(processes))
    from gcflow.pipeline.train import train_run

    train_run(params, run, _device(device), time_budget, restart, wait, data_share, scratch, requeue)


@verb(
    "Measure RUN: metrics of EMA and raw weights at every snapshot, and a grid of samples.",
    "gcflow evaluate digits/gc/0",
)
@click.argument("run")
@DEVICE
@GPUS
@click.pass_context
def evaluate(context: click.Context, run: str, device: str) -> None:
    params = _load(context)
    params.parse_run(run)
    from gcflow.pipeline.evaluate import evaluate_run

    evaluate_run(params, run, _device(device))


@verb(
    "Draw samples from a WEIGHTS file of `gcflow train` or `gcflow import-edm`; needs no params.yaml.",
    "gcflow sample results/digits/gc/seed0/weights.safetensors --count 64 --out samples.png",
)
@click.argument("weights", type=PATH)
@click.option("--count", default=64, show_default=True, type=click.IntRange(min=1))
@click.option("--first", default=0, show_default=True, type=click.IntRange(min=0), help="Number of the first image.")
@click.option("--seed", default=0, show_default=True, help="Of the noise; image n of a seed is always the same.")
@click.option(
    "--sigma", "sigmas", multiple=True, type=float, help="Intermediate noise level of a further step; repeatable."
)
@click.option("--heun-steps", default=18, show_default=True, type=click.IntRange(min=2), help="For a denoiser.")
@click.option("--batch", default=500, show_default=True, type=click.IntRange(min=1), help="Images drawn at once.")
@click.option("--raw", is_flag=True, help="Raw weights instead of their EMA.")
@DEVICE
@click.option(
    "--out",
    type=PATH,
    default=Path("samples.png"),
    show_default=True,
    help="A grid (.png), an array (.npz with provenance, .npy), or a folder of PNGs (no ending).",
)
@click.pass_context
def sample(
    context: click.Context,
    weights: Path,
    count: int,
    first: int,
    seed: int,
    sigmas: tuple[float, ...],
    heun_steps: int,
    batch: int,
    raw: bool,
    device: str,
    out: Path,
) -> None:
    from gcflow.pipeline.sample import sample_to_file

    # Its extensions may have the network.
    if context.obj.exists():
        _load(context)
    images = range(first, first + count)
    kind: Weights = "raw" if raw else "ema"
    sample_to_file(weights, images, seed, sigmas, kind, out, _device(device), batch, heun_steps)


@verb(
    "Turn a public EDM model (FILE: its pickle, or a plain state dict) into a weights file. No code of it is run.",
    "gcflow import-edm edm-cifar10-32x32-uncond-vp.pkl --out checkpoints/edm-cifar10.safetensors",
)
@click.argument("file", type=PATH)
@click.option("--out", type=PATH, required=True, help="Ends in .safetensors.")
@click.option(
    "--preconditioning",
    type=click.Choice(["edm", "vp", "ve", "consistency"]),
    help="Of a plain state dict, which does not say it.",
)
@click.option(
    "--keep-embeddings", is_flag=True, help="Keep class and augmentation embeddings, which are left out else."
)
def import_edm(file: Path, out: Path, preconditioning: "Preconditioning | None", keep_embeddings: bool) -> None:
    from gcflow.config import NetworkConfig
    from gcflow.edm import import_edm as convert
    from gcflow.pipeline.progress import say

    model = convert(file, out, preconditioning, keep_embeddings)
    for note in model.notes:
        say(f"  note: {note}")
    network = model.spec.network
    assert isinstance(network, NetworkConfig)
    say(
        f"  {out}: {network.architecture}, {network.channels} channels x {list(network.multipliers)}, "
        f"{model.spec.preconditioning} preconditioning, samples of shape {list(model.spec.shape)}"
    )


@verb(
    "Write the network of a WEIGHTS file as a plain state dict under EDM's names (.safetensors or .pt).",
    "gcflow export results/cifar10/gc/seed0/weights.safetensors --out network.pt",
)
@click.argument("weights", type=PATH)
@click.option("--out", type=PATH, required=True)
@click.option("--raw", is_flag=True, help="Raw weights instead of their EMA.")
def export(weights: Path, out: Path, raw: bool) -> None:
    from gcflow.edm import export_state_dict

    export_state_dict(weights, out, "raw" if raw else "ema")


@verb("Measure the transport cost of each coupling on DATASET.", "gcflow transport digits")
@click.argument("dataset")
@DEVICE
@GPUS
@click.pass_context
def transport(context: click.Context, dataset: str, device: str) -> None:
    params = _load(context)
    params.dataset(dataset)
    from gcflow.pipeline.transport import measure_transport

    measure_transport(params, dataset, _device(device))


@verb(
    "Measure the velocity discrepancy of the coupling that the denoiser RUN was trained on.",
    "gcflow discrepancy digits/denoiser-gc/0",
)
@click.argument("run")
@DEVICE
@GPUS
@click.pass_context
def discrepancy(context: click.Context, run: str, device: str) -> None:
    params = _load(context)
    params.parse_run(run)
    from gcflow.pipeline.discrepancy import measure_discrepancy

    measure_discrepancy(params, run, _device(device))


@verb(
    "Check Theorems 1 and 2, Lemma 1 and Figure 1 of the paper on the mixture DATASET, in float64.",
    "gcflow theory mixture2d",
)
@click.argument("dataset")
@click.option("--threads", default=1, show_default=True, type=click.IntRange(min=1), help="Of the CPU.")
@click.pass_context
def theory(context: click.Context, dataset: str, threads: int) -> None:
    params = _load(context)
    params.dataset(dataset)
    from gcflow.pipeline.theory_checks import check_theory

    check_theory(params, dataset, threads)


@verb("Write the table NAME of DATASET as JSON, Markdown, CSV and LaTeX.", "gcflow table digits table1")
@click.argument("dataset")
@click.argument("name")
@click.pass_context
def table(context: click.Context, dataset: str, name: str) -> None:
    params = _load(context)
    from gcflow.pipeline.table import write_table

    write_table(params, dataset, name)


@verb("Draw the figure NAME of DATASET as PNG and SVG, its numbers as CSV.", "gcflow figure digits convergence-mu")
@click.argument("dataset")
@click.argument("name")
@click.pass_context
def figure(context: click.Context, dataset: str, name: str) -> None:
    params = _load(context)
    params.dataset(dataset)
    from gcflow.pipeline.figure import write_figure

    write_figure(params, dataset, name)


@verb(
    "Write what DVC has recorded of a scale to OUT as a Workflow Run RO-Crate: a page on what was run, and every file "
    "with its hash and the stage that made it; or, of a RUN, its weights as a folder for Hugging Face, from which "
    "diffusers draws the images of `gcflow sample`.",
    "gcflow publish published/embedded; gcflow publish digits/gc/0 published/digits-gc",
)
@click.argument("run", nargs=-1, metavar="[RUN]")
@click.argument("out", type=PATH)
@SCALE
@click.option("--device-watts", type=WATTS, help="Nominal power of a GPU, or what else runs train on, for the energy.")
@click.option("--core-watts", type=WATTS, help="Nominal power of a processor's core, for the energy.")
@click.option("--despite-terms", is_flag=True, help="Although the terms of the data set forbid to hand weights on.")
@click.pass_context
def publish(
    context: click.Context,
    run: tuple[str, ...],
    out: Path,
    scale: str,
    device_watts: float | None,
    core_watts: float | None,
    despite_terms: bool,
) -> None:
    params = _load(context)
    if len(run) > 1 or str(out) in {known.name for known in params.runs()}:
        raise GcflowError("expected a run and then a folder for it, or for a whole scale a folder alone")
    if run:
        from gcflow.tools.publish import publish as publish_run

        publish_run(params, run[0], out, despite_terms)
    else:
        from gcflow.tools.crate import publish_scale

        watts = {name: each for name, each in (("device", device_watts), ("core", core_watts)) if each}
        publish_scale(params, scale, out, watts, despite_terms)


@verb(
    "Measure this machine with DATASET's recipe: images per second of training, sampling and features, the share of "
    "its peak, memory. The data need not be prepared. `gcflow plan` reads the file that this writes.",
    "gcflow bench digits --method ic --method gc --set training.precision=bfloat16",
)
@click.argument("dataset")
@DEVICE
@click.option(
    "--method",
    "methods",
    multiple=True,
    help="A method to time; repeatable. Ratios are to the first.  [default: the first one with each coupling]",
)
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="A key of network or training; repeatable.")
@click.option("--steps", default=20, show_default=True, type=click.IntRange(min=1), help="Steps per round.")
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(min=1), help="Rounds after a first one.")
@click.option("--out", type=PATH, help="[default: results/DATASET/bench.json]")
@click.pass_context
def bench(
    context: click.Context,
    dataset: str,
    device: str,
    methods: tuple[str, ...],
    settings: tuple[str, ...],
    steps: int,
    rounds: int,
    out: Path | None,
) -> None:
    params = _load(context)
    params.dataset(dataset)
    from gcflow.tools.bench import bench as measure

    measure(params, dataset, methods, settings, _device(device), steps, rounds, out)


@verb(
    "Count what TARGET takes and what is left of it: jobs, floating-point operations (FLOP), GPU-hours, disk. TARGET "
    "is a table or figure of the paper (table1), a data set, a run, a stage, or all of the scale. Hours follow from "
    "the speed that `gcflow bench` measured, or from --tflops.",
    "gcflow plan table1 --scale paper --gpus 8 --tflops 100",
)
@click.argument("target", default="all")
@SCALE
@click.option("--gpus", default=1, show_default=True, type=click.IntRange(min=1), help="GPUs that share the jobs.")
@click.option(
    "--tflops",
    type=click.FloatRange(min=0, min_open=True),
    help="Assume that a GPU sustains so many 10^12 operations per second.  [default: what was measured]",
)
@click.option("--json", "file", type=PATH, help="Write the plan, job by job, to this file too.")
@click.pass_context
def plan(context: click.Context, target: str, scale: str, gpus: int, tflops: float | None, file: Path | None) -> None:
    params = _load(context)
    from gcflow.tools.plan import show

    click.echo(show(params, target, scale, gpus, tflops, file))


@verb(
    "Test every claim of claims.yaml on every data set of a scale and write results/claims.{json,md,png,svg}, "
    "on docs/evidence where it has more seeds of the same settings.",
    "gcflow claims",
)
@SCALE
@click.pass_context
def claims(context: click.Context, scale: str) -> None:
    params = _load(context)
    from gcflow.pipeline.ledger.write import write_ledger

    write_ledger(params, scale)


@verb(
    "Keep what every seed of a scale says of its claims in docs/evidence, and add to seeds.yaml those that undecided "
    "claims want: a round of `snakemake --profile local decided`.",
    "gcflow decide",
)
@SCALE
@click.pass_context
def decide(context: click.Context, scale: str) -> None:
    params = _load(context)
    from gcflow.pipeline.ledger.rounds import decide_round

    decide_round(params, scale)


@verb(
    "Write results/report.html: all that was measured at a scale, in one file that opens anywhere. What is not made "
    "yet is named there.",
    "gcflow report",
)
@SCALE
@click.pass_context
def report(context: click.Context, scale: str) -> None:
    params = _load(context)
    from gcflow.pipeline.report.write import write_report

    write_report(params, scale)


@verb(
    "Do what the stages of TARGET will do first (import the packages, multiply on the device, read data and weights, "
    "plan the workflow) and say what fails and what to do. TARGET is a table or figure of the paper (table1), a data "
    "set, a run, a stage, or all of the scale. Exits with 2 if TARGET cannot be made here yet.",
    "gcflow doctor table1 --scale paper",
)
@click.argument("target", default="all")
@SCALE
@ARCHIVES
@DEVICE
@click.pass_context
def doctor(context: click.Context, target: str, scale: str, archives: Path, device: str) -> None:
    from gcflow.tools.doctor import diagnose

    if not diagnose(context.obj, target, scale, archives, device):
        sys.exit(2)


@verb(
    "Show which run of TARGET is at which step, where, how fast, or why it is not: from the runs' own files, whatever "
    "schedules them. TARGET is a table or figure of the paper (table1), a data set, a run, a stage, or all of the "
    "scale.",
    "gcflow status table1 --scale paper --watch",
)
@click.argument("target", default="all")
@SCALE
@click.option("--watch", is_flag=True, help="Draw it again every few seconds, until all is done or Ctrl-C.")
@click.option("--json", "as_json", is_flag=True, help="For programs, once.")
@click.pass_context
def status(context: click.Context, target: str, scale: str, watch: bool, as_json: bool) -> None:
    if watch and as_json:
        raise GcflowError("--watch and --json: give one of them")
    from gcflow.tools.status import Survey, show

    show(Survey(_load(context), target, scale), watch, as_json)


@verb(
    "Read every file of TARGETs, and of all that they need, and compare its hash with all that know one: dvc.lock, "
    "manifests, and weights themselves. Names each file that differs, the stage to run again, and what depends on it. "
    "A TARGET is a table or figure of the paper (table1), a data set, a run, a stage, or all of the scale. Exits "
    "with 2 unless all is whole.",
    "gcflow verify digits/gc/0 table1",
)
@click.argument("targets", nargs=-1, metavar="[TARGET]...")
@SCALE
@click.option(
    "--replay",
    type=click.FloatRange(0, 1, min_open=True),
    metavar="SHARE",
    help="Then compute so much again, drawn at random: steps of runs after states that they have kept, evaluations, "
    "tables and figures. The same bits must come out, on the kind of device that all was computed on.",
)
@DEVICE
@click.pass_context
def verify(context: click.Context, targets: tuple[str, ...], scale: str, replay: float | None, device: str) -> None:
    params = _load(context)
    from gcflow.tools.verify import verify as read_all

    report = read_all(params, targets or ("all",), scale)
    click.echo(report)
    if replay is not None and not report.findings:
        from gcflow.tools.replay import replay as compute_again

        again = compute_again(params, report.stages, replay, _device(device))
        click.echo(again)
        sys.exit(0 if again.same else 2)
    if report.findings:
        sys.exit(2)


@main.group(help="MLflow: a mirror of the runs' own files.", epilog="Example: gcflow track sync")
def track() -> None:
    pass


@verb(
    "Send to MLflow what it lacks of every run, finished or not, with tables, figures and the report.",
    "gcflow track sync",
    track,
)
@click.option(
    "--watch",
    is_flag=True,
    help="Send every tracking.watch_every seconds what is new, until SIGTERM, Ctrl-C or the end of a pipe at standard "
    "input. A workflow starts and ends it by itself.",
)
@SCALE
@click.pass_context
def sync(context: click.Context, watch: bool, scale: str) -> None:
    params = _load(context)
    from gcflow.tools.track import sync as track

    (track.watch if watch else track.sync)(params, scale)


@verb("Write dvc.yaml, and its list of runs, from params.yaml.", "gcflow stages")
@SCALE
@click.pass_context
def stages(context: click.Context, scale: str) -> None:
    params = _load(context)
    from gcflow.pipeline.dvc_stages import write_dvc_yaml

    changed = write_dvc_yaml(params, scale)
    click.echo(f"{params.root / 'dvc.yaml'}: {'written' if changed else 'up to date'}", err=True)


@verb("Record in dvc.lock what Snakemake has made, so that `dvc status` is clean; also while it runs.", "gcflow record")
@SCALE
@click.pass_context
def record(context: click.Context, scale: str) -> None:
    params = _load(context)
    from gcflow.pipeline.record import record as commit

    commit(params, scale)


@verb(
    "Make Snakemake accept what `dvc pull` fetched or `dvc repro` made, as far as dvc.lock vouches for it.",
    "gcflow adopt",
)
@SCALE
@click.pass_context
def adopt(context: click.Context, scale: str) -> None:
    params = _load(context)
    from gcflow.pipeline.adopt import adopt as accept

    accept(params, scale)
