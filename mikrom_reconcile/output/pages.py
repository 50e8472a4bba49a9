"""Pages for a browser that need nothing else, no script, font or image: a plan, and the status of all there is."""

from base64 import b64encode
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import cache
from hashlib import sha256
from html import escape
from math import inf
from string import Template
from typing import Any

import msgspec
from msgspec.structs import replace

from mikrom_reconcile.core.model.documents import SourceState
from mikrom_reconcile.core.model.observed import SATISFIES, HostView, ObservedVM
from mikrom_reconcile.core.model.plan import FieldChange, Plan, RunRecord, UnfinishedRun, group_by
from mikrom_reconcile.core.placement.capacity import room_of
from mikrom_reconcile.core.specs.inventory import Inventory
from mikrom_reconcile.output import plan as plans, tables, text
from mikrom_reconcile.output.run_result import FAILED, exit_look, run_details, unfinished_line
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


def _h(words: str) -> str:
    return escape(text.sanitize(words))


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
            sign, look = plans.LOOKS[group.kind]
            wanted = f" ({group.wanted})" if group.wanted else ""
            what = f'<b class="{look}">{sign} {group.kind}{wanted}</b> <span class="names">{_h(group.names)}</span>'
            summary = f'<summary>{what} <span class="dim">on {_h(group.hosts)}</span></summary>'
            inside = f"<dl>{''.join(_facts(group))}</dl>{''.join(_fields(group.fields))}"
            yield f'<details{unfolded}>{summary}<div class="inside">{inside}</div></details>'
        yield "</section>"


def _facts(group: plans.Group) -> Iterator[str]:
    facts = [("Why", group.why), ("VMs", str(group.size) if group.size > 1 else "")]
    if len(group.names_by_host) > 1:
        facts += [(f"on {host}", names) for host, names in group.names_by_host.items()]
    return (f"<dt>{_h(name)}</dt><dd>{_h(fact)}</dd>" for name, fact in facts if fact)


_CLASSES = {"-": "less", "+": "more"}


def _fields(fields: Iterable[FieldChange]) -> Iterator[str]:
    for field in fields:
        yield f'<p class="field"><code>{_h(field.path)}</code> <span class="dim">({field.impact})</span></p>'
        lines = (f'<span class="{_CLASSES.get(line[0], "dim")}">{_h(line)}</span>' for line in plans.value_diff(field))
        yield f"<pre>{''.join(lines)}</pre>"


# ---- the status --------------------------------------------------------------------------------------------------


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """All that the page of the status shows. `plan` is what a run would do now; None: `problem` says why nobody knows.
    `runs` are the latest, newest first; `consoles` has the end of some VMs' consoles.
    """

    taken_at: datetime
    views: tuple[HostView, ...]
    fleets: tuple[tables.FleetStatus, ...] = ()
    inventory: Inventory = Inventory()
    plan: Plan | None = None
    problem: str = ""
    runs: tuple[RunRecord, ...] = ()
    unfinished: tuple[UnfinishedRun, ...] = ()
    source: SourceState | None = None
    consoles: Mapping[str, bytes] = {}


def amiss(vms: Iterable[ObservedVM]) -> list[ObservedVM]:
    """The VMs that are not as they were ordered; what becomes of those that were let go is nobody's order."""
    return [vm for vm in vms if (vm.phase not in SATISFIES[vm.state] or vm.drift) and not vm.unmanaged]


def status_html(now: Snapshot, note: str = "") -> str:
    """What there is, what is amiss and why, and what comes next, as one page; `note` is HTML for its head."""
    vms = tables.vms_in(now.views)
    wrong, up = amiss(vms), sum(vm.phase == "running" for vm in vms)
    said = f"{text.counted(len(now.views), 'host')}, {text.counted(len(vms), 'VM')}, {up} running, {len(wrong)} amiss."
    runs = [f"<p>{_h(f'{run.origin}: {unfinished_line(run)}')}</p>" for run in now.unfinished]
    return _page(
        "status.html",
        made=f"{now.taken_at:%Y-%m-%d %H:%M:%S}",
        summary=f"{said} {_h(plans.summary(now.plan) if now.plan else '')}",
        note=_source(now) + note,
        alarms="\n".join(_alarms(_status_alarms(now))),
        amiss="".join(_wrong(wrong, now)),
        hosts=_folded("host", _host_columns(now.inventory), now.views),
        fleets=_folded("fleet", (tables.FLEETS[1], tables.FLEETS[0], *tables.FLEETS[2:]), now.fleets),
        next="".join(_changes(now.plan, "h3")) if now.plan else f"<p>{_h(now.problem)}</p>",
        runs="".join([*runs, *(_run(run, now.taken_at) for run in now.runs)]),
        vms=_folded("VM", tables.VMS, vms, now.taken_at),
    )


def _source(now: Snapshot) -> str:
    if now.source is None:
        return ""
    look = "red" if now.source.problem or tables.is_overdue(now.source, now.taken_at) else "dim"
    return f'<p class="{look}">{escape(tables.source_line(now.source, now.taken_at))}</p>'


