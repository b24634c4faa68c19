"""All kernels of a grain as one launch."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gcflow.errors import GcflowError
from gcflow.objectives import Batch


class Gradient(NamedTuple):
    """Of a grain. loss: its part of the batch's mean loss, a scalar. gradient: of that, [number of weights]."""

    loss: Tensor
    gradient: Tensor


class Captured(NamedTuple):
    """A call that can be done again. replay: does it, with what `inputs` hold by then."""

    inputs: Batch
    replay: Callable[[], object]


def cuda_graph(device: torch.device, pool: Any, work: Callable[[], object]) -> Callable[[], object]:
    """Captures the kernels that `work` launches; returns what launches them again.

    Args:
        device: where they run.
        pool: of `torch.cuda.graph_pool_handle`. Graphs share its memory, so none keeps what another needs.
        work: what is captured, after a first call that is not.

    Raises:
        GcflowError: it waits for the device, or does what else no CUDA graph can hold.
    """
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        # What is compiled or loaded at a first call cannot be captured.
        work()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    try:
        # Only this thread must keep to what a capture allows: pairings are computed beside it.
        with torch.cuda.device(device), torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            work()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        problem = str(error).splitlines()[0]
        raise GcflowError(
            f"a grain of this run is no CUDA graph ({problem}); choose training.compile fused in place of graph"
        ) from error
    replay: Callable[[], object] = graph.replay
    return replay


class Replayed:
    """A function of a grain, captured once for each number of predicted endpoints and replayed from then on.

    The grains of a run have one size; of another, of which an endpoint is predicted, there are few numbers:
    see `gcflow.precision.share_multiple`.

    Args:
        work: a function of the grain's tensors, and of weights that stay where they are in memory.
        capture: what makes a replay of a call; see `cuda_graph`.
    """

    def __init__(
        self, work: Callable[[Batch], Gradient], capture: Callable[[Callable[[], object]], Callable[[], object]]
    ) -> None:
        self.work, self.capture = work, capture
        self.captured: dict[int, Captured] = {}
        # Of every replay, so that there is one gradient more in memory, and not one more for each graph.
        self.outputs: Gradient | None = None

    def _fill_outputs(self, inputs: Batch) -> None:
        found = self.work(inputs)
        if self.outputs is None:
            self.outputs = Gradient(*(tensor.clone() for tensor in found))
        for held, given in zip(self.outputs, found, strict=True):
            held.copy_(given)

    def __call__(self, grain: Batch) -> Gradient:
        """What `work` gives, in tensors of its own."""
        count = len(grain.to_predict)
        if count not in self.captured:
            inputs = Batch(*(tensor.clone() for tensor in grain))
            self.captured[count] = Captured(inputs, self.capture(partial(self._fill_outputs, inputs)))
        inputs, replay = self.captured[count]
        for held, given in zip(inputs, grain, strict=True):
            held.copy_(given)
        replay()
        assert self.outputs is not None
        return Gradient(*(tensor.clone() for tensor in self.outputs))
