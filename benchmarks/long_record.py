"""The record of a long run, written without the training.

A run in 16-mixed that is healthy but for one layer, with every slot at every step, some of them
whole (by default numwatch records a tenth of this), in parts as large as `Recorder`'s. What reads
it is measured by `analysis.py` and `replay.py`.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from rich.progress import track

from numwatch.record import Recorder
from numwatch.record.parts import write_part
from numwatch.record.schema import TABLES
from numwatch.snapshot import GRADIENT_ROLES, ROLES, SlotInfo

PART_ROWS = 16_384
NUMEL = 1 << 20
LOSS_SCALE = 2.0**16
STORAGES = ("fp16", "bf16", "e4m3", "e5m2")
_MOMENTS = ("exp_avg", "exp_avg_sq")


def slots_of(count: int) -> list[SlotInfo]:
    """Returns so many slots: of Linears in FP16 in all roles, and their weights' updates and state.

    A layer takes nine: six roles, `update`, `exp_avg` and `exp_avg_sq`.
    """
    infos = []
    for order in range(-(-count // 9)):
        layer, weight = f"blocks.{order}.fc", f"blocks.{order}.fc.weight"
        for role in ROLES:
            dtype, fmt = "float16", "fp16"
            infos.append(info(layer, role, "Linear", dtype, fmt, order))
        infos += [
            info(weight, role, "AdamW", "float32", "fp32", None) for role in ("update", *_MOMENTS)
        ]
    return infos[:count]


def tables(
    infos: list[SlotInfo], steps: range, full_every: int, generator: np.random.Generator
) -> Iterator[tuple[str, pa.Table]]:
    """Yields what the steps' parts hold, by table."""
    yield "steps", steps_table(steps, generator)
    yield "tensors", tensors_table(infos, steps, full_every, generator)
    full = [step for step in steps if step % full_every == 0]
    updates = [info.slot for info in infos if info.role == "update"]
    moments = [info.slot for info in infos if info.role in _MOMENTS]
    if full and updates:
        yield "updates", updates_table(updates, full, generator)
    if full and moments:
        yield "states", states_table(moments, full, generator)


def steps_table(steps: range, generator: np.random.Generator) -> pa.Table:
    """Returns a loss that falls, and a scale that doubles and falls back every 2000 steps."""
    n = len(steps)
    step = np.arange(steps.start, steps.stop)
    skipped = step % 2000 == 1999
    return _table(
        "steps",
        n,
        step=step,
        loss=2.0 + 3.0 * np.exp(-step / 2000) + 0.05 * generator.normal(size=n),
        lr=np.full(n, 1e-3),
        grad_norm=np.where(skipped, np.inf, np.exp2(0.2 * generator.normal(size=n))),
        loss_scale_before=np.full(n, LOSS_SCALE),
        loss_scale_after=np.full(n, LOSS_SCALE),
        found_inf=skipped,
        skipped=skipped,
    )


def tensors_table(
    infos: list[SlotInfo], steps: range, full_every: int, generator: np.random.Generator
) -> pa.Table:
    """Returns lognormal tensors of every slot at every step, histograms at full ones."""
    m, n = len(infos), len(infos) * len(steps)
    step = np.repeat(np.arange(steps.start, steps.stop), m)
    full = step % full_every == 0
    gradient = np.array([info.role in GRADIENT_ROLES for info in infos])
    ill = np.array([info.module == "blocks.2.fc" for info in infos]) & gradient
    center = np.where(ill, -23, np.where(gradient, -8, -2))
    place = np.tile(np.arange(m), len(steps))
    shape = np.exp2(-(((np.arange(30) - 15) / 4.0) ** 2))
    counts = (shape / shape.sum() * 0.9 * NUMEL).astype(np.int64)
    first = center[place] - 15
    # FP16 gradients have nothing below 2^-24; what was there is zero.
    gone = np.clip(-24 - first, 0, 30) * gradient[place]
    lengths = np.where(full, 30 - gone, 0)
    kept = (np.arange(30)[None] >= gone[full][:, None]).ravel()
    values = np.tile(counts, int(full.sum()))
    values = (values + generator.integers(0, 256, len(values)))[kept]
    sums = np.concatenate([[0], np.cumsum(values)])
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    binades = pa.ListArray.from_arrays(pa.array(offsets), pa.array(values), mask=pa.array(~full))
    rms = np.exp2(center[place] + 0.1 * generator.normal(size=n))
    zeros = NUMEL - (sums[offsets[1:]] - sums[offsets[:-1]])
    return _table(
        "tensors",
        n,
        step=step,
        slot=pa.array([info.slot for info in infos] * len(steps)),
        calls=np.ones(n, np.int64),
        numel=np.full(n, NUMEL),
        zeros=_where(full, zeros),
        pow2s=_where(full, np.where(gone > 0, np.append(values, 0)[offsets[:-1]], 0)),
        amax=np.exp2(first + 29.0) * generator.uniform(1.1, 1.9, n),
        amin=_where(full, np.where(gone > 0, 2.0**-24, 1.25 * np.exp2(first))),
        sum=_where(full, 0.01 * rms * NUMEL),
        sumsq=_where(full, rms * rms * NUMEL),
        loss_scale=np.where(gradient[place], LOSS_SCALE, 1.0),
        binade_first=_where(full, (first + gone).astype(np.int16)),
        binades=binades,
    )


