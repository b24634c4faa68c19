"""The noise levels that a run is trained on: iCT's curriculum, ECT's continuous pairs, a denoiser's single levels."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from gcflow import register
from gcflow.lazy_torch import torch
from gcflow.options import Many, Options, Real, require
from gcflow.preconditioning import NoiseProcess

if TYPE_CHECKING:
    from torch import Tensor

# Of the 24 that a float32 has, those that the difference of two noise levels may be short of.
SINGLE_PRECISION_BITS = 20


@register.schedule.contract
class Schedule(Options):
    """A distribution of the noise levels that are trained on. Its name is its field `kind`.

    pairs: whether a sample has two levels, sigma_low < sigma_high, or a single one; an objective asks for either.
    reaches_zero: whether the lower level may be 0, where the model must then be the identity.
    """

    pairs: ClassVar[bool] = True
    reaches_zero: ClassVar[bool] = False

    if TYPE_CHECKING:

        @property
        def kind(self) -> str:
            """Its name."""

    def levels(
        self, step: int, steps: int, process: NoiseProcess, uniform: Tensor, normal: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Lower and upper noise level of each sample of the global batch, float32 [B] each, on the CPU.

        A schedule of single levels gives the same tensor twice.

        Args:
            step: from 0.
            steps: of the whole training.
            process: the range of noise levels.
            uniform: float32 [B] on the CPU, in [0, 1): each a function of seed, step and the sample's place in the
                global batch alone. With `normal` the only randomness that a schedule has.
            normal: the same, standard normal.
        """
        raise NotImplementedError

    def describe(self, step: int, steps: int) -> dict[str, Any]:
        """Its state at `step`, as numbers by their names, for the log."""
        return {}

    def check(self, steps: int) -> None:
        """Checks that it fits a training of so many steps.

        Raises:
            ValueError: it does not.
        """


def noise_levels(intervals: int, process: NoiseProcess, device: torch.device | str = "cpu") -> Tensor:
    """Ascending sigma_0 .. sigma_N for N intervals: shape [N + 1], float32, computed in float64."""
    low, high = process.sigma_min ** (1 / process.rho), process.sigma_max ** (1 / process.rho)
    ramp = torch.linspace(0, 1, intervals + 1, dtype=torch.float64)
    levels = (low + ramp * (high - low)) ** process.rho
    levels[0], levels[-1] = process.sigma_min, process.sigma_max
    return levels.float().to(device)


@register.schedule
class IctSchedule(Schedule):
    """iCT's curriculum (Song & Dhariwal 2024): N(k) intervals from s0 to s1, chosen with a normal density in ln sigma.

    N(k) depends on the length of training: whatever it is, s0 doubles in equal parts of it until s1.
    """

    s0: Many = Field(default=10, description="intervals at first")
    s1: int = Field(default=1280, ge=1, le=10**6, description="most intervals; at least s0")
    p_mean: float = Field(default=-1.1, ge=-20, le=20, description="mean of ln sigma")
    p_std: float = Field(default=2.0, gt=0, le=20, description="standard deviation of ln sigma")
    kind: Literal["ict"] = "ict"

    def __post_init__(self) -> None:
        require(self.s1 >= self.s0, "s1", self.s1, "an integer >= s0")

    def levels(
        self, step: int, steps: int, process: NoiseProcess, uniform: Tensor, normal: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See `Schedule.levels`."""
        levels, probabilities = _intervals(number_of_intervals(step, steps, self), process, self)
        index = sample_intervals(probabilities, uniform)
        return levels[index], levels[index + 1]

    def describe(self, step: int, steps: int) -> dict[str, Any]:
        """The number of intervals."""
        return {"intervals": number_of_intervals(step, steps, self)}


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


@register.schedule
class EctSchedule(Schedule):
    """ECT's continuous pairs of noise levels r < t (Geng et al. 2024; the paper's Section 5.3).

    ln t ~ N(p_mean, p_std^2), r = max(0, t (1 - q^-(stage + 1) (1 + k sigmoid(-b t)))). The length of training does not
    stretch the stages: a shorter training ends in an earlier one, a longer one goes on to further ones.
    """

    reaches_zero: ClassVar[bool] = True
    q: float = Field(default=2.0, gt=1, le=10**6, description="base of the gap between r and t, see above")
    k: float = Field(default=8.0, ge=0, le=10**6, description="how much wider the gap is at small t")
    b: Real = Field(default=1.0, description="how fast that ends as t grows")
    stage_every: Many | None = Field(
        default=None, description="steps after which the stage rises by one; null keeps it at 0"
    )
    p_mean: float = Field(default=-1.1, ge=-20, le=20, description="mean of ln t")
    p_std: float = Field(default=2.0, gt=0, le=20, description="standard deviation of ln t")
    kind: Literal["ect"] = "ect"

    def stage(self, step: int) -> int:
        """The stage at `step` (from 0): that of ECT's code, whose first step stands apart, before the first period."""
        return 0 if self.stage_every is None else max(0, step - 1) // self.stage_every

    def levels(
        self, step: int, steps: int, process: NoiseProcess, uniform: Tensor, normal: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See `Schedule.levels`."""
        t = (self.p_mean + self.p_std * normal.double()).exp()
        return ect_lower(t, self.stage(step), self).float(), t.float()

    def describe(self, step: int, steps: int) -> dict[str, Any]:
        """The stage."""
        return {"stage": self.stage(step)}

    def check(self, steps: int) -> None:
        """The two levels must stay apart in single precision."""
        if self.stage_every is not None:
            stage = self.stage(steps - 1)
            apart = (stage + 1) * math.log2(self.q) <= SINGLE_PRECISION_BITS
            expected = f"so many that q^(stage + 1), now {self.q:g}^{stage + 1} at the end, stays below 2^20: "
            expected += "beyond, r and t are too close"
            require(apart, "training.schedule.stage_every", self.stage_every, expected)


def ect_lower(t: Tensor, stage: int, schedule: EctSchedule) -> Tensor:
    """r(t) = max(0, t (1 - q^-(stage + 1) (1 + k sigmoid(-b t)))), shape of t (Geng et al. 2024)."""
    ratio = 1 - (1 + schedule.k * torch.sigmoid(-schedule.b * t)) / schedule.q ** (stage + 1)
    return (t * ratio).clamp_min(0.0)


@register.schedule
class EdmSchedule(Schedule):
    """Noise levels of a denoiser's training: ln sigma ~ N(p_mean, p_std^2) (Karras et al. 2022, table 1)."""

    pairs: ClassVar[bool] = False
    p_mean: float = Field(default=-1.2, ge=-20, le=20, description="mean of ln sigma")
    p_std: float = Field(default=1.2, gt=0, le=20, description="standard deviation of ln sigma")
    kind: Literal["edm"] = "edm"

    def levels(
        self, step: int, steps: int, process: NoiseProcess, uniform: Tensor, normal: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See `Schedule.levels`."""
        sigma = (self.p_mean + self.p_std * normal).exp()
        return sigma, sigma
