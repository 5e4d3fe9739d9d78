"""The format table as rows of plain data, for `numwatch formats`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from numwatch.formats.blocks import BLOCK_FORMATS
from numwatch.formats.table import FORMATS

if TYPE_CHECKING:
    from numwatch.formats.types import Format


def format_rows() -> list[dict[str, object]]:
    """Returns one row a format, then one a block format; JSON-serialisable, the same keys in each.

    A block format's row holds its element's figures. `bits` is a float: what an element takes, its
    share of the block's scale included. `block` reads `rows x columns`. None stands where a column
    has no meaning.
    """
    rows = [
        {
            "name": fmt.name,
            "kind": "format",
            "bits": float(fmt.bits),
            **_figures(fmt),
            "element": None,
            "block": None,
            "scale": None,
            "tensor_scale": None,
            "aliases": list(fmt.aliases),
        }
        for fmt in FORMATS.values()
    ]
    rows += [
        {
            "name": fmt.name,
            "kind": "block format",
            "bits": fmt.bits_per_element,
            **_figures(fmt.element),
            "element": fmt.element.name,
            "block": "x".join(map(str, fmt.block)),
            "scale": fmt.scale.name,
            "tensor_scale": "fp32" if fmt.tensor_scale else None,
            "aliases": list(fmt.aliases),
        }
        for fmt in BLOCK_FORMATS.values()
    ]
    return rows


def _figures(fmt: Format) -> dict[str, object]:
    return {
        "exponent_bits": fmt.exponent_bits,
        "mantissa_bits": fmt.mantissa_bits,
        "bias": None if fmt.is_integer else fmt.bias,
        "max": fmt.max,
        "min": fmt.min,
        "smallest_normal": None if fmt.is_integer else fmt.smallest_normal,
        "smallest_subnormal": fmt.smallest_subnormal,
        "eps": fmt.eps,
        "flush_threshold": fmt.flush_threshold,
        "binades": fmt.binades,
        "has_inf": fmt.has_inf,
        "has_nan": fmt.has_nan,
        "torch_dtype": fmt.torch_name and f"torch.{fmt.torch_name}",
    }
