"""`gcflow evaluate`: generated samples, and how they compare with real ones."""

import shutil
import time
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gcflow.config import RunConfig, Weights, digest, to_dict
from gcflow.errors import GcflowError
from gcflow.files import atomic_path, read_header, read_json, refuse_times_ahead, write_json
from gcflow.inception import PIXELS
from gcflow.model import PreconditionedNetwork
from gcflow.pipeline.drawing.image_files import save_samples
from gcflow.pipeline.dvc_views import loss_curve, metric_curves, write_views
from gcflow.pipeline.folders import data_folder, grid_path, run_folder, snapshot
from gcflow.pipeline.job import tells_its_end
from gcflow.pipeline.params import Params
from gcflow.pipeline.progress import Progress, say
from gcflow.pipeline.reference import Reference, load_references
from gcflow.pipeline.schema import Evaluation
from gcflow.precision import fuse, set_precision
from gcflow.sampling import Sampler, generate
from gcflow.scratch import load_near, scratch_folder
from gcflow.weights import load_run_model

SECONDS_BETWEEN_SAVES = 30.0


def samplers(config: RunConfig, settings: Evaluation) -> list[Sampler]:
    """One step, and few steps, of a consistency model; the PF-ODE of a denoiser. The first is the main one."""
    if config.method.objective.denoises:
        return [Sampler("heun", heun_steps=settings.heun_steps)]
    levels, boundary = settings.intermediate_sigmas, config.method.sampling_boundary
    return [Sampler("consistency", levels[:length], boundary=boundary) for length in range(len(levels) + 1)]


def measurements(config: RunConfig, settings: Evaluation) -> list[tuple[int, Weights, Sampler, int]]:
    """(step, weights, sampler, generation seed) of every measurement of a run.

    Snapshots are sampled in the first way with the first generation seed; the last step in all ways with all seeds.
    """
    steps, choices = config.training.snapshot_steps, samplers(config, settings)
    plan: list[tuple[int, Weights, Sampler, int]] = []
    for weights in settings.weights:
        # Sampling a denoiser costs tens of evaluations: its curve is not a figure of the paper, its end is enough.
        if not config.method.objective.denoises:
            plan += [(step, weights, choices[0], settings.generation_seeds[0]) for step in steps[:-1]]
        plan += [(steps[-1], weights, sampler, seed) for sampler in choices for seed in settings.generation_seeds]
    return plan


class Finished:
    """What an interrupted evaluation needs to go on: the records of measurements that are done, and grids of samples.

    folder: below the run's state, for this configuration and these weights alone.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / "records.json"
        self.records: dict[str, list[dict[str, Any]]] = read_json(self.path) if self.path.exists() else {}
        self.saved = time.monotonic()

    def add(self, key: str, records: list[dict[str, Any]]) -> None:
        """Keeps the records of a measurement; on disk now and then."""
        self.records[key] = records
        if time.monotonic() - self.saved > SECONDS_BETWEEN_SAVES:
            write_json(self.path, self.records)
            self.saved = time.monotonic()

    def keep_grid(self, step: int, samples: np.ndarray) -> None:
        """Keeps the samples that are shown of a step; on disk at once, so before the records that they belong to."""
        with atomic_path(self.folder / f"{step}.npy") as temporary, temporary.open("wb") as file:
            np.save(file, samples)

    def grid(self, step: int) -> np.ndarray:
        """The samples that are shown of a step."""
        return np.load(self.folder / f"{step}.npy")

    def forget(self) -> None:
        """Removes everything, also what began with other weights or settings: the evaluation is complete."""
        shutil.rmtree(self.folder.parent)


class Evaluator:
    """Measures a run's models against every reference of its data set."""

    def __init__(
        self,
        name: str,
        settings: Evaluation,
        references: list[Reference],
        shape: tuple[int, ...],
        precision: str,
        progress: Progress,
    ) -> None:
        self.name, self.settings, self.references = name, settings, references
        self.shape, self.precision, self.progress = shape, precision, progress

    def measure(
        self, model: PreconditionedNetwork, step: int, weights: Weights, sampler: Sampler, seed: int
    ) -> tuple[list[dict[str, Any]], Tensor]:
        """The records of one measurement, and its first batch of samples.

        Raises:
            GcflowError: a sample is not finite.
        """
        settings = self.settings
        comparisons = [reference.compare(settings.samples) for reference in self.references]
        begun, first = self.progress.done, None
        images = range(settings.samples)
        for output in generate(model, sampler, self.shape, images, seed, settings.batch, torch.float32):
            if not output.isfinite().all():
                # As pixels they would be black ones, and as features no number.
                raise GcflowError(f"{self.name}: samples of the {weights} weights at step {step} are NaN or infinite")
            for comparison in comparisons:
                comparison.update(output)
            first = output.cpu() if first is None else first
            self.progress.update(self.progress.done + len(output), f"step {step}, {weights}")
        assert first is not None
        self.progress.update(begun + settings.samples)
        drawn = {
            "run": self.name,
            "step": step,
            "weights": weights,
            "sampler": sampler.name,
            "network_evaluations": sampler.evaluations,
            "boundary": sampler.boundary_of(model),
            "precision": self.precision,
            "generation_seed": seed,
            "generation_batch": settings.batch,
            "generated": settings.samples,
        }
        records = [
            {"metric": metric, "value": value, **drawn, **reference.description}
            for reference, comparison in zip(self.references, comparisons, strict=True)
            for metric, value in comparison.values().items()
        ]
        return records, first


