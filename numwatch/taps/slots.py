"""What is learnt of a slot's tensors when the first of them comes."""

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from numwatch.snapshot import SlotInfo, format_of_dtype
from numwatch.taps.hooks import autocast_on
from numwatch.taps.placement import placement_of, shard_of
from numwatch.taps.selection import PARAMETER_ROLES, Tap


class SlotTable:
    """The slots of all taps, and what is known of each.

    Attributes:
        cast_formats: The format that a library casts a slot's tensors to itself, where it does.
    """

    def __init__(self, taps: Sequence[Tap], slots: Sequence[SlotInfo]) -> None:
        self._slots = list(slots)
        self._known: tuple[SlotInfo, ...] | None = None
        self._order = 0
        self.cast_formats: dict[int, str] = {}
        # GEMM modules compute in autocast's dtype, which only their forward can tell.
        self._gemms = {index: tap.path for tap in taps if tap.gemm for index in tap.slots.values()}
        self._compute_formats: dict[str, str | None] = {}

    @property
    def slots(self) -> tuple[SlotInfo, ...]:
        """The slots with what has been learnt of their tensors so far.

        The same object until something new is learnt.
        """
        if self._known is None:
            self._known = tuple(
                replace(slot, format=self._format_of(index, slot)) if slot.dtype else slot
                for index, slot in enumerate(self._slots)
            )
        return self._known

    @property
    def called(self) -> bool:
        """Whether a tensor was seen that only a module's own hooks see; True where none is tapped.

        Weights and their gradients are seen without.
        """
        own = [slot for slot in self._slots if slot.role not in PARAMETER_ROLES]
        return not own or any(slot.dtype is not None for slot in own)

    def is_new(self, index: int) -> bool:
        """Whether nothing is known of a slot's tensors yet."""
        return self._slots[index].dtype is None

    def learn(self, index: int, tensor: Tensor, tap: Tap, autocast: str | None) -> None:
        """Takes note of a slot's first tensor.

        Args:
            index: The slot's.
            tensor: What it has seen.
            tap: The module.
            autocast: Dtype of the autocast that the module was called under, "" for none; None for
                the one in force.
        """
        self._known = None
        slot = self._slots[index]
        slot = self._slots[index] = replace(
            slot,
            shape=tuple(tensor.shape),
            dtype=str(tensor.dtype).removeprefix("torch."),
            order=self._order,
            placement=placement_of(tensor) if slot.role == "weight" else None,
            shard=shard_of(tensor) if slot.role == "weight" else None,
        )
        self._order += 1
        if slot.role in ("input", "output"):
            autocast = autocast_on(tensor.device.type) if autocast is None else autocast
            if autocast:
                self._compute_formats.setdefault(tap.path, format_of_dtype(autocast))

    def _format_of(self, index: int, slot: SlotInfo) -> str | None:
        if index in self.cast_formats:
            return self.cast_formats[index]
        gemm = self._gemms.get(index)
        if gemm in self._compute_formats:
            return self._compute_formats[gemm]
        return format_of_dtype(slot.dtype) if slot.dtype else None
