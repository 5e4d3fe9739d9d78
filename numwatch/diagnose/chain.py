"""One chain of cause and consequence: what came first leads, what follows from it goes below."""

from collections.abc import Iterable

from numwatch.diagnose.finding import SEVERITIES, Finding

PHASES = ("data", "parameter", "forward", "loss", "backward", "optimizer", "loss scale", "run")
"""Of a step, in order; "run" is for what holds of the run as a whole."""

PHASE_OF = {
    **dict.fromkeys(("nan-in-data",), "data"),
    **dict.fromkeys(("nan-in-parameter", "block-gain-collapse"), "parameter"),
    **dict.fromkeys(
        (
            *("sensitive-operation-low", "misaligned-gemm", "non-contiguous-gemm"),
            *("low-precision-accumulation", "nan-in-forward", "forward-overflow"),
            *("activation-growth", "attention-logit-growth", "outlier-channels"),
            *("fp8-saturation", "dead-layer"),
        ),
        "forward",
    ),
    **dict.fromkeys(("nan-in-loss", "loss-spike"), "loss"),
    **dict.fromkeys(
        (
            *("nan-in-backward", "layer-flushed", "gradient-underflow", "fp8-flushing"),
            *("vanishing-gradients", "exploding-gradients", "loss-rises-while-flushing"),
            *("gradient-norm-spike", "gradient-norm-drift"),
            *("reduction-flushes", "reduction-overflows"),
        ),
        "backward",
    ),
    **dict.fromkeys(
        (
            *("eps-zero", "state-never-decays", "low-precision-state", "eps-above-sqrt-v"),
            "rms-spike",
            *("lost-updates", "learning-rate-below-resolution"),
        ),
        "optimizer",
    ),
    **dict.fromkeys(
        (
            *("loss-scale-collapse-overflow", "loss-scale-collapse-nan"),
            *("loss-scale-too-low", "persistent-skips", "ranks-differ"),
        ),
        "loss scale",
    ),
    "ended-by-exception": "run",
}
"""The phase of each rule there is."""

_SPOILED = (
    "nan-in-parameter",
    "nan-in-forward",
    "forward-overflow",
    "nan-in-loss",
    "nan-in-backward",
)
"""What was computed is not finite, for which there may be causes long before."""
_NOT_FINITE = ("nan-in-data", *_SPOILED)
_COLLAPSES = ("loss-scale-collapse-overflow", "loss-scale-collapse-nan")
_FLUSHING = ("layer-flushed", "gradient-underflow", "fp8-flushing")
_GROWING = ("activation-growth", "attention-logit-growth", "outlier-channels")
_SPIKES = ("loss-spike", "gradient-norm-spike", "gradient-norm-drift", "rms-spike")
_STUCK = ("lost-updates", "learning-rate-below-resolution")
_DEPTH = ("vanishing-gradients", "exploding-gradients")
_STATES = ("eps-zero", "low-precision-state", "eps-above-sqrt-v")

