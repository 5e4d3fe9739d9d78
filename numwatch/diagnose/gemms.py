"""The GEMMs of the audited step: which formats' multiples they meet, and what would mend them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from numwatch.diagnose.thresholds import MULTIPLES

Row = Mapping[str, Any]

_CONVOLUTIONS = ("aten.convolution.", "aten._convolution.")


@dataclass(frozen=True)
class Gemm:
    """A matrix product [m, k] · [k, n] with its gradients, whose sizes are the same three.

    Attributes:
        module: Path of the module that computes it, "" for the root or none.
        kinds: Which of "forward", "dgrad", "wgrad" ran.
        dtype: Dtype of its operands.
        m: Rows: of a Linear the tokens; None of convolutions, whose channels alone are judged.
        n: Columns: output features, or channels.
        k: Inner dimension: input features, or channels.
        batch: How many such products one operation computes.
        count: How many operations there were, gradients included.
        contiguous: Whether BLAS takes the operands of all of them without a copy.
    """

    module: str
    kinds: tuple[str, ...]
    dtype: str
    m: int | None
    n: int
    k: int
    batch: int
    count: int
    contiguous: bool

    @property
    def multiplications(self) -> int:
        """How many its operations take; 0 of convolutions, where it is not known."""
        return (self.m or 0) * self.n * self.k * self.batch * self.count

    @property
    def fits(self) -> tuple[str, ...]:
        """The formats of `MULTIPLES` whose multiples all its sizes are."""
        return tuple(name for name in MULTIPLES if not self.padding(name))

    def padding(self, target: str) -> dict[str, tuple[int, int]]:
        """Returns of each size that is no multiple for a format what it is and should be.

        Args:
            target: A name in `MULTIPLES`.
        """
        sizes = {"m": self.m, "n": self.n, "k": self.k}
        multiple = MULTIPLES[target]
        return {
            name: (size, padded(size, multiple))
            for name, size in sizes.items()
            if size is not None and size % multiple
        }


def gemm_table(operations: pa.Table | Iterable[Row]) -> list[Gemm]:
    """Returns each GEMM once, in the order of the step.

    A forward product stands for its dgrad and wgrad too. Products in backward that belong to no
    forward one that was seen (an `autograd.Function`'s own) come by themselves.

    Args:
        operations: Rows of the `operations` table, of one step.
    """
    rows = operations.to_pylist() if isinstance(operations, pa.Table) else list(operations)
    rows = sorted(rows, key=lambda row: row["order"])
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        if None not in (row["m"], row["n"], row["k"]):
            key = (row["module"], *sorted((row["m"], row["n"], row["k"])), _batch(row))
            groups.setdefault(key, []).append(row)
    gemms = [(group[0]["order"], _joined(group)) for group in groups.values()]
    gemms += [
        (row["order"], gemm)
        for row in rows
        if row["operation"].startswith(_CONVOLUTIONS) and (gemm := _convolution(row)) is not None
    ]
    return [gemm for _, gemm in sorted(gemms, key=lambda found: found[0])]


def padded(size: int, multiple: int) -> int:
    """Returns the least multiple that is not below a size."""
    return -(-size // multiple) * multiple


def _joined(group: list[Row]) -> Gemm:
    # A group is met in the order of the step, so its forward product leads.
    first = group[0]
    return Gemm(
        module=first["module"],
        kinds=tuple(dict.fromkeys(row["gemm"] for row in group if row["gemm"])),
        dtype=operand_dtype(first),
        m=first["m"],
        n=first["n"],
        k=first["k"],
        batch=_batch(first),
        count=sum(row["count"] for row in group),
        contiguous=all(row["contiguous"] for row in group),
    )


def operand_dtype(row: Row) -> str:
    """Returns the dtype of a product's operands; a bias, which may differ, comes first in addmm."""
    added = "addmm" in row["operation"] or "baddbmm" in row["operation"]
    dtypes: list[str] = row["dtypes"]
    return dtypes[min(added, len(dtypes) - 1)] if dtypes else ""


def _batch(row: Row) -> int:
    shapes = [shape for shape in row["shapes"] if len(shape) == 3]  # noqa: PLR2004  # bmm's
    return int(shapes[-1][0]) if "bmm" in row["operation"] and shapes else 1


def _convolution(row: Row) -> Gemm | None:
    """Returns a convolution's channels as sizes; None where it has groups or is transposed."""
    taken, weight = (shape[:2] for shape in [*row["shapes"], [], []][:2])
    if row["phase"] != "forward" or not len(taken) == len(weight) == 2:  # noqa: PLR2004  # sizes
        return None
    (_, channels), (out, expected) = taken, weight
    if channels != expected:
        return None
    count = row["count"]
    kinds, dtype = ("forward",), row["dtypes"][0]
    return Gemm(row["module"], kinds, dtype, None, out, channels, 1, count, contiguous=True)
