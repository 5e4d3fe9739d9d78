"""Records of steps with known scalars, updates, state and tensors."""

import numpy as np
import torch

import numwatch
from numwatch.diagnose.evidence import Evidence
from numwatch.record import Recorder
from numwatch.snapshot import SlotInfo, Snapshot, StepScalars
from numwatch.stats import pack_row, tensor_stats
from numwatch.step_entries import OptimizerState, Update
from numwatch.tensor_rows import Cast, Rows


def evidence(directory, snapshots, infos=(), precision="bf16-mixed"):
    """Writes a record with the real `Recorder` and reads it as rules do."""
    with Recorder.open(directory, precision=precision, device="cpu", arguments={}) as recorder:
        recorder.describe(list(infos))
        for snapshot in snapshots:
            recorder.write(snapshot)
    return Evidence(numwatch.open_run(directory))


def found(rule, seen):
    return list(rule(seen))


def course(losses, norms=None, lr=None):
    """A step for each loss, nothing else recorded; None or NaN is what was not measured."""
    return [
        Snapshot(
            step,
            StepScalars(
                loss=loss,
                grad_norm=None if norms is None else norms[step],
                lr=None if lr is None else lr[step],
            ),
        )
        for step, loss in enumerate(losses)
    ]


def update(parameter, swallowed, edq, *, storage="bf16", lost=True, nonzero=100, numel=100):
    return Update(
        slot=f"{parameter}:update",
        storage=storage,
        numel=numel,
        sampled=100,
        nonzero=nonzero,
        ratio=1e-3,
        swallowed=swallowed,
        stochastic_kept=0.0,
        deferred=None,
        edq=1.0,
        edq_normalised=edq,
        lost=lost,
        intended="exact",
    )


def moment(parameter, dtype="float32", key="exp_avg_sq", **figures):
    given = {"eps": 1e-8, "eps_stored": 1e-8, "decay": 0.999, "decay_stored": 0.999}
    return OptimizerState(f"{parameter}:{key}", dtype, 100, **{**given, **figures})


def slot(module, role, order=None, dtype="float32", fmt="fp32", shape=(64, 64), cls="Linear"):
    return SlotInfo(f"{module}:{role}", module, role, cls, shape, dtype, fmt, order)


def tensor_rows(entries):
    """Full rows of (SlotInfo, tensor, Cast | None) entries."""
    packed = [pack_row(tensor_stats(tensor)) for _, tensor, _ in entries]
    return Rows(
        slots=tuple(info.slot for info, _, _ in entries),
        counts=np.stack([counts for counts, _ in packed]),
        reals=np.stack([reals for _, reals in packed]),
        loss_scales=np.ones(len(entries)),
        casts=tuple(cast for _, _, cast in entries),
        full=True,
    )


def noise(n, seed=0, sigma=1.0):
    generator = torch.Generator().manual_seed(seed)
    return sigma * torch.randn(n, generator=generator, dtype=torch.float64)


def cast_of(flushed=0, saturated=0, scale=1.0):
    return Cast("e4m3", scale, flushed, saturated)
