"""What `doctor` found, and every setting."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from mikrom_reconcile.output.sanitize import one_line
from mikrom_reconcile.output.style import Style
from mikrom_reconcile.output.table import table
from mikrom_reconcile.output.units import counted

_LOOKS = {"ok": "green", "note": "yellow", "broken": "red"}


class Check(msgspec.Struct, frozen=True, kw_only=True):
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
        lines.append(f"{state}  {check.name:<{width}}  {one_line(check.found)}")
        if check.remedy:
            lines.append(f"{'':6}  {'':{width}}  → {one_line(check.remedy)}")
    broken = sum(check.state == "broken" for check in checks)
    verdict = style.paint(f"{counted(broken, 'thing')} to mend", "bold", "red") if broken else "Nothing is broken."
    rows = [
        ((line.variable, ""), (line.value, "" if line.source == "environment" else "dim"), (line.doc, "dim"))
        for line in settings
    ]
    listed = ["", table(("SETTING", "VALUE", ""), rows, style)] if rows else [""]
    return "\n".join([*lines, "", verdict, *listed])
