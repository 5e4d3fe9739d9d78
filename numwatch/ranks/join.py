"""The snapshots of one rank and those of all: what is sent in a round, and what comes of it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from numwatch.ranks.agreement import REPLICAS, Agreement
from numwatch.ranks.blocks import blocks_table, joined_blocks, no_blocks
from numwatch.ranks.group import Group, Parted
from numwatch.ranks.replicas import differing_replicas, replicas_table
from numwatch.ranks.steps import joined_scalars, steps_table, with_norm_elsewhere
from numwatch.ranks.table import Array, Table
from numwatch.ranks.tensors import joined_rows, tensors_table
from numwatch.ranks.updates import joined_states, joined_updates, states_table, updates_table
from numwatch.snapshot import SlotInfo, Snapshot


@dataclass(frozen=True, eq=False)
class Share:
    """Steps as one rank saw them; the last may have rows.

    Attributes:
        snapshots: The steps, without arrays but the last.
        slots: What is known of every slot.
    """

    snapshots: Sequence[Snapshot]
    slots: Sequence[SlotInfo]


def say_goodbye(group: Group) -> None:
    """Tells the other ranks, in their next round, that this one takes part no more."""
    group.maximum(_header([], full=0, leaving=True, changed=False))


def join(
    share: Share, agreement: Agreement, group: Group
) -> tuple[list[Snapshot], Sequence[SlotInfo]]:
    """Returns the steps as all ranks saw them, and their slots; every rank must be here.

    Raises:
        Parted: A rank takes part no more, or counts steps differently.
    """
    last = share.snapshots[-1]
    agreement.learn({}, share.slots)
    tables = _tables(last, agreement, group)
    agreement.learn(tables, share.slots)
    changed = _agree(share, agreement, group)
    if changed:
        agreement.exchange(group)
    steps = steps_table(share.snapshots)
    keyed = {name: _laid_out(name, table, agreement) for name, table in tables.items()}
    parts = [steps, *keyed.values()]
    maxima = _unpacked(group.maximum(_packed([part.maxima for part in parts])), parts, "maxima")
    sums = _unpacked(group.total(_packed([part.sums for part in parts])), parts, "sums")
    joined = [
        Table(part.keys, own_sums, own_maxima)
        for part, own_sums, own_maxima in zip(parts, sums, maxima, strict=True)
    ]
    steps, reduced = joined[0], dict(zip(keyed, joined[1:], strict=True))
    snapshots = [
        _with_scalars(snapshot, *lines)
        for snapshot, *lines in zip(share.snapshots, steps.sums, steps.maxima, strict=True)
    ]
    if any(snapshot.scalars.skipped for snapshot in snapshots):  # on all ranks or none
        snapshots = _with_blamed(snapshots, group)
    if last.rows is not None:
        whole = _with_rows(snapshots[-1], reduced, agreement, group.size, last.rows.full)
        agreement.apart = differing_replicas(reduced[REPLICAS])
        snapshots[-1] = with_norm_elsewhere(whole, agreement.elsewhere)
    return snapshots, agreement.slots


def _agree(share: Share, agreement: Agreement, group: Group) -> bool:
    """Whether any rank has keys that the others do not know."""
    rows = share.snapshots[-1].rows
    full = 0 if rows is None else 1 + rows.full
    steps = [snapshot.step for snapshot in share.snapshots]
    header = _header(steps, full=full, leaving=False, changed=agreement.changed)
    leaving, changed, *same = group.maximum(header)
    if leaving > 0:
        raise Parted("another rank has stopped watching")
    half = len(same) // 2
    if any(large != -small for large, small in zip(same[:half], same[half:], strict=True)):
        raise Parted("the ranks count steps differently")
    return bool(changed > 0)


def _header(steps: Sequence[int], *, full: int, leaving: bool, changed: bool) -> Array:
    same = np.array([len(steps), *(steps[:1] or [0]), *(steps[-1:] or [0]), full], dtype=np.float64)
    return np.concatenate([[float(leaving), float(changed)], same, -same])


def _tables(snapshot: Snapshot, agreement: Agreement, group: Group) -> dict[str, Table]:
    """Packs what a step has beside its scalars; the same kinds on every rank."""
    if snapshot.rows is None:
        return {}
    rows = snapshot.rows
    tables = {
        "tensors": tensors_table(rows, group.rank, group.size),
        REPLICAS: replicas_table(rows, agreement.infos),
    }
    if rows.full:
        blocks = no_blocks() if snapshot.blocks is None else blocks_table(snapshot.blocks)
        tables["blocks"] = blocks
        tables["updates"] = updates_table(snapshot.updates)
        tables["states"] = states_table(snapshot.states)
    return tables


def _laid_out(name: str, table: Table, agreement: Agreement) -> Table:
    keys = agreement.keys(name)
    return Table(tuple(keys), *table.laid_out(agreement.places(name, table.keys), len(keys)))


def _packed(arrays: Sequence[Array]) -> Array:
    return np.concatenate([array.ravel() for array in arrays])


def _unpacked(flat: Array, parts: Sequence[Table], which: str) -> list[Array]:
    shapes = [getattr(part, which).shape for part in parts]
    ends = np.cumsum([rows * columns for rows, columns in shapes])
    return [
        piece.reshape(shape) for piece, shape in zip(np.split(flat, ends[:-1]), shapes, strict=True)
    ]


def _with_scalars(snapshot: Snapshot, sums: Array, maxima: Array) -> Snapshot:
    scalars, differing = joined_scalars(snapshot.scalars, sums, maxima)
    return replace(snapshot, scalars=scalars, differing=differing)


def _with_blamed(snapshots: Sequence[Snapshot], group: Group) -> list[Snapshot]:
    """Names the parameters whose gradient was not finite on any rank: each knows of its shards."""
    own = [snapshot.scalars.nonfinite_parameters for snapshot in snapshots]
    told = [json.loads(blob) for blob in group.exchange(json.dumps(own).encode())]
    blamed = []
    for snapshot, *lists in zip(snapshots, *told, strict=True):
        known = [names for names in lists if names is not None]
        named = tuple(dict.fromkeys(name for names in known for name in names))
        scalars = replace(snapshot.scalars, nonfinite_parameters=named if known else None)
        blamed.append(replace(snapshot, scalars=scalars))
    return blamed


def _with_rows(
    snapshot: Snapshot,
    reduced: dict[str, Table],
    agreement: Agreement,
    size: int,
    full: bool,  # not for callers outside
) -> Snapshot:
    rows, ranks = joined_rows(reduced["tensors"], size, agreement.infos, full=full)
    snapshot = replace(snapshot, rows=rows, ranks=ranks)
    if not full:
        return snapshot
    return replace(
        snapshot,
        blocks=joined_blocks(reduced["blocks"]),
        updates=joined_updates(reduced["updates"]),
        states=joined_states(reduced["states"], agreement.infos),
    )
