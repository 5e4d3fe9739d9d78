"""Rules about several ranks that train together."""

from collections.abc import Iterator

import numpy as np

from numwatch.diagnose.confirm import first_confirmed
from numwatch.diagnose.evidence import Evidence, Series
from numwatch.diagnose.finding import Figure, Finding
from numwatch.diagnose.thresholds import CONFIRMATIONS, FLUSHED_SHARE, MIN_ELEMENTS
from numwatch.snapshot import REDUCED_ROLE, path_of

_CURE = (
    "reduce gradients in FP32: `MixedPrecisionPolicy(reduce_dtype=torch.float32)` of FSDP2, "
    "`MixedPrecision(reduce_dtype=torch.float32)` of FSDP1, no `fp16_compress_hook` of DDP; or in "
    "BF16, which keeps the range"
)
_MICIKEVICIUS = "Micikevicius et al. 2017, section 3.2: 5 % flushed cost accuracy"


def ranks_differ(evidence: Evidence) -> Iterator[Finding]:
    """Ranks skip different steps or scale by different factors, so their weights part."""
    found = evidence.events_of("differing")
    if not found:
        return
    first = found[0]
    names = [str(name) for name in first.get("scalars") or ()]
    yield Finding(
        rule="ranks-differ",
        severity="critical",
        step=int(first["step"]),
        slot=None,
        evidence=(Figure("steps in which ranks differ", float(len(found))),),
        cause=f"the ranks do not agree on {' and '.join(names)} from step {first['step']} on, so "
        "copies of the same weights are stepped differently",
        cure="let one scaler know of all ranks' gradients: call its `unscale_` and `step` after "
        "they are reduced; for shards use `torch.distributed.fsdp.sharded_grad_scaler."
        "ShardedGradScaler`",
        source="policy",
    )


def reduction_flushes(evidence: Evidence) -> Iterator[Finding]:
    """Averaging over ranks in a narrow format turns gradients to zero that were none before."""
    found: list[tuple[int, str, float]] = []
    for slot, *series in _reduced(evidence):
        before, after = (each.fully for each in series)
        _, own, others = np.intersect1d(before.step, after.step, return_indices=True)
        gone = after.zeros[others] - before.zeros[own]
        at = first_confirmed(gone >= FLUSHED_SHARE)
        if at is not None and before.numel[own[at]] >= MIN_ELEMENTS:
            found.append((int(after.step[others[at]]), slot, float(gone[at])))
    yield from _found(
        found,
        rule="reduction-flushes",
        severity="warning",
        figure="zeros that the reduction made, share",
        cause="averaging over ranks turns {value:.0%} of the gradient of {parameter} to zero",
        source=_MICIKEVICIUS,
    )


def reduction_overflows(evidence: Evidence) -> Iterator[Finding]:
    """Gradients that are finite on every rank overflow where they are added up."""
    found: list[tuple[int, str, float]] = []
    for slot, before, after in _reduced(evidence):
        _, own, others = np.intersect1d(before.step, after.step, return_indices=True)
        broken = (after.nonfinite[others] > 0) & (before.nonfinite[own] == 0)
        if broken.sum() >= CONFIRMATIONS:
            at = int(np.flatnonzero(broken)[0])
            found.append((int(after.step[others[at]]), slot, float(before.amax[own[at]])))
    yield from _found(
        found,
        rule="reduction-overflows",
        severity="critical",
        figure="amax before the reduction (scaled)",
        cause="the gradient of {parameter} is finite on every rank, and not once they are added up",
        source="PyTorch, `torch.distributed.fsdp`: `reduce_dtype`",
    )


def _found(
    found: list[tuple[int, str, float]],
    *,
    rule: str,
    severity: str,
    figure: str,
    cause: str,
    source: str,
) -> Iterator[Finding]:
    """Yields the first of what was found of reductions: step, slot and figure of each."""
    if not found:
        return
    step, slot, value = min(found)
    yield Finding(
        rule=rule,
        severity=severity,
        step=step,
        slot=slot,
        evidence=(Figure(figure, value, step),),
        cause=cause.format(value=value, parameter=path_of(slot)),
        cure=_CURE,
        source=source,
        others=tuple(other for _, other, _ in sorted(found) if other != slot),
    )


def _reduced(evidence: Evidence) -> Iterator[tuple[str, Series, Series]]:
    """Yields each weight's reduced slot, with the gradient before the reduction and after it."""
    for slot, _, after in evidence.by_role(REDUCED_ROLE):
        module = path_of(slot).rpartition(".")[0]
        before = evidence.series(f"{module}:grad_weight")
        if path_of(slot).endswith(".weight") and len(before):
            yield slot, before, after


RULES = (ranks_differ, reduction_flushes, reduction_overflows)
