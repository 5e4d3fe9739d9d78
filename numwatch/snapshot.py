"""What was seen in one step: the packed rows of all slots and the step's scalars."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from numwatch.formats import UnknownFormatError, get_format
from numwatch.stats import TensorStats, unpack_row

FORWARD_ROLES = ("input", "weight", "output")
GRADIENT_ROLES = ("grad_output", "grad_input", "grad_weight")
GEMM_RESULTS = ("grad_input", "grad_weight")
ROLES = FORWARD_ROLES + GRADIENT_ROLES


@dataclass(frozen=True)
class SlotInfo:
    """One place numbers are caught at: a module path and a role.

    Attributes:
        slot: The name, `<module path>:<role>`.
        module: Path of the module, as `named_modules` of the unwrapped model gives it.
        role: One of `ROLES`.
        module_class: Class name of the module.
        shape: Shape of the last tensor seen, or None before one was seen.
        dtype: Its dtype's name without `torch.`, or None.
        format: Canonical name of the format the module computes in (autocast's dtype inside
            autocast, else the tensor's), or None before one was seen. The flushed, subnormal
            and saturated shares a report shows for this slot are about this format.
        order: Position in the order of first calls within a step, or None.
    """

    slot: str
    module: str
    role: str
    module_class: str
    shape: tuple[int, ...] | None = None
    dtype: str | None = None
    format: str | None = None
    order: int | None = None

    @property
    def rounded(self) -> bool:
        """Whether the tensor was in `format` before it was seen, its tail lost already.

        So is one of that dtype, and so are the gradients a GEMM computed in that format, which
        autograd hands on in the wider dtype of the input or the weight.
        """
        if self.dtype is None or self.format is None:
            return False
        return self.format == format_of_dtype(self.dtype) or self.role in GEMM_RESULTS

    @property
    def scaled(self) -> bool:
        """Whether this slot's tensors are multiplied by the loss scale."""
        return self.role in GRADIENT_ROLES


@dataclass(frozen=True)
class Cast:
    """What a library's own cast to `format` did to a tensor.

    Attributes:
        scale: The per-tensor scale in force; NaN where there is one per row or block.
        flushed: Non-zero elements that became zero.
        saturated: Elements whose scaled magnitude was above the format's largest value.
    """

    format: str
    scale: float
    flushed: int
    saturated: int


@dataclass(frozen=True)
class Row:
    """One slot in one step."""

    slot: str
    stats: TensorStats
    loss_scale: float
    cast: Cast | None


@dataclass(frozen=True, eq=False)
class Rows:
    """All rows of a step, packed as the kernels left them.

    Attributes:
        slots: Names of the slots seen, n of them.
        counts: int64 [n, stats.COUNTS], see `stats.layout`.
        reals: float64 [n, stats.REALS].
        loss_scales: float64 [n]; the loss scale a row's numbers are multiplied by, 1 for forward
            roles.
        casts: A `Cast` for each row whose operand a library casts itself, else None.
        full: False where only amax, numel and the non-finite elements were measured; see
            `stats.layout.AMAX_ONLY`.
    """

    slots: tuple[str, ...]
    counts: npt.NDArray[np.int64]
    reals: npt.NDArray[np.float64]
    loss_scales: npt.NDArray[np.float64]
    casts: tuple[Cast | None, ...]
    full: bool

    def __len__(self) -> int:
        return len(self.slots)

    def __iter__(self) -> Iterator[Row]:
        for i, slot in enumerate(self.slots):
            stats = unpack_row(self.counts[i], self.reals[i])
            yield Row(slot, stats, float(self.loss_scales[i]), self.casts[i])


@dataclass(frozen=True)
class StepScalars:
    """The scalars of one optimizer step; None where not measured, see DESIGN's `steps` columns.

    Attributes:
        loss: Unscaled training loss, mean over the accumulation window.
        grad_norm: Global L2 norm of the unscaled gradients.
        loss_scale_before: Loss scale in force during the step; 1.0 without a scaler.
        loss_scale_after: Loss scale after the scaler's update.
        found_inf: Whether the scaler found a non-finite gradient.
        skipped: Whether the optimizer left the weights alone.
        step_seconds: Wall time of the step, numwatch's own included.
        numwatch_seconds: Host time spent inside numwatch.
    """

    epoch: int = 0
    batch: int = 0
    loss: float | None = None
    lr: float | None = None
    grad_norm: float | None = None
    loss_scale_before: float = 1.0
    loss_scale_after: float = 1.0
    found_inf: bool = False
    skipped: bool = False
    step_seconds: float = 0.0
    numwatch_seconds: float = 0.0


@dataclass(frozen=True)
class Snapshot:
    """One optimizer step as numwatch saw it; `rows` is None on steps whose tensors were not."""

    step: int
    scalars: StepScalars
    rows: Rows | None = None


def format_of_dtype(dtype: str) -> str | None:
    """Returns the canonical name of a dtype's format; None for FP64, no target of ours."""
    try:
        return get_format(dtype).name
    except UnknownFormatError:
        return None
