"""Pages for a browser that need nothing else, no script, font or image: a plan, and the status of all there is."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import cache
from hashlib import sha256
from html import escape
from math import inf
from string import Template

import msgspec
from msgspec.structs import replace

from mikrom_reconcile.core.model.observed import SATISFIES, HostView, ObservedVM
from mikrom_reconcile.core.model.plan import FieldChange, Plan, RunRecord, UnfinishedRun, VMChange, group_by
from mikrom_reconcile.core.model.specs import SourceState
from mikrom_reconcile.core.placement.capacity import room_of
from mikrom_reconcile.core.specs.inventory import Inventory
from mikrom_reconcile.output import plan as plans
from mikrom_reconcile.output.hosts import FLEETS, FleetStatus, is_overdue, source_line, vms_in
from mikrom_reconcile.output.run_result import FAILED, exit_look, run_details, unfinished_line
from mikrom_reconcile.output.text import (
    PLAIN,
    Cell,
    age,
    console_text,
    counted,
    grouped,
    mebibytes,
    sanitize,
    time_text,
)
from mikrom_reconcile.times_and_sizes import OUTPUT


@cache
def _packaged(name: str) -> str:
    from importlib.resources import files  # noqa: PLC0415, TID251 - a constant of this package, and seldom needed

    return files(__package__).joinpath(name).read_text(encoding="utf-8")


@cache
def policy() -> str:
    """The Content-Security-Policy of every page: whatever is not its own style is forbidden."""
    digest = b64encode(sha256(_packaged("style.css").encode()).digest()).decode()
    return f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"


def _page(name: str, **parts: str) -> str:
    return Template(_packaged(name)).substitute(parts, style=_packaged("style.css"), policy=policy())


def _h(text: str) -> str:
    return escape(sanitize(text))


# ---- a plan ------------------------------------------------------------------------------------------------------


def plan_html(plan: Plan) -> str:
    """The plan as one page. Values are always shown in full."""
    return _page(
        "plan.html",
        title=f"Plan for {_h(plan.project)} at {_h(plan.revision)}",
        made=f"{plan.taken_at:%Y-%m-%d %H:%M:%S}",
        summary=_h(plans.summary(plan)),
        body="\n".join([*_alarms(plans.alarms(plan)), *_changes(plan, "h2")]),
        id=_h(plan.id),
    )


def _alarms(alarms: Iterable[tuple[str, str, Sequence[str]]]) -> Iterator[str]:
    for title, look, lines in alarms:
        items = "".join(f"<li>{_h(line)}</li>" for line in lines)
        yield f'<section class="alarm {look}"><h2>{title}</h2><ul>{items}</ul></section>'


def _changes(plan: Plan, heading: str) -> Iterator[str]:
    fleets = list(plans.fleets_of(plan))
    unfolded = " open" if sum(len(groups) for _, _, groups in fleets) <= OUTPUT.open_groups else ""
    for fleet, peak, groups in fleets:
        yield f"<section><{heading}>{_h(fleet)} <small>{_h(peak)}</small></{heading}>"
        for group in groups:
            inside = f"<dl>{''.join(_facts(group))}</dl>{''.join(_fields(group.fields))}"
            yield f'<details{unfolded}>{_summary(group)}<div class="inside">{inside}</div></details>'
        yield "</section>"


def _summary(group: plans.Group) -> str:
    sign, look = plans.LOOKS[group.kind]
    wanted = f" ({group.wanted})" if group.wanted else ""
    what = f'<b class="{look}">{sign} {group.kind}{wanted}</b> <span class="names">{_h(group.names)}</span>'
    return f'<summary>{what} <span class="dim">on {_h(group.hosts)}</span></summary>'


def _facts(group: plans.Group) -> Iterator[str]:
    facts = [("Why", group.why), ("VMs", str(group.size) if group.size > 1 else "")]
    if len(group.names_by_host) > 1:
        facts += [(f"on {host}", names) for host, names in group.names_by_host.items()]
    return (f"<dt>{_h(name)}</dt><dd>{_h(text)}</dd>" for name, text in facts if text)


_CLASSES = {"-": "less", "+": "more"}


def _fields(fields: Iterable[FieldChange]) -> Iterator[str]:
    for field in fields:
        yield f'<p class="field"><code>{_h(field.path)}</code> <span class="dim">({field.impact})</span></p>'
        lines = (f'<span class="{_CLASSES.get(line[0], "dim")}">{_h(line)}</span>' for line in plans.value_diff(field))
        yield f"<pre>{''.join(lines)}</pre>"


# ---- the status --------------------------------------------------------------------------------------------------


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """All that the page of the status shows. `plan` is what a run would do now; None: `problem` says why nobody knows.

    `runs` are the latest, newest first; `consoles` has the end of some VM's consoles, by name.
    """

    taken_at: datetime
    views: tuple[HostView, ...]
    fleets: tuple[FleetStatus, ...] = ()
    inventory: Inventory | None = None
    plan: Plan | None = None
    problem: str = ""
    runs: tuple[RunRecord, ...] = ()
    unfinished: tuple[UnfinishedRun, ...] = ()
    source: SourceState | None = None
    consoles: Mapping[str, bytes] = {}


def amiss(vms: Iterable[ObservedVM]) -> list[ObservedVM]:
    """The VMs that are not as they were ordered."""
    return [vm for vm in vms if vm.phase not in SATISFIES[vm.state] or vm.drift]


def status_html(now: Snapshot, note: str = "") -> str:
    """What there is, what is amiss and why, and what comes next, as one page; `note` is HTML for its head."""
    vms = vms_in(now.views)
    wrong = amiss(vms)
    up = sum(vm.phase == "running" for vm in vms)
    counts = f"{counted(len(now.views), 'host')}, {counted(len(vms), 'VM')}, {up} running, {len(wrong)} amiss."
    source = source_line(now.source, now.taken_at) if now.source else ""
    return _page(
        "status.html",
        made=f"{now.taken_at:%Y-%m-%d %H:%M:%S}",
        summary=f"{counts} {_h(plans.summary(now.plan) if now.plan else '')}",
        note=f"<p>{_h(source)}</p>{note}",
        alarms="\n".join(_alarms(_status_alarms(now))),
        amiss="".join([*_wrong(wrong, now.plan), *_consoles(now)]),
        hosts=_folded("host", _HOSTS, [_host_row(view, now.inventory) for view in now.views]),
        fleets=_folded("fleet", _FLEETS, [_fleet_row(fleet) for fleet in now.fleets]),
        next="".join(_changes(now.plan, "h3")) if now.plan else f"<p>{_h(now.problem)}</p>",
        runs="".join([*map(_unfinished, now.unfinished), *(_run(run, now.taken_at) for run in now.runs)]) or _NONE,
        vms="".join(_vms_of(fleet, rows, now.taken_at) for fleet, rows in sorted(_by_fleet(vms).items())) or _NONE,
    )  # fmt: skip


_NONE = "<p>None.</p>"


def _by_fleet(vms: Iterable[ObservedVM]) -> dict[str, list[ObservedVM]]:
    return group_by(vms, lambda vm: f"{vm.project}/{vm.fleet}")


def _status_alarms(now: Snapshot) -> Iterator[tuple[str, str, Sequence[str]]]:
    if now.source and (now.source.problem or is_overdue(now.source, now.taken_at)):
        yield "Scheduled runs", "red", [source_line(now.source, now.taken_at)]
    errors = group_by((view for view in now.views if view.error), lambda view: view.error)
    if errors:
        lines = [f"{grouped(view.host for view in views)}: {error}" for error, views in errors.items()]
        yield "Could not be read", "red", lines
    for title, look, lines in plans.alarms(now.plan) if now.plan else ():
        if title != "Could not be read":
            yield title, look, lines


def _table(caption: str, titles: Iterable[str], rows: Iterable[Sequence[Cell]]) -> str:
    """A table whose rows are called by their first cell."""
    head = "".join(f'<th scope="col">{title}</th>' for title in titles)
    body = "".join(f'<tr><th scope="row">{_cell(row[0])}</th>{"".join(map(_td, row[1:]))}</tr>' for row in rows)
    table = f"<table><caption>{_h(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="table" tabindex="0" role="region" aria-label="{_h(caption)}">{table}</div>'


def _td(cell: Cell) -> str:
    return f"<td>{_cell(cell)}</td>"


def _cell(cell: Cell) -> str:
    if isinstance(cell, str):
        return _h(cell)
    return f'<span class="{cell[1]}">{_h(cell[0])}</span>' if cell[1] else _h(cell[0])


def _folded(noun: str, titles: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """A table that begins closed where it is long."""
    unfolded = " open" if len(rows) <= OUTPUT.open_groups else ""
    caption = counted(len(rows), noun)
    return f"<details{unfolded}><summary>{_h(caption)}</summary>{_table(caption, titles, rows)}</details>"


_HOSTS = ("Host", "VMs", "Running", "Promised", "Limit", "Reserved", "Used", "Memory")


def _host_row(view: HostView, inventory: Inventory | None) -> Sequence[Cell]:
    """How much of a host's memory is promised to VMs and of how much, is reserved for others, and used by all."""
    if (report := view.report) is None:
        return (view.host, ("unreachable", "red"), *[("-", "dim")] * (len(_HOSTS) - 2))
    room = room_of(inventory or Inventory(), report)
    promised_mib, limit_mib = report.promised.mem_size_mib, room.mem_limit_mib
    running = sum(vm.phase == "running" for vm in report.vms)
    return (
        view.host,
        str(len(report.vms)),
        (str(running), "" if running == len(report.vms) else "yellow"),
        (mebibytes(promised_mib), "red" if promised_mib > limit_mib else ""),
        mebibytes(int(limit_mib)) if limit_mib != inf else "-",
        mebibytes(inventory.sizing(view.host).reserve.mem_size_mib or 0) if inventory else "-",
        mebibytes(report.used_mib) if report.used_mib is not None else "-",
        mebibytes(report.capacity.mem_size_mib),
    )


