"""Which of the ways to round a module's operands is taken, and why."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache

from numwatch.plan import ModulePlan, Operand
from numwatch.recipes.spec import recipe_text
from numwatch.recommend.candidates import Choice, Target
from numwatch.recommend.history import History
from numwatch.recommend.outcome import Outcome, outcome_of
from numwatch.recommend.thresholds import DRIFT, Limits

Judged = tuple[Choice, Outcome]
Judge = Callable[..., Outcome | None]


def choose_module(module: str, histories: Mapping[str, History], target: Target) -> ModulePlan:
    """Returns the first level whose operands all stay within the target's limits.

    Where none does, the first whose gradients stay within what is bearable.

    Args:
        module: Path of the module.
        histories: Its operands' histories by role.
        target: What there is to choose from.

    Returns:
        The choice, or the module kept as it is with what speaks against the last level.
    """
    judge = cache(outcome_of)  # levels share choices
    loose = replace(target.limits, flushed_gradient=target.limits.bearable)
    against = ""
    for limits in dict.fromkeys((target.limits, loose)):
        for level in target.levels:
            best = {
                role: _best(histories.get(role), choices, limits, judge)
                for role, choices in level.operands.items()
            }
            fault = _first_fault(best, limits, histories)
            if fault is None:
                operands = {
                    role: _operand(histories[role], one, level.operands[role], judge)
                    for role, one in best.items()
                    if one is not None
                }
                return ModulePlan(module, operands, reason=level.name)
            against = f"{level.name}: {fault}"
    return ModulePlan(module, reason=against)


def fitting(target: Target, sizes: Sequence[int]) -> Target | None:
    """Returns the target with those levels whose multiples all sizes are; None where none is."""
    levels = tuple(
        level for level in target.levels if not any(size % level.multiple for size in sizes)
    )
    return Target(levels, target.limits, target.keep_ends) if levels else None


def _first_fault(
    best: Mapping[str, Judged | None], limits: Limits, histories: Mapping[str, History]
) -> str | None:
    for role, one in best.items():
        unseen = _unseen(histories.get(role))
        fault = unseen if one is None else _fault(one[1], role, limits)
        if fault is not None:
            return f"{role} {fault}"
    return None


def _unseen(history: History | None) -> str:
    """Why nothing can be said of an operand."""
    if history is None or not len(history.steps) + history.nonfinite:
        return "was not recorded"
    if not len(history.rows):
        return "held NaN or infinities, or was not seen in full"
    return "was zero throughout"


def _best(
    history: History | None, choices: Sequence[Choice], limits: Limits, judge: Judge
) -> Judged | None:
    """The alternative within the limits with the least error, else the one that flushes least.

    A gradient's error is its median relative one. By SQNR, which its largest elements decide, E4M3
    wins where it has flushed most of the rest.
    """
    if history is None:
        return None
    judged = [
        (choice, outcome)
        for choice in choices
        if (outcome := judge(history, choice.format, choice.recipe)) is not None
    ]
    if not judged:
        return None
    role = history.info.role
    sound = [one for one in judged if _fault(one[1], role, limits) is None]
    if not sound:
        return min(judged, key=lambda one: one[1].flushed)
    if role == "grad_output":
        return min(sound, key=lambda one: one[1].predicted.median_relative_error)
    return max(sound, key=lambda one: one[1].predicted.sqnr)


def _fault(outcome: Outcome, role: str, limits: Limits) -> str | None:
    """What an operand loses that it may not, in words."""
    gradient = role == "grad_output"
    flushed = limits.flushed_gradient if gradient else limits.flushed_forward
    if outcome.flushed > flushed:
        return f"would flush {_percent(outcome.flushed)} in {outcome.format.name}"
    if outcome.saturated > limits.saturated:
        return f"would saturate {_percent(outcome.saturated)} in {outcome.format.name}"
    if not gradient and outcome.predicted.sqnr < limits.sqnr:
        return f"would have {outcome.predicted.sqnr:.0f} dB in {outcome.format.name}"
    return None


def _operand(history: History, best: Judged, choices: Sequence[Choice], judge: Judge) -> Operand:
    choice, outcome = best
    words = [f"flushes {_percent(outcome.flushed)} at the 95 % point of {_steps(outcome.steps)}"]
    if outcome.worst > outcome.flushed:
        words.append(f"at worst {_percent(outcome.worst)} at step {outcome.worst_step}")
    for other in choices:
        if other != choice:
            rival = judge(history, other.format, other.recipe)
            if rival is not None:
                words.append(_against(rival))
    if outcome.predicted.flushed.high == 1.0:
        words.append("FP16 or the lack of counts hides part of it")
    if abs(history.drift) >= DRIFT:
        words.append(f"amax moved {history.drift:+.0f} bits over the run")
    return Operand(
        choice.format, choice.recipe, choice.rounding, "; ".join(words), outcome.predicted
    )


def _against(rival: Outcome) -> str:
    return (
        f"{rival.format.name} {recipe_text(rival.recipe)} would flush {_percent(rival.flushed)} "
        f"with a median error of {rival.predicted.median_relative_error:.2g}"
    )


def _steps(count: int) -> str:
    return f"{count} step{'' if count == 1 else 's'}"


def _percent(share: float) -> str:
    percent = 100.0 * share
    return "<0.1 %" if 0 < percent < 0.05 else f"{percent:.1f} %"  # noqa: PLR2004  # reads as 0.0
