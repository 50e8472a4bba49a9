"""`mikrom get`, `describe`, `status`, `orphans` and `images`: what there is on the hosts."""

from __future__ import annotations

from datetime import UTC, datetime

import click

from mikrom_reconcile import wiring
from mikrom_reconcile.cli import options, queries
from mikrom_reconcile.cli.entry import ERROR, Commands
from mikrom_reconcile.cli.history import history
from mikrom_reconcile.cli.queries import names_for_tab, present_views, specs_in, views_of, wanted_by_fleet
from mikrom_reconcile.cli.terminal import present, warn
from mikrom_reconcile.core.model.errors import SourceError
from mikrom_reconcile.core.model.run import SUPERVISION
from mikrom_reconcile.core.placement.desired_state import files_by_host, named_files, render_all
from mikrom_reconcile.output import hosts as output
from mikrom_reconcile.output.hosts import images_document, images_text
from mikrom_reconcile.output.run_result import CHANGES_OR_FAILED, LATE, UNREACHABLE
from mikrom_reconcile.output.vms import orphans_in, orphans_text, vm_row, vms_in, vms_text
from mikrom_reconcile.settings import Settings, load
from mikrom_reconcile.times_and_sizes import OBSERVING, RUNS


@click.group(cls=Commands)
def get() -> None:
    """List what there is."""


@get.command()
@click.argument("names", metavar="[NAME]...", nargs=-1, shell_complete=names_for_tab)
@options.limit
@options.output()
def vms(names: tuple[str, ...], limit: str | None, form: str) -> int:
    """Every VM on every host, or those called NAME, as its host sees it. Exits with 4 when a host could not be read."""
    settings, now = load(), datetime.now(UTC)
    views = views_of(wiring.open_engine(settings))
    rows = queries.selected_in(vms_in(views), names, limit, settings)
    queries.warn_of_duplicates(rows)
    return present_views(
        form,
        views,
        lambda: {"vms": [vm_row(row) for row in rows]},
        lambda style: vms_text(rows, now, style),
    )


@get.command()
@options.output()
def hosts(form: str) -> int:
    """Every host, with what it has in all. Exits with 4 when one could not be read."""
    views = views_of(wiring.open_engine(load()))
    present(form, lambda: output.hosts_document(views), lambda style: output.hosts_text(views, style))
    return UNREACHABLE if any(view.error for view in views) else 0


@get.command()
@options.paths
@options.output()
def fleets(paths: tuple[str, ...], form: str) -> int:
    """Every fleet that the specs name or a host has. Exits with 4 when a host could not be read."""
    settings = load()
    views = views_of(wiring.open_engine(settings))
    found = output.fleets_in(views, wanted_by_fleet(settings, paths, views))
    return present_views(form, views, lambda: {"fleets": found}, lambda style: output.fleets_text(found, style))


get.add_command(history, "runs")


@click.command()
@click.argument("name", shell_complete=names_for_tab)
@options.paths
@options.output(("yaml", "json"))
def describe(name: str, paths: tuple[str, ...], form: str) -> int:
    """Everything that is known of a VM, a host or a fleet: record, phase, what was done to it, what is in it."""
    settings = load()
    engine = wiring.open_engine(settings)
    views = views_of(engine)
    fleets = output.fleets_in(views, wanted_by_fleet(settings, paths, views))
    document = output.description_document(name, views, fleets, engine.store.runs(RUNS.kept)) | queries.unreachable_in(
        views
    )
    if not document["found"]:
        known = [*(row.name for row in vms_in(views)), *(view.host for view in views)]
        raise queries.unknown(name, [*known, *(fleet.fleet for fleet in fleets)], views)
    present(form, lambda: document, str)
    return 0


@click.command()
@options.paths
@options.output()
def status(paths: tuple[str, ...], form: str) -> int:
    """Hosts, fleets and the last run on one screen.

    Exits with 2 when several hosts have the same VM, with 4 when a host could not be read and with 16 when scheduled
    runs do not come, which add up; else with 1 when these cannot use their specs as they are now.
    """
    settings = load()
    engine = wiring.open_engine(settings)
    views = views_of(engine)
    ended = (run for run in engine.store.runs(RUNS.kept) if run.exit_code is not None)
    found = output.Status(
        hosts=views,
        fleets=output.fleets_in(views, wanted_by_fleet(settings, paths, views)),
        last_run=next((run for run in ended if not run.origin.startswith(SUPERVISION)), None),
        source=engine.source(),
    )
    now = datetime.now(UTC)
    present(form, lambda: output.status_document(found), lambda style: output.status_text(found, now, style))
    code = UNREACHABLE if any(view.error for view in views) else 0
    code |= CHANGES_OR_FAILED if queries.warn_of_duplicates(vms_in(views)) else 0
    code |= LATE if output.is_overdue(found.source, now) else 0
    return code or (ERROR if found.source and found.source.problem else 0)


@click.command()
@options.paths
@options.output()
def orphans(paths: tuple[str, ...], form: str) -> int:
    """What runs without a record, what has a record that no spec wants, and what is foreign. Changes nothing.

    Exits with 4 when a host could not be read.
    """
    settings = load()
    project, names = _wanted(settings, paths)
    views = views_of(wiring.open_engine(settings), strays=True)
    found = orphans_in(views, project, names)
    return present_views(form, views, lambda: {"orphans": found}, lambda style: orphans_text(found, style))


def _wanted(settings: Settings, paths: tuple[str, ...]) -> tuple[str | None, frozenset[str]]:
    """The project of the specs and the VMs that they want; None where there are no specs to read."""
    try:
        specs = specs_in(settings, paths)
    except SourceError as error:
        if paths:
            raise
        warn(f"{error}; so only processes are judged, not the VMs that have a record")
        return None, frozenset()
    wanted = render_all(specs, here=settings.host)
    return specs.project, frozenset(vm.name for vm in wanted if vm.state != "absent")


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
    known = sorted({*needed, *engine.hosts.names()})
    asked = {host: tuple({file.pinned for file in needed.get(host, ()) if fetch}) for host in known}
    deadline_s = (timeout_s or settings.timeout_s) if fetch else OBSERVING.deadline_s
    stocks = sorted(engine.hosts.images(asked, deadline_s=deadline_s), key=lambda stock: stock.host)
    present(
        form,
        lambda: images_document(named, needed, stocks),
        lambda style: images_text(named, needed, stocks, datetime.now(UTC), style),
    )
    errors = {stock.host: stock.error for stock in stocks if stock.error}
    for host, error in errors.items():
        warn(f"host {host} could not be asked: {error}")
    return (CHANGES_OR_FAILED if any(stock.failed for stock in stocks) else 0) | (UNREACHABLE if errors else 0)
