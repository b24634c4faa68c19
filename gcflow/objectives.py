"""The three training objectives: consistency training, consistency distillation and denoising.

An objective maps (data batch, step) to a scalar loss; its randomness is a function of the run's seed and the step.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from gcflow.config import RunConfig
from gcflow.couplings import COUPLINGS, CouplingContext, EndpointPredictor
from gcflow.distances import distance_for, squared_l2
from gcflow.oracles import Denoiser, velocity
from gcflow.preconditioning import PreconditionedNetwork, per_sample
from gcflow.randomness import generator
from gcflow.schedules import interval_probabilities, noise_levels, number_of_intervals, sample_intervals

Objective = Callable[[Tensor, int], Tensor]


def mu_at(step: int, config: RunConfig) -> float:
    """Share of generator-augmented samples at `step`, linear from its start to its end."""
    start, end = config.method.mu_range
    return start + (end - start) * step / config.training.steps


class ConsistencyObjective:
    """lambda(sigma_i) D(sg f(x_i, sigma_i), f(x_{i+1}, sigma_{i+1})), lambda = 1 / (sigma_{i+1} - sigma_i).

    Both points lie on the line of a coupled pair (training), or the lower one is an Euler step along the velocity of a
    denoiser (distillation; paper, section 2). Student and teacher share weights and dropout mask.

    Args:
        config: the run.
        model: the consistency model in training.
        predict: endpoint predictor of the generator-augmented coupling.
        denoiser: for distillation, D(x [B, ...], sigma [B]); otherwise None.
    """

    def __init__(
        self,
        config: RunConfig,
        model: PreconditionedNetwork,
        predict: EndpointPredictor,
        denoiser: Denoiser | None = None,
    ) -> None:
        self.config = config
        self.model = model
        self.predict = predict
        self.denoiser = denoiser
        self.coupling = COUPLINGS[config.method.coupling]
        self._levels: dict[int, tuple[Tensor, Tensor]] = {}

    def _schedule(self, step: int, device: torch.device) -> tuple[Tensor, Tensor]:
        intervals = number_of_intervals(step, self.config.training.steps, self.config.training.schedule)
        if intervals not in self._levels:
            levels = noise_levels(intervals, self.config.process, device)
            self._levels = {intervals: (levels, interval_probabilities(levels, self.config.training.schedule))}
        return self._levels[intervals]

    def pair(self, x: Tensor, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The batch's points and noise levels: x_i [B, ...], sigma_i [B], x_{i+1} [B, ...], sigma_{i+1} [B]."""
        seed, device = self.config.seed, x.device
        levels, probabilities = self._schedule(step, device)
        z = torch.randn(x.shape, generator=generator(seed, step, "noise", device=device), device=device)
        uniform = torch.rand(len(x), 2, generator=generator(seed, step, "interval", device=device), device=device)
        index = sample_intervals(probabilities, uniform[:, 0])
        low, high = levels[index], levels[index + 1]
        take_gc = uniform[:, 1] < mu_at(step, self.config)
        x, z = self.coupling(x, z, CouplingContext(low, take_gc, self.predict))
        x_high = x + per_sample(high, x) * z
        if self.denoiser is None:
            x_low = x + per_sample(low, x) * z
        else:
            with torch.no_grad():
                x_low = x_high + per_sample(low - high, x) * velocity(self.denoiser, x_high, high)
        return x_low, low, x_high, high

    def __call__(self, x: Tensor, step: int) -> Tensor:
        """The loss of data x [B, ...] at `step`."""
        x_low, low, x_high, high = self.pair(x, step)
        seed, device = self.config.seed, x.device
        student = self.model(x_high, high, generator(seed, step, "dropout", device=device))
        with torch.no_grad():
            teacher = self.model(x_low, low, generator(seed, step, "dropout", device=device))
        distance = distance_for(self.config.training, x[0].numel())
        return (distance(teacher, student) / (high - low)).mean()


class DenoisingObjective:
    """EDM's weighted denoising error, per dimension: ln sigma ~ N(p_mean, p_std) (Karras et al. 2022, section 5)."""

    def __init__(self, config: RunConfig, model: PreconditionedNetwork) -> None:
        self.config = config
        self.model = model

    def __call__(self, x: Tensor, step: int) -> Tensor:
        """The loss of data x [B, ...] at `step`."""
        seed, device = self.config.seed, x.device
        schedule, data = self.config.training.schedule, self.config.process.sigma_data
        z = torch.randn(x.shape, generator=generator(seed, step, "noise", device=device), device=device)
        normal = torch.randn(len(x), generator=generator(seed, step, "sigma", device=device), device=device)
        sigma = (schedule.p_mean + schedule.p_std * normal).exp()
        x, z = COUPLINGS[self.config.method.coupling](x, z, CouplingContext(sigma, torch.zeros(0), self.model))
        weight = (sigma**2 + data**2) / (sigma * data) ** 2
        denoised = self.model(x + per_sample(sigma, x) * z, sigma, generator(seed, step, "dropout", device=device))
        return (weight * squared_l2(denoised, x)).mean() / x[0].numel()
