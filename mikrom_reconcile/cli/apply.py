"""`mikrom plan`, `apply` and `destroy`, and one action on VMs by name: `start`, `stop` and so on."""

import getpass
import re
import sys
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import click
import msgspec

from mikrom_reconcile import wiring
from mikrom_reconcile.cli import options, run_flow
from mikrom_reconcile.cli.entry import ask, show, style_of, warn
from mikrom_reconcile.control.ports import Engine
from mikrom_reconcile.core.model.desired import Freeze
from mikrom_reconcile.core.model.documents import SourceTree
from mikrom_reconcile.core.model.encoding import texts_digest
from mikrom_reconcile.core.model.errors import MikromError, SourceError, UsageError
from mikrom_reconcile.core.model.plan import Plan, RunRequest, Verb
from mikrom_reconcile.core.planning.drift import drifted, is_pending
from mikrom_reconcile.core.planning.guards import losses_of
from mikrom_reconcile.output import formats
from mikrom_reconcile.output.drift import DRIFT, DriftReport
from mikrom_reconcile.output.plan import plan_text
from mikrom_reconcile.output.run_result import plan_exit_code
from mikrom_reconcile.output.text import counted, grouped, sanitize
from mikrom_reconcile.settings import load


@click.command()
@options.paths
@options.selection
@options.retry
@options.override_freeze
@options.assume_dead
@click.option("--at", metavar="REV", help="Not of PATH: of a revision, to which it would go back.")
@click.option("--without-host", "without_hosts", multiple=True, metavar="HOST", help="What if this host were lost?")
@options.diff
@click.option("--out", metavar="FILE", callback=options.no_dash, help="Save the plan, for `mikrom apply FILE`.")
@click.option("--detailed-exitcode", "detailed", is_flag=True, help="Exit with 2 when there is something to change.")
@options.output(formats.PLAN)
def plan(paths: tuple[str, ...], form: str, out: str | None, *, full: bool, detailed: bool, **asked: Any) -> int:
    """Show what apply would change, and why. Changes nothing."""
    settings = load()
    if (revision := asked.pop("at")) is None:
        request = run_flow.request_for("plan", wiring.read_tree(settings, paths), settings, **asked)
        engine = wiring.open_engine(settings)
    elif paths:
        raise UsageError(f"--at {revision} says which specs are meant: leave out {', '.join(paths)}")
    else:
        engine = wiring.open_engine(settings)
        request = run_flow.request_back(engine, revision, "plan", settings, **asked)
    planned = engine.plan(request)
    if out is not None:
        run_flow.save_plan(out, request, planned, wiring.place_of(settings))
    return _show_plan(planned, form, full=full, detailed=detailed)


def _show_plan(planned: Plan, form: str, *, full: bool, detailed: bool = False) -> int:
    show(formats.PLAN[form](planned, style_of(sys.stdout, full=full)))
    return plan_exit_code(planned, detailed=detailed)


@click.command()
@options.paths
@options.selection
@options.output(DRIFT)
def drift(paths: tuple[str, ...], form: str, **asked: Any) -> int:
    """Show what is otherwise than it was last applied, and why. Changes nothing.

    What the specs have changed since is no drift, and is only named as pending. Exits with 2 when something has
    drifted, and adds 4 when a host could not be read.
    """
    settings = load()
    engine = wiring.open_engine(settings)
    planned = engine.plan(run_flow.request_for("drift", wiring.read_tree(settings, paths), settings, **asked))
    found = tuple(drifted(planned.changes, engine.store.placements(planned.project).vms))
    names = {each.vm for each in found}
    pending = tuple(change for change in planned.changes if is_pending(change, names))
    report = DriftReport(plan=planned, drift=found, pending=pending)
    show(DRIFT[form](report, style_of(sys.stdout)))
    return report.exit_code


@click.command()
@options.paths
@options.selection
@options.retry
@options.override_freeze
@options.assume_dead
@options.yes
@click.option("--check", is_flag=True, help="Only plan; of a saved plan, say what would be refused by now.")
@options.diff
@options.wait
@options.prune_max
@options.execution
def apply(paths: tuple[str, ...], form: str, *, yes: bool, check: bool, full: bool, wait: bool, **asked: Any) -> int:
    """Make it so: plan, ask, execute, verify.

    PATH may be a plan that `mikrom plan --out` saved, with the approvals that `mikrom approve` wrote after it.

    Exits with 0 when everything was then seen to be as specified, else with a sum of 2 (a VM is not), 4 (a host
    could not be read), 8 (something was refused) and 16 (the deadline passed first). With --no-wait it exits with 0
    once the run is handed over; `mikrom get runs RUN -f` follows it.
    """
    settings = load()
    saved = run_flow.find_saved(paths)
    if saved is None:
        request = run_flow.request_for("apply", wiring.read_tree(settings, paths), settings, **asked)
    else:
        run_flow.refuse_elsewhere(saved, wiring.place_of(settings))
        request = _again(saved, **asked)
    approved = saved.plan if saved else None
    engine = wiring.open_engine(settings)
    _warn_of_scheduled_runs(engine, request)
    if check:
        from mikrom_reconcile.control.reconcile import replay

        now = engine.plan(request)
        return _show_plan(replay(approved, now) if approved else now, form, full=full)
    return run_flow.run_flow(engine, request, approved, yes=yes, form=form, full=full, wait=wait)


