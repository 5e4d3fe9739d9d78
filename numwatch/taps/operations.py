"""The operations of a step as they are noted one by one, and on their way to the host."""

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor

from numwatch.stats.dtypes import dtype_name
from numwatch.step_entries import Operation
from numwatch.taps.gemms import FORWARD, Product, gradient_kind, product_of
from numwatch.taps.hooks import in_backward
from numwatch.taps.parcel import Parcel

BACKWARD = "backward"
MAX_OPERATIONS = 16_384
"""So many different ones are noted at most."""

# The results of these may leave FP16's range where their inputs are well inside.
_GROWING = frozenset(
    {
        *("cumprod", "cumsum", "exp", "exp2", "expm1", "linalg_vector_norm", "logsumexp", "norm"),
        *("pow", "prod", "reciprocal", "rsqrt", "square", "std", "sum", "var", "var_mean"),
    }
)
_MEASURED_DTYPES = (torch.float16, torch.bfloat16)

_Key = tuple[Any, ...]


@dataclass(frozen=True)
class SentOperations:
    """Operations on their way to the host.

    Attributes:
        operations: What the host knows of them.
        measured: Positions of those whose amax is on its way: a tuple for each tensor in `parcel`.
    """

    operations: tuple[Operation, ...]
    measured: tuple[tuple[int, ...], ...]
    parcel: Parcel

    def arrived(self) -> tuple[Operation, ...]:
        """Returns the operations, whole; the parcel must have arrived."""
        operations = list(self.operations)
        for positions, amaxes in zip(self.measured, self.parcel.tensors(), strict=True):
            for i, amax in zip(positions, amaxes.tolist(), strict=True):
                operations[i] = replace(operations[i], amax=amax)
        return tuple(operations)


class Notes:
    """What was noted so far, and where in the model the step stands.

    Nothing of a tensor is kept but its dtype, its shape and sometimes its amax.

    Attributes:
        stack: The modules at work: path, and whether they began inside of backward.
    """

    def __init__(self) -> None:
        self.stack: list[tuple[str, bool]] = []
        self._seen: dict[_Key, Operation] = {}
        self._counts: Counter[_Key] = Counter()
        self._amax: dict[_Key, Tensor] = {}
        self._nodes: list[int] = []
        self._modules: dict[int, str] = {}
        self._products: dict[int, Product] = {}
        self._differentiable: dict[int, bool] = {}

    def note(
        self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: object
    ) -> None:
        """Takes an operation that has just run."""
        taken = list(_tensors_in((args, kwargs)))
        if not taken:
            return
        backward = in_backward()
        recomputed = backward and self._is_recomputed()
        if not backward and not self.stack and not _is_of_loss(taken):
            return  # an optimizer's, a metric's, the data's
        name = _name(func)
        product = product_of(name, taken)
        if backward and not recomputed:
            module, gemm = self._of_node(product)
        else:
            module = self.stack[-1][0] if self.stack else ""
            gemm = FORWARD if product else None
            self._note_node(module, product)
        if recomputed or getattr(func, "is_view", False):
            return  # it was noted the first time, or computes nothing
        outputs = list(_tensors_in(result))
        operation = Operation(
            order=len(self._seen),
            module=module,
            operation=str(func),
            phase=BACKWARD if backward else FORWARD,
            dtypes=tuple(dtype_name(tensor.dtype) for tensor in taken),
            shapes=tuple(_shape(tensor) for tensor in taken),
            output=dtype_name(outputs[0].dtype) if outputs else None,
            count=1,
            gemm=gemm,
            m=product.m if product else None,
            n=product.n if product else None,
            k=product.k if product else None,
            contiguous=product.contiguous if product else None,
        )
        self._add(operation, outputs, measured=name in _GROWING or _is_square(name, taken))

    def send(self) -> SentOperations:
        """Returns all, the measured ones on their way."""
        keys = list(self._seen)
        operations = tuple(replace(self._seen[key], count=self._counts[key]) for key in keys)
        on_device: dict[torch.device, list[int]] = {}
        for i, key in enumerate(keys):
            if key in self._amax:
                on_device.setdefault(self._amax[key].device, []).append(i)
        measured = tuple(map(tuple, on_device.values()))
        amaxes = [torch.stack([self._amax[keys[i]].float() for i in group]) for group in measured]
        return SentOperations(operations, measured, Parcel(amaxes))

    def _add(self, operation: Operation, outputs: Sequence[Tensor], *, measured: bool) -> None:
        key = (measured, *(getattr(operation, name) for name in _KEY))
        if key not in self._seen:
            if len(self._seen) >= MAX_OPERATIONS:
                return
            self._seen[key] = operation
        self._counts[key] += 1
        if measured and outputs and outputs[0].dtype in _MEASURED_DTYPES and outputs[0].numel():
            amax = outputs[0].detach().abs().amax()
            known = self._amax.get(key)
            self._amax[key] = amax if known is None else torch.maximum(known, amax)

    def _note_node(self, module: str, product: Product | None) -> None:
        """Notes what the node does that autograd has made for the operation under way."""
        node = torch._C._autograd._get_sequence_nr() - 1  # noqa: SLF001  # made before the dispatch
        if node not in self._modules:
            insort(self._nodes, node)
            self._modules[node] = module
        elif in_backward():
            self._modules[node] = module
        if product is not None:
            self._products.setdefault(node, product)

    def _of_node(self, product: Product | None) -> tuple[str, str | None]:
        """Returns the module whose gradient is computed now, and which of a product's it is."""
        running: Any = torch._C._current_autograd_node()  # noqa: SLF001  # no public equivalent
        if running is None:
            return "", None
        node = running._sequence_nr()  # noqa: SLF001
        at = bisect_left(self._nodes, node)
        if at == len(self._nodes):
            return "", None
        # A Function's own node is older than those its forward makes, and seen through these only.
        module = self._modules[self._nodes[at]]
        if product is None:
            return module, None
        inside = takewhile(lambda one: self._modules[one] == module, self._nodes[at:])
        found = next((one for one in inside if one in self._products), None)
        return module, gradient_kind(self._products[found], product) if found is not None else None

    def _is_recomputed(self) -> bool:
        """Whether a checkpoint runs its forward again.

        It does so with gradients switched on, which backward itself has only under `create_graph`.
        """
        enabled = torch.is_grad_enabled()
        task = torch._C._current_graph_task_id()  # noqa: SLF001  # no public equivalent
        graph_wanted = self._differentiable.setdefault(task, enabled)
        return (enabled and not graph_wanted) or (bool(self.stack) and self.stack[-1][1])


_KEY = ("module", "operation", "phase", "dtypes", "shapes", "output", "gemm", "contiguous")


def _is_of_loss(taken: Sequence[Tensor]) -> bool:
    """Whether an operation outside of all modules is on the way to a loss."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in taken)


def _is_square(name: str, taken: Sequence[Tensor]) -> bool:
    return name == "mul" and len(taken) > 1 and taken[0] is taken[1]


def _tensors_in(value: object) -> Iterator[Tensor]:
    """Yields the tensors of an operation's arguments, which are flat or in lists."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors_in(item)
    elif isinstance(value, Mapping):
        yield from _tensors_in(list(value.values()))


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return () if tensor.is_nested else tuple(map(int, tensor.shape))


def _name(func: Any) -> str:
    packet = getattr(func, "overloadpacket", func)  # higher-order operators have no overloads
    return str(packet.__name__)
