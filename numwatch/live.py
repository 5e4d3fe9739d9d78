"""The diagnosis while a run lives: findings so far, and the critical ones once each."""

import time
from collections.abc import Iterator, Sequence

from numwatch.diagnose import Finding, diagnose
from numwatch.record import Run
from numwatch.record.spare_memory import give_back

ROWS = 2_000_000
"""Rows up to which a record is diagnosed beside the run: some 4 s. Policy."""
SHARE = 0.01
"""Share of the run's time that diagnoses at epoch ends may take. Policy."""
ALARMS = 3
"""So many times a run is diagnosed at once; from then on within its share of the time. Policy."""


class LiveDiagnosis:
    """Diagnoses a record as it grows, within its share of the run's time.

    Attributes:
        findings: What the last diagnosis found.
        critical: Whether any diagnosis found something critical of this attempt.
        outgrown: Whether the record has become too large.
    """

    def __init__(self) -> None:
        self.findings: tuple[Finding, ...] = ()
        self.critical = self.outgrown = False
        self._told: set[str] = set()
        self._alarms = ALARMS
        self._started = time.perf_counter()
        self._spent = self._longest = 0.0
        self._last: int | None = None

    def alarm(self) -> bool:
        """Whether steps that went wrong are looked into at once."""
        self._alarms -= 1
        return self._alarms >= 0 or self.affordable()

    def affordable(self) -> bool:
        """Whether one more diagnosis stays within its share of the time since the start."""
        return self._spent + self._longest <= SHARE * (time.perf_counter() - self._started)

    def look(self, run: Run, first: int | None, step: int | None) -> Sequence[Finding]:
        """Diagnoses a run, unless its record is too large to be read beside it.

        Args:
            run: The record, flushed.
            first: First step of this attempt: what went wrong before was told then.
            step: Its last step; nothing is done where that was the last one before, too.

        Returns:
            Critical findings that follow from no critical one and whose rule was not told before.
        """
        if first is None or step is None or step == self._last:
            return ()
        if run.rows("tensors") > ROWS:
            self.findings, self.outgrown = (), True
            return ()
        began = time.perf_counter()
        self.findings = tuple(diagnose(run, first=first))
        give_back()
        took = time.perf_counter() - began
        self._last, self._spent, self._longest = step, self._spent + took, max(took, self._longest)
        found = [each for each in _critical(self.findings) if each.rule not in self._told]
        self._told.update(finding.rule for finding in found)
        self.critical = self.critical or bool(found)
        return found


def _critical(findings: Sequence[Finding]) -> Iterator[Finding]:
    """Yields what is critical, a warning's consequences included, a critical one's left out."""
    for finding in findings:
        if finding.severity == "critical":
            yield finding
        else:
            yield from _critical(finding.consequences)
