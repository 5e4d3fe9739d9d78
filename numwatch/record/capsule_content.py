"""What a capsule must hold before anything rests on it: a stranger may have written it."""

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from numwatch.taps.generators import RandomStates

_FACTS: dict[str, type] = {
    **dict.fromkeys(("step", "epoch", "batch_index", "micro_batches"), int),
    **dict.fromkeys(("reason", "precision", "default_dtype"), str),
    "notes": list,
}
_NUMBERS = ("loss", "gradient_norm", "loss_scale")
_ORIGIN = ("phase", "module", "operation", "tensor", "value")


def flaw_of(facts: Any, state: Any) -> str | None:
    """Returns what is not as numwatch writes it, in a few words; None where all is.

    Parts of the state may be missing or None: they could not be kept.

    Args:
        facts: The content of `capsule.json`.
        state: The content of `state.pt`.
    """
    if not isinstance(facts, dict) or not isinstance(state, dict):
        return "it holds no facts or no state"
    for name, kind in _FACTS.items():
        if not isinstance(facts.get(name), kind):
            return f"its facts lack {name}"
    if "autocast" not in facts:  # None says that there was none
        return "its facts lack autocast"
    for name in _NUMBERS:
        if not _is_hex(facts.get(name)):
            return f"{name} is no `float.hex`"
    checks = {
        "micro_batches": facts["micro_batches"] > 0,
        "loss_scale": _is_scale(facts.get("loss_scale")),
        "default_dtype": _is_wide_dtype(facts["default_dtype"]),
        "autocast": facts.get("autocast") is None or _is_wide_dtype(facts["autocast"]),
        "notes": all(isinstance(note, str) for note in facts["notes"]),
        "exception": isinstance(facts.get("exception"), str | None),
        "origin": facts.get("origin") is None or _is_origin(facts["origin"]),
        "module": _is_named(state.get("module")),
        "buffers": _is_named(state.get("buffers")) and _are_tensors(state.get("buffers")),
        "random": state.get("random") is None or _is_random(state["random"]),
        "scaler": state.get("scaler") is None or _is_scaler(state["scaler"]),
    }
    return next((f"its {name} is damaged" for name, sound in checks.items() if not sound), None)


def _is_hex(value: Any) -> bool:
    try:
        float.fromhex("0x0p0" if value is None else value)
    except (TypeError, ValueError, OverflowError):
        return False
    return True


def _is_scale(text: str | None) -> bool:
    """Whether a scaler can stand there; it has no floor, so at 0 too, but never at NaN."""
    scale = 1.0 if text is None else float.fromhex(text)
    return scale >= 0


def _is_wide_dtype(name: Any) -> bool:
    """Whether torch computes in it by default or under autocast: no 8-bit dtype."""
    dtype = getattr(torch, name, None) if isinstance(name, str) else None
    return isinstance(dtype, torch.dtype) and dtype.is_floating_point and dtype.itemsize > 1


def _is_origin(origin: Any) -> bool:
    if not isinstance(origin, dict) or not isinstance(origin.get("inputs"), list):
        return False
    inputs = all(
        isinstance(taken, dict) and {"dtype", "low", "high"} <= taken.keys()
        for taken in origin["inputs"]
    )
    return inputs and all(isinstance(origin.get(name), str) for name in _ORIGIN)


def _is_named(part: Any) -> bool:
    named = isinstance(part, Mapping) and all(isinstance(name, str) for name in part)
    return part is None or named


def _are_tensors(part: Mapping[str, Any] | None) -> bool:
    return all(isinstance(value, Tensor) for value in (part or {}).values())


def _is_random(plain: Any) -> bool:
    """Whether generators of their own take the states."""
    try:
        states = RandomStates.from_plain(plain)
        torch.Generator().set_state(states.cpu)
        np.random.RandomState().set_state(states.numpy)  # the global one's kind
        random.Random().setstate(states.python)  # noqa: S311  # no secret
    except Exception:  # noqa: BLE001  # each has errors of its own
        return False
    return isinstance(states.cuda, Mapping) and all(
        type(index) is int and isinstance(state, Tensor) for index, state in states.cuda.items()
    )


def _is_scaler(state: Any) -> bool:
    try:
        scaler = torch.amp.GradScaler("cpu")
        scaler.load_state_dict(state)
        scaler.scale(torch.ones((), device="cpu"))  # only now is its scale looked at
    except Exception:  # noqa: BLE001  # it checks nothing itself
        return False
    return True
