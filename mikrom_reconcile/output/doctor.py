"""What `doctor` found, and every setting."""

from collections.abc import Sequence
from typing import Literal

import msgspec

from mikrom_reconcile.output.text import Document, Style, counted, sanitize, table

_LOOKS = {"ok": "green", "note": "yellow", "broken": "red"}
_UNITS: dict[str, tuple[tuple[float, str], ...]] = {
    "s": ((86400, "d"), (3600, "h"), (1, "s"), (0.001, "ms")),
    "ms": ((1, "ms"),),
    "bytes": ((1 << 20, "MiB"), (1 << 10, "KiB"), (1, "bytes")),
    "mib": ((1 << 10, "GiB"), (1, "MiB")),
}


class Check(msgspec.Struct, frozen=True):
    """One thing that was looked at. `note` is worth knowing, `broken` keeps mikrom from working as it is set up."""

    name: str
    state: Literal["ok", "note", "broken"]
    found: str
    remedy: str = ""


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """One setting, its secret masked. `source` is "environment" or "default"."""

    variable: str
    value: str
    source: Literal["environment", "default"]
    doc: str


class Limit(msgspec.Struct, frozen=True):
    """A time, size or count that is fixed; `name` ends with its unit."""

    group: str
    name: str
    value: float
    reason: str


def doctor_text(checks: Sequence[Check], settings: Sequence[Setting], limits: Sequence[Limit], style: Style) -> str:
    """The checks with their remedies, then the settings and limits if there are any. Ends with a line break."""
    width = max(len(check.name) for check in checks)
    lines = []
    for check in checks:
        state = style.paint(f"{check.state:<6}", _LOOKS[check.state])
        lines.append(f"{state}  {check.name:<{width}}  {sanitize(check.found)}")
        if check.remedy:
            lines.append(f"{'':6}  {'':{width}}  → {sanitize(check.remedy)}")
    broken = sum(check.state == "broken" for check in checks)
    conclusion = style.paint(f"{counted(broken, 'thing')} to mend", "bold", "red") if broken else "Nothing is broken."
    looks = {"environment": "", "default": "dim"}
    rows = [(line.variable, (line.value, looks[line.source]), (line.doc, "dim")) for line in settings]
    listed = ["", table(("SETTING", "VALUE", ""), rows, style)] if rows else [""]
    rows = [(name, (value, "dim"), (line.reason, "dim")) for line in limits for name, value in [_in_words(line)]]
    listed += [table(("LIMIT", "VALUE", ""), rows, style)] if rows else []
    return "\n".join([*lines, "", conclusion, *listed])


def _in_words(line: Limit) -> tuple[str, str]:
    """Name and value with its unit, such as "broker: heartbeat interval" and "5 s"."""
    words, _, unit = line.name.rpartition("_")
    if unit not in _UNITS:
        words, unit = line.name, ""
    size, shown = next(((size, shown) for size, shown in _UNITS.get(unit, ()) if line.value >= size), (1, unit))
    return f"{line.group}: {words.replace('_', ' ')}", f"{line.value / size:,g} {shown}".rstrip()


def doctor_document(checks: Sequence[Check], settings: Sequence[Setting], limits: Sequence[Limit]) -> Document:
    """What was checked, every setting with its secrets masked, and every limit."""
    broken = any(check.state == "broken" for check in checks)
    return {"broken": broken, "checks": checks, "settings": settings, "limits": limits}
