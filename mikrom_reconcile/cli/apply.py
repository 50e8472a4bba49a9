"""`mikrom apply`."""

from __future__ import annotations

import click

from mikrom_reconcile import settings, wiring
from mikrom_reconcile.cli import options
from mikrom_reconcile.cli.carry_out import carry_out, refuse_without_anybody_to_ask
from mikrom_reconcile.cli.plan import show_plan
from mikrom_reconcile.cli.run_request import request_for
from mikrom_reconcile.core.model.desired import Share
from mikrom_reconcile.output import formats


@click.command()
@options.paths
@options.yes
@click.option("--check", is_flag=True, help="Only plan, as `mikrom plan` does.")
@click.option("--prune-max", type=options.ShareType(), help="How much of a fleet this run may remove: 5, or 20%.")
@options.timeout
@options.forks
@options.output(formats.RUN)
def apply(
    paths: tuple[str, ...],
    form: str,
    prune_max: Share | None,
    timeout: float | None,
    forks: int | None,
    *,
    yes: bool,
    check: bool,
) -> int:
    """Make it so: plan, ask, execute, verify.

    Exits with 0 when everything was then seen to be as specified, else with a sum of 2 (a VM is not), 4 (a host
    could not be read), 8 (something was refused) and 16 (the deadline passed first).
    """
    if not check:
        refuse_without_anybody_to_ask(yes=yes)
    current = settings.load()
    tree = wiring.read_tree(current, paths)
    request = request_for("apply", tree, current, prune_max=prune_max, timeout_s=timeout, forks=forks)
    engine = wiring.open_engine(current)
    if check:
        return show_plan(engine.plan(request), form, detailed=False)
    return carry_out(engine, request, yes=yes, form=form)
