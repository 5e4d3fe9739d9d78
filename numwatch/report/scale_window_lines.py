"""The window of loss scales as a line of a summary and as a table of its own."""

from rich.text import Text

from numwatch.recipes import ScaleLine
from numwatch.recipes.window import HIGHEST, LOWEST
from numwatch.report.columns import column_lines
from numwatch.report.labels import labelled
from numwatch.report.scale_window import ScaleWindow
from numwatch.report.text import UNKNOWN, bounded_text, several, share_text


def window_line(found: ScaleWindow) -> Text:
    """Returns the window and where the steps ran, or in words why there is none."""
    return labelled("window", _empty(found) if found.window.empty else _window(found))


def window_table(found: ScaleWindow) -> list[Text]:
    """Returns one line a loss scale, from the lowest up."""
    window = found.window
    head = ("loss scale", "flushed", "worst slot", "", "overflows", "steps", "")
    rows = [
        [Text(cell) for cell in _cells(line, steps, found)]
        for line, steps in zip(window.lines, found.steps, strict=True)
    ]
    notes = [
        "flushed: of all gradient elements; overflows: slots whose largest element would be inf",
        f"fits: no more than {share_text(window.negligible)} flushed, and nothing overflows",
    ]
    elsewhere = found.below + found.inside + found.above - sum(found.steps)
    if elsewhere:
        notes.append(f"{several(elsewhere, 'step')} ran at other loss scales")
    return [
        *column_lines(head, rows, "rrlrlrl"),
        Text(),
        *(Text(note, style="dim") for note in notes),
    ]


def _window(found: ScaleWindow) -> Text:
    window = found.window
    text = Text(f"{window.format.upper()} gradients fit {_range(window.low, window.high)}")
    if (line := found.line(window.high)) is not None:
        text.append(f" ({bounded_text(line.flushed)} flushed at 2^{line.exponent})")
    steps = found.below + found.inside + found.above
    text.append(f" · {found.inside} of {several(steps, 'step')} ran inside")
    if found.skipped_inside:
        text.append(f", of these {found.skipped_inside} skipped", style="yellow")
    beside = [(found.below, "below"), (found.above, "above")]
    for count, where in beside:
        text.append(f", {count} {where}" if count else "", style="yellow")
    return text


def _range(low: int | None, high: int | None) -> str:
    if low == LOWEST:
        return f"any scale up to 2^{high}"
    return f"2^{low} and above" if high == HIGHEST else f"2^{low} to 2^{high}"


def _empty(found: ScaleWindow) -> Text:
    window = found.window
    name = window.format.upper()
    if window.high is None:
        overflows = found.window.lines[0].overflows
        which = f": {overflows[0]} always overflows" if overflows else ""
        return Text(f"no scale fits {name} gradients{which}", style="bold yellow")
    at_high = found.line(window.high)
    if window.low is None and at_high is not None and at_high.flushed.value <= window.negligible:
        return Text(f"no finite gradient but zeros was seen: no loss scale to tell for {name}")
    text = f"no scale fits {name}"
    if at_high is not None:
        text += f": {bounded_text(at_high.flushed)} flushed at 2^{window.high}"
    above = found.line(window.high + 1)
    if above is not None and above.overflows:
        text += f", above it {above.overflows[0]} overflows"
    return Text(text, style="bold yellow")


def _cells(line: ScaleLine, steps: int, found: ScaleWindow) -> list[str]:
    window = found.window
    fits = (
        window.low is not None
        and window.high is not None
        and window.low <= line.exponent <= window.high
    )
    more = f" + {several(len(line.overflows) - 1, 'slot')}" if line.overflows[1:] else ""
    return [
        f"2^{line.exponent}",
        bounded_text(line.flushed),
        line.worst or UNKNOWN,
        bounded_text(line.worst_flushed) if line.worst else "",
        f"{line.overflows[0]}{more}" if line.overflows else UNKNOWN,
        str(steps),
        "fits" if fits else "",
    ]
