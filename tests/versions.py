"""What the oldest supported libraries can't do: marks that skip, and say which version could."""

from importlib.metadata import version

import pytest
import torch
from packaging.version import Version


def needs(library: str, lowest: str, what: str) -> pytest.MarkDecorator:
    """Skips where the installed library is older than the first release that has `what`."""
    found = version(library)
    reason = f"{library} {found}: {what} came with {lowest}"
    return pytest.mark.skipif(Version(found) < Version(lowest), reason=reason)


SCALED_MM = Version(torch.__version__) >= Version("2.8")
"""Whether `torch._scaled_mm` has a kernel for CPUs."""
needs_scaled_mm = needs("torch", "2.8", "a kernel of FP8 products for CPUs")

FSDP2 = Version(torch.__version__) >= Version("2.7")
"""Whether `fully_shard` shards on CPUs."""
needs_fsdp2 = needs("torch", "2.7", "FSDP2 on CPUs")
