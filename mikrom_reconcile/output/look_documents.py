"""The JSON of the commands that look; the rules of `documents` hold here too."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from mikrom_reconcile.core.explain import Explanation
from mikrom_reconcile.core.fields import recorded
from mikrom_reconcile.core.model.desired import DesiredVM
from mikrom_reconcile.core.model.observed import HostView, ObservedVM
from mikrom_reconcile.core.model.run import RunReport, UnfinishedRun
from mikrom_reconcile.core.provenance import FieldOrigin
from mikrom_reconcile.output.documents import Document, change_row, outcome_row
from mikrom_reconcile.output.history_text import Event, reasons_of
from mikrom_reconcile.output.names import grouped
from mikrom_reconcile.output.plan_parts import kinds_of
from mikrom_reconcile.output.status_text import FleetStatus, HostStatus, Status
from mikrom_reconcile.output.verdict import verdict_of


def vms_document(vms: Sequence[ObservedVM]) -> Document:
    """VMs as their hosts see them. `state` is what was last ordered; `ip` is null until VMs have networks."""
    return {"vms": [_vm_row(vm) for vm in vms]}


def _vm_row(vm: ObservedVM) -> Document:
    return {
        "name": vm.name,
        "project": vm.project,
        "fleet": vm.fleet,
        "host": vm.host,
        "state": vm.state,
        "phase": vm.phase,
        "uid": vm.uid,
        "pid": vm.pid,
        "vcpu_count": vm.spec.machine.vcpu_count,
        "mem_size_mib": vm.spec.machine.mem_size_mib,
        "ip": None,
        "spec_digest": vm.spec_digest,
        "created_at": vm.created_at,
        "restarts": vm.restarts,
        "last_error": vm.last_error,
    }


def status_document(status: Status) -> Document:
    """Hosts and fleets; `wanted` is null where the specs name no such fleet, `last_run` before the first, `source`
    where nothing is scheduled.
    """
    last = status.last_run
    return {
        "hosts": status.hosts, "fleets": status.fleets, "last_run": last and _run_row(last), "source": status.source,
    }  # fmt: skip


def runs_document(reports: Iterable[RunReport], unfinished: Sequence[UnfinishedRun]) -> Document:
    """Runs that were kept, the latest first, and those without a report; `summary` is that of their plan."""
    return {"runs": [_run_row(report) for report in reports], "unfinished": unfinished}


def _run_row(report: RunReport) -> Document:
    return {
        "run_id": report.run_id,
        "origin": report.origin,
        "project": report.plan.project,
        "revision": report.plan.revision,
        "started_at": report.started_at,
        "finished_at": report.finished_at,
        "summary": kinds_of(report.plan),
        "done": sum(outcome.result == "done" for outcome in report.outcomes),
        "exit_code": verdict_of(report).exit_code,
        "source_problem": report.source_problem,
    }


def events_document(events: Iterable[Event]) -> Document:
    """What was done, the oldest first."""
    return {
        "events": [
            {
                "run_id": report.run_id,
                "finished_at": outcome.finished_at,
                "reasons": reasons_of(report, outcome),
                **outcome_row(outcome),
            }
            for report, outcome in events
        ]
    }


def rendered_document(vms: Iterable[DesiredVM], origins: Mapping[str, Sequence[FieldOrigin]]) -> Document:
    """VMs as the specs want them, in the words of the specs; `origins` only for those that have any."""
    return {
        "vms": [
            {
                "name": vm.name,
                "project": vm.project,
                "host": vm.host,
                **recorded(fleet=vm.fleet, state=vm.state, spec=vm.spec, policy=vm.policy),
                "spec_digest": vm.spec_digest,
                **({"origins": origins[vm.name]} if vm.name in origins else {}),
            }
            for vm in vms
        ]
    }


def explanation_document(told: Explanation) -> Document:
    """Why something happens to a VM or nothing; what is null is not there."""
    wanted = told.wanted
    return {
        "name": told.name,
        "project": told.project,
        "revision": told.revision,
        "wanted": wanted and {"fleet": wanted.fleet, "place": told.place, "host": wanted.host, "state": wanted.state},
        "observed": [_vm_row(row) for row in told.observed],
        "fields": told.fields,
        "rule": {"name": told.rule, "meaning": told.meaning} if told.rule else None,
        "change": told.change and change_row(told.change),
        "refusals": told.refusals,
        "conclusion": told.conclusion,
    }


def description_document(
    name: str,
    views: Sequence[HostView],
    fleets: Iterable[FleetStatus],
    hosts: Iterable[HostStatus],
    done: Sequence[Event],
) -> Document:
    """Everything that is called `name`: VMs with their records, hosts and fleets with what is in them."""
    rows = [row for view in views if view.report for row in view.report.vms]
    found: list[Document] = [{"kind": "VM", **msgspec.to_builtins(row)} for row in rows if row.name == name]
    for row in found:
        mine = [event for event in done if event[1].host == row["host"]]
        row["events"] = events_document(mine)["events"]
    found += [
        {"kind": "Host", **msgspec.to_builtins(host), **_inside([row for row in rows if row.host == name])}
        for host in hosts
        if host.host == name
    ]
    found += [
        {
            "kind": "Fleet",
            **msgspec.to_builtins(fleet),
            **_inside([row for row in rows if (row.project, row.fleet) == (fleet.project, name)]),
        }
        for fleet in fleets
        if fleet.fleet == name
    ]
    return {"found": found}


def _inside(rows: Sequence[ObservedVM]) -> Document:
    """The names of VMs by the phase they are in, and by host."""
    phases: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        phases[row.phase].append(row.name)
    names = {phase: grouped(phases[phase]) for phase in sorted(phases)}
    return {"names_by_phase": names, "vms_by_host": dict(sorted(Counter(row.host for row in rows).items()))}
