"""How fast a GPU trains and evaluates the paper's CIFAR-10 network, and what bounds it.

python benchmarks/gpu.py [--only SECTION ...] [--budget SECONDS] [--out FOLDER] [--size tiny|paper] [--inception FILE]
                         [--images FILE]

Sections run in the order of `SECTIONS`, the most important first, each in its own guard. Every row is printed and
written to FOLDER/gpu.json as soon as it is measured, with the configuration that it was measured on. Without CUDA a
tiny network takes the place of the paper's: its numbers show that the sections work, and nothing else.

Only what gcflow's core needs is imported; benchmarks/README.md says what each row means and how all this is carried to
a machine that has only torch.
"""

import argparse
import gc
import os
import platform
import statistics
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from gcflow import register
from gcflow.batches import Batches, resident
from gcflow.config import (
    Cadence,
    EctSchedule,
    MethodConfig,
    NetworkConfig,
    NoiseProcess,
    RunConfig,
    RunReference,
    TrainingConfig,
    to_dict,
    without_dropout,
)
from gcflow.distributed import World
from gcflow.errors import Preempted
from gcflow.files import write_json
from gcflow.inception import PIXELS, Inception, write_surrogate
from gcflow.metrics import FeatureStatistics, frechet_distance
from gcflow.model import PreconditionedNetwork
from gcflow.networks import Network
from gcflow.precision import set_precision, tune
from gcflow.sampling import Sampler, generate
from gcflow.songunet import Convolution, xavier_uniform
from gcflow.training import Helpers, Observer, TrainingState, initial_state, make_step, train
from gcflow.weights import spec_of

Row = dict[str, Any]
MU = 0.5
ROUNDS, REPEATS = 7, 4
# Steps of a run, of which a few are taken.
MANY = 1000


class OneConvolution(nn.Module):
    """A single layer with the interface of a network."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layer = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, condition: Tensor, keys: Tensor | None = None) -> Tensor:
        """X [B, C, H, W], condition [B]."""
        return self.layer(x) + condition[:, None, None, None]


@register.network
class SingleLayer(Network):
    """What is compiled at the tiny size: the smallest of U-Nets takes a CPU's compiler minutes."""

    architecture: Literal["single-layer"] = "single-layer"
    dropout: float = 0.0

    def build(self, shape: tuple[int, ...]) -> nn.Module:
        """The network for images [C, H, W]."""
        return OneConvolution(shape[0])


class Size(NamedTuple):
    """What everything is measured on.

    network: without dropout. compiled: the network of compiled steps. shape: of one image. images: random ones,
    resident on the device. batch: of a training step. samples: images to generate, `generated` at once. matrix: side of
    the square matrices whose product gives the peak. compared: steps of runs whose losses are compared.
    """

    network: Network
    compiled: Network
    shape: tuple[int, int, int]
    images: int
    batch: int
    samples: int
    generated: int
    matrix: int
    compared: int


UNET = NetworkConfig("ddpm++", channels=128, blocks=3, multipliers=(1, 2, 2))
SMALL_UNET = NetworkConfig("ddpm++", channels=8, blocks=1, multipliers=(1, 2))
SIZES = {
    "paper": Size(
        UNET,
        UNET,
        shape=(3, 32, 32),
        images=50_000,
        batch=512,
        samples=50_000,
        generated=500,
        matrix=8192,
        compared=300,
    ),
    "tiny": Size(
        SMALL_UNET,
        SingleLayer(),
        shape=(3, 8, 8),
        images=64,
        batch=4,
        samples=32,
        generated=16,
        matrix=256,
        compared=10,
    ),
}


@dataclass(frozen=True)
class Bench:
    """What every section is given.

    data: uint8 [n, C, H, W]. images: what they are. inception: file of the network, None for its surrogate.
    """

    device: str
    size: Size
    data: Tensor
    images: str
    inception: Path | None = None

    @property
    def cuda(self) -> bool:
        """Whether the device is a GPU."""
        return self.device == "cuda"

    def seconds(self, work: Callable[[], object], calls: int = 1) -> float:
        """Of one call, on average over several in a row, the device's work included."""
        self.synchronize()
        start = time.perf_counter()
        for _ in range(calls):
            work()
        self.synchronize()
        return (time.perf_counter() - start) / calls

    def synchronize(self) -> None:
        """Waits for the device."""
        if self.cuda:
            torch.cuda.synchronize()

    def forget_peak_memory(self) -> None:
        """Begins to measure the peak of the device's memory anew."""
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()

    def peak_memory(self) -> int | None:
        """Most bytes allocated at once since `forget_peak_memory`; None on the CPU."""
        return torch.cuda.max_memory_allocated() if self.cuda else None


