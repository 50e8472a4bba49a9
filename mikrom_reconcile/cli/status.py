"""`mikrom status`."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime

import click

from mikrom_reconcile import wiring
from mikrom_reconcile.cli import options
from mikrom_reconcile.cli.look import views_of
from mikrom_reconcile.cli.terminal import present, warn
from mikrom_reconcile.core.desired import wanted
from mikrom_reconcile.core.errors import SourceError, SpecError
from mikrom_reconcile.core.specs import read_specs
from mikrom_reconcile.output.documents import status_document
from mikrom_reconcile.output.status_text import FleetKey, status_of, status_text
from mikrom_reconcile.output.verdict import UNREACHABLE
from mikrom_reconcile.settings import Settings, load


@click.command()
@options.paths
@options.output()
def status(paths: tuple[str, ...], form: str) -> int:
    """Hosts, fleets and the last run on one screen. Exits with 4 when a host could not be read."""
    settings = load()
    engine = wiring.open_engine(settings)
    views = views_of(engine)
    last = engine.store.runs(1)
    found = status_of(views, _wanted(settings, paths), last[0] if last else None)
    present(form, lambda: status_document(found), lambda style: status_text(found, datetime.now(UTC), style))
    return UNREACHABLE if any(host.error for host in found.hosts) else 0


def _wanted(settings: Settings, paths: tuple[str, ...]) -> dict[FleetKey, int]:
    """VMs per fleet that the specs want; nothing where there are no specs to read."""
    try:
        specs = read_specs(wiring.read_tree(settings, paths), wiring.schemas())
        vms = wanted(specs, here=settings.host).vms
    except SourceError:
        if paths:
            raise
        return {}
    except SpecError as error:
        warn(f"{error}, so only the hosts are asked; `mikrom validate` tells more")
        return {}
    counts = Counter(vm.fleet for vm in vms if vm.state != "absent")
    return {(specs.project, fleet.name): counts[fleet.name] for fleet in specs.fleets}
