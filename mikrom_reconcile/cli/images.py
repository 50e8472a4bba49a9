"""`mikrom images`."""

from __future__ import annotations

from datetime import UTC, datetime

import click

from mikrom_reconcile import wiring
from mikrom_reconcile.cli import options
from mikrom_reconcile.cli.queries import specs_in
from mikrom_reconcile.cli.terminal import present, warn
from mikrom_reconcile.core.placement.desired_state import files_by_host, named_files
from mikrom_reconcile.limits import OBSERVING
from mikrom_reconcile.output.images import images_document, images_text
from mikrom_reconcile.output.run_result import CHANGES_OR_FAILED, UNREACHABLE
from mikrom_reconcile.settings import load


@click.command()
@options.paths
@click.option("--fetch", is_flag=True, help="First fetch on every host what VMs need that it may get.")
@options.timeout
@options.output()
def images(paths: tuple[str, ...], form: str, *, fetch: bool, timeout_s: float | None) -> int:
    """The images that the specs name, and what each host has of them. A host removes by itself what it no longer needs.

    Exits with 2 when a file could not be fetched, with 4 when a host could not be asked.
    """
    settings = load()
    specs = specs_in(settings, paths)
    named, needed = named_files(specs), files_by_host(specs, here=settings.host)
    engine = wiring.open_engine(settings)
    hosts = sorted({*needed, *engine.hosts.names()})
    asked = {host: tuple({file.pinned for file in needed.get(host, ()) if fetch}) for host in hosts}
    deadline_s = (timeout_s or settings.timeout_s) if fetch else OBSERVING.deadline_s
    stocks = sorted(engine.hosts.images(asked, deadline_s=deadline_s), key=lambda stock: stock.host)
    present(
        form,
        lambda: images_document(named, needed, stocks),
        lambda style: images_text(named, needed, stocks, datetime.now(UTC), style),
    )
    for stock in stocks:
        if stock.error:
            warn(f"host {stock.host} could not be asked: {stock.error}")
    failed = any(stock.failed for stock in stocks)
    return (CHANGES_OR_FAILED if failed else 0) | (UNREACHABLE if any(stock.error for stock in stocks) else 0)
