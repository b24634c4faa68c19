"""How long each job takes on the machine whose measurements `gcflow bench` wrote."""

import statistics
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from gcflow.config import RunConfig, run_config_from_dict, to_dict, without_dropout
from gcflow.files import read_json
from gcflow.pipeline.evaluate import measurements
from gcflow.pipeline.folders import results_folder
from gcflow.pipeline.planning.disk import reference_images, sample_counts
from gcflow.pipeline.planning.jobs import OF_SCALE, Graph, Job
from gcflow.pipeline.planning.work import mean_passes_per_sample, pass_operations, passes_per_sample
from gcflow.pipeline.schema import Classifier
from gcflow.sampling import Sampler

GPU_KINDS = ("train", "evaluate", "discrepancy", "transport")
# What the speed of a step depends on besides network, batch and method.
SPEED_KEYS = ("precision", "compile", "channels_last", "micro_batch", "cpu_threads")
START_OF = {
    "features": "reference",
    "theory": "reference",
    "pretrained": "reference",
    "claims": "figure",
    "report": "figure",
}
START_ONLY = ("table", "figure", "claims", "report", "pretrained")


class Estimate(NamedTuple):
    """Of a job. whole: seconds from its beginning, left: from where it stands; None where nothing measures them.

    exact: whether nothing of it is unknown, so that these are no mere lower bounds. gpu: takes one. threads: of the
    CPU. notes: what was assumed. remedy: what would make an unknown time known.
    """

    whole: float | None
    left: float | None
    exact: bool
    gpu: bool
    threads: int
    notes: tuple[str, ...] = ()
    remedy: str | None = None


class Unmeasured(Exception):
    """A time that nothing measures."""


