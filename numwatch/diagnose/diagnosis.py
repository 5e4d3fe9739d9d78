"""The diagnosis of a run: every rule applied to its evidence."""

import os
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from numwatch.diagnose.chain import chain
from numwatch.diagnose.evidence import Evidence
from numwatch.diagnose.finding import SEVERITIES, Finding
from numwatch.diagnose.rules import RULES, Rule
from numwatch.diagnose.rules.ended import after, exception_of
from numwatch.record import Run, open_run


@np.errstate(all="ignore")  # a hostile record's NaN and infinities come out as such
def diagnose(
    run: Run | str | os.PathLike[str],
    progress: Callable[[int], None] | None = None,
    *,
    first: int | None = None,
) -> list[Finding]:
    """Says what went wrong in a run: first causes in order, each with what follows from it.

    Args:
        run: The run, or the path of its record; see `open_run`.
        progress: Called with the number of rows read, with each piece of the `tensors` table.
        first: First step that is looked at, that of a resumed attempt say; None for all.

    Returns:
        The findings: first causes of what is critical, then of warnings, then infos, each in the
        order of the run; empty where nothing is wrong. A rule that
        can't make sense of the record costs only itself and is told as an info, as is a record
        without steps.

    Raises:
        RecordError: There is no record at the path, or none that can be read.
    """
    evidence = Evidence(run if isinstance(run, Run) else open_run(run), progress, first)
    if not len(evidence.steps):
        return [_without_steps(evidence)]
    # What killed the run comes first, what is merely worth knowing last, however early it held.
    return sorted(chain(apply(RULES, evidence)), key=_worst)


def _worst(finding: Finding) -> int:
    """The severity, from the worst, of a finding and all that follows from it."""
    return min([SEVERITIES.index(finding.severity), *map(_worst, finding.consequences)])


def apply(rules: Sequence[Rule], evidence: Evidence) -> list[Finding]:
    """Returns what rules find, without an order; of a rule that fails that it did."""
    findings: list[Finding] = []
    for rule in rules:
        findings += _apply(rule, evidence)
    return findings


def _apply(rule: Rule, evidence: Evidence) -> Iterable[Finding]:
    try:
        return list(rule(evidence))
    except Exception as error:  # noqa: BLE001  # a hostile record: anything, and it costs one rule
        return [_failed(rule, error, int(evidence.steps.step[0]))]


def _without_steps(evidence: Evidence) -> Finding:
    died = next(iter(evidence.events_of("exception")), None)
    ended = f": {exception_of(died)} ended the run in its first one" if died else ""
    return Finding(
        rule="no-steps",
        severity="info",
        step=0,
        slot=None,
        evidence=(),
        cause=f"the record holds no step that can be read, so nothing can be said about the run"
        f"{ended}",
        cure=after(evidence, died)
        if died
        else "diagnose it again when it has taken some steps, or look for damage with "
        "`numwatch report`",
        source="policy",
    )


def _failed(rule: Rule, error: Exception, step: int) -> Finding:
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    return Finding(
        rule="rule-failed",
        severity="info",
        step=step,
        slot=None,
        evidence=(),
        cause=f"the rule {rule.__name__.replace('_', '-')} could not be applied to this record "
        f"({reason})",
        cure="the other findings stand without it; please report it with the run's manifest.json",
        source="policy",
    )
