"""The JSON of the commands that look; the rules of `documents` hold here too."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from mikrom_reconcile.core.model.desired import DesiredVM
from mikrom_reconcile.core.model.fields import recorded
from mikrom_reconcile.core.model.observed import HostView, ObservedVM
from mikrom_reconcile.core.model.run import ActionOutcome, RunRecord, UnfinishedRun
from mikrom_reconcile.core.planning.explain import Explanation
from mikrom_reconcile.core.specs.provenance import FieldOrigin
from mikrom_reconcile.limits import OUTPUT
from mikrom_reconcile.output.documents import FORMER_RULES, Document, change_row, outcome_row
from mikrom_reconcile.output.history_text import Event, events
from mikrom_reconcile.output.names import grouped
from mikrom_reconcile.output.plan_parts import KINDS
from mikrom_reconcile.output.status_text import FleetStatus, HostStatus, Status


def vms_document(vms: Sequence[ObservedVM]) -> Document:
    """VMs as their hosts see them. `state` is what was last ordered, `ip` the first of `addresses` or null."""
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
        "image": vm.spec.image,
        "ip": next(iter(vm.addresses.values()), None),
        "addresses": vm.addresses,
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


def runs_document(runs: Iterable[RunRecord], unfinished: Sequence[UnfinishedRun]) -> Document:
    """Runs that were kept, the latest first, and those without a report; `summary` is that of their plan."""
    rows = [_run_row(run) | {"outcomes": [_deed_row(outcome) for outcome in run.outcomes]} for run in runs]
    return {"runs": rows, "unfinished": unfinished}


def _run_row(run: RunRecord) -> Document:
    """`exit_code` is null until the run has ended."""
    return {
        "run_id": run.run_id,
        "origin": run.origin,
        "project": run.project,
        "revision": run.revision,
        "author": run.author,
        "started_at": run.started_at,
        "finished_at": run.finished_at,
        "since": run.since or run.started_at,
        "times": run.times,
        "summary": {"unchanged": 0, **dict.fromkeys(KINDS, 0), **run.planned},
        "done": sum(outcome.result == "done" for outcome in run.outcomes),
        "failed": run.failed,
        "refused": run.refused,
        "unreachable": run.unreachable,
        "conclusion": run.conclusion,
        "exit_code": run.exit_code,
        "source_problem": run.source_problem,
    }


def _deed_row(outcome: ActionOutcome) -> Document:
    known = {"finished_at": outcome.finished_at, "reasons": outcome.reasons, "fields": outcome.fields}
    return known | outcome_row(outcome)


def events_document(found: Iterable[Event]) -> Document:
    """What was done, the oldest first."""
    return {
        "events": [
            {
                "run_id": run.run_id,
                "origin": run.origin,
                "revision": run.revision,
                "author": run.author,
                "since": run.since or run.started_at,
                "times": run.times,
                **_deed_row(outcome),
            }
            for run, outcome in found
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
    wanted, rule = told.wanted, told.rule
    return {
        "name": told.name,
        "project": told.project,
        "revision": told.revision,
        "wanted": wanted and {"fleet": wanted.fleet, "place": told.place, "host": wanted.host, "state": wanted.state},
        "observed": [_vm_row(row) for row in told.observed],
        "fields": told.fields,
        "rule": {"name": FORMER_RULES.get(rule, rule), "id": rule, "meaning": told.meaning} if rule else None,
        "change": told.change and change_row(told.change),
        "refusals": told.refusals,
        "conclusion": told.conclusion,
    }


def description_document(
    name: str,
    views: Sequence[HostView],
    fleets: Iterable[FleetStatus],
    hosts: Iterable[HostStatus],
    runs: Sequence[RunRecord],
) -> Document:
    """Everything that is called `name`: VMs with their records, hosts and fleets with what is in them; `name` may be
    the address of a VM, too.
    """
    rows = [row for view in views if view.report for row in view.report.vms]
    found: list[Document] = [
        {"kind": "VM", **msgspec.to_builtins(row), **_latest(runs, row.name, row.host)}
        for row in rows
        if name in {row.name, *row.addresses.values()}
    ]
    found += [
        {
            "kind": "Host",
            **msgspec.to_builtins(host),
            **_inside([row for row in rows if row.host == name]),
            **_latest(runs, name),
        }
        for host in hosts
        if host.host == name
    ]
    found += [
        {
            "kind": "Fleet",
            **msgspec.to_builtins(fleet),
            **_inside([row for row in rows if (row.project, row.fleet) == (fleet.project, name)]),
            **_latest(runs, name),
        }
        for fleet in fleets
        if fleet.fleet == name
    ]
    return {"found": found}


def _latest(runs: Sequence[RunRecord], name: str, host: str = "") -> Document:
    """The latest deeds that concern `name`, on that host if one is given."""
    mine = [event for event in events(runs, name) if host in {"", event[1].host}]
    return events_document(mine[-OUTPUT.described_actions :])


def _inside(rows: Sequence[ObservedVM]) -> Document:
    """The names of VMs by the phase they are in, and by host."""
    phases: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        phases[row.phase].append(row.name)
    names = {phase: grouped(phases[phase]) for phase in sorted(phases)}
    return {"names_by_phase": names, "vms_by_host": dict(sorted(Counter(row.host for row in rows).items()))}
