"""`EmulatedLinear`: a Linear whose GEMMs take rounded operands."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from numwatch.emulate.autograd import as_autocast
from numwatch.emulate.gemms import RoundedGemms, Rounding

CastOf = Callable[[Tensor], tuple[str, Tensor | float, Tensor, Tensor]]


class EmulatedLinear(nn.Linear):
    """What `emulate` makes of an `nn.Linear`, in place: the parameters, hooks and names stay.

    Attributes:
        rounding: How its operands are rounded.
    """

    rounding: Rounding

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # as nn.Linear calls it
        """Returns x W^T + b in the dtype that autocast, or else the input, asks for.

        As in torchao's Float8Linear the bias is added after the product was rounded to it.
        """
        x = as_autocast(input)
        rows = x.reshape(-1, x.shape[-1])
        call = self.rounding.call(training=self.training)
        output: Tensor = RoundedGemms.apply(rows, self.weight, self.rounding, call)  # type: ignore[no-untyped-call]
        output = output.view(*x.shape[:-1], self.out_features)
        return output if self.bias is None else output + self.bias.to(output.dtype)

    def extra_repr(self) -> str:
        """Returns the sizes, and the formats by role."""
        casts = ", ".join(f"{role}={cast.name}" for role, cast in self.rounding.casts.items())
        return f"{super().extra_repr()}, {casts}"

    def operand_casts(self) -> dict[str, CastOf]:
        """Returns what repeats the operands' casts, by role; see `taps.float8.float8_casts`."""
        return {role: _RepeatedCast(self.rounding, role) for role in self.rounding.casts}


@dataclass(frozen=True)
class _RepeatedCast:
    rounding: Rounding
    role: str

    def __call__(self, operand: Tensor) -> tuple[str, Tensor | float, Tensor, Tensor]:
        matrix = operand.detach()
        if self.role == "input":
            matrix = as_autocast(matrix)
        counts = self.rounding.count(self.role, matrix.reshape(-1, matrix.shape[-1]))
        name = self.rounding.casts[self.role].name
        return name, counts.scale, counts.flushed, counts.saturated
