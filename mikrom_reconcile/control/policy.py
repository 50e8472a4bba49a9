"""What a plan has to pass before anything is done: a command's judgment, and people's approvals. Silence is a no."""

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from subprocess import DEVNULL, PIPE, Popen, TimeoutExpired
from typing import Any

import msgspec

from mikrom_reconcile.core.model.plan import Plan, Refusal, RunRequest
from mikrom_reconcile.core.planning.context import numbered, with_kind
from mikrom_reconcile.core.planning.guards import held_back, losses_of
from mikrom_reconcile.output.plan import plan_document
from mikrom_reconcile.output.text import counted, json_text
from mikrom_reconcile.system.approvals import NOBODY, Approvers
from mikrom_reconcile.times_and_sizes import RUNS


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """What a machine asks for before it carries out a plan: the judgment of a `command`, people's approvals."""

    command: str | None = None
    limit_s: float = RUNS.policy_s
    approvers: Approvers = NOBODY

    def judged(self, plan: Plan) -> Plan:
        """The plan if the command lets it pass or nothing is to be done, else one in which all of that is refused."""
        if self.command is None or all(change.kind == "blocked" for change in plan.changes):
            return plan
        if not (why := _objection(self.command, json_text(plan_document(plan)).encode(), self.limit_s)):
            return plan
        why += f" (MIKROM_POLICY={self.command})"
        reason = "the policy refused this plan"
        changes = tuple(it if it.kind == "blocked" else with_kind(it, "blocked", reason) for it in plan.changes)
        refusals = (*plan.refusals, Refusal(fleet="", vm="", rule="policy", message=why))
        return numbered(plan, changes=changes, actions=(), refusals=refusals, peaks={})

    def warned(self, plan: Plan, request: RunRequest) -> Plan:
        """The plan, which says so if it takes data away and lacks approvals."""
        losses = losses_of(plan) if self.approvers.needed else {}
        _, why = self.approvers.judge(losses.values(), request.approvals)
        if not (losses and why):
            return plan
        note = f"{counted(len(losses), 'VM')} would lose data, which is refused so far: {why}"
        return numbered(plan, warnings=(note, *plan.warnings))

    def approved(self, request: RunRequest, plan: Plan | None) -> tuple[RunRequest, Callable[[Plan], Plan]]:
        """The request with who approved the plan and what they signed, and what holds back all that lacks that."""
        losses = tuple(losses_of(plan).values()) if plan and request.approvals else ()
        names, why = self.approvers.judge(losses, request.approvals)
        origin = f"{request.origin}, approved by {', '.join(names)}" if names else request.origin
        request = msgspec.structs.replace(request, origin=origin, losses=losses)
        return request, lambda found: held_back(found, () if why else losses, why) if self.approvers.needed else found


def _objection(command: str, plan: bytes, limit_s: float) -> str:
    """What the command has against the plan that it is given, or "" if it has nothing."""
    pipes: Any = {"stdout": DEVNULL, "stderr": PIPE, "pipesize": 1 << 20}  # who says more than that waits for ever
    with os.fdopen(os.memfd_create("plan"), "w+b") as given:  # no pipe: the command need not read all of it
        given.write(plan)
        given.seek(0)
        env = {name: text for name, text in os.environ.items() if not name.startswith(("MIKROM_", "FLOWER_"))}
        try:
            process = Popen([command], stdin=given, env=env, start_new_session=True, **pipes)
        except OSError as error:
            return f"it could not be started: {error.strerror}"
    said = b""
    with process:
        try:
            code = process.wait(limit_s)
        except TimeoutExpired:
            return f"it gave no answer within {limit_s:g} s"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # and what it left behind
        assert process.stderr  # noqa: S101 - it is a pipe
        os.set_blocking(process.stderr.fileno(), False)
        with suppress(BlockingIOError):  # silent, and what it left behind still holds the pipe
            said = os.read(process.stderr.fileno(), RUNS.policy_reason_bytes)
    if code < 0:
        return f"it was killed by signal {-code}"
    lines = [line.strip() for line in said.decode(errors="replace").splitlines() if line.strip()]
    return "; ".join(lines) or f"exit code {code}" if code else ""
