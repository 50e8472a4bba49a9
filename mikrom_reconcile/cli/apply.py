"""`mikrom apply` and `mikrom destroy`."""

from __future__ import annotations

from typing import Any

import click
import msgspec

from mikrom_reconcile import settings, wiring
from mikrom_reconcile.cli import options, saved_plan
from mikrom_reconcile.cli.plan import show_plan
from mikrom_reconcile.cli.run_flow import carry_out, refuse_without_anybody_to_ask
from mikrom_reconcile.cli.run_request import new_run, request_for
from mikrom_reconcile.cli.saved_plan import SavedPlan
from mikrom_reconcile.cli.terminal import warn
from mikrom_reconcile.control.ports import Engine
from mikrom_reconcile.core.model.digests import texts_digest
from mikrom_reconcile.core.model.errors import UsageError
from mikrom_reconcile.core.model.run import RunRequest
from mikrom_reconcile.output import formats


@click.command()
@options.paths
@options.selection
@options.retry
@options.assume_dead
@options.yes
@click.option("--check", is_flag=True, help="Only plan; of a saved plan, say what would be refused by now.")
@options.diff
@options.wait
@click.option("--prune-max", type=options.ShareType(), help="How much of a fleet this run may remove: 5, or 20%.")
@options.timeout
@options.forks
@options.output(formats.RUN)
def apply(paths: tuple[str, ...], form: str, *, yes: bool, check: bool, full: bool, wait: bool, **asked: Any) -> int:
    """Make it so: plan, ask, execute, verify. PATH may be a plan that `mikrom plan --out` saved.

    Exits with 0 when everything was then seen to be as specified, else with a sum of 2 (a VM is not), 4 (a host
    could not be read), 8 (something was refused) and 16 (the deadline passed first). With --no-wait it exits with 0
    once the run is handed over; `mikrom get runs RUN -f` follows it.
    """
    if not check:
        refuse_without_anybody_to_ask(yes=yes)
    current = settings.load()
    saved = saved_plan.find(paths)
    if saved is None:
        request, plan = request_for("apply", wiring.read_tree(current, paths), current, **asked), None
    else:
        saved_plan.refuse_elsewhere(saved, wiring.place_of(current))
        request, plan = _again(saved, **asked), saved.plan
    engine = wiring.open_engine(current)
    _warn_of_scheduled_runs(engine, request)
    if check:
        from mikrom_reconcile.control.reconcile import replay

        now = engine.plan(request)
        return show_plan(replay(plan, now) if plan else now, form, full=full)
    return carry_out(engine, request, plan, yes=yes, form=form, full=full, wait=wait)


def _warn_of_scheduled_runs(engine: Engine, request: RunRequest) -> None:
    """Beat knows nothing of what is done by hand from other specs than its own."""
    source = engine.source()
    if source is not None and source.digest and (request.destroy or source.digest != texts_digest(request.tree)):
        warn(f"Beat's next run undoes what {source.name} at {source.revision} contradicts")


def _again(saved: SavedPlan, *, forks: int | None, timeout_s: float | None, **asked: Any) -> RunRequest:
    """The request of a saved plan, for a run of its own."""
    if any(asked.values()) or asked["prune_max"] == 0 or asked["limit"] == "":
        raise UsageError("a saved plan is executed as it is: only --yes, --forks, --timeout and -o go with it")
    request = saved.request
    return msgspec.structs.replace(
        request, **new_run("apply"), forks=forks or request.forks, timeout_s=timeout_s or request.timeout_s
    )


@click.command()
@options.paths
@options.selection
@options.yes
@options.timeout
@options.forks
@options.output(formats.RUN)
def destroy(paths: tuple[str, ...], form: str, *, yes: bool, **asked: Any) -> int:
    """Remove every VM that these specs own, whatever its fleet's prune share.

    At a prompt the name of each fleet is typed; --yes confirms them all.
    """
    refuse_without_anybody_to_ask(yes=yes)
    current = settings.load()
    request = request_for("destroy", wiring.read_tree(current, paths), current, destroy=True, **asked)
    engine = wiring.open_engine(current)
    _warn_of_scheduled_runs(engine, request)
    return carry_out(engine, request, yes=yes, form=form)
