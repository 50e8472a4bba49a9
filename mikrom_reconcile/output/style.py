"""Colours, as a value: whether there are any is decided by who knows the terminal."""

from __future__ import annotations

import msgspec

_CODES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "magenta": "35", "cyan": "36"}


class Style(msgspec.Struct, frozen=True):
    """How text is painted, and whether values are shown in `full`. Without colour `paint` gives back what it got."""

    colour: bool = False
    full: bool = False

    def paint(self, text: str, *looks: str) -> str:
        """`text` in one or more of: bold, dim, red, green, yellow, magenta, cyan."""
        if not self.colour or not text or not looks:
            return text
        return f"\x1b[{';'.join(_CODES[look] for look in looks)}m{text}\x1b[0m"


PLAIN = Style()
