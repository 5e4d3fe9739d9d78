"""Who made the first non-finite value of a step: every operation looked at, by a dispatch mode."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from numwatch.taps.contents import HIGH, LOW, NAN, content_of, description, is_float, memory_of
from numwatch.taps.hooks import in_backward, tensors_in
from numwatch.taps.places import Places

DATA, PARAMETER, FORWARD, LOSS, BACKWARD = "data", "parameter", "forward", "loss", "backward"
PHASES = (DATA, PARAMETER, FORWARD, LOSS, BACKWARD)
"""Where in a step a value can turn non-finite, in the order of its data flow."""

MAX_INPUTS = 8
"""Of an operation's tensors so many are described at most."""

# What people mask with: an inf they write is meant, a NaN never is.
_FILLS = frozenset(
    {
        "constant_pad_nd",
        "fill",
        "fill_",
        "full",
        "full_like",
        "index_fill",
        "index_fill_",
        "masked_fill",
        "masked_fill_",
        "new_full",
        "scalar_tensor",
        "where",
    }
)
# Their memory is whatever was there before.
_UNINITIALISED = frozenset(
    {"empty", "empty_like", "empty_permuted", "empty_strided", "new_empty", "new_empty_strided"}
)
# What some operations write to without saying so in their schema.
_UNSAID = frozenset({"running_mean", "running_var"})
_NO_NAMES: frozenset[str] = frozenset()
_Taint = frozenset[int]
_CLEAN: _Taint = frozenset()


@dataclass(frozen=True)
class Suspect:
    """Something whose value turned, or was, non-finite.

    Attributes:
        phase: One of `PHASES`.
        module: Path of the innermost module at work, "" for the root or none.
        operation: "aten.exp.default"; "" for data and parameters.
        source: The user's line; of an operation of backward the line of its forward.
        value: "nan" or "inf".
        inputs: Of each tensor it took `shape`, `dtype`, `low` and `high` of the finite elements
            (None without any), `nonfinite` (how many elements are NaN or inf).
        tensor: Name of the parameter, the buffer or the batch's tensor; "" for an operation.
        meant: Whether it looks like an intended infinity: a mask.
        calls: How many modules had begun when it happened.
    """

    phase: str
    module: str
    operation: str
    source: str
    value: str
    inputs: tuple[dict[str, Any], ...]
    tensor: str = ""
    meant: bool = False
    calls: int = 0


