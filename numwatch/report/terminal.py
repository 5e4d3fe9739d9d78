"""A `Summary` in the terminal. Nothing it says depends on colour."""

from rich.console import Console
from rich.text import Text

from numwatch.report.slot_table import SCALED_MARK, STYLES, slot_lines
from numwatch.report.summary import LossScale, Skips, Summary
from numwatch.report.text import EN_DASH, UNKNOWN, ascii_text, scale_text, share_text, sparkline

# A log file has no width; the 80 columns that rich gives it are too few for slot names.
NARROWEST_FILE = 100
_NAMED_SLOTS = 2
_LABEL_WIDTH = 12


def print_summary(summary: Summary, console: Console | None = None) -> None:
    """Prints a summary, by default to standard output."""
    console = console or Console()
    width = console.width if console.is_terminal else max(console.width, NARROWEST_FILE)
    for line in summary_lines(summary, width):
        print_line(line, console)


def print_line(line: Text, console: Console) -> None:
    """Prints a line as it is, in ASCII where the console has no more."""
    if not console.encoding.lower().startswith("utf"):
        line.plain = ascii_text(line.plain)
    console.print(line, soft_wrap=True, highlight=False)


def summary_lines(summary: Summary, width: int) -> list[Text]:
    """Returns the lines of a summary, its table fitted to `width` cells where that can be."""
    lines = [_title(summary)]
    if summary.loss_scale is not None:
        lines.append(_labelled("loss scale", _loss_scale(summary.loss_scale)))
    if summary.loss_scale is not None or summary.skips.count:
        lines.append(_labelled("skipped", _skips(summary.skips, summary.steps)))
    if summary.loss is not None:
        first, last = summary.loss
        lines.append(_labelled("loss", Text(f"{first:.4g} → {last:.4g}")))
    if summary.tensors:
        lines += [Text(), *slot_lines(summary.tensors, width), Text(), _verdicts(summary)]
        lines += _legend(summary)
    elif summary.steps:
        lines.append(Text("no tensor rows yet"))
    lines += [_labelled("problem", Text(problem), "red") for problem in summary.problems]
    return lines


def _title(summary: Summary) -> Text:
    parts = ["whole run" if summary.epoch is None else f"epoch {summary.epoch}"]
    if summary.first_step is None:
        parts.append("no steps yet")
    elif summary.first_step == summary.last_step:
        parts.append(f"step {summary.first_step}")
    else:
        parts.append(f"steps {summary.first_step}{EN_DASH}{summary.last_step}")
    if summary.attempts > 1:
        parts.append(f"{summary.attempts} attempts")
    parts += [summary.precision, summary.device]
    if summary.slots:
        parts.append(_several(summary.slots, "slot"))
    if summary.cost is not None:
        start = f" + {summary.start_seconds:.1f} s to start" if summary.start_seconds else ""
        parts.append(f"cost {share_text(summary.cost)} of step time{start}")
    title = Text().append("numwatch", style="bold")
    for part in parts:
        title.append(" · ", style="dim").append(part)
    return title


def _loss_scale(scale: LossScale) -> Text:
    if scale.first == scale.last and len(set(scale.trend)) == 1:
        return Text(f"{scale_text(scale.first)} throughout")
    text = Text(f"{scale_text(scale.first)} → {scale_text(scale.last)}  ")
    return text.append(sparkline(scale.trend), style="blue")


def _skips(skips: Skips, steps: int) -> Text:
    if not skips.count:
        return Text(f"none of {_several(steps, 'step')}")
    text = Text().append(f"{skips.count} of {_several(steps, 'step')}", style="red")
    text.append(f", last {skips.last}")
    if skips.nonfinite is None:
        return text.append(" (its tensors were not recorded)", style="dim")
    if skips.nonfinite:
        named = [f"{slot} held {count} nan/inf" for slot, count in skips.nonfinite[:_NAMED_SLOTS]]
        more = len(skips.nonfinite) - len(named)
        text.append(f": {', '.join(named)}")
        text.append(f", then {_several(more, 'more slot')}" if more else "")
    return text


def _verdicts(summary: Summary) -> Text:
    text = Text(f"{_several(summary.slots, 'slot')}: ")
    found = [(verdict, count) for verdict, count in summary.verdicts.items() if count]
    for i, (verdict, count) in enumerate(found):
        text.append(" · " if i else "", style="dim")
        text.append(f"{count} {verdict}", style=STYLES[verdict])
    hidden = summary.slots - len(summary.tensors)
    return text.append(f"  (the worst {len(summary.tensors)} shown)" if hidden else "", style="dim")


def _legend(summary: Summary) -> list[Text]:
    notes = []
    if any(line.nans is None for line in summary.tensors):
        notes.append(f"{UNKNOWN} amax alone was measured in these steps")
    if any(line.scaled for line in summary.tensors):
        notes.append(f"{SCALED_MARK} multiplied by the loss scale, as backward sees it")
    if any(line.flushed_from == "estimate" for line in summary.tensors):
        notes.append("~ estimated: these tensors were seen after rounding to their format")
    if any(line.flushed_from == "cast" for line in summary.tensors):
        notes.append("flushed and saturated of float8 layers: by their own scaled cast")
    return [Text(note, style="dim") for note in notes]


def _labelled(label: str, text: Text, style: str = "dim") -> Text:
    return Text().append(label.ljust(_LABEL_WIDTH), style=style).append_text(text)


def _several(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
