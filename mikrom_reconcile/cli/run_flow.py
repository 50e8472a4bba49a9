"""What all commands that change something share: the request, the plan shown, the question, progress, the recap."""

from __future__ import annotations

import getpass
import os
import shutil
import sys
import time
from typing import Any

import msgspec

from mikrom_reconcile.cli.terminal import ask, can_ask, is_live, present, show, style_of
from mikrom_reconcile.control.ports import Engine
from mikrom_reconcile.core.model.errors import MikromError, UsageError
from mikrom_reconcile.core.model.plan import Plan
from mikrom_reconcile.core.model.run import ActionOutcome, RunRequest
from mikrom_reconcile.core.model.specs import SourceTree
from mikrom_reconcile.output import formats
from mikrom_reconcile.output.plan import plan_text
from mikrom_reconcile.output.run_result import FAILED, outcome_line, result_of
from mikrom_reconcile.output.text import PLAIN, counted, grouped, sanitize
from mikrom_reconcile.settings import Settings
from mikrom_reconcile.times_and_sizes import OUTPUT


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
    progress = Progress(len(plan.actions))
    try:
        report = engine.apply(request, plan, progress=progress.heard)
    finally:
        progress.close()
    show(formats.RUN[form](report, style_of(sys.stdout)))
    return result_of(report).exit_code


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


class Progress:
    """Shows the outcomes of one run on stderr as they come: a moving line for a person, plain lines for a log."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._done = 0
        self._failed = 0
        self._live = is_live(sys.stderr)
        self._style = style_of(sys.stderr)
        self._drawn_at = 0.0

    def heard(self, outcome: ActionOutcome) -> None:
        """Show one outcome; failures stay on the screen."""
        self._done += 1
        failed = outcome.result in FAILED
        self._failed += failed
        if failed or not self._live:
            clear = "\r\x1b[K" if self._live else ""
            show(f"{clear}{outcome_line(outcome, self._style)}\n", sys.stderr)
        if self._live and (failed or time.monotonic() - self._drawn_at > OUTPUT.redraw_s):
            self._drawn_at = time.monotonic()
            failures = f", {self._failed} failed" if self._failed else ""
            line = f"{self._done}/{max(self._total, self._done)}{failures} · {outcome_line(outcome, PLAIN)}"
            show(f"\r\x1b[K{line[: shutil.get_terminal_size().columns - 1]}", sys.stderr)

    def close(self) -> None:
        """Remove the moving line."""
        if self._live and self._drawn_at:
            show("\r\x1b[K", sys.stderr)
