"""A `Summary` in the terminal. Nothing it says depends on colour."""

import math

from rich.console import Console
from rich.text import Text

from numwatch.report.slot_table import STYLES, mark_notes, slot_lines
from numwatch.report.summary import LossScale, Skips, Summary
from numwatch.report.text import EN_DASH, ascii_text, scale_text, share_text, sparkline

# A log file has no width; the 80 columns that rich gives it are too few for slot names.
NARROWEST_FILE = 100
_NAMED_SLOTS = 2
_LABEL_WIDTH = 12
# Less would read as 0.0.
_SHOWN_SECONDS = 0.05


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
        lines.append(_labelled("loss", _loss(summary.loss)))
    if summary.tensors:
        lines += [Text(), *slot_lines(summary.tensors, width), Text(), _verdicts(summary)]
        notes = [_coverage(summary), *mark_notes(summary.tensors)]
        lines += [Text(note, style="dim") for note in notes]
    elif summary.problems:
        lines.append(Text("no tensor rows could be read"))
    elif summary.steps:
        lines.append(Text("no tensor rows yet"))
    lines += [_labelled("problem", Text(problem), "red") for problem in summary.problems]
    return lines


def _title(summary: Summary) -> Text:
    parts = ["whole run" if summary.epoch is None else f"epoch {summary.epoch}"]
    if summary.first_step is None:
        parts.append("no steps could be read" if summary.problems else "no steps yet")
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
        seconds = summary.start_seconds or 0.0
        start = f" + {seconds:.1f} s to start" if seconds >= _SHOWN_SECONDS else ""
        parts.append(f"cost {share_text(summary.cost)} added to step time{start}")
    title = Text().append("numwatch", style="bold")
    for part in parts:
        title.append(" · ", style="dim").append(part)
    return title


def _loss_scale(scale: LossScale) -> Text:
    if scale.lowest == scale.highest:
        return Text(f"{scale_text(scale.first)} throughout")
    text = Text(f"{scale_text(scale.first)} → {scale_text(scale.last)}")
    if scale.lowest < min(scale.first, scale.last):
        text.append(f", lowest {scale_text(scale.lowest)}")
    if scale.highest > max(scale.first, scale.last):
        text.append(f", highest {scale_text(scale.highest)}")
    if len(set(scale.trend)) > 1:
        text.append("  ").append(sparkline(scale.trend), style="blue")
    return text


def _loss(loss: tuple[float, float]) -> Text:
    text = Text()
    for value in loss:
        text.append(" → " if text else "")
        text.append(f"{value:.4g}", style="" if math.isfinite(value) else "bold red")
    return text


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


def _coverage(summary: Summary) -> str:
    seen = {"full": summary.full_steps, "amax-only": summary.amax_steps}
    parts = " and ".join(f"{count} {kind}" for kind, count in seen.items() if count)
    # Of a damaged record there may be more steps' tensors than steps.
    known = summary.steps >= sum(seen.values())
    return f"seen: {parts} " + (f"of {_several(summary.steps, 'step')}" if known else "steps")


def _labelled(label: str, text: Text, style: str = "dim") -> Text:
    return Text().append(label.ljust(_LABEL_WIDTH), style=style).append_text(text)


def _several(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
