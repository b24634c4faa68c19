"""The batches of a run: what each step sees, as a function of the seed and the step alone.

What takes the host long (pairings by optimal transport, reading data that do not fit on the device) is done ahead in
a thread, beside the steps before.
"""

import os
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, Self, TypeVar

import torch
from torch import Tensor

from gcflow.config import RunConfig
from gcflow.couplings import Coupling, samples_to_predict
from gcflow.distributed import World
from gcflow.dropout import dropout_keys
from gcflow.errors import GcflowError
from gcflow.objectives import Batch, in_words
from gcflow.precision import share_multiple
from gcflow.preconditioning import to_model_space
from gcflow.randomness import batch_indices, coupling_uniforms, generator

STEPS_AHEAD = 2
T = TypeVar("T")


def device_memory(device: str) -> int:
    """Bytes of memory that a device has."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def resident(data: Tensor, device: str, share: float) -> Tensor:
    """The data on the device if they take at most `share` of its memory; else as they are, to be streamed."""
    if data.numel() * data.element_size() > share * device_memory(device):
        return data
    # A copy also on the CPU, where the data are mapped from a file.
    return data.to(device, copy=True)


class Prefetcher(Generic[T]):
    """Values of a function of the step, computed in a thread a few steps before they are asked for.

    Args:
        work: the function.
        steps: after the last one nothing is computed ahead.
    """

    def __init__(self, work: Callable[[int], T], steps: int) -> None:
        self.work, self.steps = work, steps
        # A new thread would take all cores for itself.
        self.pool = ThreadPoolExecutor(1, "ahead", initializer=torch.set_num_threads, initargs=(1,))
        self.pending: OrderedDict[int, Future[T]] = OrderedDict()

    def __getitem__(self, step: int) -> T:
        """The value at `step`; steps are asked for in ascending order."""
        for following in (step, *range(step + 1, min(step + STEPS_AHEAD, self.steps - 1) + 1)):
            if following not in self.pending:
                self.pending[following] = self.pool.submit(self.work, following)
        return self.pending.pop(step).result()

    def close(self) -> None:
        """Ends the thread."""
        self.pool.shutdown(cancel_futures=True)


def usable_assignment(coupling: Coupling, found: object, count: int) -> Tensor:
    """Checks what a coupling's `assignment` gave for `count` samples; returns it.

    Raises:
        GcflowError: it is not what `gcflow.couplings.Coupling.assignment` promises.
    """
    if (
        not isinstance(found, Tensor)
        or found.dtype != torch.int64
        or found.shape != (count,)
        or found.device.type != "cpu"
    ):
        expected = f"expected int64 [{count}] on the CPU"
        raise GcflowError(f"coupling {coupling.kind}: assignment gives {in_words(found)}; {expected}")
    low, high = (int(end) for end in found.aminmax())
    if low < 0 or high >= count:
        expected = f"expected 0 to {count - 1}"
        raise GcflowError(f"coupling {coupling.kind}: assignment gives noises {low} to {high}; {expected}")
    return found


def draw_levels(config: RunConfig, step: int) -> tuple[Tensor, Tensor, Tensor]:
    """Lower and upper noise level of each sample of the global batch, and whether it takes GC: [B] each, on the CPU.

    Raises:
        GcflowError: the schedule's levels are not what `gcflow.schedules.Schedule.levels` promises.
    """
    training, batch = config.training, config.training.batch
    # Of each sample: for its noise levels, and for its share of GC.
    uniform = torch.rand(batch, 2, generator=generator(config.seed, step, "interval"))
    normal = torch.randn(batch, generator=generator(config.seed, step, "sigma"))
    found = training.schedule.levels(step, training.steps, config.process, uniform[:, 0], normal)
    for levels in found:
        if not isinstance(levels, Tensor) or (levels.shape, levels.dtype) != (normal.shape, normal.dtype):
            problem = f"levels gives {in_words(levels)}; expected float32 [{batch}] on the CPU"
            raise GcflowError(f"schedule {training.schedule.kind}: {problem}")
    low, high = found
    return low, high, uniform[:, 1] < config.mu_at(step)


class Batches:
    """The share of one process in the batches of a run, in grains.

    Args:
        config: the run.
        data: uint8 images [n, C, H, W] or float32 points [n, d], from `resident`; on another device than the
            training's they are streamed.
        device: of training.
        world: this process's place.
    """

    def __init__(self, config: RunConfig, data: Tensor, device: torch.device, world: World) -> None:
        self.config, self.data, self.device = config, data, device
        self.batch = config.training.batch
        self.grain, own = self.batch // config.training.grains, world.share(config.training.grains)
        self.rank_slice = slice(own.start * self.grain, own.stop * self.grain)
        self.coupling = config.method.coupling
        self.side_stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        steps = config.training.steps
        self.assignments = Prefetcher(self._assign, steps) if self.coupling.assigns else None
        self.streamed = Prefetcher(self._read, steps) if data.device.type != device.type else None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for prefetcher in (self.assignments, self.streamed):
            if prefetcher is not None:
                prefetcher.close()

    def _indices(self, step: int) -> Tensor:
        return batch_indices(self.config.seed, step, self.batch, len(self.data))

    def _noise(self, step: int) -> Tensor:
        source = generator(self.config.seed, step, "noise", device=self.device)
        return torch.randn(self.batch, *self.data.shape[1:], generator=source, device=self.device)

    def _read(self, step: int) -> Tensor:
        samples = self.data[self._indices(step)[self.rank_slice]]
        return samples.pin_memory() if self.device.type == "cuda" else samples

    def _assign(self, step: int) -> Tensor:
        with torch.cuda.stream(self.side_stream):
            samples = self.data[self._indices(step).to(self.data.device)].to(self.device)
            x, z = to_model_space(samples, self.config.process), self._noise(step)
            uniform = coupling_uniforms(self.config.seed, step, self.batch)
            return usable_assignment(self.coupling, self.coupling.assignment(x, z, uniform), len(x))

    def _samples(self, step: int) -> Tensor:
        if self.streamed is not None:
            return self.streamed[step].to(self.device, non_blocking=True)
        return self.data[self._indices(step)[self.rank_slice].to(self.device, non_blocking=True)]

    def _dropout(self, step: int, purpose: str) -> Tensor:
        keys = dropout_keys(self.config.seed, step, self.batch, purpose)
        return keys[self.rank_slice].to(self.device, non_blocking=True)

    def __getitem__(self, step: int) -> list[Batch]:
        """This process's grains at `step`; no wait for the device."""
        noise = self._noise(step)
        if self.assignments is not None:
            noise = noise[self.assignments[step].to(self.device, non_blocking=True)]
        low, high, take_gc = (drawn[self.rank_slice] for drawn in draw_levels(self.config, step))
        multiple = share_multiple(self.config.training)
        to_predict = (samples_to_predict(part, multiple) for part in take_gc.split(self.grain))
        share = (
            to_model_space(self._samples(step), self.config.process),
            noise[self.rank_slice],
            *(drawn.to(self.device, non_blocking=True) for drawn in (low, high, take_gc)),
            self._dropout(step, "dropout"),
            self._dropout(step, "predictor-dropout"),
        )
        grains = [
            *(drawn.split(self.grain) for drawn in share),
            [samples.to(self.device, non_blocking=True) for samples in to_predict],
        ]
        return [Batch(*parts) for parts in zip(*grains, strict=True)]
