"""`mikrom up`, `worker`, `beat` and `flower`: this process becomes the service, or the one that watches over all."""

from __future__ import annotations

import sys
from dataclasses import replace

import click

from mikrom_reconcile.cli.terminal import show
from mikrom_reconcile.output.text import sanitize
from mikrom_reconcile.services import commands
from mikrom_reconcile.settings import load


@click.command()
@click.option("--no-run", is_flag=True, help="Do not apply the specs when all services are ready.")
def up(*, no_run: bool) -> int:
    """All services on this machine, with a Redis of their own, until Ctrl-C. The microVMs stay.

    When all are ready, the specs (MIKROM_SPECS, else ./specs) are applied once. Other commands on this machine find
    these services by themselves.
    """
    from mikrom_reconcile.services.up import up as run_services

    return run_services(load(), run=not no_run, tell=lambda news: show(f"{sanitize(news)}\n", sys.stderr))


@click.command()
@click.option("--role", type=click.Choice(["host", "control"]), help="What the worker does [MIKROM_WORKER_ROLE].")
def worker(role: str | None) -> None:
    """The Celery worker of this host (gevent), or of the control side (threads)."""
    settings = load()
    if role is not None:
        settings = replace(settings, worker_role=role)
    commands.become(commands.role(settings), settings)


@click.command()
def beat() -> None:
    """The clock of the scheduled runs. Two of them tick once."""
    commands.become("beat", load())


@click.command()
def flower() -> None:
    """The monitoring page, on loopback. Refuses to start without FLOWER_BASIC_AUTH."""
    commands.become("flower", load())
