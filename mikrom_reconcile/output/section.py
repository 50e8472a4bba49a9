"""A title with marked lines below it: how everything that asks for attention looks."""

from __future__ import annotations

from collections.abc import Iterable

from mikrom_reconcile.limits import OUTPUT
from mikrom_reconcile.output.sanitize import one_line
from mikrom_reconcile.output.style import Style


def section(title: str, entries: Iterable[str], style: Style, look: str) -> list[str]:
    """A title with its entries, after an empty line; nothing at all without entries."""
    told = list(entries)
    lines = [f"  {style.paint('!', look)} {one_line(entry)}" for entry in told[: OUTPUT.section_lines]]
    if len(told) > OUTPUT.section_lines:
        lines.append(f"  … and {len(told) - OUTPUT.section_lines} more; -o json has all")
    return ["", style.paint(f"{title}:", look), *lines] if lines else []
