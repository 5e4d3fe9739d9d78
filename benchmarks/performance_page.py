"""Fills the tables of docs/performance.md from the result files.

    python benchmarks/performance_page.py            # says whether the page is what they say
    python benchmarks/performance_page.py --write

A table stands between `<!-- table: NAME -->` and `<!-- end -->`. What no result file holds is shown
as not measured yet.
"""

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path

from performance_more import kernel, machines, record, scale, soak
from performance_tables import Results, at_a_glance, by_cadence, compiled, kinds, peers, where

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "performance.md"
RESULTS = ROOT / "benchmarks" / "results"
TABLES: dict[str, Callable[[Results], list[str]]] = {
    "at-a-glance": at_a_glance,
    "where": where,
    "kinds": kinds,
    "cadence": by_cadence,
    "peers": peers,
    "compiled": compiled,
    "scale": scale,
    "kernel": kernel,
    "record": record,
    "soak": soak,
    "machines": machines,
}
TABLE = re.compile(r"(<!-- table: ([a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def fill(text: str, results: Results) -> str:
    """Returns the page with every table made anew.

    Raises:
        KeyError: The page asks for a table that there is not.
    """

    def made(found: re.Match[str]) -> str:
        lines = TABLES[found[2]](results)
        return f"{found[1]}{chr(10).join(lines)}\n{found[3]}"

    return TABLE.sub(made, text)


def main() -> None:
    """Writes the page, or exits with 1 where it differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    text = PAGE.read_text()
    filled = fill(text, Results(RESULTS))
    if args.write:
        PAGE.write_text(filled)
    elif filled != text:
        sys.exit("docs/performance.md is older than the result files: --write makes it anew")


if __name__ == "__main__":
    main()
