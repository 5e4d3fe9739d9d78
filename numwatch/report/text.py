"""Numbers as a person reads them: short, never a small one as 0.0000."""

import math
from collections.abc import Sequence

from numwatch.stats import Bounded

EN_DASH = "\N{EN DASH}"
TIMES = "\N{MULTIPLICATION SIGN}"
UNKNOWN = EN_DASH
"""Stands for a figure that is not known."""
_BARS = "▁▂▃▄▅▆▇█"
_ASCII = str.maketrans(
    {
        "·": "|",
        "→": ">",
        EN_DASH: "-",
        TIMES: "x",
        "…": ">",
        "²": "^2",
        **dict(zip(_BARS, "._-=+*%#", strict=True)),
    }
)
_LONGEST_INTEGER = 1e6
_SHOWN_BITS = 0.05
_WHOLE_BITS = 10.0
_UNITS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def amax_text(value: float) -> str:
    """Returns two digits and the power of ten: `6.1e+04`, `2.2e-05`; `0` for zero."""
    return "0" if value == 0 else f"{value:.1e}"


def share_text(share: float) -> str:
    """Returns a share as a percentage: `31.0 %`; what is above zero never reads as zero."""
    percent = 100.0 * share
    if 0 < percent < 0.05:  # noqa: PLR2004  # would round to 0.0
        return "<0.1 %"
    if 99.95 <= percent < 100:  # noqa: PLR2004  # would round to 100.0
        return ">99.9 %"
    return f"{percent:.1f} %"


def bounded_text(share: Bounded | None, *, estimated: bool = False) -> str:
    """Returns `31.0 %` where that is known, `~31 %` for an estimate, a dash where nothing is.

    Bounds too close to show count as known.
    """
    if share is None:
        return UNKNOWN
    if not estimated and share_text(share.low) == share_text(share.high):
        return share_text(share.value)
    percent = 100.0 * share.value
    # What an estimate would show as 0.0 it can't tell from zero.
    digits = 1 if 0.05 <= percent < 1 else 0  # noqa: PLR2004
    return f"~{percent:.{digits}f} %"


def bits_text(bits: float | None) -> str:
    """Returns `0.1 bit`, `3.4 bits`, `31 bits`."""
    if bits is None or not math.isfinite(bits):
        return UNKNOWN
    if abs(bits) < _SHOWN_BITS:
        bits = 0.0  # amax scaled to the format's very limit: no sign before a nought
    number = f"{bits:.0f}" if abs(bits) >= _WHOLE_BITS else f"{bits:.1f}"
    return f"{number} bit{'' if abs(bits) <= 1 else 's'}"


def scale_text(scale: float) -> str:
    """Returns a loss scale: `65536`, `2^24`, `0.5`."""
    if 1 <= scale < _LONGEST_INTEGER and scale.is_integer():
        return f"{scale:.0f}"
    mantissa, exponent = math.frexp(scale)
    power = mantissa == 0.5 and abs(exponent) > 4  # noqa: PLR2004  # 0.0625 needs no power
    return f"2^{exponent - 1}" if power else f"{scale:.4g}"


def count_text(count: int) -> str:
    """Returns a count: `2`, `999`, `1.2M`."""
    for size, unit in _UNITS:
        if count >= size:
            return f"{count / size:.1f}{unit}"
    return str(count)


def nonfinite_text(nans: int, infs: int) -> str:
    """Returns `2 inf`, `3 nan`, `5 nan+inf`, or `0`."""
    if not nans and not infs:
        return "0"
    kind = "nan+inf" if nans and infs else "nan" if nans else "inf"
    return f"{count_text(nans + infs)} {kind}"


def sparkline(values: Sequence[float]) -> str:
    """Returns one bar a value, the lowest finite one `▁` and the highest `█`.

    Where all are alike the bars are of middle height; -inf reads as the lowest.
    """
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return _BARS[0] * len(values)
    low, high = min(finite), max(finite)
    if low == high:
        return "".join(_BARS[3] if math.isfinite(value) else _BARS[0] for value in values)
    step = (len(_BARS) - 1) / (high - low)
    return "".join(_BARS[round((max(value, low) - low) * step)] for value in values)


def bytes_text(size: int) -> str:
    """Returns a size in memory: `340 kB`, `12 MB`, `1.2 GB`."""
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= unit:
            digits = 0 if size >= 10 * unit else 1  # two digits tell enough
            return f"{size / unit:.{digits}f} {name}"
    return f"{size} B"


def several(count: int, noun: str) -> str:
    """Returns `1 slot`, `2 slots`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def known_text(share: float | None, *, estimated: bool = False) -> str:
    """Returns `31.0 %`, `~31.0 %` for an estimate, a dash where nothing is known."""
    if share is None:
        return UNKNOWN
    return f"~{share_text(share)}" if estimated else share_text(share)


def figure_text(value: float | None, digits: int = 2) -> str:
    """Returns a plain figure with so many digits: `0.03`, `1.2e-05`, a dash where not known."""
    return UNKNOWN if value is None else f"{value:.{digits}g}"


def edq_text(edq: float | None) -> str:
    """Returns a normalised EDQ: `1.00`, `0.03`, `0.004`."""
    if edq is None:
        return UNKNOWN
    return f"{edq:.2f}" if abs(edq) >= 0.01 or not edq else f"{edq:.1g}"  # noqa: PLR2004  # two digits


def ascii_text(text: str) -> str:
    """Returns the text with ASCII in place of what a console without UTF-8 can't show."""
    return text.translate(_ASCII)


def shortened(text: str, width: int) -> str:
    """Returns the text's last `width` cells: a module's path tells most at its end."""
    return text if len(text) <= width else "…" + text[len(text) - width + 1 :]
