"""The three GEMMs of a Linear on rounded operands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from numwatch.emulate.autograd import in_backward, without_autocast
from numwatch.emulate.casts import Cast, Counts
from numwatch.emulate.hadamard import transform_rows
from numwatch.emulate.state import Draws, ScaleKeeper
from numwatch.formats import Format


@dataclass(frozen=True)
class Call:
    """A forward of a module.

    Attributes:
        counts: Whether it advances the rules that look back: not in evaluation, not without
            gradients.
        again: Whether it repeats a call that did.
    """

    counts: bool
    again: bool = False


class Rounding:
    """How a module's operands are rounded, and what is remembered of it.

    Attributes:
        casts: By role, those that are rounded.
        keepers: By role, the scales of those with one for the whole operand.
        draws: Random numbers, shared by all modules of an emulation.
        hadamard: Seed of the transform of the weight gradient's operands; None for none.
    """

    def __init__(self, casts: Mapping[str, Cast], draws: Draws, hadamard: int | None) -> None:
        self.casts = dict(casts)
        self.keepers = {
            role: ScaleKeeper(cast.scaling, cast.format)
            for role, cast in casts.items()
            if cast.scaling is not None and isinstance(cast.format, Format)
        }
        self.draws = draws
        self.hadamard = hadamard
        self._first_without_gradients = False

    def call(self, *, training: bool) -> Call:
        """Returns what kind of call a forward is, to be asked once in each."""
        if not training or not torch.is_grad_enabled():
            self._first_without_gradients = training
            return Call(counts=False)
        if not in_backward():
            self._first_without_gradients = False
            return Call(counts=True)
        # A checkpoint's second forward. Reentrant ones run the first without gradients.
        return Call(counts=True, again=not self._first_without_gradients)

    def scale(self, role: str, matrix: Tensor, call: Call) -> Tensor | None:
        """Returns the scale a call takes, None where there is not one for the whole operand."""
        keeper = self.keepers.get(role)
        if keeper is None:
            return None
        again = call.again and role != "grad_output"  # backward runs but once
        return keeper.scale_for(matrix, advance=call.counts, again=again)

    def operand(
        self, role: str, matrix: Tensor, scale: Tensor | None, values: Tensor | None = None
    ) -> Operand:
        """Returns an operand as its GEMMs take it; `values` are those it was rounded to before."""
        return Operand(matrix, self.casts.get(role), scale, self.draws, values)

    def count(self, role: str, matrix: Tensor) -> Counts:
        """Returns what the cast of an operand for the first of its GEMMs does, changing nothing.

        Args:
            role: An operand that is rounded. `input` is one that was just cast, the others are
                about to be.
            matrix: The operand.
        """
        if not matrix.numel():
            none = torch.zeros((), dtype=torch.int64, device=matrix.device)
            return Counts(torch.nan, none, none)
        keeper = self.keepers.get(role)
        scale = keeper.scale_of(matrix, past=role == "input") if keeper else None
        cast = self.casts[role]
        draw = self.draws.ahead(matrix.device) if cast.rounding == "stochastic" else None
        return cast.count(matrix, 1, scale, draw)


class Operand:
    """An operand of GEMMs: rounded once, or along what each GEMM reduces."""

    def __init__(
        self,
        matrix: Tensor,
        cast: Cast | None,
        scale: Tensor | None,
        draws: Draws,
        values: Tensor | None = None,
    ) -> None:
        self._matrix, self._cast, self._scale, self._draws = matrix, cast, scale, draws
        self._values = values

    @property
    def rounded(self) -> bool:
        """Whether it is rounded at all."""
        return self._cast is not None

    @property
    def drawn(self) -> Tensor | None:
        """Its values, where they can not be had again: drawn, and for both of its GEMMs."""
        stochastic = self._cast is not None and self._cast.rounding == "stochastic"
        return self._values if stochastic else None

    def along(self, dim: int, hadamard: int | None = None) -> Tensor:
        """Returns its values for a GEMM that reduces `dim`: FP32 where it is rounded."""
        if self._cast is None:
            return self._transformed(hadamard)
        if hadamard is not None or not self._cast.either_way:
            return self._round(self._transformed(hadamard), dim)
        if self._values is None:
            self._values = self._round(self._matrix, dim)
        return self._values

    def _transformed(self, hadamard: int | None) -> Tensor:
        return self._matrix if hadamard is None else transform_rows(self._matrix, hadamard)

    def _round(self, matrix: Tensor, dim: int) -> Tensor:
        assert self._cast is not None  # noqa: S101
        draw = self._draws.on(matrix.device) if self._cast.rounding == "stochastic" else None
        if not matrix.numel():
            return matrix.to(torch.float32)
        values = self._cast.round(matrix, dim, self._scale, draw)
        # An infinity is no large number: saturated, it would hide an overflow from a GradScaler.
        return values.masked_fill_(~matrix.isfinite(), torch.nan)


class RoundedGemms(torch.autograd.Function):
    """x W^T with Q(x) Q(W)^T forward, Q(g) Q(W) and Q(g)^T Q(x) backward.

    A product is taken in FP32 of the dequantised operands and cast to the dtype of x, as torchao's
    Float8Linear does where it emulates. Each derivative passes through the casts unchanged, also
    that of saturated elements.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, rounding: Rounding, call: Call) -> Tensor:
        """Returns [N, out] of x [N, in] and weight [out, in]."""
        with without_autocast(x):
            scales = [
                rounding.scale(role, matrix, call)
                for role, matrix in (("input", x), ("weight", weight))
            ]
            left, right = _forward_operands(rounding, x, weight, scales)
            output = _product(left, 1, right, 1, x.dtype)
            ctx.save_for_backward(x, weight, *scales, left.drawn, right.drawn)
            ctx.rounding, ctx.call = rounding, call
            return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Returns the gradients of x and weight."""
        (gradient,) = gradients
        x, weight, *kept = ctx.saved_tensors
        with without_autocast(gradient):
            left, right = _forward_operands(ctx.rounding, x, weight, kept[:2], kept[2:])
            scale = ctx.rounding.scale("grad_output", gradient, ctx.call)
            incoming = ctx.rounding.operand("grad_output", gradient, scale)
            grad_x = grad_weight = None
            if ctx.needs_input_grad[0]:
                grad_x = _product(incoming, 1, right, 0, x.dtype)
            if ctx.needs_input_grad[1]:
                hadamard = ctx.rounding.hadamard
                grad_weight = _product(incoming, 0, left, 0, x.dtype, hadamard).to(weight.dtype)
        return grad_x, grad_weight, None, None


def _forward_operands(
    rounding: Rounding,
    x: Tensor,
    weight: Tensor,
    scales: Sequence[Tensor | None],
    values: Sequence[Tensor | None] = (None, None),
) -> tuple[Operand, Operand]:
    if "weight" not in rounding.casts:
        weight = weight.to(x.dtype)
    return (
        rounding.operand("input", x, scales[0], values[0]),
        rounding.operand("weight", weight, scales[1], values[1]),
    )


def _product(
    a: Operand, a_dim: int, b: Operand, b_dim: int, dtype: torch.dtype, hadamard: int | None = None
) -> Tensor:
    """Returns the product that reduces dimension `a_dim` of a and `b_dim` of b."""
    left, right = a.along(a_dim, hadamard), b.along(b_dim, hadamard)
    left, right = (left if a_dim else left.t()), (right.t() if b_dim else right)
    if a.rounded or b.rounded:
        return torch.mm(left.to(torch.float32), right.to(torch.float32)).to(dtype)
    return torch.mm(left.to(dtype), right.to(dtype))
