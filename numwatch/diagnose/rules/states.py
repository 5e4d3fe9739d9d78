"""Rules about the state of optimizers: its eps, its dtype, and gradients it did not foresee."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from numwatch.diagnose.confirm import first_confirmed
from numwatch.diagnose.evidence import Doubles, Evidence
from numwatch.diagnose.finding import Figure, Finding
from numwatch.diagnose.parameters import MAX_OTHERS, first_and_others, parameter_order
from numwatch.diagnose.rules.loss import loss_spikes
from numwatch.diagnose.spikes import first_level, level
from numwatch.diagnose.thresholds import (
    BELOW_EPS,
    BELOW_EPS_OVERALL,
    CONVERGED,
    RMS_ALARM,
    RMS_LEAD,
    SURVIVED_STEPS,
    VANISHED_SHARE,
)
from numwatch.snapshot import path_of, role_of

Columns = dict[str, npt.NDArray[Any]]

_BETA2 = 0.95
_WIDER = 'keep the weights, and so the optimizer\'s state, in FP32: `precision="bf16-mixed"`'


def eps_zero(evidence: Evidence) -> Iterator[Finding]:
    """An eps that is 0 in its state's dtype, so that a second moment of 0 divides by 0."""
    held = {}
    for (slot,), columns in evidence.states.items():
        zero = np.flatnonzero(columns["eps_stored"] == 0.0)
        if len(zero):
            held[slot] = int(columns["step"][zero[0]])
    if not held:
        return
    slot, step, columns, at, others = _first(evidence, held)
    eps, dtype = float(columns["eps"][at]), str(columns["dtype"][at])
    survived = _survived(evidence, step)
    yield Finding(
        rule="eps-zero",
        severity="critical" if not survived else "warning" if eps else "info",
        step=step,
        slot=slot,
        order=parameter_order(evidence, slot),
        evidence=(
            Figure("eps in the state's dtype", 0.0, step),
            Figure("eps", eps, step),
            *_known("second moment flushed to 0, share", columns["vanished"], at, step),
        ),
        cause=f"eps={eps:g} is 0 in {dtype}, so where {role_of(slot)} is 0 the update divides by 0"
        if eps
        else f"eps is 0, so where {role_of(slot)} is 0 the update divides by 0",
        cure=f"{_WIDER}; or `Adam(eps=1e-4)`, which FP16 holds" if eps else "`Adam(eps=1e-8)`",
        source="closed form: 1e-8 is below half of FP16's smallest subnormal, 2^-25",
        others=others,
    )


def eps_above_sqrt_v(evidence: Evidence) -> Iterator[Finding]:
    """Second moments whose root is below eps, so that steps shrink with the gradient."""
    held = {}
    for slot, columns in _with(evidence, "below_eps"):
        if (columns["eps_stored"] == 0.0).any():
            continue
        at = first_confirmed(columns["below_eps"] >= BELOW_EPS)
        if at is not None:
            held[slot] = int(columns["step"][at])
    if not held:
        return
    overall = _overall(evidence, "below_eps")
    slot, step, columns, at, others = _first(evidence, held)
    hurts = overall >= BELOW_EPS_OVERALL and not _converged(evidence)
    eps = float(columns["eps"][at])
    yield Finding(
        rule="eps-above-sqrt-v",
        severity="warning" if hurts else "info",
        step=step,
        slot=slot,
        order=parameter_order(evidence, slot),
        evidence=(
            Figure("elements with sqrt(v) below eps, share", columns["below_eps"][at], step),
            Figure("the same over all parameters, share", overall),
            Figure("eps", eps, step),
        ),
        cause=f"eps={eps:g} is above the root of the second moment in "
        f"{columns['below_eps'][at]:.0%} of {path_of(slot)}: its steps shrink with the gradient "
        "instead of being scaled by it",
        cure=f"a smaller eps, `Adam(eps={_smaller(eps)})`, or a larger gradient",
        source="Wortsman et al. 2023 (2309.14322), section 3.4",
        others=others,
    )


def state_never_decays(evidence: Evidence) -> Iterator[Finding]:
    """A decay that the state's dtype rounds to 1."""
    stuck = {}
    for (slot,), columns in evidence.states.items():
        never = np.flatnonzero((columns["decay"] < 1.0) & (columns["decay_stored"] == 1.0))
        if len(never):
            stuck[slot] = int(columns["step"][never[0]])
    if not stuck:
        return
    slot, step, columns, at, others = _first(evidence, stuck)
    decay, dtype = float(columns["decay"][at]), str(columns["dtype"][at])
    yield Finding(
        rule="state-never-decays",
        severity="warning",
        step=step,
        slot=slot,
        order=parameter_order(evidence, slot),
        evidence=(
            Figure("decay in the state's dtype", 1.0, step),
            Figure("decay", decay, step),
        ),
        cause=f"the decay of {role_of(slot)}, {decay:g}, is 1 in {dtype}: it never forgets",
        cure=f"{_WIDER}; or `Adam(betas=(0.9, 0.95))`, which BF16 holds",
        source="closed form; Zamirai et al. 2020 (2010.06192)",
        others=others,
    )


