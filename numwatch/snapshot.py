"""What was seen in one step: the packed rows of all slots and the step's scalars."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

import numpy as np
import numpy.typing as npt

from numwatch.block_rows import BlockRows
from numwatch.formats import UnknownFormatError, get_format
from numwatch.rank_rows import RankRow
from numwatch.stats import TensorStats, unpack_row

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

_PIECES = 16
"""In more of them rows are copied, for each is looked at by itself later on."""


@dataclass(frozen=True)
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

    @property
    def parts(self) -> "tuple[Rows, ...]":
        """The same rows as they lie in memory, each part in one piece."""
        return (self,)

    def __len__(self) -> int:
        return len(self.slots)

    def __iter__(self) -> Iterator[Row]:
        for i, slot in enumerate(self.slots):
            stats = unpack_row(self.counts[i], self.reals[i])
            yield Row(slot, stats, float(self.loss_scales[i]), self.casts[i])


class JoinedRows(Rows):
    """The rows of several parts, whose arrays are brought together only when asked for."""

    def __init__(self, parts: Sequence[Rows]) -> None:
        """Joins at least one part; all were measured alike."""
        loss_scales = np.concatenate([part.loss_scales for part in parts])
        given = {
            "_parts": tuple(inner for part in parts for inner in part.parts),
            "slots": tuple(chain.from_iterable(part.slots for part in parts)),
            "loss_scales": loss_scales,
            "casts": tuple(chain.from_iterable(part.casts for part in parts)),
            "full": parts[0].full,
        }
        self.__dict__.update(given)

    @property
    def parts(self) -> tuple[Rows, ...]:
        """The parts."""
        parts: tuple[Rows, ...] = self.__dict__["_parts"]
        return parts

    @cached_property
    def counts(self) -> npt.NDArray[np.int64]:
        """A copy of all parts' counts."""
        return np.concatenate([part.counts for part in self.parts])

    @cached_property
    def reals(self) -> npt.NDArray[np.float64]:
        """A copy of all parts' reals."""
        return np.concatenate([part.reals for part in self.parts])

    def __iter__(self) -> Iterator[Row]:
        return chain.from_iterable(self.parts)


def join_rows(parts: Sequence[Rows]) -> Rows:
    """Returns the rows of all parts, which were measured alike; at least one."""
    return parts[0] if len(parts) == 1 else JoinedRows(parts)


def pick_rows(rows: Rows, seen: npt.NDArray[np.int64]) -> Rows:
    """Returns some of the rows, whose places ascend; views where few pieces hold them all."""
    ends = np.flatnonzero(np.diff(seen) > 1) + 1
    if not len(seen) or len(ends) >= _PIECES:
        places = seen.tolist()
        slots, casts = (tuple(all_of[i] for i in places) for all_of in (rows.slots, rows.casts))
        numbers = (rows.counts[seen], rows.reals[seen], rows.loss_scales[seen])
        return Rows(slots, *numbers, casts, rows.full)
    pieces = [slice(int(own[0]), int(own[-1]) + 1) for own in np.split(seen, ends)]
    return join_rows(
        [
            Rows(
                rows.slots[at],
                rows.counts[at],
                rows.reals[at],
                rows.loss_scales[at],
                rows.casts[at],
                rows.full,
            )
            for at in pieces
        ]
    )


@dataclass(frozen=True)
class Update:
    """What a step did to one parameter, judged for one format the weights could be stored in.

    Shares are over the sampled elements whose intended update is finite and not zero; None where
    there is none. With w the weight in the storage format, D the intended update and the storage's
    own rounding to nearest even, D' = round(w + D) - w is what arrives (Collage, 2024).

    Attributes:
        slot: `<parameter path>:update`.
        storage: Canonical name of the format. E4M3 and E5M2 are taken at the scale that puts the
            sample's amax at their largest value.
        numel: Elements of the parameter.
        sampled: How many of them were looked at.
        nonzero: How many of those have an intended update that is finite and not zero.
        ratio: L2 norm of the update really applied over the weights', in the sample; None where
            the weights are all zero.
        swallowed: Share of updates with D' = 0.
        stochastic_kept: Share that is swallowed and would move the weight under stochastic
            rounding, in expectation.
        deferred: Where FP32 weights hold the update: share after which their copy in the storage
            format has not moved. None where the update is lost.
        edq: Effective descent quality <D', D> / |D|, in the weights' unit.
        edq_normalised: <D', D> / |D|^2; 1 is lossless.
        lost: Whether the weights are stored in this format, so that what is swallowed is gone.
        intended: Where D comes from: "applied" (FP32 weights took it whole), "exact" (the same
            element-wise optimizer on FP32 copies), "estimate" (one that is not element-wise).
        intended_sq: |D|^2, by which samples of shards are put together; not recorded.
        applied_sq: The same of the update really applied, likewise.
        weight_sq: |w|^2, likewise.
    """

    slot: str
    storage: str
    numel: int
    sampled: int
    nonzero: int
    ratio: float | None
    swallowed: float | None
    stochastic_kept: float | None
    deferred: float | None
    edq: float | None
    edq_normalised: float | None
    lost: bool
    intended: str
    intended_sq: float = 0.0
    applied_sq: float = 0.0
    weight_sq: float = 0.0


