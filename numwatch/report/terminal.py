"""A `Summary` in the terminal. Nothing it says depends on colour."""

import math
from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from numwatch.diagnose.finding import Finding
from numwatch.errors import printable
from numwatch.report.finding_lines import summary_findings
from numwatch.report.labels import labelled, labelled_all
from numwatch.report.scale_window_lines import window_line
from numwatch.report.slot_table import STYLES, mark_notes, slot_lines
from numwatch.report.state_lines import states_lines
from numwatch.report.summary import Summary
from numwatch.report.text import EN_DASH, ascii_text, bytes_text, several, share_text
from numwatch.report.trajectory_lines import collapse_line, loss_scale_line, skips_line
from numwatch.report.update_lines import updates_lines

# A log file has no width; the 80 columns that rich gives it are too few for slot names.
NARROWEST_FILE = 100
# Less would read as 0.0.
_SHOWN_SECONDS = 0.05


def print_summary(
    summary: Summary, console: Console | None = None, findings: Sequence[Finding] = ()
) -> None:
    """Prints a summary, by default to standard output, and what a diagnosis found below it."""
    console = console or Console()
    lines = summary_lines(summary, text_width(console))
    told = summary_findings(findings)
    for line in (*lines, *([Text(), *told] if told else [])):
        print_line(line, console)


def text_width(console: Console) -> int:
    """Returns how many cells a line may take."""
    return console.width if console.is_terminal else max(console.width, NARROWEST_FILE)


def print_line(line: Text, console: Console) -> None:
    """Prints a line as it is, in ASCII where the console has no more."""
    if not line.plain.isprintable():  # a stranger's name may hold what a terminal obeys
        line.plain = printable(line.plain)
    if not console.encoding.lower().startswith("utf"):
        line.plain = ascii_text(line.plain)
    console.print(line, soft_wrap=True, highlight=False)


def summary_lines(summary: Summary, width: int) -> list[Text]:
    """Returns the lines of a summary, its table fitted to `width` cells where that can be."""
    lines = [title_line(summary)]
    if summary.loss_scale is not None:
        lines.append(loss_scale_line(summary.loss_scale))
    if summary.window is not None and summary.window.applies:
        lines.append(window_line(summary.window))
    if summary.loss_scale is not None or summary.skips.count:
        lines.append(skips_line(summary.skips, summary.steps))
    if summary.collapse is not None:
        lines.append(collapse_line(summary.collapse))
    if summary.loss is not None:
        lines.append(labelled("loss", _loss(summary.loss)))
    if summary.updates is not None:
        lines += updates_lines(summary.updates)
    lines += states_lines(summary.states)
    if summary.tensors:
        lines += [Text(), *slot_lines(summary.tensors, width), Text(), _verdicts(summary)]
        notes = [_coverage(summary), *mark_notes(summary.tensors)]
        lines += [Text(note, style="dim") for note in notes]
    elif summary.problems:
        lines.append(Text("no tensor rows could be read"))
    elif summary.steps:
        lines.append(Text("no tensor rows yet"))
    lines += labelled_all("not seen", map(Text, summary.unseen))
    lines += [labelled("problem", Text(problem), "red") for problem in summary.problems]
    return lines


def title_line(summary: Summary) -> Text:
    """Returns the summary's first line: of which run and steps it is, and what numwatch took."""
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
        parts.append(several(summary.slots, "slot"))
        if summary.parameters:
            parts[-1] += f", {several(summary.parameters, 'parameter')}"
    parts += _cost(summary)
    title = Text().append("numwatch", style="bold")
    for part in parts:
        title.append(" · ", style="dim").append(part)
    return title


def _cost(summary: Summary) -> list[str]:
    costs = []
    if summary.cost is not None:
        seconds = summary.start_seconds or 0.0
        start = f" + {seconds:.1f} s to start" if seconds >= _SHOWN_SECONDS else ""
        costs.append(f"{share_text(summary.cost)} added to step time{start}")
    if summary.memory is not None:
        costs.append(bytes_text(summary.memory))
    return [f"cost {', '.join(costs)}"] if costs else []


def _loss(loss: tuple[float, float]) -> Text:
    text = Text()
    for value in loss:
        text.append(" → " if text else "")
        text.append(f"{value:.4g}", style="" if math.isfinite(value) else "bold red")
    return text


def _verdicts(summary: Summary) -> Text:
    judged = sum(summary.verdicts.values())
    beside = judged - summary.slots
    text = Text(several(summary.slots, "slot"))
    text.append(f" and {beside} of parameters: " if beside else ": ")
    found = [(verdict, count) for verdict, count in summary.verdicts.items() if count]
    for i, (verdict, count) in enumerate(found):
        text.append(" · " if i else "", style="dim")
        text.append(f"{count} {verdict}", style=STYLES[verdict])
    hidden = judged - len(summary.tensors)
    return text.append(f"  (the worst {len(summary.tensors)} shown)" if hidden else "", style="dim")


def _coverage(summary: Summary) -> str:
    seen = {"full": summary.full_steps, "amax-only": summary.amax_steps}
    parts = " and ".join(f"{count} {kind}" for kind, count in seen.items() if count)
    # Of a damaged record there may be more steps' tensors than steps.
    known = summary.steps >= sum(seen.values())
    text = f"seen: {parts} " + (f"of {several(summary.steps, 'step')}" if known else "steps")
    if summary.thinned_steps:
        text += f"; rows of {several(summary.thinned_steps, 'more step')} left out: a slow disk"
    return text
