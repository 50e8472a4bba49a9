"""What every text is made of: words, colours, tables, sections, quantities, names. Names, errors and consoles come from
files, guests and other machines; a terminal would obey what they contain.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import groupby
from typing import Any

import msgspec

from mikrom_reconcile.times_and_sizes import OUTPUT

_CONTROL = "\x00-\x1f\x7f-\x9f"
_REORDERING = "\u200e\u200f\u2028-\u202e\u2066-\u2069"
_UNPRINTABLE = re.compile(f"[{_CONTROL}{_REORDERING}\ud800-\udfff]")  # lone surrogates: file names that are no UTF-8
_JSON_UNSAFE = re.compile(f"[\x7f-\x9f{_REORDERING}]")  # what JSON itself would leave as it is
_SEQUENCE = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]"  # CSI: colours, cursor
    r"|\x1b[]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)?"  # OSC and other strings: titles, links, the clipboard
    r"|\x1b[ -/]*[0-~]"  # the short ones: charset, reset
)
_CONSOLE_UNPRINTABLE = re.compile(f"[\x00-\x08\x0b-\x1f\x7f-\x9f{_REORDERING}]")
_NUMBERED = re.compile(r"(.*?)(\d+)(\D*)", re.DOTALL)
_COLOURS = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "magenta": "35", "cyan": "36"}
_AGES = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))


def sanitize(text: str) -> str:
    """`text` on one line and as long as before: white space becomes a space, what is no text becomes U+FFFD."""
    return _UNPRINTABLE.sub(lambda match: " " if match.group() in "\t\n\r" else "\ufffd", text)


def console_text(content: bytes) -> str:
    """A serial console as text: lines and tabs stay, escape sequences and control characters go."""
    text = content.decode("utf-8", "replace").replace("\r\n", "\n")
    return _CONSOLE_UNPRINTABLE.sub("", _SEQUENCE.sub("", text))


def json_text(document: Any) -> str:
    """Indented JSON without any character that a terminal could obey. Ends with a line break."""
    encoded = msgspec.json.format(msgspec.json.encode(document), indent=2).decode()
    return _JSON_UNSAFE.sub(lambda match: f"\\u{ord(match.group()):04x}", encoded) + "\n"


class Style(msgspec.Struct, frozen=True):
    """Whether text has colours, and whether values are shown in `full`."""

    colour: bool = False
    full: bool = False

    def paint(self, text: str, *looks: str) -> str:
        """`text` in one or more of: bold, dim, red, green, yellow, magenta, cyan; "" is none of them."""
        codes = ";".join(_COLOURS[look] for look in looks if look)
        return f"\x1b[{codes}m{text}\x1b[0m" if self.colour and text and codes else text


PLAIN = Style()

Document = dict[str, Any]  # what programs read, before it is JSON or YAML
Cell = str | tuple[str, str]  # text, or text with its look


def table(header: Sequence[str], rows: Iterable[Sequence[Cell]], style: Style) -> str:
    """Left-aligned columns, two spaces apart, each as wide as its widest cell. Ends with a line break."""
    cells = [[(title, "bold") for title in header]]
    for row in rows:
        looks = [(cell, "") if isinstance(cell, str) else cell for cell in row]
        cells.append([(sanitize(text), look) for text, look in looks])
    widths = [max(len(row[column][0]) for row in cells) for column in range(len(header) - 1)] + [0]
    sized = (zip(row, widths, strict=True) for row in cells)
    lines = ("  ".join(style.paint(text.ljust(width), look) for (text, look), width in row) for row in sized)
    return "".join(f"{line.rstrip()}\n" for line in lines)


class Column(msgspec.Struct, frozen=True):
    """One fact about each row of a list, for programs and for people. `key` is its name in documents ("": not there),
    `title` that in tables (None: not there). `value` takes it from a row, by default the attribute called `key`; `cell`
    shows it to people, by default as it is.
    """

    key: str
    title: str | None = None
    value: Callable[[Any], Any] | None = None
    cell: Callable[[Any], Cell] | None = None

    def of(self, row: Any) -> Any:
        """The value of a row."""
        return self.value(row) if self.value else getattr(row, self.key)

    def shown(self, row: Any, now: datetime | None) -> Cell:
        """What people see of it: "-" for nothing, and how long ago a moment was."""
        if self.cell:
            return self.cell(row)
        value = self.of(row)
        return age(value, now) if now and isinstance(value, datetime) else "-" if value in {None, ""} else str(value)


def row_document(columns: Iterable[Column], row: Any) -> Document:
    """A row for programs."""
    return {column.key: column.of(row) for column in columns if column.key}


def row_table(columns: Iterable[Column], rows: Sequence[Any], style: Style, now: datetime | None = None) -> str:
    """The rows for people. Ends with a line break."""
    seen = [column for column in columns if column.title is not None]
    return table([str(it.title) for it in seen], [[it.shown(row, now) for it in seen] for row in rows], style)


def pick(thing: object, *names: str) -> Document:
    """Attributes of `thing` that are called the same in a document."""
    return {name: getattr(thing, name) for name in names}


def section(title: str, entries: Iterable[str], style: Style, look: str) -> str:
    """An empty line, a title and a marked line for each entry, as all that asks for attention; "" without entries."""
    entries = list(entries)
    lines = [f"  {style.paint('!', look)} {sanitize(entry)}" for entry in entries[: OUTPUT.section_lines]]
    if len(entries) > OUTPUT.section_lines:
        lines.append(f"  … and {len(entries) - OUTPUT.section_lines} more; -o json has all")
    return "\n".join(["", style.paint(f"{title}:", look), *lines, ""]) if lines else ""


def duration(seconds: float) -> str:
    """Such as "12 ms", "1.3 s", "42 s", "5 min 3 s"."""
    if seconds < 1:
        return f"{max(0.0, seconds) * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.{1 if seconds < 10 else 0}f} s"
    return f"{int(seconds) // 60} min {int(seconds) % 60} s"


def age(since: datetime, now: datetime) -> str:
    """In the largest unit that fits: "3d", "5h", "12min", "4s"; a clock that was set back gives "0s"."""
    seconds = max(0, int((now - since).total_seconds()))
    unit, size = next((step for step in _AGES if seconds >= step[1]), _AGES[-1])
    return f"{seconds // size}{unit}"


def time_text(moment: datetime) -> str:
    """Such as "2026-11-22 12:00:00Z"."""
    return f"{moment:%Y-%m-%d %H:%M:%S}Z"


def mebibytes(size_mib: int) -> str:
    """Such as "128 MiB", "7.8 GiB"."""
    return f"{size_mib} MiB" if size_mib < 4096 else f"{size_mib / 1024:.1f} GiB"


def counted(number: int, noun: str) -> str:
    """Such as "1 VM", "3 VMs"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def listed(counts: Mapping[str, int]) -> str:
    """Such as "3 to create, 1 to restart"; what is 0 is left out."""
    return ", ".join(f"{count} {what}" for what, count in counts.items() if count)


def grouped(names: Iterable[str]) -> str:
    """Names in few words, such as `web-[000-004,007]`, from which each can be read off again: widths are kept apart."""
    families: dict[tuple[str, str, int], list[int]] = defaultdict(list)
    parts: list[str] = []
    for name in sorted(set(names)):
        if match := _NUMBERED.fullmatch(name):
            prefix, number, suffix = match.groups()
            families[prefix, suffix, len(number)].append(int(number))
        else:
            parts.append(name)
    for (prefix, suffix, width), numbers in families.items():
        inside = ",".join(_ranges(sorted(numbers), width))
        parts.append(f"{prefix}[{inside}]{suffix}" if len(numbers) > 1 else f"{prefix}{inside}{suffix}")
    return ", ".join(sorted(parts))


def _ranges(numbers: Sequence[int], width: int) -> Iterator[str]:
    for _, run in groupby(enumerate(numbers), lambda at: at[1] - at[0]):
        members = [number for _, number in run]
        yield f"{members[0]:0{width}d}" + (f"-{members[-1]:0{width}d}" if len(members) > 1 else "")
