"""`gcflow plan`: the jobs of a target with their operations, their time on one device, and their disk, by formula.

Passes of networks are counted, which are nearly all of the work. With F operations for one pass of one image, a
training step costs 4 F per image for IC (the student's forward pass, its backward pass as two, the teacher's pass),
(4 + mu) F for GC, 5 F for CD and 3 F for a denoiser. Time is operations over the speed that `gcflow bench` measured, or
that is assumed.
"""

import math
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from statistics import fmean
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from gcflow.config import RunConfig, without_dropout
from gcflow.dinov2 import PUBLISHED, SIDE, VisionTransformer
from gcflow.errors import GcflowError
from gcflow.files import read_json, write_json
from gcflow.pipeline.evaluate import measurements
from gcflow.pipeline.features.streamed import KID_POOL
from gcflow.pipeline.folders import data_folder, results_folder
from gcflow.pipeline.graph import Graph
from gcflow.pipeline.params import Params, Run
from gcflow.pipeline.prepare import dimension
from gcflow.pipeline.schema import Dinov2Network, Features
from gcflow.pipeline.stages import Stage
from gcflow.readable import duration, scaled, size
from gcflow.weights import ModelSpec, spec_of

# Of one image of 299 x 299; torchvision counts 5.71e9 products and as many sums.
INCEPTION_OPERATIONS = 11.4e9
# Numbers that an optimizer keeps of each parameter.
MOMENTS = {"lion": 1, "adam": 2, "radam": 2}
COUNTED = ("train", "evaluate", "reference", "transport", "discrepancy")


@cache
def _operations(spec: ModelSpec) -> int:
    model = spec.build()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, *spec.shape), torch.ones(1))
    return int(counter.get_total_flops())


@cache
def _values(spec: ModelSpec) -> int:
    with torch.device("meta"):
        return sum(tensor.numel() for tensor in spec.build().network.state_dict().values())


def _spec(config: RunConfig, shape: tuple[int, ...]) -> ModelSpec:
    """Of a run's network as far as its size goes."""
    spec = spec_of(config, shape)
    return replace(spec, network=without_dropout(spec.network))


@cache
def _dinov2_operations(size: str) -> int:
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        VisionTransformer(*PUBLISHED[size][:2])(torch.zeros(1, 3, SIDE, SIDE))
    return int(counter.get_total_flops())


def feature_operations(features: Features) -> float:
    """Of one image; none of features that are neither Inception's nor DINOv2's."""
    if isinstance(features, Dinov2Network):
        return _dinov2_operations(features.size)
    return INCEPTION_OPERATIONS if features.kind == "inception" else 0.0


def pass_operations(config: RunConfig, shape: tuple[int, ...]) -> int:
    """Floating-point operations of one pass of the network for one sample: products and sums of its layers."""
    return _operations(_spec(config, shape))


