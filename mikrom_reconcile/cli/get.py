"""`mikrom get`, `describe`, `status`, `orphans`, `images`: what there is; `history`, `events`, `logs`: what went on."""

import sys
import time
from datetime import UTC, datetime

import click

from mikrom_reconcile import wiring
from mikrom_reconcile.cli import options, queries
from mikrom_reconcile.cli.entry import ERROR, INTERRUPTED, Commands, present, show, warn
from mikrom_reconcile.cli.queries import present_views
from mikrom_reconcile.control import revisions
from mikrom_reconcile.control.ports import Engine, Hosts
from mikrom_reconcile.core.model.documents import SourceState
from mikrom_reconcile.core.model.errors import MikromError, SourceError, UsageError
from mikrom_reconcile.core.model.observed import ObserveQuery
from mikrom_reconcile.core.model.plan import SUPERVISION, Revision
from mikrom_reconcile.core.placement.desired_state import files_by_host, named_files, render_all
from mikrom_reconcile.output import formats, pages, run_result as runs, tables as output
from mikrom_reconcile.output.run_result import CHANGES_OR_FAILED, LATE, UNREACHABLE
from mikrom_reconcile.output.text import Style, console_text, row_table, sanitize
from mikrom_reconcile.settings import Settings, load
from mikrom_reconcile.times_and_sizes import OBSERVING, OUTPUT, RUNS

_latest = click.option("-n", "count", type=click.IntRange(1), default=20, show_default=True, help="How many at most.")


@click.command()
@click.argument("name", required=False, shell_complete=queries.names_for_tab)
@_latest
@click.option("-f", "--follow", "following", is_flag=True, help="NAME is a run: wait for its end and tell how it went.")
@click.option("--revisions", "by_revision", is_flag=True, help="What was applied, instead of runs; NAME is a project.")
@options.output()
def history(name: str | None, count: int, form: str, *, following: bool, by_revision: bool) -> int:
    """The runs that go on and those that were kept, the latest first.

    With NAME that run, or those that touched that VM, host or fleet; of a revision (3, or demo/3) what it changed.
    With -f it exits as `mikrom apply` would have.
    """
    engine = wiring.open_engine(load())
    if following:
        return _follow_run(engine, name, form)
    every = revisions.kept(engine.store)
    if by_revision or (name and revisions.called(every, name)):
        return _show_revisions(engine, every, name, count, form)
    unfinished = [run for run in engine.unfinished() if name in {None, run.run_id}]
    listed = {run.run_id for run in unfinished}
    kept = runs.settled(engine.store.runs(RUNS.kept))
    if name is None:
        found = [run for run in kept if run.run_id not in listed][:count]
    else:
        found = [run for run in kept if runs.touched(run, name)][:count]
        if not (found or unfinished):
            queries.refuse_unknown_name(engine, name)

    def text(style: Style) -> str:
        if [run.run_id for run in found] == [name] and not unfinished:
            return runs.run_details(found[0], style)
        return runs.history_text(found, datetime.now(UTC), style, unfinished)

    present(form, lambda: runs.runs_document(found, unfinished), text)
    return 0


def _show_revisions(engine: Engine, every: list[Revision], name: str | None, count: int, form: str) -> int:
    kept, now = engine.store.runs(RUNS.kept), datetime.now(UTC)
    found = [one for one in every if name in {None, one.project}][:count]
    if one := None if found or name is None else revisions.named(every, name):
        own = [run for run in kept if run.outcomes and (run.project, run.number) == (one.project, one.number)]
        present(form, lambda: output.revision_list([one], own), lambda style: output.revision_details(one, own, style))
    else:
        present(form, lambda: output.revision_list(found, []), lambda style: output.revisions_text(found, now, style))
    return 0


