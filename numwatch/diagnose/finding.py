"""`Finding`: something wrong with a run, with its evidence, its cause and its cure."""

from dataclasses import dataclass, replace

SEVERITIES = ("critical", "warning", "info")
"""From the worst: training is dead or about to be; it loses something; worth knowing."""


@dataclass(frozen=True)
class Figure:
    """One measured number that speaks for a finding.

    Attributes:
        name: What it is, with its unit: "amax (scaled)", "flushed, share", "loss scale".
        value: The number; NaN and infinities are values like others.
        step: At which step it was seen; None where it is about a stretch of steps or the run.
    """

    name: str
    value: float
    step: int | None = None


@dataclass(frozen=True)
class Finding:
    """Something wrong, first seen at a step and a place.

    Attributes:
        rule: Name of the rule, a word with hyphens: "gradient-underflow".
        severity: One of `SEVERITIES`.
        step: First step at which it holds.
        slot: The slot or parameter it is about; None where it is about the run as a whole.
        order: Where in its step's data flow it stands: the `SlotInfo.order` of the slot, a
            fraction where it lies between two; see `numwatch.diagnose.chain` for what has none.
        evidence: What was measured, the most telling figure first.
        cause: What happened, in one sentence.
        cure: What to do about it, in one sentence that names the argument to change.
        source: Where the rule comes from: a paper, an issue, or "policy".
        others: Other slots of which the same holds, worst first.
        consequences: Findings that follow from this one, in order.
    """

    rule: str
    severity: str
    step: int
    slot: str | None
    evidence: tuple[Figure, ...]
    cause: str
    cure: str
    source: str
    order: float | None = None
    others: tuple[str, ...] = ()
    consequences: tuple["Finding", ...] = ()

    def leading_to(self, consequences: tuple["Finding", ...]) -> "Finding":
        """Returns the same finding with what follows from it."""
        return replace(self, consequences=consequences)