def passes_per_sample(config: RunConfig) -> float:
    """Forward passes that a training step costs per sample, a backward pass counted as two; the mean over training."""
    method, steps = config.method, config.training.steps
    teacher = 1 if method.objective.distils and method.teacher != "exact" else 0
    return (
        method.objective.passes + teacher + fmean(config.mu_at(step) for step in range(0, steps, max(1, steps // 200)))
    )


class Work(NamedTuple):
    """Of a job. training, sampling: operations of a model's passes, with gradient and without.

    features: protocol to the images whose features are taken, each in `operations_per_image`.
    """

    training: float = 0.0
    sampling: float = 0.0
    features: Mapping[str, int] = MappingProxyType({})
    operations_per_image: float = 0.0

    @property
    def operations(self) -> float:
        """All of them."""
        return self.training + self.sampling + sum(self.features.values()) * self.operations_per_image


class Counts:
    """What the jobs of a grid compute and write, with one configuration per method."""

    def __init__(self, params: Params) -> None:
        self.params = params
        self._configs: dict[tuple[str, str], RunConfig] = {}

    def config(self, run: Run) -> RunConfig:
        """The configuration of a run, whatever its seed."""
        key = run.dataset, run.method
        if key not in self._configs:
            self._configs[key] = self.params.run_config(run.name)
        return self._configs[key]

    def operations(self, run: Run) -> int:
        """Of a pass of a run's network for one sample."""
        return pass_operations(self.config(run), self.params.dataset(run.dataset).data.shape)

    def images(self, dataset: str) -> tuple[int, int]:
        """Samples to train on, and held-out ones: as prepared, or as the source promises; 0 if it cannot know."""
        manifest = data_folder(self.params.root, dataset) / "manifest.json"
        if manifest.exists():
            found = read_json(manifest)
            return int(found["count"]), int(found.get("held_out", 0))
        source = self.params.dataset(dataset).data
        return source.count or 0, getattr(source, "held_out_images", 0)

    def reference_images(self, job: Stage) -> int:
        """Real images that a protocol takes."""
        assert job.dataset is not None
        rules = self.params.dataset(job.dataset).features.protocols[job.item]
        count, held_out = self.images(job.dataset)
        available = held_out if rules and rules.split == "held-out" else count
        return (rules and rules.reference_images) or available

    def work(self, job: Stage) -> Work:
        """The passes of networks in a job."""
        if job.dataset is None or job.kind not in COUNTED:
            return Work()
        entry = self.params.dataset(job.dataset)
        each = feature_operations(entry.features)
        if job.kind == "reference":
            return Work(features={job.item: self.reference_images(job)}, operations_per_image=each)
        if job.kind == "transport":
            assert entry.transport
            predictor, _ = self.params.resolve(entry.transport.predictor, job.dataset, 0)
            passes = entry.transport.samples * len(entry.transport.sigmas)
            return Work(sampling=passes * self.operations(predictor))
        assert job.run
        config, one = self.config(job.run), self.operations(job.run)
        if job.kind == "train":
            return Work(training=config.training.steps * config.training.batch * passes_per_sample(config) * one)
        if job.kind == "evaluate":
            plan, samples = measurements(config, entry.evaluation), entry.evaluation.samples
            passes = samples * sum(sampler.evaluations for _, _, sampler, _ in plan)
            images = dict.fromkeys(entry.features.protocols, samples * len(plan))
            return Work(sampling=passes * one, features=images, operations_per_image=each)
        assert entry.discrepancy
        # Of the denoiser; with generator-augmented pairs also of the predictor, as endpoints and as upper bound.
        each = 1 + (1 + config.method.mu_range[1] if config.method.coupling.predicts else 0)
        return Work(sampling=each * entry.discrepancy.samples * len(entry.discrepancy.sigmas) * one)

    def disk(self, job: Stage) -> int:
        """Bytes that a job leaves: data, snapshots and the last checkpoints, references. The rest is small."""
        if job.dataset is None:
            return 0
        entry, shape = self.params.dataset(job.dataset), self.params.dataset(job.dataset).data.shape
        if job.kind == "prepare":
            # Images are stored as uint8, points as float32.
            return sum(self.images(job.dataset)) * math.prod(shape) * (4 if len(shape) == 1 else 1)
        if job.kind == "reference" and entry.features.protocols[job.item]:
            width, pool = dimension(entry), min(self.reference_images(job), KID_POOL)
            return width * (8 * width + 4 * pool)
        if job.kind == "train" and job.run:
            training = self.config(job.run).training
            kept = entry.cadence.kept_steps(self.config(job.run).seed, training.steps)
            # In float32, raw weights and their EMA. The final weights are another name of the last snapshot.
            copies = 2 * len(training.snapshot_steps) + (1 + len(kept)) * (2 + MOMENTS[training.optimizer])
            return 4 * copies * _values(_spec(self.config(job.run), shape))
        return 0


@dataclass(frozen=True)
class Speed:
    """Of one device.

    training: operations per second, by method; of methods not named it is the first one's. sampling: the same in passes
    without gradient. features: images per second, by protocol. gpu: whether it is one. source: how this is known.
    """

    training: dict[str, float]
    sampling: float
    features: dict[str, float]
    gpu: bool
    source: str

    @classmethod
    def measured(cls, path: Path) -> "Speed":
        """From a file of `gcflow bench`.

        Raises:
            GcflowError: it is not such a file.
        """
        document = read_json(path)
        try:
            peak = document["train"]["peak_operations_per_second"]
            methods = {name: peak * row["share_of_peak"] for name, row in document["train"]["methods"].items()}
            sampler, rate = next(iter(document["sampling_images_per_second"].items()))
            sampling = rate * int(sampler.rpartition("-")[2]) * document["train"]["operations_per_pass"]
            machine = document["machine"]
            source = (
                f"{scaled(next(iter(methods.values())), 'FLOP/s')} in training, "
                f"{scaled(sampling, 'FLOP/s')} in sampling, "
                f"{document['training']['precision']} on {machine['gpu'] or machine['cpu']} ({path})"
            )
            images = document["evaluation_images_per_second"]
            return cls(methods, sampling, images, machine["gpu"] is not None, source)
        except (KeyError, TypeError, ValueError, AttributeError, StopIteration):
            again = f"run gcflow bench {path.parent.name} again"
            raise GcflowError(f"{path}: not a measurement of this version of gcflow bench; {again}") from None

    def seconds(self, work: Work, method: str) -> float:
        """Of a job of a method, on this device alone."""
        training = self.training.get(method) or next(iter(self.training.values()))
        images = {name: self.features.get(name, 0.0) for name in work.features}
        features = (
            count / images[name] if images[name] else count * work.operations_per_image / self.sampling
            for name, count in work.features.items()
        )
        return work.training / training + work.sampling / self.sampling + sum(features)


def speeds(params: Params, tflops: float | None) -> dict[str, Speed]:
    """Data set to the speed that was measured, or that is assumed for all."""
    if tflops is not None:
        assumed = Speed({"": tflops * 1e12}, tflops * 1e12, {}, True, f"{tflops:g} TFLOP/s, as assumed by --tflops")
        return dict.fromkeys(params.datasets, assumed)
    files = {dataset: results_folder(params.root, dataset) / "bench.json" for dataset in params.datasets}
    return {dataset: Speed.measured(path) for dataset, path in files.items() if path.exists()}


def plan(params: Params, target: str, scale: str, gpus: int = 1, tflops: float | None = None) -> dict[str, Any]:
    """What a target costs, as JSON values: rows of views, data sets and in total, and every job.

    Args:
        params: the grid.
        target: a view of the paper, a data set, a run, a stage, or `all` of the scale.
        scale: whose stages `all` and the views mean.
        gpus: that the jobs share.
        tflops: 10^12 operations per second that a device is assumed to sustain; None takes what was measured.

    Raises:
        GcflowError: there is no such target, or a measurement does not read.
    """
    graph, counts, known = Graph(params, scale), Counts(params), speeds(params, tflops)
    total = graph.target(target)
    views = {view: names for view, names in graph.views.items() if target in ("all", view)}
    names = graph.closure([*total, *(name for names in views.values() for name in names)])
    done, jobs = graph.done(names), dict[str, dict[str, Any]]()
    for name in names:
        job = graph.jobs[name]
        work, speed = counts.work(job), known.get(job.dataset or "")
        seconds = speed.seconds(work, job.run.method if job.run else "") if speed else None if work.operations else 0.0
        jobs[name] = {
            "kind": job.kind,
            "dataset": job.dataset,
            "needs": list(graph.needs[name]),
            "done": name in done,
            "operations": work.operations,
            "seconds": seconds,
            "bytes": counts.disk(job),
        }
    of_dataset = {name: [job for job in total if graph.jobs[job].dataset == name] for name in params.datasets}
    datasets = [name for name, jobs_of in of_dataset.items() if jobs_of]
    rows = views | {name: of_dataset[name] for name in datasets} | {"total": total}
    used = {name: speed for name, speed in known.items() if name in datasets}
    return {
        "target": target,
        "scale": scale,
        "gpus": gpus,
        "device": "CPU" if used and not any(speed.gpu for speed in used.values()) else "GPU",
        "speed": {name: speed.source for name, speed in used.items()},
        "rows": {title: _row([jobs[name] for name in row]) for title, row in rows.items()},
        "longest_chain_seconds": _longest_chain({name: jobs[name] for name in total}),
        "free_bytes": shutil.disk_usage(params.root.resolve()).free,
        "unmeasured": [name for name in datasets if name not in known],
        "unprepared": [name for name in datasets if not counts.images(name)[0]],
        "jobs": jobs,
    }


def _row(jobs: list[dict[str, Any]]) -> dict[str, Any]:
    left = [job for job in jobs if not job["done"]]
    return {
        "runs": sum(job["kind"] == "train" for job in jobs),
        "jobs": len(jobs),
        "done": len(jobs) - len(left),
        "operations": sum(job["operations"] for job in jobs),
        "seconds": _sum(job["seconds"] for job in jobs),
        "seconds_left": _sum(job["seconds"] for job in left),
        "bytes": sum(job["bytes"] for job in jobs),
        "bytes_left": sum(job["bytes"] for job in left),
    }


def _sum(values: Iterable[float | None]) -> float | None:
    """Unknown if a part is."""
    known = list(values)
    return None if None in known else sum(filter(None, known))


def _longest_chain(jobs: dict[str, dict[str, Any]]) -> float | None:
    """Seconds of the longest chain of jobs left that wait for each other; jobs come after those that they need."""
    if any(job["seconds"] is None for job in jobs.values() if not job["done"]):
        return None
    ends: dict[str, float] = {}
    for name, job in jobs.items():
        begin = max((ends[need] for need in job["needs"]), default=0.0)
        ends[name] = begin + (0.0 if job["done"] else job["seconds"])
    return max(ends.values(), default=0.0)


def text(found: dict[str, Any]) -> str:
    """A plan as a person reads it."""
    table = [("", "runs", "jobs", "done", "FLOP", f"{found['device']} time", "left", "disk")]
    for title, row in found["rows"].items():
        counted = (str(row[key]) for key in ("runs", "jobs", "done"))
        times = ("unknown" if row[key] is None else duration(row[key]) for key in ("seconds", "seconds_left"))
        table.append((title, *counted, scaled(row["operations"], "FLOP"), *times, size(row["bytes"])))
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in table]
    lines += ["A job that several rows need is counted in each, in the total once.", "", *_remarks(found)]
    return "\n".join(lines)


def _remarks(found: dict[str, Any]) -> Iterator[str]:
    total, gpus, chain = found["rows"]["total"], found["gpus"], found["longest_chain_seconds"]
    if total["done"] == total["jobs"]:
        yield "Everything is done."
    elif gpus > 1 and chain is not None:
        shared = duration(max(chain, total["seconds_left"] / gpus))
        yield f"On {gpus} {found['device']}s: at least {shared}; the longest chain of jobs takes {duration(chain)}."
    for source in dict.fromkeys(found["speed"].values()):
        yield f"Speed of {', '.join(name for name, same in found['speed'].items() if same == source)}: {source}."
    if any(row["seconds"] is None for row in found["rows"].values()):
        yield "Unknown times become known with a measurement, on the machine that is to do the work:"
        yield from (f"  gcflow bench {dataset}" for dataset in found["unmeasured"])
        yield "or with a speed to assume, in 10^12 operations per second: --tflops 100"
    for dataset in found["unprepared"]:
        yield f"How many images {dataset} has is not known before it is prepared; their bytes are left out."
    if total["bytes_left"]:
        fits = "" if total["bytes_left"] < found["free_bytes"] else ": THIS DOES NOT FIT"
        needed, free = (size(count) for count in (total["bytes_left"], found["free_bytes"]))
        yield f"Disk: {needed} to be written, the last checkpoints of each run included; {free} are free{fits}."
    yield "Not counted: preparing data, starting, distances between features, theory, tables, figures."


def show(params: Params, target: str, scale: str, gpus: int, tflops: float | None, file: Path | None) -> str:
    """The plan of a target as text; also written to a JSON file if one is named."""
    found = plan(params, target, scale, gpus, tflops)
    if file is not None:
        write_json(file, found)
    return text(found)