def _follow_run(engine: Engine, run_id: str | None, form: str) -> int:
    """Show how far the run is until it has ended, then its recap; its exit code. Raises UsageError for no such run."""
    before = ""
    while run := next((run for run in engine.unfinished() if run.run_id == run_id), None):
        line = runs.unfinished_line(run)
        if run.state == "failed":
            raise MikromError(f"run {sanitize(run.run_id)}: {line}")
        if line != before:
            show(f"{sanitize(line)}\n", sys.stderr)
        before = line
        time.sleep(OUTPUT.follow_poll_s)
    kept = next((kept for kept in engine.store.runs(RUNS.kept) if kept.run_id == run_id), None)
    if kept is None:
        raise UsageError(f"-f: no run is called {sanitize(run_id or '')!r}; `mikrom get runs` lists them")
    present(form, lambda: runs.runs_document([kept], []), lambda style: runs.run_details(kept, style))
    return ERROR if kept.exit_code is None else kept.exit_code


@click.command()
@click.option("--limit-to", "name", metavar="NAME", shell_complete=queries.names_for_tab, help="A VM, host or fleet.")
@_latest
@options.output()
def events(name: str | None, count: int, form: str) -> int:
    """What runs have done to which VM, the latest last."""
    engine = wiring.open_engine(load())
    found = runs.events_in(engine.store.runs(RUNS.kept), name)[-count:]
    if name is not None and not found:
        queries.refuse_unknown_name(engine, name)
    present(form, lambda: runs.events_document(found), lambda style: runs.events_text(found, style))
    return 0


@click.command()
@click.argument("vm", shell_complete=queries.names_for_tab)
@click.option("--tail", "lines", type=click.IntRange(1), metavar="LINES", help="Only the last lines.")
@click.option("-f", "--follow", "following", is_flag=True, help="Go on with what it writes, until Ctrl-C.")
def logs(vm: str, lines: int | None, *, following: bool) -> int:
    """The end of a VM's serial console, at most 256 KiB, without what a terminal could obey."""
    engine = wiring.open_engine(load())
    views = queries.views_of(engine)
    rows = [row for row in output.vms_in(views) if row.name == vm]
    if not rows:
        raise queries.unknown(vm, [row.name for row in output.vms_in(views)], views)
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


@click.group(cls=Commands)
def get() -> None:
    """List what there is."""


@get.command()
@click.argument("names", metavar="[NAME]...", nargs=-1, shell_complete=queries.names_for_tab)
@options.limit
@click.option("--image", metavar="IMAGE", help="Only the VMs of this image.")
@click.option("--amiss", "only_amiss", is_flag=True, help="Only the VMs that are not as they were ordered.")
@options.output()
def vms(names: tuple[str, ...], limit: str | None, image: str | None, form: str, *, only_amiss: bool) -> int:
    """Every VM on every host, or those called NAME, as its host sees it. Exits with 4 when a host could not be read."""
    settings, now = load(), datetime.now(UTC)
    views = queries.views_of(wiring.open_engine(settings))
    rows = queries.selected(output.vms_in(views), names, limit, settings)
    rows = [row for row in (pages.amiss(rows) if only_amiss else rows) if image in {None, row.spec.image}]
    queries.warn_of_duplicates(rows)
    return present_views(
        form, views, lambda: {"vms": [*map(output.vm_row, rows)]}, lambda style: output.vms_text(rows, now, style)
    )


@get.command()
@options.output()
def hosts(form: str) -> int:
    """Every host, with what it has in all. Exits with 4 when one could not be read."""
    views = queries.views_of(wiring.open_engine(load()))
    present(form, lambda: output.hosts_document(views), lambda style: row_table(output.HOSTS, views, style))
    return UNREACHABLE if any(view.error for view in views) else 0


@get.command()
@options.paths
@options.output()
def fleets(paths: tuple[str, ...], form: str) -> int:
    """Every fleet that the specs name or a host has. Exits with 4 when a host could not be read."""
    settings = load()
    views = queries.views_of(wiring.open_engine(settings))
    found = output.fleets_in(views, queries.wanted_by_fleet(settings, paths, views))
    return present_views(form, views, lambda: {"fleets": found}, lambda style: row_table(output.FLEETS, found, style))


get.add_command(history, "runs")


