"""`mikrom plan`."""

from __future__ import annotations

import sys
from typing import Any

import click

from mikrom_reconcile import settings, wiring
from mikrom_reconcile.cli import options, saved_plan
from mikrom_reconcile.cli.run_request import request_for
from mikrom_reconcile.cli.terminal import show, style_of
from mikrom_reconcile.core.model.plan import Plan
from mikrom_reconcile.output import formats
from mikrom_reconcile.output.run_result import plan_exit_code


@click.command()
@options.paths
@options.selection
@options.retry
@options.assume_dead
@click.option("--without-host", "without_hosts", multiple=True, metavar="HOST", help="What if this host were lost?")
@options.diff
@click.option("--out", metavar="FILE", callback=options.no_dash, help="Save the plan, for `mikrom apply FILE`.")
@click.option("--detailed-exitcode", is_flag=True, help="Exit with 2 when there is something to change.")
@options.output(formats.PLAN)
def plan(
    paths: tuple[str, ...], form: str, out: str | None, *, full: bool, detailed_exitcode: bool, **asked: Any
) -> int:
    """Show what apply would change, and why. Changes nothing."""
    current = settings.load()
    request = request_for("plan", wiring.read_tree(current, paths), current, **asked)
    planned = wiring.open_engine(current).plan(request)
    if out is not None:
        saved_plan.write(out, request, planned, wiring.place_of(current))
    return show_plan(planned, form, full=full, detailed=detailed_exitcode)


def show_plan(planned: Plan, form: str, *, full: bool, detailed: bool = False) -> int:
    """Show a plan that is not going to be carried out; the exit code."""
    show(formats.PLAN[form](planned, style_of(sys.stdout, full=full)))
    return plan_exit_code(planned, detailed=detailed)
