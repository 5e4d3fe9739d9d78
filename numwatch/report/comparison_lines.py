"""Two runs side by side, as `numwatch compare` prints them."""

import math
from collections.abc import Sequence

from rich.text import Text

from numwatch.diagnose.compare import Comparison, Difference
from numwatch.report.columns import column_lines
from numwatch.report.labels import labelled
from numwatch.report.text import amax_text, several, share_text

SHARES = ("flushed",)
_HEAD = ("slot", "figure", "from step", "first run", "second run", "apart", "noise")
_NAMED = 5


def comparison_lines(found: Comparison, worst: int) -> list[Text]:
    """Returns what parted first, a table of the rest, and what one run alone has.

    Args:
        found: The comparison.
        worst: How many differences of the rest at most.
    """
    lines = [
        labelled("first run", Text(found.a)),
        labelled("second run", Text(found.b)),
        labelled(
            "compared", Text(f"{several(found.steps, 'step')}, {several(found.slots, 'slot')}")
        ),
    ]
    if found.first is None:
        lines.append(Text("nothing parts by more than its own noise"))
    else:
        lines += [labelled("parts first", _sentence(found.first), "bold"), Text()]
        lines += column_lines(
            _HEAD, [_cells(one) for one in found.differences[: worst + 1]], "llrrrrr"
        )
        hidden = len(found.others) - worst
        if hidden > 0:
            lines.append(Text(f"{several(hidden, 'more figure')} part by less", style="dim"))
        lines += [
            Text(),
            Text(
                "amax and rms without the loss scale; apart and noise in binades, of flushed in "
                "shares; from a step on they stay apart for three compared ones",
                style="dim",
            ),
        ]
    lines += _alone("the first", found.only_a) + _alone("the second", found.only_b)
    return lines


def _sentence(one: Difference) -> Text:
    where = one.figure if one.slot == one.figure else f"{one.figure} of {one.slot}"
    return Text(
        f"{where} from step {one.step}: {_value(one, one.a)} against {_value(one, one.b)}, "
        f"{_apart(one, one.apart)} apart where its own noise is {_apart(one, one.noise)}"
    )


def _cells(one: Difference) -> list[Text]:
    return [
        Text(one.slot, style="bold"),
        Text(one.figure),
        Text(str(one.step)),
        Text(_value(one, one.a)),
        Text(_value(one, one.b)),
        Text(_apart(one, one.apart)),
        Text(_apart(one, one.noise)),
    ]


def _value(one: Difference, value: float) -> str:
    if not math.isfinite(value):
        return "nan" if math.isnan(value) else "inf"
    if one.figure in SHARES:
        return share_text(value)
    return f"{value:.4g}" if one.slot == one.figure else amax_text(value)


def _apart(one: Difference, value: float) -> str:
    if not math.isfinite(value):
        return "inf"
    return share_text(value) if one.figure in SHARES else f"{value:.2g} bits"


def _alone(which: str, slots: Sequence[str]) -> list[Text]:
    if not slots:
        return []
    more = f" and {len(slots) - _NAMED} more" if len(slots) > _NAMED else ""
    return [Text(f"{which} run alone has {', '.join(slots[:_NAMED])}{more}", style="dim")]
