"""From any tensor a user may have to a flat dense one, without copying where that is possible."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from numwatch.errors import NumwatchError
from numwatch.stats.dtypes import dtype_name, is_watched_dtype


class NotWatchedError(NumwatchError, TypeError):
    """A tensor whose statistics numwatch does not take: integers, bools, complex, no data."""


_PLAIN = frozenset({Tensor, Parameter})
LOW = 1 << 40
"""Where allocators seldom put anything; an offset without memory leads there."""


def is_flat(x: Tensor) -> bool:
    """Whether the memory of a CPU tensor can be read from its start to its end as it is.

    False where it takes `dense` to find out.
    """
    return is_plain(x) and (x.is_contiguous() or _is_dense_in_some_order(x))


def is_plain(x: Tensor) -> bool:
    """Whether a tensor's memory holds its elements, wherever each of them lies."""
    return type(x) in _PLAIN and x.layout is torch.strided and not x.is_neg() and not x.is_nested


_is_dense_in_some_order = torch.ops.aten.is_non_overlapping_and_dense.default
"""Transposed, channels-last: no element is skipped, and none is there twice."""


def address_of(x: Tensor) -> int:
    """Returns where x's first element lies in the CPU's memory.

    Raises:
        NotWatchedError: If x has elements but its memory was freed, or it never had any.
    """
    address = x.data_ptr()
    if address < LOW and address == x.storage_offset() * x.itemsize and x.numel():
        raise NotWatchedError("statistics need data; got a tensor without memory of its own")
    return address


def dense(x: Tensor) -> tuple[Tensor, int]:
    """Returns x's elements as a flat contiguous detached tensor, and how many zeros it leaves out.

    The order of elements is that of memory, not of indices. A DTensor gives its local shard; a
    sparse tensor its values, the zeros it does not store being left out (duplicate entries of an
    uncoalesced one are added up first); a wrapping subclass what it dequantises to.

    Returns:
        A plain 1-D tensor of a watched dtype, sharing x's memory where x is dense and without
        overlap, and the number of elements of x that are zero by not being stored.

    Raises:
        NotWatchedError: If the dtype is not watched, or there is no data (a meta tensor).
    """
    x = plain(x)
    left_out = 0
    if x.layout is not torch.strided:
        x, left_out = _stored(x)
    if x.is_neg():
        x = x.resolve_neg()
    return _flat(x), left_out


def plain(x: Tensor) -> Tensor:
    """Returns x as a detached `torch.Tensor` of a watched dtype: no subclass, no shards."""
    x = x.detach()
    if type(x) is not Tensor:
        x = _unwrapped(x)
    if x.is_nested:
        raise NotWatchedError(
            "statistics are taken of nested tensors of layout torch.jagged; got a strided one: "
            "make it with layout=torch.jagged"
        )
    if not is_watched_dtype(x.dtype):
        raise NotWatchedError(
            f"statistics are taken of float32, float64, float16, bfloat16 and float8 tensors; "
            f"got {dtype_name(x.dtype)}: convert it first"
        )
    if x.is_meta:
        raise NotWatchedError("statistics need data; got a tensor on the meta device")
    return x


def _unwrapped(x: Any) -> Tensor:
    # By what they offer, not by class: DTensor, then async results, then quantised wrappers.
    for method in ("to_local", "wait"):
        if hasattr(x, method):
            x = getattr(x, method)()
    if x.is_nested:
        x = torch.cat([part.detach().reshape(-1) for part in x.unbind()])
    if hasattr(x, "__tensor_flatten__"):
        x = _dequantised(x)
    plain_tensor: Tensor = x.detach().as_subclass(Tensor)
    return plain_tensor


def _dequantised(x: Any) -> Any:
    for method in ("to_original_precision", "dequantize"):
        if hasattr(type(x), method):
            try:
                return getattr(x, method)()
            except (NotImplementedError, RuntimeError):
                continue
    raise NotWatchedError(f"a {type(x).__name__} offers no plain tensor; dequantise it first")


def _stored(x: Tensor) -> tuple[Tensor, int]:
    """The values a sparse tensor stores, and the number of zeros it does not."""
    if x.layout is torch.sparse_coo:
        values = x.coalesce().values()
    elif x.layout in (torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc):
        values = x.values()
    else:
        return x.to_dense(), 0
    return values, x.numel() - values.numel()


def _flat(x: Tensor) -> Tensor:
    if x.is_contiguous():
        return x if x.dim() == 1 else x.view(-1)
    # Largest stride first: where nothing overlaps and nothing is skipped (transposed,
    # channels-last) that order is contiguous. Elsewhere it is the best order to copy in.
    order = sorted(range(x.dim()), key=x.stride, reverse=True)
    return x.permute(order).reshape(-1).contiguous()


def matrix(x: Tensor) -> Tensor:
    """Returns x's elements as a plain matrix [rows, last dimension], sharing memory if it can.

    Raises:
        NotWatchedError: See `dense`.
    """
    x = plain(x)
    x = x if x.layout is torch.strided else x.to_dense()
    x = x.resolve_neg()
    if x.dim() == 0:
        return x.reshape(1, 1)
    return x.reshape(-1, x.shape[-1]) if x.numel() else x.reshape(0, 1)
