"""What is kept: the record of a run on disk, written by `Recorder` and read by `Run`."""

from numwatch.record.errors import RecordError
from numwatch.record.events import events_of
from numwatch.record.recorder import Recorder
from numwatch.record.run import Run, open_run
from numwatch.record.schema import (
    BLOCKS,
    RECORD_FOLDER,
    SCHEMA_VERSION,
    SHADOWS,
    STATES,
    STEPS,
    TENSORS,
    UPDATES,
)
from numwatch.record.unpack import iter_blocks, iter_rows, row_blocks, row_cast, row_stats

__all__ = [
    "BLOCKS",
    "RECORD_FOLDER",
    "SCHEMA_VERSION",
    "SHADOWS",
    "STATES",
    "STEPS",
    "TENSORS",
    "UPDATES",
    "RecordError",
    "Recorder",
    "Run",
    "events_of",
    "iter_blocks",
    "iter_rows",
    "open_run",
    "row_blocks",
    "row_cast",
    "row_stats",
]
