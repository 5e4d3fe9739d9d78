"""Mutations of bytes, text and plain values, all driven by one `random.Random`."""

import copy
import math
import random
import re
from collections.abc import Iterator, Sequence
from typing import Any

NUMBERS = (
    *(
        0,
        1,
        -1,
        2,
        127,
        128,
        255,
        256,
        2**31 - 1,
        2**31,
        2**53,
        2**63 - 1,
        2**63,
        -(2**63),
        10**400,
    ),
    *(0.5, -0.0, 1e-320, 1e308, math.nan, math.inf, -math.inf),
)
TEXTS = (
    *(
        "",
        " ",
        "\0",
        "\n",
        "\x1b]0;x\x07",
        "\N{SNOWMAN}" * 40,
        "a" * 3000,
        '"',
        "'",
        "\\",
        "#",
        ":",
    ),
    *("..", "../../x", "nan", "inf", "1e999", "0x1p99999", "0x1p-1074", "true", "null", "-0"),
    *("weight", "input", "grad_output", "fp16", "e4m3", "bf16", "float16", "cuda", ":input", "a.b"),
    *("9" * 5000, "1:" * 2000 + "1", "é", "\ud800"),
)
_TOKENS = re.compile(r"\w+|[ \t]+|\s|.", re.DOTALL)


def mutated_bytes(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """Flips, sets, cuts, repeats and splices a few stretches."""
    found = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        at = rng.randrange(len(found) + 1)
        length = rng.choice((1, 2, 4, 8, 64))
        kind = rng.randrange(7)
        if kind == 0 and found:
            found[at - 1] ^= 1 << rng.randrange(8)
        elif kind == 1 and found:
            found[at - 1] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        elif kind == 2:
            del found[at : at + length]
        elif kind == 3:
            found[at:at] = found[at : at + length] * rng.choice((1, 2, 100))
        elif kind == 4:
            found[at:at] = rng.randbytes(length)
        elif kind == 5:
            start = rng.randrange(len(other) + 1)
            found[at : at + length] = other[start : start + length]
        else:
            found = found[:at] if rng.random() < 0.2 else found
    return bytes(found)


def mutated_text(rng: random.Random, text: str, other: str, words: Sequence[str] = ()) -> str:
    """Replaces, drops, repeats and moves tokens and lines."""
    if rng.random() < 0.3:
        return _mutated_lines(rng, text, other)
    tokens = _TOKENS.findall(text)
    for _ in range(rng.choice((1, 1, 2, 5))):
        at = rng.randrange(len(tokens) + 1)
        kind = rng.randrange(5)
        if kind == 0:
            tokens[at : at + 1] = [_word(rng, words)]
        elif kind == 1:
            tokens.insert(at, _word(rng, words))
        elif kind == 2:
            del tokens[at : at + rng.choice((1, 1, 4))]
        elif kind == 3:
            tokens[at:at] = tokens[at : at + rng.choice((1, 4))] * rng.choice((1, 1, 60))
        elif tokens:
            there = rng.randrange(len(tokens))
            tokens[at - 1], tokens[there] = tokens[there], tokens[at - 1]
    return "".join(tokens)[:100_000]


def mutated_value(rng: random.Random, value: Any) -> Any:
    """Changes a few places of JSON-like containers: their types, sizes, names and values."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        places = list(_places(value))
        if not places or rng.random() < 0.01:
            return odd(rng)
        holder, key = rng.choice(places)
        _change(rng, holder, key, places)
    return value


def odd(rng: random.Random, depth: int = 0) -> Any:  # noqa: PLR0911  # one a kind
    """A value that may stand anywhere in JSON, and seldom should."""
    kind = rng.randrange(7 if depth < 3 else 4)
    if kind == 0:
        return rng.choice(NUMBERS)
    if kind == 1:
        return rng.choice(TEXTS)
    if kind == 2:
        return rng.choice((None, True, False))
    if kind == 3:
        return rng.randrange(-5, 300)
    if kind == 4:
        return [odd(rng, depth + 1) for _ in range(rng.randrange(4))]
    if kind == 5:
        return {rng.choice(TEXTS): odd(rng, depth + 1) for _ in range(rng.randrange(4))}
    nested: Any = []
    for _ in range(rng.choice((2, 60, 3000))):
        nested = [nested]
    return nested


def _change(rng: random.Random, holder: Any, key: Any, places: list[tuple[Any, Any]]) -> None:
    kind = rng.randrange(8)
    if kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(holder, list):
        holder.insert(key, copy.deepcopy(holder[key]))
    elif kind == 1:
        holder[rng.choice(TEXTS)] = holder.pop(key)
    elif kind == 2:
        there, name = rng.choice(places)
        if name in there if isinstance(there, dict) else name < len(there):
            holder[key] = copy.deepcopy(there[name])
    elif kind == 3 and isinstance(holder[key], str):
        holder[key] = mutated_text(rng, holder[key], "")
    elif kind == 4 and isinstance(holder[key], int | float):
        holder[key] = rng.choice((holder[key] * 2, -holder[key], rng.choice(NUMBERS)))
    elif kind == 5 and isinstance(holder[key], list):
        holder[key] = holder[key] * rng.choice((0, 2, 50))
    else:
        holder[key] = odd(rng)


def _places(value: Any, depth: int = 0) -> Iterator[tuple[Any, Any]]:
    if depth > 50:
        return
    keys = (
        list(value)
        if isinstance(value, dict)
        else range(len(value) if isinstance(value, list) else 0)
    )
    for key in keys:
        yield value, key
        yield from _places(value[key], depth + 1)


def _mutated_lines(rng: random.Random, text: str, other: str) -> str:
    lines, others = text.splitlines(keepends=True), other.splitlines(keepends=True) or [""]
    at = rng.randrange(len(lines) + 1)
    kind = rng.randrange(5)
    if kind == 0:
        del lines[at : at + 1]
    elif kind == 1:
        lines[at:at] = lines[at : at + 1] * rng.choice((1, 1, 40))
    elif kind == 2:
        lines.insert(at, rng.choice(others))
    elif kind == 3 and at < len(lines):
        lines[at] = rng.choice(("  ", "\t", "- ", "")) + lines[at].lstrip(rng.choice((" ", "")))
    else:
        rng.shuffle(lines)
    return "".join(lines)[:100_000]


def _word(rng: random.Random, words: Sequence[str]) -> str:
    if words and rng.random() < 0.6:
        return rng.choice(words)
    return rng.choice(TEXTS) if rng.random() < 0.7 else str(rng.choice(NUMBERS[:-7]))
