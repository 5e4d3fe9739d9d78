"""What a person is told while a run lives: alarms as they come, summaries out of the record."""

import logging
import math
from dataclasses import asdict

from rich.console import Console
from rich.text import Text

from numwatch.live import LiveDiagnosis
from numwatch.recipes import CollapseAlarm
from numwatch.record import Recorder, open_run
from numwatch.report import print_summary, summarize
from numwatch.report.finding_lines import finding_line
from numwatch.report.terminal import print_line
from numwatch.report.trajectory_lines import collapse_line
from numwatch.snapshot import Snapshot

_LOG = logging.getLogger("numwatch")


class Telling:
    """Tells of one attempt, in the terminal or, without one, in the log `numwatch`."""

    def __init__(self, recorder: Recorder, console: Console | None) -> None:
        self._recorder, self._console = recorder, console
        self._live = LiveDiagnosis()
        self._collapse_alarm = CollapseAlarm()
        self._alarmed = self._told_outgrown = False
        self._first_step: int | None = None
        self._last_step: int | None = None

    @property
    def critical(self) -> bool:
        """Whether something critical was found."""
        return self._live.critical

    def see(self, snapshot: Snapshot) -> None:
        """Takes a step's numbers, which may call for a diagnosis at once."""
        if self._first_step is None:
            self._first_step = snapshot.step
        self._last_step = snapshot.step
        self._alarmed = self._alarmed or _is_alarming(snapshot)
        scalars = snapshot.scalars
        collapse = self._collapse_alarm.see(
            snapshot.step, scalars.loss_scale_before, scalars.loss_scale_after, scalars.skipped
        )
        if collapse is not None:
            self._alarmed = True
            self._recorder.event("collapse", **asdict(collapse))
            if self._console is not None:
                print_line(collapse_line(collapse), self._console)

    def end_step(self) -> None:
        """Diagnoses the run where a step has called for it."""
        if self._alarmed and self._live.alarm():
            self._recorder.flush()
            self._look()

    def end_epoch(self, epoch: int) -> None:
        """Diagnoses the flushed record where that takes little time, and prints the epoch."""
        if self._live.affordable():
            self._look()
        self._summarize(epoch)

    def end(self) -> None:
        """Prints the whole run and what is wrong with it."""
        self._look()
        self._summarize(None)

    def _look(self) -> None:
        """Tells what is new and critical, once."""
        self._alarmed = False
        run = open_run(self._recorder.directory)
        for finding in self._live.look(run, self._first_step, self._last_step):
            self._recorder.event(
                "finding",
                self._last_step or 0,
                rule=finding.rule,
                since=finding.step,
                slot=finding.slot,
                cause=finding.cause,
            )
            self._tell(finding_line(finding))
        if self._live.outgrown and not self._told_outgrown:
            self._told_outgrown = True
            self._tell(
                Text(
                    "the record is too large to be diagnosed beside the run, and stop_on looks no "
                    f"more; `numwatch diagnose {self._recorder.directory}` does"
                )
            )

    def _tell(self, text: Text) -> None:
        line = Text("numwatch: ").append_text(text)
        if self._console is not None:
            print_line(line, self._console)
        else:
            _LOG.warning(line.plain)

    def _summarize(self, epoch: int | None) -> None:
        if self._console is not None:
            # An epoch's summary is about the epoch; what is wrong with the run stands at its end.
            findings = self._live.findings if epoch is None else ()
            summary = summarize(open_run(self._recorder.directory), epoch=epoch)
            print_summary(summary, self._console, findings)


def _is_alarming(snapshot: Snapshot) -> bool:
    """Whether a step's loss was not finite, or the gradients of one that was taken."""
    scalars = snapshot.scalars
    judged = (scalars.loss, None if scalars.skipped else scalars.grad_norm)
    return not all(math.isfinite(number) for number in judged if number is not None)
