"""`mikrom get`."""

from __future__ import annotations

from datetime import UTC, datetime

import click

from mikrom_reconcile import settings, wiring
from mikrom_reconcile.cli import options
from mikrom_reconcile.cli.look import views_of, vms_in, warn_of_dark_hosts
from mikrom_reconcile.cli.terminal import present
from mikrom_reconcile.output.documents import vms_document
from mikrom_reconcile.output.verdict import UNREACHABLE
from mikrom_reconcile.output.vm_text import vms_text


@click.group()
def get() -> None:
    """List what there is."""


@get.command()
@options.output()
def vms(form: str) -> int:
    """Every VM on every host, as its host sees it. Exits with 4 when a host could not be read."""
    views = views_of(wiring.open_engine(settings.load()))
    rows = vms_in(views)
    present(form, lambda: vms_document(rows), lambda style: vms_text(rows, datetime.now(UTC), style))
    return UNREACHABLE if warn_of_dark_hosts(views) else 0
