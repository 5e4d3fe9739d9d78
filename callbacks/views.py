"""Where a Trainer's loggers can show snapshots."""

from collections.abc import Iterable, Mapping
from typing import Any

from numwatch.keeping import View
from numwatch.report.tb_curation import Curation
from numwatch.snapshot import SlotInfo, Snapshot


def views_of(loggers: Iterable[Any]) -> list[View]:
    """Returns a view for each logger: charts where it writes TensorBoard, else its scalars."""
    return [_view_of(logger) for logger in loggers]


def _view_of(logger: Any) -> View:
    # Loggers of either namespace, so by what their writer can do and not by their class.
    writer: Any = getattr(logger, "experiment", None)
    # The class is asked: Lightning's dummy of a writer has whatever attribute it is asked for.
    if hasattr(type(writer), "add_custom_scalars"):
        from numwatch.report.tensorboard import TensorBoardView

        return TensorBoardView(writer)
    return _LoggerView(logger)


class _LoggerView:
    def __init__(self, logger: Any) -> None:
        self._logger = logger
        self._curation = Curation()

    def write(self, snapshot: Snapshot, slots: Mapping[str, SlotInfo], step: int) -> None:
        self._logger.log_metrics(self._curation.scalars(snapshot, slots), step=step)
