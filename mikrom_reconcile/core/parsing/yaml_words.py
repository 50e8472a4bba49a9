"""What a bare word of YAML means, and at which line and column it stands. What YAML 1.1 and 1.2 read differently (`no`,
`010`, `12:30`) is a mistake: a value means the same to everyone.
"""

import math
import re
import unicodedata
from bisect import bisect_right
from collections.abc import Callable
from functools import cached_property
from typing import Any, Self

from mikrom_reconcile.core.model.documents import SpecProblem
from mikrom_reconcile.times_and_sizes import SPECS

_INT = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?(0|[1-9][0-9]*)\.[0-9]+([eE][-+][0-9]+)?|\.[0-9]+")
_NUMBER_TO_SOME = re.compile(
    r"[-+]?(0[xX][0-9a-fA-F_]+|0[oO][0-7]+|0[bB][01_]+"
    r"|[0-9][0-9_]*(\.[0-9_]*)?([eE][-+]?[0-9]+)?"
    r"|\.[0-9][0-9_]*([eE][-+]?[0-9]+)?"
    r"|[1-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?"
    r"|\.(inf|Inf|INF|nan|NaN|NAN))"
)
_DATE_TO_SOME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}|[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}([Tt]|[ \t]+)[0-9]{1,2}:.*")
_BOOLEAN_TO_SOME = frozenset(["yes", "Yes", "YES", "no", "No", "NO", "on", "On", "ON", "off", "Off", "OFF"])
_WORDS = {
    "": None, "~": None, "null": None, "Null": None, "NULL": None,
    "true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False,
}  # fmt: skip
_NUMERIC = frozenset("0123456789+-.")
SUSPECT = _NUMERIC | frozenset("yYnNoO")  # how words begin that may be guessed at


class Spelled(float):
    """A number whose spelling says more than its value does: as text, 1.30 is no 1.3."""

    def __new__(cls, word: str) -> Self:
        """The number that `word` spells."""
        number = super().__new__(cls, word)
        number.word = word
        return number

    word: str

    def __str__(self) -> str:
        """As it was written."""
        return self.word


def plain(value: Any, kept: Callable[[tuple[str, ...]], bool] = lambda _: False, path: tuple[str, ...] = ()) -> Any:
    """`value` with mere numbers, but for what stands at paths that are `kept`."""
    if isinstance(value, dict) and not kept(path):
        return {key: plain(item, kept, (*path, key)) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return float(value) if isinstance(value, Spelled) else value


def ambiguous_as(word: str) -> str:
    """What some programs take a bare word for that others take for something else; "" if all agree."""
    if word[:1] not in _NUMERIC:
        return "a boolean" if word in _BOOLEAN_TO_SOME else ""
    if _NUMBER_TO_SOME.fullmatch(word):
        return "" if _INT.fullmatch(word) or _FLOAT.fullmatch(word) else "a number"
    return "a date" if _DATE_TO_SOME.fullmatch(word) else ""


def is_plain_text(word: str) -> bool:
    """Whether a bare `word` would surely be text; what is quoted may look otherwise and be text all the same."""
    is_long_number = len(word) > SPECS.exact_digits and _NUMBER_TO_SOME.fullmatch(word)
    return word[:1] not in SUSPECT or not (ambiguous_as(word) or is_long_number)


def meaning_of(word: str) -> Any:
    """The value of a bare word about which all agree. Raises OverflowError for a number beyond what all can hold."""
    if word in _WORDS:
        return _WORDS[word]
    if word[:1] not in _NUMERIC:
        return word
    if _INT.fullmatch(word):
        if len(word) > 20 or abs(int(word)) >= SPECS.max_int:
            raise OverflowError
        return int(word)
    if _FLOAT.fullmatch(word):
        if math.isinf(float(word)):
            raise OverflowError
        return float(word)
    return word


def parse_scalar(word: str) -> Any:
    """What a word of a command line means: a boolean, a number as it is printed, else text; quotes make it text."""
    if len(word) > 1 and word[0] == word[-1] and word[0] in "'\"":
        return word[1:-1]
    try:
        value = word if ambiguous_as(word) else meaning_of(word)
    except OverflowError:
        return word
    return value if isinstance(value, bool) or str(value) == word else word


def shown(word: str) -> str:
    """A word of the specs inside a message, cut where it is long."""
    return repr(shortened(word)) + code_points(word)


def shortened(text: str) -> str:
    """A text, cut where it is too long for a message."""
    return text if len(text) <= SPECS.shown_characters else text[: SPECS.shown_characters - 1] + "…"


def code_points(text: str) -> str:
    """The characters in a text that look like others, or like nothing, in words; "" for plain ASCII."""
    strange = [char for char in dict.fromkeys(text) if char > "~"][: SPECS.named_characters]
    told = (f"U+{ord(char):04X} {unicodedata.name(char, 'a control character')}" for char in strange)
    return f" (with {', '.join(told)})" if strange else ""


def quoted(word: str) -> str:
    """The same word as somebody would write it to mean the text."""
    return f'"{word}"' if len(word) <= SPECS.shown_characters else "it in quotes"


_MARKER = re.compile(r"^---(?=[ \t\r\n]|\Z)", re.MULTILINE)
_LINE_BREAK = re.compile(r"\r\n|\r|\n")


class Lines:
    """One file: lines and columns, from 1, of offsets into its text, and where its documents are cut."""

    def __init__(self, path: str, text: str) -> None:
        self.text = text
        self._path = path

    @cached_property
    def cuts(self) -> list[tuple[int, int]]:
        """Start and end of each document; where directives make that harder to tell, all of the text."""
        text = self.text
        if text.startswith(("%", "...")) or "\n%" in text or "\n..." in text:
            return [(0, len(text))]
        starts = [match.start() for match in _MARKER.finditer(text)]
        if not starts or starts[0] > 0:
            starts.insert(0, 0)
        return list(zip(starts, [*starts[1:], len(text)], strict=True))

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
        excerpt = self.text[first : line_break.start() if line_break else first + SPECS.excerpt_characters]
        return SpecProblem(
            path=self._path, line=line, column=column, pointer=pointer, message=message, hint=hint, excerpt=excerpt
        )
