"""Gradients of the run beside those of the same batch in FP32, on samples, slot by slot."""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from numwatch.errors import NumwatchError
from numwatch.stats import is_watched_dtype
from numwatch.stats.dtypes import dtype_name
from numwatch.stats.prepare import plain
from numwatch.stats.widen import widened
from numwatch.step_entries import Shadow
from numwatch.taps.fp32 import is_low
from numwatch.taps.hooks import is_transformed
from numwatch.taps.parcel import Parcel
from numwatch.taps.sampling import sampled
from numwatch.taps.selection import Tap

CALLS = 8
"""Calls of a slot within a step that are compared, at most."""

_SAMPLED, _ZEROS, _RUN_ZEROS, _FLUSHED, _ERROR, _TRUTH, _RUN, _DOT = range(8)
_COLUMNS = _DOT + 1


@dataclass(frozen=True, eq=False)
class Sample:
    """What is kept of one FP32 gradient.

    Attributes:
        values: The sampled elements [n], in the gradient's own dtype.
        shape: Shape of the whole gradient.
        limit: What was passed to `sampled`.
    """

    values: Tensor
    shape: torch.Size
    limit: int


Samples = Mapping[int, Sequence[Sample]]
"""The samples of each slot, by its index, in the order of its calls."""


class SampleCollector:
    """Stands where the run's collector does, in a shadow step: keeps a sample of each gradient."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._samples: dict[int, list[Sample]] = {}

    def see(self, index: int, tensor: Tensor, _tap: Tap) -> None:
        """Keeps a sample of a gradient, unless `CALLS` of its slot are kept.

        Raises:
            NumwatchError: It is below FP32: what it comes from is not the truth looked for.
        """
        gradient = _comparable(tensor)
        if gradient is None:
            return
        if is_low(gradient.dtype):
            raise NumwatchError(
                f"the step computes in {dtype_name(gradient.dtype)} of its own accord, within an "
                "autocast or by a cast that it brings along"
            )
        kept = self._samples.setdefault(index, [])
        if len(kept) < CALLS:
            # A clone, since a view keeps the whole gradient alive.
            values = sampled(gradient, self._limit).clone()
            kept.append(Sample(values, gradient.shape, self._limit))

    def take(self) -> Samples:
        """Hands the samples out and keeps none: hooks may keep the collector alive for a while."""
        samples, self._samples = self._samples, {}
        return samples


class Comparison:
    """Adds up how a run's gradients differ from samples of their FP32 counterparts.

    The n-th gradient a slot sees meets its n-th sample; what has no counterpart of its shape is
    passed by. Pairs with a NaN or inf are left out. Nothing here waits for the device.
    """

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._expected: dict[int, deque[Sample]] = {}
        self._sums: dict[torch.device, Tensor] = {}

    def expect(self, samples: Samples) -> None:
        """Takes the samples that the gradients of the coming backward are compared with."""
        self._expected = {index: deque(kept) for index, kept in samples.items()}

    def see(self, index: int, gradient: Tensor, scale: Tensor | float = 1.0) -> None:
        """Compares a gradient that is multiplied by the loss scale with its slot's next sample."""
        waiting = self._expected.get(index)
        if not waiting:
            return
        sample = waiting.popleft()
        if not waiting:
            del self._expected[index]
        found = _comparable(gradient)
        device = sample.values.device
        if found is None or found.shape != sample.shape or found.device != device:
            return
        if isinstance(scale, Tensor):
            scale = scale.detach().to(device, torch.float64, non_blocking=True)
        # Both scaled: FP64 holds the product of any FP32 number and a scale.
        truth = widened(sample.values) * scale
        run = widened(sampled(found, sample.limit))
        if device not in self._sums:
            self._sums[device] = truth.new_zeros(self._slots, _COLUMNS)
        self._sums[device][index] += _sums(truth, run)

    def clear(self) -> None:
        """Drops the samples that found no counterpart: at the end of the compared micro-batch."""
        self._expected = {}

    def send(self) -> "SentComparison":
        """Sends the sums to the host and starts again, without samples."""
        self.clear()
        sent = SentComparison(Parcel(list(self._sums.values())))
        self._sums = {}
        return sent


@dataclass(frozen=True)
class SentComparison:
    """The sums of a step's comparison, on their way."""

    parcel: Parcel

    def shadows(self, slots: Sequence[str]) -> tuple[Shadow, ...]:
        """Returns what was found, once it has arrived, of each slot with a pair to compare.

        Args:
            slots: Names of all slots, by index.
        """
        arrived = self.parcel.tensors()
        if not arrived:
            return ()
        rows = torch.stack(arrived).sum(0).tolist()
        return tuple(
            _shadow(slot, row) for slot, row in zip(slots, rows, strict=True) if row[_SAMPLED]
        )


def _comparable(gradient: Tensor) -> Tensor | None:
    """Returns the plain dense tensor a gradient is, or None where it has no such elements."""
    if not is_watched_dtype(gradient.dtype) or gradient.is_nested or is_transformed(gradient):
        return None
    return plain(gradient) if gradient.layout is torch.strided else None


def _sums(truth: Tensor, run: Tensor) -> Tensor:
    """Returns the sums [_COLUMNS] over pairs of FP64 elements [n], both finite."""
    finite = truth.isfinite() & run.isfinite()
    truth, run = torch.where(finite, truth, 0.0), torch.where(finite, run, 0.0)
    zero, run_zero = finite & (truth == 0), finite & (run == 0)
    difference = run - truth
    columns = {
        _SAMPLED: finite.sum(),
        _ZEROS: zero.sum(),
        _RUN_ZEROS: run_zero.sum(),
        _FLUSHED: (run_zero & ~zero).sum(),
        _ERROR: difference @ difference,
        _TRUTH: truth @ truth,
        _RUN: run @ run,
        _DOT: run @ truth,
    }
    return torch.stack([columns[column].to(torch.float64) for column in range(_COLUMNS)])


def _shadow(slot: str, row: Sequence[float]) -> Shadow:
    truth, run = math.sqrt(row[_TRUTH]), math.sqrt(row[_RUN])
    return Shadow(
        slot,
        sampled=int(row[_SAMPLED]),
        zeros=int(row[_ZEROS]),
        run_zeros=int(row[_RUN_ZEROS]),
        flushed=int(row[_FLUSHED]),
        relative_error=math.sqrt(row[_ERROR]) / truth if truth else None,
        cosine=max(-1.0, min(1.0, row[_DOT] / truth / run)) if truth and run else None,
    )
