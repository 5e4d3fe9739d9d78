"""Which slots a run's charts name: few, the worst, and the same ones throughout."""

from collections.abc import Mapping, Sequence

from numwatch.report.figures import SlotFigures, rows_figures
from numwatch.report.scalars import role_scalars, step_scalars, tensor_scalars
from numwatch.report.tb_tags import STEP_GROUP, role_of
from numwatch.report.verdict import TROUBLES
from numwatch.snapshot import SlotInfo, Snapshot

# With 6 roles, 7 tags a named slot and 15 a role this keeps a run below 200 tags.
NAMED_SLOTS = 12


class Curation:
    """The scalars of a whole run, under a bounded set of tags.

    Stateful shell over `report.scalars`: the first full rows of each role give their worst slot a
    name of its own; what places are left go, one a snapshot, to slots that get into trouble later.
    A slot once named keeps its tags to the end of the run.

    Attributes:
        named: Names of the slots shown, in the order in which they were chosen.
        skipped_steps: Skipped steps since this object was made. TensorBoard keeps a random sample
            of long series, in which a running total survives and single skips do not.
    """

    def __init__(self, capacity: int = NAMED_SLOTS) -> None:
        self.named: tuple[str, ...] = ()
        self.skipped_steps = 0
        self._capacity = capacity
        self._roles: set[str] = set()

    def scalars(self, snapshot: Snapshot, slots: Mapping[str, SlotInfo]) -> dict[str, float]:
        """Returns tag → value of the next step; to be called once a step, in order of steps."""
        rows = [] if snapshot.rows is None else list(rows_figures(snapshot.rows, slots))
        if snapshot.rows is not None and snapshot.rows.full:
            self._name(rows)
        self.skipped_steps += snapshot.scalars.skipped
        return {
            **step_scalars(snapshot.scalars, rows),
            f"{STEP_GROUP}/skipped_steps_total": float(self.skipped_steps),
            **role_scalars(rows),
            **tensor_scalars(row for row in rows if row.slot in self.named),
        }

    def _name(self, rows: Sequence[SlotFigures]) -> None:
        roles = dict.fromkeys(role_of(row.slot) for row in rows)
        chosen = [
            max((row for row in rows if role_of(row.slot) == role), key=_badness)
            for role in roles
            if role not in self._roles
        ]
        self._roles.update(roles)
        if not chosen:
            unnamed = [row for row in rows if row.slot not in self.named]
            worst = max(unnamed, key=_badness, default=None)
            chosen = [worst] if worst is not None and worst.verdict in TROUBLES else []
        self.named = (*self.named, *(row.slot for row in chosen))[: self._capacity]


def _badness(row: SlotFigures) -> tuple[float, ...]:
    return row.badness
