"""`mikrom orphans`."""

from __future__ import annotations

import click

from mikrom_reconcile import wiring
from mikrom_reconcile.cli import options
from mikrom_reconcile.cli.queries import dark, specs_in, views_of, warn_of_dark_hosts
from mikrom_reconcile.cli.terminal import present, warn
from mikrom_reconcile.core.model.errors import SourceError
from mikrom_reconcile.core.placement.desired_state import render_all
from mikrom_reconcile.output.hosts import orphans_in, orphans_text
from mikrom_reconcile.output.run_result import UNREACHABLE
from mikrom_reconcile.settings import Settings, load


@click.command()
@options.paths
@options.output()
def orphans(paths: tuple[str, ...], form: str) -> int:
    """What runs without a record, what has a record that no spec wants, and what is foreign. Changes nothing.

    Exits with 4 when a host could not be read.
    """
    settings = load()
    project, names = _wanted(settings, paths)
    views = views_of(wiring.open_engine(settings), strays=True)
    found = orphans_in(views, project, names)
    present(form, lambda: {"orphans": found} | dark(views), lambda style: orphans_text(found, style))
    return UNREACHABLE if warn_of_dark_hosts(views) else 0


def _wanted(settings: Settings, paths: tuple[str, ...]) -> tuple[str | None, frozenset[str]]:
    """The project of the specs and the VMs that they want; None where there are no specs to read."""
    try:
        specs = specs_in(settings, paths)
    except SourceError as error:
        if paths:
            raise
        warn(f"{error}; so only processes are judged, not the VMs that have a record")
        return None, frozenset()
    vms = render_all(specs, here=settings.host).vms
    return specs.project, frozenset(vm.name for vm in vms if vm.state != "absent")
