"""The rules, a file for each family."""

from collections.abc import Callable, Iterable

from numwatch.diagnose.evidence import Evidence
from numwatch.diagnose.finding import Finding
from numwatch.diagnose.rules import (
    blocks,
    ended,
    float8,
    forward,
    gradients,
    loss,
    loss_scale,
    nonfinite,
    operations,
    ranks,
    states,
    updates,
)

Rule = Callable[[Evidence], Iterable[Finding]]
"""Looks at what was kept of a run and yields a finding for each cause it sees."""

RULES: tuple[Rule, ...] = (
    *nonfinite.RULES,
    *forward.RULES,
    *loss.RULES,
    *gradients.RULES,
    *float8.RULES,
    *states.RULES,
    *updates.RULES,
    *loss_scale.RULES,
    *blocks.RULES,
    *ranks.RULES,
    *operations.RULES,
    *ended.RULES,
)
