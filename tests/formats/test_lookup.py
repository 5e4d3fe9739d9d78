"""Formats are found by the spellings of the field, and a wrong one is answered with near ones."""

import pytest
import torch

from numwatch.errors import NumwatchError
from numwatch.formats import (
    BLOCK_FORMATS,
    FORMATS,
    UnknownFormatError,
    get_block_format,
    get_format,
)


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("fp16", "fp16"),
        ("float16", "fp16"),
        ("half", "fp16"),
        ("torch.float16", "fp16"),
        ("FP16", "fp16"),
        ("bfloat16", "bf16"),
        ("torch.bfloat16", "bf16"),
        ("float", "fp32"),
        ("TF32", "tf32"),
        ("e4m3fn", "e4m3"),
        ("float8_e4m3fn", "e4m3"),
        ("torch.float8_e4m3fn", "e4m3"),
        ("fp8_e4m3", "e4m3"),
        ("FP8-E4M3", "e4m3"),
        ("fp8 e5m2", "e5m2"),
        ("float8_e5m2fnuz", "e5m2fnuz"),
        ("fp6_e3m2", "e3m2"),
        ("float4_e2m1fn_x2", "e2m1"),
        ("ue8m0", "e8m0"),
        ("int8", "int8"),
    ],
)
def test_usual_spellings(spelling, name):
    assert get_format(spelling) is FORMATS[name]


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("mxfp8", "mxfp8-e4m3"),
        ("MXFP8_E5M2", "mxfp8-e5m2"),
        ("mxfp6", "mxfp6-e3m2"),
        ("NVFP4", "nvfp4"),
        ("mxint8", "mxint8"),
        ("block_fp8_1x128", "block-fp8-1x128"),
    ],
)
def test_usual_spellings_of_block_formats(spelling, name):
    assert get_block_format(spelling) is BLOCK_FORMATS[name]


@pytest.mark.parametrize("formats", [FORMATS, BLOCK_FORMATS], ids=["formats", "block formats"])
def test_no_spelling_stands_for_two_formats(formats):
    spellings = [
        spelling.replace("-", "").replace("_", "")
        for fmt in formats.values()
        for spelling in {fmt.name, *fmt.aliases}
    ]
    assert len(spellings) == len(set(spellings))


@pytest.mark.parametrize("fmt", FORMATS.values(), ids=lambda f: f.name)
def test_a_torch_dtype_finds_the_format_that_it_stores(fmt):
    assert get_format(fmt) is fmt
    if fmt.torch_dtype is not None:
        assert get_format(fmt.torch_dtype) is fmt


def test_a_block_format_is_passed_through():
    assert get_block_format(BLOCK_FORMATS["mxfp4"]) is BLOCK_FORMATS["mxfp4"]


def test_an_unknown_name_is_answered_with_near_ones():
    with pytest.raises(UnknownFormatError) as error:
        get_format("float8_e4m2")
    text, _, hint = str(error.value).partition("; ")
    assert text == (
        "unknown format 'float8_e4m2': allowed are fp32, tf32, bf16, fp16, e4m3, e4m3fnuz, e5m2, "
        "e5m2fnuz, e3m2, e2m3, e2m1, e8m0, int8, mxint8"
    )
    assert "'float8_e4m3'" in hint
    assert isinstance(error.value, NumwatchError)
    assert isinstance(error.value, ValueError)


def test_an_unknown_block_format_is_answered_with_near_ones():
    with pytest.raises(UnknownFormatError, match=r"unknown block format 'mxfp5': .*'mxfp6'"):
        get_block_format("mxfp5")


def test_a_dtype_without_a_format_is_unknown():
    with pytest.raises(UnknownFormatError, match=r"unknown format 'torch.complex64': allowed"):
        get_format(torch.complex64)


def test_a_block_format_is_not_an_element_format():
    with pytest.raises(UnknownFormatError, match="'mxfp4' is a block format"):
        get_format("mxfp4")
