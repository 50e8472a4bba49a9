"""`mikrom history` (which is also `mikrom get runs`), `events` and `logs`: what runs did, and what guests say."""

from __future__ import annotations

import sys
import time
from datetime import UTC, datetime

import click

from mikrom_reconcile import wiring
from mikrom_reconcile.cli import options
from mikrom_reconcile.cli.entry import ERROR, INTERRUPTED
from mikrom_reconcile.cli.queries import names_for_tab, refuse_unknown_name, unknown, views_of
from mikrom_reconcile.cli.terminal import present, show, warn
from mikrom_reconcile.control.ports import Engine, Hosts
from mikrom_reconcile.core.model.errors import MikromError, UsageError
from mikrom_reconcile.output import history as output
from mikrom_reconcile.output.text import Style, console_text, sanitize
from mikrom_reconcile.output.vms import vms_in
from mikrom_reconcile.settings import load
from mikrom_reconcile.times_and_sizes import OUTPUT, RUNS

_latest = click.option("-n", "count", type=click.IntRange(1), default=20, show_default=True, help="How many at most.")


@click.command()
@click.argument("name", required=False, shell_complete=names_for_tab)
@_latest
@click.option("-f", "--follow", "following", is_flag=True, help="NAME is a run: wait for its end and tell how it went.")
@options.output()
def history(name: str | None, count: int, form: str, *, following: bool) -> int:
    """The runs that go on and those that were kept, the latest first.

    With NAME that run, or those that touched that VM, host or fleet. With -f it exits as `mikrom apply` would have.
    """
    engine = wiring.open_engine(load())
    if following:
        return _follow_run(engine, name, form)
    unfinished = [run for run in engine.unfinished() if name in {None, run.run_id}]
    listed = {run.run_id for run in unfinished}
    kept = output.settled(engine.store.runs(RUNS.kept))
    if name is None:
        found = [run for run in kept if run.run_id not in listed][:count]
    else:
        found = [run for run in kept if output.touched(run, name)][:count]
        if not (found or unfinished):
            refuse_unknown_name(engine, name)

    def text(style: Style) -> str:
        if [run.run_id for run in found] == [name] and not unfinished:
            return output.run_details(found[0], style)
        return output.history_text(found, datetime.now(UTC), style, unfinished)

    present(form, lambda: output.runs_document(found, unfinished), text)
    return 0


def _follow_run(engine: Engine, run_id: str | None, form: str) -> int:
    """Show how far the run is until it has ended, then its recap; its exit code. Raises UsageError for no such run."""
    before = ""
    while run := next((run for run in engine.unfinished() if run.run_id == run_id), None):
        line = output.unfinished_line(run)
        if run.state == "failed":
            raise MikromError(f"run {sanitize(run.run_id)}: {line}")
        if line != before:
            show(f"{sanitize(line)}\n", sys.stderr)
        before = line
        time.sleep(OUTPUT.follow_poll_s)
    kept = next((kept for kept in engine.store.runs(RUNS.kept) if kept.run_id == run_id), None)
    if kept is None:
        raise UsageError(f"-f: no run is called {sanitize(run_id or '')!r}; `mikrom get runs` lists them")
    present(form, lambda: output.runs_document([kept], []), lambda style: output.run_details(kept, style))
    return ERROR if kept.exit_code is None else kept.exit_code


@click.command()
@click.option("--limit-to", "name", metavar="NAME", shell_complete=names_for_tab, help="Only this VM, host or fleet.")
@_latest
@options.output()
def events(name: str | None, count: int, form: str) -> int:
    """What runs have done to which VM, the latest last."""
    engine = wiring.open_engine(load())
    found = output.events_in(engine.store.runs(RUNS.kept), name)[-count:]
    if name is not None and not found:
        refuse_unknown_name(engine, name)
    present(form, lambda: output.events_document(found), lambda style: output.events_text(found, style))
    return 0


@click.command()
@click.argument("vm", shell_complete=names_for_tab)
@click.option("--tail", "lines", type=click.IntRange(1), metavar="LINES", help="Only the last lines.")
@click.option("-f", "--follow", "following", is_flag=True, help="Go on with what it writes, until Ctrl-C.")
def logs(vm: str, lines: int | None, *, following: bool) -> int:
    """The end of a VM's serial console, at most 256 KiB, without what a terminal could obey."""
    engine = wiring.open_engine(load())
    views = views_of(engine)
    rows = [row for row in vms_in(views) if row.name == vm]
    if not rows:
        raise unknown(vm, [row.name for row in vms_in(views)], views)
    keeper = max(rows, key=lambda row: row.token)
    console = engine.hosts.console(keeper.host, vm, max_bytes=OUTPUT.logs_bytes)
    text = console_text(console.content)
    show("".join(text.splitlines(keepends=True)[-lines:]) if lines else text)
    return follow_console(engine.hosts, keeper.host, vm, console.end) if following else 0


def follow_console(hosts: Hosts, host: str, vm: str, end: int) -> int:
    """Show what comes after `end` until Ctrl-C, by whole lines: half an escape sequence looks like text."""
    pending, warned = b"", False
    try:
        while True:
            time.sleep(OUTPUT.follow_poll_s)
            try:
                console = hosts.console(host, vm, max_bytes=OUTPUT.follow_part_bytes, after=end)
            except MikromError as error:
                if not warned:
                    warn(f"{error}; still trying")
                warned = True
                continue
            warned = False
            got = pending + console.content
            whole = len(got) if not console.content or len(got) > OUTPUT.follow_line_bytes else got.rfind(b"\n") + 1
            show(console_text(got[:whole]))
            pending, end = got[whole:], console.end
    except KeyboardInterrupt:
        return INTERRUPTED
