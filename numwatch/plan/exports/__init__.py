"""A plan as what trains it wants it: code, flags or JSON, each a text."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from numwatch.errors import NumwatchError, near
from numwatch.plan.exports.json_text import json_text
from numwatch.plan.exports.megatron import megatron_flags
from numwatch.plan.exports.torchao import torchao_code
from numwatch.plan.exports.training import amp_code, lightning_code
from numwatch.plan.exports.transformer_engine import transformer_engine_code
from numwatch.plan.types import Plan

EXPORTS: Mapping[str, Callable[[Plan], str]] = {
    "torchao": torchao_code,
    "transformer-engine": transformer_engine_code,
    "megatron": megatron_flags,
    "amp": amp_code,
    "lightning": lightning_code,
    "json": json_text,
}
"""Every export by its name."""

__all__ = ["EXPORTS", "export"]


def export(plan: Plan, to: str) -> str:
    """Returns a plan in the words of a library.

    Args:
        plan: The plan.
        to: A name in `EXPORTS`.

    Raises:
        NumwatchError: There is no such export, or the library can not train in what is planned.
    """
    if to not in EXPORTS:
        raise NumwatchError(f"plans export to {', '.join(EXPORTS)}; got {to!r}{near(to, EXPORTS)}")
    return EXPORTS[to](plan)
