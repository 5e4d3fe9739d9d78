"""The thread in which a rank joins its steps with those of the others."""

import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import replace

from numwatch.ranks.agreement import Agreement
from numwatch.ranks.group import Meeting, Parted, Stopped
from numwatch.ranks.join import Share, join, say_goodbye
from numwatch.ranks.replicas import told_apart
from numwatch.snapshot import SlotInfo, Snapshot

MAX_WAITING_BYTES = 256 << 20
"""What may wait for other ranks: 120,000 rows. Policy."""
_GOODBYE_SECONDS = 5.0
_MEETING_SECONDS = 15.0


class _Waiting:
    """A share, and what has become of it."""

    def __init__(self, share: Share) -> None:
        self.share = share
        self.bytes = _bytes_of(share)
        self.joined: tuple[list[Snapshot], Sequence[SlotInfo]] | None = None


class Reducer:
    """Joins each rank's snapshots, in a thread of its own, so that no rank waits for another.

    Where the ranks can't go on together, this one goes on alone: what comes out is what went in.

    Attributes:
        alone: Why this rank goes on alone, None where it does not.
        alone_since: The first step that was not joined for that.
        unseen: What the joined steps do not hold, once that has come to light.
        error: What went wrong in the thread that should not, for `take` to raise.
        rank: This process.
        size: How many there are.
    """

    def __init__(self) -> None:
        self._meeting = Meeting()
        self.rank, self.size = self._meeting.rank, self._meeting.size
        self._shares: deque[_Waiting] = deque()
        self._due: deque[_Waiting] = deque()
        self._stop = threading.Event()
        self._moved = threading.Condition()
        self._leaving = False
        self._over = self._met = False
        self._slots: Sequence[SlotInfo] = ()
        self._own_slots: Sequence[SlotInfo] = ()
        self.alone: str | None = None
        self.alone_since: int | None = None
        self.unseen: str | None = None
        self.error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="numwatch-ranks", daemon=True)
        self._thread.start()

    @property
    def first(self) -> bool:
        """Whether this is the rank that keeps the record."""
        return self.rank == 0

    @property
    def unkept(self) -> bool:
        """Whether nobody keeps a record, as rank 0 does not watch."""
        return self._meeting.first_is_missing

    def put(self, snapshots: Sequence[Snapshot], slots: Sequence[SlotInfo]) -> None:
        """Hands in the steps of a delivery; every rank must do so, in the same order."""
        if not snapshots:
            return
        waiting = _Waiting(Share(snapshots, slots))
        with self._moved:
            self._shares.append(waiting)
            if self._over:
                return
            self._due.append(waiting)
            if sum(one.bytes for one in self._due) > MAX_WAITING_BYTES:
                self._part("another rank has not kept up")
            self._moved.notify_all()

    def take(self, wait: float = 0.0) -> tuple[list[Snapshot], Sequence[SlotInfo]]:
        """Returns the steps that are joined by now, in order, and the slots as last described.

        Args:
            wait: How many seconds to wait for the other ranks; after that this one goes on alone.
                Where they have not been met by now, fewer are enough.

        Raises:
            Exception: Of numwatch's own, in the thread.
        """
        snapshots: list[Snapshot] = []
        wait = wait if self._met else min(wait, _MEETING_SECONDS)
        with self._moved:
            if wait and not self._moved.wait_for(self._settled, wait):
                self._part(f"another rank gave no answer for {wait:.0f} s")
            while self._shares and (self._shares[0].joined is not None or self._over):
                done = self._shares.popleft()
                if done.joined is None:
                    if self.alone_since is None:
                        self.alone_since = done.share.snapshots[0].step
                    snapshots += done.share.snapshots
                    self._describe(done.share.slots)
                else:
                    snapshots += done.joined[0]
                    self._slots = done.joined[1]
            error, self.error = self.error, None
        if wait and self._over and not self._met:
            self._thread.join(1.0)  # who is missing it is just asking
        if error is not None:
            raise error
        return snapshots, self._slots

    def leave(self) -> None:
        """Tells the other ranks, when they next ask, that this one has stopped watching.

        The thread stays until they have asked; `close` ends it in any case.
        """
        with self._moved:
            self._leaving = True
            self._due.clear()
            self._moved.notify_all()

    def close(self) -> None:
        """Ends the thread when the other ranks have come to their end too, or soon in any case.

        Whoever lets go of a connection first could cut off what another still reads.
        """
        with self._moved:
            self._leaving = True
            self._moved.notify_all()
        self._thread.join(_GOODBYE_SECONDS)
        self._stop.set()
        with self._moved:
            self._over = True
            self._moved.notify_all()
        # It may be connecting, which can't be called off: it dies with the process at the latest.
        self._thread.join(_GOODBYE_SECONDS)

    def _describe(self, own: Sequence[SlotInfo]) -> None:
        """Puts what this rank alone knows by now into what all ranks knew."""
        if own is not self._own_slots:
            self._own_slots = own
            self._slots = tuple({slot.slot: slot for slot in (*self._slots, *own)}.values())

    def _settled(self) -> bool:
        return self._over or not self._due

    def _part(self, why: str | None) -> None:
        if why is not None and not self._leaving:
            self.alone = self.alone or why
        self._over = True
        self._stop.set()
        self._due.clear()
        self._moved.notify_all()

    def _run(self) -> None:
        why = None
        began, spent = time.thread_time(), 0.0
        try:
            group = self._meeting.join(self._stop)
            self._met = True
            agreement = Agreement()
            while (waiting := self._next()) is not None:
                snapshots, slots = join(waiting.share, agreement, group)
                with self._moved:
                    if agreement.apart and self.unseen is None:
                        self.unseen = told_apart(agreement.apart)
                    waiting.joined = _with_cost(snapshots, spent), slots
                    spent = time.thread_time() - began
                    began += spent
                    if self._due:
                        self._due.popleft()
                    self._moved.notify_all()
            if not self._over:
                say_goodbye(group)
        except Stopped:
            pass
        except Parted as parted:
            why = str(parted)
        except (RuntimeError, OSError) as error:  # of torch's, where a peer has died
            why = f"{type(error).__name__}: {error}"
        except Exception as error:  # noqa: BLE001  # our own: `take` raises it where it is dealt with
            self.error, why = error, "the joining has failed"
        with self._moved:
            self._part(why)

    def _next(self) -> _Waiting | None:
        with self._moved:
            self._moved.wait_for(lambda: self._due or self._leaving or self._over)
            return None if self._over or not self._due else self._due[0]


def _bytes_of(share: Share) -> int:
    """Returns what a share's arrays take, and a KiB for each step."""
    rows = [part for one in share.snapshots if one.rows is not None for part in one.rows.parts]
    blocks = [one.blocks.counts.nbytes for one in share.snapshots if one.blocks is not None]
    return sum(part.counts.nbytes for part in rows) + sum(blocks) + 1024 * len(share.snapshots)


def _with_cost(snapshots: list[Snapshot], seconds: float) -> list[Snapshot]:
    """Charges what the thread's work has taken so far to the last step that is joined now."""
    *before, last = snapshots
    scalars = last.scalars
    more = replace(scalars, numwatch_seconds=scalars.numwatch_seconds + seconds)
    return [*before, replace(last, scalars=more)]
