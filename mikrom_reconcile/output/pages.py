"""Pages for a browser that need nothing else, no script, font or image: a plan, and the status of all there is."""

from base64 import b64encode
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import cache
from hashlib import sha256
from html import escape
from math import inf
from typing import Any

import msgspec
from msgspec.structs import replace

from mikrom_reconcile.core.model.documents import SourceState
from mikrom_reconcile.core.model.observed import SATISFIES, HostView, ObservedVM
from mikrom_reconcile.core.model.plan import Plan, RunRecord, UnfinishedRun, group_by
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


@cache
def _templates() -> Any:
    from tornado.template import DictLoader  # noqa: PLC0415 - Flower brings it, and only a page needs it

    names = [f"{name}.html" for name in ("page", "plan", "status", "alarms", "changes", "folded", "table")]
    texts = {name: _packaged(name) for name in (*names, "junit.xml", "timeline.svg")}
    return DictLoader(texts, autoescape=None, whitespace="all")


def rendered(name: str, **parts: Any) -> str:
    """The template with `parts`; what may come from elsewhere goes through `h`, or `escape` where it has lines."""
    tools = {"h": _h, "escape": escape, "cell": _cell, "text": text, "plans": plans, "tables": tables, "OUTPUT": OUTPUT}
    return str(_templates().load(name).generate(**tools, **parts), "utf-8")


def _page(name: str, **parts: Any) -> str:
    return rendered(name, **parts, policy=policy(), style=_packaged("style.css"))


def _h(words: str) -> str:
    return escape(text.sanitize(words))


def _cell(cell: text.Cell) -> str:
    words, look = (cell, "") if isinstance(cell, str) else cell
    return f'<span class="{look}">{_h(words)}</span>' if look else _h(words)


def plan_html(plan: Plan) -> str:
    """The plan as one page. Values are always shown in full."""
    return _page("plan.html", title=f"Plan for {plan.project} at {plan.revision}", plan=plan)


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
    changes = {(change.name, change.host): change for change in (now.plan.changes if now.plan else ())}
    coming = {vm: f"{change.kind}: {'; '.join(change.reasons)}" for vm, change in changes.items()}
    known = [column for column in tables.VMS if column.key in {"name", "host", "state", "phase"}]
    more = text.Column("", "WHY", why), text.Column("", "NEXT RUN", lambda vm: coming.get((vm.name, vm.host), ""))
    vms = tables.vms_in(now.views)
    return _page(
        "status.html",
        title="mikrom status",
        now=now,
        note=note,
        alarms=list(_status_alarms(now)),
        vms=vms,
        wrong=amiss(vms),
        wrong_columns=(*known, *more),
        host_columns=_host_columns(now.inventory),
        fleet_columns=(tables.FLEETS[1], tables.FLEETS[0], *tables.FLEETS[2:]),
        unfinished_line=unfinished_line,
        exit_look=exit_look,
        told=_told,
    )


def _status_alarms(now: Snapshot) -> Iterator[tuple[str, str, Sequence[str]]]:
    errors = group_by((view for view in now.views if view.error), lambda view: view.error)
    if errors:
        yield "Unreachable", "red", [f"{text.grouped(v.host for v in views)}: {why}" for why, views in errors.items()]
    yield from plans.alarms(replace(now.plan, unreachable={})) if now.plan else ()


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


def why(vm: ObservedVM) -> str:
    """What is known of why a VM is not as it was ordered."""
    drift = (f"{item.path} is {item.actual}, was ordered {item.recorded}" for item in vm.drift)
    restarted = [f"restarted by its host, last at {text.time_text(at)}" for at in vm.restarts[-1:]]
    known = (vm.last_error or "", vm.health, vm.attempt.error if vm.attempt else "", *drift, *restarted)
    return "; ".join(dict.fromkeys(part for part in known if part))


def _told(run: RunRecord) -> str:
    """What a run did, what failed before all else."""
    outcomes = sorted(run.outcomes, key=lambda outcome: outcome.result not in FAILED)
    told = run_details(replace(run, outcomes=tuple(outcomes[: OUTPUT.page_actions])), text.PLAIN)
    cut = len(outcomes) - OUTPUT.page_actions
    more = f"… and {text.counted(cut, 'action')} more: mikrom history {text.sanitize(run.run_id)}" if cut > 0 else ""
    return told + more
