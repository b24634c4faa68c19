"""`gcflow evaluate`: generated samples, and how they compare with real ones."""

import time
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gcflow.config import RunConfig, Weights, digest, to_dict
from gcflow.files import atomic_path, read_json, write_json
from gcflow.inception import PIXELS
from gcflow.pipeline.comparison import Reference, load_references
from gcflow.pipeline.drawing import save_samples
from gcflow.pipeline.folders import data_folder, run_folder, snapshot
from gcflow.pipeline.params import Params
from gcflow.pipeline.progress import Progress, say
from gcflow.pipeline.schema import Evaluation
from gcflow.preconditioning import PreconditionedNetwork
from gcflow.sampling import Sampler, generate
from gcflow.scratch import load_near, scratch_folder
from gcflow.weights import load_run_model

SECONDS_BETWEEN_SAVES = 30.0


def samplers(config: RunConfig, settings: Evaluation) -> list[Sampler]:
    """One step, and few steps, of a consistency model; the PF-ODE of a denoiser. The first is the main one."""
    if config.method.objective == "denoising":
        return [Sampler("heun", heun_steps=settings.heun_steps)]
    levels = settings.intermediate_sigmas
    return [Sampler("consistency", levels[:length]) for length in range(len(levels) + 1)]


def measurements(config: RunConfig, settings: Evaluation) -> list[tuple[int, Weights, Sampler, int]]:
    """(step, weights, sampler, generation seed) of every measurement of a run.

    Snapshots are sampled in the first way with the first generation seed; the last step in all ways with all seeds.
    """
    steps, choices = config.training.snapshot_steps, samplers(config, settings)
    plan: list[tuple[int, Weights, Sampler, int]] = []
    for weights in settings.weights:
        # Sampling a denoiser costs tens of evaluations: its curve is not a figure of the paper, its end is enough.
        if config.method.objective != "denoising":
            plan += [(step, weights, choices[0], settings.generation_seeds[0]) for step in steps[:-1]]
        plan += [(steps[-1], weights, sampler, seed) for sampler in choices for seed in settings.generation_seeds]
    return plan


class Finished:
    """The records of measurements that are done, kept beside the run, so that an interrupted evaluation goes on."""

    def __init__(self, folder: Path, identity: str) -> None:
        self.path = folder / f"{identity[:16]}.json"
        self.records: dict[str, list[dict[str, Any]]] = read_json(self.path) if self.path.exists() else {}
        self.saved = time.monotonic()

    def add(self, key: str, records: list[dict[str, Any]]) -> None:
        """Keeps the records of a measurement; on disk now and then."""
        self.records[key] = records
        if time.monotonic() - self.saved > SECONDS_BETWEEN_SAVES:
            write_json(self.path, self.records)
            self.saved = time.monotonic()

    def forget(self) -> None:
        """Removes the file: the evaluation is complete."""
        self.path.unlink(missing_ok=True)


class Evaluator:
    """Measures a run's models against every reference of its data set."""

    def __init__(
        self,
        name: str,
        settings: Evaluation,
        references: list[Reference],
        shape: tuple[int, ...],
        progress: Progress,
    ) -> None:
        self.name, self.settings, self.references, self.shape, self.progress = (
            name,
            settings,
            references,
            shape,
            progress,
        )

    def measure(
        self, model: PreconditionedNetwork, step: int, weights: Weights, sampler: Sampler, seed: int
    ) -> tuple[list[dict[str, Any]], Tensor]:
        """The records of one measurement, and its first batch of samples."""
        settings = self.settings
        comparisons = [reference.compare(settings.samples) for reference in self.references]
        begun, first = self.progress.done, None
        images = range(settings.samples)
        for output in generate(model, sampler, self.shape, images, seed, settings.batch, torch.float32):
            for comparison in comparisons:
                comparison.update(output)
            first = output if first is None else first
            self.progress.update(self.progress.done + len(output), f"step {step}, {weights}")
        assert first is not None
        self.progress.update(begun + settings.samples)
        drawn = {
            "run": self.name,
            "step": step,
            "weights": weights,
            "sampler": sampler.name,
            "network_evaluations": sampler.evaluations,
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


def evaluate_run(params: Params, name: str, device: str = "cpu") -> None:
    """Measures a run: its weights at every snapshot; every sampler and generation seed at the last step.

    Writes evaluation/metrics.json (each number with its protocol record), samples.npy and samples.png. Interrupted, it
    goes on after the last measurement that was saved.

    Raises:
        GcflowError: weights, reference or the features' network are missing or damaged.
    """
    run = params.parse_run(name)
    entry, config = params.dataset(run.dataset), params.run_config(name)
    torch.set_num_threads(config.training.cpu_threads)
    folder, settings = run_folder(params.root, run), entry.evaluation
    dataset = load_near(data_folder(params.root, run.dataset), scratch_folder(), say)
    images = dataset.samples.dtype == torch.uint8
    references = load_references(params, run.dataset, images, device)

    identity = {
        "config": to_dict(config),
        "evaluation": to_dict(settings),
        "references": [reference.description for reference in references],
        "data": dataset.sha256,
    }
    finished = Finished(folder / "state" / "evaluation", digest(identity))
    plan, records = measurements(config, settings), []
    first: Tensor | None = None
    with Progress(f"{name} evaluation", len(plan) * settings.samples, unit="image") as progress:
        evaluator = Evaluator(name, settings, references, dataset.shape, progress)
        for (step, weights), group in groupby(plan, key=itemgetter(0, 1)):
            model = load_run_model(snapshot(folder, step), config, weights, device)
            for _, _, sampler, seed in group:
                key = f"{step}/{weights}/{sampler.name}/{sampler.evaluations}/{seed}"
                shown = (step, weights) == (config.training.steps, "ema") and first is None
                if key in finished.records and not shown:
                    progress.update(progress.done + settings.samples)
                else:
                    measured, drawn = evaluator.measure(model, step, weights, sampler, seed)
                    finished.add(key, measured)
                    first = drawn if shown else first
                records += finished.records[key]
    assert first is not None
    grid = (PIXELS["clip"](first) if images else first)[: settings.grid**2].numpy()
    out = folder / "evaluation"
    with atomic_path(out / "samples.npy") as temporary, temporary.open("wb") as file:
        np.save(file, grid)
    with atomic_path(out / "samples.png") as temporary:
        save_samples(grid, settings.grid, temporary)
    write_json(out / "metrics.json", records)
    finished.forget()
