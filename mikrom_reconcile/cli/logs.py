"""`mikrom logs`."""

from __future__ import annotations

import click

from mikrom_reconcile import settings, wiring
from mikrom_reconcile.cli.queries import names_for_tab, unknown, views_of, vms_in
from mikrom_reconcile.cli.terminal import show
from mikrom_reconcile.limits import OUTPUT
from mikrom_reconcile.output.text import console_text


@click.command()
@click.argument("vm", shell_complete=names_for_tab)
@click.option("--tail", "lines", type=click.IntRange(1), metavar="LINES", help="Only the last lines.")
@click.option("-f", "--follow", "following", is_flag=True, help="Go on with what it writes, until Ctrl-C.")
def logs(vm: str, lines: int | None, *, following: bool) -> int:
    """The end of a VM's serial console, at most 256 KiB, without what a terminal could obey."""
    engine = wiring.open_engine(settings.load())
    views = views_of(engine)
    rows = [row for row in vms_in(views) if row.name == vm]
    if not rows:
        raise unknown(vm, [row.name for row in vms_in(views)], views)
    keeper = max(rows, key=lambda row: row.token)
    console = engine.hosts.console(keeper.host, vm, max_bytes=OUTPUT.logs_bytes)
    text = console_text(console.content)
    kept = text.splitlines(keepends=True)[-lines:] if lines else [text]
    show("".join(kept))
    if not following:
        return 0
    from mikrom_reconcile.cli.follow import follow

    return follow(engine.hosts, keeper.host, vm, console.end)
