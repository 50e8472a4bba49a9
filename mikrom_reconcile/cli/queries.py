"""What the commands that change nothing share: one observation of all hosts, and one reading of the specs."""

import difflib
from collections import Counter
from collections.abc import Callable, Iterable, Set as AbstractSet
from datetime import UTC, datetime
from typing import Any

import click

from mikrom_reconcile import settings, wiring
from mikrom_reconcile.cli.entry import present, warn
from mikrom_reconcile.control.ports import Engine
from mikrom_reconcile.control.snapshot import Snapshots
from mikrom_reconcile.core.model.errors import MikromError, SourceError, SpecError, UsageError
from mikrom_reconcile.core.model.observed import HostView, ObservedState, ObservedVM, ObserveQuery, Placements
from mikrom_reconcile.core.model.plan import RunOverrides
from mikrom_reconcile.core.parsing.yaml_words import shown
from mikrom_reconcile.core.placement.desired_state import render_all, validate_specs
from mikrom_reconcile.core.planning.planner import make_plan, prepare
from mikrom_reconcile.core.planning.selection import limited, refuse_unknown, refuse_unread
from mikrom_reconcile.core.specs.load import Specs
from mikrom_reconcile.output import pages, run_result, tables
from mikrom_reconcile.output.plan import rollout_of
from mikrom_reconcile.output.text import Document, Style
from mikrom_reconcile.settings import Settings
from mikrom_reconcile.times_and_sizes import OBSERVING

Views = tuple[HostView, ...]


def views_of(
    engine: Engine,
    deadline_s: float = OBSERVING.deadline_s,
    *,
    ask: Callable[[str], ObserveQuery] = lambda _: ObserveQuery(),
    also: Iterable[str] = (),
) -> Views:
    """What every host says, those of `also` too, when it is asked that: by default of all VMs. Sorted by host."""
    queries = {host: ask(host) for host in {*engine.hosts.names(), *also}}
    return tuple(sorted(engine.hosts.observe(queries, deadline_s=deadline_s), key=lambda view: view.host))


def selected(rows: list[ObservedVM], names: tuple[str, ...], limit: str | None, current: Settings) -> list[ObservedVM]:
    """The rows that both select, if they are given. Raises UsageError for a word that matches none."""
    refuse_unknown("NAME", names, {row.name for row in rows}, "no host that answers has a VM {}")
    chosen: AbstractSet[str] = {*names} or {row.name for row in rows}
    if limit is not None:
        try:
            specs = specs_in(current, ())
        except (SourceError, SpecError):
            specs = None
        chosen &= limited(limit, ((row.name, row.host, row.fleet) for row in rows), specs)
        if names and not chosen:
            raise UsageError("NAME and --limit have no VM in common")
    return [row for row in rows if row.name in chosen]


def unreachable_in(views: Views) -> Document:
    """The field of a document that says which hosts gave no report, and why."""
    return {"unreachable": {view.host: view.error for view in views if view.report is None}}


def present_views(form: str, views: Views, document: Callable[[], Document], text: Callable[[Style], str]) -> int:
    """Show what was made of `views`, and name on stderr every host that gave no report; the exit code."""
    missing = unreachable_in(views)
    present(form, lambda: document() | missing, text)
    for host, error in missing["unreachable"].items():
        warn(f"host {host} could not be read: {error}; its VMs are not shown")
    return run_result.UNREACHABLE if missing["unreachable"] else 0


def warn_of_duplicates(rows: Iterable[ObservedVM]) -> bool:
    """Name on stderr every VM that several hosts have; whether there was one."""
    counts = Counter((row.project, row.name) for row in rows)
    duplicates = {name: copies for (_, name), copies in counts.items() if copies > 1}
    for name, copies in duplicates.items():
        warn(f"{name} is on {copies} hosts: `mikrom orphans` says which are older, `mikrom plan` what next")
    return bool(duplicates)


def unknown(name: str, known: Iterable[str], views: Views) -> MikromError:
    """The error that nothing is called `name`, with the nearest name and the hosts that might know more."""
    hosts = ", ".join(unreachable_in(views)["unreachable"])
    unread = f" (could not be read: {hosts})" if hosts else ""
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]}?" if close else "`mikrom get vms` lists the VMs"
    return UsageError(f"nothing is called {shown(name)}{unread}; {hint}")


def refuse_unknown_name(engine: Engine, name: str) -> None:
    """Raises UsageError unless some host, or a fleet or VM on one, is called so."""
    views = views_of(engine)
    known = {view.host for view in views} | {each for row in tables.vms_in(views) for each in (row.name, row.fleet)}
    if name not in known:
        raise unknown(name, sorted(known), views)


def specs_in(current: Settings, paths: tuple[str, ...], extra_vars: dict[str, Any] | None = None) -> Specs:
    """The specs below `paths`. Raises SpecError, SourceError, UsageError."""
    tree = wiring.read_tree(current, paths)
    specs = validate_specs(tree, wiring.schemas(), here=current.host, extra_vars=extra_vars)
    refuse_unread(specs)
    return specs


def wanted_by_fleet(current: Settings, paths: tuple[str, ...], views: Views) -> dict[tables.FleetKey, tables.Wanted]:
    """What the specs want of each fleet, and how far that is by what the hosts say; nothing where there are none."""
    try:
        specs = specs_in(current, paths)
        vms = render_all(specs, here=current.host)
    except SourceError:
        if paths:
            raise
        return {}
    except SpecError as error:
        warn(f"{error}, so only the hosts are asked; `mikrom validate` tells more")
        return {}
    counts = Counter(vm.fleet for vm in vms if vm.state != "absent")
    found = {vm.name: vm.host for vm in tables.vms_in(views) if vm.project == specs.project}
    asked = prepare(specs, Placements(vms=found, covers=tuple(view.host for view in views)), here=current.host)
    plan = make_plan(asked, ObservedState(taken_at=datetime.now(UTC), hosts=views), RunOverrides()).plan
    return {(specs.project, fleet.name): (counts[fleet.name], rollout_of(plan, fleet.name)) for fleet in specs.fleets}


def snapshot(current: Settings, paths: tuple[str, ...], engine: Engine) -> pages.Snapshot:
    """Everything at this moment, with the plan for the specs below `paths` if they can be read."""
    snapshots = Snapshots(lambda: engine, wiring.schemas(), current.host)
    try:
        return snapshots.take(wiring.read_tree(current, paths))
    except SourceError as error:
        if paths:
            raise
        return snapshots.take(None, str(error))


def names_for_tab(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Names of VMs and fleets that begin so; none when they cannot be had at once."""
    try:
        rows = tables.vms_in(views_of(wiring.open_engine(settings.load()), OBSERVING.completion_deadline_s))
    except MikromError:
        return []
    return sorted({name for row in rows for name in (row.name, row.fleet) if name.startswith(incomplete)})
