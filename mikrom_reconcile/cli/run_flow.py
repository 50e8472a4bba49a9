"""How a run goes whatever command asks for it: its request, its question, its progress, and plans that were saved."""

import getpass
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from mikrom_reconcile import __version__
from mikrom_reconcile.cli.entry import ask, can_ask, present, show, style_of
from mikrom_reconcile.control.ports import Engine
from mikrom_reconcile.core.model.documents import SourceTree
from mikrom_reconcile.core.model.encoding import UNREADABLE, digest_of, ready
from mikrom_reconcile.core.model.errors import MikromError, SourceError, UsageError
from mikrom_reconcile.core.model.plan import ActionOutcome, Approval, Plan, RunRequest
from mikrom_reconcile.output.plan import plan_text
from mikrom_reconcile.output.run_result import outcome_line, result_of, run_document, run_text
from mikrom_reconcile.output.text import counted, grouped, sanitize
from mikrom_reconcile.settings import Settings
from mikrom_reconcile.system.files import write_named


def request_for(command: str, tree: SourceTree, settings: Settings, **asked: Any) -> RunRequest:
    """The request of one command. `asked` are fields of it; what is None there is as the settings say."""
    given = {name: value for name, value in asked.items() if value is not None}
    defaults = {"forks": settings.forks, "timeout_s": settings.timeout_s}
    return RunRequest(**{**defaults, **new_run(command, **given), **given, "tree": tree})


def new_run(command: str, *, override_freeze: bool = False, **_: Any) -> dict[str, str]:
    """The fields that tell one run from another."""
    command += " --override-freeze" if override_freeze else ""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a uid without a name, as in many containers
        user = "unknown"
    return {"run_id": os.urandom(6).hex(), "origin": f"{command} by {user}@{os.uname().nodename}"}


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
    """Plan (or take `saved`), ask unless `yes`, execute, show; the exit code. Without `wait` others execute it."""
    if not yes and not can_ask():
        raise UsageError("there is no terminal to ask on; give --yes to go ahead without asking. Nothing was done.")
    plan = saved or engine.plan(request)
    if request.destroy or request.verb == "delete":
        show(f"{_removed(plan)}\n", sys.stdout if form == "text" else sys.stderr)
    if form == "text" or not yes:
        _show_for_question(plan, form, full=full)
    if not yes:
        over = {} if request.destroy or saved else {it.fleet for it in plan.refusals if it.rule == "prune"}
        confirmed = tuple(fleet for fleet in sorted(over) if _typed(fleet, "to remove them all the same"))
        if confirmed:
            request = msgspec.structs.replace(request, confirmed=confirmed)
            plan = engine.plan(request)
            _show_for_question(plan, form, full=full)
        if not _agreed(request, plan):
            raise MikromError("this was not agreed to. Nothing was done.")
    if not wait:
        engine.hand_over(request, plan)
        following = f"Run {request.run_id} was handed over; `mikrom get runs {request.run_id} -f` follows it.\n"
        present(form, lambda: {"run_id": request.run_id}, lambda _: following)
        return 0
    report = engine.apply(request, plan, progress=show_outcome)
    present(form, lambda: run_document(report), lambda style: run_text(report, style))
    return result_of(report).exit_code


def show_outcome(outcome: ActionOutcome) -> None:
    """One line on stderr, for a person and for a log."""
    show(f"{outcome_line(outcome, style_of(sys.stderr))}\n", sys.stderr)


def _removed(plan: Plan) -> str:
    names = [change.name for change in plan.changes if change.kind == "delete"]
    return f"Removes {counted(len(names), 'VM')}: {sanitize(grouped(names))}" if names else "Removes no VM"


def _show_for_question(plan: Plan, form: str, *, full: bool) -> None:
    stream = sys.stdout if form == "text" else sys.stderr  # another form has stdout to itself
    show(plan_text(plan, style_of(stream, full=full)) + "\n", stream)


def _agreed(request: RunRequest, plan: Plan) -> bool:
    """Whether a person wants this done; a plan without actions asks nothing."""
    if request.destroy:
        fleets = sorted({change.fleet for change in plan.changes if change.kind == "delete"})
        return all(_typed(fleet, "to destroy it") for fleet in fleets)
    what = f"{request.verb.capitalize()} these VMs" if request.verb else "Apply this plan"
    return not plan.actions or ask(f"{what}? [y/N]").lower() in {"y", "yes"}


