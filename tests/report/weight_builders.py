"""Steps of an optimizer with known updates, state and shadows."""

import torch
from summary_builders import log_normal, rows, slot

from numwatch.record import Recorder
from numwatch.snapshot import SlotInfo, Snapshot, StepScalars
from numwatch.stats import tensor_stats
from numwatch.step_entries import OptimizerState, Shadow, Update

STORAGES = ("fp16", "bf16", "e4m3", "e5m2")


def update(parameter, storage="bf16", **changes):
    """An update of 100 elements, the half of it swallowed."""
    given = {
        "numel": 100,
        "sampled": 100,
        "nonzero": 100,
        "ratio": 0.01,
        "swallowed": 0.5,
        "stochastic_kept": 0.125,
        "deferred": None,
        "edq": 0.1,
        "edq_normalised": 0.75,
        "lost": False,
        "intended": "applied",
    }
    return Update(slot=f"{parameter}:update", storage=storage, **{**given, **changes})


def state(parameter, key="exp_avg_sq", dtype="float32", sampled=100, **figures):
    return OptimizerState(f"{parameter}:{key}", dtype, sampled, **figures)


def shadow(slot, *, sampled=1000, zeros=200, flushed=100, **changes):
    given = {"relative_error": 0.01, "cosine": 0.9999, **changes}
    return Shadow(slot, sampled, zeros, zeros + flushed, flushed, **given)


def parameter_slot(parameter, role, dtype="float32"):
    fmt = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}[dtype]
    slot_name = f"{parameter}:{role}"
    return SlotInfo(slot_name, parameter, role, "AdamW", (64, 64), dtype, fmt)


def record(directory, snapshots, infos=(), events=(), precision="bf16-mixed"):
    with Recorder.open(directory, precision=precision, device="cpu", arguments={}) as recorder:
        recorder.describe(list(infos))
        for snapshot in snapshots:
            recorder.write(snapshot)
        for kind, step, details in events:
            recorder.event(kind, step, **details)


def bf16_true_run(directory):
    """Two steps of bf16-true: nearly all updates lost, a decay that is 1, and a spike of RMS_t."""
    module = slot("fc", "input", dtype="bfloat16", fmt="bf16")
    moments = parameter_slot("fc.weight", "exp_avg_sq", "bfloat16")
    infos = [module, moments, parameter_slot("fc.weight", "update")]
    entries = [
        (module, log_normal(0, 1.0), None),
        (moments, log_normal(1, 2.0**-40), None),
        (infos[2], log_normal(2, 2.0**-20), None),
    ]
    lost = {"storage": "bf16", "lost": True, "intended": "exact"}
    decay = {"decay": 0.999, "decay_stored": 1.0, "eps": 1e-8, "eps_stored": 1.0011717677116394e-08}
    snapshots = []
    for step in range(2):
        updates = (
            update("fc.weight", **lost, nonzero=300, swallowed=0.98, edq_normalised=0.02),
            update("ln.weight", **lost, swallowed=0.99, edq_normalised=0.06, sampled=50),
            *(
                update(name, other, swallowed=0.25, intended="exact")
                for other in ("fp16", "e4m3", "e5m2")
                for name in ("fc.weight", "ln.weight")
            ),
        )
        states = (
            state("fc.weight", "exp_avg", "bfloat16", decay=0.9, decay_stored=0.8984375),
            state("fc.weight", dtype="bfloat16", **decay, rms=1.0 + 4.0 * step, below_eps=0.004),
        )
        snapshots.append(Snapshot(step, StepScalars(), rows(entries), updates, states))
    record(directory, snapshots, infos, [("memory", 0, {"bytes": 12_400_000})], "bf16-true")


def fp16_true_run(directory):
    """The first step of 16-true with Adam: eps is 0, g^2 is flushed, then weights are -inf."""
    moments = parameter_slot("fc.weight", "exp_avg_sq", "float16")
    updates_slot = parameter_slot("fc.weight", "update")
    flushed = tensor_stats(torch.tensor([0.0] * 400 + [6e-8] * 300 + [1.2e-7] * 200 + [1e-6] * 100))
    broken = tensor_stats(torch.tensor([-torch.inf] * 40 + [-1e-3] * 60))
    entries = [(moments, flushed, None), (updates_slot, broken, None)]
    module = slot("fc", "output")
    entries.append((module, log_normal(0, 1.0), None))
    update_of = update("fc.weight", "fp16", lost=True, intended="exact", swallowed=0.1)
    eps = {"eps": 1e-8, "eps_stored": 0.0}
    states = (
        state("fc.weight", dtype="float16", **eps, vanished=0.4, below_eps=0.0),
        state("fc.bias", dtype="float16", **eps, vanished=0.1, sampled=200),
    )
    snapshot = Snapshot(0, StepScalars(), rows(entries), (update_of,), states)
    record(directory, [snapshot], [module, moments, updates_slot], precision="16-true")


def shadowed_run(directory):
    """A step of bf16-mixed whose updates were not lost, with a shadow step, in FP16 gradients."""
    infos = [slot(name, "grad_output", order=i) for i, name in enumerate(("seen", "unseen"))]
    infos.append(slot("fp32", "grad_weight", dtype="float32", fmt="fp32", order=2))
    half = log_normal(8, 2.0**-24, 3.0, dtype=torch.float16)
    entries = [(info, half, None) for info in infos[:2]]
    entries.append((infos[2], log_normal(3, 1.0), None))
    updates = tuple(
        update(name, storage, swallowed=share, deferred=deferred)
        for name in ("a", "b")
        for storage, share, deferred in (("bf16", 0.12, 0.1), ("fp16", 0.003, 0.002))
    )
    shadows = (shadow("seen:grad_output"), shadow("fp32:grad_weight", flushed=0))
    snapshot = Snapshot(0, StepScalars(), rows(entries, 8.0), updates, (), shadows)
    record(directory, [snapshot], infos, precision="16-mixed")


def scaled_run(directory):
    """Four steps of 16-mixed: above the window at 2^20, inside it, below it at 2^2, then lost."""
    info = slot("fc", "grad_weight", dtype="float32", fmt="fp32")
    exact = torch.tensor([2.0**-26] * 2 + [2.0**-10] * 996 + [1.0, 2.0])
    snapshots = []
    for step, exponent in enumerate((20, 8, 8, 2)):
        scale = 2.0**exponent
        after = 2.0 ** (8, 8, 2, 1)[step]
        skipped = step in (0, 3)
        scalars = StepScalars(
            loss_scale_before=scale,
            loss_scale_after=after,
            found_inf=skipped,
            skipped=skipped,
            nonfinite_parameters=("embed.weight", "fc.weight", "loose") if skipped else None,
        )
        entries = [(info, tensor_stats(exact * scale), None)]
        full = None if skipped else rows(entries, scale)
        snapshots.append(Snapshot(step, scalars, full))
    collapse = {"scale": 2.0, "skipped_in_a_row": 12, "zero_at_step": 153}
    events = [
        ("collapse", 3, collapse),
        ("memory", 0, {"bytes": 900_000}),
        ("memory", 3, {"bytes": 12_400_000}),
    ]
    record(directory, snapshots, [info], events, "16-mixed")
