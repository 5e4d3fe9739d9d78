"""Findings as lines of a summary, and in full as `numwatch diagnose` prints them."""

import math
import textwrap
from collections.abc import Iterator, Sequence

from rich.text import Text

from numwatch.diagnose.finding import SEVERITIES, Figure, Finding
from numwatch.report.labels import labelled_all
from numwatch.report.text import several

STYLES = {"critical": "bold red", "warning": "bold yellow", "info": "cyan"}
NOTHING_FOUND = "nothing wrong was found"
_IN_SUMMARY = 3
_NAMED = 3
_INDENT = 10
_MARGIN = 4


def summary_findings(findings: Sequence[Finding]) -> list[Text]:
    """Returns a line for each of the first causes that hurt, with its cure; none for the rest."""
    hurting = [finding for finding in findings if finding.severity != "info"]
    lines = [finding_line(finding) for finding in hurting[:_IN_SUMMARY]]
    more = len(hurting) - _IN_SUMMARY
    if more > 0:
        lines.append(Text(f"and {several(more, 'more finding')}: numwatch diagnose tells them"))
    return labelled_all("diagnosis", lines)


def finding_line(finding: Finding) -> Text:
    """Returns one line: how bad it is, since when, what and where, what to do."""
    text = Text().append(finding.severity, style=STYLES[finding.severity])
    return text.append(f" from step {finding.step}: {finding.cause}; {finding.cure}")


def diagnosis_lines(findings: Sequence[Finding], width: int) -> list[Text]:
    """Returns every finding with its evidence and cure, what follows from it indented below."""
    if not findings:
        return [Text(NOTHING_FOUND)]
    lines: list[Text] = []
    for finding in findings:
        lines += [Text(), *_whole(finding, width)]
    return [*lines[1:], Text(), _counts(findings)]


def _whole(finding: Finding, width: int) -> Iterator[Text]:
    yield from _head(finding, width, "")
    if finding.evidence:
        yield from _told("evidence", " · ".join(map(_figure, finding.evidence)), width)
    if finding.others:
        more = len(finding.others) - _NAMED
        named = ", ".join(finding.others[:_NAMED])
        yield from _told("also", named + (f" and {more} more" if more > 0 else ""), width)
    yield from _told("cure", finding.cure, width)
    yield from _told("source", finding.source, width)
    for follower in flattened(finding.consequences):
        yield from _head(follower, width, "then".ljust(_INDENT))


def _head(finding: Finding, width: int, before: str) -> Iterator[Text]:
    title = Text().append(before, style="dim")
    title.append(finding.severity.ljust(_INDENT), style=STYLES[finding.severity])
    title.append(f"step {finding.step}", style="bold").append(f"  {finding.rule}")
    yield title.append(f"  {finding.slot}" if finding.slot else "", style="bold")
    yield from _told("", finding.cause, width)


def _told(label: str, text: str, width: int) -> Iterator[Text]:
    pieces = textwrap.wrap(
        text,
        max(width - _INDENT - _MARGIN, _INDENT),
        break_long_words=False,
        break_on_hyphens=False,
    )
    for i, piece in enumerate(pieces):
        yield Text().append(("" if i else label).ljust(_INDENT), style="dim").append(piece)


def _figure(figure: Figure) -> str:
    value = figure.value
    whole = math.isfinite(value) and value == int(value) and abs(value) < 1e6  # noqa: PLR2004  # as %g
    text = f"{figure.name} {int(value) if whole else format(value, '.3g')}"
    return text if figure.step is None else f"{text} at step {figure.step}"


def _counts(findings: Sequence[Finding]) -> Text:
    every = list(flattened(findings))
    text = Text(f"{several(len(findings), 'cause')}, {several(len(every), 'finding')}: ")
    counts = [(severity, sum(f.severity == severity for f in every)) for severity in SEVERITIES]
    for i, (severity, count) in enumerate(pair for pair in counts if pair[1]):
        text.append(" · " if i else "", style="dim").append(
            f"{count} {severity}", style=STYLES[severity]
        )
    return text


def flattened(findings: Sequence[Finding]) -> Iterator[Finding]:
    """Yields findings and all that follows from them, each cause before its consequences."""
    for finding in findings:
        yield finding
        yield from flattened(finding.consequences)