@dataclass(frozen=True)
class OptimizerState:
    """One tensor of an optimizer's state beside what its row in `Rows` tells; None: not defined.

    Attributes:
        slot: `<parameter path>:<key of the state>`.
        dtype: Its dtype's name without `torch.`.
        sampled: How many elements were looked at.
        eps: The eps added to the square root of a second moment.
        eps_stored: The same, rounded to `dtype`.
        decay: The factor by which the state decays at each step.
        decay_stored: The same, rounded to `dtype`; 1.0 means that the state never decays.
        below_eps: Share of the elements that ever had a gradient with sqrt(v) < eps, v the second
            moment, bias-corrected where the optimizer does so.
        vanished: Share of the elements with a non-zero gradient whose v is 0: g^2 was flushed.
        rms: RMS_t = sqrt(mean(g^2 / max(v, eps^2))) (Wortsman et al. 2023, section 3.4).
    """

    slot: str
    dtype: str
    sampled: int
    eps: float | None = None
    eps_stored: float | None = None
    decay: float | None = None
    decay_stored: float | None = None
    below_eps: float | None = None
    vanished: float | None = None
    rms: float | None = None


@dataclass(frozen=True)
class Shadow:
    """A gradient beside the one the same batch has in FP32, both unscaled.

    Attributes:
        slot: The slot, of a gradient role.
        sampled: Elements compared.
        zeros: Elements that are zero in FP32.
        run_zeros: Elements that are zero in the run.
        flushed: Elements that are zero in the run and not in FP32.
        relative_error: |g - g32| / |g32| over the sample, L2; None where g32 is all zero.
        cosine: Of the angle between g and g32; None where either is all zero.
    """

    slot: str
    sampled: int
    zeros: int
    run_zeros: int
    flushed: int
    relative_error: float | None
    cosine: float | None

    @property
    def flushed_share(self) -> float | None:
        """Share of the elements that FP32 has that are gone; None where FP32 has none."""
        nonzero = self.sampled - self.zeros
        return self.flushed / nonzero if nonzero else None


@dataclass(frozen=True)
class Operation:
    """An operation of one step, or several that are alike, as the dispatcher got them.

    Attributes:
        order: Position of the first of them in the step.
        module: Path of the innermost module at work; in backward of the one whose gradient it
            computes. "" for the root or none.
        operation: Name of the overload, "aten.addmm.default".
        phase: "forward" or "backward".
        dtypes: Dtypes of the tensors it took, without `torch.`.
        shapes: Their shapes.
        output: Dtype of the first tensor it returned, or None.
        count: How many there were.
        gemm: Of matrix products "forward", "dgrad" (the gradient of the first operand), "wgrad"
            (of the second); None of others, and where it is not known whose gradient it is.
        m: Rows of the product [m, k] · [k, n]; None of other operations.
        n: Its columns.
        k: Its inner dimension.
        contiguous: Whether BLAS takes both operands without a copy.
        amax: Largest magnitude of the finite and infinite results (NaN where one is NaN), measured
            of some operations that ran in FP16 or BF16; else None.
    """

    order: int
    module: str
    operation: str
    phase: str
    dtypes: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    output: str | None
    count: int
    gemm: str | None = None
    m: int | None = None
    n: int | None = None
    k: int | None = None
    contiguous: bool | None = None
    amax: float | None = None


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
