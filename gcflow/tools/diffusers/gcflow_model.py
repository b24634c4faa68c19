"""A network of gcflow in its preconditioning, as a model of diffusers. Needs `pip install gcflow`."""

from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from gcflow.config import from_dict
from gcflow.weights import ModelSpec


class GcflowModel(ModelMixin, ConfigMixin):
    """A consistency model f(x, sigma), or a denoiser.

    Args:
        spec: what rebuilds it, the `model` entry of a weights file of gcflow.
        denoiser: whether it is a denoiser, to be sampled along its PF-ODE.
        boundary: where a consistency model is taken to be the identity; None: where it was trained to be.
    """

    @register_to_config
    def __init__(self, spec: dict[str, Any], denoiser: bool = False, boundary: float | None = None) -> None:
        super().__init__()
        self.spec = from_dict(ModelSpec, dict(spec))
        self.model = self.spec.build()

    def forward(self, sample: Tensor, sigma: Tensor | float) -> Tensor:
        """The clean endpoint of sample [B, ...] with noise of the level sigma, [B] or one for all, in model space."""
        return self.model(sample, torch.as_tensor(sigma, device=sample.device, dtype=sample.dtype).expand(len(sample)))
