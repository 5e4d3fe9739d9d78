"""How the GPU kernels are compiled."""

from typing import Any

import triton


def jit(function: Any, **options: Any) -> Any:
    """Compiles for the device when first launched; interprets under TRITON_INTERPRET=1."""
    return triton.jit(function, **options)
