"""What a CUDA graph may hold and does, told on the CPU by a recorder that replays operators in the memory they had."""

from contextlib import nullcontext
from dataclasses import replace
from itertools import cycle

import pytest
import test_training_loop as loop
import torch
from builders import METHODS, grains_of
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gcflow.batches import Batches
from gcflow.config import RunReference
from gcflow.cuda_graphs import Gradient, Replayed, cuda_graph
from gcflow.distributed import World
from gcflow.errors import GcflowError
from gcflow.objectives import Batch
from gcflow.precision import share_multiple
from gcflow.training import Helpers, gradient_of_batch, initial_state, make_gradient, make_loss, train, update

ATEN = torch.ops.aten
# On a GPU they wait for it, or copy what the host has.
FORBIDDEN = {ATEN._local_scalar_dense, ATEN.nonzero, ATEN.masked_select, ATEN.equal, ATEN.lift_fresh}


class Recorder(TorchDispatchMode):
    """Every operator that is called inside of it, with the tensors that it was given and gave."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket in FORBIDDEN:
            raise RuntimeError(f"{func} in a capture")
        out = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, out))
        return out

    @torch.no_grad()
    def replay(self):
        """Calls them again; each writes where it wrote before."""
        for func, args, kwargs, out in self.calls:
            for old, new in zip(tree_leaves(out), tree_leaves(func(*args, **kwargs)), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


def recorded(work):
    work()
    with Recorder() as recorder:
        work()
    return recorder.replay


def gradient_function(config, state, helpers):
    return make_gradient(make_loss(config, state, helpers), config.training, state.flat)


def trained(config):
    """The state after the loop's steps, each grain's gradient replayed; and what was recorded."""
    state, training = loop.start(config), config.training
    replayed = Replayed(gradient_function(config, state, loop.helpers(config)), recorded)
    with Batches(config, loop.DATA, torch.device("cpu"), World()) as batches:
        for step in range(training.steps):
            gradient, losses = gradient_of_batch(replayed, batches[step], training, World())
            update(state, training, gradient, measure_norm=False)
            state.loss_sums += losses
    return state, replayed.captured


@pytest.mark.parametrize(
    ("method", "network", "precision"),
    [(m, *how) for m, how in zip(METHODS, cycle([(loop.MLP, "float32"), (loop.UNET, "bfloat16")]))],
    ids=list(METHODS),
)
def test_a_run_that_replays_its_grains_ends_with_the_bits_of_one_that_computes_them(method, network, precision):
    options = {"batch": 40, "grain": 20, "steps": 6, "snapshot_every": 6, "compile": "graph", "precision": precision}
    config = loop.run_config(method, network=replace(network, dropout=0.2), **options)
    expected = train(config, loop.DATA, loop.start(config), None, None, loop.helpers(config))
    state, captured = trained(config)
    assert state.sha256() == expected.sha256()
    # Grains of other numbers of samples that take GC, each rounded up, have graphs of their own.
    multiple = share_multiple(config.training)
    assert multiple == 2
    assert all(count % multiple == 0 for count in captured)
    assert (len(captured) > 1) == ("gc" in method)
    assert len(captured) < 2 * config.training.steps


class OnTheDevice(TorchDispatchMode):
    """Refuses operators that take or give tensors of another device than torch's `meta`."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves((args, kwargs, out)):
            assert not isinstance(leaf, torch.Tensor) or leaf.device.type == "meta", func
        return out


@pytest.mark.parametrize("method", METHODS)
def test_nothing_of_a_grain_is_copied_from_the_host(method, monkeypatch):
    # It knows no meta tensors; at single precision it does nothing.
    monkeypatch.setattr(torch, "autocast", lambda *args, **options: nullcontext())
    config = loop.run_config(method, network=replace(loop.UNET, dropout=0.2), batch=8, grain=4)
    if config.method.objective.distils:
        config = replace(config, method=replace(config.method, teacher=RunReference("denoiser")))
    grain = Batch(*(tensor.to("meta") for tensor in grains_of(config, loop.DATA)[0]))
    with torch.device("meta"):
        state, frozen = (initial_state(config, loop.SHAPE, "meta") for _ in range(2))
    work = gradient_function(config, state, Helpers(predictor=frozen.ema, teacher=frozen.ema))
    with OnTheDevice():
        assert work(grain).gradient.shape == state.flat.tensor.shape
        with pytest.raises(AssertionError):
            torch.ones(3)


def test_what_is_given_back_stays_when_the_next_grain_is_replayed():
    config = loop.run_config("ic", batch=4, grain=1)
    replayed = Replayed(lambda grain: Gradient(grain.data.sum(), grain.data.flatten() * 2), recorded)
    grains = grains_of(config, loop.DATA)
    found = [replayed(grain) for grain in grains]
    # The first of them has been computed three times, the others never.
    assert len(replayed.captured) == 1
    for grain, (loss, gradient) in zip(grains, found, strict=True):
        assert torch.equal(gradient, grain.data.flatten() * 2)
        assert torch.equal(loss, grain.data.sum())


@pytest.mark.parametrize(
    "host_work",
    [lambda x: x.sum().item(), lambda x: x.nonzero(), lambda x: torch.tensor(1.0), lambda x: bool(x[0] > 0)],
)
def test_the_recorder_finds_what_a_graph_cannot_hold(host_work):
    with pytest.raises(RuntimeError, match="in a capture"):
        recorded(lambda: host_work(torch.ones(3)))


class Graph:
    """In the place of torch.cuda's, where there is none."""

    def __init__(self, *args, **options):
        self.options = options

    def wait_stream(self, other):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *found):
        pass


@pytest.mark.parametrize(
    ("problem", "expected"),
    [
        (RuntimeError("CUDA error: operation not permitted\nwhen capturing"), GcflowError),
        (torch.OutOfMemoryError("CUDA out of memory"), torch.OutOfMemoryError),
    ],
)
def test_a_grain_that_is_no_graph_is_refused_with_what_to_choose(monkeypatch, problem, expected):
    for name in ("Stream", "CUDAGraph", "device", "stream", "graph", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, Graph)
    calls = []

    def work():
        calls.append(1)
        if len(calls) > 1:
            raise problem

    with pytest.raises(expected) as caught:
        cuda_graph(torch.device("cuda"), None, work)
    if expected is GcflowError:
        message = "a grain of this run is no CUDA graph (CUDA error: operation not permitted); choose training.compile "
        assert str(caught.value) == message + "fused in place of graph"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("method", ["ic", "ot", "gc", "gc-online", "ect", "denoiser"])
def test_on_a_gpu_a_captured_run_ends_with_the_bits_of_the_fused_one(method):
    ends = []
    for way in ("fused", "graph"):
        config = loop.run_config(method, network=loop.UNET, batch=16, grain=4, compile=way, precision="bfloat16")
        state = initial_state(config, loop.SHAPE, "cuda")
        ends.append(train(config, loop.DATA.to("cuda"), state).sha256())
    assert ends[0] == ends[1]
