"""What a person sees: a run's summary in the terminal, its charts in TensorBoard."""

from numwatch.report.summary import Summary, summarize
from numwatch.report.terminal import print_summary

__all__ = ["Summary", "print_summary", "summarize"]
