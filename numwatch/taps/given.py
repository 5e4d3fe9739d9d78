"""The gradients an optimizer was given, for those that are gone when its step is over."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from numwatch.taps.changes import pack_samples
from numwatch.taps.intended import library_class
from numwatch.taps.parameters import Parameters, Updated, has_dense_gradient


class Given:
    """Samples of the gradients that an optimizer may let go of within its step.

    Torch's own and their kin do not, so nothing is copied of theirs unless one has been seen to;
    of a class of the user's nobody knows before. The gradients themselves are never held on to:
    it is for their memory that they are let go of.

    Attributes:
        bytes: What the samples of the turn under way take.
        lost: Who let go of gradients that there was no sample of; None where nobody did.
    """

    def __init__(self, parameters: Parameters) -> None:
        self._parameters = parameters
        self._lets_go: WeakIdKeyDictionary = WeakIdKeyDictionary()  # of those without a hash too
        self._samples: dict[int, Tensor] = {}
        self._any = False
        self.bytes = 0
        self.lost: str | None = None

    def look(self, optimizer: torch.optim.Optimizer, *, has_closure: bool = False) -> None:
        """Takes note of an optimizer's gradients, as late before its step as they can be seen.

        Args:
            optimizer: The optimizer.
            has_closure: Whether its step will make other ones first.
        """
        self.forget()
        if has_closure:
            self._any = True
            return
        measured = self._parameters.measured(optimizer)
        if not self._may_let_go(optimizer):
            self._any = any(has_dense_gradient(one.parameter) for one in measured)
            return
        scale = getattr(optimizer, "grad_scale", None)
        alike: dict[tuple[int, torch.device], list[Updated]] = {}
        for one in measured:
            if has_dense_gradient(one.parameter):
                alike.setdefault((one.known.sampled, one.parameter.device), []).append(one)
        for members in alike.values():
            rows = _packed(members)
            if isinstance(scale, Tensor):
                rows = rows / scale
            self.bytes += rows.nbytes
            self._samples.update(
                (id(one.parameter), row) for one, row in zip(members, rows, strict=True)
            )

    def has(self, updated: Updated) -> bool:
        """Whether it is known by which gradient a parameter has just been stepped."""
        return has_dense_gradient(updated.parameter) or id(updated.parameter) in self._samples

    def of(self, members: Sequence[Updated]) -> Tensor:
        """Returns samples [k, n] of the gradients of k parameters that `has` knows of."""
        if all(has_dense_gradient(one.parameter) for one in members):
            return _packed(members)
        return torch.stack(
            [
                _packed([one])[0]
                if has_dense_gradient(one.parameter)
                else self._samples[id(one.parameter)]
                for one in members
            ]
        )

    def learn(self, optimizer: torch.optim.Optimizer, stepped: Sequence[Updated]) -> None:
        """Takes note of what has become of the gradients, when the step is over."""
        if any(one.parameter.grad is not None for one in self._parameters.measured(optimizer)):
            self._lets_go[optimizer] = False  # those that are left may be sparse
        elif stepped or self._any:
            self._lets_go[optimizer] = True
            if not stepped:
                self.lost = type(optimizer).__name__

    def forget(self) -> None:
        """Lets go of the samples."""
        self._samples.clear()
        self._any = False
        self.bytes = 0

    def _may_let_go(self, optimizer: torch.optim.Optimizer) -> bool:
        known: bool | None = self._lets_go.get(optimizer)
        return library_class(optimizer) is None if known is None else known


def _packed(members: Sequence[Updated]) -> Tensor:
    gradients = [one.parameter.grad for one in members]
    return pack_samples([gradient for gradient in gradients if gradient is not None], members)
