"""The loss of a run's objective, with models of a test's own."""

from dataclasses import replace
from typing import Any

from torch import Tensor

from gcflow.config import RunConfig
from gcflow.distances import distance_for
from gcflow.objectives import Batch, ObjectiveContext


class Loss:
    """The objective of `config`; called with a batch, it gives its mean loss. teacher: by default the student."""

    def __init__(
        self,
        config: RunConfig,
        student: Any,
        predict: Any,
        denoiser: Any = None,
        teacher: Any = None,
        multiple: int = 1,
    ) -> None:
        self.objective = config.method.objective
        self.context = ObjectiveContext(
            student=student,
            teacher=teacher or student,
            coupling=config.method.coupling,
            predict=predict,
            distance=distance_for(config.training.distance, config.training.huber_c),
            process=config.process,
            denoiser=denoiser,
            predictor_drops=config.method.predictor == "online",
            multiple=multiple,
        )

    def __call__(self, batch: Batch) -> Tensor:
        return self.objective.mean_loss(batch, self.context)

    def points(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """x_low and x_high: what teacher and student are given."""
        seen: dict[str, Tensor] = {}

        def recorded(name: str) -> Any:
            return lambda x, sigma, keys: seen.setdefault(name, x)

        self.objective.mean_loss(batch, replace(self.context, student=recorded("student"), teacher=recorded("teacher")))
        return seen["teacher"], seen["student"]