def _typed(fleet: str, purpose: str) -> bool:
    return ask(f"Fleet {sanitize(fleet)}: type its name {purpose}:") == fleet


_AGAIN = "make it again with `mikrom plan --out FILE`"

Place = tuple[str, str]  # the id of the hosts that a plan is for, and how a person calls them


class SavedPlan(msgspec.Struct, frozen=True, kw_only=True):
    """The file: `format_version` is the release that made it, `digest` covers the rest, against accidents only."""

    format_version: str
    digest: str
    place: Place
    request: RunRequest
    plan: Plan


def save_plan(path: str, request: RunRequest, plan: Plan, place: Place) -> None:
    """Put the plan into a file that only this user may read: it holds the specs."""
    if request.without_hosts:
        raise UsageError("--without-host only asks what would be: such a plan cannot be saved")
    if os.path.realpath(path) in {os.path.realpath(file.path) for file in request.tree.files}:
        raise UsageError(f"--out {path}: these are the specs; name another file")
    digest = digest_of((request, plan, place))
    saved = SavedPlan(format_version=__version__, digest=digest, place=place, request=request, plan=plan)
    write_out(path, msgspec.json.encode(saved))


def write_out(path: str, content: bytes) -> None:
    """Put `content` where a person says. Raises SourceError."""
    try:
        write_named(path, content)
    except OSError as error:
        raise SourceError(f"{path}: {error.strerror}") from error


def refuse_elsewhere(saved: SavedPlan, place: Place) -> None:
    """Raises SourceError where the plan would act on other hosts than those that it was made for."""
    if saved.place[0] != place[0]:
        raise SourceError(f"this plan was made for {saved.place[1]}, and here it would act on {place[1]}; {_AGAIN}")


def find_saved(paths: Sequence[str]) -> SavedPlan | None:
    """The plan in the first of these files, with the approvals in the others; None if it is anything else.

    Raises SourceError for a broken one.
    """
    try:
        content = Path(paths[0]).read_bytes() if paths and Path(paths[0]).is_file() else b""
    except OSError as error:
        raise SourceError(f"{paths[0]}: {error.strerror}") from error
    if not content.lstrip().startswith(b"{"):
        return None
    try:
        found: Any = msgspec.json.decode(content)
    except UNREADABLE:  # specs may be YAML in braces
        if content.startswith(b'{"format_version":'):
            raise SourceError(f"{paths[0]}: this plan is not whole; {_AGAIN}") from None
        return None
    if "apiVersion" in found or "kind" in found:
        return None
    saved = _checked(paths[0], content, found)
    approvals = tuple(_approval(path) for path in paths[1:])
    return msgspec.structs.replace(saved, request=msgspec.structs.replace(saved.request, approvals=approvals))


def _approval(path: str) -> Approval:
    try:
        return msgspec.json.decode(Path(path).read_bytes(), type=ready(Approval))
    except (OSError, *UNREADABLE) as error:
        raise SourceError(f"{path}: no approval that `mikrom approve` wrote: {error}") from error


def _checked(path: str, content: bytes, found: dict[str, Any]) -> SavedPlan:
    if "format_version" not in found or "plan" not in found:
        raise SourceError(f"{path}: neither specs nor a plan that was saved with --out; {_AGAIN}")
    if found["format_version"] != __version__:
        raise SourceError(f"{path}: another release saved this plan; {_AGAIN}")
    try:
        saved = msgspec.json.decode(content, type=ready(SavedPlan))
    except UNREADABLE as error:
        raise SourceError(f"{path}: this plan cannot be read: {error}; {_AGAIN}") from None
    if saved.digest != digest_of((saved.request, saved.plan, saved.place)):
        raise SourceError(f"{path}: this plan was changed after it was made; {_AGAIN}")
    return saved


def request_back(engine: Engine, name: str | None, command: str, settings: Settings, **asked: Any) -> RunRequest:
    """The request that goes back to a revision, and has Beat leave alone what its source holds. Raises UsageError."""
    from mikrom_reconcile.control import revisions

    every, source = revisions.kept(engine.store), engine.source()
    there = revisions.named(every, name)
    tree, extra_vars = revisions.applied(engine.store, there)
    current = next(one for one in every if one.project == there.project)
    held = (source.digest if source else "") or current.held or current.content
    asked["extra_vars"] = extra_vars | asked.get("extra_vars", {})
    return request_for(command, tree, settings, restores=there.number, held=held, **asked)
