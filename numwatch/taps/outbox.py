"""Ended steps, kept until they are sent, and what was sent, until it has arrived."""

from itertools import chain

from numwatch.snapshot import Snapshot
from numwatch.taps.culprits import Culprits
from numwatch.taps.delivery import Delivery, EndedStep, Seen
from numwatch.taps.tape import Tape


class Outbox:
    """Sends ended steps together with the rows of the last of them."""

    def __init__(self) -> None:
        self._ended: list[EndedStep] = []
        self._deliveries: list[Delivery] = []

    def put(self, ended: EndedStep) -> None:
        """Keeps a step that has no rows, or whose rows `send` is about to take."""
        self._ended.append(ended)

    def send(self, tape: Tape, culprits: Culprits, seen: Seen | None) -> None:
        """Sends what is kept.

        Args:
            tape: Has a line for each step.
            culprits: Those found in any of them.
            seen: The rows of the last one.
        """
        self._deliveries.append(Delivery(self._ended, tape.send(), culprits.send(), seen))
        self._ended = []

    def flush(self, tape: Tape, culprits: Culprits) -> list[list[Snapshot]]:
        """Sends what is left without rows, waits for all that was sent and returns it."""
        if self._ended:
            self.send(tape, culprits, None)
        deliveries, self._deliveries = self._deliveries, []
        for delivery in deliveries:
            delivery.wait()
        return [delivery.snapshots() for delivery in deliveries]

    def arrived(self) -> list[list[Snapshot]]:
        """Returns what has arrived since the last call, steps that were sent together in a list."""
        arrived = []
        while self._deliveries and self._deliveries[0].arrived():
            arrived.append(self._deliveries.pop(0).snapshots())
        return arrived


def in_order(deliveries: list[list[Snapshot]]) -> list[Snapshot]:
    """Returns the steps of all deliveries."""
    return list(chain.from_iterable(deliveries))
