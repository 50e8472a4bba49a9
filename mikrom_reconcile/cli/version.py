"""`mikrom version`."""

from __future__ import annotations

import click

from mikrom_reconcile import __version__
from mikrom_reconcile.cli import options
from mikrom_reconcile.cli.terminal import show
from mikrom_reconcile.output.documents import json_of


@click.command()
@options.output()
def version(form: str) -> int:
    """The version of mikrom."""
    show(json_of({"version": __version__}) if form == "json" else f"{__version__}\n")
    return 0
