"""`mikrom validate`."""

from __future__ import annotations

import click

from mikrom_reconcile import settings, wiring
from mikrom_reconcile.cli import options
from mikrom_reconcile.cli.terminal import show
from mikrom_reconcile.core.desired import wanted
from mikrom_reconcile.core.errors import SpecError
from mikrom_reconcile.core.model.specs import SpecProblem
from mikrom_reconcile.core.specs import read_specs
from mikrom_reconcile.output.documents import json_of, validation_document
from mikrom_reconcile.output.units import counted


@click.command()
@options.paths
@options.output(("text", "json"))
def validate(paths: tuple[str, ...], form: str) -> int:
    """Check the specs and tell every mistake at once, with its place. Asks no host."""
    problems: tuple[SpecProblem, ...] = ()
    counts = (0, 0, 0)
    try:
        chosen = settings.load()
        specs = read_specs(wiring.read_tree(chosen, paths), wiring.schemas())
        counts = (specs.documents, len(wanted(specs, here=chosen.host).vms), len(specs.fleets))
    except SpecError as error:
        if form == "text":
            raise
        problems = error.problems
    if form == "json":
        show(json_of(validation_document(problems, *counts)))
    else:
        documents, vms, fleets = counts
        show(f"{counted(documents, 'document')}, {counted(vms, 'VM')} in {counted(fleets, 'fleet')}: fine\n")
    return 1 if problems else 0
