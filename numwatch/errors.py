"""Errors a user can mend, each one line: what is allowed, what came, what to do."""

import difflib
from collections.abc import Iterable

_LONGEST = 2000
_NAME = 200


class NumwatchError(Exception):
    """Bad input. The command line prints its text as one line and exits with 2.

    Whatever a file's names hold, the text is one printable line.
    """

    def __init__(self, text: str = "") -> None:
        super().__init__(one_line(text))


def near(name: str, allowed: Iterable[str]) -> str:
    """Returns `; did you mean 'a' or 'b'?`, or nothing where no allowed name is near."""
    if len(name) > _NAME:  # compared with each name in quadratic time
        return ""
    matches = difflib.get_close_matches(name, list(allowed), n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(map(repr, matches))}?" if matches else ""


def one_line(text: str) -> str:
    """Returns a text as a terminal can show it: no line breaks, no escape sequences, not endless.

    Where there is nothing of the kind the text is returned as it is.
    """
    if len(text) > _LONGEST:
        half = _LONGEST // 2
        text = f"{text[:half]} ... {text[-half:]}"
    return text if text.isprintable() else printable(" ".join(text.split()))


def printable(text: str) -> str:
    r"""Returns a text whose unprintable characters are written out, ESC as `\x1b`."""
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode() for each in text
    )
