"""Which tensors have been passed over in the step under way, so that none is passed over twice."""

import weakref
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from numwatch.taps.placement import of_many_ranks

SMALL = 4096
"""Elements below which a second pass takes less time than finding out that it is not needed."""


class _Pass(NamedTuple):
    """A tensor as it was passed over, and the slot whose row it went to."""

    tensor: Callable[[], Tensor | None]
    version: int
    numel: int
    strides: tuple[torch.Size, tuple[int, ...]] | None
    """Shape and strides; None where it is contiguous."""
    slot: int


class Sightings:
    """The passes of a step by the memory they read.

    A tensor that one module hands to the next, or to three projections, perhaps as a view, is the
    same numbers: its later slots follow the first, and take them from its row once that is on the
    host. Memory holds the same numbers as long as a tensor keeps it alive and torch's version
    counter has not moved; what writes through `.data` moves none, and is not noticed. Small tensors
    are passed over each time.
    """

    def __init__(self, n: int) -> None:
        self._passes = [0] * n
        self._by_address: dict[tuple[int, torch.dtype], _Pass] = {}
        self._followers: dict[int, list[int]] = {}
        self._alone: bool | None = None

    def follow(self, index: int, tensor: Tensor) -> bool:
        """Has a slot follow the one that has seen the same numbers; False where it needs a pass."""
        if index in self._followers or not self._is_worth_it(tensor):
            return False  # whose row others follow stays as it is
        before = self._by_address.get((tensor.data_ptr(), tensor.dtype))
        return before is not None and self._joins(index, before, tensor)

    def follow_or_note(self, index: int, tensor: Tensor, address: int, numel: int) -> bool:
        """Does as `follow`, and where that is False as `note`, by the shortest way.

        Args:
            index: Of a slot that nobody follows.
            tensor: A contiguous `torch.Tensor`.
            address: Where its memory is.
            numel: How many elements it has.
        """
        if numel >= SMALL and self._is_alone():
            try:
                version = tensor._version  # noqa: SLF001  # documented with autograd's checks
            except RuntimeError:  # of inference mode, where none is kept
                version = None
            if version is not None:
                key = (address, tensor.dtype)
                before = self._by_address.get(key)
                if before is not None and self._joins(index, before, tensor):
                    return True
                kept = _Pass(weakref.ref(tensor), version, numel, None, index)
                self._by_address[key] = kept
        self._passes[index] += 1
        return False

    def note(
        self,
        index: int,
        tensor: Tensor | None,
        find: Callable[[], Tensor | None] | None = None,
    ) -> Sequence[int]:
        """Takes note of a pass that is about to go to a slot's row.

        Args:
            index: The slot's.
            tensor: What is passed over; None where its memory may change unnoticed.
            find: Leads to it as long as it lives; None for a weak reference, which the user may
                notice on a parameter (see `homes`).

        Returns:
            The slots that followed this one until now: its row, as it is, must be added to theirs.
        """
        self._passes[index] += 1
        if tensor is not None and self._is_worth_it(tensor):
            self._by_address[tensor.data_ptr(), tensor.dtype] = _Pass(
                find or weakref.ref(tensor),
                tensor._version,  # noqa: SLF001  # as above
                tensor.numel(),
                None if tensor.is_contiguous() else (tensor.shape, tensor.stride()),
                index,
            )
        return self._followers.pop(index, ()) if self._followers else ()

    def is_followed(self, index: int) -> bool:
        """Whether slots follow this one, so that a pass to its row must be told by `note`."""
        return index in self._followers

    def take(self) -> list[tuple[int, int]]:
        """Returns each follower with the slot it follows, and starts a new step."""
        pairs = [(own, first) for first, owns in self._followers.items() for own in owns]
        self._passes = [0] * len(self._passes)
        self._by_address.clear()
        self._followers.clear()
        self._alone = None
        return pairs

    def _joins(self, index: int, before: _Pass, tensor: Tensor) -> bool:
        """Has a slot follow the one of a pass, if that was over the same numbers."""
        if self._passes[before.slot] != 1 or not _is_same(before, tensor):
            return False
        self._followers.setdefault(before.slot, []).append(index)
        self._passes[index] += 2  # its row is to be more than one pass: nobody follows it
        return True

    def _is_worth_it(self, tensor: Tensor) -> bool:
        kind = type(tensor)
        return (
            tensor.numel() >= SMALL
            and (kind is Tensor or kind is nn.Parameter)
            and not tensor.is_inference()
            and self._is_alone()
        )

    def _is_alone(self) -> bool:
        """Whether no other rank trains along: collectives write in place and move no counter."""
        if self._alone is None:
            self._alone = not of_many_ranks()
        return self._alone


def _is_same(before: _Pass, tensor: Tensor) -> bool:
    first = before.tensor()
    if first is None or first.data_ptr() != tensor.data_ptr() or first.is_neg() != tensor.is_neg():
        return False
    if before.version != tensor._version or first._version != before.version:  # noqa: SLF001
        return False
    if before.strides is None:
        # Elements are counted in any order: another shape of the same whole is the same.
        return tensor.is_contiguous() and tensor.numel() == before.numel
    return before.strides == (tensor.shape, tensor.stride())
