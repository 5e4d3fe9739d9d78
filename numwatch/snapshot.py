"""What was seen in one step: the packed rows of all slots and the step's scalars."""

from collections.abc import Sequence
from dataclasses import dataclass

from numwatch.block_rows import BlockRows
from numwatch.formats import UnknownFormatError, get_format
from numwatch.rank_rows import RankRow
from numwatch.step_entries import Operation, OptimizerState, Shadow, Update
from numwatch.tensor_rows import Rows

FORWARD_ROLES = ("input", "weight", "output")
GRADIENT_ROLES = ("grad_output", "grad_input", "grad_weight")
GEMM_RESULTS = ("grad_input", "grad_weight")
REPLICATED, SHARDED = "replicated", "sharded"
"""Placements of parameters over the ranks of a run."""
ROLES = FORWARD_ROLES + GRADIENT_ROLES
REDUCED_ROLE = "grad_reduced"
"""Role of a parameter's gradient after several ranks have reduced theirs to one."""
UPDATE_ROLE = "update"
"""Role of a parameter's updates; its optimizer's state has the state's keys for roles (`exp_avg`).

In both the path before the colon is the parameter's own: `blocks.0.fc.weight:exp_avg`.
"""


@dataclass(frozen=True, slots=True)
class SlotInfo:
    """One place numbers are caught at: a module path and a role.

    Attributes:
        slot: The name, `<module path>:<role>`.
        module: Path of the module, as `named_modules` of the unwrapped model gives it.
        role: One of `ROLES`, `UPDATE_ROLE`, `REDUCED_ROLE`, or a key of the optimizer's state; of
            all but the first `module` is the path of the parameter.
        module_class: Class name of the module; of a parameter's slot, of its optimizer.
        shape: Shape of the last tensor seen, or None before one was seen.
        dtype: Its dtype's name without `torch.`, or None.
        format: Canonical name of the format the module computes in (autocast's dtype inside
            autocast, else the tensor's), or None before one was seen. The flushed, subnormal
            and saturated shares a report shows for this slot are about this format.
        order: Position in the order of first calls within a step, or None.
        placement: Of a parameter's slot in a run of several ranks: `REPLICATED` where each holds
            the same whole tensor, which counts once, `SHARDED` where each holds a part of it; None
            elsewhere.
        shard: Which part this rank holds of a sharded one.
    """

    slot: str
    module: str
    role: str
    module_class: str
    shape: tuple[int, ...] | None = None
    dtype: str | None = None
    format: str | None = None
    order: int | None = None
    placement: str | None = None
    shard: str | None = None

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
class StepScalars:
    """The scalars of one optimizer step; None where not measured, see DESIGN's `steps` columns.

    Attributes:
        loss: Unscaled training loss, mean over the accumulation window.
        grad_norm: Global L2 norm of the unscaled gradients.
        loss_scale_before: Loss scale in force during the step; 1.0 without a scaler.
        loss_scale_after: Loss scale after the scaler's update.
        found_inf: Whether the scaler found a non-finite gradient.
        skipped: Whether the optimizer, or one of several, left the weights alone.
        skipped_optimizers: Which of them, by position.
        loss_scales: The loss scale at each turn of an optimizer, where a step has several.
        nonfinite_parameters: Parameters whose gradient held NaN or inf when their optimizer was
            skipped; None where nothing was skipped or the gradients were gone.
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
    skipped_optimizers: tuple[int, ...] = ()
    loss_scales: tuple[float, ...] = ()
    nonfinite_parameters: tuple[str, ...] | None = None
    step_seconds: float = 0.0
    numwatch_seconds: float = 0.0


@dataclass(frozen=True)
class Snapshot:
    """One optimizer step as numwatch saw it; `rows` is None on steps whose tensors were not.

    `updates` and `states` come with full rows, `shadows` with those that had a shadow step,
    `operations` with the first full rows of an attempt, `blocks` with some. Where several ranks
    train, `ranks` comes with rows, and `differing` names the scalars that should be the same on
    all of them and are not.
    """

    step: int
    scalars: StepScalars
    rows: Rows | None = None
    updates: Sequence[Update] = ()
    states: Sequence[OptimizerState] = ()
    shadows: tuple[Shadow, ...] = ()
    operations: tuple[Operation, ...] = ()
    blocks: BlockRows | None = None
    ranks: tuple[RankRow, ...] = ()
    differing: tuple[str, ...] = ()


def path_of(slot: str) -> str:
    """Returns the path in a slot's name: of the module, or of the parameter."""
    return slot.rpartition(":")[0]


def role_of(slot: str) -> str:
    """Returns the role in a slot's name."""
    return slot.rpartition(":")[2]


def format_of_dtype(dtype: str) -> str | None:
    """Returns the canonical name of a dtype's format; None for FP64, no target of ours."""
    try:
        return get_format(dtype).name
    except UnknownFormatError:
        return None
