"""`mikrom history`, which is also `mikrom get runs`, and `mikrom events`."""

from __future__ import annotations

from datetime import UTC, datetime

import click

from mikrom_reconcile import settings, wiring
from mikrom_reconcile.cli import options
from mikrom_reconcile.cli.follow_run import follow_run
from mikrom_reconcile.cli.queries import names_for_tab, refuse_unknown_name
from mikrom_reconcile.cli.terminal import present
from mikrom_reconcile.limits import RUNS
from mikrom_reconcile.output import history as output
from mikrom_reconcile.output.history import events_document, runs_document
from mikrom_reconcile.output.text import Style

latest = click.option("-n", "count", type=click.IntRange(1), default=20, show_default=True, help="How many at most.")


@click.command()
@click.argument("name", required=False, shell_complete=names_for_tab)
@latest
@click.option("-f", "--follow", "following", is_flag=True, help="NAME is a run: wait for its end and tell how it went.")
@options.output()
def history(name: str | None, count: int, form: str, *, following: bool) -> int:
    """The runs that go on and those that were kept, the latest first.

    With NAME that run, or those that touched that VM, host or fleet. With -f it exits as `mikrom apply` would have.
    """
    engine = wiring.open_engine(settings.load())
    if following:
        return follow_run(engine, name, form)
    unfinished = [run for run in engine.unfinished() if name in {None, run.run_id}]
    told = {run.run_id for run in unfinished}
    kept = output.settled(engine.store.runs(RUNS.kept))
    found = [run for run in kept if name is None or output.touched(run, name)]
    found = [run for run in found if name is not None or run.run_id not in told][:count]

    if name is not None and not (found or unfinished):
        refuse_unknown_name(engine, name)

    def text(style: Style) -> str:
        if [run.run_id for run in found] == [name] and not unfinished:
            return output.run_details(found[0], style)
        return output.history_text(found, datetime.now(UTC), style, unfinished)

    present(form, lambda: runs_document(found, unfinished), text)
    return 0


@click.command()
@click.option("--limit-to", "name", metavar="NAME", shell_complete=names_for_tab, help="Only this VM, host or fleet.")
@latest
@options.output()
def events(name: str | None, count: int, form: str) -> int:
    """What runs have done to which VM, the latest last."""
    engine = wiring.open_engine(settings.load())
    found = output.events_in(engine.store.runs(RUNS.kept), name)[-count:]
    if name is not None and not found:
        refuse_unknown_name(engine, name)
    present(form, lambda: events_document(found), lambda style: output.events_text(found, style))
    return 0
