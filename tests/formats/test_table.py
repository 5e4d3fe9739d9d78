"""The format table against the facts it was written from, and against three libraries."""

import dataclasses
import json
import math

import gfloat.formats
import ml_dtypes
import numpy as np
import pytest
import torch
from grids import ORACLES, SMALL_FLOATS, magnitudes, values

from numwatch.formats import BLOCK_FORMATS, FORMATS, format_rows

# name: max, smallest normal, smallest subnormal, eps, flush threshold, binades
FIGURES = {
    "fp32": (3.4028234663852886e38, 2**-126, 2**-149, 2**-23, 2**-150, 277),
    "bf16": (3.3895313892515355e38, 2**-126, 2**-133, 2**-7, 2**-134, 261),
    "fp16": (65504, 2**-14, 2**-24, 2**-10, 2**-25, 40),
    "e4m3": (448, 2**-6, 2**-9, 2**-3, 2**-10, 18),
    "e4m3fnuz": (240, 2**-7, 2**-10, 2**-3, 2**-11, 18),
    "e5m2": (57344, 2**-14, 2**-16, 2**-2, 2**-17, 32),
    "e5m2fnuz": (57344, 2**-15, 2**-17, 2**-2, 2**-18, 33),
    "e3m2": (28, 2**-2, 2**-4, 2**-2, 2**-5, 9),
    "e2m3": (7.5, 1, 2**-3, 2**-3, 2**-4, 6),
    "e2m1": (6, 1, 0.5, 0.5, 0.25, 4),
}


@pytest.mark.parametrize("name", FIGURES)
def test_figures_are_those_of_the_specifications(name):
    fmt = FORMATS[name]
    assert (
        fmt.max,
        fmt.smallest_normal,
        fmt.smallest_subnormal,
        fmt.eps,
        fmt.flush_threshold,
        fmt.binades,
    ) == FIGURES[name]
    assert fmt.min == -fmt.max
    assert fmt.tiny == fmt.smallest_normal


def test_formats_that_are_not_like_the_others():
    tf32, e8m0, int8, mxint8 = (FORMATS[n] for n in ("tf32", "e8m0", "int8", "mxint8"))
    assert (tf32.bits, tf32.binades, tf32.max) == (19, 254, (2 - 2**-10) * 2.0**127)
    assert tf32.smallest_subnormal == tf32.smallest_normal == 2**-126
    assert (e8m0.max, e8m0.min, e8m0.binades, e8m0.eps) == (2.0**127, 2.0**-127, 255, 1)
    assert e8m0.flush_threshold == 0.0
    assert (int8.max, int8.min, int8.smallest_subnormal, int8.eps) == (127, -128, 1, 1)
    assert (mxint8.max, mxint8.min, mxint8.smallest_subnormal) == (1 + 63 / 64, -2, 2**-6)
    # All of an integer's values are like subnormals: evenly spaced.
    assert int8.smallest_normal > int8.max
    assert mxint8.smallest_normal > mxint8.max


def test_emax_is_the_mx_specifications():
    expected = {"e4m3": 8, "e5m2": 15, "e3m2": 4, "e2m3": 2, "e2m1": 2, "mxint8": 0}
    assert {name: FORMATS[name].emax for name in expected} == expected


@pytest.mark.parametrize(
    "fmt",
    [f for f in FORMATS.values() if f.torch_dtype is not None and not f.is_integer],
    ids=lambda f: f.name,
)
def test_torch_finfo_agrees(fmt):
    info = torch.finfo(fmt.torch_dtype)
    assert (fmt.bits, fmt.max) == (info.bits, info.max)
    if fmt.name != "e5m2fnuz":  # torch says 0.125 there; its own next value after 1 is 1.25
        assert fmt.eps == info.eps
    assert (fmt.min, fmt.tiny) == (info.min, info.tiny)


@pytest.mark.parametrize("name", ORACLES)
def test_ml_dtypes_finfo_agrees(name):
    fmt, info = FORMATS[name], ml_dtypes.finfo(ORACLES[name][0])
    assert fmt.max == float(info.max)
    assert fmt.min == float(info.min)
    assert fmt.smallest_normal == float(info.smallest_normal)
    assert fmt.smallest_subnormal == float(info.smallest_subnormal)
    assert fmt.eps == float(info.eps)


