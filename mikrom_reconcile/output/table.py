"""Columns."""

from __future__ import annotations

from collections.abc import Sequence

from mikrom_reconcile.output.sanitize import one_line
from mikrom_reconcile.output.style import Style

Cell = tuple[str, str]
"""Text and its look; "" is no look."""


def table(header: Sequence[str], rows: Sequence[Sequence[Cell]], style: Style) -> str:
    """Left-aligned columns, two spaces apart, each as wide as its widest cell. Ends with a line break."""
    clean = [[(one_line(text), look) for text, look in row] for row in rows]
    widths = [max([len(title), *(len(row[column][0]) for row in clean)]) for column, title in enumerate(header)]
    lines = [_line([(title, "bold") for title in header], widths, style)]
    lines += [_line(row, widths, style) for row in clean]
    return "\n".join(lines) + "\n"


def _line(row: Sequence[Cell], widths: Sequence[int], style: Style) -> str:
    last = len(row) - 1
    padded = ((text if column == last else text.ljust(widths[column]), look) for column, (text, look) in enumerate(row))
    return "  ".join(style.paint(text, *([look] if look else [])) for text, look in padded).rstrip()
