"""`gcflow bench`: how fast this machine trains, samples and evaluates, and what share of its peak that is.

A training step is compared with the network passes that it cannot avoid: the teacher's, the student's with its
gradient, and the endpoint prediction for the share mu of the samples. With F operations for one pass of one image a
step of IC costs 4 F per image, of GC(mu) (4 + mu) F, of CD 5 F.
"""

import os
import platform
import resource
import statistics
import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gcflow.batches import resident
from gcflow.classifier import ImageClassifier
from gcflow.config import RunConfig, to_dict
from gcflow.dropout import dropout_keys
from gcflow.errors import GcflowError
from gcflow.files import write_json
from gcflow.metrics import frechet_distance
from gcflow.pipeline.evaluate import samplers
from gcflow.pipeline.params import Params, Run
from gcflow.pipeline.planning import measure
from gcflow.pipeline.planning.sampling_speed import bench_networks, seconds
from gcflow.pipeline.planning.work import helper_passes_per_sample, pass_operations, passes_per_sample
from gcflow.pipeline.progress import Progress, say
from gcflow.pipeline.schema import Classifier
from gcflow.precision import begin_step, set_precision, tune
from gcflow.preconditioning import PreconditionedNetwork, to_model_space
from gcflow.training import Helpers, TrainingState, initial_state, train
from gcflow.weights import spec_of

SAMPLES = 512
MATRIX = {"cpu": 2048, "cuda": 8192}


def peak_rate(precision: str, device: str) -> float:
    """Operations per second of a large square matrix product in a run's precision: the best of ten."""
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    side = MATRIX["cuda" if device.startswith("cuda") else "cpu"]
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return 2 * side**3 / min(seconds(lambda: a @ b, device) for _ in range(10))


@dataclass
class Trainer:
    """A run that is timed: the real loop, and its bare passes."""

    config: RunConfig
    data: Tensor
    state: TrainingState
    helpers: Helpers
    device: str

    @classmethod
    def of(cls, params: Params, run: Run, overrides: dict[str, dict[str, Any]], data: Tensor, device: str) -> "Trainer":
        """A fresh one, with untrained weights in every role."""
        config = params.run_config(run.name, overrides)
        # The few steps of a round would all come before a late switch, and at one end of a share that changes.
        mu = config.method.mu if config.method.mu is None else statistics.fmean(config.method.mu_range)
        config = replace(config, method=replace(config.method, mu=mu, mu_from_step=None))
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
        helpers = Helpers(untrained("predictor"), untrained("teacher"), exact)
        return cls(config, data, initial_state(config, shape, device), helpers, device)

    def steps(self, count: int) -> None:
        """`count` steps of training."""
        end = self.state.step + count
        training = replace(self.config.training, steps=end, snapshot_every=end)
        train(replace(self.config, training=training), self.data, self.state, helpers=self.helpers)

    def passes(self, count: int) -> None:
        """The bare passes of `count` steps."""
        training = self.config.training
        x = to_model_space(self.data[: training.batch], self.config.process)
        sigma = torch.full((len(x),), 1.0, device=self.device)
        size = training.micro_batch or len(x)
        extra = round(helper_passes_per_sample(self.config) * size)
        keys = dropout_keys(0, 0, len(x)).to(self.device)
        helper = self.helpers.teacher or self.helpers.predictor or self.state.ema
        for _ in range(count):
            begin_step(training)
            for part, levels, dropout in zip(x.split(size), sigma.split(size), keys.split(size), strict=True):
                self.state.model(part, levels, dropout).square().mean().backward()
                with torch.no_grad():
                    if self.config.method.objective != "denoising":
                        self.state.model(part, levels, dropout)
                    if extra > 0:
                        helper(part[:extra], levels[:extra])
            self.state.optimizer.zero_grad(set_to_none=True)


def memory_of_step(
    params: Params, run: Run, overrides: dict[str, dict[str, Any]], data: Tensor, device: str
) -> int | None:
    """Peak bytes that a GPU has allocated in training steps, data included; None on the CPU."""
    if not device.startswith("cuda"):
        return None
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    Trainer.of(params, run, overrides, data, device).steps(2)
    return torch.cuda.max_memory_allocated(device)


def bench_training(
    params: Params,
    runs: list[Run],
    overrides: dict[str, dict[str, Any]],
    data: Tensor,
    device: str,
    steps: int,
    rounds: int,
) -> dict[str, Any]:
    """Times each run's steps and passes, in turn with the first run's, so that a drifting machine drifts for both."""
    reference = Trainer.of(params, runs[0], overrides, data, device)
    rate, results = peak_rate(reference.config.training.precision, device), {}
    operations = pass_operations(reference.config, tuple(data.shape[1:]))
    with Progress("bench", len(runs) * (rounds + 1), unit="round") as progress:
        for number, run in enumerate(runs):
            memory = memory_of_step(params, run, overrides, data, device)
            trainer = reference if number == 0 else Trainer.of(params, run, overrides, data, device)
            times: dict[str, list[float]] = {"step": [], "passes": [], "reference": []}
            for turn in range(rounds + 1):
                works = {"reference": reference.steps, "step": trainer.steps, "passes": trainer.passes}
                measured = {key: seconds(partial(work, steps), device) / steps for key, work in works.items()}
                if turn > 0:
                    for key, value in measured.items():
                        times[key].append(value)
                progress.update(number * (rounds + 1) + turn + 1, run.method)
            step, passes, base = (statistics.median(times[key]) for key in ("step", "passes", "reference"))
            config = trainer.config
            done = config.training.batch / step
            results[run.method] = {
                "seconds_per_step": step,
                "images_per_second": done,
                "step_over_passes": step / passes,
                "step_over_first": step / base,
                "passes_per_image": passes_per_sample(config),
                "share_of_peak": done * passes_per_sample(config) * operations / rate,
                "peak_memory_bytes": memory,
                "config": to_dict(config),
            }
    return {"operations_per_pass": operations, "peak_operations_per_second": rate, "methods": results}


