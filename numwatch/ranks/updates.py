"""Updates and optimizer state over ranks that hold shards of the same parameters.

Shares are taken apart into the sums they were made of, which add up, and put together again.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from numwatch.ranks.table import NOTHING, Array, Table, known, largest
from numwatch.snapshot import SlotInfo
from numwatch.step_entries import OptimizerState, Update

_INTENDED = ("applied", "exact", "estimate")
"""From the best known to the least."""
_SHARES = ("swallowed", "stochastic_kept", "deferred")
_NUMEL, _SAMPLED, _NONZERO, _UPDATE_SQUARED, _WEIGHT_SQUARED, _ARRIVED, _INTENDED_SQUARED = range(7)
_SHARE = _INTENDED_SQUARED + 1
_SEEN = _SHARE + len(_SHARES)
_LOST, _SOURCE, _DIRECTED, _HAS_SHARE = range(4)
_MAXIMA = _HAS_SHARE + len(_SHARES)


def updates_table(updates: Sequence[Update]) -> Table:
    """Packs what one rank measured of its parts of the parameters."""
    sums = np.zeros((len(updates), _SEEN + 1))
    maxima = np.full((len(updates), _MAXIMA), NOTHING)
    for i, one in enumerate(updates):
        sums[i, [_NUMEL, _SAMPLED, _NONZERO]] = one.numel, one.sampled, one.nonzero
        sums[i, _SEEN] = 1
        arrived = one.intended_sq * _of(one.edq_normalised)
        sums[i, _UPDATE_SQUARED : _INTENDED_SQUARED + 1] = (
            one.applied_sq,
            one.weight_sq,
            arrived,
            one.intended_sq,
        )
        for at, name in enumerate(_SHARES):
            share = getattr(one, name)
            sums[i, _SHARE + at] = _of(share) * one.nonzero
            maxima[i, _HAS_SHARE + at] = NOTHING if share is None else 1.0
        maxima[i, _LOST] = one.lost
        maxima[i, _SOURCE] = _INTENDED.index(one.intended)
        maxima[i, _DIRECTED] = NOTHING if one.edq is None else 1.0
    return Table(tuple(f"{one.slot} {one.storage}" for one in updates), sums, maxima)


def joined_updates(joined: Table) -> tuple[Update, ...]:
    """Returns the updates of the whole parameters."""
    lines = zip(joined.keys, joined.sums, joined.maxima, strict=True)
    return tuple(_update(key, sums, maxima) for key, sums, maxima in lines if sums[_SEEN])


def _update(key: str, sums: Array, maxima: Array) -> Update:
    slot, _, storage = key.rpartition(" ")
    nonzero = int(sums[_NONZERO])
    shares = {
        name: float(sums[_SHARE + at] / nonzero)
        if nonzero and maxima[_HAS_SHARE + at] > 0
        else None
        for at, name in enumerate(_SHARES)
    }
    squared, arrived = float(sums[_INTENDED_SQUARED]), float(sums[_ARRIVED])
    directed = maxima[_DIRECTED] > 0 and squared > 0
    weights = float(sums[_WEIGHT_SQUARED])
    return Update(
        slot=slot,
        storage=storage,
        numel=int(sums[_NUMEL]),
        sampled=int(sums[_SAMPLED]),
        nonzero=nonzero,
        ratio=math.sqrt(sums[_UPDATE_SQUARED] / weights) if weights else None,
        swallowed=shares["swallowed"],
        stochastic_kept=shares["stochastic_kept"],
        deferred=shares["deferred"],
        edq=arrived / math.sqrt(squared) if directed else None,
        edq_normalised=arrived / squared if directed else None,
        lost=bool(maxima[_LOST] > 0),
        intended=_INTENDED[int(maxima[_SOURCE])],
        intended_sq=squared,
        applied_sq=float(sums[_UPDATE_SQUARED]),
        weight_sq=weights,
    )


_FIXED = ("eps", "eps_stored", "decay", "decay_stored")
_WEIGHED = ("below_eps", "vanished")


def states_table(states: Sequence[OptimizerState]) -> Table:
    """Packs what one rank knows of its parts of the optimizer's state."""
    sums = np.zeros((len(states), 2 + 2 * (len(_WEIGHED) + 1)))
    maxima = np.full((len(states), len(_FIXED)), NOTHING)
    for i, one in enumerate(states):
        sums[i, :2] = 1, one.sampled
        values = [getattr(one, name) for name in _WEIGHED]
        values.append(None if one.rms is None else one.rms**2)
        for at, value in enumerate(values):
            if value is not None:
                sums[i, 2 + 2 * at : 4 + 2 * at] = one.sampled, value * one.sampled
        maxima[i] = [largest(getattr(one, name)) for name in _FIXED]
    return Table(tuple(one.slot for one in states), sums, maxima)


def joined_states(joined: Table, infos: Mapping[str, SlotInfo]) -> tuple[OptimizerState, ...]:
    """Returns the state of the whole parameters.

    `below_eps`, `vanished` and `rms` are means over the ranks' samples by their sizes.
    """
    found = []
    for slot, sums, maxima in zip(joined.keys, joined.sums, joined.maxima, strict=True):
        info = infos.get(slot)
        if not sums[0] or info is None or info.dtype is None:
            continue
        means = [
            float(sums[3 + 2 * at] / sums[2 + 2 * at]) if sums[2 + 2 * at] else None
            for at in range(len(_WEIGHED) + 1)
        ]
        below_eps, vanished, squared = means
        found.append(
            OptimizerState(
                slot=slot,
                dtype=info.dtype,
                sampled=int(sums[1]),
                **{name: known(value) for name, value in zip(_FIXED, maxima, strict=True)},
                below_eps=below_eps,
                vanished=vanished,
                rms=None if squared is None else math.sqrt(squared),
            )
        )
    return tuple(found)


def _of(value: float | None) -> float:
    return 0.0 if value is None else value
