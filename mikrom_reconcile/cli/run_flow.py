"""What apply and destroy share: show the plan, ask, execute with progress, recap."""

from __future__ import annotations

import sys

import msgspec

from mikrom_reconcile.cli.progress import Progress
from mikrom_reconcile.cli.terminal import ask, can_ask, present, show, style_of
from mikrom_reconcile.control.ports import Engine
from mikrom_reconcile.core.model.errors import MikromError, UsageError
from mikrom_reconcile.core.model.plan import Plan
from mikrom_reconcile.core.model.run import RunRequest
from mikrom_reconcile.output import formats
from mikrom_reconcile.output.plan import plan_text
from mikrom_reconcile.output.run_result import result_of
from mikrom_reconcile.output.text import counted, grouped, sanitize


def refuse_without_anybody_to_ask(*, yes: bool) -> None:
    """Raises UsageError, before anything is done, when nobody could answer and --yes was not given."""
    if not yes and not can_ask():
        raise UsageError("there is no terminal to ask on; give --yes to go ahead without asking. Nothing was done.")


def carry_out(
    engine: Engine,
    request: RunRequest,
    saved: Plan | None = None,
    *,
    yes: bool,
    form: str,
    full: bool = False,
    wait: bool = True,
) -> int:
    """Plan, ask unless `yes`, execute, show; the exit code. A `saved` plan is executed as it is.

    Without `wait` others execute it, and only the run's id is shown.
    """
    plan = saved or engine.plan(request)
    if request.destroy or request.verb == "delete":
        show(f"{_going(plan)}\n", sys.stdout if form == "text" else sys.stderr)
    if form == "text" or not yes:
        _show_plan(plan, form, full=full)
    if not yes:
        confirmed = () if request.destroy or saved else _confirmed(plan)
        if confirmed:
            request = msgspec.structs.replace(request, confirmed=confirmed)
            plan = engine.plan(request)
            _show_plan(plan, form, full=full)
        if not _agreed(request, plan):
            raise MikromError("this was not agreed to. Nothing was done.")
    if not wait:
        engine.hand_over(request, plan)
        following = f"Run {request.run_id} was handed over; `mikrom get runs {request.run_id} -f` follows it.\n"
        present(form, lambda: {"run_id": request.run_id}, lambda _: following)
        return 0
    progress = Progress(len(plan.actions))
    try:
        report = engine.apply(request, plan, progress=progress.heard)
    finally:
        progress.close()
    show(formats.RUN[form](report, style_of(sys.stdout)))
    return result_of(report).exit_code


def _going(plan: Plan) -> str:
    """Which VMs a run removes that is to remove some."""
    names = [change.name for change in plan.changes if change.kind == "delete"]
    return f"Removes {counted(len(names), 'VM')}: {sanitize(grouped(names))}" if names else "Removes no VM"


def _confirmed(plan: Plan) -> tuple[str, ...]:
    """Fleets whose removals pass their share and were confirmed by a person all the same."""
    over = sorted({refusal.fleet for refusal in plan.refusals if refusal.rule == "prune"})
    return tuple(fleet for fleet in over if _typed(fleet, "to remove them all the same"))


def _agreed(request: RunRequest, plan: Plan) -> bool:
    """Whether a person wants this done; a plan without actions asks nothing."""
    if request.destroy:
        fleets = sorted({change.fleet for change in plan.changes if change.kind == "delete"})
        return all(_typed(fleet, "to destroy it") for fleet in fleets)
    if request.verb is not None:
        return not plan.actions or ask(f"{request.verb.capitalize()} these VMs? [y/N]").lower() in {"y", "yes"}
    return not plan.actions or ask("Apply this plan? [y/N]").lower() in {"y", "yes"}


def _typed(fleet: str, purpose: str) -> bool:
    """Whether a person typed the fleet's name."""
    return ask(f"Fleet {sanitize(fleet)}: type its name {purpose}:") == fleet


def _show_plan(plan: Plan, form: str, *, full: bool) -> None:
    stream = sys.stdout if form == "text" else sys.stderr  # another form has stdout to itself
    show(plan_text(plan, style_of(stream, full=full)) + "\n", stream)