def _status_alarms(now: Snapshot) -> Iterator[tuple[str, str, Sequence[str]]]:
    errors = group_by((view for view in now.views if view.error), lambda view: view.error)
    if errors:
        yield "Unreachable", "red", [f"{text.grouped(v.host for v in views)}: {why}" for why, views in errors.items()]
    yield from plans.alarms(replace(now.plan, unreachable={})) if now.plan else ()


def _folded(noun: str, columns: Iterable[text.Column], rows: Sequence[Any], now: datetime | None = None) -> str:
    """A table that begins closed where it is long; a browser's search opens it."""
    caption, unfolded = text.counted(len(rows), noun), " open" if len(rows) <= OUTPUT.open_groups else ""
    return f"<details{unfolded}><summary>{caption}</summary>{_table(caption, columns, rows, now)}</details>"


def _table(caption: str, columns: Iterable[text.Column], rows: Iterable[Any], now: datetime | None) -> str:
    """The rows for people who see or hear them, each called by its first cell."""
    seen = [column for column in columns if column.title is not None]
    head = "".join(f'<th scope="col">{column.title or column.key.upper()}</th>' for column in seen)
    lines = []
    for row in rows:
        first, *others = (_cell(column.shown(row, now)) for column in seen)
        lines.append(f'<tr><th scope="row">{first}</th><td>{"</td><td>".join(others)}</td></tr>')
    table = f"<caption>{caption}</caption><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody>"
    return f'<div class="table" tabindex="0" role="region" aria-label="{caption}"><table>{table}</table></div>'


def _cell(cell: text.Cell) -> str:
    words, look = (cell, "") if isinstance(cell, str) else cell
    return f'<span class="{look}">{_h(words)}</span>' if look else _h(words)


def _host_columns(inventory: Inventory) -> tuple[text.Column, ...]:
    """With what of a host's memory is promised to VMs, may be, is reserved for others, and is used by all."""

    def cells(view: HostView) -> tuple[text.Cell, ...]:
        if (report := view.report) is None:
            return ("-",) * 4
        limit_mib, promised_mib = room_of(inventory, report).mem_limit_mib, report.promised.mem_size_mib
        return (
            (text.mebibytes(promised_mib), "red" if promised_mib > limit_mib else ""),
            "-" if limit_mib == inf else text.mebibytes(int(limit_mib)),
            text.mebibytes(inventory.sizing(view.host).reserve.get("mem_size_mib", 0)),
            "-" if report.used_mib is None else text.mebibytes(report.used_mib),
        )

    titles = enumerate(("PROMISED", "LIMIT", "RESERVED", "USED"))
    memory = (text.Column("", title, cell=lambda view, n=at: cells(view)[n]) for at, title in titles)  # type: ignore[misc]
    return *tables.HOSTS[:-1], *memory, tables.HOSTS[-1]


def _wrong(vms: Sequence[ObservedVM], now: Snapshot) -> Iterator[str]:
    if not vms:
        yield "<p>Every VM is as it was ordered.</p>"
        return
    changes = {(change.name, change.host): change for change in (now.plan.changes if now.plan else ())}
    coming = {vm: f"{change.kind}: {'; '.join(change.reasons)}" for vm, change in changes.items()}
    known = [column for column in tables.VMS if column.key in {"name", "host", "state", "phase"}]
    more = text.Column("", "WHY", why), text.Column("", "NEXT RUN", lambda vm: coming.get((vm.name, vm.host), ""))
    yield _table(f"{text.counted(len(vms), 'VM')} amiss", (*known, *more), vms[: OUTPUT.section_lines], None)
    if len(vms) > OUTPUT.section_lines:
        yield f"<p>… and {len(vms) - OUTPUT.section_lines} more; <code>mikrom get vms --amiss</code> has all</p>"
    for vm, content in now.consoles.items():
        end = escape(text.console_text(content))
        yield f"<details><summary>The end of the console of {_h(vm)}</summary><pre>{end}</pre></details>"


def why(vm: ObservedVM) -> str:
    """What is known of why a VM is not as it was ordered."""
    drift = (f"{item.path} is {item.actual}, was ordered {item.recorded}" for item in vm.drift)
    restarted = [f"restarted by its host, last at {text.time_text(at)}" for at in vm.restarts[-1:]]
    known = (vm.last_error or "", vm.health, vm.attempt.error if vm.attempt else "", *drift, *restarted)
    return "; ".join(dict.fromkeys(part for part in known if part))


def _run(run: RunRecord, now: datetime) -> str:
    """A run with what it did, what failed before all else."""
    outcomes = sorted(run.outcomes, key=lambda outcome: outcome.result not in FAILED)
    told = run_details(replace(run, outcomes=tuple(outcomes[: OUTPUT.page_actions])), text.PLAIN)
    cut = len(outcomes) - OUTPUT.page_actions
    more = f"… and {text.counted(cut, 'action')} more: mikrom history {_h(run.run_id)}" if cut > 0 else ""
    head = _h(f"{text.age(run.finished_at, now)} ago, {run.origin}:")
    summary = f'{head} <b class="{exit_look(run.exit_code)}">{_h(run.conclusion)}</b>'
    return f"<details><summary>{summary}</summary><pre>{escape(told)}{more}</pre></details>"
