"""The rule about what ended a run."""

from collections.abc import Iterator, Mapping
from typing import Any

from numwatch.diagnose.evidence import Evidence
from numwatch.diagnose.finding import Finding


def ended_by_exception(evidence: Evidence) -> Iterator[Finding]:
    """An exception ended the run; what the numbers had to do with it the other rules tell."""
    for event in evidence.events_of("exception")[-1:]:
        yield Finding(
            rule="ended-by-exception",
            severity="info",
            step=int(event["step"]),
            slot=None,
            evidence=(),
            cause=f"{exception_of(event)} ended the run at step {event['step']}",
            cure=after(evidence, event),
            source="the run itself",
        )


def after(evidence: Evidence, exception: Mapping[str, Any]) -> str:
    """Returns what to do about an exception: its step can be run again where a capsule holds it."""
    kept = [each for each in evidence.events_of("capsule") if "note" not in each]
    if any(each["step"] == exception["step"] for each in kept):
        return "`numwatch reproduce RUN --script my_model.py:make_model` runs that step again"
    return "its traceback names the line"


def exception_of(event: Mapping[str, Any]) -> str:
    """Returns the exception that an event tells of, in one line."""
    return " ".join(str(event.get("text") or "an exception").split())


RULES = (ended_by_exception,)
