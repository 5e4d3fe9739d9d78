"""Dataclasses as JSON has them."""

import dataclasses
import math
from typing import Any


def plain(value: Any) -> Any:
    """Returns plain values: dicts, lists, numbers, text.

    What JSON has no number for reads "Infinity", "-Infinity" or "NaN".
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {each.name: plain(getattr(value, each.name)) for each in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else f"{'-' if value < 0 else ''}Infinity"
    return value
