"""What `doctor` found, and every setting."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from mikrom_reconcile.output.text import Document, Style, counted, sanitize, table

_LOOKS = {"ok": "green", "note": "yellow", "broken": "red"}


class Check(msgspec.Struct, frozen=True):
    """One thing that was looked at. `note` is worth knowing, `broken` keeps mikrom from working as it is set up."""

    name: str
    state: Literal["ok", "note", "broken"]
    found: str
    remedy: str = ""


class SettingLine(msgspec.Struct, frozen=True, kw_only=True):
    """One setting, its secret masked. `source` is "environment" or "default"."""

    variable: str
    value: str
    source: Literal["environment", "default"]
    doc: str


def doctor_text(checks: Sequence[Check], settings: Sequence[SettingLine], style: Style) -> str:
    """The checks with their remedies, then the settings if there are any. Ends with a line break."""
    width = max(len(check.name) for check in checks)
    lines = []
    for check in checks:
        state = style.paint(f"{check.state:<6}", _LOOKS[check.state])
        lines.append(f"{state}  {check.name:<{width}}  {sanitize(check.found)}")
        if check.remedy:
            lines.append(f"{'':6}  {'':{width}}  → {sanitize(check.remedy)}")
    broken = sum(check.state == "broken" for check in checks)
    conclusion = style.paint(f"{counted(broken, 'thing')} to mend", "bold", "red") if broken else "Nothing is broken."
    rows = [
        (line.variable, (line.value, "" if line.source == "environment" else "dim"), (line.doc, "dim"))
        for line in settings
    ]
    listed = table(("SETTING", "VALUE", ""), rows, style) if rows else ""
    return "\n".join([*lines, "", conclusion, *([""] if rows else []), listed])


def doctor_document(checks: Sequence[Check], settings: Sequence[SettingLine]) -> Document:
    """What was checked, and every setting with its secrets masked."""
    broken = any(check.state == "broken" for check in checks)
    return {"broken": broken, "checks": checks, "settings": settings}
