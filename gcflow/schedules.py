"""The noise levels that a batch is trained on: iCT's curriculum, ECT's continuous pairs, a denoiser's single levels.

A new schedule is a frozen dataclass in `gcflow.config.SCHEDULES` and a function in `LEVELS`.
"""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from gcflow.config import EctSchedule, IctSchedule, NoiseProcess, RunConfig
from gcflow.objectives import mu_at
from gcflow.randomness import generator


def noise_levels(intervals: int, process: NoiseProcess, device: torch.device | str = "cpu") -> Tensor:
    """Ascending sigma_0 .. sigma_N for N intervals: shape [N + 1], float32, computed in float64."""
    low, high = process.sigma_min ** (1 / process.rho), process.sigma_max ** (1 / process.rho)
    ramp = torch.linspace(0, 1, intervals + 1, dtype=torch.float64)
    levels = (low + ramp * (high - low)) ** process.rho
    levels[0], levels[-1] = process.sigma_min, process.sigma_max
    return levels.float().to(device)


def number_of_intervals(step: int, steps: int, schedule: IctSchedule) -> int:
    """N(k) = min(s0 2^floor(k / K'), s1), K' = floor(K / (log2 floor(s1 / s0) + 1)), at step k of K."""
    doublings = math.log2(schedule.s1 // schedule.s0)
    period = max(1, math.floor(steps / (doublings + 1)))
    return min(schedule.s0 * 2 ** (step // period), schedule.s1)


def interval_probabilities(levels: Tensor, schedule: IctSchedule) -> Tensor:
    """p(i) of each interval [sigma_i, sigma_{i+1}]: a normal in ln sigma, integrated over it. Shape [N], sums to 1."""
    z = (levels.double().log() - schedule.p_mean) / (math.sqrt(2) * schedule.p_std)
    mass = torch.erf(z).diff()
    return (mass / mass.sum()).float()


def sample_intervals(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """Interval indices (int64, shape of `uniform`) by inversion of the cumulative distribution; uniform in [0, 1)."""
    cumulative = probabilities.double().cumsum(0)
    index = torch.searchsorted(cumulative, uniform.double() * cumulative[-1], right=True)
    return index.clamp_(max=len(probabilities) - 1)


@lru_cache(maxsize=4)
def _intervals(intervals: int, process: NoiseProcess, schedule: IctSchedule) -> tuple[Tensor, Tensor]:
    levels = noise_levels(intervals, process)
    return levels, interval_probabilities(levels, schedule)


def uniforms(config: RunConfig, step: int) -> Tensor:
    """Two uniform numbers per sample of the global batch, [B, 2]: for its interval, and for its share of GC."""
    return torch.rand(config.training.batch, 2, generator=generator(config.seed, step, "interval"))


def _normals(config: RunConfig, step: int) -> Tensor:
    return torch.randn(config.training.batch, generator=generator(config.seed, step, "sigma"))


def ect_lower(t: Tensor, stage: int, schedule: EctSchedule) -> Tensor:
    """R(t) = max(0, t (1 - q^-(stage + 1) (1 + k sigmoid(-b t)))), shape of t (Geng et al. 2024)."""
    ratio = 1 - (1 + schedule.k * torch.sigmoid(-schedule.b * t)) / schedule.q ** (stage + 1)
    return (t * ratio).clamp_min(0.0)


def _ict_levels(config: RunConfig, step: int) -> tuple[Tensor, Tensor]:
    schedule = config.training.schedule
    assert isinstance(schedule, IctSchedule)
    intervals = number_of_intervals(step, config.training.steps, schedule)
    levels, probabilities = _intervals(intervals, config.process, schedule)
    index = sample_intervals(probabilities, uniforms(config, step)[:, 0])
    return levels[index], levels[index + 1]


def _ect_levels(config: RunConfig, step: int) -> tuple[Tensor, Tensor]:
    schedule = config.training.schedule
    assert isinstance(schedule, EctSchedule)
    t = (schedule.p_mean + schedule.p_std * _normals(config, step).double()).exp()
    return ect_lower(t, schedule.stage(step), schedule).float(), t.float()


def _edm_levels(config: RunConfig, step: int) -> tuple[Tensor, Tensor]:
    schedule = config.training.schedule
    sigma = (schedule.p_mean + schedule.p_std * _normals(config, step)).exp()
    return sigma, sigma


LEVELS: dict[str, Callable[[RunConfig, int], tuple[Tensor, Tensor]]] = {
    "ict": _ict_levels,
    "ect": _ect_levels,
    "edm": _edm_levels,
}


def draw_levels(config: RunConfig, step: int) -> tuple[Tensor, Tensor]:
    """Lower and upper noise level of each sample of the global batch at `step`: float32 [B] each, on the CPU.

    A denoiser's two are the same.
    """
    return LEVELS[config.training.schedule.kind](config, step)


def describe(config: RunConfig, step: int) -> dict[str, Any]:
    """Where a run is at `step`, for the log: the number of intervals or the stage, and mu of generator augmentation."""
    schedule = config.training.schedule
    record: dict[str, Any] = {}
    if isinstance(schedule, IctSchedule):
        record["intervals"] = number_of_intervals(step, config.training.steps, schedule)
    if isinstance(schedule, EctSchedule):
        record["stage"] = schedule.stage(step)
    if config.method.pairing.predicts:
        record["mu"] = mu_at(step, config)
    return record
