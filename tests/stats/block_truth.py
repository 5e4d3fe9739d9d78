"""Tensors really rounded through a block format, and what that flushed and saturated."""

import math

import torch

from numwatch.formats import (
    get_block_format,
    mx_scale_exponent,
    round_to_block_format,
    round_to_format,
)


def true_shares(x, name, rule, dim):
    """Shares of the non-zero elements that become zero, and that are above the largest value."""
    x = x.double()
    nonzero = (x != 0).sum().item()
    if not nonzero:
        return 0.0, 0.0
    rounded = round_to_block_format(x, name, scale_rule=rule, dim=dim)
    flushed = ((rounded == 0) & (x != 0)).sum().item()
    return flushed / nonzero, _saturated(x.movedim(dim, -1), name, rule) / nonzero


def true_errors(x, name, rule):
    """Median relative error and SQNR in dB."""
    x = x.double()
    error = round_to_block_format(x, name, scale_rule=rule) - x
    sqnr = 10 * math.log10(x.square().sum() / error.square().sum())
    return (error / x)[x != 0].abs().median().item(), sqnr


def _saturated(x, name, rule):
    fmt = get_block_format(name)
    height, width = fmt.block
    padded = torch.nn.functional.pad(x.abs(), (0, -x.shape[1] % width, 0, -x.shape[0] % height))
    blocks = padded.unflatten(0, (-1, height)).unflatten(2, (-1, width))
    amax = blocks.amax(dim=(1, 3), keepdim=True)
    if not fmt.tensor_scale:
        exponent = mx_scale_exponent(amax, fmt.element, (rule or "floor") if fmt.is_mx else "rceil")
        return (blocks > fmt.element.max * torch.exp2(exponent.double())).sum().item()
    encode = (448 * 6 / x.abs().max()).clamp(max=torch.finfo(torch.float32).max).float().double()
    scale = round_to_format(amax * encode / 6, "e4m3")
    # A block whose scale is 0 is flushed, not saturated.
    return ((blocks * encode > 6 * scale) & (scale > 0)).sum().item()
