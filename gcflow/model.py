"""A model: a network inside its preconditioning."""

import torch
from torch import Tensor, nn

from gcflow.errors import GcflowError
from gcflow.preconditioning import (
    COEFFICIENTS,
    NoiseProcess,
    Preconditioning,
    boundary,
    edm_coefficients,
    per_sample,
)


class PreconditionedNetwork(nn.Module):
    """A network with its preconditioning: a consistency model f_theta or a denoiser D_phi.

    Args:
        network: maps (x [B, ...], c_noise [B], dropout keys [B] or None) to the shape of x.
        preconditioning: which.
        process: the noise process that the network was made for.

    Attributes:
        autocast: precision of the network's pass, None for that of the weights; see `gcflow.precision`.
    """

    def __init__(self, network: nn.Module, preconditioning: Preconditioning, process: NoiseProcess) -> None:
        super().__init__()
        self.network = network
        self.preconditioning = preconditioning
        self.process = process
        self.autocast: torch.dtype | None = None

    @property
    def boundary(self) -> float:
        """The noise level at which the model is the identity."""
        return boundary(self.preconditioning, self.process)

    def forward(
        self,
        x: Tensor,
        sigma: Tensor,
        dropout: Tensor | None = None,
        boundary: float | None = None,
        **labels: Tensor,
    ) -> Tensor:
        """Predicts the clean endpoint, shape and dtype of x.

        Args:
            x: [B, ...].
            sigma: noise levels [B].
            dropout: keys of the samples, int32 [B]; None leaves dropout out.
            boundary: where a model of EDM preconditioning is the identity in this pass, instead of at 0.
            labels: class_labels or augment_labels of a network that has them.
        """
        if boundary is None:
            c = COEFFICIENTS[self.preconditioning](sigma, self.process)
        else:
            c = edm_coefficients(sigma, self.process, boundary)
        # Entered for each pass: cast weights that autocast kept from a pass without gradient would have none.
        with torch.autocast(x.device.type, self.autocast, enabled=self.autocast is not None):
            inner = self.network(per_sample(c.input, x) * x, c.noise, dropout, **labels)
        if inner.shape != x.shape:
            raise GcflowError(f"the network gives {list(inner.shape)} for samples {list(x.shape)}; they must agree")
        return per_sample(c.skip, x) * x + per_sample(c.out, x) * inner.to(x.dtype)
