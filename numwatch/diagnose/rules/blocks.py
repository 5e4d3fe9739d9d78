"""Rules about what a block format makes of the gains of norms."""

import math
import re
from collections.abc import Iterator

import numpy as np

from numwatch.diagnose.confirm import first_confirmed
from numwatch.diagnose.evidence import Doubles, Evidence, Series
from numwatch.diagnose.finding import Figure, Finding
from numwatch.diagnose.parameters import first_and_others
from numwatch.diagnose.rules.float8 import pair_of
from numwatch.diagnose.thresholds import COLLAPSED_SHARE
from numwatch.formats import get_format

_Held = tuple[str, int, tuple[Figure, ...]]

_SOURCE = "2506.20752; OCP Microscaling 1.0, scales rounded down"
_BLOCKS = re.compile(r"mx|fp4|block", re.IGNORECASE)
# Gains spread less than this are still what they were initialised to.
_UNTRAINED = 2.0**-9
# Beyond it they fill an octave and more.
_OCTAVE = 0.25
_E4M3 = get_format("e4m3")
# Its largest value over the power of two below it.
_TOP = 2.0 * math.frexp(_E4M3.max)[0]


def block_gain_collapse(evidence: Evidence) -> Iterator[Finding]:
    """Gains within one octave that a block format rounds to one value.

    Seen where a module rounds a vector, its input and output both watched; foreseen of the weights
    of norms where the run's precision names a block format.
    """
    held = {**_foreseen(evidence), **_seen(evidence)}
    if not held:
        return
    slot, step, others = first_and_others(
        evidence, [(name, entry[1]) for name, entry in held.items()]
    )
    severity, _, figures = held[slot]
    yield Finding(
        rule="block-gain-collapse",
        severity=severity,
        step=step,
        slot=slot,
        order=evidence.order(slot),
        evidence=figures,
        cause=f"the gains of {slot} lie within one octave, and the block format makes one value of "
        "them: what the norm has learnt is gone, and its gradient is biased",
        cure='leave the weights of norms out of it, `exclude=["*ln*", "*norm*"]`, or round its '
        'scales up, `round_to_block_format(x, "mxfp8", scale_rule="rceil")`',
        source=_SOURCE,
        others=others,
    )


RULES = (block_gain_collapse,)


def collapsed_share(mean: Doubles, deviation: Doubles, amax: Doubles) -> Doubles:
    """Returns the share of normally spread gains that MXFP8 (E4M3, FLOOR) rounds to one value.

    FLOOR puts the block's amax into the top binade of E4M3, whose largest value is 1.75 times the
    power of two below it; all above that is clamped to it.

    Args:
        mean: Float [n], of the gains.
        deviation: Float [n], their standard deviation.
        amax: Float [n], their largest magnitude, > 0.
    """
    middle = np.abs(mean)
    with np.errstate(divide="ignore", invalid="ignore"):
        limit = np.exp2(np.floor(np.log2(amax))) * _TOP
        bottom = np.exp2(np.floor(np.log2(middle)))
        step = bottom * _E4M3.eps
        nearest = np.minimum(np.round(middle / step) * step, limit)
        low = nearest - np.where(nearest > bottom, step, step / 2) / 2
        above = np.where(nearest >= 2 * bottom, 2 * step, step)
        high = np.where(nearest >= limit, np.inf, nearest + above / 2)
        return _normal((high - middle) / deviation) - _normal((low - middle) / deviation)


def _seen(evidence: Evidence) -> dict[str, _Held]:
    held: dict[str, _Held] = {}
    for slot, info in evidence.slots.items():
        before = f"{info.module}:input"
        vector = info.shape is not None and len(info.shape) == 1
        if info.role != "output" or not vector or before not in evidence.slots:
            continue
        pair = pair_of(evidence, before, slot)
        if pair is None:
            continue
        mean, spread = np.abs(pair.mean[0]), pair.deviation
        near = np.abs(pair.mean[1] - pair.mean[0]) <= _E4M3.eps * mean
        octave = (spread[0] >= _UNTRAINED * mean) & (spread[0] <= _OCTAVE * mean)
        at = first_confirmed(octave & near & (spread[1] <= spread[0] / 10))
        if at is not None:
            step = int(pair.step[at])
            figures = (
                Figure("standard deviation after rounding", float(spread[1][at]), step),
                Figure("standard deviation before", float(spread[0][at]), step),
                Figure("mean", float(pair.mean[0][at]), step),
            )
            held[slot] = "warning", step, figures
    return held


def _foreseen(evidence: Evidence) -> dict[str, _Held]:
    held: dict[str, _Held] = {}
    if not _BLOCKS.search(evidence.run.precision):
        return held
    for slot, info, series in evidence.by_role("weight"):
        if info is None or "Norm" not in info.module_class:
            continue
        full = series.fully
        share = _share_of(full)
        at = first_confirmed(share >= COLLAPSED_SHARE)
        if at is not None:
            step = int(full.step[at])
            figures = (
                Figure("gains rounded to one value, share", float(share[at]), step),
                Figure("mean", float(full.mean[at]), step),
                Figure("amax", float(full.amax[at]), step),
            )
            held[slot] = "info", step, figures
    return held


def _share_of(series: Series) -> Doubles:
    mean, rms = series.mean.astype(np.float64), series.rms.astype(np.float64)
    spread = np.sqrt(np.maximum(rms * rms - mean * mean, 0.0))
    trained = spread >= _UNTRAINED * np.abs(mean)
    return np.where(trained, collapsed_share(mean, spread, series.amax), 0.0)


def _normal(z: Doubles) -> Doubles:
    """Returns the normal distribution function."""
    return np.array([0.5 * math.erfc(-x / math.sqrt(2.0)) for x in z])
