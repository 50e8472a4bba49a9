"""What apply and destroy share: show the plan, ask, execute with progress, recap."""

from __future__ import annotations

import sys
from collections.abc import Iterable

import msgspec

from mikrom_reconcile.cli.progress import Progress
from mikrom_reconcile.cli.terminal import ask, can_ask, show, style_of
from mikrom_reconcile.control.ports import Engine
from mikrom_reconcile.core.errors import UsageError
from mikrom_reconcile.core.model.plan import Plan
from mikrom_reconcile.core.model.run import RunRequest
from mikrom_reconcile.output import formats
from mikrom_reconcile.output.neutral import one_line
from mikrom_reconcile.output.plan_text import plan_text
from mikrom_reconcile.output.verdict import verdict_of

DECLINED = 1
"""Exit code when a person said no: nothing was done."""


def refuse_without_anybody_to_ask(*, yes: bool) -> None:
    """Raises UsageError, before anything is done, when nobody could answer and --yes was not given."""
    if not yes and not can_ask():
        raise UsageError("there is no terminal to ask on; give --yes to go ahead without asking. Nothing was done.")


def carry_out(engine: Engine, request: RunRequest, *, yes: bool, form: str) -> int:
    """Plan, ask unless `yes`, execute, show; the exit code."""
    plan = engine.plan(request)
    if form == "text" or not yes:
        _show_plan(plan, form)
    if not yes:
        answered = _asked(engine, request, plan, form)
        if answered is None:
            show("Nothing was done.\n", sys.stderr)
            return DECLINED
        request, plan = answered
    progress = Progress(len(plan.actions))
    try:
        report = engine.apply(request, plan, progress=progress.heard)
    finally:
        progress.close()
    show(formats.RUN[form](report, style_of(sys.stdout)))
    return verdict_of(report).exit_code


def _asked(engine: Engine, request: RunRequest, plan: Plan, form: str) -> tuple[RunRequest, Plan] | None:
    """The request and plan that a person agreed to; None when they did not."""
    if request.destroy:
        fleets = sorted({change.fleet for change in plan.changes if change.kind == "delete"})
        return (request, plan) if all(_typed(fleet, "to destroy it") for fleet in fleets) else None
    confirmed = tuple(fleet for fleet in _over_their_share(plan) if _typed(fleet, "to remove them all the same"))
    if confirmed:
        request = msgspec.structs.replace(request, confirmed=confirmed)
        plan = engine.plan(request)
        _show_plan(plan, form)
    if not plan.actions:
        return request, plan
    return (request, plan) if ask("Apply this plan? [y/N]").lower() in {"y", "yes"} else None


def _over_their_share(plan: Plan) -> Iterable[str]:
    return sorted({refusal.fleet for refusal in plan.refusals if refusal.rule == "prune"})


def _typed(fleet: str, purpose: str) -> bool:
    """Whether a person typed the fleet's name."""
    return ask(f"Fleet {one_line(fleet)}: type its name {purpose}:") == fleet


def _show_plan(plan: Plan, form: str) -> None:
    stream = sys.stdout if form == "text" else sys.stderr  # another form has stdout to itself
    show(plan_text(plan, style_of(stream)) + "\n", stream)
