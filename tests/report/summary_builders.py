"""Runs with known content, written by the real `Recorder`."""

import math

import numpy as np
import torch

from numwatch.record import Recorder
from numwatch.snapshot import SlotInfo, Snapshot, StepScalars
from numwatch.stats import TensorStats, pack_row, tensor_stats
from numwatch.tensor_rows import Cast, Rows

LOSS_SCALES = (2.0**16, 2.0**15, 2.0**14, 2.0**13)


def log_normal(seed, median, sigma=2.0, n=4096, dtype=torch.float32):
    """Stats of magnitudes 2^z with z ~ N(log2(median), sigma), signs alternating."""
    z = torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x = torch.exp2(math.log2(median) + sigma * z) * torch.tensor([1, -1]).repeat(n // 2)
    return tensor_stats(x.to(dtype))


def rows(entries, loss_scale=1.0, *, full=True):
    """`Rows` of (SlotInfo, TensorStats, Cast | None) entries."""
    counts, reals = zip(*[pack_row(stats) for _, stats, _ in entries], strict=True)
    return Rows(
        slots=tuple(info.slot for info, _, _ in entries),
        counts=np.stack(counts),
        reals=np.stack(reals),
        loss_scales=np.array([loss_scale if info.scaled else 1.0 for info, _, _ in entries]),
        casts=tuple(cast for _, _, cast in entries),
        full=full,
    )


def slot(module, role, dtype="float16", fmt="fp16", order=0, module_class="Linear"):
    return SlotInfo(f"{module}:{role}", module, role, module_class, (64, 64), dtype, fmt, order)


def fp16_run(directory):
    """Eight steps in 16-mixed: three backoffs, one overflow, one slot that underflows."""
    overflowing = slot("blocks.3.out", "grad_output", order=5)
    underflowing = slot("head", "grad_output", order=6)
    infos = [
        slot("blocks.0.attn.qkv", "input", dtype="float32", order=0),
        slot("blocks.0.attn.qkv", "weight", dtype="float32", order=0),
        slot("blocks.0.attn.qkv", "output", order=0),
        slot("blocks.0.ln", "output", dtype="float32", fmt="fp32", order=1),
        slot("embed", "output", dtype="float32", fmt="fp32", order=0),
        overflowing,
        underflowing,
    ]
    with Recorder.open(
        directory, precision="16-mixed", device="cuda:0", arguments={}, versions={"torch": "2.6"}
    ) as recorder:
        recorder.describe(infos)
        for step in range(8):
            before = LOSS_SCALES[min(step // 2, 3)]
            skipped = step in (1, 3, 5)
            entries = [(info, log_normal(i, 2.0**-4), None) for i, info in enumerate(infos[:5])]
            big = log_normal(7, 2.0**8, 1.9, dtype=torch.float16)
            if step == 5:
                big = big.merge(tensor_stats(torch.tensor([math.inf, -math.inf])))
            entries.append((overflowing, big, None))
            entries.append((underflowing, log_normal(8, 2.0**-25, 3.0, dtype=torch.float16), None))
            scalars = StepScalars(
                epoch=step // 4,
                batch=step % 4,
                loss=3.5 - 0.25 * step,
                loss_scale_before=before,
                loss_scale_after=before / 2 if skipped else before,
                found_inf=skipped,
                skipped=skipped,
                step_seconds=0.1008,
                numwatch_seconds=0.0008,
            )
            recorder.write(Snapshot(step, scalars, rows(entries, before)))


def fp8_run(directory):
    """Two steps of bf16-mixed with float8 layers; nothing is scaled by a loss scale."""
    infos = [
        slot("blocks.0.fc", "input", dtype="bfloat16", fmt="e4m3"),
        slot("blocks.0.fc", "grad_output", dtype="bfloat16", fmt="e5m2"),
        slot("head", "output", dtype="bfloat16", fmt="bf16", order=1),
    ]
    casts = [Cast("e4m3", 448.0, 100, 0), Cast("e5m2", math.nan, 1, 40), None]
    with Recorder.open(directory, precision="bf16-mixed", device="cpu", arguments={}) as recorder:
        recorder.describe(infos)
        for step in range(2):
            entries = [
                (info, log_normal(i, 0.01, dtype=torch.bfloat16), cast)
                for i, (info, cast) in enumerate(zip(infos, casts, strict=True))
            ]
            recorder.write(Snapshot(step, StepScalars(loss=2.0), rows(entries)))


def amax_only(amax, numel=64):
    """Stats as an amax-only row holds them."""
    empty = TensorStats.empty()
    return TensorStats(**{**vars(empty), "amax": amax, "numel": numel})
