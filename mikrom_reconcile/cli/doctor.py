"""`mikrom doctor`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import click

from mikrom_reconcile.cli import options
from mikrom_reconcile.cli.terminal import present
from mikrom_reconcile.dispatch.transport.broker import without_password
from mikrom_reconcile.doctor.machine import all_checks
from mikrom_reconcile.doctor.security import security_checks
from mikrom_reconcile.output.doctor_text import SettingLine, doctor_text
from mikrom_reconcile.output.documents import doctor_document
from mikrom_reconcile.settings import Settings, load


@click.command()
@click.option("--security", is_flag=True, help="Look for what an intruder could use instead.")
@options.output()
def doctor(*, security: bool, form: str) -> int:
    """Check this machine, say how to mend what is broken, and list every setting. Exits with 1 when something is."""
    settings = load()
    checks = [*security_checks(settings)] if security else all_checks(settings)
    lines = () if security else tuple(_settings(settings))
    present(form, lambda: doctor_document(checks, lines), lambda style: doctor_text(checks, lines, style))
    return 1 if any(check.state == "broken" for check in checks) else 0


def _settings(settings: Settings) -> Iterator[SettingLine]:
    for entry in fields(Settings):
        variable = entry.metadata["variable"]
        yield SettingLine(
            variable=variable,
            value=_shown(getattr(settings, entry.name), secret=entry.metadata["secret"]),
            source="environment" if os.environ.get(variable) else "default",
            doc=entry.metadata["doc"],
        )


def _shown(value: object, *, secret: bool) -> str:
    """A setting's value as a person would set it, without what nobody may read over a shoulder."""
    if value is None or value == ():
        return "-"
    if secret:
        return "***"
    if isinstance(value, tuple):
        return (":" if isinstance(value[0], Path) else ",").join(map(str, value))
    if isinstance(value, bool | float):
        return f"{value:g}"
    return without_password(str(value)) if "://" in str(value) else str(value)