_FLEETS = ("Fleet", "Wanted", "VMs", "Running", "Rollout")


def _fleet_row(row: FleetStatus) -> Sequence[Cell]:
    *_, running, rollout = (column.shown(row, None) for column in FLEETS)
    wanted = "-" if row.wanted is None else str(row.wanted)
    return f"{row.project}/{row.fleet}", wanted, str(row.vms), running, rollout


def _wrong(vms: Sequence[ObservedVM], plan: Plan | None) -> Iterator[str]:
    if not vms:
        yield "<p>Every VM is as it was ordered.</p>"
        return
    changes = {(change.name, change.host): change for change in (plan.changes if plan else ())}
    shown = vms[: OUTPUT.section_lines]
    rows = [
        (vm.name, vm.host, vm.state, (vm.phase, "red"), why(vm), _next(changes.get((vm.name, vm.host)))) for vm in shown
    ]
    yield _table(f"{counted(len(vms), 'VM')} amiss", ("VM", "Host", "Ordered", "Found", "Why", "Next run"), rows)
    if len(vms) > len(shown):
        yield f"<p>… and {len(vms) - len(shown)} more; <code>mikrom get vms</code> has all</p>"


def why(vm: ObservedVM) -> str:
    """What is known of why a VM is not as it was ordered."""
    drift = (f"{item.path} is {item.actual}, was ordered {item.recorded}" for item in vm.drift)
    restarts = (
        f"{counted(len(vm.restarts), 'restart')} by its host, last {time_text(vm.restarts[-1])}" if vm.restarts else ""
    )
    known = (vm.last_error or "", vm.health, vm.attempt.error if vm.attempt else "", *drift, restarts)
    return "; ".join(dict.fromkeys(part for part in known if part))


