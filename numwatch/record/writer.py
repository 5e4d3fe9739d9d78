"""`Writer`: a thread that writes, so that a run need not."""

import os
import threading
from collections import deque

from numwatch.record.keeper import Item, Keeper

EXIT_SECONDS = 10.0
"""How long an interpreter that ends, or the collection of garbage, waits for a slow disk."""
_LONGEST_WAIT = 3600.0


class _Flush:
    """Asks for all that came before to be written; `error` is why it could not be."""

    def __init__(self, *, last: bool) -> None:
        self.last = last
        self.done = threading.Event()
        self.error: BaseException | None = None


class Writer:
    """Hands items to a `Keeper` in order, in a thread that starts with the first of them.

    The thread is a daemon, so that no disk keeps an interpreter from ending. Where none can be
    started, and once it has ended, the caller's own does the work. In a process that was forked
    off nothing may be called but `elsewhere` and `abandon`.
    """

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper
        self._process = os.getpid()
        # Reentrant: the collection of garbage may call `abandon` in the middle of anything.
        self._changed = threading.Condition(threading.RLock())
        self._queue: deque[tuple[Item | _Flush, int]] = deque()
        self._waiting = 0
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None
        self._may_start = True

    @property
    def elsewhere(self) -> bool:
        """Whether this is a process that was forked off the writer's own."""
        return os.getpid() != self._process

    @property
    def waiting(self) -> int:
        """Bytes of the items that were not taken up yet."""
        return self._waiting

    def put(self, item: Item, size: int = 0) -> None:
        """Hands over an item of so many bytes, and returns at once."""
        with self._changed:
            if self._may_start:
                self._start()
        self._put(item, size)

    def take_error(self) -> BaseException | None:
        """Returns the last error since the last call and the last flush, or None."""
        with self._changed:
            error, self._error = self._error, None
        return error

    def flush(self) -> BaseException | None:
        """Waits until everything is written; returns why it can't be, or None."""
        flush = _Flush(last=False)
        self._put(flush)
        flush.done.wait()
        return flush.error

    def close(self) -> BaseException | None:
        """Flushes, and ends the thread."""
        thread, flush = self._thread, _Flush(last=True)
        self._may_start = False
        self._put(flush)
        flush.done.wait()
        if thread is not None:
            thread.join()
        return flush.error

    def abandon(self) -> None:
        """Does the same for an owner that is gone, but waits `EXIT_SECONDS` at most."""
        thread = self._thread
        if self.elsewhere or thread is None:
            return
        self._may_start = False
        self._put(_Flush(last=True))
        if thread is not threading.current_thread():
            thread.join(EXIT_SECONDS)

    def _start(self) -> None:
        self._may_start = False
        thread = threading.Thread(target=self._run, name="numwatch-writer", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # no more threads, or the interpreter ends
            return
        self._thread = thread

    def _put(self, item: Item | _Flush, size: int = 0) -> None:
        with self._changed:
            self._queue.append((item, size))
            self._waiting += size
            self._changed.notify()
            if self._thread is not None:
                return
        while self._queue:
            self._do_next()

    def _run(self) -> None:
        ending = False
        while True:
            ending = self._do_next() or ending
            with self._changed:
                if ending and not self._queue:
                    self._thread = None
                    return

    def _do_next(self) -> bool:
        """Does what comes next, and the flush that calls for; returns whether it is the last."""
        last = self._do(self._next())  # no name here keeps an item alive
        if self._keeper.due:
            self._do(None)
        return last

    def _next(self) -> Item | _Flush | None:
        """Waits for the next item; None where it is time to flush."""
        with self._changed:
            while not self._queue:
                left = self._keeper.seconds_left()
                if left == 0.0:
                    return None
                self._changed.wait(_LONGEST_WAIT if left is None else min(left, _LONGEST_WAIT))
            item, size = self._queue.popleft()
            self._waiting -= size
        return item

    def _do(self, item: Item | _Flush | None) -> bool:
        """Does what an item asks for; returns whether it is the last one."""
        error: BaseException | None = None
        try:
            if item is None or isinstance(item, _Flush):
                self._keeper.flush()
            else:
                self._keeper.take(item)
        except BaseException as caught:  # noqa: BLE001  # whoever waits must hear of anything
            error = caught
        with self._changed:
            if isinstance(item, _Flush):
                item.error, self._error = error, None
                item.done.set()
            else:
                self._error = error or self._error
        return isinstance(item, _Flush) and item.last
