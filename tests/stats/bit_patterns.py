"""Tensors of arbitrary bit patterns, and an oracle that reads them with numpy and exact sums."""

import math

import ml_dtypes
import numpy as np
import torch
from hypothesis import strategies as st

from numwatch.stats import TensorStats

NUMPY_DTYPES = {
    torch.float64: np.float64,
    torch.float32: np.float32,
    torch.float16: np.float16,
    torch.bfloat16: ml_dtypes.bfloat16,
    torch.float8_e4m3fn: ml_dtypes.float8_e4m3fn,
    torch.float8_e5m2: ml_dtypes.float8_e5m2,
    torch.float8_e4m3fnuz: ml_dtypes.float8_e4m3fnuz,
    torch.float8_e5m2fnuz: ml_dtypes.float8_e5m2fnuz,
}
DTYPES = tuple(NUMPY_DTYPES)


def patterns(dtype, max_size=300):
    """Tensors [n] of raw bytes: all NaN payloads, infinities, -0 and subnormals are among them."""
    width = dtype.itemsize
    edges = edge_values(dtype)
    raw = st.binary(min_size=width, max_size=width)
    elements = st.one_of(raw, st.sampled_from(edges))
    return st.lists(elements, max_size=max_size).map(lambda parts: from_bytes(parts, dtype))


def from_bytes(parts, dtype):
    raw = torch.tensor(list(b"".join(parts)), dtype=torch.uint8)
    return raw.view(dtype)


def edge_values(dtype):
    """Little-endian bytes of 0, -0, the smallest subnormal, 1, all exponent bits set, and NaNs."""
    width = 8 * dtype.itemsize
    one = int.from_bytes(torch.ones(1, dtype=dtype).view(torch.uint8).numpy().tobytes(), "little")
    top = 1 << (width - 1)
    magnitudes = [0, 1, 2, 3, one, one + 1, top - 1]
    if dtype.itemsize > 1:
        inf = torch.full((1,), math.inf, dtype=dtype).view(torch.uint8).numpy().tobytes()
        infinity = int.from_bytes(inf, "little")
        magnitudes += [infinity - 1, infinity, infinity + 1]
    codes = magnitudes + [code | top for code in magnitudes]
    return [code.to_bytes(dtype.itemsize, "little") for code in codes]


def as_float64(x):
    """The tensor's values through ml_dtypes or numpy, not torch."""
    raw = x.contiguous().reshape(-1).view(torch.uint8).numpy()
    with np.errstate(invalid="ignore"):  # signalling NaNs
        return raw.view(NUMPY_DTYPES[x.dtype]).astype(np.float64)


def expected_stats(x) -> TensorStats:
    """The definition, element by element in Python, with exactly rounded sums."""
    values = as_float64(x).tolist()
    finite = [v for v in values if math.isfinite(v)]
    magnitudes = [abs(v) for v in finite if v]
    exponents = [max(min(math.frexp(m)[1] - 1, 127), -127) for m in magnitudes]
    first = min(exponents, default=0)
    binades = [0] * (max(exponents, default=first - 1) - first + 1)
    for exponent in exponents:
        binades[exponent - first] += 1
    return TensorStats(
        numel=len(values),
        zeros=len(finite) - len(magnitudes),
        nans=sum(math.isnan(v) for v in values),
        posinfs=sum(v == math.inf for v in values),
        neginfs=sum(v == -math.inf for v in values),
        pow2s=sum(math.frexp(m)[0] == 0.5 for m in magnitudes),
        amax=max(magnitudes, default=0.0),
        amin=min(magnitudes, default=math.inf),
        sum=_fsum(finite),
        sumsq=_fsum([v * v for v in finite]),
        binade_first=first,
        binades=tuple(binades),
        dtype=str(x.dtype).removeprefix("torch."),
    )


def _fsum(values):
    try:
        return math.fsum(values)
    except OverflowError:
        return math.nan


def assert_same(stats, expected):
    """Every count and extreme equal; the sums to FP64 rounding, where they are finite."""
    ours, theirs = stats.as_dict(), expected.as_dict()
    sums = {key: (ours.pop(key), theirs.pop(key)) for key in ("sum", "sumsq")}
    assert ours == theirs
    # Not the root of sumsq, which underflows for FP64.
    magnitude = expected.amax * expected.finites
    if not math.isfinite(magnitude) or not math.isfinite(expected.sumsq):
        return
    got, wanted = sums["sum"]
    assert abs(got - wanted) <= 1e-13 * magnitude
    got, wanted = sums["sumsq"]
    assert abs(got - wanted) <= 1e-13 * wanted
