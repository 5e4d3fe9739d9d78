"""The tables behind a summary's lines, printed where a person asks for them."""

from collections.abc import Sequence

from rich.text import Text

from numwatch.report.scale_window_lines import window_table
from numwatch.report.shadow_lines import shadows_table
from numwatch.report.state_lines import states_table
from numwatch.report.summary import Summary
from numwatch.report.terminal import title_line
from numwatch.report.update_lines import updates_table

TABLES = ("loss scale", "updates", "states", "shadow")


def table_lines(summary: Summary, tables: Sequence[str]) -> list[Text]:
    """Returns the summary's first line and the tables named, of `TABLES`."""
    lines = [title_line(summary)]
    for name in tables:
        lines += [
            Text(),
            Text(_TITLES[name], style="bold"),
            *(_table(summary, name) or [Text(_MISSING[name])]),
        ]
    return lines


_TITLES = {
    "loss scale": "what FP16 gradients would lose at each loss scale, and how many steps ran there",
    "updates": "updates, and what storing the weights in each format does to them",
    "states": "the optimizer's state",
    "shadow": "gradients beside those of the same batch in FP32",
}
_MISSING = {
    "loss scale": "no gradients were measured: they come with full rows",
    "updates": "no updates were measured: they come with the full rows of a step that was taken",
    "states": "no optimizer state was measured: it comes with full rows, where there is any",
    "shadow": "no shadow step ran: NumericsMonitor(shadow_every_n_steps=...) runs them",
}


def _table(summary: Summary, name: str) -> list[Text]:
    if name == "loss scale":
        return window_table(summary.window) if summary.window else []
    if name == "updates":
        return updates_table(summary.updates) if summary.updates else []
    if name == "states":
        return states_table(summary.states) if summary.states else []
    return shadows_table(summary.shadows) if summary.shadows else []