def low_precision_state(evidence: Evidence) -> Iterator[Finding]:
    """Squares of gradients that the state's dtype flushes."""
    flushed = {}
    for (slot,), columns in evidence.states.items():
        narrow = np.isin(columns["dtype"].astype(str), ("float16", "bfloat16"))
        at = first_confirmed(narrow & (columns["vanished"] >= VANISHED_SHARE))
        if at is not None:
            flushed[slot] = int(columns["step"][at])
    if not flushed:
        return
    slot, step, columns, at, others = _first(evidence, flushed)
    share = float(columns["vanished"][at])
    yield Finding(
        rule="low-precision-state",
        severity="warning",
        step=step,
        slot=slot,
        order=parameter_order(evidence, slot),
        evidence=(Figure("second moment flushed to 0, share", share, step),),
        cause=f"{columns['dtype'][at]} flushes the squares of {share:.0%} of the gradients of "
        f"{path_of(slot)}, whose steps then have no scale",
        cure=_WIDER,
        source="closed form: in FP16 g² is 0 for |g| up to 2^-12.5",
        others=others,
    )


def rms_spike(evidence: Evidence) -> Iterator[Finding]:
    """Gradients far above what the second moment remembers, and the loss spike that follows."""
    alarms: dict[int, dict[str, float]] = {}
    for slot, columns in _with(evidence, "rms"):
        for i in np.flatnonzero(columns["rms"] >= RMS_ALARM).tolist():
            if columns["eps_stored"][i] != 0.0:
                step = int(columns["step"][i])
                alarms.setdefault(step, {})[slot] = float(columns["rms"][i])
    if not alarms:
        return
    followed = [
        (step, spike)
        for spike in evidence.once(loss_spikes)
        if spike.confirmed
        for step in [_first_within(alarms, spike.step)]
        if step is not None
    ]
    largest = max(alarms, key=lambda step: max(alarms[step].values()))
    step, spike = followed[0] if followed else (largest, None)
    slots = sorted(alarms[step], key=lambda slot: -alarms[step][slot])
    slot = slots[0]
    rms = alarms[step][slot]
    beta = float(evidence.states[slot,]["decay"][0])
    after = "" if spike is None else f"; the loss spiked {spike.step - step} steps later"
    yield Finding(
        rule="rms-spike",
        severity="info" if spike is None else "warning",
        step=step,
        slot=slot,
        order=parameter_order(evidence, slot),
        evidence=(
            Figure("RMS_t", rms, step),
            *(() if spike is None else (Figure("loss", spike.value, spike.step),)),
            Figure("steps with RMS_t above 2.3", len(alarms)),
        ),
        cause=f"the gradients of {path_of(slot)} were {rms:.1f} times what {role_of(slot)} "
        f"remembered, so its steps were as much too large{after}",
        cure=_lower_beta(beta) + " or clip updates: lr / max(1, RMS_t)",
        source="Wortsman et al. 2023 (2304.13013), section 3.4",
        others=tuple(slots[1 : MAX_OTHERS + 1]),
    )


RULES = (eps_zero, eps_above_sqrt_v, state_never_decays, low_precision_state, rms_spike)


def _first(
    evidence: Evidence, held: Mapping[str, int]
) -> tuple[str, int, Columns, int, tuple[str, ...]]:
    """Returns the slot of which something held first, since when, its columns, there, and others.

    Args:
        evidence: The run.
        held: For each slot the first step, one at least.
    """
    slot, step, others = first_and_others(evidence, held.items())
    columns = evidence.states[slot,]
    return slot, step, columns, int(np.searchsorted(columns["step"], step)), others


def _with(evidence: Evidence, name: str) -> Iterator[tuple[str, Columns]]:
    """Yields the tensors of state of which a figure is known, those steps alone."""
    for (slot,), columns in evidence.states.items():
        known = np.isfinite(columns[name])
        if known.any():
            yield slot, {key: column[known] for key, column in columns.items()}


def _overall(evidence: Evidence, name: str) -> float:
    """Returns a share over all parameters and steps, by their sampled elements."""
    whole = part = 0.0
    for _, columns in _with(evidence, name):
        whole += float(columns["sampled"].sum())
        part += float((columns["sampled"] * columns[name]).sum())
    return part / whole if whole else 0.0


def _known(name: str, values: Doubles, at: int, step: int) -> tuple[Figure, ...]:
    return (Figure(name, float(values[at]), step),) if np.isfinite(values[at]) else ()


def _survived(evidence: Evidence, step: int) -> bool:
    losses = evidence.steps.loss[evidence.steps.step > step]
    return len(losses) >= SURVIVED_STEPS and bool(np.isfinite(losses[-1]))


def _converged(evidence: Evidence) -> bool:
    losses = evidence.steps.loss
    return bool(0.0 <= level(losses) < CONVERGED * first_level(losses))


def _first_within(alarms: dict[int, dict[str, float]], spike: int) -> int | None:
    """Returns the first alarm of those 1 to 8 steps before a spike."""
    return min((step for step in alarms if 1 <= spike - step <= RMS_LEAD), default=None)


def _smaller(eps: float) -> str:
    return "1e-8" if eps > 1e-8 else "1e-15"  # noqa: PLR2004  # Adam's default


def _lower_beta(beta: float) -> str:
    return "lower beta2, `AdamW(betas=(0.9, 0.95))`," if not beta <= _BETA2 else "warm up longer"
