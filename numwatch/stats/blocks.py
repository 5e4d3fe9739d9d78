"""What a tensor looks like block by block: enough to answer for MX and NVFP4 formats."""

from dataclasses import dataclass
from itertools import zip_longest


@dataclass(frozen=True)
class BlockHistogram:
    """How far elements lie below their block's amax, for one block size along the last dimension.

    Attributes:
        size: Elements in a block; the last block of a line may hold fewer.
        blocks: Blocks with a finite non-zero element.
        zero_blocks: Blocks without one.
        below: Entry d counts the finite non-zero elements whose binade is d below that of their
            block's amax; trimmed at its end.
        amax_first: Binade of the first entry of `amaxes`.
        amaxes: Blocks per binade of their amax, trimmed at both ends.
    """

    size: int
    blocks: int
    zero_blocks: int
    below: tuple[int, ...]
    amax_first: int
    amaxes: tuple[int, ...]

    def merge(self, other: "BlockHistogram") -> "BlockHistogram":
        """Returns the histogram of both tensors' blocks; their sizes must be the same."""
        if self.size != other.size:
            raise ValueError(f"blocks of {self.size} and {other.size} don't merge")
        first, amaxes = add_trimmed(self.amax_first, self.amaxes, other.amax_first, other.amaxes)
        return BlockHistogram(
            size=self.size,
            blocks=self.blocks + other.blocks,
            zero_blocks=self.zero_blocks + other.zero_blocks,
            below=tuple(a + b for a, b in zip_longest(self.below, other.below, fillvalue=0)),
            amax_first=first,
            amaxes=amaxes,
        )


@dataclass(frozen=True)
class BlockCounts:
    """Block histograms, one per block size, by rising size."""

    histograms: tuple[BlockHistogram, ...]

    def of(self, size: int) -> BlockHistogram:
        """Returns the histogram of one block size.

        Raises:
            KeyError: If that size was not measured.
        """
        return {histogram.size: histogram for histogram in self.histograms}[size]

    def merge(self, other: "BlockCounts") -> "BlockCounts":
        """Returns the histograms of both; a size only one of them has is kept as it is."""
        merged = {histogram.size: histogram for histogram in self.histograms}
        for theirs in other.histograms:
            ours = merged.get(theirs.size)
            merged[theirs.size] = theirs if ours is None else ours.merge(theirs)
        return BlockCounts(tuple(merged[size] for size in sorted(merged)))


def add_trimmed(
    first: int, counts: tuple[int, ...], other_first: int, other_counts: tuple[int, ...]
) -> tuple[int, tuple[int, ...]]:
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
