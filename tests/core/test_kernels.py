"""The Triton kernels without a GPU: what they compute, by Triton's interpreter, and that they compile for two GPUs."""

import itertools
import math
import os
import re
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context

import pytest
import torch
from builders import batch_of, random_images, randomised, run_config
from torch import nn
from torch.nn import functional

from gcflow.config import MethodConfig, NetworkConfig
from gcflow.dropout import Dropout, dropout_keys, keep_mask
from gcflow.errors import GcflowError
from gcflow.precision import fuse
from gcflow.songunet import SKIP_SCALE, GroupNorm
from gcflow.training import Helpers, initial_state, make_loss

pytest.importorskip("triton", reason="Triton is for Linux")
pytestmark = pytest.mark.slow
RATE = 0.3
# Batch, channels, height, width, groups: paddings of every kind, one pixel, several tiles of pixels.
SHAPES = [
    (2, 12, 3, 3, 3),
    (1, 36, 2, 2, 3),
    (1, 20, 3, 5, 4),
    (1, 4, 1, 1, 1),
    (1, 8, 18, 17, 2),
]
TOLERANCE = {torch.float32: 3e-6, torch.bfloat16: 2e-2, torch.float16: 2e-3}


@pytest.fixture(scope="module")
def interpreted():
    """Calls a function in a process in which Triton interprets: it decides when it is imported."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        with pytest.MonkeyPatch.context() as patch:
            # Only while that process starts: this one compiles.
            patch.setenv("TRITON_INTERPRET", "1")
            pool.submit(os.getpid).result()
        yield lambda function, *args: pool.submit(function, *args).result()


def assert_near(found, expected, tolerance):
    assert found.shape == expected.shape
    assert (found.double() - expected).abs().max() <= tolerance * expected.abs().max()


def norm_in_double(norm, x, residual, embedding, silu, keep):
    """What a kernel computes, by torch; x, residual, embedding and parameters may need gradients."""
    v = x if residual is None else (x + residual) * math.sqrt(0.5)
    h = v if embedding is None else v + embedding[:, :, None, None]
    h = functional.group_norm(h, norm.num_groups, norm.weight, norm.bias, norm.eps)
    h = functional.silu(h) if silu else h
    return v, h if keep is None else h * keep / (1 - RATE)


def compare(shape, way, silu, dtype):
    from gcflow.kernels import summed_norm

    batch, channels, height, width, groups = shape
    source = torch.Generator().manual_seed(0)

    def drawn(*size, mean=0.0):
        return (mean + torch.randn(size, generator=source)).to(dtype).requires_grad_()

    norm = nn.GroupNorm(groups, channels, eps=1e-6)
    for parameter in norm.parameters():
        nn.init.normal_(parameter, generator=source)
    # A mean that is large beside the deviation: squares would cancel.
    x = drawn(*shape[:4], mean=0.0 if dtype == torch.bfloat16 else 30.0)
    residual = drawn(*shape[:4]) if way == "residual" else None
    embedding = drawn(batch, channels) if way == "embedding" else None
    dropout, keys = Dropout(RATE), dropout_keys(0, 0, batch) if way == "embedding" else None
    dropout.layer = 3
    given = [tensor for tensor in (x, residual, embedding, *norm.parameters()) if tensor is not None]

    found = summed_norm(norm, x, residual, embedding, SKIP_SCALE, silu, dropout, keys)
    upstream = [drawn(*shape[:4]).detach() for _ in found]
    # What the norm of x + embedding takes is needed by nothing else.
    used = slice(1, None) if way == "embedding" else slice(None)
    gradients = torch.autograd.grad(found[used], given, upstream[used])

    keep = None
    if keys is not None:
        keep = keep_mask(keys, 3, x[0].numel(), RATE).reshape(batch, height, width, channels).permute(0, 3, 1, 2)
    double = [tensor.detach().double().requires_grad_() for tensor in given]
    exact, pool = nn.GroupNorm(groups, channels, eps=1e-6).double(), iter(double)
    inputs = [None if tensor is None else next(pool) for tensor in (x, residual, embedding)]
    exact.weight, exact.bias = (nn.Parameter(next(pool).detach()) for _ in range(2))
    expected = norm_in_double(exact, *inputs, silu, keep)
    wanted = [*(tensor for tensor in inputs if tensor is not None), exact.weight, exact.bias]
    of_exact = torch.autograd.grad(expected[used], wanted, [g.double() for g in upstream[used]])
    # Rounding of inputs near 30 moves normalised values by 30 times the type's precision.
    tolerance = TOLERANCE[dtype] * (10 if dtype != torch.bfloat16 else 1)
    for value, want in zip((*found[used], *gradients), (*expected[used], *of_exact), strict=True):
        assert value.dtype in (dtype, torch.float32)
        assert_near(value, want, tolerance)
    if keep is not None:
        assert torch.equal(found[1] == 0, ~keep)
    # A sample's values depend neither on the others nor on how often they are asked for.
    rest = [None if tensor is None else tensor[-1:] for tensor in (residual, embedding)]
    alone = summed_norm(norm, x[-1:], *rest, SKIP_SCALE, silu, dropout, None if keys is None else keys[-1:])
    assert torch.equal(alone[1], found[1][-1:])


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(
    ("way", "silu"), [("none", True), ("residual", True), ("residual", False), ("embedding", True)]
)
def test_values_and_gradients_are_those_of_float64(interpreted, way, silu, dtype):
    for shape in SHAPES:
        interpreted(compare, shape, way, silu, dtype)


def loss_and_gradients(config, shape, dtype, fused):
    """Of a step of a run whose weights all count; in float64 without kernels."""
    data = random_images(16, *shape)
    state, batch = initial_state(config, shape), batch_of(config, data, 3)
    for model in (state.model, state.ema):
        randomised(model).to(dtype)
        for norm in (module for module in model.modules() if isinstance(module, GroupNorm)):
            norm.fused = fused
    batch = type(batch)(*(tensor.to(dtype) if tensor.is_floating_point() else tensor for tensor in batch))
    parameters = list(state.model.parameters())
    loss = make_loss(config, state, Helpers())(batch)
    gradients = torch.autograd.grad(loss, parameters)
    return loss.detach().double(), torch.cat([gradient.double().flatten() for gradient in gradients])


@pytest.mark.parametrize("architecture", ["ddpm++", "ncsn++"])
def test_a_whole_unet_has_the_loss_and_gradients_of_the_plain_one(interpreted, architecture):
    network = NetworkConfig(architecture, channels=8, blocks=1, multipliers=(1, 1), attention=(4,), dropout=RATE)
    method = MethodConfig("consistency", "gc", mu=0.5, predictor="ema")
    config = run_config(method, network=network, batch=2)
    shape = (3, 8, 8)
    loss, gradient = interpreted(loss_and_gradients, config, shape, torch.float64, False)
    found, close = interpreted(loss_and_gradients, config, shape, torch.float32, True)
    torch.testing.assert_close(found, loss, rtol=1e-5, atol=0)
    assert (close - gradient).norm() < 1e-4 * gradient.norm()
    # In bfloat16 the kernels round less often than what they replace.
    rounded = replace(config, training=replace(config.training, precision="bfloat16"))
    plain, fused = (interpreted(loss_and_gradients, rounded, shape, torch.float32, way)[1] for way in (False, True))
    assert (fused - gradient).norm() < 1.2 * (plain - gradient).norm()


def test_on_the_cpu_a_fused_run_is_the_plain_one_and_a_gpu_without_triton_is_told_what_it_needs(monkeypatch):
    network = NetworkConfig("ddpm++", channels=8, blocks=1)
    plain, fused = (initial_state(run_config(network=network, compile=way), (3, 4, 4)) for way in ("none", "fused"))
    x, sigma = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0.5, 3.0])
    assert torch.equal(plain.model(x, sigma), fused.model(x, sigma))
    monkeypatch.setattr("gcflow.precision.find_spec", lambda name: None)
    monkeypatch.setattr(nn.Parameter, "is_cuda", True)
    with pytest.raises(GcflowError, match="compile is fused or graph, which needs triton"):
        fuse(plain.model)


FLAGS = {
    "block's head": (
        {"summed": True, "embedded": False, "silu": True, "drops": False},
        {"embedded": False, "silu": True, "drops": False, "joined": True},
    ),
    "block's middle": (
        {"summed": False, "embedded": True, "silu": True, "drops": True},
        {"embedded": True, "silu": True, "drops": True, "joined": False},
    ),
}
BUILDS = [
    *itertools.product([4, 5, 8, 12, 16], [90], ["bf16"]),
    *itertools.product([4, 12], [80], ["bf16"]),
    *itertools.product([4], [90], ["fp32", "fp16"]),
]


@pytest.mark.parametrize("place", FLAGS)
@pytest.mark.parametrize(("depth", "capability", "kind"), BUILDS)
def test_kernels_compile_for_gpus_and_no_register_spills(place, depth, capability, kind, monkeypatch, tmp_path, capfd):
    from triton import compile as build
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from gcflow import kernels

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("TRITON_DUMP_PTXAS_LOG", "1")
    images = {"x", "other", "total", "out", "v", "upstream", "further", "gradient"}
    types = dict.fromkeys(images, f"*{kind}") | {"keys": "*i32"}
    types |= dict.fromkeys(("channels", "pixels", "layer", "least"), "i32")
    types |= dict.fromkeys(("eps", "scale", "inverse_share"), "fp32")
    for kernel, flags in zip((kernels.forward_kernel, kernels.backward_kernel), FLAGS[place], strict=True):
        constants = flags | kernels._tiling(32 * depth, 1024, 32)
        names = kernel.arg_names
        signature = {name: "constexpr" if name in constants else types.get(name, "*fp32") for name in names}
        # As a launch finds them: whole addresses, and sizes that 16 divides.
        even = [name for name in names if signature[name].startswith("*") or name in ("channels", "pixels")]
        divisible = {(names.index(name),): [["tt.divisibility", 16]] for name in even}
        options = {"enable_fp_fusion": True}
        source = ASTSource(kernel, signature, constants, divisible)
        built = build(source, target=GPUTarget("cuda", capability, 32), options=options)
        assert built.asm["cubin"][:4] == b"\x7fELF"
        assert f".target sm_{capability}" in built.asm["ptx"]
        spills = re.findall(r"(\d+) bytes spill", "".join(capfd.readouterr()))
        assert spills, "ptxas said nothing"
        assert set(spills) == {"0"}
        # Neighbouring channels are read together, where groups allow it.
        assert (depth % 4 != 0) or re.search(r"ld\.global\.v[24]\.b32", built.asm["ptx"])
