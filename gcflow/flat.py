"""The parameters of a network in one tensor: the optimizer and the EMA take one call for all of them."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class FlatParameters:
    """A network's parameters, in order and end to end in one tensor of which each becomes a view.

    A part lies as its parameter lay in memory (channels last or not). A gradient and the optimizer's moments are
    tensors of the same layout.

    tensor: [number of weights]; what an optimizer takes in the parameters' place.
    """

    def __init__(self, network: nn.Module) -> None:
        self.parameters = list(network.parameters())
        self.orders = [sorted(range(p.ndim), key=lambda d, p=p: -p.stride(d)) for p in self.parameters]  # type: ignore[misc]
        self.tensor = nn.Parameter(self.gather(self.parameters), requires_grad=False)
        for parameter, part in zip(self.parameters, self.parts(self.tensor.detach()), strict=True):
            parameter.data = part

    @torch.no_grad()
    def gather(self, tensors: Sequence[Tensor]) -> Tensor:
        """Tensors of the parameters' shapes as a single one, [number of weights]."""
        return torch.cat([t.permute(order).reshape(-1) for t, order in zip(tensors, self.orders, strict=True)])

    def parts(self, tensor: Tensor) -> list[Tensor]:
        """The views of a flat tensor that have the parameters' shapes."""
        cut = tensor.split([parameter.numel() for parameter in self.parameters])
        return [part.as_strided(p.shape, p.stride()) for part, p in zip(cut, self.parameters, strict=True)]
