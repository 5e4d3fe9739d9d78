"""The GEMMs of the audited step in the terminal: which formats they fit, or the padding."""

from collections.abc import Sequence
from typing import Any

from rich.text import Text

from numwatch.diagnose.gemms import Gemm
from numwatch.diagnose.thresholds import MULTIPLES
from numwatch.report.columns import column_lines
from numwatch.report.text import TIMES, UNKNOWN

_HEAD = ("module", "passes", "dtype", "M", "N", "K", "count", "layout", *MULTIPLES)


def gemm_lines(gemms: Sequence[Gemm]) -> list[Text]:
    """Returns the table: for each GEMM and format "fits", or the sizes it should be padded to."""
    if not gemms:
        return [Text("no GEMM was noted: the record has no audited step")]
    return [
        *column_lines(_HEAD, [_cells(gemm) for gemm in gemms], "lll" + "r" * 4 + "l" * 8),
        Text(),
        Text(
            "fits: M, N and K are multiples of what Tensor Cores take in that format, "
            + ", ".join(f"{name} {multiple}" for name, multiple in MULTIPLES.items()),
            style="dim",
        ),
        Text("of convolutions the channels alone are judged", style="dim"),
    ]


def gemm_rows(gemms: Sequence[Gemm]) -> list[dict[str, Any]]:
    """Returns the same as plain values."""
    return [
        {
            "module": gemm.module,
            "passes": list(gemm.kinds),
            "dtype": gemm.dtype,
            **{name: getattr(gemm, name) for name in ("m", "n", "k", "batch", "count")},
            "contiguous": gemm.contiguous,
            "padding": {
                name: {size: to for size, (_, to) in gemm.padding(name).items()}
                for name in MULTIPLES
            },
        }
        for gemm in gemms
    ]


def _cells(gemm: Gemm) -> list[Text]:
    sizes = [UNKNOWN if size is None else str(size) for size in (gemm.m, gemm.n, gemm.k)]
    count = str(gemm.count) + (f" {TIMES} {gemm.batch}" if gemm.batch > 1 else "")
    return [
        Text(gemm.module or "(root)", style="bold"),
        Text("+".join(gemm.kinds)),
        Text(gemm.dtype),
        *map(Text, sizes),
        Text(count),
        Text(
            "contiguous" if gemm.contiguous else "copied", style="" if gemm.contiguous else "yellow"
        ),
        *(_fit(gemm, name) for name in MULTIPLES),
    ]


def _fit(gemm: Gemm, name: str) -> Text:
    padding = gemm.padding(name)
    if not padding:
        return Text("fits", style="green")
    return Text(", ".join(f"{size.upper()} to {to}" for size, (_, to) in padding.items()))