def updates_table(slots: list[str], full: list[int], generator: np.random.Generator) -> pa.Table:
    """Returns updates of FP32 weights, judged for each storage."""
    n = len(slots) * len(full) * len(STORAGES)
    each = len(slots) * len(STORAGES)
    swallowed = generator.uniform(0.1, 0.6, n)
    return _table(
        "updates",
        n,
        step=np.repeat(full, each),
        slot=pa.array([slot for slot in slots for _ in STORAGES] * len(full)),
        storage=pa.array(list(STORAGES) * (len(slots) * len(full))),
        sampled=np.full(n, 1 << 13),
        nonzero=np.full(n, 1 << 13),
        numel=np.full(n, NUMEL),
        ratio=np.full(n, 1e-3),
        swallowed=swallowed,
        deferred=swallowed,
        edq=np.ones(n),
        edq_normalised=np.ones(n),
        lost=np.zeros(n, np.bool_),
        intended=pa.array(["applied"] * n),
    )


def states_table(slots: list[str], full: list[int], generator: np.random.Generator) -> pa.Table:
    """Returns Adam's state in FP32, healthy."""
    n = len(slots) * len(full)
    second = np.tile([slot.endswith("exp_avg_sq") for slot in slots], len(full))
    return _table(
        "states",
        n,
        step=np.repeat(full, len(slots)),
        slot=pa.array(slots * len(full)),
        dtype=pa.array(["float32"] * n),
        sampled=np.full(n, 1 << 13),
        eps=_where(second, np.full(n, 1e-8)),
        eps_stored=_where(second, np.full(n, 1e-8)),
        decay=np.where(second, 0.999, 0.9),
        decay_stored=np.where(second, 0.999, 0.9),
        below_eps=_where(second, np.zeros(n)),
        vanished=_where(second, np.zeros(n)),
        rms=_where(second, np.abs(1 + 0.1 * generator.normal(size=n))),
    )


def write(directory: Path, infos: list[SlotInfo], steps: int, full_every: int) -> int:
    """Writes the record of these slots; returns the rows of its `tensors` table."""
    generator = np.random.default_rng(0)
    with Recorder.open(directory, precision="16-mixed", device="cpu", arguments={}) as recorder:
        recorder.describe(infos)
    height = max(PART_ROWS // len(infos), 1)
    for number, start in enumerate(track(range(0, steps, height), "writing")):
        some = range(start, min(start + height, steps))
        for name, table in tables(infos, some, full_every, generator):
            write_part(directory, name, 0, number, table)
    return steps * len(infos)


def arguments(description: str, results: Path) -> argparse.Namespace:
    """Returns the arguments of a benchmark of such a record."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--slots", type=int, default=1_000)
    parser.add_argument("--full-every", type=int, default=5, help="1: every row whole")
    parser.add_argument("--keep", type=Path, help="where the record stays; default: nowhere")
    parser.add_argument("--out", type=Path, default=results)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def info(module: str, role: str, owner: str, dtype: str, fmt: str, order: int | None) -> SlotInfo:
    """Returns what a manifest says of a slot."""
    return SlotInfo(f"{module}:{role}", module, role, owner, (1024, 1024), dtype, fmt, order)


def _table(name: str, n: int, **columns: object) -> pa.Table:
    """Returns a table in its schema; columns not given are zeros, or null where they may be."""
    arrays = []
    for field in TABLES[name]:
        given = columns.get(field.name)
        if given is None and field.nullable:
            arrays.append(pa.nulls(n, field.type))
        elif given is None:
            arrays.append(pa.array(np.zeros(n, field.type.to_pandas_dtype()), field.type))
        elif isinstance(given, pa.Array):
            arrays.append(given)
        else:
            arrays.append(pa.array(given, field.type))
    return pa.Table.from_arrays(arrays, schema=TABLES[name])


def _where(known: np.ndarray, values: np.ndarray) -> pa.Array:
    return pa.array(values, mask=~known)
