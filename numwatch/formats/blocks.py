"""The block formats, as data: elements that share a scale.

Sources: OCP Microscaling Formats 1.0 (MX); NVIDIA, "Pretraining Large Language Models with NVFP4",
arXiv:2509.25149 (NVFP4); DeepSeek-V3, arXiv:2412.19437, and Transformer Engine's
`Float8BlockScaling` recipe (block FP8).
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from numwatch.formats.table import FORMATS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numwatch.formats.types import Format


@dataclass(frozen=True)
class BlockFormat:
    """Elements of one format in blocks that share a scale.

    Attributes:
        name: Canonical name.
        element: Format of the elements.
        block: Elements a block spans: (along the other dimension, along the quantised dimension).
        scale: Format of a block's scale.
        tensor_scale: Whether one FP32 scale for the whole tensor stands above the blocks' scales.
        aliases: Other spellings.
    """

    name: str
    element: Format
    block: tuple[int, int]
    scale: Format
    tensor_scale: bool = False
    aliases: tuple[str, ...] = ()

    @property
    def block_size(self) -> int:
        """Number of elements in a block."""
        return self.block[0] * self.block[1]

    @property
    def is_mx(self) -> bool:
        """Whether the scale is a bare power of two in E8M0, chosen by one of the MX rules."""
        return self.scale.name == "e8m0"

    @property
    def bits_per_element(self) -> float:
        """Storage an element takes, its share of the block's scale included."""
        return self.element.bits + self.scale.bits / self.block_size


def _mx(name: str, element: str, *aliases: str) -> BlockFormat:
    return BlockFormat(name, FORMATS[element], (1, 32), FORMATS["e8m0"], aliases=aliases)


_ALL = (
    _mx("mxfp8-e4m3", "e4m3", "mxfp8", "mxfp8-e4m3fn"),
    _mx("mxfp8-e5m2", "e5m2"),
    _mx("mxfp6-e3m2", "e3m2", "mxfp6"),
    _mx("mxfp6-e2m3", "e2m3"),
    _mx("mxfp4", "e2m1", "mxfp4-e2m1"),
    _mx("mxint8", "mxint8"),
    BlockFormat("nvfp4", FORMATS["e2m1"], (1, 16), FORMATS["e4m3"], tensor_scale=True),
    BlockFormat("block-fp8-1x128", FORMATS["e4m3"], (1, 128), FORMATS["fp32"]),
    BlockFormat("block-fp8-128x128", FORMATS["e4m3"], (128, 128), FORMATS["fp32"]),
)

BLOCK_FORMATS: Mapping[str, BlockFormat] = MappingProxyType({fmt.name: fmt for fmt in _ALL})
"""Every block format by its canonical name."""
