"""Errors a user can mend, each one line: what is allowed, what came, what to do."""

import difflib
from collections.abc import Iterable


class NumwatchError(Exception):
    """Bad input. The command line prints its text as one line and exits with 2."""


def near(name: str, allowed: Iterable[str]) -> str:
    """Returns `; did you mean 'a' or 'b'?`, or nothing where no allowed name is near."""
    matches = difflib.get_close_matches(name, list(allowed), n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(map(repr, matches))}?" if matches else ""