@pytest.mark.parametrize("fmt", SMALL_FLOATS, ids=lambda f: f.name)
def test_every_code_decodes_to_a_value_of_the_format_and_to_no_other(fmt):
    dtype, gfloat_format = ORACLES[fmt.name]
    codes = np.arange(2**fmt.bits, dtype=np.uint16 if fmt.bits == 16 else np.uint8)
    with np.errstate(invalid="ignore"):  # NaN codes
        decoded = [codes.view(dtype).astype(np.float64)]
    if gfloat_format is not None:
        decoded.append(gfloat.decode_ndarray(gfloat_format, codes.astype(np.int64)))
    if fmt.torch_dtype is not None:
        decoded.append(torch.from_numpy(codes).view(fmt.torch_dtype).double().numpy())
    for found in decoded:
        assert np.array_equal(np.unique(found[np.isfinite(found)]), values(fmt))
        assert np.isinf(found).any() == fmt.has_inf
        assert np.isnan(found).any() == fmt.has_nan
        assert (np.signbit(found) & (found == 0)).any() == fmt.has_negative_zero


def test_every_code_of_the_mx_integer():
    fmt, codes = FORMATS["mxint8"], np.arange(256)
    found = gfloat.decode_ndarray(gfloat.formats.format_info_ocp_int8, codes)
    assert np.array_equal(np.unique(found), values(fmt))


@pytest.mark.parametrize("fmt", SMALL_FLOATS, ids=lambda f: f.name)
def test_binades_and_flush_threshold_are_those_of_the_values(fmt):
    positive = magnitudes(fmt)
    positive = positive[positive > 0]
    assert len({math.frexp(v)[1] for v in positive}) == fmt.binades
    assert fmt.smallest_subnormal == positive[0]
    assert positive[positive > 1][0] - 1 == fmt.eps


def test_formats_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        FORMATS["e4m3"].max = 240.0
    with pytest.raises(dataclasses.FrozenInstanceError):
        BLOCK_FORMATS["mxfp4"].block = (1, 16)
    with pytest.raises(TypeError):
        FORMATS["e4m3"] = FORMATS["e5m2"]


@pytest.mark.parametrize(
    ("name", "element", "block", "scale", "bits"),
    [
        ("mxfp8-e4m3", "e4m3", (1, 32), "e8m0", 8.25),
        ("mxfp8-e5m2", "e5m2", (1, 32), "e8m0", 8.25),
        ("mxfp6-e3m2", "e3m2", (1, 32), "e8m0", 6.25),
        ("mxfp6-e2m3", "e2m3", (1, 32), "e8m0", 6.25),
        ("mxfp4", "e2m1", (1, 32), "e8m0", 4.25),
        ("mxint8", "mxint8", (1, 32), "e8m0", 8.25),
        ("nvfp4", "e2m1", (1, 16), "e4m3", 4.5),
        ("block-fp8-1x128", "e4m3", (1, 128), "fp32", 8.25),
        ("block-fp8-128x128", "e4m3", (128, 128), "fp32", 8 + 2**-9),
    ],
)
def test_block_formats(name, element, block, scale, bits):
    fmt = BLOCK_FORMATS[name]
    assert (fmt.element.name, fmt.block, fmt.scale.name) == (element, block, scale)
    assert fmt.bits_per_element == bits
    assert fmt.tensor_scale == (name == "nvfp4")
    assert fmt.is_mx == name.startswith("mx")


def test_rows_hold_every_format_as_plain_data():
    rows = format_rows()
    assert [row["name"] for row in rows] == [*FORMATS, *BLOCK_FORMATS]
    assert len({tuple(row) for row in rows}) == 1
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows
    by_kind = {(row["kind"], row["name"]): row for row in rows}
    assert by_kind["format", "e4m3"]["max"] == 448.0
    assert by_kind["format", "int8"]["smallest_normal"] is None
    assert by_kind["block format", "nvfp4"] | {"aliases": []} == {
        "name": "nvfp4",
        "kind": "block format",
        "bits": 4.5,
        "exponent_bits": 2,
        "mantissa_bits": 1,
        "bias": 1,
        "max": 6.0,
        "min": -6.0,
        "smallest_normal": 1.0,
        "smallest_subnormal": 0.5,
        "eps": 0.5,
        "flush_threshold": 0.25,
        "binades": 4,
        "has_inf": False,
        "has_nan": False,
        "torch_dtype": None,
        "element": "e2m1",
        "block": "1x16",
        "scale": "e4m3",
        "tensor_scale": "fp32",
        "aliases": [],
    }
