"""Snapshots with known content, and what writes them."""

import math

import numpy as np
from hypothesis import strategies as st

from numwatch.record import Recorder
from numwatch.snapshot import ROLES, Snapshot, StepScalars
from numwatch.stats import (
    AMAX,
    AMIN,
    BINADES,
    CALLS,
    COUNTS,
    NANS,
    NEGINFS,
    NUMEL,
    POSINFS,
    POW2S,
    REALS,
    SUM,
    SUMSQ,
    ZEROS,
)
from numwatch.step_entries import OptimizerState, Shadow, Update
from numwatch.tensor_rows import Cast, Rows

PARAMETERS = ("blocks.0.fc.weight", "head.bias")
SLOTS = tuple(f"blocks.{i}.fc:{role}" for i in range(3) for role in ROLES)


def record(directory, **changes):
    """Opens a recorder with fixed arguments."""
    given = {"precision": "16-mixed", "device": "cpu", "arguments": {"every_n_steps": 50}}
    return Recorder.open(directory, **{**given, **changes})


def small_rows(step, slots=SLOTS[:2], *, full=True, casts=None):
    """Rows whose every number follows from the step and the slot's place."""
    n = len(slots)
    counts, reals = np.zeros((n, COUNTS), np.int64), np.zeros((n, REALS))
    for i in range(n):
        counts[i, [NUMEL, CALLS]] = step + i + 10, 1
        reals[i] = float(step + 1), math.inf, 0.0, 0.0
        if not full:
            counts[i, [NANS, POSINFS, NEGINFS]] = 3, 2, 1
        else:
            counts[i, 127] = step + i + 8
            counts[i, [ZEROS, POW2S]] = 2, 1
            reals[i] = float(step + 1), 0.5, step / 3, float(step)
    return Rows(tuple(slots), counts, reals, np.ones(n), casts or (None,) * n, full)


def snapshot(step, **options):
    """A step with two small rows."""
    return Snapshot(
        step, StepScalars(epoch=step // 10, batch=step % 10), small_rows(step, **options)
    )


def write_steps(directory, steps, *, each_its_part=False, **changes):
    """Writes one attempt of `snapshot`s; returns its number."""
    with record(directory, **changes) as recorder:
        for step in steps:
            recorder.write(snapshot(step))
            if each_its_part:
                recorder.flush()
        return recorder.attempt


_count = st.integers(0, 2**40)
_positive = st.floats(min_value=5e-324, max_value=1.7e308)
_casts = st.none() | st.builds(
    Cast,
    format=st.sampled_from(["e4m3", "e5m2"]),
    scale=st.just(math.nan) | _positive,
    flushed=_count,
    saturated=_count,
)


@st.composite
def any_rows(draw):
    """Packed rows as a kernel may leave them, full or amax-only."""
    full = draw(st.booleans())
    slots = draw(st.lists(st.sampled_from(SLOTS), min_size=1, max_size=3, unique=True))
    counts, reals = np.zeros((len(slots), COUNTS), np.int64), np.zeros((len(slots), REALS))
    reals[:, AMIN] = math.inf
    for i in range(len(slots)):
        counts[i, [NANS, POSINFS, NEGINFS]] = [draw(_count) for _ in range(3)]
        reals[i, AMAX] = draw(st.just(0.0) | _positive)
        if full:
            binades = draw(st.dictionaries(st.integers(0, BINADES - 1), _count, max_size=6))
            for column, count in binades.items():
                counts[i, column] = count
            counts[i, ZEROS] = draw(_count)
            reals[i, AMIN] = draw(st.just(math.inf) | _positive)
            reals[i, [SUM, SUMSQ]] = draw(st.integers(-(2**50), 2**50)), draw(st.integers(0, 2**50))
        beside = 0 if full else draw(_count)
        counts[i, NUMEL] = counts[i].sum() + beside
        counts[i, CALLS] = draw(st.integers(1, 99))
        counts[i, POW2S] = draw(_count) if full else 0
    scales = np.array([draw(_positive) for _ in slots])
    casts = tuple(draw(_casts) for _ in slots)
    return Rows(tuple(slots), counts, reals, scales, casts, full)


_optional = st.none() | st.floats()
_updates = st.builds(
    Update,
    slot=st.sampled_from([f"{name}:update" for name in PARAMETERS]),
    storage=st.sampled_from(["fp16", "bf16", "e4m3", "e5m2"]),
    numel=_count,
    sampled=_count,
    nonzero=_count,
    ratio=_optional,
    swallowed=_optional,
    stochastic_kept=_optional,
    deferred=_optional,
    edq=_optional,
    edq_normalised=_optional,
    lost=st.booleans(),
    intended=st.sampled_from(["applied", "exact", "estimate"]),
)
_states = st.builds(
    OptimizerState,
    slot=st.sampled_from([f"{name}:exp_avg_sq" for name in PARAMETERS]),
    dtype=st.sampled_from(["float32", "bfloat16", "float16"]),
    sampled=_count,
    eps=_optional,
    eps_stored=_optional,
    decay=_optional,
    decay_stored=_optional,
    below_eps=_optional,
    vanished=_optional,
    rms=_optional,
)
_shadows = st.builds(
    Shadow,
    slot=st.sampled_from([slot for slot in SLOTS if "grad" in slot]),
    sampled=_count,
    zeros=_count,
    run_zeros=_count,
    flushed=_count,
    relative_error=_optional,
    cosine=_optional,
)


def _several(entries):
    return st.lists(entries, max_size=3).map(tuple)


@st.composite
def any_snapshots(draw):
    """Snapshots at rising steps."""
    steps = sorted(draw(st.sets(st.integers(0, 2**40), min_size=1, max_size=4)))
    return [
        Snapshot(
            step,
            StepScalars(
                epoch=draw(st.integers(0, 9)),
                batch=draw(st.integers(0, 9)),
                loss=draw(_optional),
                lr=draw(_optional),
                grad_norm=draw(_optional),
                loss_scale_before=draw(_positive),
                loss_scale_after=draw(_positive),
                found_inf=draw(st.booleans()),
                skipped=draw(st.booleans()),
                skipped_optimizers=draw(_several(st.integers(0, 9))),
                loss_scales=draw(_several(_positive)),
                nonfinite_parameters=draw(st.none() | _several(st.sampled_from(PARAMETERS))),
                step_seconds=draw(_positive),
                numwatch_seconds=draw(_positive),
            ),
            draw(st.none() | any_rows()),
            draw(_several(_updates)),
            draw(_several(_states)),
            draw(_several(_shadows)),
        )
        for step in steps
    ]
