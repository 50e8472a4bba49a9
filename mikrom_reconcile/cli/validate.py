"""`mikrom validate`."""

from __future__ import annotations

import click

from mikrom_reconcile import settings, wiring
from mikrom_reconcile.cli import options
from mikrom_reconcile.cli.terminal import show
from mikrom_reconcile.core.model.errors import SpecError
from mikrom_reconcile.core.model.specs import SpecProblem
from mikrom_reconcile.core.placement.desired_state import render_all, validate_specs
from mikrom_reconcile.core.specs.expand import expand
from mikrom_reconcile.core.specs.warnings import spec_warnings
from mikrom_reconcile.output import formats


@click.command()
@options.paths
@options.output(formats.VALIDATION)
def validate(paths: tuple[str, ...], form: str) -> int:
    """Check the specs and tell every mistake at once, with its place. Asks no host."""
    problems: tuple[SpecProblem, ...] = ()
    warnings: tuple[SpecProblem, ...] = ()
    counts = (0, 0, 0)
    try:
        chosen = settings.load()
        specs = validate_specs(wiring.read_tree(chosen, paths), wiring.schemas(), here=chosen.host)
        counts = (specs.documents, len(render_all(specs, here=chosen.host).vms), len(specs.fleets))
        warnings = spec_warnings(specs, expand(specs))
    except SpecError as error:
        if form == "text":
            raise
        problems = error.problems
    show(formats.VALIDATION[form](problems, warnings, counts))
    return 1 if problems else 0
