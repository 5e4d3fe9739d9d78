"""What a tensor looks like block by block: enough to answer for MX and NVFP4 formats."""

from dataclasses import dataclass
from itertools import zip_longest

Counts = tuple[int, ...]


@dataclass(frozen=True)
class BlockHistogram:
    """How far elements lie below their block's amax, for one block size and direction.

    Zeros and non-finite elements belong to their block and are not counted. With E the binade of a
    block's amax, 2^E <= amax < 2^(E+1), an element has the depth d where
    2^(E-d) < |x| <= 2^(E-d+1): a power of two stands with the elements below it, as rounding to
    nearest even sends a tie at half the smallest value to zero. Binades are those of TensorStats:
    -127 holds all amaxes below 2^-126, and as elements those up to 2^-126.

    Attributes:
        size: Elements in a block; the last block of a line may hold fewer.
        direction: `last`, along the last dimension, or `across`: along the rows that all other
            dimensions make together, a block being consecutive rows of one column.
        blocks: Blocks with a finite non-zero element.
        zero_blocks: Blocks without one.
        below: Entry [k][d] counts the elements of depth d in blocks whose amax mantissa is of class
            k: how many of 1, 1.5, 1.75 and 1.875, the largest mantissas of the element formats, it
            exceeds. Depth 41 holds all deeper ones. Each k is trimmed at its end.
        tops: Entry [k][j - 1] counts those of depth 0 whose own mantissa is of class j, 1 to 4.
        amax_first: Binade of the first entry of `amaxes`; 0 where there is none.
        amaxes: Blocks per binade of their amax, trimmed at both ends.
        peaks: Entry [k] counts the blocks whose amax mantissa is of class k.
        elements: Entry [k][i] counts the elements in those of them whose amax stands in the binade
            of amaxes[i].
        near: Elements with |x| > amax / 1.0625: above E2M1's largest value under some scale that
            is rounded to E4M3.
        edge: Elements with |x| <= amax / 22.67: flushed by E2M1 under some such scale.
        deep: Elements with |x| <= amax / 25.5: flushed by E2M1 under any.
    """

    size: int
    direction: str
    blocks: int
    zero_blocks: int
    below: tuple[Counts, ...]
    tops: tuple[Counts, ...]
    amax_first: int
    amaxes: Counts
    peaks: Counts
    elements: tuple[Counts, ...]
    near: int
    edge: int
    deep: int

    @property
    def nonzeros(self) -> int:
        """Elements counted: the finite non-zero ones."""
        return sum(map(sum, self.elements))

    @property
    def elements_by_binade(self) -> Counts:
        """Elements by the binade of their block's amax, as `amaxes` counts blocks."""
        return tuple(map(sum, zip(*self.elements, strict=True)))

    @property
    def depths(self) -> Counts:
        """Elements by depth, whatever the mantissa of their block's amax."""
        return tuple(map(sum, zip_longest(*self.below, fillvalue=0)))

    def merge(self, other: "BlockHistogram") -> "BlockHistogram":
        """Returns the histogram of both tensors' blocks; size and direction must be the same."""
        if (self.size, self.direction) != (other.size, other.direction):
            raise ValueError(
                f"blocks of {self.size} {self.direction} and {other.size} {other.direction} "
                "don't merge"
            )
        first, amaxes = add_trimmed(self.amax_first, self.amaxes, other.amax_first, other.amaxes)
        elements = tuple(
            add_trimmed(self.amax_first, own, other.amax_first, theirs)[1]
            for own, theirs in zip(self.elements, other.elements, strict=True)
        )
        return BlockHistogram(
            size=self.size,
            direction=self.direction,
            blocks=self.blocks + other.blocks,
            zero_blocks=self.zero_blocks + other.zero_blocks,
            below=_add_each(self.below, other.below),
            tops=_add_each(self.tops, other.tops),
            amax_first=first,
            amaxes=amaxes,
            peaks=tuple(a + b for a, b in zip(self.peaks, other.peaks, strict=True)),
            elements=elements,
            near=self.near + other.near,
            edge=self.edge + other.edge,
            deep=self.deep + other.deep,
        )


@dataclass(frozen=True)
class BlockCounts:
    """Block histograms, one per block size and direction."""

    histograms: tuple[BlockHistogram, ...]

    def of(self, size: int, direction: str = "last") -> BlockHistogram:
        """Returns the histogram of one block size and direction.

        Raises:
            KeyError: If that was not measured.
        """
        return self._by_kind()[size, direction]

    def merge(self, other: "BlockCounts") -> "BlockCounts":
        """Returns the histograms of both; what only one of them has is kept as it is."""
        merged = self._by_kind()
        for theirs in other.histograms:
            kind = (theirs.size, theirs.direction)
            merged[kind] = merged[kind].merge(theirs) if kind in merged else theirs
        return BlockCounts(tuple(merged[kind] for kind in sorted(merged)))

    def _by_kind(self) -> dict[tuple[int, str], BlockHistogram]:
        return {(own.size, own.direction): own for own in self.histograms}


def add_trimmed(
    first: int, counts: Counts, other_first: int, other_counts: Counts
) -> tuple[int, Counts]:
    """Returns the sum of two histograms trimmed at both ends, each with its first entry's index."""
    if not counts:
        return other_first, other_counts
    if not other_counts:
        return first, counts
    start = min(first, other_first)
    end = max(first + len(counts), other_first + len(other_counts))
    total = [0] * (end - start)
    for offset, part in ((first - start, counts), (other_first - start, other_counts)):
        for i, count in enumerate(part, offset):
            total[i] += count
    return start, tuple(total)


def _add_each(ours: tuple[Counts, ...], theirs: tuple[Counts, ...]) -> tuple[Counts, ...]:
    return tuple(
        tuple(a + b for a, b in zip_longest(own, other, fillvalue=0))
        for own, other in zip(ours, theirs, strict=True)
    )
