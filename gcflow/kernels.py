"""Group normalisation of a U-Net with what stands around it, in Triton: one kernel forward, one backward.

A program takes whole groups of one sample and reads them twice, for their statistics and for what it writes; the
second time they come from the cache. Every sum has one order, a function of the shapes alone, and nothing is chosen by
timing: equal inputs give equal bits.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from gcflow.dropout import MULTIPLIERS, POSITION, Dropout, layer_word, threshold

FIRST, SECOND, POSITION_WORD = (tl.constexpr(word) for word in (*MULTIPLIERS, POSITION))
# Values of a sample that a program has at hand; channels that it takes, if the groups are not larger.
TILE, WIDTH = 2048, 32


@triton.jit
def _mixed(h):
    """`gcflow.dropout._mixed` of uint32."""
    h = (h ^ (h >> 16)) * FIRST
    h = (h ^ (h >> 15)) * SECOND
    return h ^ (h >> 16)


@triton.jit
def _channels(i, first, channels, depth: tl.constexpr, padded: tl.constexpr):
    """The channels of places i, where each group of `depth` has `padded`; and whether there is one."""
    inner = i % padded
    channel = (first + i // padded) * depth + inner
    return channel, (inner < depth) & (channel < channels)


@triton.jit
def _kept(
    keys, sample, pixel, first, channels, layer, least, depth: tl.constexpr, padded: tl.constexpr, block: tl.constexpr
):
    """`gcflow.dropout.keep_mask` of a tile, [pixels, block]: a 32-bit word decides about two neighbours."""
    key = _mixed(_mixed(tl.load(keys + sample).to(tl.uint32, bitcast=True)) ^ layer.to(tl.uint32))
    if depth % 2 == 0:
        channel, _ = _channels(2 * tl.arange(0, block // 2), first, channels, depth, padded)
        place = (pixel[:, None] * channels + channel[None, :]) // 2
        word = _mixed(_mixed(place.to(tl.uint32) ^ POSITION_WORD) ^ key)
        half = tl.reshape(tl.join(word & 0xFFFF, word >> 16), [pixel.shape[0], block])
    else:
        channel, _ = _channels(tl.arange(0, block), first, channels, depth, padded)
        place = (pixel[:, None] * channels + channel[None, :]).to(tl.uint32)
        word = _mixed(_mixed((place // 2) ^ POSITION_WORD) ^ key)
        half = (word >> (16 * (place % 2))) & 0xFFFF
    return (half ^ 0x8000).to(tl.int32) >= least


@triton.jit
def _of_groups(values, inside, padded: tl.constexpr, block: tl.constexpr):
    """The sum of each group's channels, [block], at each of its channels."""
    sums = tl.sum(tl.reshape(tl.where(inside, values, 0.0), [block // padded, padded]), 1)
    return tl.reshape(tl.broadcast_to(sums[:, None], [block // padded, padded]), [block])


@triton.jit(do_not_specialize=["layer", "least"])
def forward_kernel(
    x, other, weight, bias, keys, total, out, means, deviations,
    channels, pixels, layer, least, eps, scale, inverse_share,
    depth: tl.constexpr, padded: tl.constexpr, block: tl.constexpr, tile: tl.constexpr,
    summed: tl.constexpr, embedded: tl.constexpr, silu: tl.constexpr, drops: tl.constexpr,
):  # fmt: skip
    """Writes out = dropout(SiLU(norm(v))) with v = x, (x + other) * scale if `summed`, or x + other[b, c]."""
    sample, first = tl.program_id(0), tl.program_id(1) * (block // padded)
    place, inside = _channels(tl.arange(0, block), first, channels, depth, padded)
    begin = sample.to(tl.int64) * pixels * channels
    x, total, out = x + begin, total + begin, out + begin
    shift = tl.load(x + place, inside, 0.0).to(tl.float32)
    if embedded:
        added = tl.load(other + sample * channels + place, inside, 0.0).to(tl.float32)
        shift += added
    if summed:
        other += begin
    # Around a channel's first value its squares do not cancel.
    sums, squares = tl.zeros([tile, block], tl.float32), tl.zeros([tile, block], tl.float32)
    for start in range(0, pixels, tile):
        pixel = start + tl.arange(0, tile)
        mask = (pixel < pixels)[:, None] & inside[None, :]
        at = pixel[:, None] * channels + place[None, :]
        v = tl.load(x + at, mask, 0.0).to(tl.float32)
        if summed:
            rounded = ((v + tl.load(other + at, mask, 0.0).to(tl.float32)) * scale).to(total.dtype.element_ty)
            tl.store(total + at, rounded, mask)
            v = rounded.to(tl.float32)
        if embedded:
            v += added[None, :]
        v = tl.where(mask, v - shift[None, :], 0.0)
        sums += v
        squares += v * v
    sum_of, square_of = tl.sum(sums, 0), tl.sum(squares, 0)
    own = shift + sum_of / pixels
    mean = _of_groups(own, inside, padded, block) / depth
    spread = square_of - sum_of * sum_of / pixels + pixels * (own - mean) * (own - mean)
    deviation = 1 / tl.sqrt(_of_groups(spread, inside, padded, block) / (depth * pixels) + eps)
    tl.store(means + sample * channels + place, own, inside)
    tl.store(deviations + sample * channels + place, deviation, inside)
    factor = deviation * tl.load(weight + place, inside, 0.0)
    constant = tl.load(bias + place, inside, 0.0)
    if summed:
        tl.debug_barrier()
        x = total
    for start in range(0, pixels, tile):
        pixel = start + tl.arange(0, tile)
        mask = (pixel < pixels)[:, None] & inside[None, :]
        at = pixel[:, None] * channels + place[None, :]
        v = tl.load(x + at, mask, 0.0).to(tl.float32)
        if embedded:
            v += added[None, :]
        u = (v - mean[None, :]) * factor[None, :] + constant[None, :]
        if silu:
            u = u / (1 + tl.exp(-u))
        if drops:
            kept = _kept(keys, sample, pixel, first, channels, layer, least, depth, padded, block)
            u = tl.where(kept, u * inverse_share, 0.0)
        tl.store(out + at, u.to(out.dtype.element_ty), mask)


@triton.jit(do_not_specialize=["layer", "least"])
def backward_kernel(
    v, other, weight, bias, keys, means, deviations, upstream, further, gradient, of_weight, of_bias, of_other,
    channels, pixels, layer, least, scale, inverse_share,
    depth: tl.constexpr, padded: tl.constexpr, block: tl.constexpr, tile: tl.constexpr,
    embedded: tl.constexpr, silu: tl.constexpr, drops: tl.constexpr, joined: tl.constexpr,
):  # fmt: skip
    """Writes the gradient at x, from that at `out`, and at v if `joined`; of weight, bias and embedding per sample."""
    sample, first = tl.program_id(0), tl.program_id(1) * (block // padded)
    place, inside = _channels(tl.arange(0, block), first, channels, depth, padded)
    begin, row = sample.to(tl.int64) * pixels * channels, sample * channels + place
    v, upstream, further, gradient = v + begin, upstream + begin, further + begin, gradient + begin
    own, deviation = tl.load(means + row, inside, 0.0), tl.load(deviations + row, inside, 0.0)
    mean = _of_groups(own, inside, padded, block) / depth
    gain, constant = tl.load(weight + place, inside, 0.0), tl.load(bias + place, inside, 0.0)
    # Taken off x, not added to each of its values.
    center = mean - tl.load(other + row, inside, 0.0).to(tl.float32) if embedded else mean
    alone, weighted = tl.zeros([tile, block], tl.float32), tl.zeros([tile, block], tl.float32)
    of_group, by_group = tl.zeros([block], tl.float32), tl.zeros([block], tl.float32)
    for writes in tl.static_range(2):
        for start in range(0, pixels, tile):
            pixel = start + tl.arange(0, tile)
            mask = (pixel < pixels)[:, None] & inside[None, :]
            at = pixel[:, None] * channels + place[None, :]
            normal = (tl.load(v + at, mask, 0.0).to(tl.float32) - center[None, :]) * deviation[None, :]
            g = tl.load(upstream + at, mask, 0.0).to(tl.float32)
            if drops:
                kept = _kept(keys, sample, pixel, first, channels, layer, least, depth, padded, block)
                g = tl.where(kept, g * inverse_share, 0.0)
            if silu:
                u = normal * gain[None, :] + constant[None, :]
                share = 1 / (1 + tl.exp(-u))
                g *= share * (1 + u * (1 - share))
            if writes:
                g = deviation[None, :] * (g * gain[None, :] - of_group[None, :] - normal * by_group[None, :])
                if joined:
                    g += tl.load(further + at, mask, 0.0).to(tl.float32)
                g *= scale
                tl.store(gradient + at, g.to(gradient.dtype.element_ty), mask)
            else:
                alone += g
                weighted += g * normal
        if not writes:
            of_bias_here, of_weight_here = tl.sum(alone, 0), tl.sum(weighted, 0)
            tl.store(of_bias + row, of_bias_here, inside)
            tl.store(of_weight + row, of_weight_here, inside)
            of_group = _of_groups(of_bias_here * gain, inside, padded, block) / (depth * pixels)
            by_group = _of_groups(of_weight_here * gain, inside, padded, block) / (depth * pixels)
            if embedded:
                # The sum over pixels of what is written below.
                rest = of_group + (own - mean) * deviation * by_group
                tl.store(of_other + row, deviation * (of_bias_here * gain - pixels * rest), inside)


def _tiling(channels: int, pixels: int, groups: int) -> dict[str, int]:
    """How a sample is cut: depth and padded size of a group, channels of a program, pixels it has at hand."""
    depth = channels // groups
    padded = triton.next_power_of_2(depth)
    block = padded * min(triton.next_power_of_2(groups), max(1, WIDTH // padded))
    return {
        "depth": depth,
        "padded": padded,
        "block": block,
        "tile": min(max(1, TILE // block), triton.next_power_of_2(pixels)),
    }


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


class _SummedNorm(torch.autograd.Function):
    """See `summed_norm`."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        residual: Tensor | None,
        embedding: Tensor | None,
        weight: Tensor,
        bias: Tensor,
        keys: Tensor | None,
        settings: tuple[int, float, float, bool, int, float],
    ) -> tuple[Tensor, Tensor]:
        groups, eps, scale, silu, layer, rate = settings
        x = _channels_last(x)
        other = embedding if embedding is not None else x if residual is None else _channels_last(residual)
        batch, channels, height, width = x.shape
        total = x if residual is None else torch.empty_like(x)
        out, means = torch.empty_like(x), torch.empty(batch, channels, device=x.device)
        deviations = torch.empty_like(means)
        cut = _tiling(channels, height * width, groups)
        grid = (batch, triton.cdiv(groups, cut["block"] // cut["padded"]))
        # What drops nothing, or has nothing added, is given any tensor in place of that.
        common = {
            "channels": channels,
            "pixels": height * width,
            "layer": layer_word(layer),
            "least": threshold(rate),
            "scale": scale if residual is not None else 1.0,
            "inverse_share": 1 / (1 - rate),
            "embedded": embedding is not None,
            "silu": silu,
            "drops": keys is not None,
            **cut,
        }
        dropped = means if keys is None else keys
        forward_kernel[grid](
            x, other, weight, bias, dropped, total, out, means, deviations,
            eps=eps, summed=residual is not None, enable_fp_fusion=True, **common,
        )  # fmt: skip
        ctx.save_for_backward(total, embedding, weight, bias, dropped, means, deviations)
        ctx.set_materialize_grads(False)
        ctx.grid, ctx.common, ctx.adds = grid, common, residual is not None
        return total, out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, further: Tensor | None, upstream: Tensor) -> tuple[Tensor | None, ...]:
        total, embedding, weight, bias, keys, means, deviations = ctx.saved_tensors
        gradient, upstream = torch.empty_like(total), _channels_last(upstream)
        of_weight, of_bias, of_other = torch.empty_like(means), torch.empty_like(means), torch.empty_like(means)
        backward_kernel[ctx.grid](
            total, means if embedding is None else embedding, weight, bias, keys, means, deviations, upstream,
            upstream if further is None else _channels_last(further), gradient, of_weight, of_bias, of_other,
            joined=further is not None, enable_fp_fusion=True, **ctx.common,
        )  # fmt: skip
        return (
            gradient,
            gradient if ctx.adds else None,
            None if embedding is None else of_other.to(embedding.dtype),
            of_weight.sum(0),
            of_bias.sum(0),
            None,
            None,
        )


def summed_norm(
    norm: nn.GroupNorm,
    x: Tensor,
    residual: Tensor | None = None,
    embedding: Tensor | None = None,
    scale: float = 1.0,
    silu: bool = True,
    dropout: Dropout | None = None,
    keys: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The sum v = (x + residual) * scale, or v = x; and dropout(SiLU(norm(v + embedding))), both in the type of x.

    In between all is float32. One of `residual` and `embedding` may be given.

    Args:
        norm: its parameters, in float32.
        x: [B, C, H, W].
        residual: like x.
        embedding: [B, C].
        scale: of the sum of x and residual.
        silu: whether SiLU follows the norm.
        dropout: the layer that follows SiLU.
        keys: of the samples, int32 [B]; None leaves dropout out.
    """
    layer, rate = (0, 0.0) if dropout is None or keys is None else (dropout.layer, dropout.rate)
    settings = (norm.num_groups, norm.eps, scale, silu, layer, rate)
    return _SummedNorm.apply(x, residual, embedding, norm.weight, norm.bias, keys if rate else None, settings)