def bench_stages(
    params: Params, dataset: str, configs: list[RunConfig], raw: Tensor, archives: Path, device: str
) -> dict[str, Any]:
    """What `gcflow plan` needs besides the speed of training: what every other verb takes on this data set."""
    entry, shape = params.dataset(dataset), tuple(raw.shape[1:])
    found: dict[str, Any] = {
        "startup_seconds": measure.startups(device),
        "sampling": bench_networks(params, configs, shape, device),
        "features": measure.features(params, dataset, raw, archives, device),
        "prepare": measure.preparation(entry, archives),
    }
    if isinstance(entry.features, Classifier):
        found["classifier_step_seconds"] = measure.classifier_step(entry.features, raw)
    if entry.transport:
        run, _ = params.resolve(entry.transport.predictor, dataset, 0)
        taken = measure.transport(params, dataset, params.run_config(run.name), raw)
        found["transport"] = {"settings": to_dict(entry.transport), "seconds": taken}
    if entry.discrepancy:
        found["exact_denoising_seconds"] = measure.exact_denoising(params, dataset, configs[0], raw)
        found["assignment_seconds"] = measure.assignment(raw, entry.process, entry.training.batch)
    if entry.theory:
        found["theory"] = {"settings": to_dict(entry.theory), "seconds": measure.theory(entry)}
    return found


def bench_evaluation(params: Params, dataset: str, data: Tensor) -> dict[str, Any]:
    """Images per second of features and of the Fréchet distance, where features are a classifier's."""
    if not isinstance(params.dataset(dataset).features, Classifier):
        return {}
    classifier = ImageClassifier(tuple(data.shape[1:]), 10).eval().requires_grad_(False)
    images = data[:SAMPLES].cpu()
    features = classifier.features(images)
    return {
        "features": len(images) / seconds(lambda: classifier.features(images), "cpu"),
        "frechet_distance": len(images) / seconds(lambda: frechet_distance(features, features.flip(0)), "cpu"),
    }


def machine(device: str) -> dict[str, Any]:
    """What the numbers were measured on."""
    gpu = torch.cuda.get_device_name(device) if device.startswith("cuda") else None
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        cpu = names[0] if names else cpu
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def bench(
    params: Params,
    dataset: str,
    methods: tuple[str, ...],
    overrides: dict[str, dict[str, Any]],
    device: str,
    steps: int,
    rounds: int,
    out: Path,
    archives: Path = Path("archives"),
) -> dict[str, Any]:
    """Measures training and all that `gcflow plan` needs at a data set's shapes, writes JSON and returns it.

    Args:
        params: the grid.
        dataset: whose network, recipe and data are used; its data need not be prepared.
        methods: to be timed; the ratios are to the first. Empty means all of them.
        overrides: keys of `network` and `training` set for this measurement.
        device: torch device.
        steps: per round.
        rounds: counted ones, after one to warm up; medians are reported.
        out: the JSON file.
        archives: the folder of official files: Inception, and the data's own, where they are there.

    Raises:
        GcflowError: an unknown method, or a key or value that params.yaml could not have either.
    """
    entry = params.dataset(dataset)
    known = list(entry.runs)
    for method in methods:
        if method not in known:
            raise GcflowError(f"--method {method}: {dataset} has runs of {', '.join(known)}")
    runs = [Run(dataset, method, entry.runs[method].seeds[0]) for method in methods or known]
    configs = [params.run_config(run.name, overrides) for run in runs]
    first = configs[0]
    torch.set_num_threads(first.training.cpu_threads)
    set_precision(first.training)
    raw = torch.from_numpy(entry.data.timing_samples())
    shape = tuple(raw.shape[1:])
    data = resident(raw, device, 0.5)
    trained = bench_training(params, runs, overrides, data, device, steps, rounds)
    stages = bench_stages(params, dataset, configs, raw, archives, device)
    ways = {f"{sampler.name}-{sampler.evaluations}" for sampler in samplers(first, entry.evaluation)}
    sampled = stages["sampling"][0]["images_per_second"]
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
        "sampling_images_per_second": {name: rate for name, rate in sampled.items() if name in ways},
        "evaluation_images_per_second": bench_evaluation(params, dataset, data),
        "stages": stages,
        "peak_process_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    write_json(out, document)
    return document


def show(document: dict[str, Any], out: Path) -> None:
    """Prints the measurements as a table."""
    trained = document["train"]
    say(f"{'method':<18} {'steps/s':>9} {'images/s':>10} {'/ passes':>9} {'/ first':>8} {'of peak':>8} {'memory':>9}")
    for method, row in trained["methods"].items():
        memory = f"{row['peak_memory_bytes'] / 2**30:.1f} GiB" if row["peak_memory_bytes"] else "-"
        say(
            f"{method:<18} {1 / row['seconds_per_step']:>9.4g} {row['images_per_second']:>10.4g} "
            f"{row['step_over_passes']:>9.3f} {row['step_over_first']:>8.3f} {row['share_of_peak']:>8.1%} {memory:>9}"
        )
    for title in ("sampling", "evaluation"):
        for name, value in document[f"{title}_images_per_second"].items():
            say(f"{title} {name:<16} {value:>12.4g} images/s")
    say(f"peak of the matrix product: {trained['peak_operations_per_second'] / 1e12:.3g} TFLOP/s; written to {out}")
