"""What shadow steps measured, as a table."""

from collections.abc import Sequence

from rich.text import Text

from numwatch.report.columns import column_lines
from numwatch.report.shadow_figures import ShadowFigures
from numwatch.report.text import bounded_text, count_text, figure_text, known_text, share_text

_CLOSE = 4


def shadows_table(shadows: Sequence[ShadowFigures]) -> list[Text]:
    """Returns one line a gradient slot, the most flushed first."""
    head = (
        "slot",
        "steps",
        "sampled",
        "flushed",
        "estimate",
        "zeros",
        "in FP32",
        "error",
        "cosine",
    )
    rows = [[Text(cell) for cell in _cells(line)] for line in shadows]
    return [
        *column_lines(head, rows, "lrrrrrrrr"),
        Text(),
        Text(
            "flushed: of the elements that FP32 has, those that are zero in the run; "
            "estimate: from the run's own rows",
            style="dim",
        ),
        Text("zeros: in the run, then in FP32; error: |g - g32| / |g32|", style="dim"),
    ]


def _cells(line: ShadowFigures) -> list[str]:
    estimated = line.estimate is not None and not line.estimate.exact
    return [
        line.slot,
        str(line.steps),
        count_text(line.sampled),
        known_text(line.flushed_share),
        bounded_text(line.estimate, estimated=estimated),
        share_text(line.run_zeros / line.sampled) if line.sampled else known_text(None),
        share_text(line.zeros / line.sampled) if line.sampled else known_text(None),
        figure_text(line.relative_error),
        figure_text(line.cosine, _CLOSE),
    ]