@click.command()
@click.argument("name", shell_complete=queries.names_for_tab)
@options.paths
@options.output(("yaml", "json"))
def describe(name: str, paths: tuple[str, ...], form: str) -> int:
    """Everything that is known of a VM, a host or a fleet: record, phase, what was done to it, what is in it."""
    settings = load()
    engine = wiring.open_engine(settings)
    views = queries.views_of(engine)
    fleets = output.fleets_in(views, queries.wanted_by_fleet(settings, paths, views))
    document = output.description_document(name, views, fleets, engine.store.runs(RUNS.kept))
    document |= queries.unreachable_in(views)
    if not document["found"]:
        known = [*(row.name for row in output.vms_in(views)), *(view.host for view in views)]
        raise queries.unknown(name, [*known, *(fleet.fleet for fleet in fleets)], views)
    present(form, lambda: document, str)
    return 0


@click.command()
@options.paths
@options.output(("text", *formats.DOCUMENT, "html"))
def status(paths: tuple[str, ...], form: str) -> int:
    """Hosts, fleets and the last run on one screen; as html everything that there is, what comes next, and why.

    Exits with 2 when several hosts have the same VM, with 4 when a host could not be read and with 16 when scheduled
    runs do not come, which add up; else with 1 when these cannot use their specs as they are now.
    """
    settings = load()
    engine = wiring.open_engine(settings)
    if form == "html":
        seen = queries.snapshot(settings, paths, engine)
        show(pages.status_html(seen))
        return _status_code(seen.views, seen.source, seen.taken_at)
    views = queries.views_of(engine)
    ended = (run for run in engine.store.runs(RUNS.kept) if run.exit_code is not None)
    last = next((run for run in ended if not run.origin.startswith(SUPERVISION)), None)
    source, now = engine.source(), datetime.now(UTC)
    found = (views, output.fleets_in(views, queries.wanted_by_fleet(settings, paths, views)), last, source)
    present(form, lambda: output.status_document(found), lambda style: output.status_text(found, now, style))
    for one in revisions.kept(engine.store):
        if one.held:
            warn(revisions.held_note(one))
    for project, freeze in revisions.freezes(engine.store).items():
        if freeze.holds(now):
            warn(f"project {project} is {freeze}")
    return _status_code(views, source, now)


def _status_code(views: queries.Views, source: SourceState | None, now: datetime) -> int:
    code = UNREACHABLE if any(view.error for view in views) else 0
    code |= CHANGES_OR_FAILED if queries.warn_of_duplicates(output.vms_in(views)) else 0
    code |= LATE if output.is_overdue(source, now) else 0
    return code or (ERROR if source and source.problem else 0)


@click.command()
@options.paths
@options.output()
def orphans(paths: tuple[str, ...], form: str) -> int:
    """What runs without a record, what has a record that no spec wants, and what is foreign. Changes nothing.

    Exits with 4 when a host could not be read.
    """
    settings = load()
    project, names = _wanted(settings, paths)
    views = queries.views_of(wiring.open_engine(settings), ask=lambda _: ObserveQuery(strays=True))
    found = output.orphans_in(views, project, names)
    return present_views(form, views, lambda: {"orphans": found}, lambda style: output.orphans_text(found, style))


def _wanted(settings: Settings, paths: tuple[str, ...]) -> tuple[str | None, frozenset[str]]:
    try:
        specs = queries.specs_in(settings, paths)
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
    specs, engine = queries.specs_in(settings, paths), wiring.open_engine(settings)
    named, needed = named_files(specs), files_by_host(specs, here=settings.host)
    deadline_s = (timeout_s or settings.timeout_s) if fetch else OBSERVING.deadline_s
    fetch_s = deadline_s * OBSERVING.host_share_of_deadline

    def ask(host: str) -> ObserveQuery:
        return ObserveQuery(images=True, fetch=needed.get(host, ()) if fetch else (), fetch_s=fetch_s)

    views = queries.views_of(engine, deadline_s, ask=ask, also=needed)
    found, now = (named, needed, views), datetime.now(UTC)
    present(form, lambda: output.images_document(*found), lambda style: output.images_text(*found, now, style))
    for view in (view for view in views if view.error):
        warn(f"host {view.host} could not be asked: {view.error}")
    failed = any(view.report and view.report.unfetched for view in views)
    return (CHANGES_OR_FAILED if failed else 0) | (UNREACHABLE if any(view.error for view in views) else 0)
