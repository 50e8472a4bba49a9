"""`mikrom plan`."""

from __future__ import annotations

import sys

import click

from mikrom_reconcile import settings, wiring
from mikrom_reconcile.cli import options
from mikrom_reconcile.cli.run_request import request_for
from mikrom_reconcile.cli.terminal import show, style_of
from mikrom_reconcile.core.model.plan import Plan
from mikrom_reconcile.output import formats
from mikrom_reconcile.output.verdict import plan_exit_code


@click.command()
@options.paths
@options.output(formats.PLAN)
@click.option("--detailed-exitcode", is_flag=True, help="Exit with 2 when there is something to change.")
def plan(paths: tuple[str, ...], form: str, *, detailed_exitcode: bool) -> int:
    """Show what apply would change, and why. Changes nothing."""
    current = settings.load()
    request = request_for("plan", wiring.read_tree(current, paths), current)
    return show_plan(wiring.open_engine(current).plan(request), form, detailed=detailed_exitcode)


def show_plan(planned: Plan, form: str, *, detailed: bool) -> int:
    """Show a plan that is not going to be carried out; the exit code."""
    show(formats.PLAN[form](planned, style_of(sys.stdout)))
    return plan_exit_code(planned, detailed=detailed)