def _warn_of_scheduled_runs(engine: Engine, request: RunRequest) -> None:
    """Beat knows nothing of what is done by hand from other specs than its own, but for a rollback."""
    source = engine.source()
    if source is None or not source.digest or request.restores:
        return
    if request.destroy or source.digest != texts_digest(request.tree):
        warn(f"Beat's next run undoes what {source.name} at {source.revision} contradicts")


def _again(saved: run_flow.SavedPlan, *, forks: int | None, timeout_s: float | None, **asked: Any) -> RunRequest:
    if any(asked.values()) or asked["prune_max"] == 0 or asked["limit"] == "":
        raise UsageError("a saved plan is executed as it is: only --yes, --forks, --timeout and -o go with it")
    request = saved.request
    again = run_flow.new_run("apply", override_freeze=request.override_freeze)
    forks, timeout_s = forks or request.forks, timeout_s or request.timeout_s
    return msgspec.structs.replace(request, **again, forks=forks, timeout_s=timeout_s)


@click.command()
@click.option("--to", "revision", metavar="REV", help="Instead of the last one before that converged: 3, or demo/3.")
@click.option("--resume", is_flag=True, help="Change nothing, and let Beat go on with its source.")
@options.override_freeze
@options.yes
@options.diff
@options.wait
@options.prune_max
@options.execution
def rollback(revision: str | None, form: str, *, resume: bool, yes: bool, full: bool, wait: bool, **asked: Any) -> int:
    """Go back to an earlier revision (`mikrom history --revisions`): plan, ask, execute, verify, as apply does.

    Beat then leaves the project alone until its source moves on to another revision, or --resume.
    """
    settings = load()
    if resume and revision:
        raise UsageError("--to goes back, and --resume goes on: give one of them")
    if resume:
        from mikrom_reconcile.control.revisions import resume as let_go

        resumed = let_go(wiring.open_engine(settings).store, run_flow.new_run("rollback --resume")["origin"])
        show(f"No longer held: {sanitize(', '.join(resumed)) or 'nothing was'}.\n")
        return 0
    engine = wiring.open_engine(settings)
    request = run_flow.request_back(engine, revision, "rollback", settings, **asked)
    return run_flow.run_flow(engine, request, yes=yes, form=form, full=full, wait=wait)


@click.command()
@options.paths
@options.selection
@options.yes
@options.execution
def destroy(paths: tuple[str, ...], form: str, *, yes: bool, **asked: Any) -> int:
    """Remove every VM that these specs own, whatever its fleet's prune share.

    At a prompt the name of each fleet is typed; --yes confirms them all.
    """
    settings = load()
    request = run_flow.request_for("destroy", wiring.read_tree(settings, paths), settings, destroy=True, **asked)
    engine = wiring.open_engine(settings)
    _warn_of_scheduled_runs(engine, request)
    return run_flow.run_flow(engine, request, yes=yes, form=form)


def _one_off(verb: Verb, text: str) -> click.Command:
    """The command for one action on VMs by name, past the specs. Only what cannot be undone asks."""

    @options.execution
    def command(form: str, *, yes: bool = True, **asked: Any) -> int:
        settings = load()
        request = run_flow.request_for(verb, SourceTree(revision="", files=()), settings, verb=verb, **asked)
        return run_flow.run_flow(wiring.open_engine(settings), request, yes=yes, form=form)

    if verb == "delete":
        command = options.yes(command)
    names = click.argument("names", nargs=-1, required=True, metavar="VM...")
    return click.command(verb, help=text)(names(command))


_UNDONE = "\n\nVM may hold * and ?. The next run undoes what the specs contradict."
start = _one_off("start", f"Start VMs. A paused one is resumed, one in a crash loop gets its attempts back.{_UNDONE}")
stop = _one_off("stop", f"Stop VMs: Ctrl-Alt-Del, then kill. A paused guest is resumed for it.{_UNDONE}")
pause = _one_off("pause", f"Let guests stand still. Their VMMs, and all that they have in memory, stay.{_UNDONE}")
suspend = _one_off("suspend", f"Write guests' memory to disk and end their VMMs. `start` lets them go on.{_UNDONE}")
resume = _one_off("resume", f"Let paused and suspended guests go on where they were.{_UNDONE}")
restart = _one_off("restart", f"Stop VMs and start them again. One that was to be paused is paused again.{_UNDONE}")
delete = _one_off(
    "delete",
    "Remove VMs and everything that was made for them. Asks first; `prevent_destroy` holds.\n\n"
    "VM may hold * and ?. The next run makes those anew that the specs want.",
)


