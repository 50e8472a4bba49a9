"""`mikrom destroy`."""

from __future__ import annotations

import click

from mikrom_reconcile import settings, wiring
from mikrom_reconcile.cli import options
from mikrom_reconcile.cli.carry_out import carry_out, refuse_without_anybody_to_ask
from mikrom_reconcile.cli.run_request import request_for
from mikrom_reconcile.output import formats


@click.command()
@options.paths
@options.yes
@options.timeout
@options.forks
@options.output(formats.RUN)
def destroy(paths: tuple[str, ...], form: str, timeout: float | None, forks: int | None, *, yes: bool) -> int:
    """Remove every VM that these specs own, whatever its fleet's prune share.

    At a prompt the name of each fleet is typed; --yes confirms them all.
    """
    refuse_without_anybody_to_ask(yes=yes)
    current = settings.load()
    tree = wiring.read_tree(current, paths)
    request = request_for("destroy", tree, current, destroy=True, timeout_s=timeout, forks=forks)
    return carry_out(wiring.open_engine(current), request, yes=yes, form=form)
