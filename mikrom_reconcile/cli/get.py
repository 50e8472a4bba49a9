"""`mikrom get` and `mikrom describe`: lists of what there is, and everything about one thing."""

from __future__ import annotations

from datetime import UTC, datetime

import click

from mikrom_reconcile import settings, wiring
from mikrom_reconcile.cli import options
from mikrom_reconcile.cli.history import history
from mikrom_reconcile.cli.queries import (
    dark,
    names_for_tab,
    selected_in,
    unknown,
    views_of,
    vms_in,
    wanted_by_fleet,
    warn_of_dark_hosts,
    warn_of_doubles,
)
from mikrom_reconcile.cli.root import Commands
from mikrom_reconcile.cli.terminal import present
from mikrom_reconcile.limits import RUNS
from mikrom_reconcile.output.hosts import (
    description_document,
    fleets_in,
    fleets_text,
    hosts_document,
    hosts_text,
    vm_row,
    vms_text,
)
from mikrom_reconcile.output.run_result import UNREACHABLE


@click.group(cls=Commands)
def get() -> None:
    """List what there is."""


@get.command()
@click.argument("names", metavar="[NAME]...", nargs=-1, shell_complete=names_for_tab)
@options.limit
@options.output()
def vms(names: tuple[str, ...], limit: str | None, form: str) -> int:
    """Every VM on every host, or those called NAME, as its host sees it. Exits with 4 when a host could not be read."""
    current = settings.load()
    views = views_of(wiring.open_engine(current))
    rows = selected_in(vms_in(views), names, limit, current)
    warn_of_doubles(rows)
    present(
        form,
        lambda: {"vms": [vm_row(row) for row in rows]} | dark(views),
        lambda style: vms_text(rows, datetime.now(UTC), style),
    )
    return UNREACHABLE if warn_of_dark_hosts(views) else 0


@get.command()
@options.output()
def hosts(form: str) -> int:
    """Every host, with what it has in all. Exits with 4 when one could not be read."""
    found = views_of(wiring.open_engine(settings.load()))
    present(form, lambda: hosts_document(found), lambda style: hosts_text(found, style))
    return UNREACHABLE if any(host.error for host in found) else 0


@get.command()
@options.paths
@options.output()
def fleets(paths: tuple[str, ...], form: str) -> int:
    """Every fleet that the specs name or a host has. Exits with 4 when a host could not be read."""
    current = settings.load()
    views = views_of(wiring.open_engine(current))
    found = fleets_in(views, wanted_by_fleet(current, paths, views))
    present(form, lambda: {"fleets": found} | dark(views), lambda style: fleets_text(found, style))
    return UNREACHABLE if warn_of_dark_hosts(views) else 0


get.add_command(history, "runs")


@click.command()
@click.argument("name", shell_complete=names_for_tab)
@options.paths
@options.output(("yaml", "json"))
def describe(name: str, paths: tuple[str, ...], form: str) -> int:
    """Everything that is known of a VM, a host or a fleet: record, phase, what was done to it, what is in it."""
    current = settings.load()
    engine = wiring.open_engine(current)
    views = views_of(engine)
    fleets = fleets_in(views, wanted_by_fleet(current, paths, views))
    runs = engine.store.runs(RUNS.kept)
    document = description_document(name, views, fleets, runs) | dark(views)
    if not document["found"]:
        known = [*(row.name for row in vms_in(views)), *(view.host for view in views)]
        raise unknown(name, [*known, *(fleet.fleet for fleet in fleets)], views)
    present(form, lambda: document, str)
    return 0