METHODS: dict[str, dict[str, Any]] = {
    "ic": {"coupling": "ic"},
    "ot": {"coupling": "ot"},
    "gc": {"coupling": "gc", "mu": MU, "predictor": "ema"},
    "cd": {"coupling": "ic", "objective": "distillation", "teacher": RunReference("denoiser")},
    "ect": {"coupling": "ic"},
}
# What ECT trains with instead.
ECT = {"optimizer": "radam", "huber_c": 0.0, "ema_decay": 0.9993, "schedule": EctSchedule(q=256.0)}


def recipe(size: Size, method: str = "ic", dropout: float = 0.0, part: int = 1, **training: Any) -> RunConfig:
    """The paper's recipe for CIFAR-10 (benchmarks/cifar10.yaml) on a network of `size`.

    Args:
        size: gives network and batch; ECT's batch is a quarter of it.
        method: a key of `METHODS`.
        dropout: rate in the network.
        part: a grain is this part of `size.batch`: 1 / part.
        training: options of `TrainingConfig` that differ.
    """
    grain, batch = max(1, size.batch // part), size.batch // 4 if method == "ect" else size.batch
    options = {"steps": MANY, "snapshot_every": MANY, "batch": batch, "grain": min(grain, batch), "learning_rate": 1e-4}
    options |= (ECT if method == "ect" else {}) | training
    network: Any = size.compiled if training.get("compile") == "default" else size.network
    return RunConfig(
        dataset="random-pixels",
        method_name=method,
        seed=0,
        process=NoiseProcess(),
        network=replace(network, dropout=dropout),
        training=TrainingConfig(**options),
        method=MethodConfig(**{"objective": "consistency", **METHODS[method]}),
    )


def described(config: RunConfig) -> str:
    """A run in a few words."""
    training, dropout = config.training, to_dict(config.network)["dropout"]
    words = [
        f"GC({MU:g})" if config.method_name == "gc" else config.method_name.upper(),
        training.precision,
        {"none": "eager", "default": "compiled"}.get(training.compile, training.compile),
        *([f"dropout {dropout:g}"] if dropout else []),
        f"batch {training.batch} in grains of {training.grain}",
    ]
    return ", ".join(words)


def run_once(network: Network, shape: tuple[int, ...]) -> None:
    """One pass of an untrained network for one image, on the CPU."""
    with torch.no_grad():
        network.build(shape)(torch.zeros(1, *shape), torch.ones(1))


@cache
def flop_of_pass(network: Network, shape: tuple[int, ...]) -> int:
    """Floating-point operations of one pass for one image."""
    with FlopCounterMode(display=False) as counter:
        run_once(network, shape)
    operations: int = counter.get_total_flops()
    return operations


def passes_per_image(config: RunConfig) -> float:
    """Forward passes that a training step cannot avoid, a backward pass counted as two."""
    return config.method.objective.passes + config.method.objective.distils + statistics.fmean(config.method.mu_range)


def choose_convolutions(fastest: bool) -> None:
    """Lets cuDNN try its algorithms and take the fastest, or only those that repeat their bits, by its heuristics."""
    torch.backends.cudnn.deterministic = not fastest
    torch.backends.cudnn.benchmark = fastest


class Trainer:
    """A run whose steps, those of `gcflow train`, are timed. `batches` have to be closed."""

    def __init__(self, bench: Bench, config: RunConfig) -> None:
        self.bench, self.config = bench, config
        self.state = initial_state(config, bench.size.shape, bench.device)
        teacher = untrained(bench, config) if config.method.objective.distils else None
        set_precision(config.training)
        self.batches = Batches(config, bench.data, torch.device(bench.device), World())
        self.step = make_step(config, self.batches, self.state, Helpers(teacher=teacher), World())

    def steps(self, count: int) -> None:
        """`count` steps of training."""
        for _ in range(count):
            self.step(False)

    def passes(self) -> None:
        """The passes of the networks in a step, and nothing else."""
        training, model, device = self.config.training, self.state.model, self.bench.device
        grain = training.grain or training.batch
        x, sigma = torch.ones(grain, *self.bench.size.shape, device=device), torch.ones(grain, device=device)
        keys = torch.arange(grain, dtype=torch.int32, device=device)
        further = round(grain * (passes_per_image(self.config) - 4))
        for _ in range(training.grains):
            with torch.no_grad():
                if further:
                    self.state.ema(x[:further], sigma[:further])
                model(x, sigma, keys)
            torch.autograd.grad(model(x, sigma, keys), self.state.flat.parameters, x)


def untrained(bench: Bench, config: RunConfig) -> PreconditionedNetwork:
    """A model of a run, for passes without gradient."""
    model = spec_of(config, bench.size.shape).build().to(bench.device).eval().requires_grad_(False)
    return tune(model, config.training)


def training(bench: Bench, config: RunConfig, steps: int = 2, rounds: int = 3) -> Iterator[Row]:
    """Steps as training takes them: `rounds` of `steps`, after three to warm up."""
    bench.forget_peak_memory()
    start = time.perf_counter()
    trainer = Trainer(bench, config)
    with trainer.batches:
        bench.seconds(partial(trainer.steps, 1))
        first = time.perf_counter() - start
        trainer.steps(2)
        times = [bench.seconds(partial(trainer.steps, steps)) / steps for _ in range(rounds)]
    memory = bench.peak_memory()
    bench.seconds(trainer.passes)
    passes = statistics.median(bench.seconds(trainer.passes) for _ in range(rounds))
    yield speed(bench, config, times) | {
        "step_over_passes": statistics.median(times) / passes,
        "first_step_seconds": first,
        "peak_memory_bytes": memory,
    }


def speed(bench: Bench, config: RunConfig, times: list[float]) -> Row:
    """The row of a training step that took `times`, in seconds."""
    step = statistics.median(times)
    images = config.training.batch / step
    operations = flop_of_pass(without_dropout(config.network), bench.size.shape)
    return {
        "what": described(config),
        "seconds_per_step": step,
        "images_per_second": images,
        "flop_per_second": images * passes_per_image(config) * operations,
        "seconds_of_rounds": times,
        "config": to_dict(config),
    }


def kernels(bench: Bench, config: RunConfig) -> Iterator[Row]:
    """The ten kernels, or on the CPU operators, that a step spends most of its time in."""
    trainer = Trainer(bench, config)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if bench.cuda else [])]
    with trainer.batches:
        trainer.steps(2)
        with profile(activities=activities) as found:
            trainer.steps(1)
            bench.synchronize()
    time_of = "self_device_time_total" if bench.cuda else "self_cpu_time_total"
    device = torch.autograd.DeviceType.CUDA if bench.cuda else torch.autograd.DeviceType.CPU
    events = [event for event in found.key_averages() if event.device_type == device]
    total = sum(getattr(event, time_of) for event in events)
    for event in sorted(events, key=lambda event: -getattr(event, time_of))[:10]:
        seconds = getattr(event, time_of) * 1e-6
        share = seconds * 1e6 / total
        note = f"{1e3 * seconds:.4g} ms, {share:.1%}, {event.count} calls"
        yield {"what": event.key[:64], "kernel": event.key, "note": note, "seconds": seconds, "share": share}


