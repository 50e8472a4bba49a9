"""The JSON that other programs rely on; a field that is here stays, with its meaning.

Every document has `format_version`, and goes up by one only when something in it changes its meaning or vanishes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from mikrom_reconcile.core.model.plan import Plan, VMChange
from mikrom_reconcile.core.model.run import ActionOutcome, RunReport
from mikrom_reconcile.core.model.specs import SpecProblem
from mikrom_reconcile.output.doctor_text import Check, LimitLine, SettingLine
from mikrom_reconcile.output.plan_parts import kinds_of
from mikrom_reconcile.output.run_result import verdict_of
from mikrom_reconcile.output.sanitize import json_text

FORMAT_VERSION = "1"

Document = dict[str, Any]

FORMER_RULES = {
    "unreachable-host": "on_a_dark_host",
    "host-removed": "left_the_inventory",
    "duplicate": "runs_twice",
    "destroy": "destroyed",
    "not-in-specs": "not_wanted",
    "absent": "wanted_absent",
    "name-conflict": "name_taken",
    "possible-duplicate": "may_hide",
    "unplaceable": "homeless",
    "interrupted-delete": "half_deleted",
    "shrinking-drive": "shrinking",
    "stopped": "wanted_stopped",
    "crash-loop": "parked",
    "needs-replace": "replacing",
    "not-restarted": "left_down",
    "unresponsive": "broken",
    "needs-restart": "restarting",
    "drift": "drifted",
    "pause-or-resume": "paused_or_not",
    "needs-update": "updating",
    "unhealthy": "unwell",
    "up-to-date": "as_wanted",
    "cannot-move": "cannot_leave",
    "protection": "prevent_destroy",
}
"""What rules were called before: `rule` says so for one release more, beside `rule_id`. Others kept their names."""


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
    return {
        "id": plan.id,
        "project": plan.project,
        "revision": plan.revision,
        "taken_at": plan.taken_at,
        "summary": kinds_of(plan),
        "changes": [change_row(change) for change in plan.changes],
        "peaks": plan.peaks,
        "refusals": [
            msgspec.to_builtins(each) | {"rule": FORMER_RULES.get(each.rule, each.rule), "rule_id": each.rule}
            for each in plan.refusals
        ],
        "warnings": [*plan.warnings, *(f"host {host}: {error}" for host, error in plan.unreachable.items())],
    }


def change_row(change: VMChange) -> Document:
    """One change; why the VM goes to its host, if there was a choice, is the last of its reasons."""
    return {
        "vm": change.name,
        "fleet": change.fleet,
        "host": change.host,
        "kind": change.kind,
        "rule_id": change.rule,
        "reasons": [*change.reasons, *([change.placed] if change.placed else [])],
        "fields": change.fields,
    }


def run_document(report: RunReport) -> Document:
    """The plan that was carried out, what became of it, and how the run ended."""
    verdict = verdict_of(report)
    outcomes = [outcome_row(outcome) for outcome in report.outcomes]
    ended = {"outcomes": outcomes, "converged": verdict.converged, "exit_code": verdict.exit_code}
    return plan_document(report.plan) | ended


def outcome_row(outcome: ActionOutcome) -> Document:
    """What became of one action."""
    return {
        "vm": outcome.vm,
        "host": outcome.host,
        "verb": outcome.verb,
        "result": outcome.result,
        "duration_s": (outcome.finished_at - outcome.started_at).total_seconds(),
        "error": outcome.error,
    }


def validation_document(
    problems: Sequence[SpecProblem], warnings: Sequence[SpecProblem], documents: int, vms: int, fleets: int
) -> Document:
    """What is wrong with the specs; the counts are 0 when something is."""
    counts = {"documents": documents, "vms": vms, "fleets": fleets}
    return {"valid": not problems, **counts, "problems": problems, "warnings": warnings}


def error_document(message: str, exit_code: int, problems: Sequence[SpecProblem]) -> Document:
    """Instead of what was asked for: why there is none. `problems` are those of the specs."""
    return {"error": message, "exit_code": exit_code, "problems": problems}


def doctor_document(checks: Sequence[Check], settings: Sequence[SettingLine], limits: Sequence[LimitLine]) -> Document:
    """What was checked, every setting with its secrets masked, and every limit."""
    broken = any(check.state == "broken" for check in checks)
    return {"broken": broken, "checks": checks, "settings": settings, "limits": limits}
