"""Values of the model with everything filled in that a test does not care about."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from mikrom_reconcile.core.model.desired import DesiredVM, Machine, Policy, VMSpec
from mikrom_reconcile.core.model.observed import ObservedVM
from mikrom_reconcile.core.model.plan import (
    Action,
    ActionOutcome,
    ChangeKind,
    Expect,
    FieldChange,
    Plan,
    Refusal,
    Result,
    RunRecord,
    RunReport,
    VMChange,
)

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
SPEC = VMSpec(image="hello", machine=Machine(vcpu_count=1, mem_size_mib=16), boot_args="quiet")
MEMORY = FieldChange(path="machine.mem_size_mib", before=16, after=32, impact="restart")


def observed(name: str, **fields: Any) -> ObservedVM:
    known: dict[str, Any] = {
        "uid": "01-uid", "project": "demo", "fleet": "web", "host": "localhost", "phase": "running",
        "state": "running", "spec": SPEC, "policy": Policy(), "spec_digest": "1:d", "generation": 1, "token": 1,
        "created_at": NOW - timedelta(hours=5), "pid": 4711,
    }  # fmt: skip
    return ObservedVM(**{"name": name, **known, **fields})


def desired(name: str, **fields: Any) -> DesiredVM:
    known: dict[str, Any] = {
        "project": "demo", "fleet": "web", "host": "localhost", "state": "running", "spec": SPEC,
        "policy": Policy(), "spec_digest": "1:d",
    }  # fmt: skip
    return DesiredVM(**{"name": name, **known, **fields})


def change(name: str, kind: ChangeKind = "create", *reasons: str, **fields: Any) -> VMChange:
    known: dict[str, Any] = {"fleet": "web", "host": "localhost", "reasons": reasons or ("does not exist",)}
    return VMChange(**{"name": name, "kind": kind, **known, **fields})


def action(of: VMChange) -> Action:
    return Action(
        id=f"1:{of.name}", verb="create", host=of.host, vm=of.name, project="demo", desired=desired(of.name),
        expect=Expect(uid=None, generation=0), deadline_s=300.0,
    )  # fmt: skip


def plan(*changes: VMChange, **fields: Any) -> Plan:
    known: dict[str, Any] = {
        "id": "1:plan", "project": "demo", "revision": "3f2a1c9d8e7b", "taken_at": NOW, "unchanged": {},
        "actions": tuple(action(of) for of in changes if of.kind not in {"wait", "blocked"}), "refusals": (),
        "unreachable": {}, "warnings": (),
    }  # fmt: skip
    return Plan(**{"changes": changes, **known, **fields})


def refusal(fleet: str, message: str, *, vm: str = "", rule: str = "prune") -> Refusal:
    return Refusal(fleet=fleet, vm=vm, rule=rule, message=message)


def outcome(vm: str, result: Result = "done", **fields: Any) -> ActionOutcome:
    known: dict[str, Any] = {
        "action_id": f"1:{vm}", "host": "localhost", "verb": "create", "started_at": NOW,
        "finished_at": NOW + timedelta(milliseconds=12),
    }  # fmt: skip
    return ActionOutcome(**{"vm": vm, "result": result, **known, **fields})


def report(planned: Plan, *outcomes: ActionOutcome, remaining: Plan | None, late: bool = False) -> RunReport:
    return RunReport(
        run_id="7f3c", plan=planned, outcomes=outcomes, remaining=remaining, late=late, started_at=NOW,
        finished_at=NOW + timedelta(seconds=2),
    )  # fmt: skip


def record(run_id: str = "7f3c", *outcomes: ActionOutcome, **fields: Any) -> RunRecord:
    known = {"origin": "apply by ana@build7", "started_at": NOW, "finished_at": NOW, "exit_code": 0, "project": "demo"}
    return RunRecord(run_id=run_id, outcomes=outcomes, **{**known, **fields})
