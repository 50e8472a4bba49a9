"""`mikrom status`."""

from __future__ import annotations

from datetime import UTC, datetime

import click

from mikrom_reconcile import wiring
from mikrom_reconcile.cli import options
from mikrom_reconcile.cli.entry import ERROR
from mikrom_reconcile.cli.queries import views_of, vms_in, wanted_by_fleet, warn_of_doubles
from mikrom_reconcile.cli.terminal import present
from mikrom_reconcile.core.model.run import SUPERVISION
from mikrom_reconcile.limits import RUNS
from mikrom_reconcile.output.hosts import Status, fleets_in, is_overdue, status_document, status_text
from mikrom_reconcile.output.run_result import CHANGES_OR_FAILED, LATE, UNREACHABLE
from mikrom_reconcile.settings import load


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
    last = (
        run
        for run in engine.store.runs(RUNS.kept)
        if run.exit_code is not None and not run.origin.startswith(SUPERVISION)
    )
    found = Status(
        hosts=views,
        fleets=fleets_in(views, wanted_by_fleet(settings, paths, views)),
        last_run=next(last, None),
        source=engine.source(),
    )
    now = datetime.now(UTC)
    present(form, lambda: status_document(found), lambda style: status_text(found, now, style))
    code = UNREACHABLE if any(host.error for host in found.hosts) else 0
    code |= CHANGES_OR_FAILED if warn_of_doubles(vms_in(views)) else 0
    code |= LATE if is_overdue(found.source, now) else 0
    return code or (ERROR if found.source and found.source.problem else 0)
