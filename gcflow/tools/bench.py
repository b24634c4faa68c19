"""`gcflow bench`: how fast this machine trains, samples and takes features, and what share of its peak that is."""

import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from operator import truediv
from pathlib import Path
from typing import Any

import torch
from ruamel.yaml import YAML
from torch import Tensor

from gcflow.batches import Batches, resident
from gcflow.config import RunConfig, to_dict
from gcflow.distributed import World
from gcflow.errors import GcflowError
from gcflow.files import write_json
from gcflow.model import PreconditionedNetwork
from gcflow.options import choice_of
from gcflow.pipeline.evaluate import samplers
from gcflow.pipeline.features.networks import load_features
from gcflow.pipeline.folders import extractor_path, results_folder
from gcflow.pipeline.params import Params, Run
from gcflow.pipeline.progress import Progress, say
from gcflow.pipeline.schema import Identity
from gcflow.precision import set_precision, tune
from gcflow.readable import scaled, size
from gcflow.sampling import Sampler, generate
from gcflow.tools.plan import pass_operations, passes_per_sample
from gcflow.training import Helpers, initial_state, make_step
from gcflow.weights import spec_of

MATRIX = {"cpu": 2048, "cuda": 8192}
SHORTEST_SECONDS = 1.0
IMAGES = 512


def seconds(work: Callable[[], object], device: str) -> float:
    """Wall time of `work`, with what it left a GPU to do."""
    wait = partial(torch.cuda.synchronize, device) if device.startswith("cuda") else lambda: None
    wait()
    begun = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - begun


def rate(count: int, work: Callable[[], object], device: str) -> float:
    """Items per second of `work` on `count` of them, which is repeated for a while after one to warm up."""
    work()
    taken: list[float] = []
    while sum(taken) < SHORTEST_SECONDS:
        taken.append(seconds(work, device))
    return count * len(taken) / sum(taken)


def peak_rate(precision: str, device: str) -> float:
    """Operations per second of a large square matrix product in a run's precision: the best of ten."""
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    side = MATRIX["cuda" if device.startswith("cuda") else "cpu"]
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return 2 * side**3 / min(seconds(lambda: a @ b, device) for _ in range(10))