@tells_its_end("evaluate")
def evaluate_run(params: Params, name: str, device: str = "cpu") -> None:
    """Measures a run: its weights at every snapshot; every sampler and generation seed at the last step.

    Writes evaluation/metrics.json (each number with its protocol record), samples.npy and samples.png of the last step,
    grids/ of every snapshot's samples from the same noises, and what `write_views` writes. Interrupted, it goes on
    after the last measurement that was saved.

    Raises:
        GcflowError: weights, losses, reference or the features' network are missing or damaged, or samples are not
            finite.
    """
    run = params.parse_run(name)
    entry, config = params.dataset(run.dataset), params.run_config(name)
    torch.set_num_threads(config.training.cpu_threads)
    # Samples are drawn in float32; tensor cores may round the factors of products where they could in training.
    set_precision(config.training)
    precision = "tf32" if config.training.precision == "tf32" else "float32"
    folder, settings = run_folder(params.root, run), entry.evaluation
    dataset = load_near(data_folder(params.root, run.dataset), scratch_folder(), say)
    images = dataset.samples.dtype == torch.uint8
    references = load_references(params, run.dataset, config.training.batch, device)
    loss = loss_curve(folder / "metrics.jsonl")

    plan, records = measurements(config, settings), []
    identity = {
        "config": to_dict(config),
        "evaluation": to_dict(settings),
        "references": [reference.description for reference in references],
        "data": dataset.sha256,
        # Not told by the configuration: a predictor, an initial state or an extension may have changed since.
        "weights": {step: _content_hash(snapshot(folder, step)) for step, *_ in plan},
    }
    refuse_times_ahead([folder / "metrics.jsonl", *(snapshot(folder, step) for step, *_ in plan)], folder)
    finished = Finished(folder / "state" / "evaluation" / digest(identity)[:16])
    main, seed_shown = samplers(config, settings)[0], settings.generation_seeds[0]
    shown: list[int] = []
    total = len(plan) * settings.samples
    with Progress(f"{name} evaluation", total, unit="image") as progress:
        evaluator = Evaluator(name, settings, references, dataset.shape, precision, progress)
        for (step, weights), group in groupby(plan, key=itemgetter(0, 1)):
            model = load_run_model(snapshot(folder, step), config, weights, device)
            if config.training.fused:
                fuse(model)
            for _, _, sampler, seed in group:
                key = f"{step}/{weights}/{sampler.name}/{sampler.evaluations}/{seed}"
                is_shown = (weights, sampler, seed) == ("ema", main, seed_shown)
                shown += [step] if is_shown else []
                if key in finished.records:
                    progress.update(progress.done + settings.samples)
                else:
                    measured, first = evaluator.measure(model, step, weights, sampler, seed)
                    if is_shown:
                        stored = PIXELS["clip"](first) if images else first
                        finished.keep_grid(step, stored[: settings.grid**2].numpy())
                    finished.add(key, measured)
                records += finished.records[key]
        curves = metric_curves(records)
        _write_samples(folder, settings.grid, {step: finished.grid(step) for step in shown})
        write_views(params.root, run, loss, curves)
        write_json(folder / "evaluation" / "metrics.json", records)
        finished.forget()


def _content_hash(path: Path) -> str:
    """What a snapshot says of its content, without reading it: who loads it makes sure that it is true."""
    return str(read_header(path).get("content_sha256"))


def _write_samples(folder: Path, columns: int, grids: dict[int, np.ndarray]) -> None:
    """Draws the samples of each step; those of the last one also stand alone, with their values."""
    last = grids[max(grids)]
    with atomic_path(folder / "evaluation" / "samples.npy") as temporary, temporary.open("wb") as file:
        np.save(file, last)
    with atomic_path(folder / "evaluation" / "samples.png") as temporary:
        save_samples(last, columns, temporary)
    drawn = {grid_path(folder, step): samples for step, samples in grids.items()}
    for path, samples in drawn.items():
        with atomic_path(path) as temporary:
            save_samples(samples, columns, temporary)
    for stale in set(next(iter(drawn)).parent.glob("*.png")) - set(drawn):
        stale.unlink()