LEADS_TO: dict[str, frozenset[str]] = {
    # A value that is not finite spoils everything after it.
    **{
        rule: frozenset(
            (*_NOT_FINITE, *_COLLAPSES, *_FLUSHING, *_SPIKES, *_STUCK, *_DEPTH, *_STATES)
        )
        | {"persistent-skips", "loss-scale-too-low", "dead-layer", "loss-rises-while-flushing"}
        | {"sensitive-operation-low"}
        for rule in _NOT_FINITE
    },
    **{
        rule: frozenset((*_SPOILED, *_FLUSHING, *_COLLAPSES, *_STUCK, *_SPIKES))
        | {"persistent-skips", "loss-scale-too-low", "vanishing-gradients", "eps-above-sqrt-v"}
        for rule in _COLLAPSES
    },
    "persistent-skips": frozenset((*_COLLAPSES, *_FLUSHING, "loss-scale-too-low")),
    "loss-scale-too-low": frozenset((*_FLUSHING, *_STUCK, *_DEPTH, "loss-rises-while-flushing"))
    | {"eps-above-sqrt-v", "low-precision-state"},
    **{
        rule: frozenset((*_FLUSHING, *_STUCK, *_SPIKES, "loss-rises-while-flushing"))
        | {"vanishing-gradients", "loss-scale-too-low", "eps-above-sqrt-v", "low-precision-state"}
        for rule in _FLUSHING
    },
    "loss-rises-while-flushing": frozenset((*_SPOILED, *_SPIKES, "exploding-gradients")),
    "dead-layer": frozenset((*_STUCK, *_FLUSHING, *_DEPTH, "eps-above-sqrt-v")),
    "vanishing-gradients": frozenset((*_FLUSHING, *_STUCK))
    | {"eps-above-sqrt-v", "loss-scale-too-low", "low-precision-state"},
    "exploding-gradients": frozenset((*_SPOILED, *_COLLAPSES, *_SPIKES, *_GROWING))
    | {"persistent-skips", "fp8-saturation", "fp8-flushing"},
    **{
        rule: frozenset((*_SPOILED, *_COLLAPSES, *_SPIKES, *_GROWING))
        | {"exploding-gradients", "persistent-skips", "fp8-saturation", "fp8-flushing"}
        for rule in _GROWING
    },
    **{
        rule: frozenset((*_SPOILED, *_COLLAPSES, *_SPIKES, *_GROWING))
        | {"exploding-gradients", "persistent-skips", "fp8-saturation", "dead-layer"}
        for rule in _SPIKES
    },
    "fp8-saturation": frozenset((*_SPOILED, *_SPIKES, *_GROWING))
    | {"exploding-gradients", "loss-rises-while-flushing"},
    "block-gain-collapse": frozenset(_SPIKES),
    "eps-zero": frozenset((*_SPOILED, *_SPIKES, *_GROWING, *_COLLAPSES))
    | {"low-precision-state", "exploding-gradients", "dead-layer", "fp8-saturation"},
    # A second moment that only grows makes steps smaller: nothing overflows for it.
    "state-never-decays": frozenset(_STUCK),
    "low-precision-state": frozenset((*_SPOILED, *_SPIKES, *_GROWING, *_STUCK)),
    "eps-above-sqrt-v": frozenset(_STUCK),
    "lost-updates": frozenset(("learning-rate-below-resolution",)),
    "learning-rate-below-resolution": frozenset(("lost-updates",)),
    "sensitive-operation-low": frozenset((*_SPOILED, *_COLLAPSES, *_GROWING, "dead-layer")),
}
"""Which rules a rule may lead to: what follows from it goes below it in the chain."""

_RANK = {"layer-flushed": -1, "sensitive-operation-low": 1, "dead-layer": 2}
"""Within a step and phase the whole comes before the part, and what happened before a suspicion."""


def chain(findings: Iterable[Finding]) -> list[Finding]:
    """Returns first causes in order, each with what follows from it.

    A finding goes below the last one before it that may lead to it by `LEADS_TO`, unless that one
    is an info and it is none itself: what is merely worth knowing explains nothing that hurts.

    Args:
        findings: Findings without consequences, in any order.
    """
    ordered = sorted(findings, key=order_key)
    parents = [
        next((j for j in reversed(range(i)) if _explains(ordered[j], finding)), None)
        for i, finding in enumerate(ordered)
    ]
    followers: dict[int | None, list[Finding]] = {}
    # From the last to the first, so that what goes below another has its own below it already.
    for i in reversed(range(len(ordered))):
        below = tuple(reversed(followers.pop(i, [])))
        followers.setdefault(parents[i], []).append(ordered[i].leading_to(below))
    return list(reversed(followers.get(None, [])))


def order_key(finding: Finding) -> tuple[object, ...]:
    """Returns what findings are sorted by: the step, its phase, the data flow; then their text."""
    phase = PHASES.index(PHASE_OF.get(finding.rule, "run"))
    unplaced = finding.order is None
    return (
        finding.step,
        phase,
        _RANK.get(finding.rule, 0),
        (unplaced, 0.0 if finding.order is None else finding.order),
        SEVERITIES.index(finding.severity),
        finding.rule,
        finding.slot or "",
        finding.cause,
        repr(finding),
    )


def _explains(cause: Finding, finding: Finding) -> bool:
    hurts = cause.severity != "info" or finding.severity == "info"
    return hurts and finding.rule in LEADS_TO.get(cause.rule, ())
