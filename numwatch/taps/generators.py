"""The global random number generators: their states, taken often and cheaply, set again seldom."""

import ctypes
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

_MT19937_BYTES = 625 * 4  # 624 words and a position


@dataclass(frozen=True, eq=False)
class RandomStates:
    """Where every global generator stood.

    Attributes:
        cpu: torch's for the CPU, uint8.
        cuda: torch's for each device's index, uint8 on the host.
        numpy: `numpy.random.get_state()`.
        python: `random.getstate()`.
    """

    cpu: Tensor
    cuda: Mapping[int, Tensor]
    numpy: tuple[Any, ...]
    python: tuple[Any, ...]

    def set(self) -> None:
        """Puts the generators where they stood."""
        torch.set_rng_state(self.cpu)
        for index, state in self.cuda.items():
            torch.cuda.set_rng_state(state, index)
        np.random.set_state(self.numpy)  # noqa: NPY002  # users' own
        random.setstate(self.python)

    def as_plain(self) -> dict[str, Any]:
        """Returns them as tensors, numbers and texts in lists and dictionaries."""
        name, keys, *rest = self.numpy
        return {
            "cpu": self.cpu,
            "cuda": dict(self.cuda),
            "numpy": [name, torch.tensor(keys.tolist(), dtype=torch.int64, device="cpu"), *rest],
            "python": [self.python[0], list(self.python[1]), self.python[2]],
        }

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> "RandomStates":
        """Returns what `as_plain` was made of."""
        name, keys, *rest = plain["numpy"]
        version, words, gauss = plain["python"]
        numpy_state = (name, np.array(keys.tolist(), dtype=np.uint32), *rest)
        return cls(plain["cpu"], plain["cuda"], numpy_state, (version, tuple(words), gauss))


class Generators:
    """Takes the states at a cost of some ten microseconds, and without waiting for a device."""

    def __init__(self, devices: Iterable[torch.device] = ()) -> None:
        self._cuda = sorted({d.index or 0 for d in devices if d.type == "cuda"})
        self._numpy: tuple[Any, ...] | None = None
        self._seen: tuple[Any, bytes] | None = None

    def take(self) -> RandomStates:
        """Returns where the generators stand."""
        cuda = {index: torch.cuda.get_rng_state(index) for index in self._cuda}
        return RandomStates(torch.get_rng_state(), cuda, self._numpy_state(), random.getstate())

    def _numpy_state(self) -> tuple[Any, ...]:
        """Returns numpy's state, anew only where its memory has changed: it takes 100 us."""
        bits = np.random.get_bit_generator()  # type: ignore[attr-defined]
        seen = (bits, b"")
        if isinstance(bits, np.random.MT19937):
            seen = (bits, ctypes.string_at(bits.ctypes.state_address, _MT19937_BYTES))
        known = self._numpy
        # A cached second Gaussian is drawn without a change to that memory.
        stands = known is not None and seen[1] and seen == self._seen and not known[3]
        if known is None or not stands:
            known = np.random.get_state(legacy=True)  # type: ignore[assignment]  # noqa: NPY002
            self._numpy, self._seen = known, seen
        return known  # type: ignore[return-value]
