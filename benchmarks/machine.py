"""What a figure was measured on."""

import datetime as dt
import os
import platform
import re
from importlib.metadata import version

import numpy as np
import torch

import numwatch


def machine(device: str) -> dict[str, object]:
    """Returns device, date and versions, to stand beside figures in a result file."""
    return {
        "device": _hardware(device),
        "date": dt.datetime.now(tz=dt.timezone.utc).date().isoformat(),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "versions": {
            "python": platform.python_version(),
            "numpy": np.__version__,
            "torch": torch.__version__,
            "numba": version("numba"),
            "numwatch": numwatch.__version__,
        },
    }


def device_name(device: str) -> str:
    """Returns the device as part of a file name: `cpu`, or the GPU's name."""
    if not device.startswith("cuda"):
        return device
    return re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name(device).lower()).strip("-")


def _hardware(device: str) -> str:
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:  # noqa: PTH123
            names = [line.split(":", 1)[1].strip() for line in file if "model name" in line]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()
