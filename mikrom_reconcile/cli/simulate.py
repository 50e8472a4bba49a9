"""`mikrom simulate`: what applying specs would do, in virtual time, to VMs that only go through the motions."""

import tempfile
from pathlib import Path
from random import Random
from typing import Any, get_args

import click

from mikrom_reconcile import wiring
from mikrom_reconcile.cli import entry, options, queries, run_flow
from mikrom_reconcile.control.stores.files import FileStore
from mikrom_reconcile.core.model.errors import SetupError
from mikrom_reconcile.core.model.observed import HostView, Placements
from mikrom_reconcile.core.specs.load import Specs, hosts_of
from mikrom_reconcile.output.timeline import rehearsal_document, rehearsal_svg, rehearsal_text
from mikrom_reconcile.rehearsal import Fault, RehearsedHosts, rehearse
from mikrom_reconcile.settings import Settings, load
from mikrom_reconcile.system import files


@click.command()
@options.paths
@options.retry
@options.prune_max
@options.extra_vars
@click.option("--fresh", is_flag=True, help="Begin with empty hosts, and ask none.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of what goes wrong; the same one, the same end.")
@click.option("--faults", type=click.Choice(get_args(Fault)), multiple=True, help="What goes wrong: hosts or starts.")
@click.option("--boot", "boot_s", type=options.seconds, default="1", show_default=True, help="Seconds a start takes.")
@click.option("--svg", metavar="FILE", callback=options.no_dash, help="Draw the timeline.")
@options.output()
def simulate(
    paths: tuple[str, ...], form: str, svg: str | None, faults: tuple[Fault, ...], *, fresh: bool, **asked: Any
) -> int:
    """Rehearse an apply: whether it converges, how long that takes, and how many VMs are down at most.

    It begins with what the hosts have now, and changes nothing there. Exits with 2 when something is left to do.
    """
    settings, chance = load(), Random(asked.pop("seed"))  # noqa: S311 - the same seed, the same end
    boot_s, files.sync = asked.pop("boot_s"), lambda _: None  # what is rehearsed need not survive a power cut
    request = run_flow.request_for("simulate", wiring.read_tree(settings, paths), settings, **asked)
    specs = queries.specs_in(settings, paths, asked["extra_vars"])
    views, placements = _now(settings, specs, fresh=fresh)
    with tempfile.TemporaryDirectory(prefix="mikrom-simulate-") as name:
        folder = Path(name)
        hosts = RehearsedHosts(folder, views, boot_s=boot_s, chance=chance, faults=faults)
        store = FileStore(folder / "store", folder / "locks")
        store.remember(specs.project, placements)
        engine = wiring.make_reconciler(settings, hosts, store, clock=hosts.clock)
        found = rehearse(request, engine, hosts)
    if svg is not None:
        run_flow.write_out(svg, rehearsal_svg(found).encode())
    entry.present(form, lambda: rehearsal_document(found), lambda style: rehearsal_text(found, style))
    return 2 if found.left else 0


def _now(settings: Settings, specs: Specs, *, fresh: bool) -> tuple[dict[str, HostView], Placements]:
    """What the hosts have now, and what is remembered of them. Raises SetupError for one that cannot be read."""
    names = hosts_of(specs, settings.host)
    if fresh:
        return {host: HostView(host=host) for host in names}, Placements()
    engine = wiring.open_engine(settings)
    views = {view.host: view for view in queries.views_of(engine, also=names)}
    if silent := sorted(host for host, view in views.items() if view.report is None):
        raise SetupError(f"{', '.join(silent)} cannot be read: nobody knows what is there; --fresh begins with nothing")
    return views, engine.store.placements(specs.project)
