"""What a tensor of a step that is run once more holds: NaN, infinities, the range of the rest.

Whoever asks waits for the device.
"""

from typing import Any

import torch
from torch import Tensor

from numwatch.stats.dtypes import FLOAT8_DTYPES, dtype_name

NAN, HIGH, LOW = 1, 2, 4
"""NaN, inf and -inf, in what `content_of` returns."""


def description(tensor: Tensor) -> dict[str, Any]:
    """Returns a tensor's `shape`, `dtype`, `low` and `high`, `nonfinite`: see `blame.Suspect`."""
    values = _values(tensor)
    finite = values[values.isfinite()].double()
    low, high = map(float, finite.aminmax()) if finite.numel() else (None, None)
    return {
        "shape": list(tensor.shape),
        "dtype": dtype_name(tensor.dtype),
        "low": low,
        "high": high,
        "nonfinite": values.numel() - finite.numel(),
    }


def is_nonfinite(tensor: Tensor) -> bool:
    """Whether a float tensor holds NaN or inf; of other tensors it is False. Waits for it."""
    return is_float(tensor) and bool(content_of(tensor))


def content_of(tensor: Tensor) -> int:
    """Returns which of NaN, inf and -inf a tensor holds."""
    values = _values(tensor)
    if values.isfinite().all():
        return 0
    nan, high, low = values.isnan().any(), (values == torch.inf).any(), (values == -torch.inf).any()
    return NAN * bool(nan) | HIGH * bool(high) | LOW * bool(low)


def _values(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    return tensor.float() if tensor.dtype in FLOAT8_DTYPES else tensor


def is_float(tensor: Tensor) -> bool:
    """Whether a tensor has elements of floats, in memory that can be read."""
    floating = tensor.is_floating_point() or tensor.is_complex()
    there = tensor.layout is torch.strided and not tensor.is_meta and not tensor.is_nested
    return floating and there and tensor.numel() > 0


def memory_of(tensor: Tensor) -> int | None:
    """Returns the address of a tensor's memory, which its views share."""
    if tensor.layout is not torch.strided or tensor.is_meta:
        return None
    return tensor.untyped_storage().data_ptr() or None