def environment(bench: Bench) -> Iterator[Row]:
    """What the numbers are measured on."""
    gpu = torch.cuda.get_device_name() if bench.cuda else None
    yield {
        "what": f"torch {torch.__version__}, {gpu or platform.machine()}, Python {platform.python_version()}",
        "torch": torch.__version__,
        "cuda": torch.version.cuda if bench.cuda else None,
        "cudnn": torch.backends.cudnn.version() if bench.cuda else None,
        "gpu": gpu,
        "gpu_memory_bytes": torch.cuda.get_device_properties(0).total_memory if bench.cuda else None,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def peaks(bench: Bench) -> Iterator[Row]:
    """The two ceilings: of products of large matrices in each precision, and of copies in the device's memory."""
    side = bench.size.matrix
    for precision in ("bfloat16", "tf32", "float32"):
        set_precision(recipe(bench.size, precision=precision).training)
        dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
        a, b = (torch.randn(side, side, device=bench.device, dtype=dtype) for _ in range(2))
        product = partial(torch.matmul, a, b)
        bench.seconds(product, 3)
        taken = statistics.median(bench.seconds(product) for _ in range(ROUNDS))
        what = f"product of matrices of side {side}, {precision}"
        yield {"what": what, "precision": precision, "side": side, "flop_per_second": 2 * side**3 / taken}
    source = torch.empty(4 * side**2, dtype=torch.float32, device=bench.device).normal_()
    copy = partial(torch.empty_like(source).copy_, source)
    bench.seconds(copy, 3)
    # Read and written.
    rate = 2 * source.nbytes / statistics.median(bench.seconds(copy) for _ in range(ROUNDS))
    what = f"copy of {source.nbytes / 2**20:.4g} MiB"
    yield {"what": what, "note": f"{rate / 1e9:.4g} GB/s", "bytes": source.nbytes, "bytes_per_second": rate}


def processes(bench: Bench) -> Iterator[Row]:
    """The process group of a run on several GPUs, with one process in it: NCCL starts, and adds up."""
    backend = "cpu:gloo,cuda:nccl" if bench.cuda else "gloo"
    with TemporaryDirectory() as folder:
        begun = time.perf_counter()
        torch.distributed.init_process_group(backend, init_method=f"file://{folder}/store", rank=0, world_size=1)
        try:
            ones = torch.ones(bench.size.matrix**2 // 4, device=bench.device)
            add_up = partial(torch.distributed.all_reduce, ones)
            bench.seconds(add_up)
            started = time.perf_counter() - begun
            row = {"what": f"{backend}, one process", "warm_up_seconds": started, "seconds": bench.seconds(add_up)}
            yield row | {"note": f"mean {float(ones.mean()):g}, expected 1"}
        finally:
            torch.distributed.destroy_process_group()


class CutOnce(Observer):
    """Asks for a stop before one step, and keeps what is saved then."""

    def __init__(self, step: int) -> None:
        self.asked, self.step = 0, step
        self.saved: tuple[dict[str, Tensor], int] = {}, 0

    def stop_requested(self) -> str | None:
        """A reason, once `step` steps are done."""
        self.asked += 1
        return "cut" if self.asked == self.step + 1 else None

    def checkpoint(self, state: TrainingState) -> None:
        """Keeps a copy."""
        self.saved = on_the_cpu(state), state.step


def on_the_cpu(state: TrainingState) -> dict[str, Tensor]:
    """A copy of all that a state holds."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in state.tensors().items()}


def cut_and_resumed(bench: Bench, config: RunConfig) -> TrainingState:
    """The end of a run that was stopped half-way and went on from what it had saved."""
    observer = CutOnce(config.training.steps // 2)
    try:
        train(config, bench.data, initial_state(config, bench.size.shape, bench.device), observer)
    except Preempted:
        state = initial_state(config, bench.size.shape, bench.device)
        state.restore(*observer.saved, Path("memory"))
        return train(config, bench.data, state)
    raise RuntimeError("the run was not cut")


def exactness(bench: Bench, **path: Any) -> Iterator[Row]:
    """Whether weights, EMA and optimizer of a short GC run repeat to the bit: again from the start, and resumed."""
    steps, batch = 4, max(4, bench.size.batch // 8)
    options = {"batch": batch, "grain": batch // 2, "steps": steps, "snapshot_every": steps}
    config = recipe(bench.size, "gc", 0.1, **path | options)

    def whole() -> dict[str, Tensor]:
        return on_the_cpu(train(config, bench.data, initial_state(config, bench.size.shape, bench.device)))

    first, start = whole(), on_the_cpu(initial_state(config, bench.size.shape, bench.device))
    moved = any(not torch.equal(tensor, first[name]) for name, tensor in start.items() if name.startswith("raw."))
    ends = {"repeated": whole, "resumed": lambda: on_the_cpu(cut_and_resumed(bench, config))}
    for way, end in ends.items():
        other = end()
        same = first.keys() == other.keys() and all(torch.equal(first[name], other[name]) for name in first)
        yield {
            "what": f"{described(config)}, {way}",
            "note": "identical" if same and moved else "NOT identical" if moved else "NOTHING LEARNED",
            "identical": same,
            "weights_moved": moved,
            "config": to_dict(config),
        }


@dataclass
class Evaluation:
    """What `gcflow evaluate` does to get from weights to a Fréchet distance, without files."""

    bench: Bench
    network: Inception = field(init=False)

    def __post_init__(self) -> None:
        with TemporaryDirectory() as folder:
            path = self.bench.inception or Path(folder) / "surrogate.pt"
            if self.bench.inception is None:
                write_surrogate(path, 0)
            self.network = Inception.load(path, self.bench.device)

    @property
    def named(self) -> str:
        """The network of the features."""
        return "Inception" if self.bench.inception else "Inception's surrogate"

    def drawn(self, precision: str) -> Iterator[Tensor]:
        """One-step samples of a model of random weights, float32 [B, C, H, W] on the device."""
        size = self.bench.size
        config = recipe(size, precision=precision, compile="fused")
        set_precision(config.training)
        model = untrained(self.bench, config)
        torch.manual_seed(0)
        for layer in model.modules():
            if isinstance(layer, Convolution):
                # With the initial weights a pass adds nearly nothing, and its rounding would not show.
                xavier_uniform(layer.weight.data, 1.0)
        images, sampler = range(size.samples), Sampler("consistency")
        return generate(model, sampler, size.shape, images, 0, size.generated, torch.float32)

    def statistics(self, images: Iterator[Tensor]) -> FeatureStatistics:
        """Of the features of float images."""
        found = FeatureStatistics()
        for part in images:
            found.update(self.network(PIXELS["clip"](part), "clean")[0])
        return found


def sampling(bench: Bench) -> Iterator[Row]:
    """One-step samples, their noise drawn on the host; and how far rounding moves them and their features."""
    evaluation, size = Evaluation(bench), bench.size
    exact = next(evaluation.drawn("float32"))
    features = evaluation.network(PIXELS["clip"](exact), "clean")[0]
    for precision in ("float32", "tf32", "bfloat16"):
        few = next(evaluation.drawn(precision))
        pixels = (PIXELS["clip"](few).int() - PIXELS["clip"](exact).int()).abs()
        moved = evaluation.network(PIXELS["clip"](few), "clean")[0]
        error = float((moved - features).norm() / features.norm())

        def draw(precision: str = precision) -> None:
            for _ in evaluation.drawn(precision):
                pass

        images = size.samples / bench.seconds(draw)
        yield {
            "what": f"one-step samples, {precision}, {size.samples} images",
            "images_per_second": images,
            "flop_per_second": images * flop_of_pass(size.network, size.shape),
            "note": f"pixels off by at most {int(pixels.max())}, features by {error:.2g} of their norm",
            "largest_pixel_difference": int(pixels.max()),
            "relative_feature_difference": error,
            "features": evaluation.named,
        }


def features(bench: Bench) -> Iterator[Row]:
    """Features of images on the device, in IEEE float32."""
    evaluation = Evaluation(bench)
    images = torch.randint(0, 256, (bench.size.generated, *bench.size.shape), dtype=torch.uint8, device=bench.device)
    for resize in ("clean", "legacy-tensorflow"):
        taken = partial(evaluation.network, images, resize)
        bench.seconds(taken)
        what = f"features of {evaluation.named}, {resize}"
        yield {"what": what, "images_per_second": len(images) / bench.seconds(taken)}


def whole_distance(bench: Bench) -> Iterator[Row]:
    """From weights to a Fréchet distance, its reference at hand; and that distance on the device and on the CPU."""
    evaluation = Evaluation(bench)
    images = 2 * bench.data[: bench.size.samples] / 255 - 1
    real = evaluation.statistics(iter(torch.split(images, bench.size.generated)))
    bench.seconds(lambda: real.covariance_root)
    for precision in ("float32", "bfloat16"):
        start = time.perf_counter()
        drawn = evaluation.statistics(evaluation.drawn(precision))
        distance = frechet_distance(drawn, real)
        seconds = time.perf_counter() - start
        what = f"weights to Fréchet distance of {bench.size.samples} images, {precision}"
        note = f"{seconds:.4g} s, {distance:.6g} in features of {evaluation.named}"
        yield {"what": what, "note": note, "seconds": seconds, "distance": distance, "features": evaluation.named}
    for place in dict.fromkeys((bench.device, "cpu")):
        sides = [drawn, real]
        if place != bench.device:
            sides = [FeatureStatistics.of(side.tensors(), place) for side in sides]
        bench.seconds(lambda sides=sides: sides[1].covariance_root)
        seconds = bench.seconds(lambda sides=sides: frechet_distance(*sides))
        note = f"{seconds:.4g} s, float64"
        yield {"what": f"Fréchet distance on {place}, its reference's root at hand", "note": note, "seconds": seconds}


class Layer(NamedTuple):
    """A convolution as torch's `convolution` takes it. input: shape of one sample. options: what follows the bias."""

    input: tuple[int, ...]
    weight: tuple[int, ...]
    options: tuple[Any, ...]

    def convolve(self, x: Tensor, weight: Tensor) -> Tensor:
        """The convolution of a batch, without bias."""
        out: Tensor = torch.ops.aten.convolution(x, weight, None, *self.options)
        return out


class Convolutions(TorchDispatchMode):
    """Counts the convolutions that are made inside of it."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[Layer] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.convolution.default:
            x, weight, _, *options = args
            hashable = (tuple(option) if isinstance(option, list) else option for option in options)
            self.found[Layer(tuple(x.shape[1:]), tuple(weight.shape), tuple(hashable))] += 1
        return func(*args, **(kwargs or {}))


def layer_row(bench: Bench, layer: Layer, count: int) -> Row:
    """Seconds of a convolution of bfloat16 batches in channels_last memory, and of both of its gradients."""

    def random(*shape: int) -> Tensor:
        drawn = torch.randn(shape, device=bench.device, dtype=torch.bfloat16)
        return drawn.to(memory_format=torch.channels_last).requires_grad_()

    x, weight = random(bench.size.batch, *layer.input), random(*layer.weight)
    with FlopCounterMode(display=False) as counter:
        out = layer.convolve(x, weight)
    gradient = torch.randn_like(out)
    forward = partial(layer.convolve, x.detach(), weight.detach())
    backward = partial(torch.autograd.grad, out, (x, weight), gradient, retain_graph=True)
    for work in (forward, backward):
        bench.seconds(work, 2)
    return {
        "input": list(layer.input),
        "weight": list(layer.weight),
        "count": count,
        "flop": counter.get_total_flops(),
        "forward_seconds": bench.seconds(forward, REPEATS),
        "backward_seconds": bench.seconds(backward, REPEATS),
    }


def convolutions(bench: Bench) -> Iterator[Row]:
    """What a step of IC would take if it were its convolutions alone: two passes forward, one backward."""
    with Convolutions() as mode:
        run_once(bench.size.network, bench.size.shape)
    for fastest in (False, True):
        choose_convolutions(fastest)
        layers = [layer_row(bench, layer, count) for layer, count in mode.found.items()]
        forward, backward, flop = (
            sum(row["count"] * row[key] for row in layers) for key in ("forward_seconds", "backward_seconds", "flop")
        )
        step = 2 * forward + backward
        yield {
            "what": f"IC, convolutions alone, {'fastest' if fastest else 'deterministic'}, bfloat16",
            "deterministic": not fastest,
            "seconds_per_step": step,
            "images_per_second": bench.size.batch / step,
            "flop_per_second": 4 * flop / step,
            "forward_flop_per_second": flop / forward,
            "backward_flop_per_second": 2 * flop / backward,
            "layers": layers,
            "batch": bench.size.batch,
            "network": to_dict(bench.size.network),
        }


def graphs(bench: Bench) -> Iterator[Row]:
    """The steps whose grains are launched kernel by kernel in `ROWS`, as CUDA graphs."""
    for name in ("ic-128", "gc-128", "ic-64", "gc-64"):
        yield from training(bench, recipe(bench.size, **ROWS[name] | GRAPH))


class Losses(Observer):
    """Keeps the mean losses that it is told."""

    def __init__(self) -> None:
        self.means: list[float] = []

    def logged(self, record: dict[str, Any]) -> None:
        """Of the steps since the last line."""
        self.means.append(record["loss"])


def losses(bench: Bench, config: RunConfig) -> list[float]:
    """Of each tenth of a run."""
    observer, cadence = Losses(), Cadence(log_every=config.training.steps // 10)
    train(config, bench.data, initial_state(config, bench.size.shape, bench.device), observer, cadence)
    return observer.means


def equality(bench: Bench) -> Iterator[Row]:
    """How far the losses of the fast path are from those of TF32 eager, beside those of another seed."""
    steps, batch = bench.size.compared, bench.size.batch // 2
    options = {"steps": steps, "snapshot_every": steps, "batch": batch, "grain": max(1, batch // 4)}
    for method in ("ic", "gc"):
        exact, fast = (recipe(bench.size, method, **path | options) for path in (TF32, FAST))
        found = [losses(bench, config) for config in (exact, fast, replace(exact, seed=1))]
        of_path, of_seed = (
            max(abs(other / one - 1) for one, other in zip(found[0], others, strict=True)) for others in found[1:]
        )
        yield {
            "what": f"{described(fast)}, {steps} steps against TF32 eager",
            "note": f"losses off by at most {of_path:.2%}, by another seed {of_seed:.2%}; on {bench.images}",
            "losses": dict(zip(("tf32", "fast", "tf32, another seed"), found, strict=True)),
            "largest_difference": of_path,
            "largest_difference_of_seed": of_seed,
            "config": to_dict(fast),
        }


@dataclass(frozen=True)
class Section:
    """One question. needs: seconds that must be left of the budget for it to start."""

    rows: Callable[[Bench], Iterator[Row]]
    needs: float


TF32: dict[str, Any] = {"precision": "tf32"}
FAST: dict[str, Any] = {"precision": "bfloat16", "compile": "fused"}
GRAPH = {"compile": "graph"}
COMPILED: dict[str, Any] = {"precision": "bfloat16", "compile": "default"}
# As params.yaml has it today: what `gcflow plan` reckons with.
TODAY = "ic-tf32"
ROWS: dict[str, dict[str, Any]] = {
    TODAY: {"part": 8, **TF32},
    "ic-512": FAST,
    "ic-128": {"part": 4, **FAST},
    "gc-128": {"method": "gc", "part": 4, **FAST},
    "gc-512": {"method": "gc", **FAST},
    "ic-compiled": COMPILED,
    "ic-64": {"part": 8, **FAST},
    "gc-64": {"method": "gc", "part": 8, **FAST},
    "ot-128": {"method": "ot", "part": 4, **FAST},
    "cd-128": {"method": "cd", "part": 4, **FAST},
    "ect-128": {"method": "ect", "part": 4, **FAST},
    "dropout-128": {"dropout": 0.3, "part": 4, **FAST},
    "gc-compiled": {"method": "gc", **COMPILED},
    "ic-float32": {},
}


def row_section(name: str) -> Section:
    """The section of one of `ROWS`."""
    choices = ROWS[name]
    seconds = 60 if choices.get("compile") == "default" else 12
    return Section(lambda bench: training(bench, recipe(bench.size, **choices)), seconds)


def sections() -> dict[str, Section]:
    """All of them, in their order."""
    rows = {name: row_section(name) for name in ROWS}
    early = [TODAY, "ic-512", "ic-128", "gc-128", "ic-compiled"]
    return {
        "env": Section(environment, 0),
        "peaks": Section(peaks, 5),
        "convolutions": Section(convolutions, 20),
        **{name: rows.pop(name) for name in early},
        "exact-fused": Section(partial(exactness, **FAST), 15),
        "fid": Section(whole_distance, 40),
        "kernels": Section(lambda bench: kernels(bench, recipe(bench.size, **ROWS["ic-128"])), 10),
        "graphs": Section(graphs, 50),
        "sampling": Section(sampling, 20),
        "features": Section(features, 10),
        "exact-graph": Section(partial(exactness, **FAST | GRAPH), 15),
        "exact-tf32": Section(partial(exactness, **TF32), 15),
        **rows,
        "exact-compiled": Section(partial(exactness, **COMPILED), 60),
        "processes": Section(processes, 10),
        "equality": Section(equality, 300),
    }


SECTIONS = sections()
# Heading, key of a row, and what its value is multiplied by.
COLUMNS = (
    ("ms/step", "seconds_per_step", 1e3),
    ("/ passes", "step_over_passes", 1),
    ("images/s", "images_per_second", 1),
    ("TFLOP/s", "flop_per_second", 1e-12),
    ("% of peak", "share_of_peak", 100),
    ("% of conv", "share_of_convolutions", 100),
    ("GiB", "peak_memory_bytes", 2**-30),
    ("first s", "first_step_seconds", 1),
)


class Report:
    """The table on the screen and the JSON file, row by row.

    Args:
        out: folder of the file.
        device: torch device.
        size: name of what is measured on.
    """

    def __init__(self, out: Path, device: str, size: str) -> None:
        self.path = out / "gpu.json"
        self.began = time.monotonic()
        self.sections: dict[str, Row] = {}
        command = f"python benchmarks/gpu.py {' '.join(sys.argv[1:])}".rstrip()
        self.document: Row = {"command": command, "device": device, "size": size, "sections": self.sections}
        self.ceilings: dict[str, float] = {}
        headings = "".join(f"{heading:>10}" for heading, _, _ in COLUMNS)
        self.say(f"{'section':<20}{f'{device}, size {size}':<64}{headings}")

    @property
    def elapsed(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self.began

    def say(self, line: str) -> None:
        """Prints a line with the time it is said at."""
        sys.stdout.write(f"[{self.elapsed:6.1f}] {line}".rstrip() + "\n")
        sys.stdout.flush()

    def note(self, section: str, **facts: Any) -> None:
        """Writes facts about a section to the file."""
        self.sections.setdefault(section, {"rows": []}).update(facts)
        write_json(self.path, self.document)

    def add(self, section: str, row: Row) -> None:
        """Prints a row and writes it to the file; with its shares of the ceilings, once they are measured."""
        if section == "peaks" and row.get("precision") == "bfloat16":
            self.ceilings["share_of_peak"] = row["flop_per_second"]
        for share, ceiling in self.ceilings.items():
            if "flop_per_second" in row:
                row[share] = row["flop_per_second"] / ceiling
        # As training has them: those that repeat their bits.
        if section == "convolutions" and row["deterministic"]:
            self.ceilings["share_of_convolutions"] = row["flop_per_second"]
        numbers = ((row.get(key), factor) for _, key, factor in COLUMNS)
        cells = "".join(f"{'' if value is None else f'{factor * value:.4g}':>10}" for value, factor in numbers)
        self.say(f"{section:<20}{row['what']:<64}{cells}  {row.get('note', '')}")
        self.note(section, rows=[*self.sections.get(section, {"rows": []})["rows"], row])


def for_plans(sections: dict[str, Row], size: Size) -> Row:
    """What `gcflow plan` reads of a file of `gcflow bench`, as far as it was measured."""
    rows = {name: section["rows"] for name, section in sections.items() if section["rows"]}
    if not {"env", "peaks", TODAY, "sampling", "features"} <= rows.keys():
        return {}
    (machine,), (today,) = rows["env"], rows[TODAY]
    return {
        "machine": {"gpu": machine["gpu"], "cpu": machine["system"]},
        "training": today["config"]["training"],
        "train": {
            "peak_operations_per_second": rows["peaks"][0]["flop_per_second"],
            "operations_per_pass": flop_of_pass(size.network, size.shape),
            "methods": {today["config"]["method_name"]: {"share_of_peak": today["share_of_peak"]}},
        },
        # As evaluation draws them today.
        "sampling_images_per_second": {"consistency-1": rows["sampling"][1]["images_per_second"]},
        "evaluation_images_per_second": {},
    }


def run_section(name: str, section: Section, bench: Bench, report: Report) -> bool:
    """Whether all rows of a section could be measured; those before a failure are kept."""
    start, problem = time.perf_counter(), None
    try:
        for row in section.rows(bench):
            report.add(name, row)
    except Exception as error:
        problem = f"{type(error).__name__}: {error}"
        report.say(f"{name:<20}failed: {problem}")
        traceback.print_exc()
    report.note(name, seconds=time.perf_counter() - start, **({"failed": problem} if problem else {}))
    # The next one has the device to itself, and its own settings.
    choose_convolutions(fastest=False)
    torch.compiler.reset()
    gc.collect()
    if bench.cuda:
        torch.cuda.empty_cache()
    return problem is None


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), metavar="SECTION")
    parser.add_argument("--budget", type=float, default=280.0, help="seconds, within which sections are begun")
    parser.add_argument("--out", type=Path, default=Path("build/gpu"), help="folder of gpu.json")
    parser.add_argument("--inception", type=Path, help="the network's file; without it a surrogate is timed")
    parser.add_argument("--images", type=Path, help="uint8 [n, 3, 32, 32] in .npy; without it random pixels")
    parser.add_argument("--size", choices=SIZES, help="paper with CUDA, tiny without, unless said")
    return parser.parse_args()


def random_images(size: Size) -> Tensor:
    """Of random pixels, uint8 [n, C, H, W]."""
    return torch.randint(0, 256, (size.images, *size.shape), dtype=torch.uint8)


def images_of(path: Path, size: Size) -> Tensor:
    """Those in a file; exits where it has no such images."""
    try:
        images = np.load(path)
    except (OSError, ValueError) as error:
        sys.exit(f"--images {path}: {error}")
    if images.dtype != np.uint8 or images.shape[1:] != size.shape:
        expected = ", ".join(map(str, size.shape))
        sys.exit(f"--images {path}: has {images.dtype} {list(images.shape)}, expected uint8 [n, {expected}]")
    return torch.from_numpy(images)


def main() -> None:
    """Measures what is asked for and the budget allows; exits with 1 if a section failed."""
    chosen = options()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    name = chosen.size or ("paper" if device == "cuda" else "tiny")
    report, size = Report(chosen.out, device, name), SIZES[name]
    raw = images_of(chosen.images, size) if chosen.images else random_images(size)
    images = str(chosen.images or "random pixels")
    bench = Bench(device, size, resident(raw, device, 0.5), images, chosen.inception)
    failed = []
    for section in (section for section in SECTIONS if section in chosen.only):
        needs, left = SECTIONS[section].needs, chosen.budget - report.elapsed
        if left < needs:
            reason = f"needs {needs:g} s, {left:.0f} are left"
            report.say(f"{section:<20}skipped: {reason}")
            report.note(section, skipped=reason)
        elif not run_section(section, SECTIONS[section], bench, report):
            failed.append(section)
    report.document |= for_plans(report.sections, size)
    write_json(report.path, report.document)
    report.say(f"written to {report.path}")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