def _next(change: VMChange | None) -> str:
    return f"{change.kind}: {'; '.join(change.reasons)}" if change else ""


def _consoles(now: Snapshot) -> Iterator[str]:
    for vm, content in sorted(now.consoles.items()):
        text = escape(console_text(content)) or "(nothing)"
        yield f"<details><summary>The end of the console of {_h(vm)}</summary><pre>{text}</pre></details>"


def _unfinished(run: UnfinishedRun) -> str:
    return f"<p>{time_text(run.since)}, {_h(run.origin)}: <b>{_h(unfinished_line(run))}</b></p>"


def _run(run: RunRecord, now: datetime) -> str:
    """A run with what it did, what failed before all else."""
    outcomes = sorted(run.outcomes, key=lambda outcome: outcome.result not in FAILED)
    shown = replace(run, outcomes=tuple(outcomes[: OUTPUT.page_actions]))
    cut = len(outcomes) - len(shown.outcomes)
    more = f"… and {counted(cut, 'action')} more: mikrom history {run.run_id}" if cut else ""
    look = exit_look(run.exit_code)
    head = f"{age(run.finished_at, now)} ago, {run.origin}: "
    summary = f'<summary>{_h(head)}<b class="{look}">{_h(run.conclusion)}</b></summary>'
    return f"<details>{summary}<pre>{escape(run_details(shown, PLAIN))}{_h(more)}</pre></details>"


def _vms_of(fleet: str, vms: Sequence[ObservedVM], now: datetime) -> str:
    """Every VM of a fleet, closed: a browser's search opens it."""
    titles = ("VM", "Host", "Phase", "Image", "Memory", "Addresses", "Age", "Restarts")
    rows = [
        (
            vm.name, vm.host, vm.phase, vm.spec.image, mebibytes(vm.spec.machine.mem_size_mib),
            ", ".join(vm.addresses.values()), age(vm.created_at, now), str(len(vm.restarts) or ""),
        )
        for vm in vms
    ]  # fmt: skip
    caption = f"{fleet}: {counted(len(vms), 'VM')}"
    return f"<details><summary>{_h(caption)}</summary>{_table(caption, titles, rows)}</details>"
