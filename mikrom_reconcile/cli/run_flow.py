"""What all commands that change something share: the request, the plan shown, the question, progress, the recap."""

from __future__ import annotations

import getpass
import os
import sys
from typing import Any

import msgspec

from mikrom_reconcile.cli.entry import ask, can_ask, present, show, style_of
from mikrom_reconcile.control.ports import Engine
from mikrom_reconcile.core.model.errors import MikromError, UsageError
from mikrom_reconcile.core.model.plan import Plan
from mikrom_reconcile.core.model.run import ActionOutcome, RunRequest
from mikrom_reconcile.core.model.specs import SourceTree
from mikrom_reconcile.output import formats
from mikrom_reconcile.output.plan import plan_text
from mikrom_reconcile.output.run_result import outcome_line, result_of
from mikrom_reconcile.output.text import counted, grouped, sanitize
from mikrom_reconcile.settings import Settings


def request_for(command: str, tree: SourceTree, settings: Settings, **asked: Any) -> RunRequest:
    """The request of one command. `asked` are fields of it; what is None there is as the settings say."""
    given = {name: value for name, value in asked.items() if value is not None}
    defaults = {"forks": settings.forks, "timeout_s": settings.timeout_s}
    return RunRequest(**{**defaults, **new_run(command), **given, "tree": tree})


def new_run(command: str) -> dict[str, str]:
    """The fields that tell one run from another."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a uid without a name, as in many containers
        user = "unknown"
    return {"run_id": os.urandom(6).hex(), "origin": f"{command} by {user}@{os.uname().nodename}"}


def refuse_without_anybody_to_ask(*, yes: bool) -> None:
    """Raises UsageError, before anything is done, when nobody could answer and --yes was not given."""
    if not yes and not can_ask():
        raise UsageError("there is no terminal to ask on; give --yes to go ahead without asking. Nothing was done.")


def run_flow(
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
        show(f"{_removed(plan)}\n", sys.stdout if form == "text" else sys.stderr)
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
    report = engine.apply(request, plan, progress=show_outcome)
    show(formats.RUN[form](report, style_of(sys.stdout)))
    return result_of(report).exit_code


def show_outcome(outcome: ActionOutcome) -> None:
    """One line on stderr."""
    show(f"{outcome_line(outcome, style_of(sys.stderr))}\n", sys.stderr)


def _removed(plan: Plan) -> str:
    names = [change.name for change in plan.changes if change.kind == "delete"]
    return f"Removes {counted(len(names), 'VM')}: {sanitize(grouped(names))}" if names else "Removes no VM"


def _show_plan(plan: Plan, form: str, *, full: bool) -> None:
    stream = sys.stdout if form == "text" else sys.stderr  # another form has stdout to itself
    show(plan_text(plan, style_of(stream, full=full)) + "\n", stream)


def _confirmed(plan: Plan) -> tuple[str, ...]:
    """Fleets whose removals pass their share and were confirmed by a person all the same."""
    over = sorted({refusal.fleet for refusal in plan.refusals if refusal.rule == "prune"})
    return tuple(fleet for fleet in over if _typed(fleet, "to remove them all the same"))


def _agreed(request: RunRequest, plan: Plan) -> bool:
    """Whether a person wants this done; a plan without actions asks nothing."""
    if request.destroy:
        fleets = sorted({change.fleet for change in plan.changes if change.kind == "delete"})
        return all(_typed(fleet, "to destroy it") for fleet in fleets)
    what = f"{request.verb.capitalize()} these VMs" if request.verb else "Apply this plan"
    return not plan.actions or ask(f"{what}? [y/N]").lower() in {"y", "yes"}


def _typed(fleet: str, purpose: str) -> bool:
    """Whether a person typed the fleet's name."""
    return ask(f"Fleet {sanitize(fleet)}: type its name {purpose}:") == fleet
