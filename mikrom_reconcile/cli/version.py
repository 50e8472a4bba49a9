"""`mikrom version`."""

from __future__ import annotations

import click

from mikrom_reconcile import __version__
from mikrom_reconcile.cli import options
from mikrom_reconcile.cli.terminal import present


@click.command()
@options.output()
def version(form: str) -> int:
    """The version of mikrom."""
    present(form, lambda: {"version": __version__}, lambda _: f"{__version__}\n")
    return 0
