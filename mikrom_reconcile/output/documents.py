"""The JSON that other programs rely on; a field that is here stays, with its meaning.

Every document has `format_version`, and goes up by one only when something in it changes its meaning or vanishes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from mikrom_reconcile.core.model.observed import ObservedVM
from mikrom_reconcile.core.model.plan import Plan
from mikrom_reconcile.core.model.run import RunReport
from mikrom_reconcile.core.model.specs import SpecProblem
from mikrom_reconcile.output.doctor_text import Check, SettingLine
from mikrom_reconcile.output.neutral import json_text
from mikrom_reconcile.output.plan_parts import KINDS
from mikrom_reconcile.output.status_text import Status
from mikrom_reconcile.output.verdict import verdict_of

FORMAT_VERSION = "1"

Document = dict[str, Any]


def json_of(document: Mapping[str, Any]) -> str:
    """The document as text, indented, ending with a line break."""
    encoded = msgspec.json.format(msgspec.json.encode({"format_version": FORMAT_VERSION, **document}), indent=2)
    return json_text(encoded.decode()) + "\n"


def yaml_of(document: Mapping[str, Any]) -> str:
    """The document as YAML that means the same as its JSON, in ASCII, so that no terminal can obey it."""
    import yaml  # noqa: PLC0415 - most outputs are not YAML

    plain = msgspec.json.decode(msgspec.json.encode({"format_version": FORMAT_VERSION, **document}))
    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    return str(yaml.dump(plain, Dumper=dumper, sort_keys=False, width=120))


def plan_document(plan: Plan) -> Document:
    """A plan. `changes` holds everything that is not unchanged; `peaks` how many VMs of a fleet are down at once."""
    kinds = Counter(change.kind for change in plan.changes)
    return {
        "id": plan.id,
        "project": plan.project,
        "revision": plan.revision,
        "taken_at": plan.taken_at,
        "summary": {"unchanged": sum(plan.unchanged.values())} | {kind: kinds[kind] for kind in KINDS},
        "changes": [
            {
                "vm": change.name,
                "fleet": change.fleet,
                "host": change.host,
                "kind": change.kind,
                "reasons": [*change.reasons, *([change.placed] if change.placed else [])],
                "fields": change.fields,
            }
            for change in plan.changes
        ],
        "peaks": plan.peaks,
        "refusals": plan.refusals,
        "warnings": [*plan.warnings, *(f"host {host}: {error}" for host, error in plan.unreachable.items())],
    }


def run_document(report: RunReport) -> Document:
    """The plan that was carried out, what became of it, and how the run ended."""
    verdict = verdict_of(report)
    outcomes = [
        {
            "vm": outcome.vm,
            "host": outcome.host,
            "verb": outcome.verb,
            "result": outcome.result,
            "duration_s": (outcome.finished_at - outcome.started_at).total_seconds(),
            "error": outcome.error,
        }
        for outcome in report.outcomes
    ]
    ended = {"outcomes": outcomes, "converged": verdict.exit_code == 0, "exit_code": verdict.exit_code}
    return plan_document(report.plan) | ended


def validation_document(problems: Sequence[SpecProblem], documents: int, vms: int, fleets: int) -> Document:
    """What is wrong with the specs; the counts are 0 when something is."""
    return {"valid": not problems, "documents": documents, "vms": vms, "fleets": fleets, "problems": problems}


def status_document(status: Status) -> Document:
    """Hosts and fleets; `wanted` is null where the specs name no such fleet, `last_run` before the first."""
    report = status.last_run
    return {
        "hosts": status.hosts,
        "fleets": status.fleets,
        "last_run": report
        and {
            "run_id": report.run_id,
            "project": report.plan.project,
            "revision": report.plan.revision,
            "started_at": report.started_at,
            "finished_at": report.finished_at,
            "done": sum(outcome.result == "done" for outcome in report.outcomes),
            "exit_code": verdict_of(report).exit_code,
        },
    }


def doctor_document(checks: Sequence[Check], settings: Sequence[SettingLine]) -> Document:
    """What was checked, and every setting with its secrets masked."""
    return {"broken": any(check.state == "broken" for check in checks), "checks": checks, "settings": settings}


def vms_document(vms: Sequence[ObservedVM]) -> Document:
    """VMs as their hosts see them. `state` is what was last ordered; `ip` is null until VMs have networks."""
    return {
        "vms": [
            {
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
                "last_error": vm.last_error,
            }
            for vm in vms
        ]
    }
