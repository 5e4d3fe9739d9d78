"""`TensorStats`: what one pass over a tensor saw, how it merges, and what derives from it."""

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from numwatch.errors import NumwatchError
from numwatch.formats import Format
from numwatch.stats import derived, predict
from numwatch.stats.blocks import BlockCounts, add_trimmed
from numwatch.stats.bounded import Bounded

if TYPE_CHECKING:
    import torch

AnyFormat: TypeAlias = "str | torch.dtype | Format"


@dataclass(frozen=True)
class TensorStats:
    """Counts, extremes and sums of one tensor, or of several merged.

    numel = zeros + nans + posinfs + neginfs + sum(binades), except where only amax and the
    non-finite elements were measured: then all but numel, nans, posinfs, neginfs and amax are as
    in an empty tensor.

    Attributes:
        numel: Elements, of whatever value.
        zeros: Elements that are 0 or -0.
        nans: NaN elements.
        posinfs: Elements that are +inf.
        neginfs: Elements that are -inf.
        pow2s: Finite non-zero elements whose magnitude is an exact power of two. Cuts between
            formats lie at powers of two: where this is 0 no element can tie with a cut.
        amax: Largest magnitude of the finite elements, 0.0 where all are zero or there are none.
        amin: Smallest magnitude of the finite non-zero elements, inf where there are none.
        sum: Sum of the finite elements.
        sumsq: Sum of their squares; inf for FP64 tensors beyond 1e154.
        binade_first: Exponent e of the first entry of `binades`; 0 where there is none.
        binades: Finite non-zero elements with 2^e <= `|x|` < 2^(e+1), by rising e, trimmed at both
            ends. Binade -127 holds all below 2^-126, binade 127 all from 2^127 up.
        dtype: Name of the tensor's dtype without `torch.`, "mixed" after a merge of different
            ones, None where not known.
        blocks: Block by block counts where they were asked for.
    """

    numel: int
    zeros: int
    nans: int
    posinfs: int
    neginfs: int
    pow2s: int
    amax: float
    amin: float
    sum: float
    sumsq: float
    binade_first: int
    binades: tuple[int, ...]
    dtype: str | None = None
    blocks: BlockCounts | None = None

    @classmethod
    def empty(cls) -> "TensorStats":
        """Returns the statistics of no element at all: the identity of `merge`."""
        return cls(0, 0, 0, 0, 0, 0, 0.0, math.inf, 0.0, 0.0, 0, ())

    @property
    def nonzeros(self) -> int:
        """Finite non-zero elements."""
        return sum(self.binades)

    @property
    def finites(self) -> int:
        """Finite elements, zeros included."""
        return self.zeros + self.nonzeros

    @property
    def nonfinites(self) -> int:
        """NaN and infinite elements."""
        return self.nans + self.posinfs + self.neginfs

    @property
    def amax_only(self) -> bool:
        """Whether there are elements of which nothing but their amax was measured."""
        return not (self.zeros or self.binades) and self.nonfinites < self.numel

    @property
    def zero_share(self) -> float:
        """Share of zeros among all elements; 0.0 of an empty tensor."""
        return self.zeros / self.numel if self.numel else 0.0

    @property
    def mean(self) -> float:
        """Mean of the finite elements; NaN where there are none."""
        return self.sum / self.finites if self.finites else math.nan

    @property
    def var(self) -> float:
        """Population variance of the finite elements; NaN where there are none.

        inf where `sumsq` is, as of FP64 tensors beyond 1e154.
        From the two sums, so about (mean^2 / var) x 1e-16 of it is rounding error.
        """
        if not self.finites:
            return math.nan
        if math.isinf(self.sumsq):
            return math.inf
        return max(self.sumsq / self.finites - self.mean * self.mean, 0.0)

    @property
    def rms(self) -> float:
        """Root mean square of the finite elements; NaN where there are none."""
        return math.sqrt(self.sumsq / self.finites) if self.finites else math.nan

    @property
    def norm(self) -> float:
        """L2 norm of the finite elements."""
        return math.sqrt(self.sumsq)

    @property
    def spread(self) -> float:
        """Binades between the 0.1 % and 99.9 % points of the finite non-zero magnitudes."""
        return derived.spread(self)

    def flushed(self, fmt: AnyFormat, scale: float = 1.0) -> Bounded:
        """Share of the finite non-zero elements that `fmt` turns into zero; see `derived`."""
        return derived.flushed(self, fmt, scale)

    def underflow_pct(self, fmt: AnyFormat, scale: float = 1.0) -> Bounded:
        """Percentage of all elements that `fmt` turns into zero: Transformer Engine's figure."""
        return derived.underflow_pct(self, fmt, scale)

    def subnormal(self, fmt: AnyFormat, scale: float = 1.0) -> Bounded:
        """Share of the finite non-zero elements in the subnormals of `fmt`; see `derived`."""
        return derived.subnormal(self, fmt, scale)

    def saturated(self, fmt: AnyFormat, scale: float = 1.0) -> Bounded:
        """Share of the finite non-zero elements above the largest value of `fmt`; see `derived`."""
        return derived.saturated(self, fmt, scale)

    def headroom(self, fmt: AnyFormat, scale: float = 1.0) -> float:
        """Bits between the scaled amax and the largest value of `fmt`; inf where amax is 0."""
        return derived.headroom(self, fmt, scale)

    def median_relative_error(self, fmt: AnyFormat, scale: float = 1.0) -> float:
        """Predicted median of `|rounded - x| / |x|`; see `numwatch.stats.predict`."""
        return predict.median_relative_error(self, fmt, scale)

    def sqnr(self, fmt: AnyFormat, scale: float = 1.0) -> float:
        """Predicted signal to quantisation noise ratio in dB; see `numwatch.stats.predict`."""
        return predict.sqnr(self, fmt, scale)

    def merge(self, other: "TensorStats") -> "TensorStats":
        """Returns the statistics of both tensors' elements together.

        Associative and commutative, in `sum` and `sumsq` up to FP64 rounding. Adding the two sums
        is the parallel variance formula (Chan, Golub, LeVeque 1979) multiplied out. Amax-only
        statistics merge with their like.

        Raises:
            NumwatchError: If only one of the two is amax-only: shares of the whole would be wrong.
        """
        for one, another in ((self, other), (other, self)):
            if one.amax_only and (another.zeros or another.binades):
                raise NumwatchError(
                    "amax-only statistics merge with amax-only ones; got one of them and one "
                    "with counts: merge the two kinds apart"
                )
        first, binades = add_trimmed(
            self.binade_first, self.binades, other.binade_first, other.binades
        )
        return TensorStats(
            numel=self.numel + other.numel,
            zeros=self.zeros + other.zeros,
            nans=self.nans + other.nans,
            posinfs=self.posinfs + other.posinfs,
            neginfs=self.neginfs + other.neginfs,
            pow2s=self.pow2s + other.pow2s,
            amax=max(self.amax, other.amax),
            amin=min(self.amin, other.amin),
            sum=self.sum + other.sum,
            sumsq=self.sumsq + other.sumsq,
            binade_first=first,
            binades=binades,
            dtype=_joined(self.dtype, other.dtype),
            blocks=_merged(self.blocks, other.blocks),
        )

    __add__ = merge

    def as_dict(self) -> dict[str, Any]:
        """Returns the fields as plain Python values, ready for JSON but for an infinite amin."""
        return asdict(self)


def _joined(a: str | None, b: str | None) -> str | None:
    if a is None or b is None or a == b:
        return a or b
    return "mixed"


def _merged(a: BlockCounts | None, b: BlockCounts | None) -> BlockCounts | None:
    if a is None or b is None:
        return a or b
    return a.merge(b)
