"""Precision, memory layout and compilation of a network's passes; none of it changes what is computed."""

from importlib.util import find_spec

import torch

from gcflow.config import TrainingConfig
from gcflow.errors import GcflowError
from gcflow.model import PreconditionedNetwork

COMPILED_SHAPES = 16


def set_precision(training: TrainingConfig) -> None:
    """Sets what torch keeps for the whole process: TF32 or IEEE products, and repeatable convolutions."""
    tf32 = training.precision == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32
    # A resumed run must repeat the bits of one that was not cut.
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False


def tune(model: PreconditionedNetwork, training: TrainingConfig) -> PreconditionedNetwork:
    """Gives a model the precision, layout and compilation of a run, in place; returns it."""
    if training.precision == "bfloat16":
        model.autocast = torch.bfloat16
    if training.channels_last:
        model.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if training.fused:
        fuse(model)
    elif training.compile != "none":
        # Student, teacher and predictor of a grain, and of each share of GC in it.
        torch._dynamo.config.recompile_limit = 4 * COMPILED_SHAPES
        model.network.compile(mode=training.compile, dynamic=False)
    return model


def fuse(model: PreconditionedNetwork) -> None:
    """Lets kernels of `gcflow.kernels` compute a U-Net's norms, in place; on the CPU they stay as they are.

    Raises:
        GcflowError: there is no Triton, which comes with torch for CUDA.
    """
    from gcflow.songunet import GroupNorm

    norms = [module for module in model.modules() if isinstance(module, GroupNorm) and module.weight.is_cuda]
    if norms and find_spec("triton") is None:
        raise GcflowError("training.compile is fused or graph, which needs triton: pip install triton, or choose none")
    for norm in norms:
        norm.fused = True


def share_multiple(training: TrainingConfig) -> int:
    """The multiple to which predictions in a grain are rounded up: few shapes, when compiled or captured."""
    return 1 if training.compile in ("none", "fused") else -(-(training.grain or training.batch) // COMPILED_SHAPES)
