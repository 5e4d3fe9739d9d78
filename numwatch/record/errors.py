"""What is wrong with a record, in one line."""

from numwatch.errors import NumwatchError


class RecordError(NumwatchError):
    """A record can't be found, read or written."""
