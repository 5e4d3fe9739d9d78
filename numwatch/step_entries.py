"""What a full step tells beside its rows: of updates, optimizer state, shadows and operations."""

from dataclasses import dataclass


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
