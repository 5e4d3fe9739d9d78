"""Plain values as one line of YAML that reads back equal, under YAML 1.1 and 1.2."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import yaml  # type: ignore[import-untyped]

from numwatch.errors import NumwatchError

_WORDS = re.compile(r"[A-Za-z_/.][\w./()%+<>=*^;-]*( [\w./()%+<>=*^;-]+)*", re.ASCII)
"""Text that needs no quotes, unless it reads as a number, a switch or a date."""
_RESOLVER = yaml.resolver.Resolver()
_LONGEST_KEY = 1000
"""YAML ends a simple key at 1024 characters."""
_DEEPEST = 40
_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r"}


def text(value: str) -> str:
    """Returns a string: bare where no reader could take it for anything else, else quoted.

    Raises:
        NumwatchError: It holds half a surrogate pair, which no text file can hold.
    """
    bare = _WORDS.fullmatch(value) and _reads_as_text(value)
    return value if bare else '"' + "".join(map(_escaped, value)) + '"'


def key(name: str) -> str:
    """Returns a string as a mapping's key, without the colon.

    Raises:
        NumwatchError: It is longer than YAML's keys can be.
    """
    written = text(name)
    if len(written) > _LONGEST_KEY:
        raise NumwatchError(
            f"a name in a plan has at most {_LONGEST_KEY} characters; got {len(written)}: "
            f"{name[:40]!r} ..."
        )
    return written


def number(value: float) -> str:
    """Returns an int or a float, as a float that every YAML reader takes for one."""
    if isinstance(value, int):
        return str(int(value))
    if not math.isfinite(value):
        return ".nan" if math.isnan(value) else ".inf" if value > 0 else "-.inf"
    # YAML 1.1 takes 1e-05 for text: it wants a point, and a sign in the exponent.
    mantissa, e, exponent = repr(float(value)).partition("e")  # a NumPy float has a repr of its own
    return mantissa + ("" if "." in mantissa else ".0") + e + exponent


def plain(value: object, depth: int = 0) -> str:
    """Returns text, a number, a switch, None, or a list or mapping of them, in flow style.

    Raises:
        NumwatchError: It is anything else, such as a tuple, which would read back as a list; or it
            is nested deeper than a reader goes, or within itself.
    """
    if depth > _DEEPEST:
        raise NumwatchError(f"a plan's source is nested at most {_DEEPEST} deep")
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        return text(value)
    if isinstance(value, int | float):
        return number(value)
    if isinstance(value, list):
        return "[" + ", ".join(plain(each, depth + 1) for each in value) + "]"
    if isinstance(value, Mapping) and all(isinstance(name, str) for name in value):
        return flow({name: plain(each, depth + 1) for name, each in value.items()})
    raise NumwatchError(
        "a plan's source holds text, numbers, true, false, null, lists and mappings with text as "
        f"keys; got {type(value).__name__} {value!r:.40}"
    )


def flow(written: Mapping[str, str]) -> str:
    """Returns `{name: value, ...}` of values that are written already."""
    return "{" + ", ".join(f"{key(name)}: {value}" for name, value in written.items()) + "}"


def _reads_as_text(value: str) -> bool:
    tag = _RESOLVER.resolve(yaml.ScalarNode, value, (True, False))
    return bool(tag == _RESOLVER.DEFAULT_SCALAR_TAG)


def _escaped(character: str) -> str:
    if character in _ESCAPES:
        return _ESCAPES[character]
    code = ord(character)
    if 0xD800 <= code < 0xE000:  # noqa: PLR2004  # the surrogates
        raise NumwatchError("a plan's text is Unicode; got half a surrogate pair")
    if character.isprintable() and code < 0x10000:  # noqa: PLR2004  # readers differ above it
        return character
    return f"\\x{code:02x}" if code < 0x100 else f"\\U{code:08x}"  # noqa: PLR2004
