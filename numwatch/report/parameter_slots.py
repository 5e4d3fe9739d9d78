"""Slots of parameters, their updates and their optimizer's state, beside those of modules."""

from collections.abc import Mapping

from numwatch.record.slot_formats import known_format
from numwatch.report.figures import SlotFigures
from numwatch.snapshot import ROLES, UPDATE_ROLE, SlotInfo, role_of

# Wider state has the range to hold what small gradients leave there.
_NARROW_BITS = 16
# Where nothing is stored low, the format whose weights are asked about.
_DEFAULT_STORAGE = "bf16"
_STORAGES = ("bf16", "fp16")


def is_parameters(slot: str) -> bool:
    """Whether a slot is a parameter's, not a module's."""
    return role_of(slot) not in ROLES


def in_trouble(line: SlotFigures) -> bool:
    """Whether a parameter's slot belongs among the tensors a person should look at.

    NaN and inf always do; what a format flushes does for state kept in a narrow one. Zeros in FP32
    state are no alarm: gradients that are zero leave them.
    """
    if line.verdict == "overflow":
        return True
    fmt = known_format(line.format)
    narrow = fmt is not None and fmt.bits <= _NARROW_BITS
    return line.verdict == "underflow" and narrow and role_of(line.slot) != UPDATE_ROLE


def low_format(slots: Mapping[str, SlotInfo]) -> str | None:
    """Returns the 16-bit format that most of a run's modules compute in, None where none does."""
    found = [info.format for info in slots.values() if info.role in ROLES]
    most = max(_STORAGES, key=found.count)
    return most if most in found else None


def storage_order(storage: str, own: str | None) -> tuple[int, str]:
    """Sort key of storage formats: the run's own first, then the other wide one, then the rest."""
    wide = (own or _DEFAULT_STORAGE, *_STORAGES)
    return (wide.index(storage) if storage in wide else len(wide), storage)