@click.command()
@click.argument("path", metavar="PLAN", callback=options.no_dash)
@click.option("--key", required=True, metavar="FILE", help="Your SSH key, or the public half of one in ssh-agent.")
@click.option("--out", metavar="FILE", callback=options.no_dash, help="Where to write it [PLAN.USER.approval].")
@options.yes
@options.diff
def approve(path: str, key: str, out: str | None, *, yes: bool, full: bool) -> int:
    """Approve by your signature that PLAN, which `mikrom plan --out` saved, may take the data of VMs away."""
    from mikrom_reconcile.system.approvals import sign

    if (saved := run_flow.find_saved((path,))) is None:
        raise UsageError(f"{path}: no plan that `mikrom plan --out` saved")
    losses = losses_of(saved.plan)
    show(plan_text(saved.plan, style_of(sys.stdout, full=full)))
    if not losses:
        raise UsageError("this plan takes no data away: nobody has to approve it")
    vms = sanitize(grouped(vm for vm, _ in losses))
    show(f"Takes away the data of {counted(len(losses), 'VM')}: {vms}\n")
    if not yes and ask("Approve that? [y/N]").lower() not in {"y", "yes"}:
        raise MikromError("this was not agreed to. Nothing was signed.")
    out = out or f"{path}.{getpass.getuser()}.approval"
    run_flow.write_out(out, msgspec.json.encode(sign(losses.values(), key)))
    show(f"wrote {sanitize(out)}\n")
    return 0


@click.command()
@click.argument("commit")
def accept(commit: str) -> int:
    """Have scheduled runs use COMMIT, although its branch was forced and it did not come after the one in use.

    It has to be what is there now, signed where that is asked. The next run applies it.
    """
    if not re.fullmatch("[0-9a-f]{7,64}", commit):
        raise UsageError(f"{commit!r} is no commit: give the first 7 digits of its id, or more, from `mikrom status`")
    if problem := wiring.open_engine(load()).accept(commit):
        raise SourceError(problem)
    show(f"{sanitize(commit)} is used from now on.\n")
    return 0


def _verdict(word: str, text: str) -> click.Command:
    """The command for a person's word about the rollout of a fleet, which goes on or ends by it."""

    @click.argument("fleet")
    @options.paths
    @options.extra_vars
    @options.yes
    @options.execution
    def command(fleet: str, paths: tuple[str, ...], form: str, *, yes: bool, **asked: Any) -> int:
        settings = load()
        request = run_flow.request_for(word, wiring.read_tree(settings, paths), settings, **asked, **{word: (fleet,)})
        return run_flow.run_flow(wiring.open_engine(settings), request, yes=yes, form=form)

    return click.command(word, help=text)(command)


promote = _verdict("promote", "Let the rollout of FLEET go on behind its canaries, which are good.")
abort = _verdict("abort", "End the rollout of FLEET: it stays halted or goes back until its spec changes, or --retry.")


def _time_to_come(text: str) -> datetime:
    with suppress(ValueError, TypeError):  # a time without its distance from UTC compares with none that has it
        if (until := datetime.fromisoformat(text)) > datetime.now(UTC):
            return until
    wanted = "a time to come and its distance from UTC, such as 2026-12-27T08:00+01:00"
    raise UsageError(f"--until {text}: write {wanted}")


@click.command()
@options.paths
@click.option("--reason", default="", metavar="TEXT", help="Why, as every plan then says.")
@click.option("--until", type=_time_to_come, metavar="TIME", help="When it ends by itself: 2026-12-27T08:00+01:00.")
def freeze(paths: tuple[str, ...], reason: str, until: datetime | None) -> int:
    """Have all changes of the specs' project wait, scheduled ones too, until --until or `mikrom unfreeze`.

    VMs that die come back as they were. `mikrom apply --override-freeze` changes it all the same.
    """
    return _freeze(paths, Freeze(by=run_flow.new_run("")["origin"].removeprefix(" by "), reason=reason, until=until))


@click.command()
@options.paths
def unfreeze(paths: tuple[str, ...]) -> int:
    """Let the next run do what waited for `mikrom freeze`."""
    return _freeze(paths, None)


def _freeze(paths: tuple[str, ...], freeze: Freeze | None) -> int:
    from mikrom_reconcile.cli import queries
    from mikrom_reconcile.control import revisions

    settings, now = load(), datetime.now(UTC)
    specs, store = queries.specs_in(settings, paths), wiring.open_engine(settings).store
    was = revisions.freezes(store).get(specs.project)
    ended = msgspec.structs.replace(was, until=now) if was and was.holds(now) else None
    if kept := freeze or ended:
        revisions.keep_freeze(store, specs.project, kept)
    show(sanitize(f"Project {specs.project} is {freeze or 'not frozen by command any more'}.") + "\n")
    if not freeze and specs.freeze and specs.freeze.holds(now):
        warn(f"project {specs.project} is {specs.freeze}")
    return 0
