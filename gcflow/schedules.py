"""Noise levels, their curriculum over training, and which interval a sample trains on (iCT; paper, section 2)."""

import math

import torch
from torch import Tensor

from gcflow.config import NoiseProcess, ScheduleConfig


def noise_levels(intervals: int, process: NoiseProcess, device: torch.device | str = "cpu") -> Tensor:
    """Ascending sigma_0 .. sigma_N for N intervals: shape [N + 1], float32, computed in float64."""
    low, high = process.sigma_min ** (1 / process.rho), process.sigma_max ** (1 / process.rho)
    ramp = torch.linspace(0, 1, intervals + 1, dtype=torch.float64)
    levels = (low + ramp * (high - low)) ** process.rho
    levels[0], levels[-1] = process.sigma_min, process.sigma_max
    return levels.float().to(device)


def number_of_intervals(step: int, steps: int, schedule: ScheduleConfig) -> int:
    """N(k) = min(s0 2^floor(k / K'), s1), K' = floor(K / (log2 floor(s1 / s0) + 1)), at step k of K."""
    doublings = math.log2(schedule.s1 // schedule.s0)
    period = max(1, math.floor(steps / (doublings + 1)))
    return min(schedule.s0 * 2 ** (step // period), schedule.s1)


def interval_probabilities(levels: Tensor, schedule: ScheduleConfig) -> Tensor:
    """p(i) of each interval [sigma_i, sigma_{i+1}]: a normal in ln sigma, integrated over it. Shape [N], sums to 1."""
    z = (levels.double().log() - schedule.p_mean) / (math.sqrt(2) * schedule.p_std)
    mass = torch.erf(z).diff()
    return (mass / mass.sum()).float()


def sample_intervals(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """Interval indices (int64, shape of `uniform`) by inversion of the cumulative distribution; uniform in [0, 1)."""
    cumulative = probabilities.double().cumsum(0)
    index = torch.searchsorted(cumulative, uniform.double() * cumulative[-1], right=True)
    return index.clamp_(max=len(probabilities) - 1)
