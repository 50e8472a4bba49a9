"""`mikrom doctor`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import get_type_hints

import click
import msgspec

from mikrom_reconcile import limits
from mikrom_reconcile.cli import options
from mikrom_reconcile.cli.terminal import present
from mikrom_reconcile.dispatch.transport.broker import without_password
from mikrom_reconcile.doctor.machine import all_checks
from mikrom_reconcile.doctor.security import security_checks
from mikrom_reconcile.output.doctor import LimitLine, SettingLine, doctor_document, doctor_text
from mikrom_reconcile.settings import Settings, load


@click.command()
@click.option("--security", is_flag=True, help="Look for what an intruder could use instead.")
@click.option("-v", "--verbose", is_flag=True, help="List the times and sizes that are fixed, too.")
@options.output()
def doctor(*, security: bool, verbose: bool, form: str) -> int:
    """Check this machine, say how to mend what is broken, and list every setting. Exits with 1 when something is."""
    settings = load()
    checks = security_checks(settings) if security else all_checks(settings)
    lines = () if security else tuple(_settings(settings))
    fixed = () if security else tuple(_limits())
    present(
        form,
        lambda: doctor_document(checks, lines, fixed),
        lambda style: doctor_text(checks, lines, fixed if verbose else (), style),
    )
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


def _limits() -> Iterator[LimitLine]:
    for group, values in vars(limits).items():
        if isinstance(values, msgspec.Struct):
            for name, hint in get_type_hints(type(values), include_extras=True).items():
                (reason,) = hint.__metadata__
                yield LimitLine(group=group.lower(), name=name, value=getattr(values, name), reason=reason)


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
