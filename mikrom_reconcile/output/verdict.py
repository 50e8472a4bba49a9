"""How a plan or a run ended, in one judgement that the text, the JSON and the exit code all repeat."""

from __future__ import annotations

from typing import Literal

import msgspec

from mikrom_reconcile.core.model.plan import Plan, VMChange
from mikrom_reconcile.core.model.run import ActionOutcome, Result, RunReport

CHANGES_OR_FAILED = 2
"""`plan --detailed-exitcode`: something to change. A run: some VM is not as specified. All four are bits."""
UNREACHABLE = 4
REFUSED = 8
LATE = 16
USAGE = 64

FAILED: frozenset[Result] = frozenset({"failed_temporary", "failed_permanent"})

VMOnHost = tuple[str, str]
"""VM and host."""

Finding = tuple[Literal["failed", "refused"], str]
"""What a VM that is not as specified counts as, and the reason."""


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What a run left undone. `failed` and `refused` map a VM on a host to the reason; a VM is in one of them.

    `unreachable` maps hosts to the reason, `late` says that the deadline passed first.
    """

    failed: dict[VMOnHost, str]
    refused: dict[VMOnHost, str]
    unreachable: dict[str, str]
    late: bool

    @property
    def exit_code(self) -> int:
        """0 when everything is as specified and was seen to be, else the bits of what stood in the way."""
        return (
            (CHANGES_OR_FAILED if self.failed else 0)
            | (UNREACHABLE if self.unreachable else 0)
            | (REFUSED if self.refused else 0)
            | (LATE if self.late else 0)
        )


def plan_exit_code(plan: Plan, *, detailed: bool) -> int:
    """0 when everything could be planned; `detailed` adds 2 when there is something that may be changed."""
    pending = any(change.kind != "blocked" for change in plan.changes)
    blocked = any(change.kind == "blocked" and change.host not in plan.unreachable for change in plan.changes)
    return (
        (CHANGES_OR_FAILED if detailed and pending else 0)
        | (UNREACHABLE if plan.unreachable else 0)
        | (REFUSED if blocked or plan.refusals else 0)
    )


def verdict_of(report: RunReport) -> Verdict:
    """The judgement of a run, by what its last observation still found different.

    What failed is told even if the VM is as specified in the end. Without a last observation nothing that was to be
    changed counts as specified.
    """
    last = {(outcome.vm, outcome.host): outcome for outcome in report.outcomes}
    planned = {(change.name, change.host) for change in report.plan.changes}
    final = report.remaining or report.plan
    findings: dict[VMOnHost, Finding] = {}
    for change in final.changes:
        if change.host in final.unreachable:
            continue
        vm = (change.name, change.host)
        if finding := _finding(change, last.get(vm), late=report.late, planned=vm in planned):
            findings[vm] = finding
    for vm, outcome in last.items():
        if outcome.result in FAILED and outcome.host not in final.unreachable:
            findings[vm] = "failed", f"{outcome.verb}: {outcome.error or outcome.result}"
    return Verdict(
        failed={vm: reason for vm, (kind, reason) in findings.items() if kind == "failed"},
        refused={vm: reason for vm, (kind, reason) in findings.items() if kind == "refused"},
        unreachable=final.unreachable,
        late=report.late,
    )


def _finding(change: VMChange, outcome: ActionOutcome | None, *, late: bool, planned: bool) -> Finding | None:
    """Why this VM is not as specified; None when only the deadline is to blame. First match wins."""
    if change.kind == "blocked":
        return "refused", _why(change)
    if outcome is not None and outcome.result == "stale":
        return "refused", outcome.error or "the world has moved since the plan"
    if late:
        return None
    if outcome is not None and outcome.result == "skipped":
        return "failed", f"{outcome.verb} was not begun: {outcome.error or 'skipped'}"
    if outcome is not None:
        return "failed", f"{outcome.verb} was done, and yet it needs {change.kind}: {_why(change)}"
    if planned:
        return "failed", f"{change.wanted or change.kind} was not come to; run again"
    return "refused", f"needs {change.kind} since after the plan was made ({_why(change)}); run again"


def _why(change: VMChange) -> str:
    return "; ".join(change.reasons)
