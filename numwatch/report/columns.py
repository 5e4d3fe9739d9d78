"""Aligned columns of text without lines around them."""

from collections.abc import Sequence

from rich.text import Text

GAP = 2


def column_lines(head: Sequence[str], rows: Sequence[Sequence[Text]], justify: str) -> list[Text]:
    """Returns the head and one line a row, columns two blanks apart.

    Args:
        head: The columns' names, shown dimmed.
        rows: Cells, as many a row as there are names.
        justify: One letter a column: "l" for left, "r" for right.
    """
    cells = [[Text(name, style="dim") for name in head], *rows]
    widths = [max(cell.cell_len for cell in column) for column in zip(*cells, strict=True)]
    lines = []
    for row in cells:
        line = Text()
        for cell, width, side in zip(row, widths, justify, strict=True):
            blanks = " " * (width - cell.cell_len)
            line.append(blanks if side == "r" else "").append_text(cell)
            line.append((blanks if side == "l" else "") + " " * GAP)
        line.rstrip()
        lines.append(line)
    return lines
