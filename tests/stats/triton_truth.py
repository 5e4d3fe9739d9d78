"""What a GPU kernel must say: the reference's counts, and its sums within FP32 rounding."""

import torch
from bit_patterns import DTYPES
from thorough import THOROUGH

import numwatch.stats as nws
from numwatch.stats import reference

SOME_DTYPES = DTYPES if THOROUGH else (torch.float64, torch.bfloat16, torch.float8_e4m3fn)
"""One of each way to be read, for what does not turn on the format."""


def assert_rows_agree(rows, expected, *, ulps=16):
    """Counts and extremes equal; sums within some FP32 roundings of what they could be at most."""
    (counts, reals), (counts_expected, reals_expected) = rows, expected
    assert counts.tolist() == counts_expected.tolist()
    for column in (nws.AMAX, nws.AMIN):
        assert reals[:, column].tolist() == reals_expected[:, column].tolist()
    wanted = reals_expected[:, nws.SUMSQ]
    # By Cauchy and Schwarz the sum of magnitudes is at most the root of this.
    most = (wanted * counts_expected[:, nws.NUMEL]).sqrt()
    finite = wanted.isfinite() & most.isfinite()
    step = ulps * 2.0**-24
    assert ((reals[:, nws.SUMSQ] - wanted).abs() <= step * wanted)[finite].all()
    difference = (reals[:, nws.SUM] - reals_expected[:, nws.SUM]).abs()
    assert (difference <= step * most)[finite].all()


def assert_agrees(kernel, x, *, amax_only=False):
    """Of one tensor, in the middle one of three rows."""
    name = "accumulate_amax" if amax_only else "accumulate"
    rows, expected = nws.new_rows(3, x.device), nws.new_rows(3, x.device)
    getattr(kernel, name)(x, *rows, 1)
    getattr(reference, name)(x, *expected, 1)
    assert_rows_agree([r.cpu() for r in rows], [r.cpu() for r in expected])


def random_bits(dtype, n, seed=0):
    """A tensor [n] of any bit patterns."""
    generator = torch.Generator().manual_seed(seed)
    size = (n * dtype.itemsize,)
    return torch.randint(0, 256, size, dtype=torch.uint8, generator=generator).view(dtype)
