"""Lion, the choice of optimizer, and the exponential moving average of the weights."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from gcflow.config import TrainingConfig


class Lion(torch.optim.Optimizer):
    """Lion (Chen et al. 2023): the sign of an interpolated momentum, with decoupled weight decay.

    Args:
        params: parameters to optimise.
        lr: learning rate, > 0.
        betas: interpolation of the update, and decay of the momentum, each in [0, 1).
        weight_decay: >= 0.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                if "momentum" not in self.state[p]:
                    self.state[p]["momentum"] = torch.zeros_like(p)
                momentum = self.state[p]["momentum"]
                update = torch.lerp(p.grad, momentum, beta1).sign_()
                if group["weight_decay"] > 0:
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update, alpha=-group["lr"])
                momentum.lerp_(p.grad, 1 - beta2)
        return loss


def make_optimizer(params: Iterable[nn.Parameter], training: TrainingConfig) -> torch.optim.Optimizer:
    """The optimizer that a run's configuration names."""
    kinds: dict[str, Callable[..., torch.optim.Optimizer]] = {
        "lion": Lion,
        "adam": torch.optim.Adam,
        "radam": torch.optim.RAdam,
    }
    extra: dict[str, dict[str, Any]] = {"lion": {}, "adam": {"fused": True}, "radam": {"foreach": True}}
    name = training.optimizer
    return kinds[name](params, lr=training.learning_rate, weight_decay=training.weight_decay, **extra[name])


def learning_rate(step: int, training: TrainingConfig) -> float:
    """The learning rate at `step` (from 0): constant, or linear from its value to 0 at the end."""
    if training.learning_rate_decay == "none":
        return training.learning_rate
    return training.learning_rate * (1 - step / training.steps)


def ema_decay(step: int, training: TrainingConfig) -> float | None:
    """The decay with which the average moves after `step` (from 0): 0 copies the weights, None leaves the average.

    With ramp-up as the paper's authors' code has it, through ema-pytorch 0.2.3.
    """
    if step % training.ema_every:
        return None
    past = step - training.ema_start
    if not training.ema_ramp_up:
        return training.ema_decay if past >= 0 else 0.0
    return min(training.ema_decay, 1 - (1 + past) ** (-2 / 3)) if past > training.ema_every else 0.0


@torch.no_grad()
def update_ema(average: Tensor, weights: Tensor, decay: float) -> None:
    """Average <- decay average + (1 - decay) weights, in place."""
    average.lerp_(weights, 1 - decay)
