"""The loss scale, the skipped steps and a collapse as lines of text."""

from collections.abc import Sequence

from rich.text import Text

from numwatch.recipes import Collapse
from numwatch.report.labels import labelled
from numwatch.report.text import scale_text, several, sparkline
from numwatch.report.trajectory import LossScale, Skips

_NAMED = 2


def loss_scale_line(scale: LossScale) -> Text:
    """Returns where the loss scale began, ended and was in between."""
    return labelled("loss scale", _loss_scale(scale))


def skips_line(skips: Skips, steps: int) -> Text:
    """Returns how many steps were skipped, and what made the last one."""
    return labelled("skipped", _skips(skips, steps))


def collapse_line(collapse: Collapse) -> Text:
    """Returns the warning that the loss scale is on its way to 0."""
    scale = scale_text(collapse.scale)
    text = (
        f"{several(collapse.skipped_in_a_row, 'step')} skipped in a row at step {collapse.step}, "
        f"the loss scale down to {scale}"
    )
    if collapse.scale == 0:
        text += " since: all gradients are 0 or NaN from there on"
    elif collapse.zero_at_step is not None:
        text += f": it reaches 0 at step {collapse.zero_at_step} if every step is skipped"
    return labelled("collapse", Text(text, style="bold red"), "bold red")


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


def _skips(skips: Skips, steps: int) -> Text:
    if not skips.count:
        return Text(f"none of {several(steps, 'step')}")
    text = Text().append(f"{skips.count} of {several(steps, 'step')}", style="red")
    text.append(f", last {skips.last}")
    if skips.nonfinite:
        named = [f"{slot} held {count} nan/inf" for slot, count in skips.nonfinite[:_NAMED]]
        return text.append(f": {', '.join(named)}{_more(skips.nonfinite, _NAMED, 'slot')}")
    if skips.parameters:
        more = _more(skips.parameters, 1, "parameter")
        return text.append(f": gradient of {skips.parameters[0]} held nan/inf{more}")
    if skips.nonfinite is None:
        text.append(" (its tensors were not recorded)", style="dim")
    return text


def _more(names: Sequence[object], shown: int, noun: str) -> str:
    more = len(names) - shown
    return f", then {several(more, f'more {noun}')}" if more > 0 else ""
