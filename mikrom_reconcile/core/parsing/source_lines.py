"""Lines and columns of a spec file, and the problems that stand there."""

from __future__ import annotations

import re
from bisect import bisect_right
from functools import cached_property

from mikrom_reconcile.core.model.specs import SpecProblem
from mikrom_reconcile.times_and_sizes import SPECS

_MARKER = re.compile(r"^---(?=[ \t\r\n]|\Z)", re.MULTILINE)
_LINE_BREAK = re.compile(r"\r\n|\r|\n")


class Lines:
    """One file: lines and columns, from 1, of offsets into its text, and where its documents are cut."""

    def __init__(self, path: str, text: str) -> None:
        self.text = text
        self._path = path

    @cached_property
    def cuts(self) -> list[tuple[int, int]]:
        """Start and end of each document."""
        return list(_cuts(self.text))

    @cached_property
    def _starts(self) -> list[int]:
        return [0, *(match.end() for match in _LINE_BREAK.finditer(self.text))]

    def at(self, offset: int) -> tuple[int, int]:
        """Line and column; an offset behind the last word counts as its end."""
        offset = min(offset, len(self.text.rstrip()))
        line = bisect_right(self._starts, offset)
        return line, offset - self._starts[line - 1] + 1

    def cut_of(self, line: int) -> int:
        """The number of the document that a line is in."""
        return bisect_right(self.cuts, (self._starts[line - 1], len(self.text))) - 1

    def problem(self, offset: int, message: str, hint: str = "", pointer: str = "") -> SpecProblem:
        """A mistake with its place and the line that it is in, cut around it if that is long."""
        line, column = self.at(offset)
        start = self._starts[line - 1]
        first = max(start, start + column - 1 - SPECS.excerpt_characters_before)
        line_break = _LINE_BREAK.search(self.text, first, first + SPECS.excerpt_characters)
        return SpecProblem(
            path=self._path,
            line=line,
            column=column,
            pointer=pointer,
            message=message,
            hint=hint,
            excerpt=self.text[first : line_break.start() if line_break else first + SPECS.excerpt_characters],
        )


def _cuts(text: str) -> list[tuple[int, int]]:
    """Start and end of each document; where directives make that harder to tell, all of the text."""
    if text.startswith(("%", "...")) or "\n%" in text or "\n..." in text:
        return [(0, len(text))]
    starts = [match.start() for match in _MARKER.finditer(text)]
    if not starts or starts[0] > 0:
        starts.insert(0, 0)
    return list(zip(starts, [*starts[1:], len(text)], strict=True))