def settings_of(words: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """`training.precision=bfloat16` and the like, as what `Params.run_config` overrides."""
    overrides: dict[str, dict[str, Any]] = {"network": {}, "training": {}}
    for word in words:
        key, separator, value = word.partition("=")
        block, _, name = key.partition(".")
        if not separator or not name or block not in overrides:
            raise GcflowError(f"--set {word}: expected e.g. training.precision=bfloat16 or network.dropout=0.0")
        overrides[block][name] = YAML(typ="safe").load(value)
    return overrides


class Trainer:
    """The real steps of a run, with untrained weights in every role.

    config: the run's, with the mean of its mu from the first step on, as if it were so in every step.
    """

    def __init__(
        self, params: Params, run: Run, overrides: dict[str, dict[str, Any]], data: Tensor, device: str
    ) -> None:
        config = params.run_config(run.name, overrides)
        mu = config.method.mu if config.method.mu is None else statistics.fmean(config.method.mu_range)
        self.config = replace(config, method=replace(config.method, mu=mu, mu_from_step=None))
        shape = tuple(data.shape[1:])

        def untrained(role: str) -> PreconditionedNetwork | None:
            needed = params.needed_runs(run).get(role)
            if needed is None and role not in params.needed_files(run):
                return None
            # What a file holds is taken to be of the run's own network.
            model = spec_of(params.run_config(needed[0].name, overrides) if needed else config, shape).build()
            return tune(model.to(device).eval().requires_grad_(False), config.training)

        exact = None
        if config.method.teacher == "exact":
            exact = params.dataset(run.dataset).data.exact_mixture(data, config.process).denoise
        self.helpers = Helpers(untrained("predictor"), untrained("teacher"), exact)
        self.batches = Batches(self.config, data, torch.device(device), World())
        self.state = initial_state(self.config, shape, device)
        self.step = make_step(self.config, self.batches, self.state, self.helpers, World())

    def steps(self, count: int) -> None:
        """`count` more steps, after the last one from the first again."""
        set_precision(self.config.training)
        for _ in range(count):
            self.state.step %= self.config.training.steps
            self.step(False)


def bench_training(build: Mapping[str, Callable[[], Trainer]], device: str, steps: int, rounds: int) -> dict[str, Any]:
    """Times the methods' steps in turn, so that a drifting machine drifts for all; the first round warms up.

    The memory is what a method's first steps take of a GPU besides the data, None on the CPU.
    """
    trainers: dict[str, Trainer] = {}
    memory: dict[str, int | None] = {}
    times: dict[str, list[float]] = {name: [] for name in build}
    with Progress("bench", rounds + 1, unit="round") as progress, ExitStack() as threads:
        for name, of in build.items():
            before = torch.cuda.memory_allocated(device) if device.startswith("cuda") else None
            if before is not None:
                torch.cuda.reset_peak_memory_stats(device)
            trainers[name] = of()
            threads.enter_context(trainers[name].batches)
            trainers[name].steps(steps)
            memory[name] = torch.cuda.max_memory_allocated(device) - before if before is not None else None
        for turn in range(rounds):
            progress.update(turn + 1)
            for name, trainer in trainers.items():
                times[name].append(seconds(partial(trainer.steps, steps), device) / steps)
        progress.update(rounds + 1)
    first = next(iter(trainers.values())).config
    shape = tuple(next(iter(trainers.values())).batches.data.shape[1:])
    peak = peak_rate(first.training.precision, device)
    methods: dict[str, Any] = {}
    for name, trainer in trainers.items():
        step, passes = statistics.median(times[name]), passes_per_sample(trainer.config)
        images = trainer.config.training.batch / step
        methods[name] = {
            "grain": trainer.config.training.grain or trainer.config.training.batch,
            "seconds_per_step": step,
            "images_per_second": images,
            "step_over_first": statistics.median(map(truediv, times[name], times[first.method_name])),
            "passes_per_image": passes,
            "share_of_peak": images * passes * pass_operations(trainer.config, shape) / peak,
            "peak_memory_bytes": memory[name],
        }
    operations = pass_operations(first, shape)
    return {"operations_per_pass": operations, "peak_operations_per_second": peak, "methods": methods}


def bench_sampling(
    config: RunConfig, choices: list[Sampler], batch: int, shape: tuple[int, ...], device: str
) -> dict[str, float]:
    """Images per second of each sampler, noise included, as `gcflow evaluate` draws them."""
    model = spec_of(config, shape).build().to(device).eval().requires_grad_(False)

    def draw(sampler: Sampler) -> None:
        list(generate(model, sampler, shape, range(batch), 0, batch, torch.float32))

    return {f"{each.name}-{each.evaluations}": rate(batch, partial(draw, each), device) for each in choices}


def bench_features(params: Params, dataset: str, data: Tensor, device: str) -> dict[str, float]:
    """Images per second of each protocol's features; empty where `gcflow features` has not made their network yet."""
    settings, images = params.dataset(dataset).features, data[:IMAGES]
    if not isinstance(settings, Identity) and not extractor_path(params.root, dataset, settings.kind).exists():
        return {}
    features = load_features(params, dataset, device)
    ways = settings.protocols.items()
    return {name: rate(len(images), partial(features, images, rules), device) for name, rules in ways}


def machine(device: str) -> dict[str, Any]:
    """What the numbers were measured on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text("utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if "model name" in line]
    return {
        "cpu": (names or [platform.processor() or platform.machine()])[0],
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(device) if device.startswith("cuda") else None,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def bench(
    params: Params,
    dataset: str,
    methods: tuple[str, ...],
    settings: tuple[str, ...],
    device: str,
    steps: int,
    rounds: int,
    out: Path | None,
) -> None:
    """Measures a data set's recipe on random pixels or its own samples, writes JSON and prints a table.

    Args:
        params: the grid.
        dataset: whose network, recipe and shapes are used; its data need not be prepared.
        methods: to be timed; the ratios are to the first. Empty means the first with each coupling.
        settings: `KEY=VALUE` of `network` and `training` for this measurement.
        device: torch device.
        steps: per round.
        rounds: counted ones, after one to warm up; medians are reported.
        out: the JSON file; None for results/DATASET/bench.json, where `gcflow plan` looks.

    Raises:
        GcflowError: an unknown method, or a key or value that params.yaml could not have either.
    """
    entry, overrides = params.dataset(dataset), settings_of(settings)
    for method in methods:
        if method not in entry.runs:
            raise GcflowError(f"--method {method}: {dataset} has no such runs; {choice_of(method, entry.runs)}")
    of_coupling = {entry.methods[method].coupling: method for method in reversed(entry.runs)}
    chosen = methods or [method for method in entry.runs if method in of_coupling.values()]
    runs = [Run(dataset, method, entry.runs[method].seeds[0]) for method in chosen]
    first = params.run_config(runs[0].name, overrides)
    torch.set_num_threads(first.training.cpu_threads)
    set_precision(first.training)
    raw = torch.from_numpy(entry.data.timing_samples())
    shape, data = tuple(raw.shape[1:]), resident(raw, device, 0.5)
    build = {run.method: partial(Trainer, params, run, overrides, data, device) for run in runs}
    trained = bench_training(build, device, steps, rounds)
    batch = min(first.training.batch, entry.evaluation.batch)
    document = {
        "command": f"gcflow {' '.join(sys.argv[1:])}",
        "machine": machine(device),
        "dataset": dataset,
        "shape": list(shape),
        "training": to_dict(first.training),
        "network": to_dict(first.network),
        "steps_per_round": steps,
        "rounds": rounds,
        "train": trained,
        "sampling_images_per_second": bench_sampling(first, samplers(first, entry.evaluation), batch, shape, device),
        "evaluation_images_per_second": bench_features(params, dataset, raw, device),
        "peak_process_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    out = out or results_folder(params.root, dataset) / "bench.json"
    write_json(out, document)
    show(document)
    say(f"written to {out}")


def show(document: dict[str, Any]) -> None:
    """Prints the measurements as a table."""
    say(f"{'training':<18} {'grain':>6} {'steps/s':>9} {'images/s':>10} {'/ first':>8} {'of peak':>8} {'memory':>9}")
    for method, row in document["train"]["methods"].items():
        memory = size(row["peak_memory_bytes"]) if row["peak_memory_bytes"] else "-"
        say(
            f"{method:<18} {row['grain']:>6} {1 / row['seconds_per_step']:>9.4g} {row['images_per_second']:>10.4g} "
            f"{row['step_over_first']:>8.3f} {row['share_of_peak']:>8.1%} {memory:>9}"
        )
    for title, what in (("sampling", "sampling"), ("evaluation", "features")):
        for name, value in document[f"{title}_images_per_second"].items():
            say(f"{what} {name:<18} {value:>10.4g} images/s")
    say(f"peak, of a matrix product: {scaled(document['train']['peak_operations_per_second'], 'FLOP/s')}")
    say(f"memory of this process: {size(document['peak_process_bytes'])}")
