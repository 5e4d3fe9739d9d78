"""The processes of a run, joined by a group of numwatch's own, in which nobody waits in torch."""

import ctypes
import itertools
import threading
import time
from datetime import timedelta
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import AllgatherOptions, TCPStore

Array = npt.NDArray[np.float64]

PATIENCE_SECONDS = 60.0
"""How long a run waits with a rank for the others: at the ends of epochs."""
MEETING_SECONDS = 180.0
"""How long a rank looks out for the others, for which nothing waits."""
_OPERATION = timedelta(minutes=30)  # as torch's own groups: a rank that saves a checkpoint is late
_PAUSES = (0.0002, 0.02)
_meetings = itertools.count()


class Stopped(Exception):  # noqa: N818  # no error: the waiting was called off
    """Nobody wants the answer any more."""


class Parted(Exception):  # noqa: N818  # no error of this rank's
    """The ranks can't go on together, for the reason given."""


class Meeting:
    """Where the ranks of a run find each other: each makes its meetings in the same order.

    Nothing here touches the run's own groups, so the order of collectives in those can't matter.

    Attributes:
        rank: This process.
        size: How many there are.
        first_is_missing: Whether rank 0, which keeps the record, did not come.
    """

    def __init__(self) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.first_is_missing = False
        # torch has no public way to the store its default group was made with.
        store = _own_client(dist.distributed_c10d._get_default_store())  # noqa: SLF001
        self._store = dist.distributed_c10d.PrefixStore(f"numwatch/{next(_meetings)}", store)

    def join(self, stop: threading.Event) -> "Group":
        """Waits until every rank is here, in steps that can be called off.

        Raises:
            Stopped: `stop` was set.
            Parted: Not every rank came in time; then no rank goes on.
        """
        self._store.set(str(self.rank), "here")
        everyone = [str(rank) for rank in range(self.size)]
        deadline = time.monotonic() + MEETING_SECONDS
        stopped = late = False
        while not (stopped or late or self._store.check(everyone)):
            stopped = stop.wait(_PAUSES[1])
            late = time.monotonic() > deadline
        # Whoever speaks first decides for all, so that nobody waits for one who has given up.
        verdict = "apart" if stopped or late else "together"
        if self._store.compare_set("verdict", "", verdict).decode() == "apart":
            self.first_is_missing = not self._store.check(["0"])
            if stopped:
                raise Stopped
            raise Parted(f"not every one of {self.size} ranks watches")
        connecting = timedelta(seconds=PATIENCE_SECONDS)
        backend = dist.ProcessGroupGloo(self._store, self.rank, self.size, connecting)
        return Group(backend, self.rank, self.size, stop)


class Group:
    """Collectives that are looked after, not waited for: the waiting can be called off.

    Attributes:
        rank: This process.
        size: How many there are.
    """

    def __init__(self, backend: Any, rank: int, size: int, stop: threading.Event) -> None:
        self._backend, self._stop = backend, stop
        self.rank, self.size = rank, size

    def maximum(self, values: Array) -> Array:
        """Returns the largest of each value over all ranks; float64, without NaN."""
        return self._all_reduce(values, dist.ReduceOp.MAX)

    def total(self, values: Array) -> Array:
        """Returns the sum of each value over all ranks; float64, so counts up to 2^53 are exact."""
        return self._all_reduce(values, dist.ReduceOp.SUM)

    def exchange(self, blob: bytes) -> list[bytes]:
        """Returns what each rank gave, in their order."""
        longest = int(self.maximum(np.array([float(len(blob))]))[0])
        length = len(blob).to_bytes(8, "little")
        padded = bytearray(length + blob + bytes(longest - len(blob)))
        given = torch.frombuffer(padded, dtype=torch.uint8)
        gathered = [torch.empty_like(given) for _ in range(self.size)]
        options = AllgatherOptions()
        options.timeout = _OPERATION
        self._finish(self._backend.allgather([gathered], [given], options))
        return [_unpad(each) for each in gathered]

    def _all_reduce(self, values: Array, operation: Any) -> Array:
        reduced = torch.from_numpy(values.copy())
        options = dist.AllreduceOptions()
        options.reduceOp, options.timeout = operation, _OPERATION
        if reduced.numel():
            self._finish(self._backend.allreduce([reduced], options))
        return reduced.numpy()

    def _finish(self, work: Any) -> None:
        pause, longest = _PAUSES
        while not work.is_completed():
            if self._stop.wait(pause):
                # Torch waits for an operation under way before it lets go of its group: for ever,
                # where another rank has died. Neither is let go of before the process ends.
                for kept in (self._backend, work):
                    ctypes.pythonapi.Py_IncRef(ctypes.py_object(kept))
                raise Stopped
            pause = min(2 * pause, longest)
        work.wait()  # raises what went wrong


def _own_client(store: Any) -> Any:
    """Returns a connection of our own to the same store.

    A client of torch's store is locked while it waits, in whichever thread.
    """
    if hasattr(store, "clone"):
        return store.clone()
    while hasattr(store, "underlying_store"):
        store = store.underlying_store
    if type(store).__name__ == "TCPStore":  # of torch before 2.9, which clones none
        return TCPStore(store.host, store.port, is_master=False, wait_for_workers=False)
    return store


def _unpad(padded: Tensor) -> bytes:
    content = padded.numpy().tobytes()
    length = int.from_bytes(content[:8], "little")
    return content[8 : 8 + length]