class Blame(TorchDispatchMode):
    """Follows non-finite values from what made them to where they arrive.

    Waits for the device after every operation: for a step that is run once more, not for a run.

    Attributes:
        suspects: What made non-finite values or brought them, in order.
        reached: Positions in `suspects` of those whose values arrived where `arrive` was told.
        arrived: Whether any non-finite value did.
    """

    def __init__(self, model: nn.Module, places: Places) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.suspects: list[Suspect] = []
        self.reached: set[int] = set()
        self.arrived = False
        self._places = places
        self._taints: dict[int, _Taint] = {}
        self._unwritten: set[int] = set()
        self._names = {
            key: (kind, name)
            for kind, named in ((PARAMETER, model.named_parameters()), ("", model.named_buffers()))
            for name, tensor in named
            if (key := memory_of(tensor)) is not None
        }

    def __torch_dispatch__(
        self,
        func: Any,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if any(kind is not Tensor and kind is not nn.Parameter for kind in types):
            return NotImplemented  # a subclass takes itself apart first: its parts come here
        self._places.note()
        inputs = [t for t in tensors_in((args, kwargs)) if is_float(t)]
        written = _written(func, args, kwargs)
        ids = {id(tensor) for tensor in written}
        taken = [t.clone() if id(t) in ids else t for t in inputs]
        result = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        if getattr(func, "is_view", False):
            return result
        before = [(memory_of(t), old) for t, old in zip(inputs, taken, strict=True)]
        for out in (*written, *(t for t in tensors_in(result) if id(t) not in ids)):
            if is_float(out):
                self._look(out, name, str(func), before)
        return result

    def arrive(self, tensor: Tensor | None) -> None:
        """Takes a tensor that decides the step: the loss, or a gradient of a parameter."""
        with _disable_current_modes():
            if tensor is None or not is_float(tensor) or not content_of(tensor):
                return
            self.arrived = True
            self.reached |= self._taint(tensor, content_of(tensor))

    def culprit(self) -> Suspect | None:
        """Returns the first of the suspects whose values arrived, who did not mean them.

        Data come first and parameters second: they were there before any operation. Where nothing
        is known to have arrived it is the first of all suspects.
        """
        reached = [self.suspects[i] for i in sorted(self.reached)]
        for found in (reached, self.suspects):
            for chosen in ([one for one in found if not one.meant], found):
                if chosen:
                    return min(
                        chosen, key=lambda one: (DATA, PARAMETER, one.phase).index(one.phase)
                    )
        return None

    def _look(
        self,
        out: Tensor,
        name: str,
        operation: str,
        before: Sequence[tuple[int | None, Tensor]],
    ) -> None:
        key = memory_of(out)
        if key is None:
            return
        if name == "set_":  # it was filled where no operation is seen, as copies of batches are
            self._taints.pop(key, None)
            return
        content = content_of(out)
        if name in _UNINITIALISED:
            self._taints[key] = _CLEAN
            self._unwritten.add(key)
            return
        old = [(k, t, c) for k, t in before if k not in self._unwritten and (c := content_of(t))]
        self._unwritten.discard(key)
        whole = out.numel() * out.itemsize >= out.untyped_storage().nbytes()
        kept = _CLEAN if whole else self._taints.get(key, _CLEAN)
        if not content:
            self._taints[key] = kept
            return
        came = 0
        taint = kept
        for k, tensor, its in old:
            came |= its
            taint |= self._taint(tensor, its, k)
        if _is_new(content, came):
            taint |= {self._suspect(content, name, operation, before)}
        self._taints[key] = taint

    def _suspect(
        self,
        content: int,
        name: str,
        operation: str,
        before: Sequence[tuple[int | None, Tensor]],
    ) -> int:
        backward = in_backward()
        place = (self._places.of_node() if backward else None) or self._places.here()
        phase = FORWARD if place.inside and not place.is_loss else LOSS
        self.suspects.append(
            Suspect(
                phase=BACKWARD if backward else phase,
                module=place.module,
                operation=operation,
                source=place.source,
                value="nan" if content & NAN else "inf",
                inputs=tuple(description(tensor) for _, tensor in before[:MAX_INPUTS]),
                meant=name in _FILLS and not content & NAN,
                calls=self._places.calls,
            )
        )
        return len(self.suspects) - 1

    def _taint(self, tensor: Tensor, content: int, key: int | None = None) -> _Taint:
        key = memory_of(tensor) if key is None else key
        if key is None:
            return _CLEAN
        if key not in self._taints:
            self._taints[key] = frozenset({self._outsider(key, tensor, content)})
        return self._taints[key]

    def _outsider(self, key: int, tensor: Tensor, content: int) -> int:
        """Suspects a tensor that no operation of the step has made."""
        kind, name = self._names.get(key, (DATA, ""))
        self.suspects.append(
            Suspect(
                phase=kind or PARAMETER,  # a buffer
                module=name.rpartition(".")[0],
                operation="",
                source="",
                value="nan" if content & NAN else "inf",
                inputs=(description(tensor),),
                tensor=name,
                meant=content == LOW and kind != PARAMETER,
                calls=self._places.calls,
            )
        )
        return len(self.suspects) - 1


def _is_new(content: int, came: int) -> bool:
    """Whether an operation made a kind of value that none of its inputs explains."""
    if came & NAN:
        return False
    return bool(content & NAN or (content & HIGH and not came & HIGH) or not came)


def _written(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """Returns the tensors that an operation writes to in place."""
    schema = func._schema  # noqa: SLF001  # torch's own way to ask
    unsaid = _UNSAID if "batch_norm" in func.overloadpacket.__name__ else _NO_NAMES
    if not schema.is_mutable and not unsaid:
        return []
    found: list[Tensor] = []
    for i, argument in enumerate(schema.arguments):
        written = argument.alias_info is not None and argument.alias_info.is_write
        if written or argument.name in unsaid:
            given = args[i] if i < len(args) else kwargs.get(argument.name)
            found += tensors_in(given)
    return found
