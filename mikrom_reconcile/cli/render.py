"""`mikrom render` and `mikrom explain`: what the specs come to, and why."""

from __future__ import annotations

from typing import Any

import click

from mikrom_reconcile import settings, wiring
from mikrom_reconcile.cli import options
from mikrom_reconcile.cli.queries import dark, names_for_tab, specs_in, unknown, views_of, vms_in, warn_of_dark_hosts
from mikrom_reconcile.cli.run_request import request_for
from mikrom_reconcile.cli.terminal import present
from mikrom_reconcile.core.placement.desired_state import render_all
from mikrom_reconcile.core.planning.selection import limited
from mikrom_reconcile.core.specs.expand import expand
from mikrom_reconcile.core.specs.provenance import Provenance
from mikrom_reconcile.output.explanation import explanation_document, explanation_text, rendered_document, rendered_text


@click.command()
@options.paths
@options.limit
@options.extra_vars
@click.option("--explain", "explained", is_flag=True, help="Name for every value where it comes from.")
@options.output(("yaml", "json", "text"))
def render(paths: tuple[str, ...], form: str, limit: str | None, extra_vars: dict[str, Any], *, explained: bool) -> int:
    """The VMs that the specs stand for. Asks no host: each is placed as if none existed yet."""
    current = settings.load()
    specs = specs_in(current, paths, extra_vars)
    vms = render_all(specs, here=current.host).vms
    if limit is not None:
        names = limited(limit, ((vm.name, vm.host, vm.fleet) for vm in vms), specs)
        vms = tuple(vm for vm in vms if vm.name in names)
    known = Provenance(specs)
    pending = {vm.name: vm for vm in expand(specs)} if explained else {}
    origins = {vm.name: known.of(pending[vm.name], vm.host) for vm in vms if vm.name in pending}
    document = rendered_document(vms, origins)
    present(form, lambda: document, lambda style: rendered_text(vms, origins, style))
    return 0


@click.command()
@click.argument("name", shell_complete=names_for_tab)
@options.paths
@options.extra_vars
@options.output()
def explain(name: str, paths: tuple[str, ...], form: str, extra_vars: dict[str, Any]) -> int:
    """Why a VM is as it is and what happens to it: spec, variables, what was observed, rule, action."""
    from mikrom_reconcile.core.planning.explain import explain as story_of

    current = settings.load()
    specs = specs_in(current, paths, extra_vars)
    engine = wiring.open_engine(current)
    planned = engine.plan(request_for("explain", specs.tree, current, extra_vars=extra_vars))
    views = views_of(engine)
    told = story_of(name, specs, planned, views, here=current.host)
    if told is None:
        raise unknown(name, [*(vm.name for vm in expand(specs)), *(row.name for row in vms_in(views))], views)
    present(form, lambda: explanation_document(told) | dark(views), lambda style: explanation_text(told, style))
    warn_of_dark_hosts(views)
    return 0