class Machine:
    """The measurements of every data set, as far as there are some.

    Args:
        graph: of the project.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph, self.params = graph, graph.params
        self.benches: dict[str, dict[str, Any]] = {}
        for dataset in self.params.datasets:
            path = results_folder(self.params.root, dataset) / "bench.json"
            document = read_json(path) if path.exists() else {}
            # Without this key it was written by a version that measured less.
            if isinstance(document, dict) and "stages" in document:
                self.benches[dataset] = document

    @cached_property
    def cores(self) -> int | None:
        """Of the CPU, where the measurements were made; None without any."""
        return max((bench["machine"]["cores"] for bench in self.benches.values()), default=None)

    def estimate(self, job: Job) -> Estimate:
        """How long a job takes."""
        bench = self.benches.get(job.dataset or "")
        if bench is None and job.kind in START_ONLY:
            # Of a data set they take only files, and starting is the same for all.
            bench = next(iter(self.benches.values()), None)
        dataset = job.dataset or next(iter(self.params.at_scale(self.graph.scale)), "")
        if bench is None:
            return Estimate(None, None, False, False, self._threads(job), (), f"gcflow bench {dataset}")
        return _Measured(self.graph, bench, job).estimate(self._threads(job))

    def _threads(self, job: Job) -> int:
        if job.run is not None:
            return self.params.run_config(job.run.name).training.cpu_threads
        uses = job.kind in ("features", "reference", "transport") and job.dataset is not None
        return self.params.dataset(job.dataset).training.cpu_threads if uses and job.dataset else 1


class _Measured:
    """One job, and the measurements of its data set."""

    def __init__(self, graph: Graph, bench: dict[str, Any], job: Job) -> None:
        self.graph, self.params, self.job = graph, graph.params, job
        self.bench, self.stages = bench, bench["stages"]
        self.notes: list[str] = []
        self.missing: list[str] = []
        self.remedies: list[str] = []

    def estimate(self, threads: int) -> Estimate:
        """The sum of its start and its work."""
        kind = self.job.kind
        large = kind == "reference" and self._features.kind in ("inception", "surrogate")
        gpu = self.bench["machine"]["gpu"] is not None and (kind in GPU_KINDS or large)
        work: dict[str, Callable[[], tuple[float, float]]] = {
            "prepare": self._prepare,
            "features": self._classifier,
            "reference": self._reference,
            "train": self._train,
            "evaluate": self._evaluate,
            "discrepancy": self._discrepancy,
            "transport": self._transport,
            "theory": self._theory,
        }
        again = f"gcflow bench {self.job.dataset or self.bench['dataset']}"
        start = self._start
        try:
            whole, left = work.get(kind, lambda: (0.0, 0.0))()
        except Unmeasured as error:
            return Estimate(None, None, False, gpu, threads, (str(error),), again)
        remedy = next(iter(self.remedies), None)
        return Estimate(start + whole, start + left, not self.missing, gpu, threads, tuple(self.notes), remedy)

    @property
    def _start(self) -> float:
        kind = START_OF.get(self.job.kind, self.job.kind)
        if kind == "figure" and self.job.item and self.job.dataset:
            drawn = self.params.dataset(self.job.dataset).figures[self.job.item].kind
            kind = "figure-samples" if drawn == "samples" else kind
        times = self.stages["startup_seconds"]
        return float(times["transport" if kind == "discrepancy" else kind])

    @property
    def _dataset(self) -> str:
        assert self.job.dataset is not None
        return self.job.dataset

    @property
    def _features(self) -> Any:
        return self.params.dataset(self._dataset).features

    @property
    def _shape(self) -> tuple[int, ...]:
        return self.params.dataset(self._dataset).data.shape

    @property
    def _config(self) -> RunConfig:
        assert self.job.run is not None
        return self.params.run_config(self.job.run.name)

    def _images(self) -> int:
        count, _ = sample_counts(self.params, self._dataset)
        if count is None:
            raise Unmeasured(f"{self._dataset}: how many images there are is known when they are prepared")
        return count

    def _prepare(self) -> tuple[float, float]:
        measured = self.stages["prepare"]
        if "seconds" in measured:
            return (float(measured["seconds"]),) * 2
        rate = float(measured["images_per_second"])
        if measured["assumed"]:
            self.notes.append(f"preparing archives is taken to go at {rate:.0f} images/s, without being measured")
        return ((self._images() + sample_counts(self.params, self._dataset)[1]) / rate,) * 2

    def _classifier(self) -> tuple[float, float]:
        settings = self._features
        if not isinstance(settings, Classifier):
            return 0.0, 0.0
        step = self.stages.get("classifier_step_seconds")
        if step is None:
            raise Unmeasured("a step of the classifier was not measured")
        count = self._images()
        steps = settings.epochs * (count - round(count * settings.held_out)) // settings.batch
        return (steps * float(step),) * 2

    def _protocol(self, name: str) -> dict[str, Any]:
        found = self.stages["features"].get(name)
        if found is None:
            raise Unmeasured(f"{self._dataset}: features under {name} were not measured")
        row: dict[str, Any] = found
        return row

    def _feature_seconds(self, name: str, images: int) -> float:
        """Of features of so many images; nothing, and the job's time a lower bound, where a surrogate was timed."""
        row, kind = self._protocol(name), self._features.kind
        if kind == "inception" and row["network"] != "inception":
            self.missing.append(name)
            self.notes.append("Inception itself was not there to be timed: what its features take is left out")
            self.remedies.append(f"put {self._features.weights} into archives/, then gcflow bench {self._dataset}")
            return 0.0
        return images / float(row["images_per_second"])

    def _reference(self) -> tuple[float, float]:
        images = reference_images(self.params, self._dataset, self.job.item)
        if images is None:
            raise Unmeasured(f"{self._dataset}: how many images there are is known when they are prepared")
        row = self._protocol(self.job.item)
        halves = float(row["seconds_per_comparison"]) + float(row["seconds_once"])
        return (self._feature_seconds(self.job.item, images) + halves,) * 2

    def _train(self) -> tuple[float, float]:
        assert self.job.run is not None
        steps, step = self._config.training.steps, self._step_seconds()
        return steps * step, max(0, steps - self.graph.step_reached(self.job.run)) * step

    def _step_seconds(self) -> float:
        config, rows = self._config, self.bench["train"]["methods"]
        if not rows:
            raise Unmeasured(f"{self._dataset}: no method was timed")
        timed = {method: run_config_from_dict(row["config"]) for method, row in rows.items()}
        method = config.method_name
        if method not in timed:
            network = without_dropout(config.network)
            alike = [name for name, other in timed.items() if without_dropout(other.network) == network]
            method = next(iter(alike or timed))
            self.notes.append(f"{self._dataset}: methods not timed take as long as {method} per pass of the network")
        base = timed[method]
        for key in SPEED_KEYS:
            was, now = getattr(base.training, key), getattr(config.training, key)
            if was != now:
                self.notes.append(f"{self._dataset}: timed with training.{key} = {was}, runs have {now}")
        passes = config.training.batch * mean_passes_per_sample(config)
        ratio = passes / (base.training.batch * passes_per_sample(base))
        if without_dropout(base.network) != without_dropout(config.network):
            ratio *= pass_operations(config, self._shape) / pass_operations(base, self._shape)
        # Each method was timed in turn with the first: their ratios hold also where the machine's speed drifted.
        firsts = [float(row["seconds_per_step"]) / float(row["step_over_first"]) for row in rows.values()]
        return statistics.median(firsts) * float(rows[method]["step_over_first"]) * ratio

    def _image_seconds(self, config: RunConfig, sampler: Sampler) -> float:
        """Of drawing one image."""
        name, rows = f"{sampler.name}-{sampler.evaluations}", self.stages["sampling"]
        network = to_dict(without_dropout(config.network))
        row = next((row for row in rows if row["network"] == network), rows[0])
        rates, ratio = row["images_per_second"], 1.0
        if row["network"] != network:
            ratio = pass_operations(config, self._shape) / row["operations_per_pass"]
            self.notes.append(f"{self._dataset}: a network not timed samples as fast per operation as one that was")
        if name in rates:
            return ratio / float(rates[name])
        if not rates:
            raise Unmeasured(f"{self._dataset}: sampling was not measured")
        other, rate = next(iter(rates.items()))
        self.notes.append(f"{self._dataset}: {name} takes as long as {other} per pass of the network")
        return ratio * sampler.evaluations / int(other.rpartition("-")[2]) / float(rate)

    def _evaluate(self) -> tuple[float, float]:
        config, settings = self._config, self.params.dataset(self._dataset).evaluation
        protocols = list(self._features.protocols)
        total = sum(float(self._protocol(name)["seconds_once"]) for name in protocols)
        each = sum(
            self._feature_seconds(name, settings.samples) + float(self._protocol(name)["seconds_per_comparison"])
            for name in protocols
        )
        plan = measurements(config, settings)
        times = {sampler: self._image_seconds(config, sampler) for _, _, sampler, _ in plan}
        total += sum(settings.samples * times[sampler] + each for _, _, sampler, _ in plan)
        return total, total

    def _one_pass(self, config: RunConfig) -> float:
        """Seconds of a pass of the network for one sample, without gradient."""
        return self._image_seconds(config, Sampler("consistency"))

    def _transport(self) -> tuple[float, float]:
        settings, measured = self.params.dataset(self._dataset).transport, self.stages.get("transport")
        assert settings is not None
        if measured is None or measured["settings"] != to_dict(settings):
            raise Unmeasured(f"{self._dataset}: transport has changed since it was measured")
        run, _ = self.params.resolve(settings.predictor, self._dataset, 0)
        passes = settings.samples * len(settings.sigmas) * self._one_pass(self.params.run_config(run.name))
        return (passes + float(measured["seconds"]),) * 2

    def _discrepancy(self) -> tuple[float, float]:
        settings, config = self.params.dataset(self._dataset).discrepancy, self._config
        assert settings is not None
        if "assignment_seconds" not in self.stages:
            raise Unmeasured(f"{self._dataset}: discrepancy has been added since it was measured")
        # Of the denoiser; with generator-augmented pairs also of the predictor, as endpoints and as upper bound.
        coupling = config.method.pairing
        passes = 1 + (1 + config.method.mu_range[1] if coupling.predicts else 0)
        one = self._one_pass(config)
        total = passes * settings.samples * len(settings.sigmas) * one
        if coupling.assigns:
            total += settings.samples / config.training.batch * float(self.stages["assignment_seconds"])
        if config.method.coupling == "ic":
            total += len(settings.sigmas) * float(self.stages["exact_denoising_seconds"])
        return total, total

    def _theory(self) -> tuple[float, float]:
        settings, measured = self.params.dataset(self._dataset).theory, self.stages.get("theory")
        if measured is None or measured["settings"] != to_dict(settings):
            raise Unmeasured(f"{self._dataset}: theory has changed since it was measured")
        return (float(measured["seconds"]),) * 2


def benchmark_path(root: Path, job: Job) -> Path:
    """Where Snakemake writes how long a job took."""
    if job.dataset is None:
        name = job.kind if job.kind in OF_SCALE else f"{job.kind}-{job.item}"
        return root / "results" / "benchmarks" / f"{name}.tsv"
    words = [job.kind, *([job.run.method, str(job.run.seed)] if job.run else [job.item] if job.item else [])]
    if job.kind == "features":
        words.append(Path(job.stage.outs[0]).name)
    return results_folder(root, job.dataset) / "benchmarks" / f"{'-'.join(words)}.tsv"


def actual_seconds(path: Path) -> float | None:
    """The column `s` of a benchmark file of Snakemake; None if there is none."""
    try:
        header, row, *_ = path.read_text().splitlines()
        return float(dict(zip(header.split("\t"), row.split("\t"), strict=True))["s"])
    except (OSError, ValueError, KeyError):
        return None
