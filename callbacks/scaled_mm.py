"""Float8 products on a CPU: which kernel computes them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from pytorch_lightning.utilities.rank_zero import rank_zero_info  # type: ignore[attr-defined]

SLOWER = 10.0
"""Times that oneDNN must take longer than torch's own kernel to be left: where it has one of its
own it is faster, where it has its reference it takes a thousand times as long."""
_SIZE = 64
_TRIES = 3


class OneDNNOff:
    """Switches oneDNN off for a fit whose float8 products it would compute by its reference kernel.

    On CPUs with AMX but without FP8 instructions oneDNN takes 0.5 s for what torch's own kernel
    does in 0.5 ms. Other products lose oneDNN too meanwhile.
    """

    def __init__(self) -> None:
        self._before: bool | None = None

    def enter(self, device: torch.device) -> None:
        """Switches it off where that pays; a second time it does nothing."""
        if device.type != "cpu" or self._before is not None or not torch.backends.mkldnn.enabled:
            return
        slower = onednn_slowdown()
        if slower > SLOWER:
            rank_zero_info(
                f"oneDNN takes {slower:.0f} times as long as torch's own kernel for float8 "
                "products on this CPU; it is switched off for the fit"
            )
            self._before = True
            torch.backends.mkldnn.enabled = False  # type: ignore[assignment]

    def leave(self) -> None:
        """Switches it on again, if it was this that switched it off."""
        if self._before is not None:
            torch.backends.mkldnn.enabled = self._before  # type: ignore[assignment]
            self._before = None


def onednn_slowdown() -> float:
    """Returns how many times longer a small E4M3 product takes with oneDNN than without."""
    with_it = _seconds()
    with without_onednn():
        return with_it / _seconds()


@contextmanager
def without_onednn() -> Iterator[None]:
    """Within it torch computes matrix products on a CPU without oneDNN."""
    before = torch.backends.mkldnn.enabled
    torch.backends.mkldnn.enabled = False  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.backends.mkldnn.enabled = before


def _seconds() -> float:
    """The fastest of a few small products."""
    x = torch.ones(_SIZE, _SIZE).to(torch.float8_e4m3fn)
    one = torch.ones(())
    taken = []
    for _ in range(_TRIES):
        began = time.perf_counter()
        torch._scaled_mm(x, x.t(), one, one, out_dtype=torch.bfloat16)  # noqa: SLF001  # no other name
        taken.append(time.perf_counter() - began)
    return min(taken)
